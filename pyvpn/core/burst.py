"""What the core hands to the network: datagrams in runs, never one by one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple, Protocol, TypeAlias

#: What one UDP_SEGMENT send takes: datagrams, and their bytes together.
BURST_DATAGRAMS: Final = 64
BURST_BYTES: Final = 65_000

Buffer: TypeAlias = bytes | bytearray | memoryview


class Endpoint(Hashable, Protocol):
    """Where datagrams come from and go to: opaque but for what REPLY and cookies need."""

    def wire_address(self) -> bytes:
        """Return 18 bytes: the IPv6 or v4-mapped address and the port, little-endian."""


class Burst(NamedTuple):
    """A run of datagrams for one endpoint, in the shape that one UDP_SEGMENT send takes.

    ``buffers`` is flat, ``[head, body, head, body, …]``: exactly two buffers a datagram, the body
    possibly empty. Every datagram is ``size`` bytes long, only the last may be shorter.
    ``fragment``: they may be longer than the path takes, so they leave without DF.
    """

    endpoint: Endpoint
    buffers: list[Buffer]
    size: int
    fragment: bool = False
