"""Names of machines: what texts become, who gets which name, and whom a name leads to."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.hostnames import Host, host_names, label

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NOT_FOR_ALL = {"hub", "localhost", "wpad", "isatap", "autodiscover"}

HUB = (ip_address("10.10.0.1"), ip_address("fd00::1"))


def four(number: int) -> tuple[IPv4Address | IPv6Address, ...]:
    """The addresses of machine ``number``."""
    return (IPv4Address(0x0A0A0000 + number), IPv6Address((0xFD00 << 112) + number))


def device(user: str | None, name: str, number: int = 0, **more: object) -> Host:
    """A device with addresses, or without if ``number`` is 0."""
    return Host(user, name, four(number) if number else (), **more)  # type: ignore[arg-type]


def numbers(hosts: Sequence[Host], hub: bool = False) -> dict[str, int]:
    """The names without the domain, in order, each with the machine's number."""
    names = host_names(hosts, HUB if hub else ())
    return {name.removesuffix(".pyvpn"): int(found[0]) & 0xFFFF for name, found in names.items()}


# Few letters, so that there are many clashes.
TEXTS = st.one_of(
    st.text("aAbé -_2", max_size=4),
    st.sampled_from(
        ["hub", "wpad", "a-2", "a-3", "x" * 63, "x" * 80, "x" * 57 + "-2", "\U0001f4bb"]
    ),
    st.text(max_size=70),
)


@st.composite
def networks(draw: st.DrawFn) -> list[Host]:
    """Any hosts; no two have an address in common, or a key."""
    count = draw(st.integers(0, 12))
    hosts = []
    for number in range(2, count + 2):
        user = draw(st.one_of(st.none(), TEXTS))
        addresses = four(number)[: draw(st.integers(0, 2))]
        connected, since = draw(st.booleans()), draw(st.integers(0, 2))
        key = number.to_bytes(16, "big")
        hosts.append(Host(user, draw(TEXTS), addresses, connected, since, key))
    return hosts


class LabelTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """Texts of people become the label that they would write themselves."""
        for text, expected in (
            ("laptop", "laptop"),
            ("Alice's MacBook Pro", "alices-macbook-pro"),
            ("work_pc  2", "work-pc-2"),
            ("db.example.org", "db-example-org"),
            ("Größe", "grosse"),
            ("Łukasz Ðø", "lukasz-do"),
            ("ﬁle\uff21\uff22", "fileab"),
            ("xn--mnchen-3ya", "xn-mnchen-3ya"),
            ("-- a --", "a"),
            ("42", "42"),
            ("x" * 100, "x" * 63),
            ("x" * 62 + "-yz", "x" * 62),
            ("\u8001\u738b", "device"),
            ("", "device"),
        ):
            self.assertEqual(label(text), expected, text)
        self.assertEqual(label("\u8001\u738b", "user"), "user")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text becomes a label, which stays as it is when it is made one again."""
        found = label(text)
        self.assertIsNotNone(LABEL.fullmatch(found), found)
        self.assertNotIn("--", found)
        self.assertEqual(label(found), found)


class HostNamesTests(SynchronousTestCase):
    def test_network(self) -> None:
        """Each machine has the names that people expect, the one for PTR first."""
        hosts = [
            device("alice", "Laptop", 2, since=5),
            device("alice", "phone", 3, since=9),
            device("bob", "laptop", 4),
            device("bob", "desk", 5, connected=True),
            device(None, "router", 6),
        ]
        expected = {
            "hub": 1,
            "pyvpn": 1,
            "router": 6,
            "laptop.alice": 2,
            "phone.alice": 3,
            "laptop.bob": 4,
            "desk.bob": 5,
            "alice": 3,
            "bob": 5,
            "desk": 5,
            "phone": 3,
        }
        self.assertEqual(list(numbers(hosts, hub=True).items()), list(expected.items()))
        self.assertEqual(host_names(hosts, HUB)["phone.alice.pyvpn"], four(3))

    def test_users_without_a_device(self) -> None:
        """Nobody gets a user's name by calling a device so, also while that user has none."""
        hosts = [device("mallory", "bob", 2)]
        self.assertEqual(host_names(hosts, HUB)["bob.pyvpn"], hosts[0].addresses)
        names = host_names(hosts, HUB, ["bob", "mallory"])
        self.assertNotIn("bob.pyvpn", names)
        self.assertEqual(names["bob.mallory.pyvpn"], hosts[0].addresses)

    def test_domain(self) -> None:
        """Another domain stands at the end of all names."""
        names = host_names([device("alice", "laptop", 2)], HUB, domain="example.net")
        self.assertIn("laptop.alice.example.net", names)
        self.assertEqual([name for name in names if not name.endswith("example.net")], [])

    def test_most_recent(self) -> None:
        """A user's name leads to the device that connected last, a live one before all others."""
        old = device("alice", "old", 2, connected=True, since=1)
        new = device("alice", "new", 3, connected=True, since=2)
        gone = device("alice", "gone", 4, since=3)
        self.assertEqual(numbers([old, new, gone])["alice"], 3)
        self.assertEqual(numbers([old, gone])["alice"], 2)
        self.assertEqual(numbers([gone])["alice"], 4)

    def test_no_lease(self) -> None:
        """A device without an address has no name, and its user's name leads to another one."""
        waiting = device("alice", "new", 0, connected=True, since=9)
        self.assertEqual(numbers([waiting]), {})
        self.assertEqual(numbers([waiting, device("alice", "old", 2)])["alice"], 2)

    def test_clashes(self) -> None:
        """Who has the lower address keeps the name; a text that is its own label wins over all."""
        hosts = [device("alice", "PC", 2), device("alice", "pc!", 4), device("alice", "pc", 9)]
        found = numbers([*hosts, device("alice", "pc-2", 3)])
        self.assertEqual(
            {name: number for name, number in found.items() if name.endswith(".alice")},
            {"pc.alice": 9, "pc-2.alice": 3, "pc-3.alice": 2, "pc-4.alice": 4},
        )

    def test_user_clashes(self) -> None:
        """Users whose names have the same label get numbers, and so do peers of these names."""
        hosts = [device("Bob", "a", 2), device("bob", "b", 3), device("BOB", "c", 4)]
        found = numbers([*hosts, device(None, "bob", 5)])
        self.assertEqual(found["bob"], 3)
        self.assertEqual((found["bob-2"], found["bob-3"], found["bob-4"]), (4, 2, 5))

    def test_unique_device(self) -> None:
        """A device's name stands alone only if no other one is called so, with address or not."""
        mine = device("alice", "nas", 2)
        self.assertEqual(numbers([mine])["nas"], 2)
        for other in (device("bob", "NAS", 3), device("bob", "nas", 0), device("alice", "nas", 3)):
            self.assertNotIn("nas", numbers([mine, other]))

    def test_short_name_taken(self) -> None:
        """A device takes no name from a user or a stock peer."""
        self.assertEqual(numbers([device("alice", "bob", 2), device("bob", "x", 3)])["bob"], 3)
        self.assertEqual(numbers([device("alice", "bob", 2), device(None, "Bob", 3)])["bob"], 3)

    def test_reserved(self) -> None:
        """Nobody gets a name that programs obey without being asked to, such as wpad."""
        for text in sorted(NOT_FOR_ALL):
            hosts = [device(text, "a", 2), device(None, text, 3), device("alice", text, 4)]
            found = numbers(hosts)
            self.assertNotIn(text, found)
            self.assertEqual((found[f"{text}-2"], found[f"{text}-3"]), (2, 3))
            self.assertEqual(found[f"{text}.alice"], 4)

    @settings(deadline=None)
    @given(networks(), st.randoms(use_true_random=False))
    def test_any_network(self, hosts: list[Host], random: object) -> None:
        """Names are valid and nobody's twice, each lease has its own, and order means nothing."""
        names = host_names(hosts, HUB)
        for name, addresses in names.items():
            parts = name.removesuffix("pyvpn").split(".")[:-1]
            self.assertTrue(all(LABEL.fullmatch(part) for part in parts), name)
            self.assertLessEqual(len(parts), 2)
            self.assertTrue(addresses)
            self.assertTrue(len(parts) != 1 or parts[0] == "hub" or parts[0] not in NOT_FOR_ALL)
        first = {}
        for name, addresses in names.items():
            first.setdefault(addresses, name)
        named = {host for host in hosts if host.addresses}
        self.assertEqual(set(first), {host.addresses for host in named} | {HUB})
        for host in named:
            self.assertEqual(first[host.addresses].count("."), 1 if host.user is None else 2)
        for user in {host.user for host in named} - {None}:
            devices = [host for host in named if host.user == user]
            best = max((host.connected, host.since) for host in devices)
            newest = {host.addresses for host in devices if (host.connected, host.since) == best}
            ending = {first[host.addresses].split(".", 1)[1] for host in devices}
            self.assertEqual(len(ending), 1)
            self.assertIn(names[ending.pop()], newest)
        shuffled = list(hosts)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        self.assertEqual(list(host_names(shuffled, HUB).items()), list(names.items()))

    def test_time(self) -> None:
        """10,000 devices are named in seconds at worst, whatever their owners call them."""
        count = 10_000
        worst = {
            "one name": ["a"] * count,
            "and its suffixes": ["a"] * (count // 2) + [f"a-{n}" for n in range(count // 2)],
            "one stem": [f"{'x' * 59}{n // 2:04}" for n in range(count)],
            "long": [f"{n} {'é' * 300}" for n in range(count)],
        }
        for title, texts in worst.items():
            for one_user in (True, False):
                hosts = [
                    Host("u" if one_user else text, text, four(number + 2))
                    for number, text in enumerate(texts)
                ]
                start = time.process_time()
                names = host_names(hosts, HUB)
                # They take 0.1 s each; what is quadratic takes minutes.
                self.assertLess(time.process_time() - start, 10, title)
                self.assertGreater(len(names), count)
