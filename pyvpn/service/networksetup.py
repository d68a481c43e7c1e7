"""A client's network as it is set up: what was told, what was wished, and what has come of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredLock

from pyvpn.core.configtlv import Config
from pyvpn.core.vpncore import DEFAULT_INNER_MTU as INNER_MTU
from pyvpn.errors import ConfigError, VPNError
from pyvpn.linux import uplink
from pyvpn.linux.desired import SystemState
from pyvpn.linux.firewall import TABLES, KillSwitch
from pyvpn.linux.forwarding import forwards, hub_sysctls
from pyvpn.linux.nameservers import upstream
from pyvpn.linux.preflight import ipv6_available, subnet_free
from pyvpn.linux.system import LinuxSystem, System
from pyvpn.service.childport import ChildPort
from pyvpn.service.clientlink import link_of
from pyvpn.service.clientnetwork import NOT_OFFERED, Machine, Plan, Wishes, plan
from pyvpn.values import Network


class NetworkSetup:
    """Brings this machine's network to what the hub has told, one change after the other.

    Each change is made wholly, or not at all: then its Deferred fails with a
    :class:`~pyvpn.errors.VPNError`, and the network is what it was.

    :param owner: of the kill switch: ``client-NAME``.
    :param tun: the name of the TUN, which is there.
    :param child: the privileged child.
    :param ports: the local UDP ports that are ours, asked when they are needed, as is the next.
    :param hub: the hub's outer addresses that no route may lead into the tunnel.
    :param route: is told what lies behind the hub.
    :param path: bytes that reach the hub whole, until it is found out.
    """

    def __init__(
        self,
        owner: str,
        tun: str,
        wishes: Wishes,
        child: ChildPort,
        *,
        ports: Callable[[], tuple[int, ...]],
        hub: Callable[[], tuple[str, ...]],
        route: Callable[[Iterable[Network]], None],
        path: int = INNER_MTU,
        system: System | None = None,
    ) -> None:
        self._owner = owner
        self._tun = tun
        self._child = child
        self._ports = ports
        self._hub = hub
        self._route = route
        self._system = LinuxSystem() if system is None else system
        self._lock = DeferredLock()
        self._path = path
        self._noted: set[str] = set()
        self.wishes = wishes
        #: The hub's last word, and what is in force of it; None before the first one.
        self.told: Config | None = None
        self.plan: Plan | None = None

    @property
    def addresses(self) -> list[str]:
        """The inner addresses of this machine, with prefix lengths."""
        if self.plan is None:
            return []
        return [address.interface for address in self.plan.state.links[0].addresses]

    def begin(self, told: Config) -> SystemState:
        """Return what is to be so where the hub's word is known beforehand; whoever asks sees to it
        that it is, or gives up. Its networks have been looked at.

        :raises VPNError: it cannot be.
        """
        found = self._decided(told, self.wishes)
        self._route(found.routes)
        self.told, self.plan = told, found
        return found.state

    def configure(self, told: Config) -> Deferred[list[str]]:
        """Make it so that the hub's word holds.

        :returns: what was changed, a line each, and notes of what is not as it was asked for.
        """
        return self._lock.run(self._renew, told)

    def path_takes(self, mtu: int) -> Deferred[list[str]]:
        """Let the TUN take what reaches the hub."""
        self._path = mtu
        return self._lock.run(self._renew)

    def send_all(self, all_traffic: bool) -> Deferred[list[str]]:
        """Send all traffic through the hub, or the VPN's alone.

        The Deferred fails with :class:`ConfigError` if the hub offers no way for all traffic.
        """
        return self._lock.run(self._renew, all_traffic=all_traffic)

    def look_again(self) -> Deferred[list[str]]:
        """This machine's own networks may have changed: do what follows from that, and make again
        what others have taken away of ours.
        """
        return self._lock.run(self._renew, again=True)

    def before_all(self) -> SystemState | None:
        """What must hold before the hub is asked for anything: the kill switch, None without it."""
        kill_switch = self._kill_switch()
        return None if kill_switch is None else SystemState(kill_switch=kill_switch)

    async def _guard(self) -> list[str]:
        """Let the kill switch go with the network while the hub has not said a word."""
        state = self.before_all()
        return [] if state is None else await self._child.apply(state)

    def _kill_switch(self) -> KillSwitch | None:
        if not self.wishes.kill_switch:
            return None
        lans = self._lans() if self.wishes.keeps_lan else ()
        return KillSwitch(
            owner=self._owner,
            device=self._tun,
            ports=self._ports(),
            resolvers=tuple(self.servers_before()),
            lan=tuple(str(network) for _, network in lans),
        )

    def servers_before(self) -> list[str]:
        """Return the name servers that this machine had before it had the hub's."""
        ours = () if self.told is None else tuple(map(str, self.told.dns))
        # Where there is no other one, one is both, as public ones often are; it is then asked
        # around the tunnel as it was before.
        return upstream(without=ours) or upstream()

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows of it."""
        plan = self.plan
        servers = None if plan is None else plan.state.name_servers
        return {
            "all_traffic": [] if plan is None else sorted(plan.full),
            "all_traffic_asked": self.wishes.all_traffic,
            "routes": [] if plan is None else [str(network) for network in plan.routes],
            "name_servers": [] if servers is None else list(servers.servers),
            "search": [] if servers is None else list(servers.search),
            "kill_switch": self.wishes.kill_switch,
            "notes": [] if plan is None else list(plan.notes),
        }

    async def _change(self, told: Config, wishes: Wishes, *, asked: bool, again: bool) -> list[str]:
        own = _networks(told)
        # It asks `ip` and blocks for some milliseconds. With other networks than before nothing is
        # being served; the same ones come with every login, and have been on the TUN since.
        if self.told is None or own != _networks(self.told):
            remedy = "this machine cannot be in both networks"
            subnet_free(own, ours=self._tun, remedy=remedy, routed=False)
        before = self.plan
        try:
            found = self._decided(told, wishes)
        except VPNError:
            if again and before is not None:
                # What stays must stay whole, whatever others have taken away of it.
                await self._child.apply(before.state)
            raise
        if asked and wishes.all_traffic and not found.full:
            raise ConfigError(NOT_OFFERED)
        if found == before and not again:
            self.told, self.wishes = told, wishes
            return []
        old = () if before is None else before.routes
        # What is sent before the change is through must find its way, and after it no other.
        self._route(dict.fromkeys((*old, *found.routes)))
        try:
            lines = await self._child.apply(found.state)
        except BaseException:
            self._route(old)
            raise
        self._route(found.routes)
        self.told, self.wishes, self.plan = told, wishes, found
        known = () if before is None else before.notes
        notes = [f"note: {note}" for note in found.notes if note not in known]
        return [*self._fresh(lines), *notes]

    def _fresh(self, lines: list[str]) -> list[str]:
        """Leave out what the child has noted before: it notes the same each time."""
        fresh = [line for line in lines if line not in self._noted]
        self._noted = {line for line in lines if line.startswith("note:")}
        return fresh

    def _renew(
        self, told: Config | None = None, all_traffic: bool | None = None, again: bool = False
    ) -> Deferred[list[str]]:
        """Make the change of what is given; before the hub's first word there is none to make."""
        wishes = self.wishes
        asked = all_traffic is not None
        if all_traffic is not None:
            wishes = evolve(wishes, all_traffic=all_traffic)
        told = told or self.told
        if told is None:
            self.wishes = wishes
            return Deferred.fromCoroutine(self._guard())
        return Deferred.fromCoroutine(self._change(told, wishes, asked=asked, again=again))

    def _decided(self, told: Config, wishes: Wishes) -> Plan:
        """What shall be, with nothing changed yet."""
        ipv6 = ipv6_available()
        link, notes = link_of(told, wishes, self._tun, self._path, ipv6=ipv6)
        machine = Machine(
            self._tun,
            socket.if_nametoindex(self._tun),
            self._ports(),
            self._hub(),
            self._lans(),
            ipv6,
            forwards(),
            hub_sysctls(self._tun) if wishes.share else {},
        )
        found = plan(told, wishes, machine, link, notes)
        found = evolve(found, state=evolve(found.state, kill_switch=self._kill_switch()))
        if wishes.all_traffic and found != self.plan:
            other = uplink.other_full_tunnel(self._system, TABLES + machine.index)
            if other is not None:
                raise ConfigError(
                    f"all traffic of this machine goes through {other} already, another client's;"
                    " end that one first, or leave --all-traffic out (with --wireguard: 0.0.0.0/0"
                    " and ::/0)"
                )
        return found

    def _lans(self) -> tuple[tuple[str, Network], ...]:
        return tuple(uplink.private_lans(self._system, self._tun))


def _networks(told: Config) -> frozenset[Network]:
    return frozenset(interface.network for interface in told.addresses)
