"""Longest prefix match against a sorted list that is searched from its start."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.allowedips import AllowedIPs, Network


class ListModel:
    """All networks in one list; every question looks at each of them."""

    def __init__(self) -> None:
        self.entries: list[tuple[Network, str]] = []

    def insert(self, network: Network, peer: str) -> None:
        self.remove(network)
        self.entries.append((network, peer))

    def remove(self, network: Network) -> None:
        self.entries = [entry for entry in self.entries if entry[0] != network]

    def remove_peer(self, peer: str) -> None:
        self.entries = [entry for entry in self.entries if entry[1] != peer]

    def lookup(self, packed: bytes) -> str | None:
        address = ip_address(packed)
        for network, peer in sorted(self.entries, key=lambda entry: -entry[0].prefixlen):
            if address.version == network.version and address in network:
                return peer
        return None

    def networks(self, peer: str) -> list[Network]:
        return [network for network, owner in self.entries if owner == peer]


# Few distinct bits, so that networks nest and addresses hit them; both families use them alike.
def _address4(number: int) -> IPv4Address:
    return IPv4Address(0x0A000000 | (number & 0xF) << 20 | (number >> 4 & 0xF))


def _address6(number: int) -> IPv6Address:
    return IPv6Address(0xFD << 120 | (number & 0xF) << 100 | (number >> 4 & 0xF))


ADDRESSES = st.builds(
    lambda make, number: make(number), st.sampled_from([_address4, _address6]), st.integers(0, 255)
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(ADDRESSES)
    if isinstance(address, IPv4Address):
        prefix = draw(st.sampled_from([0, 8, 11, 12, 24, 30, 31, 32, 32]))
        return IPv4Network((address, prefix), strict=False)
    prefix = draw(st.sampled_from([0, 8, 27, 28, 64, 126, 127, 128, 128]))
    return IPv6Network((address, prefix), strict=False)


PEERS = st.sampled_from(["kiwi", "pa", "tui"])
STEPS = st.one_of(
    st.tuples(st.just("insert"), networks(), PEERS),
    st.tuples(st.just("remove"), networks()),
    st.tuples(st.just("remove_peer"), PEERS),
)


def packed(text: str) -> bytes:
    return ip_address(text).packed


class AllowedIPsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table: AllowedIPs[str] = AllowedIPs()

    def test_empty_table_knows_nobody(self) -> None:
        """Without networks no address has a peer, in either family."""
        self.assertIsNone(self.table.lookup(packed("10.10.0.2")))
        self.assertIsNone(self.table.lookup(packed("fd00::2")))

    def test_longest_prefix_wins(self) -> None:
        """The most specific network owns an address, in whatever order they were inserted."""
        for text, peer in (
            ("10.10.0.0/24", "lan"),
            ("0.0.0.0/0", "exit"),
            ("10.10.0.2/32", "kiwi"),
            ("10.10.0.0/30", "few"),
            ("fd00::/64", "lan6"),
            ("fd00::2/128", "kiwi6"),
        ):
            self.table.insert(ip_network(text), peer)
        for text, peer in (
            ("10.10.0.2", "kiwi"),
            ("10.10.0.3", "few"),
            ("10.10.0.4", "lan"),
            ("10.10.1.0", "exit"),
            ("fd00::2", "kiwi6"),
            ("fd00::3", "lan6"),
            ("fd00:0:0:1::2", None),
        ):
            self.assertEqual(self.table.lookup(packed(text)), peer, text)

    def test_families_do_not_meet(self) -> None:
        """An IPv4 network never owns an IPv6 address with the same bits, nor the reverse."""
        self.table.insert(IPv4Network("0.0.0.0/0"), "four")
        self.assertIsNone(self.table.lookup(packed("::10.10.0.2")))
        self.assertEqual(self.table.lookup(packed("10.10.0.2")), "four")
        self.table.remove_peer("four")
        self.table.insert(IPv6Network("::/0"), "six")
        self.assertIsNone(self.table.lookup(packed("10.10.0.2")))
        self.assertEqual(self.table.lookup(packed("::10.10.0.2")), "six")

    def test_insert_takes_a_network_from_its_owner(self) -> None:
        """A network has one peer: the last one it was given to; the first one no longer has it."""
        for text in ("10.10.0.2/32", "10.10.4.0/24"):
            network = ip_network(text)
            self.table.insert(network, "kiwi")
            self.table.insert(network, "pa")
            self.assertEqual(self.table.lookup(network[0].packed), "pa")
            self.assertNotIn(network, self.table.networks("kiwi"))
            self.assertIn(network, self.table.networks("pa"))
        self.assertEqual(len(self.table), 2)

    def test_remove_is_exact_and_harmless_twice(self) -> None:
        """Removing a network leaves those around and inside it, and may be done again."""
        for text in ("10.10.0.0/24", "10.10.0.0/25", "10.10.0.1/32"):
            self.table.insert(ip_network(text), text)
        for _ in range(2):
            self.table.remove(IPv4Network("10.10.0.0/25"))
            self.assertEqual(self.table.lookup(packed("10.10.0.1")), "10.10.0.1/32")
            self.assertEqual(self.table.lookup(packed("10.10.0.2")), "10.10.0.0/24")

    def test_removed_peer_leaves_nothing(self) -> None:
        """After the last peer is gone the table holds no trace that would slow a lookup."""
        for text in ("10.10.0.2/32", "10.10.0.0/24", "fd00::2/128", "fd00::/64"):
            self.table.insert(ip_network(text), "kiwi")
        self.table.remove_peer("kiwi")
        self.assertEqual(len(self.table), 0)
        self.assertEqual(self.table.networks("kiwi"), [])
        table = self.table
        self.assertFalse(table._hosts or table._wide4 or table._wide6 or table._networks)

    @given(st.lists(STEPS, max_size=30), st.lists(ADDRESSES, min_size=1, max_size=20))
    @settings(deadline=None, max_examples=200)
    def test_equals_the_sorted_list(
        self,
        steps: list[tuple[str, Network, str]],
        addresses: list[IPv4Address | IPv6Address],
    ) -> None:
        """Whatever is inserted and removed, every address has the peer that a full search finds."""
        table: AllowedIPs[str] = AllowedIPs()
        model = ListModel()
        for name, *arguments in steps:
            getattr(table, name)(*arguments)
            getattr(model, name)(*arguments)
        for address in addresses:
            self.assertEqual(table.lookup(address.packed), model.lookup(address.packed), address)
        for peer in ("kiwi", "pa", "tui"):
            self.assertEqual(table.networks(peer), model.networks(peer))
        self.assertEqual(len(table), len(model.entries))
