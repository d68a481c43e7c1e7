"""WireGuard in user space: wireguard-go or ours, set up with ``wg``; its .conf stands beside."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from string import Template

from threehosts import HUB, A, C

from systems.system import Negotiated, System
from tests.netns.lab import TUN, LabError
from tests.netns.processes import search_path

HERE = Path(__file__).resolve().parent
NUMBERS = {HUB: 1, A: 2, C: 3}
PORT = 51820
# Its control sockets share one directory, whatever the namespace: the names must differ.
COUNT = itertools.count(1)
SOCKETS = Path("/var/run/wireguard")


class WireGuard(System):
    """One hub with two peers, MTU 1420 as it is by itself.

    :param program: the wireguard-go to run, or what is used like it; None: none is named.
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
            self._give_addresses(host)
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

    def _give_addresses(self, host: str) -> None:
        number, name = NUMBERS[host], self._names[host]
        for address in (f"10.9.0.{number}/24", f"fd00:9::{number}/64"):
            self._inside(host, "address", "add", address, "dev", name)
        self._inside(host, "link", "set", name, "mtu", "1420", "up")

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


class WireGuardToHub(WireGuard):
    """Our hub, and clients with a WireGuard of others: what ``pyvpn peer add`` writes for them."""

    def bring_up(self) -> None:
        self.programs.append(self.lab.start_hub().process)
        self._names[HUB] = TUN
        for client in self.clients:
            file = self.lab.directory / HUB / f"{client}.conf"
            add = ["peer", "add", client, "--no-qr", "--output", str(file)]
            self.lab.pyvpn(HUB, *add)
            self._start(client)
            self._apply(client, file.read_text())

    def negotiated(self) -> Negotiated:
        told = super().negotiated()
        hub = self.lab.pyvpn(HUB, "--version").stdout.split()[-1]
        return told._replace(version=f"PyVPN {hub}, {told.version}")

    def _apply(self, host: str, conf: str) -> None:
        """Do what wg-quick does with a .conf: what is not wg's is for ip."""
        name, kept, own = self._names[host], [], {"Address": "", "MTU": "", "DNS": ""}
        allowed = ""
        for line in conf.splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key in own:
                own[key] = value
            elif key == "Endpoint":
                # The hub's is that of the other cable for one of them.
                kept.append(f"Endpoint = {self.lab.hub_from(host)}:5050")
            else:
                kept.append(line)
            allowed = value if key == "AllowedIPs" else allowed
        path = self.lab.directory / host / "wireguard.conf"
        path.write_text("\n".join([*kept, ""]))
        self.lab.run(host, ["wg", "setconf", name, str(path)], check=True)
        for address in own["Address"].split(","):
            self._inside(host, "address", "add", address.strip(), "dev", name)
        self._inside(host, "link", "set", name, "mtu", own["MTU"], "up")
        for network in allowed.split(","):
            self._inside(host, "route", "add", network.strip(), "dev", name)
