"""How to spoil a message of the wire, and what a row of the tables of such messages is.

A row says what is wrong, makes the message, and names the counter: ``badhandshakes.py`` and
``badtransport.py`` have them, ``test_bad_messages.py`` walks them. Layouts and constants are
retyped from docs/protocol.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2s
from typing import NamedTuple

from pyvpn.core.login import LoginRequest
from pyvpn.core.peer import Peer
from pyvpn.core.transport import Session
from pyvpn.testing.simulation import Node
from tests.core.scene import Scene


class Case(Scene):
    """A connected hub and client, and which of the two a row is for."""

    def __init__(self, *, for_hub: bool) -> None:
        super().__init__()
        self.for_hub = for_hub
        self._request: LoginRequest | None = None
        self.initiation = b""

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

    def login_again(self) -> None:
        """Have the client begin a rekey of which the hub never hears."""
        self.client.core._attempt = None
        self.client.core._begin(self.now, rekey=True)
        (burst,) = self.client.core.datagrams_to_send(self.now)
        self.initiation = bytes(burst.buffers[0])
        simulation = self.simulation
        self._request = LoginRequest(
            simulation.keys, simulation.login_key, self.initiation, simulation.random_bytes
        )
        self.client.drain()

    @property
    def request(self) -> LoginRequest:
        """What the client waits for an answer to, opened."""
        if self._request is None:
            self.login_again()
        assert self._request is not None
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
