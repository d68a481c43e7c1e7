"""Every message of the wire, spoilt in every way that PROTOCOL has a rule about: rows of a table.

A row says what is wrong, makes the message, and names the counter. ``test_bad_messages.py`` walks
them. Layouts and constants are retyped from docs/protocol.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from hashlib import blake2s
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyvpn.core.login import LoginRequest
from pyvpn.core.noise import HandshakeState, KeyPair
from pyvpn.core.peer import Peer
from pyvpn.core.transport import Session
from pyvpn.testing.simulation import NETWORK4, NETWORK6, Node, Simulation, ip_packet
from tests.core.scene import PASSWORD, USER, Scene
from tests.core.test_control import BAD_BODIES, BAD_HEADERS, BAD_ITEMS, LAYOUTS, frame, tlv

HUB4, HUB6 = NETWORK4[1], NETWORK6[1]
DAY = 86_400 * 10**9  # ns
WINDOW = 8192
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
#: X25519 points of small order (RFC 7748, section 6.1): zero, one, and one of order 8.
LOW_ORDER = (
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)
#: Control frames by who may hear them; PATH frames go both ways.
TO_HUB, TO_CLIENTS = (1, 6, 8), (2, 5)


class Case(Scene):
    """A connected hub and client, and which of the two a row is for."""

    def __init__(self, *, for_hub: bool) -> None:
        super().__init__()
        self.for_hub = for_hub
        self._request: LoginRequest | None = None

    @property
    def node(self) -> Node:
        """Whom the row is for."""
        return self.hub if self.for_hub else self.client

    @property
    def end(self) -> Peer:
        """What seals datagrams for the node."""
        return self.client.core.hub if self.for_hub else self.peer

    @property
    def session(self) -> Session:
        """The session that those are sealed on."""
        assert self.end.current is not None
        return self.end.current

    def give(self, payload: bytes) -> None:
        """Bring a datagram to the node."""
        (self.to_hub if self.for_hub else self.to_client)(payload)

    @property
    def request(self) -> LoginRequest:
        """What the client waits for an answer to, opened; it begins a rekey for that."""
        if self._request is None:
            self.client.core._attempt = None
            self.client.core._begin(self.now, rekey=True)
            (burst,) = self.client.core.datagrams_to_send(self.now)  # and the hub never hears it
            message = bytes(burst.buffers[0])
            self.client.drain()
            simulation = self.simulation
            self._request = LoginRequest(
                simulation.keys, simulation.login_key, message, simulation.random_bytes
            )
        return self._request


Make = Callable[[Case], bytes]


class Row(NamedTuple):
    """One spoilt message."""

    fault: str
    make: Make
    reason: str


# -- ways to spoil ---------------------------------------------------------------------------------


def changed(data: bytes, place: int, value: int | None = None) -> bytes:
    """``data`` with one bit of the byte at ``place`` flipped, or the byte set."""
    damaged = bytearray(data)
    damaged[place] = damaged[place] ^ 1 if value is None else value
    return bytes(damaged)


def spoilt(make: Make, place: int, value: int | None = None) -> Make:
    return lambda case: changed(make(case), place, value)


def cut(make: Make, size: int) -> Make:
    return lambda case: make(case)[:size]


def longer(make: Make, by: int) -> Make:
    return lambda case: make(case) + bytes(by)


def with_mac1(message: bytes, key: bytes) -> bytes:
    return message + blake2s(message, digest_size=16, key=key).digest() + bytes(16)


def remade(make: Make, start: int, piece: bytes | None = None) -> Make:
    """A handshake message with a byte flipped, or a piece replaced, before its mac1 was made."""

    def spoil(case: Case) -> bytes:
        message = make(case)[:-32]
        if piece is None:
            message = changed(message, start)
        else:
            message = message[:start] + piece + message[start + len(piece) :]
        keys = case.simulation.keys
        return with_mac1(message, keys.mac1_to_server if case.for_hub else keys.mac1_to_client)

    return spoil


def whole(message: bytes) -> Make:
    return lambda case: message


def captured(kind: int) -> Make:
    """The first datagram of a kind that went over the wire: what a recorder has."""
    return lambda c: next(d.payload for d in c.simulation.network.captured if d.kind == kind)


def handshake_rows(make: Make, size: int) -> Iterator[Row]:
    """What is wrong with 0x50 and 0x51 alike: length, type, version, zeros, mac1."""
    for few in (1, 2, 4, 8, 16, 32, 33, size // 2, size - 32, size - 16, size - 1):
        yield Row(f"{few} bytes", cut(make, few), "datagram_length")
    for more in (1, 16, size, 65_000 - size):
        yield Row(f"{more} bytes more", longer(make, more), "datagram_length")
    for first in (0, 1, 2, 3, 5, 0x4F, 0x53, 0xD0, 0xFF):
        yield Row(f"type {first:#x}", spoilt(make, 0, first), "datagram_unknown")
    for version in (0, 2, 255):
        yield Row(f"version {version}", remade(make, 1, bytes([version])), "handshake_version")
    for place in (2, 3):
        for value in (1, 128):
            row = remade(make, place, bytes([value]))
            yield Row(f"byte {place} is {value}", row, "handshake_version")


# -- 0x50 ------------------------------------------------------------------------------------------


def login(case: Case) -> bytes:
    """A 0x50, right in every way."""
    return case.attempt().message


def tai64n(nanoseconds: int) -> bytes:
    seconds, rest = divmod(nanoseconds, 10**9)
    return struct.pack(">QI", 2**62 + 10 + seconds, rest)


def from_now(nanoseconds: int) -> Make:
    """A stamp so far ahead of the true time."""
    return lambda case: tai64n(case.simulation.wall_clock() + nanoseconds)


def from_last(nanoseconds: int) -> Make:
    """A stamp so far ahead of the last one that the hub has accepted."""

    def stamp(case: Case) -> bytes:
        seconds, rest = struct.unpack(">QI", case.peer.stamp_seen)
        return tai64n((seconds - 2**62 - 10) * 10**9 + rest + nanoseconds)

    return stamp


#: A stamp that is good.
_SOON = from_now(10**9)


def crafted_login(
    *, stamp: Make = _SOON, static: Callable[[Case], KeyPair] | None = None, **fields: Any
) -> Make:
    """A 0x50 with fields of its payload as no client of ours would send them."""

    def make(case: Case) -> bytes:
        simulation = case.simulation
        keys = simulation.keys
        values = {
            "version": 1,
            "flags": 0,
            "zero": 0,
            "sender": 77,
            "stamp": stamp(case),
            "device": case.client.device,
            "length": None,
            "user": USER.encode(),
            "code": bytes(3),
        } | fields
        if values["length"] is None:
            values["length"] = len(values["user"])
        state = HandshakeState(
            b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s",
            (("psk", "e", "es", "s", "ss"), ("e", "ee", "se", "psk")),
            initiator=True,
            prologue=keys.prologue,
            static=static(case) if static is not None else case.client.static,
            remote_static=keys.login_public,
            psks=(keys.psk0, keys.psk2),
            random_bytes=simulation.random_bytes,
        )
        payload = struct.pack("<BBHI12s16sB32s3s", *values.values())
        prefix = b"\x50\1\0\0" + (77).to_bytes(4, "little")
        return with_mac1(prefix + state.write_message(payload), keys.mac1_to_server)

    return make


class _Zero(KeyPair):
    """The key pair of somebody who says his public key is zero: every secret with it is known."""

    def exchange(self, public: bytes) -> bytes:
        if public == bytes(32):
            return bytes(32)
        return super().exchange(public)


def _zero_static(case: Case) -> KeyPair:
    own = case.client.static
    return _Zero(own.private, bytes(32), own._key)


def _of_another_network(case: Case) -> bytes:
    keys = case.simulation.keys
    case.simulation.keys = Simulation(99).keys
    try:
        return case.attempt().message
    finally:
        case.simulation.keys = keys


def initiations() -> Iterator[Row]:
    """0x50 as a datagram: what is checked before its payload can be read."""
    yield from handshake_rows(login, 208)
    for place in (1, 2, 4, 8, 40, 88, 175, 176, 191):
        yield Row(f"byte {place} flipped", spoilt(login, place), "mac1_invalid")
    yield Row("another network's", _of_another_network, "mac1_invalid")
    for place in (4, 7):
        yield Row(f"sender, byte {place}", remade(login, place), "handshake_index_echo")
    encrypted = {"e": 8, "e's end": 38, "s": 40, "tag of s": 87, "payload": 88, "its tag": 175}
    for name, place in encrypted.items():
        yield Row(name, remade(login, place), "handshake_decrypt")
    for point in LOW_ORDER:
        yield Row(f"e = {point.hex()[:4]}…", remade(login, 8, point), "handshake_low_order")
    yield Row("its own 0x51", captured(0x51), "datagram_unknown")
    for kind, size in {1: 148, 2: 92, 3: 64, 0x52: 64}.items():
        row = whole(bytes([kind]).ljust(size, b"\0"))
        yield Row(f"type {kind:#x}, right length", row, "datagram_unknown")


def initiation_payloads() -> Iterator[Row]:
    """0x50 with a payload that breaks a rule."""
    faults: dict[str, dict[str, Any]] = {
        **{f"version {number}": {"version": number} for number in (0, 2, 255)},
        **{f"flag {bit}": {"flags": 1 << bit} for bit in (4, 5, 6, 7)},
        **{f"reserved {number}": {"zero": number} for number in (1, 0x100, 0xFFFF)},
        "a code without its flag": {"code": b"\0\0\1"},
    }
    for fault, fields in faults.items():
        yield Row(fault, crafted_login(**fields), "handshake_payload")
    for sender in (0, 76, 78, 77 << 8, 2**32 - 1):
        yield Row(f"sender {sender}", crafted_login(sender=sender), "handshake_index_echo")
    names: dict[str, tuple[bytes, int | None]] = {
        "empty": (b"", None),
        "length 0": (b"alice", 0),
        "length 33": (b"a" * 32, 33),
        "length 255": (b"a" * 32, 255),
        "longer than said": (b"alice", 4),
        "shorter than said": (b"alice", 6),  # the byte beyond is a zero: a control character
        "not UTF-8": (b"\xff\xfe", None),
        "cut in a letter": ("alicé".encode()[:5], None),
        "overlong UTF-8": (b"\xc1\xa1lice", None),
        "a surrogate": (b"\xed\xa0\x80", None),
        "not NFC": ("alice\u0301".encode(), None),
        "an escape": (b"\x1b[2J", None),
        "a line break": (b"ali\nce", None),
        "a direction mark": ("\u202ealice".encode(), None),
        "unassigned": ("\u0378".encode(), None),
    }
    for fault, (user, length) in names.items():
        row = crafted_login(user=user, length=length)
        yield Row(f"name: {fault}", row, "handshake_user")
    zero = crafted_login(static=_zero_static)
    yield Row("s of low order", zero, "handshake_low_order")


def initiation_claims() -> Iterator[Row]:
    """0x50 that is well formed, and whose stamp, name or key is not good enough."""
    stamps: dict[str, tuple[Make, str]] = {
        "the last one again": (from_last(0), "replayed"),
        "1 ns before it": (from_last(-1), "replayed"),
        "an hour before it": (from_last(-3600 * 10**9), "replayed"),
        "zero": (whole(bytes(12)), "replayed"),
        "1970": (whole(tai64n(0)), "replayed"),
        "a day and 1 ns ahead": (from_now(DAY + 1), "future"),
        "a year ahead": (from_now(365 * DAY), "future"),
        "the largest": (whole(b"\xff" * 12), "future"),
    }
    for fault, (stamp, reason) in stamps.items():
        yield Row(f"stamp: {fault}", crafted_login(stamp=stamp), f"login_stamp_{reason}")
    yield Row("replayed", captured(0x50), "login_stamp_replayed")
    for user in ("bob", "Alice", "alice ", "a" * 32):
        yield Row(f"user {user!r}", crafted_login(user=user.encode()), "login_wrong")
    yield Row("a wrong password", lambda c: c.attempt(password="x").message, "login_wrong")
    other = crafted_login(static=lambda case: KeyPair.of(bytes([9]) * 32))
    yield Row("another key", other, "login_wrong")


# -- 0x51 ------------------------------------------------------------------------------------------


def crafted_answer(**fields: int) -> Make:
    """A 0x51 to what the client waits for, with fields of its payload as given."""

    def make(case: Case) -> bytes:
        request = case.request
        receiver = request.remote_index
        values = {"version": 1, "flags": 0, "mtu": 1416, "sender": 5, "receiver": receiver} | fields
        payload = struct.pack("<BBHII12s", *values.values(), from_now(0)(case))
        prefix = b"\x51\1\0\0" + struct.pack("<II", 5, receiver)
        message = prefix + request._state.write_message(payload)
        return with_mac1(message, case.simulation.keys.mac1_to_client)

    return make


#: A 0x51, right in every way.
answer = crafted_answer()


def _to_an_older_try(case: Case) -> bytes:
    message = answer(case)
    case._request = None
    assert case.request
    return message


def responses() -> Iterator[Row]:
    """0x51 to a client that waits for one."""
    yield from handshake_rows(answer, 116)
    for place in (100, 115):
        yield Row(f"mac2, byte {place}", spoilt(answer, place), "handshake_version")
    for place in (4, 12, 44, 84, 99):
        yield Row(f"byte {place} flipped", spoilt(answer, place), "mac1_invalid")
    for place in (8, 11):
        yield Row(f"receiver, byte {place}", remade(answer, place), "response_unexpected")
    yield Row("sender", remade(answer, 4), "handshake_index_echo")
    for name, place in {"e": 12, "payload": 44, "its tag": 83}.items():
        yield Row(name, remade(answer, place), "handshake_decrypt")
    for point in LOW_ORDER:
        yield Row(f"e = {point.hex()[:4]}…", remade(answer, 12, point), "handshake_low_order")
    for version in (0, 2, 255):
        row = crafted_answer(version=version)
        yield Row(f"inner version {version}", row, "handshake_payload")
    for bit in range(8):
        yield Row(f"flag {bit}, not offered", crafted_answer(flags=1 << bit), "handshake_payload")
    for field in ("sender", "receiver"):
        for index in (0, 6, 2**32 - 1):
            row = crafted_answer(**{field: index})
            yield Row(f"{field} {index} inside", row, "handshake_index_echo")
    yield Row("to an older try", _to_an_older_try, "response_unexpected")
    yield Row("replayed", captured(0x51), "response_unexpected")
    yield Row("its own 0x50", captured(0x50), "datagram_unknown")


# -- type 4 ----------------------------------------------------------------------------------------


def data(case: Case) -> bytes:
    """A keepalive, right in every way."""
    return case.sealed(case.end, b"")


def counted(counter: int) -> Make:
    """A keepalive sealed under a counter of one's choice."""

    def make(case: Case) -> bytes:
        session = case.session
        before, session.send_counter = session.send_counter, counter
        datagram = data(case)
        session.send_counter = before
        return datagram

    return make


def _twice(case: Case) -> bytes:
    datagram = data(case)
    case.give(datagram)
    return datagram


def behind(count: int) -> Make:
    """A datagram that is new, and so many counters below the highest."""

    def make(case: Case) -> bytes:
        late = data(case)
        case.session.send_counter += count - 1
        case.give(data(case))
        return late

    return make


def _readdressed(case: Case) -> bytes:
    """Data of another device's session with the index of this one's on it."""
    other = case.simulation.add_client(USER, PASSWORD)
    other.start()
    case.simulation.advance(0.5)
    end: Peer | None = other.core.hub
    if not case.for_hub:
        end = case.hub.core.peer(USER, other.device)
    assert end is not None
    theirs = case.sealed(end, b"")
    return theirs[:4] + data(case)[4:8] + theirs[8:]


def transport() -> Iterator[Row]:
    """Type 4, up to the point where its plaintext is known."""
    for size in (1, 4, 8, 16, 31):
        yield Row(f"{size} bytes", cut(data, size), "datagram_unknown")
    for place in (1, 2, 3):
        for value in (1, 0x80, 0xFF):
            row = spoilt(data, place, value)
            yield Row(f"byte {place} is {value}", row, "datagram_reserved_bits")
    for place in (4, 7):
        yield Row(f"index, byte {place}", spoilt(data, place), "session_unknown")
    for place in (8, 15, 16, 31):
        yield Row(f"byte {place} flipped", spoilt(data, place), "transport_forged")
    for more in (1, 16, 65_000):
        yield Row(f"{more} bytes more", longer(data, more), "transport_forged")
    yield Row("zeros", lambda case: data(case)[:8] + bytes(24), "transport_forged")
    yield Row("of another session", _readdressed, "transport_forged")
    for counter in (REJECT_AFTER_MESSAGES, 2**64 - 2):
        yield Row(f"counter {counter}", counted(counter), "transport_forged")
    yield Row("twice", _twice, "transport_replayed")
    for count in (WINDOW, WINDOW + 1, 10 * WINDOW):
        yield Row(f"{count} behind", behind(count), "transport_replayed")
    own: Make = lambda case: case.sealed(case.peer if case.for_hub else case.client.core.hub, b"")  # noqa: E731
    yield Row("its own, reflected", own, "session_unknown")


# -- inside a type 4 -------------------------------------------------------------------------------


def inside(make: Make) -> Make:
    """What ``make`` makes, sealed for the node."""
    return lambda case: case.sealed(case.end, make(case))


def packet(version: int, source: str | None = None) -> Make:
    """An IP packet to the node from the other end, or from ``source``."""

    def make(case: Case) -> bytes:
        lease = case.client.lease
        client, hub = (lease.ipv4, HUB4) if version == 4 else (lease.ipv6, HUB6)
        assert client is not None
        there, back = (client, hub) if case.for_hub else (hub, client)
        sender = there if source is None else ip_address(source)
        return ip_packet(sender, back, bytes(12))

    return make


def set_bytes(make: Make, start: int, *values: int) -> Make:
    def spoil(case: Case) -> bytes:
        right = make(case)
        return right[:start] + bytes(values) + right[start + len(values) :]

    return spoil


def packets() -> Iterator[Row]:
    """Plaintexts that are no IP packet."""
    four, six = packet(4), packet(6)
    for nibble in (1, 2, 3, 5, *range(7, 16)):
        row = set_bytes(four, 0, nibble << 4 | 5)
        yield Row(f"nibble {nibble}", inside(row), "inner_unknown")
    malformed: dict[str, Make] = {
        "IHL 0": set_bytes(four, 0, 0x40),
        "IHL 4": set_bytes(four, 0, 0x44),
        "IHL beyond the end": set_bytes(four, 0, 0x4F),
        "length 0": set_bytes(four, 2, 0, 0),
        "length 19": set_bytes(four, 2, 0, 19),
        "length beyond the end": set_bytes(four, 2, 0, 33),
        "length 65535": set_bytes(four, 2, 255, 255),
        "an IPv4 header cut short": cut(four, 19),
        "an IPv4 byte": cut(four, 1),
        "IPv6 length beyond the end": set_bytes(six, 4, 0, 13),
        "IPv6 length 65535": set_bytes(six, 4, 255, 255),
        "an IPv6 header cut short": cut(six, 39),
        "an IPv6 byte": cut(six, 1),
    }
    for fault, make in malformed.items():
        yield Row(fault, inside(make), "inner_malformed")


#: Sources that nobody may have, inside.
NOBODY = ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1",
          "ff02::1", "fe80::1", "2001:db8::1", "::ffff:10.10.0.2")  # fmt: skip


def sources(*others: object) -> Iterator[Row]:
    """Packets from addresses that are not the sender's."""
    for source in (*map(str, others), *NOBODY):
        row = packet(ip_address(source).version, source)
        yield Row(f"from {source}", inside(row), "inner_source_not_allowed")


def _plain(plaintext: bytes) -> Make:
    return inside(whole(plaintext))


def frames(wrong_direction: tuple[int, ...]) -> Iterator[Row]:
    """Control frames that are malformed, unknown or not for this side."""
    for fault, plaintext in (BAD_HEADERS | BAD_BODIES).items():
        if plaintext:  # an empty one is a keepalive
            yield Row(fault, _plain(plaintext), "control_malformed")
    for kind, size in {1: 22, 2: 50, 3: 16, 4: 16, 6: 5}.items():
        for other in (0, size - 1, size + 1):
            row = _plain(frame(kind, bytes(other)))
            yield Row(f"kind {kind} with {other} bytes", row, "control_malformed")
    for kind in (0, *range(9, 16)):
        yield Row(f"kind {kind}", _plain(frame(kind, bytes(16))), "control_unknown")
    for _, plaintext, _ in LAYOUTS:
        if plaintext[0] in wrong_direction:
            row = _plain(plaintext)
            yield Row(f"kind {plaintext[0]}, wrong direction", row, "control_wrong_direction")


# -- CONFIG ----------------------------------------------------------------------------------------

ADDRESS = tlv(1, NETWORK4[2].packed + b"\x18")


def config(items: bytes, *, part: int = 0, parts: int = 1, revision: int = 9) -> bytes:
    """One part of a CONFIG as a plaintext."""
    return frame(5, struct.pack("<IBB", revision, part, parts) + items)


def _second(first: bytes, second: bytes) -> Make:
    def make(case: Case) -> bytes:
        case.give(case.sealed(case.end, first))
        return case.sealed(case.end, second)

    return make


def _on_the_old_session(case: Case) -> bytes:
    old = case.session
    case.simulation.advance(126)  # the poll at 125 s brings a rekey
    assert old is case.end.previous
    return case.sealed(case.end, config(ADDRESS), old)


def configs() -> Iterator[Row]:
    """CONFIGs that a client must not apply; the address in each would be good alone."""
    for fault, items in BAD_ITEMS.items():
        yield Row(fault, _plain(config(ADDRESS + items)), "config_invalid")
    yield Row("no address", _plain(config(b"")), "config_invalid")
    half = config(ADDRESS, parts=2)
    contradictions = {
        "another number of parts": config(b"", part=1, parts=3),
        "another first part": config(b"", parts=2),
        "an item over the border": config(b"\6\2", part=1, parts=2),
    }
    for fault, second in contradictions.items():
        yield Row(fault, _second(half, second), "config_invalid")
    yield Row("on the old session", _on_the_old_session, "config_old_session")
