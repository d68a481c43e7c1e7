"""What a wg-quick file means for the core and for Linux, and what of it we do not do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from pyvpn.config import WireGuardClientConfig, host_port
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguardpeers import STOCK_MTU
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import Address, Link, Route, SystemState
from pyvpn.linux.plan import MAX_ENTRIES, MIN_MTU, MIN_MTU_IPV6
from pyvpn.service.networksetup import gso_max_size
from pyvpn.uapi import AllowedIPChange, Changes, PeerChange, parse_set
from pyvpn.wgconf import Network, WireGuardConf

#: Said of what only wg-quick does.
REMEDY: Final = "for that, use wg-quick with WG_QUICK_USERSPACE_IMPLEMENTATION=pyvpn-wg"

#: ``Table`` of which the routes go where ours do.
_MAIN_TABLES: Final = (None, "auto", "main", "254")

Known = Mapping[bytes, Collection[IPv4Address | IPv6Address]]


def mtu(config: WireGuardClientConfig, conf: WireGuardConf) -> int:
    """The TUN's MTU in bytes."""
    return config.mtu or conf.mtu or STOCK_MTU


def port(config: WireGuardClientConfig, conf: WireGuardConf) -> int:
    """The UDP port, 0 for any."""
    return conf.listen_port or 0 if config.port is None else config.port


def own_networks(conf: WireGuardConf) -> list[Network]:
    """The networks that are wholly ours, by our addresses; an address alone may be in another."""
    networks = [interface.network for interface in conf.addresses]
    return [network for network in networks if network.num_addresses > 1]


def check(config: WireGuardClientConfig, conf: WireGuardConf) -> None:
    """Refuse a file that cannot work, before anything is opened.

    :raises ConfigError: naming the file and the key.
    """

    def wrong(key: str, message: str) -> ConfigError:
        return ConfigError(message, path=str(config.file), key=key)

    if conf.private_key is None:
        raise wrong("PrivateKey", "it is missing in [Interface]; 'wg genkey' makes one")
    if not conf.peers:
        raise wrong("[Peer]", "there is none, so nobody to talk to")
    ours = KeyPair.of(conf.private_key).public
    if any(peer.public_key == ours for peer in conf.peers):
        raise wrong("PublicKey", "a [Peer] has this machine's own key")
    ipv6 = any(one.version == 6 for one in (*conf.addresses, *routes(conf)))
    least = MIN_MTU_IPV6 if ipv6 else MIN_MTU
    if mtu(config, conf) < least:
        raise wrong("MTU", f"{mtu(config, conf)} is too small; the least here is {least}")
    if len(routes(conf)) > MAX_ENTRIES:
        raise wrong(
            "AllowedIPs",
            f"these are {len(routes(conf))} routes, more than {MAX_ENTRIES}; write 'Table = off'"
            " and set them yourself",
        )


def warnings(config: WireGuardClientConfig, conf: WireGuardConf) -> list[str]:
    """What the file asks for and does not get, a line each."""
    undone = list(dict.fromkeys(key for key, _ in conf.commands))
    if conf.dns or conf.search:
        undone.append("DNS")
    if conf.save_config:
        undone.append("SaveConfig")
    if conf.table not in (*_MAIN_TABLES, "off"):
        undone.append(f"Table = {conf.table} (so no routes are set)")
    lines = []
    if config.file.stat().st_mode & 0o077:
        lines.append(f"{config.file} holds a private key, and others may read it: chmod 600 it")
    if undone:
        lines.append(f"{config.file}: not done by --wireguard: {', '.join(undone)}; {REMEDY}")
    everything = [str(network) for network in _allowed(conf) if network.prefixlen == 0]
    if everything and conf.table in _MAIN_TABLES:
        lines.append(
            f"{config.file}: {' and '.join(everything)} in AllowedIPs: --wireguard does not send"
            f" all traffic of this machine through the tunnel, only what goes to narrower networks"
            f" there; {REMEDY}"
        )
    lines += [
        f"{config.file}: {held_line(network, endpoint)}"
        for network, endpoint in held_endpoints(conf, numeric(conf))
    ]
    if not conf.addresses:
        lines.append(f"{config.file}: no Address, so this machine has none in the tunnel")
    return lines


def changes(conf: WireGuardConf) -> Changes:
    """What makes the interface as the file wants it, endpoints apart: those are names yet."""
    assert conf.private_key is not None
    private = parse_set([f"private_key={conf.private_key.hex()}"]).private_key  # clamps it
    return Changes(
        private_key=private,
        replace_peers=True,
        peers=tuple(
            PeerChange(
                peer.public_key,
                preshared_key=peer.psk,
                keepalive=peer.keepalive,
                replace_allowed_ips=True,
                allowed_ips=tuple(map(AllowedIPChange, peer.allowed_ips)),
            )
            for peer in conf.peers
        ),
    )


def routes(conf: WireGuardConf) -> list[Network]:
    """The networks that are to be routed into the tunnel, when all endpoints are known.

    The kernel itself makes the routes to the networks of our addresses; and all-traffic routes
    would draw our own datagrams into the tunnel.
    """
    if conf.table not in _MAIN_TABLES:
        return []
    own = [interface.network for interface in conf.addresses]
    return [
        network
        for network in _allowed(conf)
        if network.prefixlen and not any(_within(network, one) for one in own)
    ]


def places(conf: WireGuardConf) -> dict[bytes, tuple[str, int]]:
    """Where the file says that peers are: a name or address, and a port, by public key."""
    return {
        peer.public_key: host_port(peer.endpoint, 0)
        for peer in conf.peers
        if peer.endpoint is not None
    }


def numeric(conf: WireGuardConf) -> dict[bytes, set[IPv4Address | IPv6Address]]:
    """The addresses of the peers for which nobody has to be asked."""
    found = {}
    for key, (host, _) in places(conf).items():
        try:
            found[key] = {ip_address(host)}
        except ValueError:
            pass  # a name
    return found


def held_endpoints(conf: WireGuardConf, known: Known) -> list[tuple[Network, str]]:
    """Networks to be routed that hold the endpoint of a peer, and that endpoint.

    Such a route would send the datagrams that carry the tunnel into it.
    """
    endpoints = sorted(
        {str(address): address for some in known.values() for address in some}.items()
    )
    return [
        (network, text)
        for network in routes(conf)
        for text, address in endpoints
        if address in network
    ]


def held_line(network: Network, endpoint: str) -> str:
    """What people are told of one of these."""
    return (
        f"{network} of AllowedIPs holds the endpoint {endpoint}, so it is not routed through the"
        f" tunnel; {REMEDY}"
    )


def system_state(config: WireGuardClientConfig, conf: WireGuardConf, known: Known) -> SystemState:
    """What Linux should look like.

    :param known: the addresses of peers by public key. The networks of a peer that is not among
        them are not routed yet: its name may have to be asked of a server in one of them.
    """
    left_out = {network for network, _ in held_endpoints(conf, known)}
    waiting = {
        network
        for peer in conf.peers
        if peer.endpoint is not None and peer.public_key not in known
        for network in peer.allowed_ips
    }
    link = Link(
        config.tun,
        mtu(config, conf),
        tuple(dict.fromkeys(Address(str(interface)) for interface in conf.addresses)),
        gso_max_size(mtu(config, conf)),
    )
    return SystemState(
        links=(link,),
        routes=tuple(
            Route(str(network), config.tun)
            for network in routes(conf)
            if network not in left_out and network not in waiting
        ),
    )


def _allowed(conf: WireGuardConf) -> list[Network]:
    return list(dict.fromkeys(network for peer in conf.peers for network in peer.allowed_ips))


def _within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version
        and network.prefixlen >= other.prefixlen
        and network.network_address in other
    )
