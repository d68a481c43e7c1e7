"""What the privileged child accepts: each field is checked before anything runs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.applied import AppliedState
from pyvpn.linux.desired import Address, Link, Route, Rule, SystemState
from pyvpn.linux.firewall import ClientFirewall, HubFirewall, KillSwitch
from pyvpn.linux.journal import Journal
from pyvpn.linux.ledger import Ledger
from pyvpn.linux.nameservers import NameServers
from pyvpn.linux.plan import Refused, plan
from pyvpn.linux.privileged import answer
from pyvpn.linux.steps import (
    AddressOn,
    FirewallTable,
    KillSwitchSet,
    NameServersTaken,
    step_from_json,
    step_to_json,
    steps_to_drop,
)
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

T = 0x50560000
"""The first of our routing tables; the last one is 65535 above."""

FIELDS = "links, routes, sysctls, rules, firewall, kill_switch, name_servers"


def one_link(**changed: Any) -> dict[str, Any]:
    """A valid state of one link, with some of the link's fields changed."""
    link = {"name": "leamit0", "mtu": 1416, "addresses": [], "gso_max_size": None, **changed}
    return {**NOTHING, "links": [link]}


def address(interface: object, peer: object = None) -> dict[str, Any]:
    """A state with that address."""
    return one_link(addresses=[{"interface": interface, "peer": peer}])


def route(destination: object, device: object = "leamit0", **changed: Any) -> dict[str, Any]:
    """A state with that route."""
    fields = {"destination": destination, "device": device, "table": None, "kind": "unicast"}
    return {**one_link(), "routes": [{**fields, **changed}]}


def rule(**changed: Any) -> dict[str, Any]:
    """A state with a rule, some of whose fields are changed."""
    return {**one_link(), "rules": [{"family": 4, "table": T, "device": "leamit0", **changed}]}


def client_firewall(**changed: Any) -> dict[str, Any]:
    """A state with the firewall of a client."""
    lists = {name: [] for name in ("addresses", "ports", "shared", "networks")}
    return {
        **one_link(),
        "firewall": {"kind": "client", "device": "leamit0", **lists, "closed": True, **changed},
    }


def hub_firewall(**changed: Any) -> dict[str, Any]:
    """A state with the firewall of a hub."""
    lists = {name: [] for name in ("networks", "subnets", "reachable")}
    switches = {"internet": False, "client_to_client": True}
    return {
        **one_link(),
        "firewall": {"kind": "hub", "device": "leamit0", **lists, **switches, **changed},
    }


def kill_switch(**changed: Any) -> dict[str, Any]:
    """A state of a kill switch alone."""
    lists = {name: [] for name in ("ports", "resolvers", "lan")}
    return {
        **NOTHING,
        "kill_switch": {"owner": "client-home", "device": "leamit0", **lists, **changed},
    }


def name_servers(**changed: Any) -> dict[str, Any]:
    """A state with name servers."""
    fields = {"device": "leamit0", "servers": ["10.10.0.1"], "search": [], "exclusive": False}
    return {**one_link(), "name_servers": {**fields, **changed}}


def sysctl(key: str, value: object) -> dict[str, Any]:
    """A state of that sysctl alone."""
    return {**NOTHING, "sysctls": {key: value}}


REFUSED: list[tuple[object, str]] = [
    (None, f"the state must have the fields {FIELDS}"),
    ({}, f"the state must have the fields {FIELDS}"),
    ({**one_link(), "more": 1}, f"the state must have the fields {FIELDS}"),
    ({**one_link(), "links": {}}, "links must be a list of at most 4352 entries"),
    ({**one_link(), "routes": [{}] * 5000}, "routes must be a list of at most 4352 entries"),
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
    (sysctl("net/ipv4/conf/all/src_valid_mark", "0"), "is not one that"),
    (sysctl("net/ipv4/conf/eth0/src_valid_mark", "1"), "is not one that"),
    (route("10.20.0.0/16", table=T - 1), "routing table 1347813375 is none of ours"),
    (route("10.20.0.0/16", table=T + 65536), "routing table 1347878912 is none of ours"),
    (route("10.20.0.0/16", table=254), "routing table 254 is none of ours"),
    (route("10.20.0.0/16", table=str(T)), "routing table '1347813376' is none of ours"),
    (route("10.20.0.0/16", table=True), "routing table True is none of ours"),
    (route("10.20.0.0/16", table=T, kind="blackhole"), "no route of the kind 'blackhole'"),
    (route("10.20.0.0/16", table=T, kind=["throw"]), "no route of the kind ['throw']"),
    (route("10.20.0.0/16", kind="throw"), "route of the kind throw must be in a table of ours"),
    (route("::/0", kind="unreachable"), "kind unreachable must be in a table of ours"),
    (route("::/0", "eth0", table=T, kind="unreachable"), "a route names eth0, which is no link"),
    (
        {
            **one_link(),
            "routes": route("0.0.0.0/0", table=T)["routes"]
            + route("0.0.0.0/0", table=T, kind="throw")["routes"],
        },
        "there are two routes to 0.0.0.0/0",
    ),
    (rule(more=1), "a rule must have the fields family, table, device"),
    (rule(family=5), "there is no family 5"),
    (rule(family="4"), "there is no family '4'"),
    (rule(family=True), "there is no family True"),
    (rule(table=253), "routing table 253 is none of ours"),
    (rule(device="eth0"), "a rule names eth0, which is no link of this state"),
    ({**one_link(), "rules": [{}] * 5000}, "rules must be a list of at most 4352 entries"),
    ({**rule(), "rules": rule()["rules"] * 2}, "the state names something twice"),
    ({**one_link(), "firewall": []}, "there is no firewall of the kind None"),
    (client_firewall(kind="other"), "there is no firewall of the kind 'other'"),
    (client_firewall(kind=["hub"]), "there is no firewall of the kind ['hub']"),
    (client_firewall(internet=True), "the firewall of a client must have the fields kind, device"),
    (client_firewall(device="eth0"), "the firewall names eth0, which is no link of this state"),
    (client_firewall(device='x" y'), "is no name of an interface"),
    (client_firewall(addresses=["10.10.0.2/24"]), "'10.10.0.2/24' does not appear to be"),
    (client_firewall(addresses=["10.10.0.2 }"]), "'10.10.0.2 }' does not appear to be"),
    (client_firewall(addresses="10.10.0.2"), "addresses of the firewall must be a list of at"),
    (client_firewall(addresses=["::1"] * 5000), "must be a list of at most 4352 entries"),
    (client_firewall(ports=[0]), "0 is no port"),
    (client_firewall(ports=[65536]), "65536 is no port"),
    (client_firewall(ports=[True]), "True is no port"),
    (client_firewall(ports=["5050"]), "'5050' is no port"),
    (client_firewall(shared=["192.168.1.1/24"]), "192.168.1.1/24 has host bits set"),
    (client_firewall(networks=[1]), "1 is no address"),
    (hub_firewall(device="eth0"), "the firewall names eth0, which is no link of this state"),
    (hub_firewall(ports=[]), "the firewall of a hub must have the fields kind, device, networks"),
    (hub_firewall(internet=1), "internet must be true or false, not 1"),
    (hub_firewall(client_to_client=None), "client_to_client must be true or false, not None"),
    (hub_firewall(networks=["x"]), "'x' does not appear to be"),
    (hub_firewall(subnets=["fe80::%eth0/64"]), "'fe80::%eth0/64' is no address"),
    (hub_firewall(reachable={}), "reachable networks must be a list of at most 4352 entries"),
    (kill_switch(owner=""), "'' is no owner of a kill switch"),
    (kill_switch(owner='x" accept'), "is no owner of a kill switch"),
    (kill_switch(owner="x" * 65), "is no owner of a kill switch"),
    (kill_switch(owner=None), "None is no owner of a kill switch"),
    (kill_switch(more=1), "a kill switch must have the fields owner, device, ports, resolvers"),
    (kill_switch(device="a b"), "'a b' is no name of an interface"),
    (kill_switch(ports=[-1]), "-1 is no port"),
    (kill_switch(resolvers=["vpn.example.org"]), "'vpn.example.org' does not appear to be"),
    (kill_switch(resolvers=[7]), "7 is no address"),
    (kill_switch(lan=["10.0.0.0"] * 4353), "local networks must be a list of at most 4352"),
    (kill_switch(lan=["10.0.0.1/8"]), "10.0.0.1/8 has host bits set"),
    (name_servers(device="eth0"), "the list of name servers names eth0, which is no link"),
    (name_servers(servers=["8.8.8.8\noptions x"]), "does not appear to be"),
    (name_servers(servers=["fe80::1%eth0"]), "'fe80::1%eth0' is no address"),
    (name_servers(servers=[]), "name servers without a server or a domain"),
    (name_servers(exclusive=1), "exclusive must be true or false, not 1"),
    *(
        (name_servers(search=[domain]), f"{domain!r} is no domain")
        for domain in (
            "",
            ".",
            "~.",
            "-a.example",
            "a-.example",
            "a..b",
            "example.",
            "a b",
            "a\nnameserver 192.0.2.1",
            "a_b.example",
            "b\u00fccher.example",
            "x" * 64,
            ".".join(["x" * 49] * 5 + ["abcd"]),
            7,
            None,
        )
    ),
    (name_servers(search="example.org"), "search domains must be a list of at most 4352 entries"),
    ({**one_link(), "sysctls": []}, "sysctls must be a mapping of at most 4352 entries"),
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
    sysctl("net/ipv4/conf/all/src_valid_mark", "1"),
    route("10.20.0.0/16", table=T),
    route("0.0.0.0/0", table=T + 65535),
    route("::/0", table=T, kind="unreachable"),
    route("192.168.0.0/16", table=T, kind="throw"),
    rule(),
    rule(family=6, table=T + 65535),
    client_firewall(),
    client_firewall(
        addresses=["10.10.0.2", "fd00::2"],
        ports=[1, 65535],
        shared=["192.168.1.0/24", "fd00:3::/64"],
        networks=["10.10.0.0/24"],
    ),
    hub_firewall(),
    hub_firewall(
        networks=["10.10.0.0/24"],
        subnets=["10.20.0.0/16"],
        reachable=["0.0.0.0/0"],
        internet=True,
        client_to_client=False,
    ),
    kill_switch(),
    kill_switch(
        owner="client-" + "x" * 32,
        ports=[5051],
        resolvers=["192.0.2.53", "fe80::1%eth0"],
        lan=["192.168.1.0/24"],
    ),
    name_servers(),
    name_servers(
        servers=["fd00::1"],
        search=["pyvpn", "a-b.example.org", "x" * 63, ".".join(["x" * 49] * 5 + ["abc"])],
        exclusive=True,
    ),
]

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "op", "state", *NOTHING, "name", "mtu", "peer", "kind", "device", "owner"]
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
            undone = [step for step in steps if not isinstance(step, KillSwitchSet)]
            written = json.loads(json.dumps([step_to_json(step) for step in undone]))
            self.assertEqual([step_from_json(data) for data in written], undone)

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

    def test_values_arrive(self) -> None:
        """What the service says of firewall, kill switch and name servers reaches the steps."""
        device = "leamit0"
        state = SystemState(
            links=(Link(device, 1416),),
            firewall=ClientFirewall(device, ("10.10.0.2",), (5051,), ("10.1.0.0/16",), ("::/0",)),
            kill_switch=KillSwitch(
                "client-a", device, (5051,), ("fe80::1%eth0",), ("10.1.0.0/16",)
            ),
            name_servers=NameServers(device, ("10.10.0.1",), ("pyvpn",), exclusive=True),
        )
        linux = FakeLinux()
        steps, _ = plan(over_the_socket(state), linux)
        self.assertEqual(
            steps[0], KillSwitchSet(dataclasses.replace(state.kill_switch, resolvers=("fe80::1",)))
        )
        self.assertEqual(
            steps[-2:], [FirewallTable(state.firewall), NameServersTaken(state.name_servers)]
        )
        hub = HubFirewall(
            device, ("10.10.0.0/24",), True, False, ("10.2.0.0/16",), ("10.3.0.0/16",)
        )
        steps, _ = plan(over_the_socket(evolve(state, firewall=hub)), linux)
        self.assertIn(FirewallTable(hub), steps)

    def test_without_ipv6(self) -> None:
        """A kernel that knows no IPv6 gets none of it, and one note for each thing left out."""
        state = SystemState(
            (Link("leamit0", 1416),),
            (Route("::/0", "leamit0", T), Route("fd00::/8", "leamit0", T, "throw")),
            rules=(Rule(4, T, "leamit0"), Rule(6, T, "leamit0")),
        )
        linux = FakeLinux(ipv6=False)
        linux.add_link("leamit0")
        steps, notes = plan(over_the_socket(state), linux)
        self.assertEqual(
            notes,
            [
                "note: IPv6 is off: route ::/0 left out",
                "note: IPv6 is off: route fd00::/8 left out",
                f"note: IPv6 is off: rule for table {T} left out",
            ],
        )
        self.assertEqual([step.kind for step in steps], ["mtu", "up", "rule"])

    def test_shaken(self) -> None:
        """With an address go its interface's routes in every table; dead ends, rules and tables
        stay, as the kernel leaves them alone."""
        steps, _ = plan(
            over_the_socket(
                SystemState(
                    (Link("leamit0", 1416, (Address("10.10.0.2/24"),)), Link("other0", 1416)),
                    (
                        Route("10.20.0.0/16", "leamit0", T),
                        Route("10.30.0.0/16", "leamit0", T, "throw"),
                        Route("10.40.0.0/16", "leamit0"),
                        Route("10.50.0.0/16", "other0", T),
                    ),
                    rules=(Rule(4, T, "leamit0"),),
                    firewall=ClientFirewall("leamit0"),
                    name_servers=NameServers("leamit0", ("10.10.0.1",)),
                )
            ),
            FakeLinux(),
        )
        wanted = [step for step in steps if not isinstance(step, AddressOn)]
        dropped = steps_to_drop(steps, wanted)
        self.assertEqual(
            [getattr(step, "destination", step.kind) for step in dropped],
            ["address", "10.20.0.0/16", "10.40.0.0/16"],
        )
        self.assertEqual(steps_to_drop(steps, steps), [])

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

    def test_kill_switches(self) -> None:
        """A service sets its own kill switch, not another's, and keeps no public network beside."""
        for owner, lan, said in (
            ("server", (), None),
            ("server", ("192.168.1.0/24",), None),
            ("client-home", (), "the kill switch of client-home is not that of server"),
            ("server", ("0.0.0.0/0",), "0.0.0.0/0 is no private network"),
            ("server", ("9.9.9.0/24",), "9.9.9.0/24 is no private network"),
        ):
            wanted = SystemState(kill_switch=KillSwitch(owner, "leamit0", lan=lan))
            request = {"id": 1, "op": "apply", "state": over_the_socket(wanted)}
            reply = answer(request, self.applied, self.linux)
            self.assertEqual(reply["ok"], said is None, reply)
            if said is not None:
                self.assertIn(said, reply["error"]["stderr"])

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
