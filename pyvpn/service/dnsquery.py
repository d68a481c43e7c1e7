"""What stands in a DNS query, read with suspicion, and the replies that need nothing else."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from attrs import frozen
from twisted.names import dns

MAX_QUERY = 512
"""Bytes of a query. A question takes 300 at most, options and padding the rest (RFC 8467 4.1). Much
longer ones cost twisted.names seconds to read: each byte can begin names that point to others."""

PLAIN_SIZE = 512
"""Bytes of a UDP answer to who does not say more (RFC 1035 4.2.1)."""

EDNS_SIZE = 1232
"""Bytes of a UDP answer at most: more may come in fragments, which get lost. What the makers of
name servers agreed on in 2020."""

TCP_SIZE = 0xFFFF

_HEADER = struct.Struct("!HHHHHH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_AD_CD = 0x0030
_EDNS_DO = 0x8000
_NAME_SIZE = 255  # RFC 1035 2.3.4, as it stands on the wire
_LABEL_SIZE = 63


class Malformed(Exception):
    """Not a query that anybody should answer."""


class Unknown(Exception):
    """A query of a kind that we do not do, with the reply that says so.

    :ivar reply: the datagram.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__()
        self.reply = reply


class EDNS(NamedTuple):
    """What an OPT record says (RFC 6891 6.1).

    :ivar size: bytes of a UDP answer that get through.
    :ivar flags: DO and those to come.
    """

    size: int
    version: int
    flags: int


class Records(NamedTuple):
    """What an answer consists of besides what it repeats of the question."""

    rcode: int
    answers: Sequence[dns.RRHeader] = ()
    authority: Sequence[dns.RRHeader] = ()


@frozen
class Query:
    """One question.

    :ivar name: without the dot at the end, in the letters of the question.
    :ivar question: the question section as it stood on the wire.
    :ivar recursion: asks to look elsewhere for the answer.
    """

    id: int
    name: bytes
    type: int
    cls: int
    question: bytes
    recursion: bool
    flags: int
    edns: EDNS | None

    @property
    def zone_name(self) -> bytes:
        """The name as one looks it up: case makes no difference (RFC 4343)."""
        return self.name.lower()

    @property
    def udp_size(self) -> int:
        """Bytes of the longest UDP answer to this query."""
        return PLAIN_SIZE if self.edns is None else min(max(self.edns.size, PLAIN_SIZE), EDNS_SIZE)

    def to_forward(self) -> bytes:
        """The query as we ask it of another server, without the identifier (the first two bytes).

        OPT is between neighbours (RFC 6891 6.1.1): size and options are ours, that is none. With no
        OPT there none comes back, so the answer fits whoever asked.
        """
        flags = _RD | self.flags & _AD_CD
        header = _HEADER.pack(0, flags, 1, 0, 0, 0 if self.edns is None else 1)[2:]
        return header + self.question + self._opt(self.udp_size)

    def reply(self, records: Records, authoritative: bool, recursive: bool, size: int) -> bytes:
        """The reply: cut to nothing but the question, with TC set, if longer than ``size`` bytes.

        :param recursive: say that we do look elsewhere.
        """
        message = dns.Message(
            self.id,
            answer=1,
            recDes=self.recursion,
            recAv=recursive,
            auth=authoritative,
            rCode=records.rcode,
            checkingDisabled=bool(self.flags & 0x10),
            maxSize=0,
        )
        message.queries = [dns.Query(self.name, self.type, self.cls)]
        message.answers = list(records.answers)
        message.authority = list(records.authority)
        opt = self._opt(EDNS_SIZE, records.rcode >> 4)
        whole = bytearray(message.toStr() + opt)
        if opt:
            whole[11] = 1  # ARCOUNT
        return bytes(whole) if len(whole) <= size else self.truncated(whole)

    def truncated(self, whole: bytes | bytearray) -> bytes:
        """A reply without its records: ask again, by TCP.

        twisted.names cuts a record in two, which no reader can tell from a broken message.
        """
        flags = _HEADER.unpack_from(whole)[1] | _TC
        opt = self._opt(EDNS_SIZE)
        return _HEADER.pack(self.id, flags, 1, 0, 0, 1 if opt else 0) + self.question + opt

    def _opt(self, size: int, extended_rcode: int = 0) -> bytes:
        if self.edns is None:
            return b""
        flags = extended_rcode << 24 | self.edns.flags & _EDNS_DO
        return struct.pack("!BHHIH", 0, dns.OPT, size, flags, 0)


def read_query(data: bytes) -> Query:
    """Read a query.

    :raises Malformed: it is none, or a reply: who answers replies keeps two servers busy for ever.
    :raises Unknown: an operation other than QUERY.
    """
    if len(data) < _HEADER.size or len(data) > MAX_QUERY:
        raise Malformed
    identifier, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & _QR:
        raise Malformed
    if flags & _OPCODE:
        mirrored = _QR | flags & (_OPCODE | _RD) | dns.ENOTIMP
        raise Unknown(_HEADER.pack(identifier, mirrored, 0, 0, 0, 0))
    # OPT and a signature are all that may follow.
    if questions != 1 or answers or authority or additional > 2:
        raise Malformed
    message = dns.Message()
    try:
        message.fromStr(data)
        question, edns = _question(message, data), _edns(message, additional)
    except Malformed:
        raise
    except Exception as error:
        # Its decoders raise whatever the bytes lead to: EOFError, ValueError, struct.error, more.
        raise Malformed from error
    [asked] = message.queries
    recursion = bool(flags & _RD)
    name = asked.name.name
    return Query(identifier, name, asked.type, asked.cls, question, recursion, flags, edns)


def _question(message: dns.Message, data: bytes) -> bytes:
    """The question section, if it is one that twisted.names writes as it stood.

    It reads dots inside of labels, and labels of more bytes than one may have, as if they were
    right.
    """
    if len(message.queries) != 1:
        raise Malformed
    [asked] = message.queries
    name = asked.name.name
    wire = b"".join(bytes((len(part),)) + part for part in name.split(b".")) if name else b""
    question = wire + b"\0" + struct.pack("!HH", asked.type, asked.cls)
    if not data.startswith(question, _HEADER.size) or len(wire) >= _NAME_SIZE:
        raise Malformed
    if any(len(part) > _LABEL_SIZE for part in name.split(b".")):
        raise Malformed
    return question


def _edns(message: dns.Message, additional: int) -> EDNS | None:
    # What it cannot read to the end it leaves out without a word.
    if len(message.additional) != additional:
        raise Malformed
    options = [record for record in message.additional if record.type == dns.OPT]
    if not options:
        return None
    if len(options) > 1 or options[0].name.name:
        raise Malformed  # RFC 6891 6.1.1
    [opt] = options
    return EDNS(opt.cls, opt.ttl >> 16 & 0xFF, opt.ttl & 0xFFFF)
