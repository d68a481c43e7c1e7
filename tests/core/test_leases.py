"""The address pool: sticky, never twice, and what a full pool gives away (PROTOCOL 6 and 8)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.leases import AddressPool, Holder, Lease
from pyvpn.errors import AddressTaken, ConfigError, PoolExhausted

DAY = 24 * 3600
# Retyped from PROTOCOL 8: a device unseen for 30 days makes room.
KEEP = 30 * DAY
NOW = 1_800_000_000

NET4 = IPv4Network("10.10.0.0/24")
NET6 = IPv6Network("fd00:1:2:3::/64")

KIWI: Holder = ("kiwi", b"a" * 16)
KIWI_PHONE: Holder = ("kiwi", b"b" * 16)
PA: Holder = ("pa", b"c" * 16)
TUI: Holder = ("tui", b"d" * 16)
#: Who reserves and never leases.
STOCK: Holder = ("", b"e" * 32)


def nobody(holder: Holder) -> bool:
    return False


def v4(host: int) -> IPv4Address:
    return NET4[host]


def v6(host: int) -> IPv6Address:
    return NET6[host]


class AddressPoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pool = AddressPool(NET4, NET6)

    def lease(
        self,
        holder: Holder,
        wanted4: IPv4Address | None = None,
        wanted6: IPv6Address | None = None,
        now: int = NOW,
    ) -> Lease:
        return self.pool.lease(holder, wanted4, wanted6, now, nobody)

    def test_hub_is_the_first_host(self) -> None:
        """The hub has .1 and ::1, as in the picture of the README."""
        self.assertEqual(self.pool.hub4, IPv4Address("10.10.0.1"))
        self.assertEqual(self.pool.hub6, IPv6Address("fd00:1:2:3::1"))

    def test_first_leases(self) -> None:
        """Devices get .2, .3 … and the same host numbers in IPv6."""
        self.assertEqual(self.lease(KIWI), Lease(v4(2), v6(2)))
        self.assertEqual(self.lease(PA), Lease(v4(3), v6(3)))

    def test_without_ipv6(self) -> None:
        """A pool without IPv6 leases IPv4 alone."""
        pool = AddressPool(NET4, None)
        self.assertIsNone(pool.hub6)
        self.assertEqual(pool.lease(KIWI, None, None, NOW, nobody), Lease(v4(2), None))

    def test_sticky(self) -> None:
        """A device gets its old addresses again, and another device of its user gets others."""
        first = self.lease(KIWI)
        self.lease(PA)
        self.assertEqual(self.lease(KIWI, now=NOW + 400 * DAY), first)
        self.assertNotEqual(self.lease(KIWI_PHONE).ipv4, first.ipv4)

    def test_wanted_is_granted(self) -> None:
        """A free wanted address is leased, the old one becomes free, IPv6 follows the number."""
        self.lease(KIWI)
        self.assertEqual(self.lease(KIWI, v4(77)), Lease(v4(77), v6(77)))
        self.assertEqual(self.lease(KIWI), Lease(v4(77), v6(77)))
        self.assertEqual(self.lease(PA), Lease(v4(2), v6(2)))

    def test_wanted_ipv6_alone(self) -> None:
        """A wanted IPv6 address needs no IPv4 wish and may lie far beyond the IPv4 pool's range."""
        self.assertEqual(self.lease(KIWI, None, v6(2**64 - 1)), Lease(v4(2), v6(2**64 - 1)))
        self.assertEqual(self.lease(KIWI), Lease(v4(2), v6(2**64 - 1)))

    def test_wanted_own_address(self) -> None:
        """Asking for what one has changes nothing."""
        lease = self.lease(KIWI)
        self.assertEqual(self.lease(KIWI, lease.ipv4, lease.ipv6), lease)
        self.assertEqual(dict(self.pool.leases()), {KIWI: lease})

    def test_wanted_moves_between_devices_of_a_user(self) -> None:
        """A user's other device may take an address over; the one that had it loses its lease."""
        self.lease(KIWI)
        self.assertEqual(self.lease(KIWI_PHONE, v4(2)), Lease(v4(2), v6(2)))
        self.assertNotIn(KIWI, self.pool.leases())
        self.assertEqual(self.lease(KIWI), Lease(v4(3), v6(3)))

    def test_wanted_ipv6_moves_between_devices_of_a_user(self) -> None:
        """Taking over an IPv6 address alone leaves the other device its IPv4 address."""
        self.lease(KIWI)
        self.assertEqual(self.lease(KIWI_PHONE, None, v6(2)), Lease(v4(3), v6(2)))
        self.assertEqual(self.pool.leases()[KIWI], Lease(v4(2), None))
        # The next login of the robbed device finds it another one.
        again = self.lease(KIWI)
        self.assertEqual(again.ipv4, v4(2))
        self.assertNotIn(again.ipv6, (None, v6(2)))

    def test_wanted_refused(self) -> None:
        """What is reserved, outside or another user's is refused clearly and changes nothing."""
        self.lease(PA)
        before = self.lease(KIWI)
        table: list[tuple[IPv4Address | None, IPv6Address | None, str]] = [
            (v4(0), None, "10.10.0.0 cannot be leased; ask for a free one of 10.10.0.0/24"),
            (v4(1), None, "10.10.0.1 cannot be leased"),
            (v4(255), None, "10.10.0.255 cannot be leased"),
            (IPv4Address("10.10.1.2"), None, "10.10.1.2 cannot be leased"),
            (IPv4Address("10.9.255.255"), None, "10.9.255.255 cannot be leased"),
            (v4(2), None, "10.10.0.2 belongs to another user"),
            (None, v6(0), "fd00:1:2:3:: cannot be leased; ask for a free one of fd00:1:2:3::/64"),
            (None, v6(1), "fd00:1:2:3::1 cannot be leased"),
            (None, IPv6Address("fd00:1:2:4::2"), "fd00:1:2:4::2 cannot be leased"),
            (None, v6(2), "fd00:1:2:3::2 belongs to another user"),
            # A granted IPv4 wish beside a refused IPv6 wish is not granted either.
            (v4(99), v6(2), "fd00:1:2:3::2 belongs to another user"),
        ]
        for wanted4, wanted6, words in table:
            with self.subTest(words):
                error = self.assertRaises(AddressTaken, self.lease, KIWI, wanted4, wanted6)
                self.assertIn(words, str(error))
                self.assertEqual(len(str(error).splitlines()), 1)
                self.assertEqual(self.pool.leases()[KIWI], before)
                self.assertEqual(len(self.pool.leases()), 2)
        error = self.assertRaises(
            AddressTaken, AddressPool(NET4, None).lease, KIWI, None, v6(2), NOW, nobody
        )
        self.assertIn("ask for IPv4 alone", str(error))

    def test_borders_of_the_pool(self) -> None:
        """The last address before broadcast can be leased, the one after the hub too."""
        self.assertEqual(self.lease(KIWI, v4(254)).ipv4, v4(254))
        self.assertEqual(self.lease(PA, v4(2), v6(2)), Lease(v4(2), v6(2)))

    def test_host_number_taken_in_ipv6(self) -> None:
        """When IPv6 lacks the host number the next free one beyond the IPv4 pool's is leased."""
        self.lease(PA, v4(9), v6(2))
        self.assertEqual(self.lease(KIWI), Lease(v4(2), v6(256)))

    def test_small_ipv6_pool(self) -> None:
        """An IPv6 pool smaller than the IPv4 pool runs out without refusing anybody IPv4."""
        pool = AddressPool(NET4, IPv6Network("fd00::/126"))
        leases = [pool.lease(holder, None, None, NOW, nobody) for holder in (KIWI, PA, TUI)]
        self.assertEqual([lease.ipv6 and int(lease.ipv6) & 0xF for lease in leases], [2, 3, None])
        # A number that comes free is found, though it is not the device's own.
        pool.release(KIWI)
        self.assertEqual(
            pool.lease(TUI, None, None, NOW, nobody), Lease(v4(4), IPv6Address("fd00::2"))
        )

    def test_release(self) -> None:
        """Released addresses are leased again, lowest first; releasing twice is harmless."""
        for holder in (KIWI, PA, TUI):
            self.lease(holder)
        self.pool.release(PA)
        self.pool.release(PA)
        self.assertEqual(self.lease(KIWI_PHONE), Lease(v4(3), v6(3)))

    def test_restore(self) -> None:
        """After a restart a device has what the store remembers, and nobody else gets it."""
        self.assertTrue(self.pool.restore(KIWI, Lease(v4(2), v6(7)), NOW - DAY))
        self.assertEqual(self.lease(PA), Lease(v4(3), v6(3)))
        self.assertEqual(self.lease(KIWI), Lease(v4(2), v6(7)))

    def test_restore_what_does_not_fit(self) -> None:
        """A remembered lease of another subnet, a reserved or a taken address is left out."""
        self.assertTrue(self.pool.restore(KIWI, Lease(v4(2), None), NOW))
        for address in (IPv4Address("10.20.0.2"), v4(0), v4(1), v4(255), v4(2)):
            self.assertFalse(self.pool.restore(PA, Lease(address, None), NOW), address)
        self.assertFalse(self.pool.restore(KIWI, Lease(v4(3), None), NOW))
        self.assertEqual(dict(self.pool.leases()), {KIWI: Lease(v4(2), None)})
        self.assertEqual(self.lease(PA), Lease(v4(3), v6(3)))

    def test_restore_under_another_prefix(self) -> None:
        """When only the IPv6 prefix has changed a device keeps IPv4 and gets a new IPv6 address."""
        self.assertTrue(self.pool.restore(KIWI, Lease(v4(5), IPv6Address("fd99::5")), NOW))
        self.assertEqual(self.lease(KIWI), Lease(v4(5), v6(5)))

    def test_view_is_live_and_read_only(self) -> None:
        """leases() follows the pool and cannot be used to change it."""
        view = self.pool.leases()
        lease = self.lease(KIWI)
        self.assertEqual(view[KIWI], lease)
        with self.assertRaises(TypeError):
            view[PA] = lease  # type: ignore[index]

    def test_reserve(self) -> None:
        """A reserved address is leased to nobody, wanted or not, until its holder is released."""
        self.assertTrue(self.pool.reserve(STOCK, v4(2)))
        self.assertTrue(self.pool.reserve(STOCK, v4(2)))
        self.assertTrue(self.pool.reserve(STOCK, v6(3)))
        self.assertEqual((STOCK, STOCK), (self.pool.holder(v4(2)), self.pool.holder(v6(3))))
        self.assertEqual(self.lease(KIWI).ipv4, v4(3))
        self.assertNotEqual(self.pool.leases()[KIWI].ipv6, v6(3))
        with self.assertRaises(AddressTaken):
            self.lease(PA, v4(2))
        with self.assertRaises(AddressTaken):
            self.lease(PA, None, v6(3))
        self.assertFalse(self.pool.restore(PA, Lease(v4(2), None), NOW))
        self.assertNotIn(STOCK, self.pool.leases())
        self.pool.release(STOCK)
        self.pool.release(STOCK)
        self.assertEqual((None, None), (self.pool.holder(v4(2)), self.pool.holder(v6(3))))
        self.assertEqual(self.lease(PA), Lease(v4(2), v6(2)))

    def test_reserve_what_cannot_be_had(self) -> None:
        """Somebody else's address, the hub's, the borders and those of others are not reserved."""
        lease = self.lease(KIWI)
        assert lease.ipv6 is not None
        strange = (
            v4(0),
            v4(1),
            v4(255),
            v6(0),
            v6(1),
            IPv4Address("10.11.0.7"),
            IPv6Address("::7"),
        )
        for address in (lease.ipv4, lease.ipv6, *strange):
            self.assertFalse(self.pool.reserve(STOCK, address), address)
        self.pool.release(STOCK)
        self.assertEqual(self.pool.leases()[KIWI], lease)
        self.assertEqual(KIWI, self.pool.holder(lease.ipv4))
        self.assertFalse(AddressPool(NET4, None).reserve(STOCK, v6(7)))

    def test_reservation_moves(self) -> None:
        """Among holders of one name the last one has an address; a lease does not move so."""
        other: Holder = ("", b"f" * 32)
        for address in (v4(7), v6(7)):
            self.assertTrue(self.pool.reserve(other, address))
            self.assertTrue(self.pool.reserve(STOCK, address))
            self.assertEqual(self.pool.holder(address), STOCK)
            self.pool.release(other)
            self.assertEqual(self.pool.holder(address), STOCK)
            self.pool.release(STOCK)
            self.assertIsNone(self.pool.holder(address))
        lease = self.lease(KIWI)
        self.assertFalse(self.pool.reserve(KIWI_PHONE, lease.ipv4))

    def test_too_small(self) -> None:
        """A network without room for a hub and a device is refused in one clear line."""
        for net4, net6, words in (
            (IPv4Network("10.10.0.0/31"), None, "10.10.0.0/31 is too small"),
            (IPv4Network("10.10.0.0/32"), None, "use a /30 or larger"),
            (NET4, IPv6Network("fd00::/127"), "use a /126 or larger"),
        ):
            self.assertIn(words, str(self.assertRaises(ConfigError, AddressPool, net4, net6)))
        self.assertEqual(AddressPool(IPv4Network("10.10.0.0/30"), None).size, 1)


class FullPoolTests(SynchronousTestCase):
    """A /29 has five addresses to lease."""

    def setUp(self) -> None:
        self.pool = AddressPool(IPv4Network("10.10.0.0/29"), NET6)
        self.holders = [("user", bytes([number]) * 16) for number in range(self.pool.size)]
        for number, holder in enumerate(self.holders):
            self.pool.lease(holder, None, None, NOW + number, nobody)

    def test_size(self) -> None:
        """Eight addresses less network, broadcast and hub are five leases."""
        self.assertEqual(self.pool.size, 5)
        self.assertEqual(len(self.pool.leases()), 5)

    def test_exhausted(self) -> None:
        """A full pool of devices that were there lately refuses, clearly, and changes nothing."""
        before = dict(self.pool.leases())
        error = self.assertRaises(
            PoolExhausted, self.pool.lease, PA, None, None, NOW + KEEP - 1, nobody
        )
        self.assertEqual(
            str(error),
            "all 5 addresses of 10.10.0.0/29 are leased; remove devices or use a larger subnet",
        )
        self.assertEqual(dict(self.pool.leases()), before)

    def test_holders_of_a_full_pool_come_back(self) -> None:
        """A full pool still serves those who have a lease."""
        for holder in self.holders:
            lease = self.pool.leases()[holder]
            self.assertEqual(self.pool.lease(holder, None, None, NOW, nobody), lease)

    def test_longest_unseen_makes_room(self) -> None:
        """After exactly 30 days the longest unseen device makes room, and only that one."""
        lease = self.pool.lease(PA, None, None, NOW + KEEP, nobody)
        self.assertEqual(lease, Lease(v4(2), v6(2)))
        self.assertEqual(set(self.pool.leases()), {PA, *self.holders[1:]})

    def test_seen_counts(self) -> None:
        """A device that was seen since keeps its place; the next longest unseen one gives way."""
        self.pool.seen(self.holders[0], NOW + DAY)
        self.pool.lease(PA, None, None, NOW + KEEP + 1, nobody)
        self.assertEqual(set(self.pool.leases()), {PA, self.holders[0], *self.holders[2:]})

    def test_in_use_never_makes_room(self) -> None:
        """A device with a live session keeps its lease however long ago its last login was."""
        used = set(self.holders)
        error = self.assertRaises(
            PoolExhausted, self.pool.lease, PA, None, None, NOW + 10 * KEEP, used.__contains__
        )
        self.assertIn("are leased", str(error))
        used.remove(self.holders[3])
        lease = self.pool.lease(PA, None, None, NOW + 10 * KEEP, used.__contains__)
        self.assertEqual(lease.ipv4, v4(5))

    def test_released_device_is_forgotten(self) -> None:
        """A released device is no candidate to make room: it has nothing to give."""
        self.pool.release(self.holders[0])
        self.pool.lease(PA, None, None, NOW + KEEP, nobody)
        lease = self.pool.lease(TUI, None, None, NOW + KEEP + 1, nobody)
        self.assertEqual(lease.ipv4, v4(3))
        self.assertEqual(set(self.pool.leases()), {PA, TUI, *self.holders[2:]})

    def test_clock_that_went_back(self) -> None:
        """A login stamped years ahead by a wrong clock pins no lease for ever."""
        for holder in self.holders:
            self.pool.seen(holder, NOW + 1000 * DAY)
        self.pool.seen(self.holders[2], NOW)
        lease = self.pool.lease(PA, None, None, NOW + KEEP, nobody)
        self.assertEqual(lease.ipv4, v4(4))

    def test_seen_of_a_stranger(self) -> None:
        """Seeing a holder without a lease is ignored."""
        self.pool.seen(TUI, NOW)
        self.assertNotIn(TUI, self.pool.leases())


HOLDERS = st.builds(
    lambda user, device: (user, bytes([device]) * 16),
    st.sampled_from(["kiwi", "pa", "tui"]),
    st.integers(0, 2),
)
HOSTS = st.one_of(st.none(), st.integers(0, 8))


class AddressPoolMachine(RuleBasedStateMachine):
    """Whatever is leased, wanted, restored and released on a small pool, its rules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net4 = IPv4Network("10.10.0.0/29")
        self.net6 = IPv6Network("fd00::/125")
        self.pool = AddressPool(self.net4, self.net6)
        self.now = NOW
        self.reserved: set[IPv4Address | IPv6Address] = set()

    @rule(holder=HOLDERS, host4=HOSTS, host6=HOSTS, used=st.sets(HOLDERS, max_size=4))
    def lease(
        self, holder: Holder, host4: int | None, host6: int | None, used: set[Holder]
    ) -> None:
        before = dict(self.pool.leases())
        wanted4 = None if host4 is None else self.net4.network_address + host4
        wanted6 = None if host6 is None else self.net6.network_address + host6
        try:
            lease = self.pool.lease(holder, wanted4, wanted6, self.now, used.__contains__)
        except (AddressTaken, PoolExhausted) as error:
            assert dict(self.pool.leases()) == before
            kept = sum(address.version == 4 for address in self.reserved)
            assert isinstance(error, AddressTaken) or len(before) + kept == 5
            return
        assert self.pool.leases()[holder] == lease
        assert wanted4 in (None, lease.ipv4)
        assert wanted6 in (None, lease.ipv6)
        if holder in before and wanted4 is None:
            assert lease.ipv4 == before[holder].ipv4
        for other in before.keys() - self.pool.leases().keys():
            # Only a device of the same user, or one not in use that made room, loses a lease.
            assert other[0] == holder[0] or other not in used

    @rule(holder=HOLDERS, host4=st.integers(0, 8), host6=HOSTS)
    def restore(self, holder: Holder, host4: int, host6: int | None) -> None:
        ipv6 = None if host6 is None else self.net6.network_address + host6
        self.pool.restore(holder, Lease(self.net4.network_address + host4, ipv6), self.now)

    @rule(host=st.integers(0, 8), six=st.booleans())
    def reserve(self, host: int, six: bool) -> None:
        address = (self.net6 if six else self.net4).network_address + host
        if self.pool.reserve(STOCK, address):
            self.reserved.add(address)
        assert (address in self.reserved) == (self.pool.holder(address) == STOCK)

    @rule()
    def release_reserved(self) -> None:
        self.pool.release(STOCK)
        self.reserved.clear()

    @rule(holder=HOLDERS)
    def release(self, holder: Holder) -> None:
        self.pool.release(holder)

    @rule(holder=HOLDERS)
    def seen(self, holder: Holder) -> None:
        self.pool.seen(holder, self.now)

    @rule(days=st.integers(1, 31))
    def wait(self, days: int) -> None:
        self.now += days * DAY

    @invariant()
    def no_address_twice(self) -> None:
        leases = self.pool.leases().values()
        fours = [lease.ipv4 for lease in leases]
        sixes = [lease.ipv6 for lease in leases if lease.ipv6 is not None]
        assert not self.reserved & {*fours, *sixes}
        assert len(set(fours)) == len(fours)
        assert len(set(sixes)) == len(sixes)
        assert all(2 <= int(address) - int(self.net4.network_address) <= 6 for address in fours)
        assert all(2 <= int(address) - int(self.net6.network_address) <= 7 for address in sixes)


class AddressPoolPropertyTests(SynchronousTestCase):
    def test_never_leases_twice(self) -> None:
        """Under any sequence of calls no address has two holders and no reserved one is leased."""
        case = AddressPoolMachine.TestCase
        case.settings = settings(deadline=None, max_examples=80, stateful_step_count=40)
        case("runTest").debug()
