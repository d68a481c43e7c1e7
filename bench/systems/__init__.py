"""What is compared, one file a kind of system."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from systems.openvpn import OpenVPN
from systems.prototype import Prototype
from systems.pyvpn import PyVPN
from systems.system import Absent, Negotiated, System
from systems.veth import Veth
from systems.wireguard import WireGuard, WireGuardToHub

__all__ = ["Absent", "Negotiated", "System", "all_systems"]


def all_systems(environment: Mapping[str, str]) -> list[System]:
    """Every system, in the order in which tables show them."""
    prototype = environment.get("PYVPN_BENCH_PROTOTYPE")
    newest = environment.get("WIREGUARD_GO")
    own_wireguard = str(Path(sys.prefix) / "bin" / "pyvpn-wg")
    return [
        PyVPN("pyvpn-aes", cipher="aes-256-gcm"),
        PyVPN("pyvpn-chacha", cipher="chacha20-poly1305"),
        Prototype("prototype-aes", prototype, "aes"),
        Prototype("prototype-chacha", prototype, "chacha"),
        OpenVPN("openvpn"),
        WireGuard("wireguard-go", "wireguard-go"),
        WireGuard("wireguard-go-newest", newest),
        WireGuard("pyvpn-wg", own_wireguard),
        WireGuardToHub("pyvpn-wireguard", "wireguard-go"),
        WireGuardToHub("pyvpn-wireguard-newest", newest),
        Veth("veth"),
        PyVPN("pyvpn-kernel", cipher="aes-256-gcm", between_clients=True),
        PyVPN("pyvpn-relay", cipher="aes-256-gcm", between_clients=True, relay=True),
    ]
