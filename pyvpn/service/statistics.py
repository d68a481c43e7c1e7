"""What both services tell of peers and ports: plain values, for ``pyvpn status`` and its JSON."""

from __future__ import annotations

from typing import Any

from pyvpn.core.peer import Peer, ServerPeer
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.linux.tun import Offloads
from pyvpn.state.interface import WireGuardPeerRecord
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


def of_session(peer: ServerPeer, now: float) -> dict[str, Any]:
    """One session of a user's device."""
    lease = peer.lease
    return {
        "user": peer.user,
        "device": peer.name or peer.device.hex()[:8],
        "addresses": [] if lease is None else [str(a) for a in (lease.ipv4, lease.ipv6) if a],
        "endpoint": str(peer.endpoint),
        "deliver": "push" if peer.mailbox is None else "poll",
        "waiting_bytes": 0 if peer.mailbox is None else peer.mailbox.octets,
        "age": now - peer.started,
        **of_peer(peer),
        "last_seen": now - (peer.last_heard or now),
    }


def of_stock_session(
    record: WireGuardPeerRecord, peer: WireGuardPeer, now: float
) -> dict[str, Any]:
    """One session of a stock WireGuard peer."""
    return {
        "name": record.name,
        "addresses": [address for address in (record.ipv4, record.ipv6) if address],
        "allowed_ips": list(record.allowed_ips),
        "endpoint": str(peer.endpoint),
        "last_handshake": peer.last_handshake // 1_000_000_000,
        "rx_bytes": peer.rx_bytes,
        "rx_packets": peer.rx_packets,
        "tx_bytes": peer.tx_bytes,
        "tx_packets": peer.tx_packets,
        "last_seen": now - (peer.last_heard or now),
    }
