"""What the privileged child accepts: each field is checked before anything runs."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.applied import AppliedState
from pyvpn.linux.desired import Address, Link, Route, SystemState
from pyvpn.linux.journal import Journal
from pyvpn.linux.ledger import Ledger
from pyvpn.linux.plan import Refused, plan
from pyvpn.linux.privileged import answer
from pyvpn.linux.steps import step_from_json, step_to_json
from pyvpn.testing.linux import FakeLinux
from tests.linux.worlds import over_the_socket, own_directory

NOTHING: dict[str, Any] = {
    "links": [],
    "routes": [],
    "sysctls": {},
    "rules": [],
    "firewall": None,
    "kill_switch": None,
    "name_servers": None,
}
"""The empty state, retyped."""

FIELDS = "links, routes, sysctls, rules, firewall, kill_switch, name_servers"


def one_link(**changed: Any) -> dict[str, Any]:
    """A valid state of one link, with some of the link's fields changed."""
    link = {"name": "leamit0", "mtu": 1416, "addresses": [], "gso_max_size": None, **changed}
    return {**NOTHING, "links": [link]}


def address(interface: object, peer: object = None) -> dict[str, Any]:
    """A state with that address."""
    return one_link(addresses=[{"interface": interface, "peer": peer}])


def route(destination: object, device: object = "leamit0") -> dict[str, Any]:
    """A state with that route."""
    fields = {"destination": destination, "device": device, "table": None, "kind": "unicast"}
    return {**one_link(), "routes": [fields]}


def sysctl(key: str, value: object) -> dict[str, Any]:
    """A state of that sysctl alone."""
    return {**NOTHING, "sysctls": {key: value}}


REFUSED: list[tuple[object, str]] = [
    (None, f"the state must have the fields {FIELDS}"),
    ({}, f"the state must have the fields {FIELDS}"),
    ({**one_link(), "more": 1}, f"the state must have the fields {FIELDS}"),
    ({**one_link(), "links": {}}, "links must be a list of at most 4096 entries"),
    ({**one_link(), "routes": [{}] * 5000}, "routes must be a list of at most 4096 entries"),
    (one_link(more=1), "a link must have the fields name, mtu, addresses, gso_max_size"),
    (one_link(gso_max_size=4095), "gso_max_size 4095 is not between 4096 and 65536"),
    (one_link(gso_max_size=65537), "gso_max_size 65537 is not between 4096 and 65536"),
    (one_link(gso_max_size="44"), "gso_max_size '44' is not between 4096 and 65536"),
    (one_link(gso_max_size=True), "gso_max_size True is not between 4096 and 65536"),
    (one_link(name="a b"), "'a b' is no name of an interface"),
    (one_link(name="../eth0"), "'../eth0' is no name of an interface"),
    (one_link(name=".."), "'..' is no name of an interface"),
    (one_link(name="-force"), "'-force' is no name of an interface"),
    (one_link(name="x\nlink"), "'x\\nlink' is no name of an interface"),
    (one_link(name="x#y"), "'x#y' is no name of an interface"),
    (one_link(name="sixteen_letters_"), "'sixteen_letters_' is no name of an interface"),
    (one_link(name=7), "7 is no name of an interface"),
    (one_link(mtu="1416"), "MTU '1416' is not between 576 and 65535"),
    (one_link(mtu=True), "MTU True is not between 576 and 65535"),
    (one_link(mtu=575), "MTU 575 is not between 576 and 65535"),
    (one_link(mtu=65536), "MTU 65536 is not between 576 and 65535"),
    (
        one_link(mtu=1279, addresses=[{"interface": "fd00::1/64", "peer": None}]),
        "MTU 1279 is not between 1280 and 65535",
    ),
    (address("10.10.0.1/24 dev eth0"), "'10.10.0.1/24 dev eth0' does not appear to be"),
    (address("10.10.0.1/33"), "'10.10.0.1/33' does not appear to be"),
    (address("fe80::1%eth0/64"), "'fe80::1%eth0/64' is no address"),
    (address(1), "1 is no address"),
    (address("10.10.0.1/24", "fd00::1"), "10.10.0.1/24 and its peer fd00::1 are of two families"),
    (address("10.10.0.1/24", "x"), "'x' does not appear to be"),
    (route("10.20.0.1/16"), "10.20.0.1/16 has host bits set"),
    (route("default"), "'default' does not appear to be"),
    (route("10.20.0.0/16", "eth0"), "a route names eth0, which is no link of this state"),
    (sysctl("kernel/core_pattern", "|x"), "sysctl 'kernel/core_pattern' = '|x' is not one that"),
    (sysctl("net/ipv4/ip_forward", "0"), "sysctl 'net/ipv4/ip_forward' = '0' is not one that"),
    (sysctl("net/ipv4/ip_forward", 1), "sysctl 'net/ipv4/ip_forward' = 1 is not one that"),
    (sysctl("net/ipv4/conf/../send_redirects", "0"), "is not one that"),
    (sysctl("net/ipv4/conf/a/b/send_redirects", "0"), "is not one that"),
    (sysctl("net/ipv4/ip_forward\n", "1"), "is not one that"),
    ({**one_link(), "sysctls": []}, "sysctls must be a mapping of at most 4096 entries"),
    (
        {**one_link(), "links": [one_link()["links"][0]] * 2},
        "the state names something twice",
    ),
]

ACCEPTED = [
    one_link(),
    one_link(name="wg-1_a.b@c+d=e"),
    one_link(gso_max_size=61_700),
    address("10.10.0.2/24", "10.10.0.1"),
    address("fd00::1/64"),
    route("10.20.0.0/16"),
    route("fd00:2::/64"),
    sysctl("net/ipv4/ip_forward", "1"),
    sysctl("net/ipv4/conf/eth0.100/send_redirects", "0"),
    sysctl("net/ipv6/conf/..x/accept_ra", "2"),
]

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "op", "state", "links", "routes", "sysctls", "name", "mtu", "peer"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


class Plan(SynchronousTestCase):
    """States in, steps or a refusal out."""

    def test_refused(self) -> None:
        """Each wrong state is refused with one line that says what is wrong."""
        for state, words in REFUSED:
            with self.assertRaises(Refused) as caught:
                plan(state, FakeLinux())
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))

    def test_accepted(self) -> None:
        """The control: states of the same shapes with right values become steps."""
        for state in ACCEPTED:
            linux = FakeLinux()
            for link in state["links"]:
                linux.add_link(link["name"])
            steps, notes = plan(state, linux)
            self.assertTrue(steps)
            self.assertEqual(notes, [])
            self.assertEqual([step_from_json(step_to_json(step)) for step in steps], steps)

    def test_links_before_sysctls(self) -> None:
        """The machine begins to forward only when all else has succeeded."""
        state = SystemState(
            (Link("leamit0", 1416, (Address("10.10.0.1/24"),)),),
            (Route("10.20.0.0/16", "leamit0"),),
            {"net/ipv4/ip_forward": "1"},
        )
        steps, _ = plan(over_the_socket(state), FakeLinux())
        self.assertEqual(steps[-1].kind, "sysctl")
        self.assertEqual([step.kind for step in steps].count("sysctl"), 1)

    def test_json_form(self) -> None:
        """A state's JSON form names all of its fields, and the empty state has the shape above."""
        state = SystemState(
            (Link("leamit0", 1416, (Address("10.10.0.2/24", "10.10.0.1"), Address("fd00::2/64"))),),
            (Route("10.20.0.0/16", "leamit0"),),
            {"net/ipv4/ip_forward": "1"},
        )
        addresses = [
            {"interface": "10.10.0.2/24", "peer": "10.10.0.1"},
            {"interface": "fd00::2/64", "peer": None},
        ]
        self.assertEqual(
            over_the_socket(state),
            {
                **one_link(addresses=addresses),
                "routes": route("10.20.0.0/16")["routes"],
                "sysctls": {"net/ipv4/ip_forward": "1"},
            },
        )
        self.assertEqual(over_the_socket(SystemState()), NOTHING)


class Requests(SynchronousTestCase):
    """The child's answers."""

    def setUp(self) -> None:
        directory = own_directory(self)
        self.linux = FakeLinux()
        journal = Journal(f"{directory}/server.journal", "boot:1:1", self.linux.namespace())
        ledger = Ledger(f"{directory}/ledger", self.linux)
        self.applied = AppliedState(self.linux, journal, ledger)

    def test_good_request(self) -> None:
        """The control: a well-formed request is carried out."""
        self.linux.add_link("leamit0")
        reply = answer({"id": 3, "op": "apply", "state": one_link()}, self.applied, self.linux)
        self.assertEqual((reply["id"], reply["ok"]), (3, True))
        self.assertIn("ip link set dev leamit0 up", reply["commands"])

    def test_wrong_requests(self) -> None:
        """A request of another shape or operation is refused, not obeyed and not fatal."""
        for request, words in (
            (None, "a request has the fields id, op, state"),
            ([], "a request has the fields id, op, state"),
            ({"id": 1, "op": "apply"}, "a request has the fields id, op, state"),
            ({"id": 1, "op": "shell", "state": {}}, "there is no operation 'shell'"),
        ):
            reply = answer(request, self.applied, self.linux)
            self.assertFalse(reply["ok"])
            self.assertEqual(reply["error"]["stderr"], words)

    @settings(deadline=None)
    @given(NESTED)
    def test_any_request(self, request: object) -> None:
        """Whatever comes as a request, an answer goes out and nothing was run."""
        linux = FakeLinux()
        reply = answer(request, self.applied, linux)
        if reply["ok"]:
            self.assertEqual(reply["commands"], [])
        self.assertNotEqual(reply.get("error", {}).get("code"), 70)
        self.assertEqual(linux.commands, [])
