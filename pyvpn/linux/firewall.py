"""What we want of nftables, as values, and the rules that make it so.

Every table here is our own, and no other one is ever touched. Standard library only, because the
privileged child imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

MARK = 0x5056
"""The mark of what must never enter the tunnel: our datagrams, and our own questions for the
hub's address. By mark alone, never by destination, a packet is let past the tunnel: whoever rules
the local network can choose addresses, but not marks (TunnelCrack, USENIX Security 2023).
"""

TABLES = 0x50560000
"""Routing tables from here on, up to TABLES + 65535, are ours: one for each TUN, by its index."""

PRIORITY = 30100
"""Of our routing rules: before the main table (32766) and what DHCP put there (TunnelVision)."""

KILL_SWITCH_TABLE = "pyvpn-kill-switch"


@dataclass(frozen=True)
class ClientFirewall:
    """The table of a client.

    * What is addressed to the tunnel's addresses is dropped unless it came through the tunnel
      (CVE-2019-14899).
    * What comes for our own UDP ports carries :data:`MARK` while the kernel judges its way back
      (rp_filter), since the answer would go by the mark.
    * Subnets behind this machine are reached by the VPN, under this machine's own address there.

    :ivar device: the TUN.
    :ivar addresses: its addresses, without prefix lengths.
    :ivar ports: local UDP ports that we own.
    :ivar shared: subnets behind this machine that the VPN may reach.
    :ivar networks: the VPN's networks, from which it may; () with ``shared`` empty.
    """

    kind: ClassVar[str] = "client"
    device: str
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class HubFirewall:
    """The table of a hub: what is forwarded from and to its TUN, and what is translated.

    From client to client everything is forwarded, or nothing but what goes to or comes from
    ``subnets``. Beyond the VPN nothing is, but to ``reachable`` and, with ``internet``, to
    everywhere, under an address of the hub's own, and back what belongs to it. What comes from
    outside goes nowhere else in the VPN.

    :ivar device: the TUN.
    :ivar networks: the VPN's own networks.
    :ivar subnets: networks behind clients.
    :ivar reachable: networks on the hub's side of the VPN that clients may reach.
    """

    kind: ClassVar[str] = "hub"
    device: str
    networks: tuple[str, ...]
    internet: bool = False
    client_to_client: bool = True
    subnets: tuple[str, ...] = ()
    reachable: tuple[str, ...] = ()


@dataclass(frozen=True)
class KillSwitch:
    """Nothing leaves this machine but through the tunnel. One for a machine; it outlives us.

    Let out are: what goes through ``device`` and loopback, ARP and neighbour and router
    discovery, DHCP, UDP with :data:`MARK` from ``ports``, marked questions to ``resolvers`` (UDP
    port 53), and what goes to ``lan``.

    :ivar owner: whose it is, as ``client-home``: only that one changes or lifts it.
    :ivar device: the TUN.
    :ivar ports: our local UDP ports.
    :ivar resolvers: addresses of the name servers that were set before us.
    :ivar lan: networks that stay reachable around the tunnel.
    """

    owner: str
    device: str
    ports: tuple[int, ...] = ()
    resolvers: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()


Firewall = ClientFirewall | HubFirewall
