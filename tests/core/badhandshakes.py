"""Handshake messages that a hub or a client must not take: rows for ``test_bad_messages.py``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from Crypto.Cipher import ChaCha20_Poly1305

from pyvpn.core.noise import HandshakeState, KeyPair
from pyvpn.testing.simulation import Simulation
from tests.core.badrows import (
    Case,
    Make,
    Row,
    captured,
    cut,
    longer,
    remade,
    spoilt,
    whole,
    with_mac1,
)
from tests.core.scene import USER

DAY = 86_400 * 10**9  # ns
#: Segment frames: the one flag that the client of these scenes offers, by its bit.
OFFERED = 2
#: X25519 points of small order (RFC 7748, section 6.1): zero, one, and one of order 8.
LOW_ORDER = (
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)


def length_rows(make: Make, size: int) -> Iterator[Row]:
    """A message of a fixed length at all other lengths that matter."""
    for few in (1, 2, 4, 8, 16, 32, 33, size // 2, size - 32, size - 16, size - 1):
        yield Row(f"{few} bytes", cut(make, few), "datagram_length")
    for more in (1, 16, size, 65_000 - size):
        yield Row(f"{more} bytes more", longer(make, more), "datagram_length")


def handshake_rows(make: Make, size: int, stock: str) -> Iterator[Row]:
    """What is wrong with 0x50 and 0x51 alike: length, type, version, zeros, mac1.

    :param stock: what WireGuard's types count as here.
    """
    yield from length_rows(make, size)
    for first in (0, 1, 2, 3, 5, 0x4F, 0x53, 0xD0, 0xFF):
        reason = stock if first in (1, 2, 3) else "datagram_unknown"
        yield Row(f"type {first:#x}", spoilt(make, 0, first), reason)
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
    yield from handshake_rows(login, 208, "wireguard_no_peers")
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
        reason = "datagram_unknown" if kind == 0x52 else "wireguard_no_peers"
        yield Row(f"type {kind:#x}, right length", row, reason)


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
    case.login_again()
    return message


def responses() -> Iterator[Row]:
    """0x51 to a client that waits for one."""
    yield from handshake_rows(answer, 116, "datagram_unknown")
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
        if bit != OFFERED:
            row = crafted_answer(flags=1 << bit)
            yield Row(f"flag {bit}, not offered", row, "handshake_payload")
    for field in ("sender", "receiver"):
        for index in (0, 6, 2**32 - 1):
            row = crafted_answer(**{field: index})
            yield Row(f"{field} {index} inside", row, "handshake_index_echo")
    yield Row("to an older try", _to_an_older_try, "response_unexpected")
    yield Row("replayed", captured(0x51), "response_unexpected")
    yield Row("its own 0x50", captured(0x50), "datagram_unknown")


# -- 0x52 ------------------------------------------------------------------------------------------


def crafted_cookie(*, key: bytes | None = None, bound_to: Make | None = None) -> Make:
    """A 0x52 to what the client waits for, under another key or bound to another message."""

    def make(case: Case) -> bytes:
        receiver = struct.pack("<I", case.request.remote_index)
        message = bound_to(case) if bound_to is not None else case.initiation
        nonce = case.simulation.random_bytes(24)
        cipher = ChaCha20_Poly1305.new(key=key or case.simulation.keys.cookie, nonce=nonce)
        cipher.update(message[-32:-16])
        sealed = b"".join(cipher.encrypt_and_digest(bytes(range(16))))
        return b"\x52\1\0\0" + receiver + nonce + sealed

    return make


#: A 0x52, right in every way.
cookie = crafted_cookie()


def _cookie_of_an_older_try(case: Case) -> bytes:
    message = cookie(case)
    case.login_again()
    return message


def cookies() -> Iterator[Row]:
    """0x52 to a client that waits for an answer."""
    yield from length_rows(cookie, 64)
    for place, value in ((1, 0), (1, 2), (1, 255), (2, 1), (3, 128)):
        yield Row(f"byte {place} is {value}", spoilt(cookie, place, value), "handshake_version")
    for place in (4, 7):
        yield Row(f"receiver, byte {place}", spoilt(cookie, place), "response_unexpected")
    for name, place in {"nonce": 8, "nonce's end": 31, "cookie": 32, "its tag": 63}.items():
        yield Row(name, spoilt(cookie, place), "cookie_invalid")
    yield Row("under another key", crafted_cookie(key=bytes(32)), "cookie_invalid")
    other = crafted_cookie(bound_to=captured(0x50))
    yield Row("to another message", other, "cookie_invalid")
    yield Row("to an older try", _cookie_of_an_older_try, "response_unexpected")
    nobody = whole(b"\x52\1\0\0" + bytes(60))
    yield Row("that nobody waits for", nobody, "response_unexpected")
