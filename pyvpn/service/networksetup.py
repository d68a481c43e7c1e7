"""A client's network as it is set up: what was told, what was wished, and what has come of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredLock

from pyvpn.config import ClientConfig
from pyvpn.core.client import VPNClient
from pyvpn.core.configtlv import Config
from pyvpn.core.segments import PREFIX_SIZE
from pyvpn.core.transport import datagrams_a_send
from pyvpn.core.vpncore import DEFAULT_INNER_MTU as INNER_MTU
from pyvpn.errors import ConfigError
from pyvpn.linux import uplink
from pyvpn.linux.desired import SystemState
from pyvpn.linux.firewall import TABLES, KillSwitch
from pyvpn.linux.forwarding import hub_sysctls
from pyvpn.linux.nameservers import upstream
from pyvpn.linux.preflight import ipv6_available, subnet_free
from pyvpn.linux.system import LinuxSystem, System
from pyvpn.service.childport import ChildPort
from pyvpn.service.clientnetwork import Machine, Network, Plan, Wishes, link_of, plan

LARGEST_MTU = 65535

#: What Linux takes off the bound of super-packets for headers (net/tcp.h, MAX_TCP_HEADER; and 1),
#: and that bound at most.
_TCP_HEADROOM = 321
LARGEST_GSO_SIZE = 65_536


class NetworkSetup:
    """Brings this machine's network to what the hub has told, one change after the other.

    Each change is made wholly, or not at all: then its Deferred fails with a
    :class:`~pyvpn.errors.VPNError`, and the network is what it was.

    :param config: checked settings.
    :param core: is told what lies behind the hub.
    :param child: the privileged child.
    :param ports: the local UDP ports that are ours, asked when they are needed.
    """

    def __init__(
        self,
        config: ClientConfig,
        core: VPNClient,
        child: ChildPort,
        ports: Callable[[], tuple[int, ...]],
        system: System | None = None,
    ) -> None:
        self._config = config
        self._core = core
        self._child = child
        self._ports = ports
        self._system = LinuxSystem() if system is None else system
        self._lock = DeferredLock()
        self._mtu_found = INNER_MTU
        self._guarded: KillSwitch | None = None
        self.wishes = wishes_of(config)
        #: The hub's last word, and what is in force of it; None before the first one.
        self.told: Config | None = None
        self.plan: Plan | None = None

    @property
    def addresses(self) -> list[str]:
        """The inner addresses of this machine, with prefix lengths."""
        if self.plan is None:
            return []
        return [address.interface for address in self.plan.state.links[0].addresses]

    def configure(self, told: Config) -> Deferred[list[str]]:
        """Make it so that the hub's word holds.

        :returns: what was changed, a line each, and notes of what is not as it was asked for.
        """
        return self._lock.run(self._renew, told, None, None)

    def path_takes(self, mtu: int) -> Deferred[list[str]]:
        """Let the TUN take what reaches the hub."""
        return self._lock.run(self._renew, None, None, mtu)

    def send_all(self, all_traffic: bool) -> Deferred[list[str]]:
        """Send all traffic through the hub, or the VPN's alone.

        The Deferred fails with :class:`ConfigError` if the hub offers no way for all traffic.
        """
        return self._lock.run(self._renew, None, all_traffic, None)

    def look_again(self) -> Deferred[list[str]]:
        """This machine's own networks may have changed: do what follows from that."""
        return self._lock.run(self._renew, None, None, None)

    def before_all(self) -> SystemState | None:
        """What must hold before the hub is asked for anything: the kill switch, None without it."""
        self._guarded = self._kill_switch()
        return None if self._guarded is None else SystemState(kill_switch=self._guarded)

    async def _guard(self) -> list[str]:
        """Let the kill switch go with the network while the hub has not said a word."""
        before = self._guarded
        state = self.before_all()
        if state is None or self._guarded == before:
            return []
        return await self._child.apply(state)

    def _kill_switch(self) -> KillSwitch | None:
        config = self._config
        if not config.kill_switch:
            return None
        lans = self._lans() if config.lan_access else ()
        ours = () if self.told is None else tuple(map(str, self.told.dns))
        return KillSwitch(
            owner=config.files.socket.stem,
            device=config.tun,
            ports=self._ports(),
            resolvers=tuple(upstream(without=ours)),
            lan=tuple(str(network) for _, network in lans),
        )

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows of it."""
        plan = self.plan
        servers = None if plan is None else plan.state.name_servers
        return {
            "all_traffic": [] if plan is None else sorted(plan.full),
            "routes": [] if plan is None else [str(network) for network in plan.routes],
            "name_servers": [] if servers is None else list(servers.servers),
            "search": [] if servers is None else list(servers.search),
            "kill_switch": self._config.kill_switch,
            "notes": [] if plan is None else list(plan.notes),
        }

    async def _change(self, told: Config, wishes: Wishes, mtu: int, asked: bool) -> list[str]:
        own = frozenset(interface.network for interface in told.addresses)
        # It asks `ip` and blocks for some milliseconds. With other networks than before nothing is
        # being served; the same ones come with every login, and have been on the TUN since.
        if self.told is None or own != {each.network for each in self.told.addresses}:
            remedy = "this machine cannot be in both networks"
            subnet_free(own, ours=self._config.tun, remedy=remedy)
        found = self._planned(told, wishes, mtu)
        if asked and wishes.all_traffic and not found.full:
            raise ConfigError(found.notes[-1])
        before = self.plan
        if found == before:
            self.told, self.wishes, self._mtu_found = told, wishes, mtu
            return []
        if found.full:
            table = TABLES + socket.if_nametoindex(self._config.tun)
            other = uplink.other_full_tunnel(self._system, table)
            if other is not None:
                raise ConfigError(
                    f"all traffic of this machine goes through {other} already, another client's;"
                    " end that one first, or leave --all-traffic out"
                )
        old = () if before is None else before.routes
        # What is sent before the change is through must find its way, and after it no other.
        self._core.set_routes(dict.fromkeys((*old, *found.routes)))
        try:
            lines = await self._child.apply(found.state)
        except BaseException:
            self._core.set_routes(old)
            raise
        self._core.set_routes(found.routes)
        self.told, self.wishes, self.plan, self._mtu_found = told, wishes, found, mtu
        known = () if before is None else before.notes
        return [*lines, *(f"note: {note}" for note in found.notes if note not in known)]

    def _renew(
        self, told: Config | None, all_traffic: bool | None, mtu: int | None
    ) -> Deferred[list[str]]:
        """Make the change of what is given; before the hub's first word there is none to make."""
        wishes = self.wishes
        if all_traffic is not None:
            wishes = evolve(wishes, all_traffic=all_traffic)
        path = self._mtu_found if mtu is None else mtu
        told = told or self.told
        if told is None:
            self.wishes, self._mtu_found = wishes, path
            return Deferred.fromCoroutine(self._guard())
        return Deferred.fromCoroutine(self._change(told, wishes, path, all_traffic is not None))

    def _planned(self, told: Config, wishes: Wishes, path: int) -> Plan:
        config = self._config
        ipv6 = ipv6_available()
        # Never less than 1280: the kernel would take the interface's IPv6 addresses away.
        mtu = min(told.mtu or LARGEST_MTU, config.mtu or LARGEST_MTU, path)
        link, notes = link_of(
            told,
            config.tun,
            mtu,
            gso_max_size(mtu),
            ipv6=ipv6,
            peer=config.tun_dstaddr,
            netmask=config.tun_netmask,
        )
        machine = Machine(
            config.tun,
            socket.if_nametoindex(config.tun),
            self._ports(),
            self._hub(),
            self._lans(),
            ipv6,
            hub_sysctls(config.tun) if wishes.share else {},
        )
        found = plan(told, wishes, machine, link, notes)
        return evolve(found, state=evolve(found.state, kill_switch=self._kill_switch()))

    def _hub(self) -> tuple[str, ...]:
        """The hub's outer address, if there is a session with it."""
        endpoint = self._core.hub.endpoint
        if endpoint is None:
            return ()
        address = IPv6Address(endpoint.wire_address()[:16])
        return (str(address.ipv4_mapped or address),)

    def _lans(self) -> tuple[tuple[str, Network], ...]:
        return tuple(uplink.private_lans(self._system, self._config.tun))


def wishes_of(config: ClientConfig) -> Wishes:
    """What the options say; ``lan_access`` goes with the kill switch where nobody chose."""
    lan = not config.kill_switch if config.lan_access is None else config.lan_access
    return Wishes(
        all_traffic=config.all_traffic,
        lan_access=lan,
        include=config.include,
        exclude=config.exclude,
        routes=not config.no_routes,
        dns=not config.no_dns,
        share=config.share,
    )


def gso_max_size(mtu: int) -> int:
    """Return the bound for our own kernel's super-packets with which each of TCP is one send.

    44 pieces with 1,436 bytes of MTU, in place of 47 in two sends: 5 to 8 % less processor time.
    By bytes, not by segments, which would end UDP super-packets of many small ones. And not on a
    hub: there super-packets come through that others have made, and the kernel cuts longer ones
    into single packets.
    """
    # Below one piece more, even of the shortest: IPv6 and TCP with time stamps.
    size = (datagrams_a_send(mtu + PREFIX_SIZE) + 1) * (mtu - 72) - 1 + _TCP_HEADROOM
    return min(size, LARGEST_GSO_SIZE)
