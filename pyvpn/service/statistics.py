"""What both services tell of peers and ports: plain values, for ``pyvpn status`` and its JSON."""

from __future__ import annotations

from typing import Any

from pyvpn.core.peer import Peer
from pyvpn.linux.tun import Offloads
from pyvpn.tx.tun import TUNPort
from pyvpn.tx.udp import UDPPort

AES, CHACHA = "AES-256-GCM", "ChaCha20-Poly1305"


def of_peer(peer: Peer) -> dict[str, Any]:
    """Traffic with a peer since it is known, and what its session and its path are like.

    ``path_mtu`` is the largest outer packet that is known to pass, ``inner_mtu`` the inner one that
    fits in; while ``path_mtu_searching`` they may turn out larger. Traffic is counted in inner
    packets, a super-packet as its segments. Without a session ``cipher`` and ``segment_frames`` are
    None.
    """
    session = peer.current
    cipher = None if session is None else AES if session.aes else CHACHA
    return {
        "cipher": cipher,
        "segment_frames": None if session is None else session.segments,
        "path_mtu": peer.mtu.packet_size,
        "path_mtu_searching": peer.mtu.searching,
        "inner_mtu": peer.mtu.inner,
        "rx_bytes": peer.rx_bytes,
        "rx_packets": peer.rx_packets,
        "tx_bytes": peer.tx_bytes,
        "tx_packets": peer.tx_packets,
    }


def of_ports(tun: TUNPort, udp: UDPPort) -> dict[str, Any]:
    """What the kernel does for us on the TUN interface and the UDP socket."""
    offloads = getattr(tun.device, "offloads", Offloads())
    return {
        "tun_offloads": {
            "csum": offloads.csum,
            "tso": offloads.tso,
            "uso": offloads.uso,
        },
        "udp_offloads": {"gso": udp.gso, "gro": udp.gro},
    }
