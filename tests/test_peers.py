"""Stock peers: whatever is asked for by name or by wg, store, pool and core agree afterwards."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network, ip_network
from random import Random
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.leases import AddressPool, Holder
from pyvpn.core.login import NetworkKeys, public_key
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import VPNServer
from pyvpn.errors import ConfigError, LocalProtocolError, StoreError
from pyvpn.peers import LiveCore, NewPeer, StockPeers, networks_of, restored_leases
from pyvpn.state.interface import Device, User, WireGuardPeerRecord
from pyvpn.state.memory import MemoryStore
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.udpsocket import socket_address

NET4 = IPv4Network("10.10.0.0/24")
NET6 = IPv6Network("fd00:1:2:3::/64")
HUB = bytes(range(32))
PSK = b"p" * 32
NOW = 1_800_000_000


def key(number: int) -> bytes:
    """A public key; any 32 bytes are one."""
    return bytes([number]) * 32


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


class Hub:
    """A core with stock peers from a store, as the service assembles it."""

    def __init__(self, store: MemoryStore, net4: IPv4Network = NET4) -> None:
        self.now = 100.0
        self.store = store
        self.core = VPNServer(
            keys=NetworkKeys.derive(public_key(bytes(32)), bytes(32)),
            login_key=KeyPair.of(bytes(32)),
            network4=net4,
            network6=NET6,
            inner_mtu=1416,
            aes=True,
            wall_clock=lambda: NOW * 1_000_000_000,
            random_bytes=Random(1).randbytes,
        )
        self.wireguard = self.core.wireguard
        self.wireguard.set_private_key(HUB, self.now)
        self.pool = AddressPool(net4, NET6)
        self.settled = 0
        self.forgotten: list[Holder] = []
        self.connected: set[Holder] = set()
        self.peers = StockPeers(
            store,
            self.pool,
            public_key(HUB),
            LiveCore(
                self.wireguard,
                lambda: self.now,
                _endpoint,
                self._settle,
                lambda holder: holder in self.connected,
                self._forget,
            ),
            wall_clock=lambda: NOW * 1_000_000_000,
        )
        self.peers.restore()
        leases = restored_leases(self.pool, store)
        for holder, device in store.devices().items():
            self.core.restore_device(*holder, device.name, device.stamp, leases.get(holder))

    def _settle(self) -> None:
        self.settled += 1

    def _forget(self, holder: Holder) -> None:
        self.forgotten.append(holder)
        self.core.forget_device(*holder, self.now)

    def wg(self, public_key: bytes, *networks: str, psk: bytes = PSK, keepalive: int = 0) -> None:
        """Change the core alone, as ``wg set … peer KEY`` does it."""
        peer = self.wireguard.add(public_key, self.now)
        self.wireguard.set_psk(peer, psk, self.now)
        self.wireguard.set_keepalive(peer, keepalive, self.now)
        self.wireguard.disallow_all(peer)
        for text in networks:
            self.wireguard.allow(peer, ip_network(text))


def _endpoint(text: str) -> UDPEndpoint:
    host, _, port = text.rpartition(":")
    return UDPEndpoint(socket_address(host.strip("[]"), int(port), socket.AF_INET6))


class PeersCase(SynchronousTestCase):
    """A hub with a store in memory; alice's laptop has 10.10.0.2 and fd00:1:2:3::2."""

    def setUp(self) -> None:
        self.store = MemoryStore()
        self.store.put_user(User("alice", b"A" * 32, True, 1))
        self.store.put_devices(
            [Device("alice", b"L" * 16, "", bytes(12), "10.10.0.2", "fd00:1:2:3::2", NOW)]
        )
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)
        self.hub = Hub(self.store)

    def note(self, event: LogEvent) -> None:
        if event["log_level"].name in ("warn", "error"):
            self.logged.append(formatEvent(event))

    def add(self, name: str, number: int, *networks: str, **others: Any) -> WireGuardPeerRecord:
        """The record of a new peer; the warnings are kept."""
        record, self.warnings = self.successResultOf(
            self.hub.peers.add(NewPeer(name, key(number), networks=nets(*networks), **others))
        )
        self.agree(self.hub)
        kept: WireGuardPeerRecord = self.store.peers()[key(number)]
        self.assertEqual(kept, record)
        return kept

    def refused(self, message: str, change: Deferred[Any]) -> None:
        """It fails with exactly this line, and nothing has changed."""
        before = dict(self.store.peers())
        self.assertEqual(message, str(self.failureResultOf(change, ConfigError).value))
        self.assertEqual(before, dict(self.store.peers()))
        self.agree(self.hub)

    def agree(self, hub: Hub) -> None:
        """Store, pool and core say the same of the peers, and no two have the same network."""
        enabled = {k: r for k, r in self.store.peers().items() if r.enabled}
        self.assertEqual(enabled.keys(), hub.wireguard.peers.keys())
        owners: dict[Any, bytes] = {}
        for peer_key, record in enabled.items():
            peer = hub.wireguard.peers[peer_key]
            networks = networks_of(record)
            self.assertEqual(set(networks), set(hub.wireguard.networks(peer)), record)
            self.assertEqual(len(set(networks)), len(networks), record)
            self.assertEqual(
                (record.psk, record.keepalive), (peer.psk, peer.keepalive_interval), record
            )
            for network in networks:
                self.assertNotIn(network, owners)
                owners[network] = peer_key
        self.assertEqual(owners, hub.peers._owners)
        for network, owner in owners.items():
            address = network.network_address
            inside = address in (NET4 if network.version == 4 else NET6)
            if network.prefixlen == network.max_prefixlen and inside:
                self.assertEqual(hub.pool.holder(address), ("", owner), network)

    def text(self, name: str) -> tuple[str | None, str | None, tuple[str, ...]]:
        record = self.hub.peers.named(name)
        return record.ipv4, record.ipv6, record.allowed_ips


class NameTests(PeersCase):
    """What an administrator does."""

    def test_lease(self) -> None:
        """A new peer gets the first free pair of addresses, beside those of users' devices."""
        record = self.add("phone", 1, psk=PSK, keepalive=25)
        expected = WireGuardPeerRecord(
            "phone", key(1), PSK, (), "10.10.0.3", "fd00:1:2:3::3", 25, True, NOW
        )
        self.assertEqual((expected, []), (record, self.warnings))
        self.assertEqual(1, self.hub.settled)
        self.assertEqual("10.10.0.4", self.add("tablet", 2).ipv4)

    def test_address_of_its_own(self) -> None:
        """Single addresses in the VPN's network become the peer's own, of each family the first."""
        record = self.add("a", 1, "10.10.0.77/32", "192.168.7.0/24", "10.10.0.78/32")
        self.assertEqual(
            ("10.10.0.77", "fd00:1:2:3::4d", ("192.168.7.0/24", "10.10.0.78/32")),
            (record.ipv4, record.ipv6, record.allowed_ips),
        )
        self.assertEqual(
            ("10.10.0.3", "fd00:1:2:3::99", ()),
            (self.add("b", 2, "fd00:1:2:3::99/128") and self.text("b")),
        )
        self.assertEqual(
            ("10.10.0.9", "fd00:1:2:3::9", ("0.0.0.0/0", "::/0")),
            self.add("c", 3, "0.0.0.0/0", "10.10.0.9/32", "fd00:1:2:3::9/128", "::/0")
            and self.text("c"),
        )

    def test_leases_go_round_it(self) -> None:
        """What a peer has, even beside its own address, is leased to no device."""
        self.add("a", 1, "10.10.0.3/32", "10.10.0.4/32")
        lease = self.hub.pool.lease(("alice", b"P" * 16), None, None, NOW, lambda holder: False)
        self.assertEqual("10.10.0.5", str(lease.ipv4))

    def test_refusals(self) -> None:
        """Names and keys that are somebody's, addresses that are a user's or the hub's."""
        self.add("phone", 1)
        for new, message in (
            (NewPeer("alice", key(2)), "there is a user 'alice'; choose another name for the peer"),
            (
                NewPeer("phone", key(2)),
                "a WireGuard peer 'phone' exists already; choose another name, or first run: pyvpn"
                " peer remove phone",
            ),
            (
                NewPeer("x", key(1)),
                "public_key: the WireGuard peer 'phone' has this key; each device needs a key pair"
                " of its own",
            ),
            (
                NewPeer("x", b"A" * 32),
                "public_key: this key is made from the password of user 'alice'; a WireGuard peer"
                " needs a random one",
            ),
            (
                NewPeer("x", public_key(HUB)),
                "public_key: this is the hub's own key; give the peer's",
            ),
            (
                NewPeer("x", bytes(32)),
                "public_key: this is no key; run 'wg pubkey' with the private one",
            ),
            (
                NewPeer("x", key(2), networks=nets("10.10.0.2/32")),
                "allowed_ips: 10.10.0.2 is leased to user 'alice'; choose another",
            ),
            (
                NewPeer("x", key(2), networks=nets("10.0.0.0/8", "fd00:1:2:3::2/128")),
                "allowed_ips: fd00:1:2:3::2 is leased to user 'alice'; choose another",
            ),
            (
                NewPeer("x", key(2), networks=nets("10.10.0.1/32")),
                "allowed_ips: 10.10.0.1 is the hub's own address",
            ),
            (
                NewPeer("x", key(2), networks=nets("fd00:1:2:3::1/128")),
                "allowed_ips: fd00:1:2:3::1 is the hub's own address",
            ),
            (
                NewPeer("x", key(2), networks=nets("10.10.0.255/32")),
                "the address 10.10.0.255 cannot be leased; ask for a free one of 10.10.0.0/24 or"
                " for none",
            ),
        ):
            self.refused(message, self.hub.peers.add(new))
        nobody = "there is no WireGuard peer 'x'; to see all: pyvpn peer list"
        for change in (self.hub.peers.enable, self.hub.peers.disable, self.hub.peers.remove):
            self.refused(nobody, change("x"))
        self.assertEqual("10.10.0.4", self.add("x", 2).ipv4)  # nothing was kept by mistake

    def test_later_wins(self) -> None:
        """The same network goes to the later one, with a warning that names both."""
        self.add("a", 1, "192.168.7.0/24", "192.168.8.0/24", "fd77::/64")
        self.add("b", 2, "192.168.7.0/24", "fd77::/64")
        self.assertEqual(
            [
                "192.168.7.0/24 is b's now and a's no more: the later wins",
                "fd77::/64 is b's now and a's no more: the later wins",
            ],
            self.warnings,
        )
        self.assertEqual(("192.168.8.0/24",), self.text("a")[2])

    def test_address_is_taken(self) -> None:
        """Also a peer's own address goes to the later one, which then has it for itself."""
        self.add("a", 1)
        self.add("b", 2, "10.10.0.3/32")
        self.assertEqual(["10.10.0.3/32 is b's now and a's no more: the later wins"], self.warnings)
        self.assertEqual((None, "fd00:1:2:3::3", ()), self.text("a"))
        self.assertEqual(("10.10.0.3", None, ()), self.text("b"))

    def test_ipv6_address_is_taken(self) -> None:
        """Who takes an IPv6 address alone gets an IPv4 one of its own beside it."""
        self.add("a", 1)
        self.add("b", 2, "fd00:1:2:3::3/128")
        self.assertEqual(("10.10.0.3", None, ()), self.text("a"))
        self.assertEqual(("10.10.0.4", "fd00:1:2:3::3", ()), self.text("b"))

    def test_nested(self) -> None:
        """Networks in each other stay where they are; the warning says who gets what."""
        self.add("a", 1, "192.168.0.0/16", "0.0.0.0/0")
        self.add("b", 2, "192.168.7.0/24", "10.10.0.0/24")
        self.assertEqual(
            ["192.168.7.0/24 of b lies within 192.168.0.0/16 of a: the longer prefix wins"],
            self.warnings,
        )
        self.add("c", 3, "192.0.0.0/8", "192.168.7.9/32", "::/0")
        self.assertEqual(
            {
                "192.168.7.9/32 of c lies within 192.168.0.0/16 of a: the longer prefix wins",
                "192.168.7.9/32 of c lies within 192.168.7.0/24 of b: the longer prefix wins",
                "192.168.0.0/16 of a lies within 192.0.0.0/8 of c: the longer prefix wins",
                "192.168.7.0/24 of b lies within 192.0.0.0/8 of c: the longer prefix wins",
            },
            set(self.warnings),
        )
        self.add("d", 4, "172.16.0.0/12")
        self.assertEqual([], self.warnings)

    def test_many_overlaps(self) -> None:
        """One answer does not tell of thousands."""
        networks = [f"172.16.{n}.0/24" for n in range(100)]
        self.add("a", 1, *networks)
        self.add("b", 2, *networks)
        self.assertEqual(
            (21, "and 80 more networks overlap"), (len(self.warnings), self.warnings[-1])
        )

    def test_behind(self) -> None:
        """What is behind peers are their networks beyond the VPN's own, while they are enabled."""
        self.assertEqual({}, self.hub.peers.behind())
        own = ("10.10.0.128/25", "10.10.0.77/32", "fd00:1:2:3::/120")
        beyond = ("192.168.7.0/24", "10.99.0.1/32", "fd77::/64")
        wide = ("0.0.0.0/0", "10.0.0.0/8")
        self.add("a", 1, *own, *beyond)
        self.add("b", 2)
        self.add("c", 3, *wide)
        found = {name: set(networks) for name, networks in self.hub.peers.behind().items()}
        self.assertEqual({"a": set(nets(*beyond)), "c": set(nets(*wide))}, found)
        self.successResultOf(self.hub.peers.disable("a"))
        self.assertEqual(["c"], list(self.hub.peers.behind()))
        self.successResultOf(self.hub.peers.enable("a"))
        self.successResultOf(self.hub.peers.remove("c"))
        self.assertEqual(["a"], list(self.hub.peers.behind()))

    def test_disable(self) -> None:
        """A disabled peer is not in the core and keeps its address; enabled it is back with it."""
        self.add("phone", 1, psk=PSK, keepalive=9)
        self.successResultOf(self.hub.peers.disable("phone"))
        self.agree(self.hub)
        self.assertEqual({}, dict(self.hub.wireguard.peers))
        self.assertEqual("10.10.0.4", self.add("tablet", 2).ipv4)
        record, warnings = self.successResultOf(self.hub.peers.enable("phone"))
        self.agree(self.hub)
        self.assertEqual(("10.10.0.3", True, []), (record.ipv4, record.enabled, warnings))
        self.assertEqual((record, []), self.successResultOf(self.hub.peers.enable("phone")))

    def test_disabled_networks(self) -> None:
        """What a disabled peer had goes to others, and back when it is enabled: it is later."""
        self.add("a", 1, "192.168.7.0/24")
        self.successResultOf(self.hub.peers.disable("a"))
        self.add("b", 2, "192.168.7.0/24", "10.10.0.3/32")
        self.assertEqual([], self.warnings)
        _, warnings = self.successResultOf(self.hub.peers.enable("a"))
        self.agree(self.hub)
        self.assertEqual(
            [
                "10.10.0.3/32 is a's now and b's no more: the later wins",
                "192.168.7.0/24 is a's now and b's no more: the later wins",
            ],
            warnings,
        )
        self.assertEqual((None, None, ()), self.text("b"))

    def test_remove(self) -> None:
        """A removed peer is gone everywhere; its name, key and addresses are free."""
        self.add("phone", 1, "192.168.7.0/24")
        self.successResultOf(self.hub.peers.remove("phone"))
        self.agree(self.hub)
        self.assertEqual({}, dict(self.store.peers()))
        self.add("b", 2, "192.168.7.0/24")
        self.assertEqual(("10.10.0.3", []), (self.hub.peers.named("b").ipv4, self.warnings))
        self.add("phone", 1)

    def test_remove_disabled(self) -> None:
        """An address that a disabled peer had lost stays its new owner's when it is removed."""
        self.add("a", 1)
        self.successResultOf(self.hub.peers.disable("a"))
        self.add("b", 2, "10.10.0.3/32")
        self.successResultOf(self.hub.peers.remove("a"))
        self.agree(self.hub)
        self.assertEqual("10.10.0.4", self.add("c", 3).ipv4)

    def test_full(self) -> None:
        """A full pool refuses; who was not seen for 30 days makes room, and is told."""
        self.store = MemoryStore()
        self.store.put_user(User("alice", b"A" * 32, True, 1))
        old = NOW - 31 * 24 * 3600
        devices = [
            Device("alice", key(n)[:16], "", bytes(12), f"10.10.0.{n}", None, old) for n in (2, 3)
        ]
        self.store.put_devices(devices)
        self.hub = Hub(self.store, IPv4Network("10.10.0.0/29"))
        for n in (4, 5, 6):
            self.assertEqual(f"10.10.0.{n}", self.add(f"p{n}", n).ipv4)
        self.hub.connected.add(("alice", key(2)[:16]))
        self.assertEqual("10.10.0.3", self.add("p7", 7).ipv4)
        self.assertEqual([("alice", key(3)[:16])], self.hub.forgotten)
        self.refused(
            "all 5 addresses of 10.10.0.0/29 are leased; remove devices or use a larger subnet",
            self.hub.peers.add(NewPeer("p8", key(8))),
        )

    def test_disk(self) -> None:
        """If the disk fails the peer is not let in, and its address is free again."""
        broken = lambda records: fail(StoreError("disk full"))  # noqa: E731
        with self.subTest("add"):
            patch = self.patch(self.store, "put_peers", broken)
            self.failureResultOf(self.hub.peers.add(NewPeer("a", key(1))), StoreError)
            patch.restore()
            self.agree(self.hub)
            self.assertEqual("10.10.0.3", self.add("a", 1, "192.168.7.0/24").ipv4)
        with self.subTest("take"):
            patch = self.patch(self.store, "put_peers", broken)
            taking = NewPeer("b", key(2), networks=nets("192.168.7.0/24", "10.10.0.3/32"))
            self.failureResultOf(self.hub.peers.add(taking), StoreError)
            patch.restore()
            self.agree(self.hub)
        with self.subTest("disable"):
            patch = self.patch(self.store, "put_peers", broken)
            self.failureResultOf(self.hub.peers.disable("a"), StoreError)
            patch.restore()
            self.agree(self.hub)
        with self.subTest("remove"):
            self.patch(self.store, "remove_peers", broken)
            self.failureResultOf(self.hub.peers.remove("a"), StoreError)
            self.agree(self.hub)

    def test_one_at_a_time(self) -> None:
        """Of two that add the same name at once one is refused; wg's change waits its turn."""
        waiting: list[Deferred[None]] = []
        put = self.store.put_peers

        def slow(records: list[WireGuardPeerRecord]) -> Deferred[None]:
            waiting.append(Deferred())
            waiting[-1].addCallback(lambda _: put(records))
            return waiting[-1]

        self.patch(self.store, "put_peers", slow)
        first = self.hub.peers.add(NewPeer("a", key(1)))
        second = self.hub.peers.add(NewPeer("a", key(2)))
        self.hub.wg(key(1), "192.168.7.0/24")
        by_wg = self.hub.peers.changed({key(1)})
        self.assertEqual(1, len(waiting))
        waiting[0].callback(None)
        self.successResultOf(first)
        self.failureResultOf(second, ConfigError)
        for write in waiting[1:]:
            write.callback(None)
        self.successResultOf(by_wg)
        self.agree(self.hub)
        self.assertEqual(["a"], [record.name for record in self.store.peers().values()])

    def test_without_hub(self) -> None:
        """With no hub running the store is changed alike, and a start finds it so."""
        pool = AddressPool(NET4, NET6)
        offline = StockPeers(self.store, pool, public_key(HUB))
        offline.restore()
        restored_leases(pool, self.store)
        for n, networks in enumerate((nets("192.168.7.0/24"), nets("192.168.7.0/24"), ()), 1):
            self.successResultOf(offline.add(NewPeer(f"p{n}", key(n), networks=networks)))
        self.successResultOf(offline.disable("p3"))
        self.assertIsNone(offline.in_core(key(1)))
        self.hub = Hub(self.store)
        self.agree(self.hub)
        self.assertEqual("10.10.0.6", self.add("p4", 4).ipv4)
        self.assertEqual([], self.logged)


class WgTests(PeersCase):
    """What wg does, in the core first."""

    def changed(self, *numbers: int) -> None:
        self.successResultOf(self.hub.peers.changed({key(n) for n in numbers}))
        self.agree(self.hub)

    def test_new(self) -> None:
        """A peer that wg adds is kept, under a name made of its key."""
        self.hub.wg(key(1), "10.10.0.9/32", "192.168.7.0/24", psk=PSK, keepalive=25)
        self.changed(1)
        # base64url of bytes 01 01 01 …
        expected = WireGuardPeerRecord(
            "wg-AQEBAQEB", key(1), PSK, ("192.168.7.0/24",), "10.10.0.9", None, 25, True, NOW
        )
        self.assertEqual({key(1): expected}, dict(self.store.peers()))

    def test_names_differ(self) -> None:
        """A name made of a key that somebody has already is made longer."""
        self.store.put_user(User("wg-AQEBAQEB", b"B" * 32, True, 1))
        other = key(1)[:31] + b"\x02"
        for peer_key in (key(1), other):
            self.hub.wg(peer_key)
        self.successResultOf(self.hub.peers.changed([key(1), other]))
        names = {record.name for record in self.store.peers().values()}
        self.assertEqual({"wg-AQEBAQEBA", "wg-AQEBAQEBAQ"}, names)

    def test_no_address(self) -> None:
        """wg gives what it gives: there is no lease without being asked for."""
        self.hub.wg(key(1))
        self.changed(1)
        self.assertEqual((None, None, ()), self.text("wg-AQEBAQEB"))

    def test_change(self) -> None:
        """A named peer keeps name and date; the rest is what it is now in the core."""
        created = self.add("phone", 1, "192.168.7.0/24")
        self.hub.wg(key(1), "10.10.0.3/32", "192.168.9.0/24", keepalive=7)
        peer = self.hub.wireguard.peers[key(1)]
        self.hub.wireguard.set_endpoint(peer, _endpoint("192.0.2.7:99"), self.hub.now)
        self.changed(1)
        expected = WireGuardPeerRecord(
            "phone",
            key(1),
            PSK,
            ("192.168.9.0/24",),
            "10.10.0.3",
            None,
            7,
            True,
            created.created,
            "192.0.2.7:99",
        )
        self.assertEqual(expected, self.store.peers()[key(1)])
        # The IPv6 address that it lost is free.
        self.assertIsNone(self.hub.pool.holder(NET6[3]))

    def test_remove(self) -> None:
        """A peer that wg removes is forgotten; a disabled one, which it cannot see, is not."""
        self.add("a", 1)
        self.add("b", 2)
        self.successResultOf(self.hub.peers.disable("b"))
        for n in (1, 2):
            self.hub.wireguard.remove(key(n), self.hub.now)
        self.changed(1, 2, 3)
        self.assertEqual(["b"], [record.name for record in self.store.peers().values()])
        self.assertIsNone(self.hub.pool.holder(NET4[3]))

    def test_disabled_comes_back(self) -> None:
        """A disabled peer that wg adds is enabled, under its name."""
        self.add("a", 1)
        self.successResultOf(self.hub.peers.disable("a"))
        self.hub.wg(key(1), "10.10.0.3/32")
        self.changed(1)
        self.assertEqual(
            ("a", True), (self.hub.peers.named("a").name, self.hub.peers.named("a").enabled)
        )

    def test_later_wins(self) -> None:
        """Who lost a network to wg's peer has lost it in the store, too, told of or not."""
        self.add("a", 1, "192.168.7.0/24", "192.168.8.0/24")
        self.hub.wg(key(2), "192.168.7.0/24", "10.10.0.3/32")
        self.changed(2)
        self.assertEqual((None, "fd00:1:2:3::3", ("192.168.8.0/24",)), self.text("a"))

    def test_swap(self) -> None:
        """Peers may exchange their addresses in one request."""
        self.add("a", 1)
        self.add("b", 2)
        self.hub.wireguard.disallow_all(self.hub.wireguard.peers[key(1)])
        self.hub.wg(key(2), "10.10.0.3/32")
        self.hub.wg(key(1), "10.10.0.4/32")
        self.changed(1, 2)
        self.assertEqual(("10.10.0.4", "10.10.0.3"), (self.text("a")[0], self.text("b")[0]))

    def test_disk(self) -> None:
        """If the disk fails whoever asked is told, and the next change is kept with this one."""
        self.hub.wg(key(1), "10.10.0.9/32")
        patch = self.patch(self.store, "put_peers", lambda records: fail(StoreError("disk full")))
        self.failureResultOf(self.hub.peers.changed({key(1)}), StoreError)
        patch.restore()
        self.changed(1)

    def test_nothing_to_write(self) -> None:
        """A change that is none writes nothing."""
        self.add("a", 1)
        self.patch(self.store, "put_peers", lambda records: self.fail("written"))
        self.changed(1)


class RestoreTests(PeersCase):
    """What a start finds."""

    def test_restore(self) -> None:
        """All is in the next core as it was in this one."""
        self.add("a", 1, "192.168.7.0/24", psk=PSK, keepalive=25, endpoint="[2001:db8::1]:51820")
        self.add("b", 2)
        self.add("c", 3)
        self.successResultOf(self.hub.peers.disable("c"))
        again = Hub(self.store)
        self.agree(again)
        peer = again.wireguard.peers[key(1)]
        self.assertEqual("[2001:db8::1]:51820", str(peer.endpoint))
        self.assertIsNone(again.wireguard.peers[key(2)].endpoint)
        self.assertEqual(("", key(3)), again.pool.holder(NET4[5]))
        self.assertEqual("b", again.peers.name_of(key(2)))
        self.assertEqual([], self.logged)

    def test_names_of_strangers(self) -> None:
        """A peer that has no name yet is called by its key, as wg writes it."""
        self.assertEqual("AQEB" * 10 + "AQE=", self.hub.peers.name_of(key(1)))

    def test_another_subnet(self) -> None:
        """Peers whose addresses are outside of today's subnet are told of, and do connect."""
        self.add("a", 1)
        again = Hub(self.store, IPv4Network("10.99.0.0/24"))
        self.assertEqual(1, len(again.wireguard.peers))
        self.assertEqual(
            [
                "1 addresses of WireGuard peers are not in 10.99.0.0/24, fd00:1:2:3::/64, or"
                " others' already: 10.10.0.3 of a; remove those peers and add them anew"
            ],
            self.logged,
        )

    def test_device_gives_way(self) -> None:
        """Should the store hold an address for a peer and a device, it is the peer's."""
        self.store.put_peers(
            [WireGuardPeerRecord("a", key(1), PSK, (), "10.10.0.2", None, 0, True, 1)]
        )
        again = Hub(self.store)
        self.agree(again)
        self.assertEqual({}, dict(again.pool.leases()))
        device = again.core.peer("alice", b"L" * 16)
        self.assertTrue(device is None or device.lease is None)

    def test_disabled_gives_way(self) -> None:
        """An address that two records have is held for the enabled one, whichever is older."""
        for created in (5, 9):
            record = WireGuardPeerRecord("x", key(1), PSK, (), "10.10.0.9", None, 0, True, 7)
            disabled = evolve(record, name="y", public_key=key(2), enabled=False, created=created)
            self.store.put_peers([record, disabled])
            self.agree(Hub(self.store))

    def test_unusable_record(self) -> None:
        """A record that the core does not take is told of, and the others are there."""
        bad = WireGuardPeerRecord("bad", public_key(HUB), PSK, (), None, None, 0, True, 1)
        self.add("a", 1)
        self.store.put_peers([bad])
        again = Hub(self.store)
        self.assertEqual([key(1)], list(again.wireguard.peers))
        self.assertEqual(
            ["WireGuard peer bad: this is the public key of this machine itself"], self.logged
        )

    def test_core_refuses_what_is_leased(self) -> None:
        """Positive control of the refusals: the core itself defends a user's address."""
        peer = self.hub.wireguard.add(key(1), self.hub.now)
        with self.assertRaises(LocalProtocolError):
            self.hub.wireguard.allow(peer, ip_network("10.10.0.2/32"))


NUMBERS = st.integers(1, 4)
NETWORKS = st.lists(
    st.sampled_from(
        [
            *("10.10.0.3/32", "10.10.0.4/32", "10.10.0.9/32", "fd00:1:2:3::3/128"),
            *("192.168.0.0/16", "192.168.7.0/24", "fd77::/64", "0.0.0.0/0"),
        ]
    ),
    max_size=4,
    unique=True,
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "enable", "disable", "remove", "wg", "wg remove"]),
        NUMBERS,
        NETWORKS,
    ),
    max_size=14,
)


class AgreementTests(PeersCase):
    """Any sequence of changes."""

    @settings(deadline=None, max_examples=150)
    @given(CHANGES)
    def test_any(self, changes: list[tuple[str, int, list[str]]]) -> None:
        """After each change store, pool and core agree, and so does a start from the store."""
        self.store = MemoryStore()
        self.hub = Hub(self.store)
        peers, wireguard = self.hub.peers, self.hub.wireguard
        for what, number, networks in changes:
            if what == "add":
                done: Deferred[Any] = peers.add(
                    NewPeer(f"p{number}", key(number), networks=nets(*networks))
                )
            elif what == "wg":
                self.hub.wg(key(number), *networks)
                done = peers.changed([key(number)])
            elif what == "wg remove":
                wireguard.remove(key(number), self.hub.now)
                done = peers.changed([key(number)])
            else:
                name = peers.name_of(key(number))
                done = getattr(peers, what)(name)
            done.addErrback(lambda failure: failure.trap(ConfigError))
            self.successResultOf(done)
            self.agree(self.hub)
        again = Hub(self.store)
        self.agree(again)
        for peer_key, peer in wireguard.peers.items():
            self.assertEqual(
                set(wireguard.networks(peer)),
                set(again.wireguard.networks(again.wireguard.peers[peer_key])),
            )
