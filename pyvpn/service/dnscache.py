"""Answers of other name servers, kept for as long as they allow."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from twisted.names import dns

MOST_ANSWERS = 2000
"""How many are kept; with :data:`MOST_BYTES` they take up to 8 MiB."""

MOST_BYTES = 4096
"""Bytes of an answer that is kept."""

LONGEST = 3600
"""Seconds for which one is kept, whatever it says."""

_FIELDS = struct.Struct("!HHIH")  # type, class, TTL, bytes of data
_TTL_AT = 4
_TTL = struct.Struct("!I")


class _Kept(NamedTuple):
    answer: bytes
    places: list[int]
    since: float
    until: float


class AnswerCache:
    """Whole answers by whole queries, both without the identifier (their first two bytes).

    So an answer is only given to who asked with the same letters, flags and EDNS as before, and may
    hold types of records that nobody here knows.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[bytes, _Kept] = {}

    def find(self, query: bytes) -> bytes | None:
        """The answer with its TTLs as they have become since, if it may still be given."""
        kept = self._kept.get(query)
        if kept is None:
            return None
        now = self._clock()
        if now >= kept.until:
            del self._kept[query]
            return None
        answer = bytearray(kept.answer)
        for place in kept.places:
            [ttl] = _TTL.unpack_from(answer, place)
            _TTL.pack_into(answer, place, max(0, ttl - int(now - kept.since)))
        return bytes(answer)

    def put(self, query: bytes, answer: bytes, question: int) -> None:
        """Keep an answer, if it is one to keep.

        :param question: bytes of the question section, which stands right after the header.
        """
        truncated, rcode = answer[0] & 2, answer[1] & 0xF
        if truncated or rcode not in (dns.OK, dns.ENAME) or len(answer) > MOST_BYTES:
            return
        try:
            places = ttl_places(answer, question)
        except (IndexError, struct.error):
            return
        # A "no" without SOA says nothing of how long it holds (RFC 2308 5).
        ttls = [_TTL.unpack_from(answer, place)[0] for place in places]
        # With the highest bit set it means zero (RFC 2181 8).
        shortest = min((ttl if ttl < 1 << 31 else 0 for ttl in ttls), default=0)
        if not shortest:
            return
        now = self._clock()
        self._kept.pop(query, None)
        self._kept[query] = _Kept(answer, places, now, now + min(shortest, LONGEST))
        if len(self._kept) > MOST_ANSWERS:
            del self._kept[next(iter(self._kept))]


def ttl_places(answer: bytes, question: int) -> list[int]:
    """Where the TTLs stand in an answer without identifier.

    :raises IndexError, struct.error: it ends before it should.
    """
    counts = struct.unpack_from("!HHH", answer, 4)
    position = 10 + question
    places: list[int] = []
    for _ in range(sum(counts)):
        position = _after_name(answer, position)
        kind, _, _, size = _FIELDS.unpack_from(answer, position)
        if kind != dns.OPT:  # whose field means something else
            places.append(position + _TTL_AT)
        position += _FIELDS.size + size
    if position > len(answer):
        raise IndexError
    return places


def _after_name(answer: bytes, position: int) -> int:
    while answer[position]:
        if answer[position] >= 0xC0:
            return position + 2
        position += 1 + answer[position]
    return position + 1
