"""Received and not handed over yet: senders take turns, and none waits for another's bulk.

Deficit round robin (Shreedhar and Varghese, 1995) over the senders' addresses. The kernel's socket
has one queue for all: behind a client that fills it, another's echo request waits for 3 MB to be
opened, 8 ms; read out first, it waits for a burst or two.
"""

from __future__ import annotations

from collections import deque

from pyvpn.tx.endpoint import UDPEndpoint

#: Bytes that a sender may have handed over before it is the next one's turn: a full send is more.
QUANTUM = 60_000
#: Reads are joined to a burst up to here: a super-packet of 47 datagrams, which came as the 44 that
#: one send takes and 3 more, is one for the core; two super-packets stay two.
MOST_BURST = 72 * 1024
MOST_DATAGRAMS = 128
#: What waits at most, as much as in the kernel. Above it the longest queue loses its newest.
MOST_BYTES = 8 << 20
#: Senders that can wait at the same time; above it they share a queue. (Addresses can be forged.)
MOST_SENDERS = 256


class _Waiting:
    """One sender's reads, oldest first, each with the size of its datagrams."""

    __slots__ = ("octets", "reads")

    def __init__(self) -> None:
        self.reads: deque[tuple[bytes, int, UDPEndpoint]] = deque()
        self.octets = 0


class FairQueue:
    """Reads of many senders.

    :ivar octets: bytes of all that waits.
    """

    def __init__(self) -> None:
        self.octets = 0
        # In the order of their turns.
        self._senders: dict[object, _Waiting] = {}
        self._served = 0

    def __bool__(self) -> bool:
        return bool(self._senders)

    def put(self, data: bytes, size: int, endpoint: UDPEndpoint) -> int:
        """Add one read: datagrams of ``size`` bytes, the last may be shorter.

        :returns: how many datagrams had to go for it.
        """
        key: object = endpoint
        waiting = self._senders.get(key)
        if waiting is None:
            if len(self._senders) >= MOST_SENDERS:
                key = None
            waiting = self._senders.setdefault(key, _Waiting())
        waiting.reads.append((data, size, endpoint))
        waiting.octets += len(data)
        self.octets += len(data)
        return self._shorten() if self.octets > MOST_BYTES else 0

    def _shorten(self) -> int:
        key, longest = max(self._senders.items(), key=lambda item: item[1].octets)
        data, size, _ = longest.reads.pop()
        longest.octets -= len(data)
        self.octets -= len(data)
        if not longest.reads:
            del self._senders[key]
        return -(-len(data) // size)

    def take(self) -> tuple[bytes, int, UDPEndpoint] | None:
        """Remove and return the next burst: what :meth:`put` got, equal sizes joined."""
        senders = self._senders
        if not senders:
            return None
        key, waiting = next(iter(senders.items()))
        reads = waiting.reads
        data, size, endpoint = reads.popleft()
        total = len(data)
        if reads:
            run = [data]
            # A run goes on as long as its last datagram is a full one; a shorter one ends it.
            while reads and not total % size:
                more, each, sender = reads[0]
                if each > size or (each < size and each < len(more)) or sender != endpoint:
                    break
                if total + len(more) > min(MOST_BURST, MOST_DATAGRAMS * size):
                    break
                run.append(more)
                total += len(more)
                reads.popleft()
            if len(run) > 1:
                data = b"".join(run)
        waiting.octets -= total
        self.octets -= total
        self._served += total
        if not reads:
            del senders[key]
            self._served = 0
        elif self._served >= QUANTUM:
            del senders[key]
            senders[key] = waiting
            self._served = 0
        return data, size, endpoint
