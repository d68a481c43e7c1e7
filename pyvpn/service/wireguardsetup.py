"""What a wg-quick file means for the core and for Linux, and what of it we do not do."""

from __future__ import annotations

from typing import Final

from pyvpn.config import WireGuardClientConfig, host_port
from pyvpn.core.configtlv import Config
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguardpeers import STOCK_MTU
from pyvpn.errors import ConfigError
from pyvpn.linux.firewall import MARK
from pyvpn.linux.plan import MIN_MTU, MIN_MTU_IPV6
from pyvpn.linux.preflight import ipv6_available
from pyvpn.routes import domains as search_domains
from pyvpn.service.clientnetwork import DEFAULTS, Wishes, default_families
from pyvpn.uapi import AllowedIPChange, Changes, PeerChange, parse_set
from pyvpn.values import within
from pyvpn.wgconf import Network, WireGuardConf

#: Said of what only wg-quick does.
REMEDY: Final = "for that, use wg-quick with WG_QUICK_USERSPACE_IMPLEMENTATION=pyvpn-wg"

#: ``Table`` of which the routes go where ours do.
_MAIN_TABLES: Final = (None, "auto", "main", "254")

#: Networks of AllowedIPs that we route: the child takes little more in one state.
MAX_NETWORKS: Final = 4096


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
    networks = narrower(conf)
    ipv6 = 6 in full(conf) or any(one.version == 6 for one in (*conf.addresses, *networks))
    least = MIN_MTU_IPV6 if ipv6 else MIN_MTU
    if mtu(config, conf) < least:
        raise wrong("MTU", f"{mtu(config, conf)} is too small; the least here is {least}")
    if len(networks) > MAX_NETWORKS:
        raise wrong(
            "AllowedIPs",
            f"these are {len(networks)} routes, more than {MAX_NETWORKS}; write 'Table = off' and"
            " set them yourself",
        )
    try:
        search(conf)
    except ConfigError as error:
        raise wrong("DNS", error.message) from None
    if config.kill_switch and mark(conf) != MARK:
        raise wrong(
            "FwMark", f"--kill-switch lets out the mark {MARK:#x} alone; leave one of the two out"
        )


def warnings(config: WireGuardClientConfig, conf: WireGuardConf) -> list[str]:
    """What the file asks for and does not get, a line each."""
    undone = list(dict.fromkeys(key for key, _ in conf.commands))
    if conf.search and not conf.dns:
        undone.append("DNS (it has no address)")
    if conf.save_config:
        undone.append("SaveConfig")
    if not routed(conf) and conf.table != "off":
        undone.append(f"Table = {conf.table} (so no routes are set)")
    lines = []
    if config.file.stat().st_mode & 0o077:
        lines.append(f"{config.file} holds a private key, and others may read it: chmod 600 it")
    if undone:
        lines.append(f"{config.file}: not done by --wireguard: {', '.join(undone)}; {REMEDY}")
    if conf.fwmark != MARK and routed(conf) and conf.fwmark:
        lines.append(
            f"{config.file}: FwMark = {conf.fwmark:#x} is not used, since our routes go by"
            f" {MARK:#x}; with 'Table = off' it is"
        )
    if full(conf) and len(full(conf)) == 1 and ipv6_available():
        there, missing = ("0.0.0.0/0", "::/0") if 4 in full(conf) else ("::/0", "0.0.0.0/0")
        lines.append(
            f"{config.file}: {there} in AllowedIPs without {missing}: the other family leads"
            " nowhere, so that nothing leaves around the tunnel"
        )
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


def told(conf: WireGuardConf) -> Config:
    """What a hub would say that the file's server is."""
    return Config(
        addresses=conf.addresses,
        routes=tuple(DEFAULTS[family] for family in sorted(full(conf))),
        dns=conf.dns,
        search=search(conf),
    )


def wishes(config: WireGuardClientConfig, conf: WireGuardConf) -> Wishes:
    """What the file and the options ask of the network."""
    return Wishes(
        closed=False,  # as with wg-quick: who forwards has said so to the kernel
        all_traffic=bool(full(conf)),
        lan_access=config.lan_access,
        # The option counts more than the file, which one may not have written oneself.
        include=tuple(one for one in narrower(conf) if one not in config.exclude),
        exclude=config.exclude,
        dns=not config.no_dns,
        kill_switch=config.kill_switch,
        table=routed(conf),
        # As wg-quick has it: whoever names a server has no other way to say for what.
        only_dns=True,
        mtu=mtu(config, conf),
    )


def routed(conf: WireGuardConf) -> bool:
    """Whether the networks of AllowedIPs are to be routed by us."""
    return conf.table in _MAIN_TABLES


def full(conf: WireGuardConf) -> set[int]:
    """The families, 4 and 6, of which all traffic is to go through the tunnel."""
    return default_families(_allowed(conf)) if routed(conf) else set()


def narrower(conf: WireGuardConf) -> list[Network]:
    """The networks, beside everything and those of our addresses, that are to be routed."""
    if not routed(conf):
        return []
    own = [interface.network for interface in conf.addresses]
    return [
        network
        for network in _allowed(conf)
        if network.prefixlen and not any(within(network, one) for one in own)
    ]


def mark(conf: WireGuardConf) -> int:
    """The mark of the datagrams that carry the tunnel; the file's where no route of ours needs
    ours.
    """
    return conf.fwmark if conf.fwmark and not routed(conf) else MARK


def search(conf: WireGuardConf) -> tuple[str, ...]:
    """The search domains, without what only systemd-resolved knows (``~`` before one).

    :raises ConfigError: one is none.
    """
    names = [name.removeprefix("~").removesuffix(".") for name in conf.search]
    # Alone, "~." says that all names are meant: they are with us.
    domains = [name for name in names if name]
    return search_domains(",".join(domains)) if domains else ()


def places(conf: WireGuardConf) -> dict[bytes, tuple[str, int]]:
    """Where the file says that peers are: a name or address, and a port, by public key."""
    return {
        peer.public_key: host_port(peer.endpoint, 0)
        for peer in conf.peers
        if peer.endpoint is not None
    }


def _allowed(conf: WireGuardConf) -> list[Network]:
    return list(dict.fromkeys(network for peer in conf.peers for network in peer.allowed_ips))
