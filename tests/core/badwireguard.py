"""WireGuard's messages 1, 2 and 3 as a hub must not take them: rows for ``test_badwireguard.py``.

Layouts and constants are the paper's (5.4); the messages are made by ``wireguardpaper.py``, not by
the code that reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any, NamedTuple

from Crypto.Cipher import ChaCha20_Poly1305

from pyvpn.core import wireguard
from pyvpn.core.noise import KeyPair
from pyvpn.core.peer import Peer
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.testing.simulation import NETWORK4, NETWORK6, Endpoint, StockDevice, ip_packet
from tests.core.badhandshakes import LOW_ORDER, tai64n
from tests.core.badrows import changed
from tests.core.scene import Scene
from tests.core.wireguardpaper import HASH, Handshake, macs
from tests.sim.rules import works_both_ways

INITIATION, RESPONSE, COOKIE_REPLY = 148, 92, 64
PSK = bytes(range(32))
#: Keys that nobody in the scene has.
OTHER = bytes([7]) * 32
EPHEMERAL = bytes([8]) * 32


class StockCase(Scene):
    """A hub with a connected user's device, a connected stock peer and one that is away.

    :ivar phone: the one that is connected; ``stock``: what the hub has of it.
    """

    def __init__(self) -> None:
        super().__init__()
        simulation = self.simulation
        self.key = KeyPair.of(simulation.random_bytes(32))
        self.wireguard = self.hub.core.wireguard
        self.wireguard.set_private_key(self.key.private, self.now)
        self.phone, self.tablet = map(simulation.add_stock_device, (200, 201))
        self.stock = self._acquaint(self.phone)
        self._acquaint(self.tablet)
        assert self.stock_works()
        simulation.advance(1)
        self.mark()

    def _acquaint(self, device: StockDevice) -> WireGuardPeer:
        peer = self.simulation.acquaint(self.hub, device, psk=PSK)
        to_hub = device.core.wireguard.add(self.key.public, self.now)
        device.core.wireguard.set_psk(to_hub, PSK, self.now)
        for network in (NETWORK4, NETWORK6, ip_network("0.0.0.0/0")):
            device.core.wireguard.allow(to_hub, network)
        device.core.wireguard.set_endpoint(to_hub, self.hub.endpoint, self.now)
        return peer

    def give(self, message: bytes, source: Endpoint | None = None) -> None:
        """Bring a datagram to the hub from where the phone is."""
        self.to_hub(message, source or self.phone.endpoint)

    def stock_works(self) -> bool:
        """Whether a packet arrives in each direction between the phone and the hub."""
        there = ip_packet(self.phone.inner[0], NETWORK4[1], self.simulation.random_bytes(16))
        back = ip_packet(NETWORK4[1], self.phone.inner[0], self.simulation.random_bytes(16))
        self.phone.send(there)
        self.simulation.advance(1)
        self.hub.send(back)
        self.simulation.advance(1)
        return there in self.hub.received and back in self.phone.received

    def all_works(self) -> bool:
        """The same, and for the user's device."""
        return self.stock_works() and works_both_ways(self.simulation, self.client)

    def initiate(self) -> bytes:
        """Have the hub begin a handshake with the phone, which never hears of it."""
        self.wireguard._give_up(self.stock)
        self.stock.initiation_sent = float("-inf")
        self.wireguard.connect(self.stock, self.now)
        (burst,) = self.hub.core.datagrams_to_send(self.now)
        return bytes(burst.buffers[0])


Make = Callable[[StockCase], bytes]


class Row(NamedTuple):
    """One message that is to be dropped, and its counter."""

    fault: str
    make: Make
    reason: str


# -- ways to spoil ---------------------------------------------------------------------------------


def spoilt(make: Make, place: int, value: int | None = None) -> Make:
    return lambda case: changed(make(case), place, value)


def remade(make: Make, place: int, piece: bytes | None = None) -> Make:
    """A message with a byte flipped, or a piece replaced, before its mac1 was made."""

    def spoil(case: StockCase) -> bytes:
        message = make(case)[:-32]
        if piece is None:
            message = changed(message, place)
        else:
            message = message[:place] + piece + message[place + len(piece) :]
        return macs(message, case.key.public)

    return spoil


def cut(make: Make, size: int) -> Make:
    return lambda case: make(case)[:size]


def longer(make: Make, by: int) -> Make:
    return lambda case: make(case) + bytes(by)


def with_macs_for(make: Make, public: Callable[[StockCase], bytes]) -> Make:
    """A message with mac1 made for the owner of another key."""
    return lambda case: macs(make(case)[:-32], public(case))


def whole(message: bytes) -> Make:
    return lambda case: message


def captured(kind: int) -> Make:
    """The first datagram of a kind between the phone and the hub: what a recorder has."""

    def find(case: StockCase) -> bytes:
        return next(d.payload for d in case.simulation.network.captured if d.kind == kind)

    return find


def form_rows(make: Make, size: int) -> Iterator[Row]:
    """What is wrong with any of the three: its length, its type, its zeros."""
    for few in (1, 2, 3, 4, 8, 31, 32, 33, size // 2, size - 32, size - 16, size - 1):
        yield Row(f"{few} bytes", cut(make, few), "datagram_length")
    for more in (1, 16, size, 60_000):
        yield Row(f"{more} bytes more", longer(make, more), "datagram_length")
    for first in (0, 5, 6, 0x4F, 0x53, 0x81, 0xFF):
        yield Row(f"type {first:#x}", spoilt(make, 0, first), "datagram_unknown")
    for place in (1, 2, 3):
        for value in (1, 128):
            if size == COOKIE_REPLY:  # it has no mac1
                row = spoilt(make, place, value)
            else:
                row = remade(make, place, bytes([value]))
            yield Row(f"byte {place} is {value}", row, "handshake_version")


def mac1_rows(make: Make, size: int) -> Iterator[Row]:
    """A mac1 that does not fit its message, or is another one's."""
    for place in (4, 8, 12, size // 2, size - 33, size - 32, size - 17):
        yield Row(f"byte {place} flipped", spoilt(make, place), "mac1_invalid")
    for name, public in {
        "mac1 for its sender": lambda case: case.phone.pair.public,
        "mac1 for nobody": lambda case: bytes(32),
        "mac1 for logins": lambda case: case.simulation.login_key.public,
    }.items():
        yield Row(name, with_macs_for(make, public), "mac1_invalid")
    yield Row("no mac1", lambda case: make(case)[:-32] + bytes(32), "mac1_invalid")


# -- message 1 -------------------------------------------------------------------------------------


def stamp(case: StockCase, nanoseconds: int = 10**9) -> bytes:
    """A stamp that many nanoseconds from now."""
    return tai64n(case.simulation.wall_clock() + nanoseconds)


def crafted_initiation(**changes: Callable[[StockCase], Any]) -> Make:
    """A message 1 of the phone, right but for what is given."""

    def make(case: StockCase) -> bytes:
        fields: dict[str, Any] = {
            "S_i": case.phone.pair.private,
            "E_i": EPHEMERAL,
            "S_r": case.key.private,
            "I_i": 77,
            "timestamp": stamp(case),
        }
        fields |= {name: value(case) for name, value in changes.items()}
        return macs(Handshake(**fields).first, case.key.public)

    return make


#: A message 1, right in every way.
initiation = crafted_initiation()


def _from_last(nanoseconds: int) -> Callable[[StockCase], bytes]:
    """So long after the last stamp that the hub took."""

    def make(case: StockCase) -> bytes:
        seconds, rest = struct.unpack(">QI", case.stock.stamp_seen)
        return tai64n((seconds - 2**62 - 10) * 10**9 + rest + nanoseconds)

    return make


def _of_another_protocol(case: StockCase) -> bytes:
    """Made with the login's prologue in place of WireGuard's."""
    message: bytes = case.attempt().message
    return macs(b"\1\0\0\0" + message[4:116], case.key.public)


def _second_within_20_ms(case: StockCase) -> bytes:
    case.give(initiation(case))
    case.simulation.advance(0.019)
    return crafted_initiation(timestamp=lambda case: stamp(case, 2 * 10**9))(case)


def _removed(case: StockCase) -> bytes:
    """Of a peer that was one until now."""
    case.wireguard.remove(case.tablet.pair.public, case.now)
    case.hub.drain()
    return crafted_initiation(S_i=lambda case: case.tablet.pair.private)(case)


def initiations() -> Iterator[Row]:
    """Message 1 to a hub that knows the peer."""
    yield from form_rows(initiation, INITIATION)
    yield from mac1_rows(initiation, INITIATION)
    encrypted = {"e": 8, "e's end": 38, "s": 40, "tag of s": 87, "stamp": 88, "its tag": 115}
    for name, place in encrypted.items():
        yield Row(name, remade(initiation, place), "handshake_decrypt")
    for point in LOW_ORDER:
        yield Row(f"e = {point.hex()[:4]}…", remade(initiation, 8, point), "handshake_low_order")
    yield Row("to another hub", crafted_initiation(S_r=lambda case: OTHER), "handshake_decrypt")
    yield Row("another prologue", _of_another_protocol, "handshake_decrypt")
    yield Row("by a stranger", crafted_initiation(S_i=lambda case: OTHER), "wireguard_unknown_peer")
    yield Row("by a removed one", _removed, "wireguard_unknown_peer")
    yield Row(
        "by the hub itself",
        crafted_initiation(S_i=lambda case: case.key.private),
        "wireguard_unknown_peer",
    )
    yield Row(
        "by a user with its login key",
        crafted_initiation(S_i=lambda case: case.client.static.private),
        "wireguard_unknown_peer",
    )
    zero = crafted_initiation(S_pub_i=lambda case: bytes(32), ss=lambda case: bytes(32))
    yield Row("s = 0", zero, "wireguard_unknown_peer")
    claimed = crafted_initiation(
        S_i=lambda case: OTHER, S_pub_i=lambda case: case.phone.pair.public
    )
    yield Row("by who knows the peer's public key only", claimed, "handshake_decrypt")
    for name, make in {
        "the last one again": _from_last(0),
        "1 ns before it": _from_last(-1),
        "a second before it": _from_last(-(10**9)),
        "zero": lambda case: bytes(12),
        "1970": lambda case: tai64n(0),
    }.items():
        yield Row(f"stamp: {name}", crafted_initiation(timestamp=make), "wireguard_stamp_replayed")
    yield Row("recorded", captured(1), "wireguard_stamp_replayed")
    yield Row("the second within 20 ms", _second_within_20_ms, "wireguard_too_often")


# -- message 2 -------------------------------------------------------------------------------------


def crafted_response(**changes: Callable[[StockCase], Any]) -> Make:
    """A message 2 of the phone to what the hub has just sent, right but for what is given."""

    def make(case: StockCase) -> bytes:
        sent = case.initiate()
        pending = case.stock.pending
        assert pending is not None and pending._state._e is not None
        opened = wireguard.InitiationReceived(case.phone.pair, sent, case.simulation.random_bytes)
        opened.open()
        fields: dict[str, Any] = {
            "S_i": case.key.private,
            "E_i": pending._state._e.private,
            "S_r": case.phone.pair.private,
            "E_r": EPHEMERAL,
            "Q": PSK,
            "I_i": pending.index,
            "I_r": 78,
            "timestamp": opened.stamp,
        }
        fields |= {name: value(case) for name, value in changes.items()}
        return macs(Handshake(**fields).second, case.key.public)

    return make


#: A message 2, right in every way.
response = crafted_response()


def _to_an_older_try(case: StockCase) -> bytes:
    message = response(case)
    case.initiate()
    return message


def _to_an_older_try_renamed(case: StockCase) -> bytes:
    message = response(case)
    index = case.initiate()[4:8]
    return macs(message[:8] + index + message[12:-32], case.key.public)


def _after_the_removal(case: StockCase) -> bytes:
    """The peer is gone and back with nothing of before."""
    case.phone.core.wireguard.stop()
    case.simulation.advance(6)
    message = response(case)
    public = case.phone.pair.public
    case.wireguard.remove(public, case.now)
    case.hub.drain()
    case.stock = case._acquaint(case.phone)
    return message


def _to_a_used_index(case: StockCase) -> bytes:
    """It names the session of a user's device."""
    message = response(case)
    assert case.peer.current is not None
    index = struct.pack("<I", case.peer.current.local_index)
    return macs(message[:8] + index + message[12:-32], case.key.public)


def _reflected(case: StockCase) -> bytes:
    return case.initiate()


def responses() -> Iterator[Row]:
    """Message 2 to a hub that waits for one."""
    yield from form_rows(response, RESPONSE)
    yield from mac1_rows(response, RESPONSE)
    for place in (8, 11):
        yield Row(f"receiver, byte {place}", remade(response, place), "response_unexpected")
    for name, place in {"e": 12, "e's end": 42, "tag": 44, "tag's end": 59}.items():
        yield Row(name, remade(response, place), "handshake_decrypt")
    for point in LOW_ORDER:
        yield Row(f"e = {point.hex()[:4]}…", remade(response, 12, point), "handshake_low_order")
    for name, psk in {"none": bytes(32), "another": PSK[::-1]}.items():
        row = crafted_response(Q=lambda case, psk=psk: psk)  # type: ignore[misc]
        yield Row(f"pre-shared key: {name}", row, "handshake_decrypt")
    by_other = crafted_response(S_r=lambda case: OTHER)
    yield Row("by a stranger", by_other, "handshake_decrypt")
    by_tablet = crafted_response(S_r=lambda case: case.tablet.pair.private)
    yield Row("by another peer", by_tablet, "handshake_decrypt")
    yield Row("to an older try", _to_an_older_try, "response_unexpected")
    yield Row("to an older try, by the new index", _to_an_older_try_renamed, "handshake_decrypt")
    yield Row("the hub's own", captured(2), "mac1_invalid")
    yield Row("to a user's session", _to_a_used_index, "response_unexpected")
    yield Row("after the peer's removal", _after_the_removal, "response_unexpected")
    yield Row("its own message 1", _reflected, "mac1_invalid")
    nobody = lambda case: macs(b"\2\0\0\0" + bytes(56), case.key.public)  # noqa: E731
    yield Row("that nobody waits for", nobody, "response_unexpected")


# -- message 3 -------------------------------------------------------------------------------------


def crafted_cookie(
    *,
    key: Callable[[StockCase], bytes] = lambda case: case.phone.pair.public,
    bound_to: Make | None = None,
    receiver: Callable[[StockCase], int] | None = None,
) -> Make:
    """A message 3 of the phone to what the hub has just sent, right but for what is given."""

    def make(case: StockCase) -> bytes:
        sent = case.initiate()
        message = sent if bound_to is None else bound_to(case)
        index = struct.unpack_from("<I", sent, 4)[0] if receiver is None else receiver(case)
        nonce = case.simulation.random_bytes(24)
        cipher = ChaCha20_Poly1305.new(key=HASH(b"cookie--" + key(case)), nonce=nonce)
        cipher.update(message[-32:-16])
        sealed = b"".join(cipher.encrypt_and_digest(bytes(range(16))))
        return b"\3\0\0\0" + struct.pack("<I", index) + nonce + sealed

    return make


#: A message 3, right in every way.
cookie = crafted_cookie()


def _cookie_of_an_older_try(case: StockCase) -> bytes:
    message = cookie(case)
    case.initiate()
    return message


def _cookie_again(case: StockCase) -> bytes:
    message = cookie(case)
    case.give(message)
    assert case.stock.cookie is not None
    return message


def _users_index(case: StockCase) -> int:
    assert case.peer.current is not None
    return case.peer.current.local_index


def cookies() -> Iterator[Row]:
    """Message 3 to a hub that waits for an answer."""
    yield from form_rows(cookie, COOKIE_REPLY)
    for place in (4, 7):
        yield Row(f"receiver, byte {place}", spoilt(cookie, place), "response_unexpected")
    for name, place in {"nonce": 8, "nonce's end": 31, "cookie": 32, "its tag": 63}.items():
        yield Row(name, spoilt(cookie, place), "cookie_invalid")
    for name, key in {
        "the hub's own": lambda case: case.key.public,
        "another peer's": lambda case: case.tablet.pair.public,
    }.items():
        yield Row(f"key: {name}", crafted_cookie(key=key), "cookie_invalid")
    other = crafted_cookie(bound_to=captured(2))
    yield Row("to another message", other, "cookie_invalid")
    yield Row("to an older try", _cookie_of_an_older_try, "response_unexpected")
    yield Row("a second time", _cookie_again, "response_unexpected")
    yield Row("to a user's session", crafted_cookie(receiver=_users_index), "response_unexpected")
    nobody = whole(b"\3\0\0\0" + bytes(60))
    yield Row("that nobody waits for", nobody, "response_unexpected")


# -- what must not move ----------------------------------------------------------------------------


def _session_of(peer: Peer, which: str) -> object:
    session = getattr(peer, which)
    return session and (id(session), session.local_index, session.send_counter)


def holdings(case: StockCase) -> list[object]:
    """All that the hub holds of its peers, tells, sends and writes, but for its counters."""
    core = case.hub.core
    held: list[object] = [len(case.sent()), list(case.hub.events), list(case.hub.received)]
    held.append({index: id(session) for index, (_, session) in core._sessions.items()})
    held.append({index: id(peer) for index, peer in case.wireguard._pending.items()})
    for peer in (*case.wireguard.peers.values(), *core._peers.values()):
        held += [peer.endpoint, list(peer.staged), peer.rx_packets, peer.tx_packets]
        held += [_session_of(peer, which) for which in ("previous", "current", "next")]
        held += [peer.keepalive.due, peer.last_heard]
        if isinstance(peer, WireGuardPeer):
            held += [peer.stamp_seen, peer.initiation_taken, id(peer.pending), peer.cookie]
            held += [peer.attempt_due, peer.attempt_started, peer.initiated, peer.answer_due]
            held += [peer.persistent_due, peer.last_handshake, peer.sent_message]
    return held
