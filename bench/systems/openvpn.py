"""OpenVPN 2.6 in user space, as Debian packages it; its configurations stand beside this file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from string import Template

from threehosts import HUB

from systems.system import Negotiated, System
from tests.netns.processes import search_path

TUN = "tun0"
HERE = Path(__file__).resolve().parent


class OpenVPN(System):
    """One server with two clients: TLS with a CA that lives for this run, AES-256-GCM, and no
    kernel module (it has to be told so, or it would take one where there is one)."""

    def why_absent(self) -> str | None:
        for name in ("openvpn", "openssl"):
            if shutil.which(name, path=search_path()) is None:
                return f"{name} is not installed (make deps DEPS=bench)"
        return None

    def bring_up(self) -> None:
        self._make_certificates()
        server = self._configure("server.conf", HUB)
        self.programs.append(self.lab.spawn(HUB, ["openvpn", "--config", server], "openvpn"))
        self.programs[0].wait_for_text("Initialization Sequence Completed")
        for client in self.clients:
            config = self._configure("client.conf", client, remote=self.lab.hub_from(client))
            program = self.lab.spawn(client, ["openvpn", "--config", config], "openvpn")
            self.programs.append(program)
            program.wait_for_text("Initialization Sequence Completed", 20)

    def interface(self, host: str) -> str:
        return TUN

    def negotiated(self) -> Negotiated:
        said = self.programs[1].text()
        cipher = re.search(r"Data Channel: cipher '([^']+)'", said)
        version = re.search(r"OpenVPN (\d\S*)", said)
        # The last line of these: what was agreed, after what was to begin with.
        fixes = re.findall(r"Data Channel MTU parms .*?mss_fix:(\d+)", said)
        return Negotiated(
            cipher[1] if cipher else "unknown",
            self.link_mtu(),
            f"{self.link_offloads()}{f', mssfix {fixes[-1]}' if fixes else ''}",
            f"OpenVPN {version[1]}" if version else "OpenVPN",
        )

    def _configure(self, file: str, host: str, **values: str) -> str:
        text = Template((HERE / f"openvpn-{file}").read_text())
        path = self.lab.directory / host / file
        path.write_text(text.substitute(directory=self.lab.directory, host=host, tun=TUN, **values))
        return str(path)

    def _make_certificates(self) -> None:
        new = ["openssl", "req", "-x509", "-days", "2", "-nodes"]
        new += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        place = self.lab.directory
        authority = ["-subj", "/CN=bench", "-keyout", f"{place}/ca.key", "-out", f"{place}/ca.crt"]
        self.lab.run(HUB, [*new, *authority], check=True)
        for host in (HUB, *self.clients):
            role = "serverAuth" if host == HUB else "clientAuth"
            signed = ["-CA", f"{place}/ca.crt", "-CAkey", f"{place}/ca.key"]
            names = ["-subj", f"/CN={host}", "-keyout", f"{place}/{host}.key"]
            uses = ["-addext", "basicConstraints=critical,CA:false"]
            uses += ["-addext", "keyUsage=digitalSignature", "-addext", f"extendedKeyUsage={role}"]
            out = ["-out", f"{place}/{host}.crt"]
            self.lab.run(HUB, [*new, *signed, *names, *uses, *out], check=True)
