"""TAI64N time stamps: 12 bytes that compare as the times they name.

Big-endian u64 of 2^62 + 10 + Unix seconds, then big-endian u32 nanoseconds (docs/protocol.rst,
"Conventions").
"""

from __future__ import annotations

import struct

SIZE = 12
_EPOCH = 2**62 + 10
_LAYOUT = struct.Struct(">QI")
_SECOND = 1_000_000_000

#: Stamps on the wire have their low 24 bits of nanoseconds cleared: finer time would tell strangers
#: with the secret more about the sender's clock than replay protection needs.
WHITENING = 1 << 24


def pack(nanoseconds: int) -> bytes:
    """Return the 12-byte stamp of a Unix time in nanoseconds."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    return _LAYOUT.pack(_EPOCH + seconds, rest)


def unpack(stamp: bytes) -> int:
    """Return the Unix time in nanoseconds that a 12-byte stamp names."""
    seconds, rest = _LAYOUT.unpack(stamp)
    return (int(seconds) - _EPOCH) * _SECOND + int(rest)


def whiten(nanoseconds: int) -> int:
    """Return the time with its nanoseconds-within-the-second rounded down to 2^24."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    return seconds * _SECOND + rest // WHITENING * WHITENING
