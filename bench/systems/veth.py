"""No VPN: the bare cable, the limit of what any of them can do here."""

from __future__ import annotations

import platform

from threehosts import HUB, cable

from systems.system import Negotiated, System


class Veth(System):
    """The cable itself."""

    wire = False

    def bring_up(self) -> None:
        pass

    def interface(self, host: str) -> str:
        return cable(self.near) if host == HUB else "eth0"

    def address(self, host: str, seen_from: str, version: int = 4) -> str:
        if host == HUB:
            return self.lab.hub_from(seen_from, version)
        return self.lab.hosts[host].ipv4 if version == 4 else self.lab.hosts[host].ipv6

    def negotiated(self) -> Negotiated:
        kernel = f"Linux {platform.release()}"
        return Negotiated("none", self.link_mtu(), self.link_offloads(), kernel)
