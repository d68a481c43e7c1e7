"""Transport data, type 4: one session's keys, counters and replay window.

Specified in docs/protocol.rst, "Transport".

A datagram is ``0x04 0 0 0 ‖ receiver u32 ‖ counter u64 ‖ sealed``, little-endian; the nonce is four
zero bytes and the counter, the associated data empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from pyvpn.core.burst import BURST_BYTES, BURST_DATAGRAMS, Buffer
from pyvpn.core.replay import ReplayWindow

TYPE = 4
HEADER_SIZE = 16
TAG_SIZE = 16
OVERHEAD = HEADER_SIZE + TAG_SIZE

# Limits of one key (docs/protocol.rst, "Timers"): AES-GCM's are below its confidentiality bound.
REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES = 2**60, 2**64 - 2**13 - 1
AES_REKEY_AFTER_MESSAGES, AES_REJECT_AFTER_MESSAGES = 2**27, 2**30
REJECT_AFTER_TIME = 180.0

_HEADER = struct.Struct("<IIQ")
_NONCE = struct.Struct("<4xQ")


def datagrams_a_send(plaintext: int) -> int:
    """Return how many datagrams with so many bytes of plaintext one send takes."""
    return max(min(BURST_DATAGRAMS, BURST_BYTES // (plaintext + OVERHEAD)), 1)


class Session:
    """The symmetric keys of one completed handshake.

    :ivar aes: the cipher is AES-256-GCM, else ChaCha20-Poly1305.
    :ivar local_index: u32 that the other side puts into its datagrams.
    :ivar segments: whether the other side takes segment frames.
    :ivar created: seconds of ``now`` at which the keys were derived; they serve until ``expires``.
    :ivar forged: datagrams whose tag was wrong.
    :ivar replayed: authentic datagrams that had been received before, or too late to tell.
    """

    __slots__ = (
        "_decrypt",
        "_encrypt",
        "aes",
        "created",
        "expires",
        "forged",
        "inner_mtu",
        "local_index",
        "reject_after_messages",
        "rekey_after_messages",
        "remote_index",
        "replayed",
        "segments",
        "send_counter",
        "window",
    )

    def __init__(
        self,
        *,
        send_key: bytes,
        receive_key: bytes,
        aes: bool,
        local_index: int,
        remote_index: int,
        inner_mtu: int,
        created: float,
        segments: bool = False,
    ) -> None:
        cipher = AESGCM if aes else ChaCha20Poly1305
        self._encrypt = cipher(send_key).encrypt
        self._decrypt = cipher(receive_key).decrypt
        self.aes = aes
        self.local_index = local_index
        self.remote_index = remote_index
        self.inner_mtu = inner_mtu
        self.segments = segments
        self.created = created
        self.expires = created + REJECT_AFTER_TIME
        self.rekey_after_messages = AES_REKEY_AFTER_MESSAGES if aes else REKEY_AFTER_MESSAGES
        self.reject_after_messages = AES_REJECT_AFTER_MESSAGES if aes else REJECT_AFTER_MESSAGES
        self.send_counter = 0
        self.window = ReplayWindow()
        self.forged = 0
        self.replayed = 0

    def expired(self, now: float) -> bool:
        """Tell whether the session may be used no more, to send or to receive."""
        return now >= self.expires or self.send_counter >= self.reject_after_messages

    def worn(self) -> bool:
        """Tell whether either direction has sent so many datagrams that a rekey is due."""
        limit = self.rekey_after_messages
        return self.send_counter >= limit or self.window.highest >= limit

    def seal_burst(self, plaintexts: Sequence[bytes]) -> list[Buffer]:
        """Return ``[header, sealed, header, sealed, …]``, one pair a plaintext, counters rising.

        Nanoseconds a plaintext of 1,440 bytes (Python 3.11, AES): 690, of which the AEAD 550; with
        a loop instead of ``map`` 760.
        """
        first, count = self.send_counter, len(plaintexts)
        self.send_counter = first + count
        if count == 1:
            header = _HEADER.pack(TYPE, self.remote_index, first)
            return [header, self._encrypt(_NONCE.pack(first), plaintexts[0], None)]
        counters = range(first, first + count)
        buffers: list[Buffer] = [b""] * (2 * count)
        buffers[::2] = map(_HEADER.pack, repeat(TYPE), repeat(self.remote_index), counters)
        buffers[1::2] = map(self._encrypt, map(_NONCE.pack, counters), plaintexts, repeat(None))
        return buffers

    def seal_rows(self, plaintexts: Sequence[bytes]) -> Iterator[tuple[list[Buffer], int]]:
        """Seal plaintexts in order, as few rows as can be: buffers and the size of a datagram.

        A row is what one send takes (:class:`~pyvpn.core.burst.Burst`). Nanoseconds a plaintext in
        rows of 44: 60.
        """
        sizes = list(map(len, plaintexts))
        start, count = 0, len(sizes)
        while start < count:
            size = sizes[start]
            stop = min(start + datagrams_a_send(size), count)
            if sizes[start:stop].count(size) != stop - start:
                stop = next(place for place in range(start, stop) if sizes[place] != size)
                if sizes[stop] < size:  # a shorter one can be the last
                    stop += 1
            yield self.seal_burst(plaintexts[start:stop]), size + OVERHEAD
            start = stop

    def open_burst(self, counters: Sequence[int], sealed: Sequence[bytes]) -> list[bytes]:
        """Return the plaintexts of datagrams, in order, given as counter and sealed part each.

        No sealed part is shorter than a tag. Forgeries and replays are counted and left out; the
        window never moves for a forgery.
        """
        first, count = counters[0], len(counters)
        if count == 1:
            return self._open_each(counters, sealed)
        # All at once, as nearly always: the counters are consecutive and every tag is right.
        # Nanoseconds a datagram of 1,472 bytes: 660, of which the AEAD 550; one by one 700.
        if first + count > self.reject_after_messages or counters != tuple(
            range(first, first + count)
        ):
            return self._open_each(counters, sealed)
        try:
            plaintexts = list(map(self._decrypt, map(_NONCE.pack, counters), sealed, repeat(None)))
        except InvalidTag:
            return self._open_each(counters, sealed)
        accepted: list[bytes] = []
        self._accept(plaintexts, first, accepted)
        return accepted

    def _open_each(self, counters: Sequence[int], sealed: Sequence[bytes]) -> list[bytes]:
        """Open datagrams one by one, and leave out those that are forged or replayed."""
        accepted: list[bytes] = []
        run: list[bytes] = []
        first = expected = -1
        for counter, body in zip(counters, sealed, strict=True):
            if counter >= self.reject_after_messages:
                self.forged += 1
                continue
            try:
                plaintext = self._decrypt(_NONCE.pack(counter), body, None)
            except InvalidTag:
                self.forged += 1
                continue
            if counter != expected:
                if run:
                    self._accept(run, first, accepted)
                    run = []
                first = counter
            run.append(plaintext)
            expected = counter + 1
        if run:
            self._accept(run, first, accepted)
        return accepted

    def _accept(self, run: list[bytes], first: int, accepted: list[bytes]) -> None:
        """Add those plaintexts of a run of consecutive counters that are not replays."""
        window = self.window
        if window.accept_run(first, len(run)):
            accepted += run
            return
        for counter, plaintext in enumerate(run, first):
            if window.accept(counter):
                accepted.append(plaintext)
            else:
                self.replayed += 1
