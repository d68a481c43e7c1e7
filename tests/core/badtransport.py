"""Transport data that a hub or a client must not take: rows for ``test_bad_messages.py``.

The datagram itself, the packets and the control frames inside, and what a CONFIG carries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

from pyvpn.core.peer import Peer
from pyvpn.testing.simulation import NETWORK4, NETWORK6, ip_packet
from tests.core.badrows import Case, Make, Row, cut, longer, spoilt, whole
from tests.core.scene import PASSWORD, USER
from tests.core.test_control import BAD_BODIES, BAD_HEADERS, BAD_ITEMS, LAYOUTS, frame, tlv

HUB4, HUB6 = NETWORK4[1], NETWORK6[1]
WINDOW = 8192
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
#: Control frames by who may hear them; PATH frames go both ways.
TO_HUB, TO_CLIENTS = (1, 6, 8), (2, 5)


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


def segment_frame(make: Make, index: int = 0, size: int = 0) -> Make:
    """A segment frame with what ``make`` makes behind its first four bytes."""
    return lambda case: struct.pack("<BBH", 0x11, index, size) + make(case)


def _not_agreed(make: Make) -> Make:
    """The same to a node whose sessions have not agreed on segment frames."""

    def spoil(case: Case) -> bytes:
        for _, session in case.node.core._sessions.values():
            session.segments = False
        return make(case)

    return spoil


def packets() -> Iterator[Row]:
    """Plaintexts that are no IP packet."""
    four, six = packet(4), packet(6)
    for nibble in (2, 3, 5, *range(7, 16)):
        row = set_bytes(four, 0, nibble << 4 | 5)
        yield Row(f"nibble {nibble}", inside(row), "inner_unknown")
    for version in (4, 6):
        row = _not_agreed(inside(segment_frame(packet(version))))
        yield Row(f"a segment frame of IPv{version}, not agreed", row, "inner_unknown")
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


def _on_the_old_session(make: Make) -> Make:
    def spoil(case: Case) -> bytes:
        old = case.session
        case.simulation.advance(126)  # the poll at 125 s brings a rekey
        assert old is case.end.previous
        return case.sealed(case.end, make(case), old)

    return spoil


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
    yield Row(
        "on the old session", _on_the_old_session(whole(config(ADDRESS))), "config_old_session"
    )


# -- POLL and PATH_RESPONSE ------------------------------------------------------------------------


def poll(sent: float, *, seq: int = 9) -> Make:
    """A POLL whose stamp says that it was sent so many seconds from now."""

    def make(case: Case) -> bytes:
        nanoseconds = case.simulation.wall_clock() + round(sent * 1e9)
        seconds, rest = divmod(nanoseconds, 10**9)
        stamp = struct.pack(">QI", 2**62 + 10 + seconds, rest)
        return frame(1, stamp + struct.pack("<IIH", seq, 0, 0))

    return make


def _after_a_good_poll(sent: float, *, asleep: float = 0.0) -> Make:
    """A poll after one that was sent now, and maybe a long sleep."""

    def make(case: Case) -> bytes:
        case.give(case.sealed(case.end, poll(0.0)(case)))
        case.client.asleep = True
        case.simulation.advance(asleep)
        case.client.asleep = False
        return case.sealed(case.end, poll(sent, seq=10)(case))

    return make


def polls() -> Iterator[Row]:
    """Polls that come at the wrong time, which only the owner of the session can send."""
    for sent in (0.0, -1e-9, -0.1, -3600.0):
        yield Row(f"{sent} s from the last", _after_a_good_poll(sent), "poll_out_of_order")
    zero = frame(1, bytes(22))
    yield Row("a stamp of zeros", _plain(zero), "poll_out_of_order")
    late = _after_a_good_poll(-30.9, asleep=31.0)
    yield Row("held back for 30.9 s", late, "poll_held_back")
    old = _on_the_old_session(poll(0.0))
    yield Row("on the old session", old, "poll_old_session")


def responses() -> Iterator[Row]:
    """Answers to challenges that were never sent."""
    for data in (bytes(16), b"\xff" * 16, bytes(range(16))):
        row = _plain(frame(4, data))
        yield Row(f"PATH_RESPONSE {data[:2].hex()}…", row, "path_response_unexpected")
