"""Control frames: what a client and its hub tell each other inside a session (PROTOCOL 6).

Each frame is a frozen value with ``pack() -> bytes`` (zero-padded to a multiple of 16);
:func:`parse` is the way back. Values that do not fit their field raise :class:`LocalProtocolError`
when they are made or packed: that is a bug on this side. What the peer sent wrong raises
:class:`RemoteProtocolError`, nothing else.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, TypeAlias

from attrs import define, field, frozen

from pyvpn.core.configtlv import CONFIG_INVALID, MAX_PART_BYTES, pack_config, parse_config
from pyvpn.core.configtlv import Config as Config
from pyvpn.core.configtlv import Pushed as Pushed
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

MALFORMED: Final = "control_malformed"
UNKNOWN: Final = "control_unknown"

POLL: Final = 0x01
REPLY: Final = 0x02
PATH_CHALLENGE: Final = 0x03
PATH_RESPONSE: Final = 0x04
CONFIG: Final = 0x05
CONFIG_ACK: Final = 0x06
BYE: Final = 0x07
HELLO: Final = 0x08

MAX_BYE_TEXT: Final = 200
MAX_DEVICE_NAME: Final = 255
MAX_PARTS: Final = 32

_HEADER: Final = struct.Struct("<BBH")
_POLL: Final = struct.Struct("<12sIIH")
_REPLY: Final = struct.Struct("<12s12sII16sH")
_CONFIG: Final = struct.Struct("<IBB")
_CONFIG_ACK: Final = struct.Struct("<IB")
_HELLO: Final = struct.Struct("<4s16sB")


class ByeReason(IntEnum):
    """Why a session ends; the numbers of PROTOCOL 6."""

    STOPPED = 0
    RESTARTING = 1
    DISABLED = 2
    EXPIRED = 3
    QUOTA = 4
    ADDRESS_TAKEN = 5
    TOO_MANY_DEVICES = 6
    POOL_FULL = 7


BYE_STOPPED: Final = ByeReason.STOPPED
BYE_RESTARTING: Final = ByeReason.RESTARTING
BYE_DISABLED: Final = ByeReason.DISABLED
BYE_EXPIRED: Final = ByeReason.EXPIRED
BYE_QUOTA: Final = ByeReason.QUOTA
BYE_ADDRESS_TAKEN: Final = ByeReason.ADDRESS_TAKEN
BYE_TOO_MANY_DEVICES: Final = ByeReason.TOO_MANY_DEVICES
BYE_POOL_FULL: Final = ByeReason.POOL_FULL


_Check: TypeAlias = Callable[[Any, Any, Any], None]


def _uint(bits: int) -> _Check:
    """For a field that holds an unsigned integer of ``bits`` bits."""

    def check(_instance: object, attribute: Any, value: int) -> None:
        if not 0 <= value < 1 << bits:
            raise LocalProtocolError(f"{attribute.name} is {value}, but must fit {bits} bits")

    return check


def _octets(count: int) -> _Check:
    """For a field that holds exactly ``count`` bytes."""

    def check(_instance: object, attribute: Any, value: bytes) -> None:
        if len(value) != count:
            raise LocalProtocolError(f"{attribute.name} has {len(value)} bytes, must have {count}")

    return check


def _text(limit: int) -> _Check:
    """For a field of text: at most ``limit`` bytes of UTF-8 and no control characters."""

    def check(_instance: object, attribute: Any, value: str) -> None:
        if not _is_clean(value):
            raise LocalProtocolError(f"{attribute.name} must not hold control characters")
        if len(value.encode()) > limit:
            raise LocalProtocolError(f"{attribute.name} is longer than {limit} bytes of UTF-8")

    return check


def _is_clean(text: str) -> bool:
    """Whether ``text`` may be shown on a terminal: no control characters, line breaks or
    surrogates.
    """
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def _frame(kind: int, body: bytes, size: int = 0) -> bytes:
    """A whole frame, zero-padded to a multiple of 16 or, where that is more, to ``size`` bytes."""
    frame = _HEADER.pack(kind, 0, len(body)) + body
    return frame.ljust(max(size, len(frame) + -len(frame) % 16), b"\0")


@frozen
class Poll:
    """Client to hub, regularly: here I am, send what waits.

    ``stamp``: TAI64N (12 bytes), strictly rising in a session. ``credit_bytes`` (u32) and
    ``credit_datagrams`` (u16): how much the hub may send for this poll.
    """

    stamp: bytes = field(validator=_octets(12))
    seq: int = field(validator=_uint(32))
    credit_bytes: int = field(validator=_uint(32))
    credit_datagrams: int = field(validator=_uint(16))

    def pack(self) -> bytes:
        return _frame(
            POLL, _POLL.pack(self.stamp, self.seq, self.credit_bytes, self.credit_datagrams)
        )


@frozen
class Reply:
    """Hub to client, for each poll.

    ``echoed``: the poll's stamp. ``stamp``: the hub's own. ``seq``: the poll's. ``queued``: bytes
    that still wait. ``address`` (16 bytes, v4-mapped) and ``port``: where the hub saw the poll
    come from.
    """

    echoed: bytes = field(validator=_octets(12))
    stamp: bytes = field(validator=_octets(12))
    seq: int = field(validator=_uint(32))
    queued: int = field(validator=_uint(32))
    address: bytes = field(validator=_octets(16))
    port: int = field(validator=_uint(16))

    def pack(self) -> bytes:
        return _frame(
            REPLY,
            _REPLY.pack(self.echoed, self.stamp, self.seq, self.queued, self.address, self.port),
        )


@frozen
class PathChallenge:
    """Either way: 16 random bytes that only the owner of an address can send back."""

    data: bytes = field(validator=_octets(16))

    def pack(self, size: int = 0) -> bytes:
        """``size``: pad the frame to so many bytes; that makes it a probe of the MTU."""
        return _frame(PATH_CHALLENGE, self.data, size)


@frozen
class PathResponse:
    """The answer to a :class:`PathChallenge`: the same 16 bytes, never padded to the challenge's
    size.
    """

    data: bytes = field(validator=_octets(16))

    def pack(self) -> bytes:
        return _frame(PATH_RESPONSE, self.data)


@frozen
class ConfigPart:
    """Hub to client: one part of a configuration. ``tlvs`` is at most ``MAX_PART_BYTES`` long."""

    revision: int = field(validator=_uint(32))
    part: int = field(validator=_uint(8))
    parts: int = field(validator=_uint(8))
    tlvs: bytes = field()

    def __attrs_post_init__(self) -> None:
        if not self.part < self.parts <= MAX_PARTS:
            raise LocalProtocolError(f"part {self.part} of {self.parts} (at most {MAX_PARTS})")
        if len(self.tlvs) > MAX_PART_BYTES:
            raise LocalProtocolError(
                f"a part of {len(self.tlvs)} bytes, more than {MAX_PART_BYTES}"
            )

    def pack(self) -> bytes:
        return _frame(CONFIG, _CONFIG.pack(self.revision, self.part, self.parts) + self.tlvs)


@frozen
class ConfigAck:
    """Client to hub: what became of a revision; ``status`` 0 is applied, all else is not."""

    revision: int = field(validator=_uint(32))
    status: int = field(validator=_uint(8))

    def pack(self) -> bytes:
        return _frame(CONFIG_ACK, _CONFIG_ACK.pack(self.revision, self.status))


@frozen
class Bye:
    """Either way: this session ends. ``reason`` is a :class:`ByeReason` or a later number."""

    reason: int = field(validator=_uint(8))
    text: str = field(validator=_text(MAX_BYE_TEXT))

    def pack(self) -> bytes:
        return _frame(BYE, bytes((self.reason,)) + self.text.encode())


@frozen
class Hello:
    """Client to hub, once per login: the addresses it would like (None: any) and the device's
    name.
    """

    wanted4: IPv4Address | None
    wanted6: IPv6Address | None
    name: str = field(validator=_text(MAX_DEVICE_NAME))

    def pack(self) -> bytes:
        name = self.name.encode()
        wanted4 = self.wanted4.packed if self.wanted4 is not None else bytes(4)
        wanted6 = self.wanted6.packed if self.wanted6 is not None else bytes(16)
        return _frame(HELLO, _HELLO.pack(wanted4, wanted6, len(name)) + name)


Frame: TypeAlias = (
    Poll | Reply | PathChallenge | PathResponse | ConfigPart | ConfigAck | Bye | Hello
)


def parse(plaintext: bytes) -> Frame:
    """The control frame that a type 4 held, its padding included.

    :raises RemoteProtocolError: ``control_unknown`` for a kind that is not in PROTOCOL 6,
        ``control_malformed`` for anything else that is wrong: header, flags, length, padding that
        is not zero, a value out of its range.
    """
    if len(plaintext) < _HEADER.size:
        raise RemoteProtocolError(MALFORMED)
    kind, flags, size = _HEADER.unpack_from(plaintext)
    parser = _PARSERS.get(kind)
    if parser is None:
        raise RemoteProtocolError(UNKNOWN)
    end = _HEADER.size + size
    if flags or end > len(plaintext) or plaintext.count(0, end) != len(plaintext) - end:
        raise RemoteProtocolError(MALFORMED)
    try:
        return parser(plaintext[_HEADER.size : end])
    except (struct.error, UnicodeDecodeError, LocalProtocolError):
        # The constructors guard both directions; here it is the peer who broke the rule.
        raise RemoteProtocolError(MALFORMED) from None


def _parse_poll(body: bytes) -> Frame:
    return Poll(*_POLL.unpack(body))


def _parse_reply(body: bytes) -> Frame:
    return Reply(*_REPLY.unpack(body))


def _parse_config(body: bytes) -> Frame:
    revision, part, parts = _CONFIG.unpack_from(body)
    return ConfigPart(revision, part, parts, body[_CONFIG.size :])


def _parse_config_ack(body: bytes) -> Frame:
    return ConfigAck(*_CONFIG_ACK.unpack(body))


def _parse_bye(body: bytes) -> Frame:
    if not body:
        raise RemoteProtocolError(MALFORMED)
    return Bye(body[0], body[1:].decode())


def _parse_hello(body: bytes) -> Frame:
    wanted4, wanted6, size = _HELLO.unpack_from(body)
    name = body[_HELLO.size :]
    if len(name) != size:
        raise RemoteProtocolError(MALFORMED)
    return Hello(
        IPv4Address(wanted4) if any(wanted4) else None,
        IPv6Address(wanted6) if any(wanted6) else None,
        name.decode(),
    )


_PARSERS: Final[dict[int, Callable[[bytes], Frame]]] = {
    POLL: _parse_poll,
    REPLY: _parse_reply,
    PATH_CHALLENGE: PathChallenge,
    PATH_RESPONSE: PathResponse,
    CONFIG: _parse_config,
    CONFIG_ACK: _parse_config_ack,
    BYE: _parse_bye,
    HELLO: _parse_hello,
}


def config_parts(revision: int, config: Config) -> list[ConfigPart]:
    """``config`` as the parts to send, at least one.

    :raises LocalProtocolError: it does not fit, or a client would refuse it.
    """
    # Within the bounds of pack_config (1,024 routes, 16 of the rest) this is 24 parts at most.
    chunks = pack_config(config)
    return [ConfigPart(revision, part, len(chunks), tlvs) for part, tlvs in enumerate(chunks)]


@define
class ConfigAssembler:
    """Puts the parts of a session's configurations together; one for each session.

    ``applied`` is the revision that :meth:`add` last returned, -1 before the first: a part of that
    revision is the hub's repetition, to be acknowledged again.
    """

    applied: int = -1
    _revision: int = -1
    _chunks: list[bytes | None] = field(factory=list)

    def add(self, part: ConfigPart) -> Config | None:
        """The whole configuration when ``part`` was the last one missing, else None.

        The first part of a newer revision drops an unfinished older one; older and repeated parts
        change nothing.

        :raises RemoteProtocolError: ``config_invalid``: the parts contradict each other or what
            they hold breaks a rule of PROTOCOL 6. The revision's parts are forgotten.
        """
        if part.revision <= self.applied or part.revision < self._revision:
            return None
        if part.revision > self._revision or not self._chunks:
            self._revision = part.revision
            self._chunks = [None] * part.parts
        chunks = self._chunks
        if len(chunks) != part.parts or chunks[part.part] not in (None, part.tlvs):
            self._chunks = []
            raise RemoteProtocolError(CONFIG_INVALID)
        chunks[part.part] = part.tlvs
        whole = [chunk for chunk in chunks if chunk is not None]
        if len(whole) < len(chunks):
            return None
        self._chunks = []
        config = parse_config(whole)
        self.applied = part.revision
        return config
