"""A hub with one connected client, and the means to send each of them anything at all."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyvpn.core
from pyvpn.core import control, tai64n
from pyvpn.core.login import LoginAttempt, LoginFlags
from pyvpn.core.peer import (
    Peer,
    ServerPeer,
)
from pyvpn.core.transport import Session
from pyvpn.testing.simulation import Client, Datagram, Endpoint, Simulation, datagrams_of

USER, PASSWORD = "alice", "correct horse battery"


class Scene:
    """Alice's only device is connected and has its addresses, unless ``connect`` is False."""

    def __init__(self, *, connect: bool = True, aes: bool = False, **options: Any) -> None:
        self.simulation = Simulation(aes=aes)
        self.simulation.add_user(USER, PASSWORD)
        self.hub = self.simulation.hub
        self.client: Client = self.simulation.add_client(USER, PASSWORD, **options)
        if connect:
            self.client.start()
            self.simulation.advance(0.5)
            self.mark()

    @property
    def now(self) -> float:
        return self.simulation.now

    def mark(self) -> None:
        """From here on :meth:`sent` counts."""
        self._mark = len(self.simulation.network.captured)

    def sent(self) -> list[Datagram]:
        """What anybody has sent since the mark."""
        return self.simulation.network.captured[self._mark :]

    # -- the two ends ----------------------------------------------------------------------------

    @property
    def peer(self) -> ServerPeer:
        """What the hub has of the client."""
        peer = self.peer_or_none()
        assert peer is not None
        return peer

    def peer_or_none(self) -> ServerPeer | None:
        """The same, None while it has nothing."""
        return self.hub.core.peer(USER, self.client.device)

    def to_hub(self, payload: bytes, source: Endpoint | None = None) -> None:
        """Bring a datagram to the hub at once."""
        self.hub.hear(payload, len(payload), source or self.client.endpoint)

    def to_client(self, payload: bytes, source: Endpoint | None = None) -> None:
        """Bring a datagram to the client at once."""
        self.client.hear(payload, len(payload), source or self.hub.endpoint)

    @staticmethod
    def sealed(peer: Peer, plaintext: bytes, session: Session | None = None) -> bytes:
        """What the end that has ``peer`` would send it."""
        session = session or peer.current
        assert session is not None
        head, body = session.seal_burst([plaintext])
        return bytes(head) + bytes(body)

    def sealed_to_hub(self, plaintext: bytes) -> None:
        """Bring an authentic datagram with any plaintext to the hub."""
        self.to_hub(self.sealed(self.client.core.hub, plaintext))

    def sealed_to_client(self, plaintext: bytes) -> None:
        """Bring an authentic datagram with any plaintext to the client."""
        self.to_client(self.sealed(self.peer, plaintext))

    def poll(self, octets: int = 0, datagrams: int = 0, *, late: float = 0.0) -> bytes:
        """The client's next POLL, with that credit; ``late``: made so many seconds ago."""
        core = self.client.core
        core._poll_seq += 1
        # Two at one instant need two stamps.
        stamp = self.client.wall_clock() - round(late * 1e9) + core._poll_seq
        return control.Poll(tai64n.pack(stamp), core._poll_seq, octets, datagrams).pack()

    # -- logins ------------------------------------------------------------------------------------

    def attempt(
        self, *, password: str = PASSWORD, user: str = USER, after: float = 1.0, **changes: Any
    ) -> LoginAttempt:
        """A login of the client's device, its stamp ``after`` seconds from now."""
        simulation = self.simulation
        stamp = tai64n.whiten(simulation.wall_clock() + round(after * 1e9))
        arguments: dict[str, Any] = {
            "index": 77,
            "stamp": tai64n.pack(stamp),
            "device": self.client.device,
            "user": user,
            "flags": LoginFlags(0),
            "random_bytes": simulation.random_bytes,
        }
        return LoginAttempt(
            simulation.keys, simulation.key_of(password, USER), **(arguments | changes)
        )

    def response_to(self, message: bytes) -> bytes:
        """What the hub answers to a 0x50."""
        hub = self.hub
        core = hub.core
        core.datagrams_received(message, len(message), self.client.endpoint, self.now)
        event = core.next_event()
        core.login_decided(event.id, True, self.now)  # type: ignore[union-attr]
        (burst,) = core.datagrams_to_send(self.now)
        return datagrams_of(burst)[0]


Provocation = Callable[[Scene], None]


def reasons_in(sources: dict[str, str]) -> dict[str, list[str]]:
    """Each reason that the code can count, and the places (``module:line``) where it stands.

    A reason is the argument of ``RemoteProtocolError`` or the index of ``counters``; a name stands
    for the module's constant.
    """
    trees = {name: ast.parse(source) for name, source in sources.items()}
    own = {name: dict(_constants(tree)) for name, tree in trees.items()}
    imported = {name: value for names in own.values() for name, value in names.items()}
    found: dict[str, list[str]] = {}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            argument: ast.expr | None = None
            if isinstance(node, ast.Call) and _name(node.func) == "RemoteProtocolError":
                argument = node.args[0]
            elif isinstance(node, ast.Subscript) and _name(node.value) == "counters":
                argument = node.slice
            if isinstance(argument, ast.Constant):
                if not isinstance(argument.value, str):
                    continue  # another thing of that name
                found.setdefault(argument.value, []).append(f"{name}:{node.lineno}")
            elif isinstance(argument, ast.Name):
                reason = own[name].get(argument.id) or imported[argument.id]
                found.setdefault(reason, []).append(f"{name}:{node.lineno}")
            elif argument is not None and _name(argument) != "reason":
                found.setdefault(ast.unparse(argument), []).append(f"{name}:{node.lineno}")
    return found


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                yield target.id, node.value.value


def _name(node: ast.expr) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def core_sources() -> dict[str, str]:
    """The source of each module of the core."""
    (root,) = pyvpn.core.__path__
    return {path.stem: path.read_text() for path in sorted(Path(root).glob("*.py"))}
