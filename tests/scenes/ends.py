"""The two ends of a tunnel: a program on a host, with the .conf that wg-quick reads.

======================  ===================================================================
``wireguard-go``        Debian's, brought up by wg-quick
``newest``              another wireguard-go, which ``WIREGUARD_GO`` names, likewise
``pyvpn-wg``            ours as wg-quick's userspace implementation
``client``              ``twistd pyvpn-client --wireguard FILE.conf``
``hub``                 ``twistd pyvpn-server`` with ``pyvpn peer add``
======================  ===================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from tests.netns.lab import TUN, Process
from tests.netns.namespaces import pids
from tests.netns.processes import wait_until
from tests.scenes.hosts import WireGuardLab, program

NEWEST = "newest"
THEIRS = ("wireguard-go", NEWEST)
SOCKETS = "/var/run/wireguard"


class Failed(Exception):
    """What a scene has found wrong, in one line."""


def expect(holds: object, what: str) -> None:
    """:class:`Failed` unless it holds."""
    if not holds:
        raise Failed(what)


class ShownPeer(NamedTuple):
    """What ``wg show`` says of a peer."""

    public_key: str
    psk: str
    endpoint: str
    allowed_ips: frozenset[str]
    last_handshake: int
    received: int
    sent: int
    keepalive: str


class Shown(NamedTuple):
    """What ``wg show`` says of an interface."""

    private_key: str
    public_key: str
    port: int
    mark: str
    peers: dict[str, ShownPeer]

    @property
    def peer(self) -> ShownPeer:
        """The only peer."""
        expect(len(self.peers) == 1, f"wg shows {len(self.peers)} peers where there is one")
        return next(iter(self.peers.values()))


def parse_dump(text: str) -> Shown:
    """Read ``wg show IFACE dump``."""
    first, *others = (line.split("\t") for line in text.splitlines())
    peers = {}
    for key, psk, endpoint, allowed, handshake, received, sent, keepalive in others:
        networks = frozenset() if allowed == "(none)" else frozenset(allowed.split(","))
        numbers = (int(handshake), int(received), int(sent))
        peers[key] = ShownPeer(key, psk, endpoint, networks, *numbers, keepalive)
    private, public, port, mark = first
    return Shown(private, public, int(port), mark, peers)


class End:
    """One end; ``kind`` is its name in the table above.

    :ivar conf: what wg-quick reads, in the host's directory; its name is the interface's.
    """

    interface = "wg0"

    def __init__(self, lab: WireGuardLab, host: str, kind: str) -> None:
        self.lab = lab
        self.host = host
        self.kind = kind
        self.conf = lab.directory / host / f"{self.interface}.conf"

    def up(self) -> None:
        """Start it; its interface has its addresses when this returns."""
        raise NotImplementedError

    def down(self) -> None:
        """End it in order."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Its processes."""
        raise NotImplementedError

    def crash(self) -> None:
        """End it as ``kill -9`` does; its interface is gone when this returns."""
        found = self.pids()
        expect(found, f"{self} does not run")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.links(), f"the interface of {self} to be gone")

    def links(self) -> list[str]:
        """The host's tunnel interfaces."""
        shown = self.inside("ip", "-json", "link", "show")
        return [
            link["ifname"] for link in json.loads(shown) if link["ifname"] not in ("lo", "eth0")
        ]

    def inside(self, *argv: str, stdin: str | None = None, seconds: float = 30.0) -> str:
        """Run a command on its host to its end; what it printed."""
        done = self.lab.run(self.host, argv, check=True, stdin=stdin, seconds=seconds)
        return done.stdout

    def wg(self, *words: str, stdin: str | None = None, seconds: float = 30.0) -> str:
        """Run ``wg`` on its host."""
        return self.inside("wg", *words, stdin=stdin, seconds=seconds)

    def show(self) -> Shown:
        """What ``wg show`` says of it now."""
        return parse_dump(self.wg("show", self.interface, "dump"))

    def address(self, version: int = 4) -> str:
        """Its address inside the tunnel."""
        for address in self.lab.addresses(self.host, self.interface):
            if address.version == version:
                return str(address)
        raise Failed(f"{self} has no IPv{version} address inside")

    def edit(self, **changes: str) -> None:
        """Change lines of its .conf: ``Key="value"``; takes effect when it comes up again."""
        lines = self.conf.read_text().splitlines()
        for key, value in changes.items():
            places = [n for n, line in enumerate(lines) if line.split("=")[0].strip() == key]
            expect(places, f"{self.conf.name} of {self} has no {key}")
            for place in places:
                lines[place] = f"{key} = {value}"
        self.conf.write_text("\n".join([*lines, ""]))

    def conf_value(self, key: str) -> str:
        """A value of its .conf, the first of that key."""
        for line in self.conf.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == key:
                return value.strip()
        raise Failed(f"{self.conf.name} of {self} has no {key}")

    def __str__(self) -> str:
        return f"{self.kind} on {self.host}"


class QuickEnd(End):
    """A program that wg-quick starts."""

    @property
    def program(self) -> str:
        """What WG_QUICK_USERSPACE_IMPLEMENTATION names."""
        if self.kind == NEWEST:
            named = os.environ.get("WIREGUARD_GO", "")
            expect(named, "WIREGUARD_GO names no program")
            return program(named)
        if self.kind == "wireguard-go":
            return program(self.kind)
        own = self.lab.tool(self.kind)
        expect(own.exists(), f"{self.kind} is not installed")
        return str(own)

    def up(self) -> None:
        self._quick("up")

    def down(self) -> None:
        self._quick("down")
        wait_until(lambda: not self.pids(), f"{self} to end, whose interface wg-quick has deleted")

    def pids(self) -> list[int]:
        name = Path(self.program).name
        found = []
        for pid in pids(self.lab.namespace(self.host)):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if self.interface in words and name in (Path(word).name for word in words):
                    found.append(pid)
        return found

    def _quick(self, what: str) -> None:
        environment = {"WG_QUICK_USERSPACE_IMPLEMENTATION": self.program, "LOG_LEVEL": "verbose"}
        argv: list[str | Path] = [self.lab.wg_quick, what, self.conf]
        quick = self.lab.spawn(self.host, argv, f"wg-quick-{what}", env=environment)
        status = quick.wait(60)
        if status:
            said = " ".join(quick.text().split())[-600:]
            raise Failed(f"wg-quick {what} of {self} ended with status {status}: {said}")


class ServiceEnd(End):
    """A twistd service of ours."""

    service: Process | None = None

    @property
    def running(self) -> Process:
        """Its process; :class:`Failed` if there is none."""
        if self.service is None:
            raise Failed(f"{self} was not started")
        return self.service

    def down(self) -> None:
        status = self.running.stop()
        # twistd ends with the signal that it was sent, after it has ended all in order.
        expect(status in (0, -signal.SIGTERM), f"{self} ended with status {status}")

    def pids(self) -> list[int]:
        return [self.running.pid] if self.running.running else []


class ClientEnd(ServiceEnd):
    """``twistd pyvpn-client --wireguard``."""

    interface = TUN

    def __init__(self, lab: WireGuardLab, host: str, kind: str) -> None:
        super().__init__(lab, host, kind)
        self.conf = lab.directory / host / "wg0.conf"

    def up(self) -> None:
        twistd = self.lab.tool("twistd")
        argv: list[str | Path] = [twistd, "-n", "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories(self.host, "--state-dir", "--run-dir")
        self.service = self.lab.spawn(self.host, argv, "pyvpn-client")
        self.service.wait_until(self.links, "its interface", 15)
        (self.interface,) = self.links()
        self.service.wait_until(
            lambda: self.lab.addresses(self.host, self.interface), "its addresses", 15
        )


class HubEnd(ServiceEnd):
    """``twistd pyvpn-server``."""

    interface = TUN

    def __init__(self, lab: WireGuardLab, host: str, kind: str) -> None:
        super().__init__(lab, host, kind)
        self.users: dict[str, str] = {}

    def up(self) -> None:
        users, self.users = self.users, {}  # they are there when it is started again
        self.service = self.lab.start_hub(users).process
        self.service.wait_until(self.links, "its interface", 15)

    def add_peer(self, name: str, conf: Path, *options: str) -> None:
        """``pyvpn peer add``: the .conf that it writes becomes that of an end."""
        self.lab.pyvpn("hub", "peer", "add", name, "--no-qr", "--output", str(conf), *options)
        expect(conf.exists(), f"'pyvpn peer add {name} --output' has written no file")


def end(lab: WireGuardLab, host: str, kind: str) -> End:
    """An end of a kind, not started yet."""
    kinds: dict[str, type[End]] = {"client": ClientEnd, "hub": HubEnd}
    return kinds.get(kind, QuickEnd)(lab, host, kind)


def conf_text(
    private: str, addresses: Sequence[str], peers: Sequence[str], port: int | None = None
) -> str:
    """A .conf as people write them."""
    lines = ["[Interface]", f"PrivateKey = {private}", f"Address = {', '.join(addresses)}"]
    lines += [f"ListenPort = {port}"] if port is not None else []
    return "\n".join([*lines, "MTU = 1420", "", *peers])


def peer_text(public: str, allowed: str, **others: str) -> str:
    """A [Peer] section."""
    lines = ["[Peer]", f"PublicKey = {public}", f"AllowedIPs = {allowed}"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in others.items()), ""])


def at(address: str, port: int) -> str:
    """An endpoint as .conf files have it."""
    return f"[{address}]:{port}" if ip_address(address).version == 6 else f"{address}:{port}"
