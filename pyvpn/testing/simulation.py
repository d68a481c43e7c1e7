"""A hub and its clients on a virtual clock, joined by a network that may treat datagrams badly.

Only the protocol cores are real. Time stands still while they work and jumps from one announced
deadline to the next, so hours pass in milliseconds and every run with the same seed is the same.
The network loses, repeats, delays, reorders and corrupts as :class:`Weather` says, and keeps all it
was given in :attr:`Network.captured`, as an eavesdropper would.
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Callable, Iterator
from hashlib import blake2s
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from random import Random
from typing import Any, NamedTuple

from attrs import define, frozen

from pyvpn.core.burst import Burst
from pyvpn.core.client import (
    VPNClient,
)
from pyvpn.core.control import ByeReason
from pyvpn.core.events import (
    Configured,
    LeaseLost,
    LeaseRequested,
    LoginRequested,
    ResolveServer,
    SessionConfirmed,
    StampUsed,
)
from pyvpn.core.leases import AddressPool, Holder, Lease
from pyvpn.core.login import LoginFlags, NetworkKeys, password_key
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import (
    VPNServer,
)
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.errors import AddressTaken, PoolExhausted

#: 2024-01-01 00:00 UTC in Unix nanoseconds, and an uptime in seconds that is not a round number.
FIRST_WALL_TIME = 1_704_067_200 * 1_000_000_000
FIRST_NOW = 1000.125

HUB_ADDRESS, HUB_PORT = "198.51.100.1", 5050
CLIENT_NETWORK, CLIENT_PORT = IPv4Network("203.0.113.0/24"), 12000
NETWORK4, NETWORK6 = IPv4Network("10.10.0.0/24"), IPv6Network("fd6e:a1::/64")
INNER_MTU = 1416
PASSWORD_SALT = bytes(range(16))

VIRTIO = bytes(10)
#: Steps at one instant after which something is taken to run in circles.
MOST_STEPS_AT_ONCE = 1000


class Endpoint(NamedTuple):
    """An address and a port, as the cores want them.

    :ivar local: which of a machine's further addresses it was reached at, and answers from; None
        for its first one.
    """

    address: IPv4Address | IPv6Address
    port: int
    local: Endpoint | None = None

    def wire_address(self) -> bytes:
        """The IPv6 or v4-mapped address and the port, little-endian: 18 bytes."""
        packed = self.address.packed
        mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
        return mapped + self.port.to_bytes(2, "little")


class Datagram(NamedTuple):
    """One datagram on its way, or captured; ``time`` is the ``now`` at which it was sent.

    ``fragment``: without DF, so a narrow link would carry it in pieces.
    """

    time: float
    source: Endpoint
    destination: Endpoint
    payload: bytes
    fragment: bool = False

    @property
    def kind(self) -> int:
        """The message type: its first byte."""
        return self.payload[0]


@define
class Weather:
    """How the network treats datagrams: probabilities 0 to 1, and seconds.

    ``jitter`` is the most that is added to ``delay``, by chance for each datagram: what is sent
    later may overtake. ``corrupt`` flips one bit.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.02
    jitter: float = 0.0


class Network:
    """Carries datagrams between nodes.

    :ivar passes: asked for each datagram; it is lost if any says False.
    :ivar captured: every datagram sent, lost ones too, in order; not what is injected.
    """

    def __init__(self, random: Random) -> None:
        self.weather = Weather()
        self.passes: list[Callable[[Datagram], bool]] = []
        self.captured: list[Datagram] = []
        self._random = random
        self._serial = 0
        self._under_way: list[tuple[float, int, Datagram]] = []

    def send(self, datagram: Datagram) -> None:
        """Carry a datagram, or lose it."""
        self.captured.append(datagram)
        weather, chance = self.weather, self._random.random
        if not all(passes(datagram) for passes in self.passes) or chance() < weather.loss:
            return
        for _ in range(2 if chance() < weather.duplicate else 1):
            damaged = datagram
            if chance() < weather.corrupt:
                damaged = datagram._replace(payload=self._flip(datagram.payload))
            self.inject(damaged, datagram.time + weather.delay + weather.jitter * chance())

    def inject(self, datagram: Datagram, arrival: float) -> None:
        """Let a datagram arrive at ``arrival``, whoever sent it."""
        self._serial += 1
        heapq.heappush(self._under_way, (arrival, self._serial, datagram))

    def next_arrival(self) -> float | None:
        """When the next datagram arrives."""
        return self._under_way[0][0] if self._under_way else None

    def arrived(self, now: float) -> Iterator[Datagram]:
        """Take what has arrived, in order."""
        while self._under_way and self._under_way[0][0] <= now:
            yield heapq.heappop(self._under_way)[2]

    def _flip(self, payload: bytes) -> bytes:
        damaged = bytearray(payload)
        damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)


class Node:
    """A machine with one core: what the Twisted layer and the service do around it.

    :ivar others: its further addresses, all of which it listens at.
    :ivar received: the inner packets written to its TUN, in order, super-packets uncut.
    :ivar written: the same with their virtio headers.
    :ivar answered: those that its own core wrote there: ICMP about packets that fit nowhere.
    :ivar events: everything its core told, in order.
    :ivar asleep: suspended: hears nothing, and its timers are late.
    :ivar wall_step: nanoseconds by which its wall clock is wrong.
    """

    core: Any

    def __init__(self, simulation: Simulation, endpoint: Endpoint) -> None:
        self.simulation = simulation
        self.endpoint = endpoint
        self.others: list[Endpoint] = []
        self.received: list[bytes] = []
        self.written: list[bytes] = []
        self.answered: list[bytes] = []
        self.events: list[object] = []
        self.asleep = False
        self.wall_step = 0

    def wall_clock(self) -> int:
        """Unix nanoseconds, as this machine believes."""
        return self.simulation.wall_clock() + self.wall_step

    def send(self, *packets: bytes) -> None:
        """Let the machine's kernel send IP packets into the VPN, in one turn."""
        self.send_frames(*[VIRTIO + packet for packet in packets])

    def send_frames(self, *frames: bytes) -> None:
        """Let the machine's kernel send frames, virtio header and packet each, in one turn."""
        before = self.core.next_timer()
        self._transmit(self.core.packets_from_tun(list(frames), self.simulation.now))
        self._check_settled(before)
        self.drain()

    def hear(self, buffer: bytes, size: int, source: Endpoint) -> None:
        """Take a run of datagrams of one sender."""
        before = self.core.next_timer()
        frames = self.core.datagrams_received(buffer, size, source, self.simulation.now)
        self._check_settled(before)
        for frame in frames:
            self.written.append(b"".join(frame))
            self.received.append(self.written[-1][len(VIRTIO) :])
        self.drain()

    def _check_settled(self, before: tuple[float, str] | None) -> None:
        """A core that calls itself settled has nothing to send or tell, and no nearer deadline.

        :raises AssertionError: it has.
        """
        if not self.core.settled():
            return
        after = self.core.next_timer()
        assert after is None or (before is not None and after[0] >= before[0]), (before, after)
        assert not self.core.datagrams_to_send(self.simulation.now), "settled, with datagrams"
        assert not self.core.frames_to_write(), "settled, with frames"
        assert self.core.next_event() is None, "settled, with events"

    def due(self) -> float | None:
        """When the core wants its timer."""
        timer = None if self.asleep else self.core.next_timer()
        return None if timer is None else timer[0]

    def fire(self) -> None:
        """Call the timer if it is due.

        :raises AssertionError: the core has not dealt with its deadline and would be called again
            for ever.
        """
        timer = self.core.next_timer()
        if self.asleep or timer is None or timer[0] > self.simulation.now:
            return
        self.core.handle_timer(self.simulation.now)
        self.drain()
        if self.core.next_timer() == timer:
            raise AssertionError(f"the timer {timer} is still due after handle_timer")

    def drain(self) -> None:
        """Send what the core has queued and act on its events."""
        while True:
            self._transmit(self.core.datagrams_to_send(self.simulation.now))
            for frame in self.core.frames_to_write():
                self.answered.append(b"".join(frame)[len(VIRTIO) :])
            event = self.core.next_event()
            if event is None:
                return
            self.events.append(event)
            self._event(event)

    def told(self, kind: type) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @abstractmethod
    def _event(self, event: object) -> None:
        """Do what the owner of a core has to do."""

    def _transmit(self, bursts: list[Burst]) -> None:
        for burst in bursts:
            for payload in datagrams_of(burst):
                destination = burst.endpoint
                assert isinstance(destination, Endpoint)
                # An address that is gone gives way to the one there is.
                source = destination.local if destination.local in self.others else None
                self.simulation.network.send(
                    Datagram(
                        self.simulation.now,
                        source or self.endpoint,
                        destination._replace(local=None),
                        payload,
                        burst.fragment,
                    )
                )

    def add_address(self, endpoint: Endpoint) -> None:
        """Be reached at one more address."""
        self.others.append(endpoint)
        self.simulation.nodes[endpoint] = self

    def move(self, endpoint: Endpoint) -> None:
        """Have another address from now on, as behind a NAT that forgot its mapping: unnoticed."""
        del self.simulation.nodes[self.endpoint]
        self.endpoint = endpoint
        self.simulation.nodes[endpoint] = self


def datagrams_of(burst: Burst) -> list[bytes]:
    """The datagrams of a burst, each whole.

    :raises AssertionError: the burst has not the shape that one UDP_SEGMENT send takes.
    """
    heads, bodies = burst.buffers[::2], burst.buffers[1::2]
    datagrams = [bytes(head) + bytes(body) for head, body in zip(heads, bodies, strict=True)]
    sizes = [len(datagram) for datagram in datagrams]
    assert all(size == burst.size for size in sizes[:-1]), "only the last may be shorter"
    assert 0 < sizes[-1] <= burst.size, "the last is empty or longer than the others"
    return datagrams


@frozen
class Record:
    """What the hub's disk holds of one device."""

    name: str
    stamp: bytes
    lease: Lease | None


class Hub(Node):
    """The hub with its users, its address pool and its disk.

    :ivar users: name to public key, of those who may log in.
    :ivar disk: what survives a restart.
    :ivar undecided: logins that wait, when ``decides`` is False.
    """

    core: VPNServer

    def __init__(
        self, simulation: Simulation, endpoint: Endpoint, *, aes: bool, relay: bool
    ) -> None:
        super().__init__(simulation, endpoint)
        self.users: dict[str, bytes] = {}
        self.disk: dict[Holder, Record] = {}
        self.decides = True
        self.undecided: list[LoginRequested] = []
        self._aes = aes
        self._relay = relay
        self.restart()

    def restart(self) -> None:
        """Start anew from the disk, as after a crash: nobody is told anything."""
        simulation = self.simulation
        self.pool = AddressPool(NETWORK4, NETWORK6)
        self.core = VPNServer(
            keys=simulation.keys,
            login_key=simulation.login_key,
            network4=NETWORK4,
            network6=NETWORK6,
            inner_mtu=INNER_MTU,
            aes=self._aes,
            relay=self._relay,
            wall_clock=self.wall_clock,
            random_bytes=simulation.random_bytes,
        )
        for name, public_key in self.users.items():
            self.core.set_user(name, public_key, simulation.now)
        for holder, record in self.disk.items():
            lease = record.lease
            if lease is not None and not self.pool.restore(holder, lease, self._seconds()):
                lease = None
            self.core.restore_device(*holder, record.name, record.stamp, lease)

    def stop(self, reason: ByeReason = ByeReason.STOPPED) -> None:
        """Say BYE to everybody."""
        self.core.stop(reason, self.simulation.now)
        self.drain()

    def enable(self, name: str, public_key: bytes) -> None:
        """Let a user log in with a key."""
        self.users[name] = public_key
        self.core.set_user(name, public_key, self.simulation.now)
        self.drain()

    def disable(self, name: str, reason: ByeReason = ByeReason.DISABLED) -> None:
        """Let a user log in no more."""
        del self.users[name]
        self.core.remove_user(name, reason, self.simulation.now)
        self.drain()

    def decide(self, granted: bool = True) -> None:
        """Answer the oldest login that waits."""
        self.core.login_decided(self.undecided.pop(0).id, granted, self.simulation.now)
        self.drain()

    def _event(self, event: object) -> None:
        now = self.simulation.now
        if isinstance(event, LoginRequested):
            if self.decides:
                self.core.login_decided(event.id, True, now)
            else:
                self.undecided.append(event)
        elif isinstance(event, LeaseRequested):
            self.core.lease_decided(event.id, self._lease(event), now)
            self._write((event.user, event.device))
        elif isinstance(event, SessionConfirmed | LeaseLost):
            self._write((event.user, event.device))

    def _lease(self, request: LeaseRequested) -> Lease | ByeReason:
        holder = (request.user, request.device)
        try:
            return self.pool.lease(
                holder, request.wanted4, request.wanted6, self._seconds(), lambda _: True
            )
        except AddressTaken:
            return ByeReason.ADDRESS_TAKEN
        except PoolExhausted:
            return ByeReason.POOL_FULL

    def _write(self, holder: Holder) -> None:
        peer = self.core.peer(*holder)
        if peer is not None:
            self.disk[holder] = Record(peer.name, peer.stamp_seen, peer.lease)

    def _seconds(self) -> int:
        return self.wall_clock() // 1_000_000_000


class Client(Node):
    """One device of a user, with its disk: the device id and the last stamp.

    :param servers: where it finds the hub; empty: its name does not resolve.
    """

    core: VPNClient

    def __init__(
        self, simulation: Simulation, endpoint: Endpoint, user: str, password: str, **options: Any
    ) -> None:
        super().__init__(simulation, endpoint)
        self.user = user
        self.device = simulation.random_bytes(16)
        self.last_stamp = 0
        self.servers = [simulation.hub.endpoint]
        self.static = simulation.key_of(password, user)
        self._options = {"flags": LoginFlags.SEGMENT_FRAMES, "inner_mtu": INNER_MTU} | options
        self.restart()

    def restart(self) -> None:
        """Start anew from the disk, as after a crash, without logging in."""
        simulation = self.simulation
        self.core = VPNClient(
            keys=simulation.keys,
            user=self.user,
            device=self.device,
            device_name=f"{self.user}'s",
            last_stamp=self.last_stamp,
            wall_clock=self.wall_clock,
            random_bytes=simulation.random_bytes,
            **self._options,
        )

    def start(self) -> None:
        """Log in."""
        self.core.start(self.static, self.simulation.now)
        self.drain()

    def stop(self) -> None:
        """Say BYE."""
        self.core.stop(self.simulation.now)
        self.drain()

    def roam(self, endpoint: Endpoint) -> None:
        """Have another address from now on, and notice it."""
        self.move(endpoint)
        self.core.link_changed(self.simulation.now)
        self.drain()

    @property
    def lease(self) -> Lease:
        """The inner addresses that the hub gave it."""
        return self.simulation.hub.pool.leases()[self.user, self.device]

    def _event(self, event: object) -> None:
        if isinstance(event, ResolveServer):
            self.core.server_resolved(self.servers, self.simulation.now)
        elif isinstance(event, StampUsed):
            self.last_stamp = event.nanoseconds
        elif isinstance(event, Configured):
            self.core.config_applied(event.revision, self.simulation.now)


class StockDevice(Node):
    """A machine with a stock WireGuard interface.

    :ivar inner: its addresses in the VPN.
    """

    core: WireGuardDevice

    def __init__(
        self, simulation: Simulation, endpoint: Endpoint, inner: tuple[IPv4Address, IPv6Address]
    ) -> None:
        super().__init__(simulation, endpoint)
        self.inner = inner
        self.pair = KeyPair.of(simulation.random_bytes(32))
        self.restart()

    def restart(self) -> None:
        """Start anew with the same key, as after a crash; it knows no peers yet."""
        simulation = self.simulation
        self.core = WireGuardDevice(
            wall_clock=self.wall_clock, random_bytes=simulation.random_bytes
        )
        self.core.wireguard.set_private_key(self.pair.private, simulation.now)

    def _event(self, event: object) -> None:
        pass


class Simulation:
    """One hub, its clients, and the time they live in.

    :param seed: of everything that is left to chance, keys included.
    :param aes: whether the hub grants AES-256-GCM.
    :param relay: whether the hub relays from client to client.
    :ivar now: seconds of CLOCK_BOOTTIME on every machine.
    """

    def __init__(self, seed: int = 0, *, aes: bool = False, relay: bool = False) -> None:
        self.random = Random(seed)
        self.now = FIRST_NOW
        self.network = Network(self.random)
        self.login_key = KeyPair.of(self.random_bytes(32))
        self.network_secret = self.random_bytes(32)
        self.keys = NetworkKeys.derive(self.login_key.public, self.network_secret)
        self.nodes: dict[Endpoint, Node] = {}
        self._static: dict[tuple[str, str], KeyPair] = {}
        self.hub = Hub(self, Endpoint(ip_address(HUB_ADDRESS), HUB_PORT), aes=aes, relay=relay)
        self.nodes[self.hub.endpoint] = self.hub

    def random_bytes(self, count: int) -> bytes:
        """Bytes fit for a simulation only."""
        return self.random.randbytes(count)

    def wall_clock(self) -> int:
        """The true time in Unix nanoseconds."""
        return FIRST_WALL_TIME + round((self.now - FIRST_NOW) * 1e9)

    def key_of(self, password: str, user: str) -> KeyPair:
        """The key pair of a password, by a scrypt that costs nothing."""
        if (password, user) not in self._static:
            private = password_key(password, user, PASSWORD_SALT, 1, 8, 1)
            self._static[password, user] = KeyPair.of(private)
        return self._static[password, user]

    def add_user(self, name: str, password: str) -> None:
        """Make an account on the hub."""
        self.hub.enable(name, self.key_of(password, name).public)

    def add_client(self, user: str, password: str, **options: Any) -> Client:
        """Set up a device, not logged in yet; ``options`` are arguments of ``VPNClient``."""
        endpoint = self.new_endpoint()
        client = Client(self, endpoint, user, password, **options)
        self.nodes[endpoint] = client
        return client

    def add_stock_device(self, number: int) -> StockDevice:
        """Set up a stock device with the given host number in the network; it has no peers yet."""
        endpoint = self.new_endpoint()
        device = StockDevice(self, endpoint, (NETWORK4[number], NETWORK6[number]))
        self.nodes[endpoint] = device
        return device

    def acquaint(
        self, one: Node, other: StockDevice, *, psk: bytes = bytes(32), keepalive: int = 0
    ) -> WireGuardPeer:
        """Make a stock device a peer of a hub or another device, which gets its addresses."""
        wireguard = one.core.wireguard
        peer: WireGuardPeer = wireguard.add(other.pair.public, self.now)
        wireguard.set_psk(peer, psk, self.now)
        for address in other.inner:
            wireguard.allow(peer, ip_network(address))
        wireguard.set_keepalive(peer, keepalive, self.now)
        one.drain()
        return peer

    def new_endpoint(self) -> Endpoint:
        """An address of the internet that nobody has."""
        return Endpoint(CLIENT_NETWORK[len(self.nodes)], self.random.randrange(1024, 65536))

    # -- time -----------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When something happens next: a datagram arrives or a timer is due."""
        times = [self.network.next_arrival(), *(node.due() for node in set(self.nodes.values()))]
        return min((time for time in times if time is not None), default=None)

    def advance(self, seconds: float) -> None:
        """Let time go on, stopping only where something is due.

        :raises AssertionError: something runs in circles, and time cannot go on.
        """
        self.advance_to(self.now + seconds)

    def advance_to(self, end: float) -> None:
        """The same, to a given ``now``."""
        steps = 0
        while (due := self.next_due()) is not None and due <= end:
            steps = 0 if due > self.now else steps + 1
            if steps > MOST_STEPS_AT_ONCE:
                raise AssertionError(f"time stands still at {self.now}")
            self.now = max(self.now, due)
            self._step()
        self.now = max(self.now, end)

    def advance_until(self, condition: Callable[[], object], limit: float) -> float:
        """Let time go on until ``condition()`` holds; return how many seconds that took.

        :raises AssertionError: it does not hold within ``limit`` seconds.
        """
        start = self.now
        while not condition():
            due = self.next_due()
            if due is None or due > start + limit:
                raise AssertionError(f"waited for in vain for {limit} s")
            self.advance_to(max(due, self.now))
        return self.now - start

    def _step(self) -> None:
        """Hand over what has arrived, a run of one sender in one call, and fire the timers."""
        run: list[Datagram] = []
        for datagram in self.network.arrived(self.now):
            if run and not _joins(run, datagram):
                self._deliver(run)
                run = []
            run.append(datagram)
        if run:
            self._deliver(run)
        for node in dict.fromkeys(self.nodes.values()):
            node.fire()

    def _deliver(self, run: list[Datagram]) -> None:
        node = self.nodes.get(run[0].destination)
        if node is not None and not node.asleep:
            buffer = b"".join(datagram.payload for datagram in run)
            here = run[0].destination
            source = run[0].source._replace(local=here if here in node.others else None)
            node.hear(buffer, len(run[0].payload), source)


def _joins(run: list[Datagram], datagram: Datagram) -> bool:
    """Whether the kernel's UDP_GRO could hand this datagram over in one call with the others."""
    first, last = run[0], run[-1]
    return (
        (first.source, first.destination) == (datagram.source, datagram.destination)
        and len(last.payload) == len(first.payload) >= len(datagram.payload)
        and len(run) < 64
    )


def ip_packet(
    source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address, payload: bytes
) -> bytes:
    """An IP packet of either family, protocol 253 (for experiments, RFC 3692); no checksum."""
    addresses = source.packed + destination.packed
    if len(addresses) == 8:
        length = (20 + len(payload)).to_bytes(2, "big")
        return b"\x45\0" + length + bytes(4) + b"\x40\xfd\0\0" + addresses + payload
    return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\xfd\x40" + addresses + payload


def numbered_packet(
    number: int, source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address
) -> bytes:
    """A packet that is like no other: its payload begins with its number, 0 to 1,300 bytes long."""
    digest = blake2s(number.to_bytes(8, "big")).digest()
    length = int.from_bytes(digest[:2], "big") % 1300
    return ip_packet(source, destination, number.to_bytes(8, "big") + (digest * 41)[:length])
