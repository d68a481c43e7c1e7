"""PyVPN itself: real ``twistd`` processes, made and logged in as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from threehosts import HUB, A, C

from systems.system import Negotiated, System
from tests.netns.lab import TUN

PASSWORDS = {A: "seven green apples", C: "three brown pears"}


class PyVPN(System):
    """A hub and two clients.

    :param cipher: what both ends pin.
    :param between_clients: measure from client to client, not from client to hub.
    :param relay: have the hub pass packets between clients on by itself.
    """

    def __init__(
        self, name: str, *, cipher: str, between_clients: bool = False, relay: bool = False
    ) -> None:
        super().__init__(name)
        self.cipher = cipher
        self.relay = relay
        if between_clients:
            self.far = C

    def why_absent(self) -> str | None:
        if self.relay and "--relay" not in options("pyvpn-server"):
            return "this PyVPN has no --relay"
        if self.cipher != "aes-256-gcm" and "--cipher" not in options("pyvpn-server"):
            return "this PyVPN has no --cipher"
        return None

    def bring_up(self) -> None:
        pinned = [f"--cipher={self.cipher}"] if "--cipher" in options("pyvpn-server") else []
        relay = ["--relay"] if self.relay else []
        self.programs.append(self.lab.start_hub(PASSWORDS, *pinned, *relay).process)
        for client in self.clients:
            self.lab.join(client)
            pinned = [f"--cipher={self.cipher}"] if "--cipher" in options("pyvpn-client") else []
            server = [f"--server={self.lab.hub_from(client)}:5050"]
            program = self.lab.start_client(client, PASSWORDS[client], *server, *pinned)
            self.programs.append(program)

    def interface(self, host: str) -> str:
        return TUN

    def negotiated(self) -> Negotiated:
        version = self.lab.pyvpn(HUB, "--version").stdout.split()[-1]
        status = json.loads(self.lab.pyvpn(self.near, "status", "--json").stdout)
        told = status[f"client-{self.near}"]
        names = [name.upper() for name, works in told["udp_offloads"].items() if works]
        offloads = f"TUN {self.link_offloads()}, UDP {' '.join(sorted(names)) or 'none'}"
        return Negotiated(told["cipher"], told["inner_mtu"], offloads, f"PyVPN {version}")


@cache
def options(plugin: str) -> str:
    """What ``twistd PLUGIN --help`` prints."""
    twistd = Path(sys.prefix) / "bin" / "twistd"
    done = subprocess.run([twistd, plugin, "--help"], capture_output=True, text=True, check=False)
    return done.stdout
