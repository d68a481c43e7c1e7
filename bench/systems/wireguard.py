"""WireGuard in user space: wireguard-go, set up with ``wg``; its configuration stands beside."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from string import Template

from threehosts import HUB, A, C

from systems.system import Negotiated, System
from tests.netns.lab import LabError
from tests.netns.processes import search_path

HERE = Path(__file__).resolve().parent
NUMBERS = {HUB: 1, A: 2, C: 3}
PORT = 51820
# Its control sockets share one directory, whatever the namespace: the names must differ.
COUNT = itertools.count(1)
SOCKETS = Path("/var/run/wireguard")


class WireGuard(System):
    """One hub with two peers, MTU 1420 as it is by itself.

    :param program: the wireguard-go to run; None: none is named.
    """

    def __init__(self, name: str, program: str | None) -> None:
        super().__init__(name)
        self.program = program
        self._names: dict[str, str] = {}

    def why_absent(self) -> str | None:
        if not self.program:
            return "WIREGUARD_GO names none"
        if shutil.which(self.program, path=search_path()) is None:
            return f"{self.program} is not there"
        if shutil.which("wg", path=search_path()) is None:
            return "wg is not installed (make deps DEPS=bench)"
        return None

    def bring_up(self) -> None:
        keys = {host: self._keys() for host in (HUB, *self.clients)}
        for host in keys:
            self._start(host)
        for client in self.clients:
            peer = self._peer(keys[HUB][1], "0.0.0.0/0, ::/0")
            peer += f"Endpoint = {self.lab.hub_from(client)}:{PORT}\n"
            self._configure(client, keys[client][0], [peer])
        peers = [
            self._peer(keys[client][1], f"10.9.0.{NUMBERS[client]}/32, fd00:9::{NUMBERS[client]}")
            for client in self.clients
        ]
        self._configure(HUB, keys[HUB][0], peers)

    def interface(self, host: str) -> str:
        return self._names[host]

    def negotiated(self) -> Negotiated:
        said = self.lab.run(self.near, [self._path, "--version"])
        version = (said.stdout or said.stderr).splitlines()[0]
        return Negotiated("ChaCha20-Poly1305", self.link_mtu(), self.link_offloads(), version)

    def stop(self) -> None:
        super().stop()
        try:
            SOCKETS.rmdir()  # if it is empty; somebody else's may be in use
        except OSError:
            pass

    @property
    def _path(self) -> str:
        found = shutil.which(str(self.program), path=search_path())
        if found is None:
            raise LabError(f"{self.program} is gone")
        return str(Path(found).resolve())

    def _start(self, host: str) -> None:
        self._names[host] = name = f"w{os.getpid()}n{next(COUNT)}"
        program = self.lab.spawn(host, [self._path, "-f", name], "wireguard-go")
        self.programs.append(program)
        program.wait_until((SOCKETS / f"{name}.sock").exists, "its control socket", 10)
        number = NUMBERS[host]
        for address in (f"10.9.0.{number}/24", f"fd00:9::{number}/64"):
            self._inside(host, "address", "add", address, "dev", name)
        self._inside(host, "link", "set", name, "up")

    def _configure(self, host: str, private: str, peers: list[str]) -> None:
        text = Template((HERE / "wireguard.conf").read_text())
        path = self.lab.directory / host / "wireguard.conf"
        path.write_text(text.substitute(private=private, port=PORT, peers="\n".join(peers)))
        self.lab.run(host, ["wg", "setconf", self._names[host], str(path)], check=True)

    def _peer(self, public: str, allowed: str) -> str:
        return f"[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\n"

    def _keys(self) -> tuple[str, str]:
        private = self.lab.run(HUB, ["wg", "genkey"], check=True).stdout.strip()
        public = self.lab.run(HUB, ["wg", "pubkey"], check=True, stdin=f"{private}\n").stdout
        return private, public.strip()

    def _inside(self, host: str, *words: str) -> None:
        self.lab.run(host, ["ip", *words], check=True)
