"""A prototype of the data path, if there is one at hand: fixed keys, no login, no routing."""

from __future__ import annotations

import sys
from pathlib import Path

from threehosts import HUB, A

from systems.system import Negotiated, System

TUN = "proto0"
CIPHERS = {"aes": "AES-256-GCM", "chacha": "ChaCha20-Poly1305"}


class Prototype(System):
    """A program that is run as ``PROGRAM a|b LOCAL REMOTE TUN aes|chacha``.

    It makes its TUN itself, with addresses in 10.10.0.0/24, and carries TCP over IPv4 in
    super-packets; nothing else of the VPN exists in it.
    """

    clients = (A,)
    ipv6 = False

    def __init__(self, name: str, program: str | None, cipher: str) -> None:
        super().__init__(name)
        self.program = program
        self.cipher = cipher

    def why_absent(self) -> str | None:
        if not self.program:
            return "PYVPN_BENCH_PROTOTYPE names none"
        if not Path(self.program).is_file():
            return f"PYVPN_BENCH_PROTOTYPE: there is no {self.program}"
        return None

    def bring_up(self) -> None:
        near, far = self.lab.hosts[A].ipv4, self.lab.hosts[HUB].ipv4
        for host, role, local, remote in ((A, "a", near, far), (HUB, "b", far, near)):
            argv = [sys.executable, str(Path(str(self.program)).resolve())]
            argv += [role, local, remote, TUN, self.cipher]
            self.programs.append(self.lab.spawn(host, argv, "prototype"))
        for host, program in zip((A, HUB), self.programs, strict=True):
            program.wait_until(lambda host=host: self.lab.addresses(host, TUN), "its TUN", 10)

    def interface(self, host: str) -> str:
        return TUN

    def negotiated(self) -> Negotiated:
        return Negotiated(CIPHERS[self.cipher], self.link_mtu(), self.link_offloads(), "prototype")
