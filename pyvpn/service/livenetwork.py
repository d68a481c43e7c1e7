"""What a running hub offers: Linux, the core and the name server follow the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger

from pyvpn.config import NOT_WITH_RELAY, ServerConfig
from pyvpn.core.configtlv import Pushed
from pyvpn.core.hostnames import Names
from pyvpn.core.leases import AddressPool
from pyvpn.core.server import VPNServer
from pyvpn.errors import CommandFailed, ConfigError, StartError
from pyvpn.linux import nameservers
from pyvpn.linux.desired import SystemState
from pyvpn.linux.firewalls import hub_lines, nft_available
from pyvpn.linux.forwarding import hub_sysctls
from pyvpn.linux.inuse import NetworksInUse, numeric_hosts
from pyvpn.linux.system import LinuxSystem, System
from pyvpn.service import hubnetwork
from pyvpn.service.hubnetwork import Known, Machine, Plan
from pyvpn.service.nameserver import NameServer
from pyvpn.state.interface import IStore
from pyvpn.state.settings import NetworkOptions, NetworkSettings, dns_text
from pyvpn.tx.timer import boottime
from pyvpn.values import Network

Apply = Callable[[SystemState], Deferred[list[str]]]


@frozen
class Offer:
    """What is so by now: the settings of this run, and what followed from them."""

    settings: NetworkSettings
    plan: Plan


class LiveNetwork:
    """The settings in force, and who is told of each change.

    :param core: told what clients are offered and what lies behind whom.
    :param peers: stock peers' names → what is allowed to each beyond the VPN's networks.
    :param endpoints: ``HOST:PORT`` by which clients reach this hub, as the store has it.
    :param names: see :class:`pyvpn.service.nameserver.NameServer`.
    :param settle: sends what the core has queued.
    """

    _log = Logger()

    def __init__(
        self,
        config: ServerConfig,
        store: IStore,
        pool: AddressPool,
        core: VPNServer,
        *,
        peers: Callable[[], Mapping[str, list[Network]]],
        endpoints: Callable[[], str | None],
        names: Callable[[], Names],
        settle: Callable[[], None],
        reactor: Any,
        system: System | None = None,
    ) -> None:
        self.options = NetworkOptions.of(config)
        self._config = config
        self._store = store
        self._pool = pool
        self._core = core
        self._peers = peers
        self._endpoints = endpoints
        self._names = names
        self._settle = settle
        self._reactor = reactor
        self._system = LinuxSystem() if system is None else system
        # One change at a time: Linux is told the whole each time.
        self._turn = DeferredLock()
        self._apply: Apply | None = None
        self._name_server: NameServer | None = None
        self._nft = False
        # As it was at the start: by now some of it is our own doing.
        self._sysctls: dict[str, str] = {}
        self._told: set[str] = set()
        self._seen_peers: Mapping[str, list[Network]] = {}
        self._offer: Offer

    # -- starting -----------------------------------------------------------------------------

    def open(self, apply: Callable[[SystemState], list[str]]) -> list[str]:
        """Make Linux so for the first time, and begin to answer for names, if that is wanted.

        :param apply: makes it so and waits for it.
        :returns: the lines for the log.
        :raises StartError: the settings cannot be had together here.
        """
        settings = self.options.over(NetworkSettings.stored(self._store.setting))
        self._sysctls = hub_sysctls(self._config.tun)
        self._nft = nft_available(self._system)
        try:
            self._check(settings)
        except ConfigError as error:
            raise StartError(f"{error}; 'pyvpn network set' works without the hub") from error
        if not self._nft:
            self._log.warn("{line}", line=hubnetwork.UNGUARDED)
        plan = self._plan(settings)
        for place in plan.places:
            if place.problem is not None and place.network in self.options.routes:
                raise StartError(f"--route: {place.problem}")
        lines = apply(plan.state)
        if settings.dns == "hub":
            try:
                self._listen()
            except StartError as error:
                self._log.warn("{error}; clients are told no name server", error=error)
        # Of what the options ask for people were told before the start.
        for line in self._blocked(settings, self.options.over(NetworkSettings())):
            self._log.warn("{line}", line=line)
        self._now(Offer(settings, plan))
        return lines

    def serve(self, apply: Apply) -> None:
        """Take changes from now on.

        :param apply: makes Linux so and does not wait for it.
        """
        self._apply = apply

    def close(self) -> Deferred[Any]:
        """Answer for names no more."""
        server, self._name_server = self._name_server, None
        return succeed(None) if server is None else server.close()

    # -- what administration asks ---------------------------------------------------------------

    def check(self, settings: NetworkSettings) -> list[str]:
        """Refuse settings that this hub could not follow; return what people should know.

        :param settings: as they are to be stored.
        :raises ConfigError: names what stands against what.
        """
        wanted = self.options.over(settings)
        self._check(wanted)
        warnings = self._check_routes(wanted)
        return warnings + self._blocked(wanted, self._offer.settings)

    def _check_routes(self, wanted: NetworkSettings) -> list[str]:
        old = self._offer.plan.places
        new = set(wanted.routes) - {place.route for place in old}
        if not new:
            return []  # what else has happened on this machine is no reason to refuse this
        machine = self._machine()
        plan = hubnetwork.plan(wanted, self._pool, self._known(), machine)
        suffering = {(place.network, place.peer) for place in old if place.problem is not None}
        for place in plan.places:
            if place.problem is not None and (
                place.route in new
                if place.route is not None
                else (place.network, place.peer) not in suffering
            ):
                raise ConfigError(place.problem)
        if machine.endpoints:
            return []
        found = [machine.in_use.perhaps_outer(route.network) for route in new if not route.user]
        return [warning for warning in found if warning is not None]

    def follow(self, settings: NetworkSettings) -> Deferred[None]:
        """Make it so, for Linux, clients and whoever asks for names.

        :param settings: as they are to be stored.
        :returns: fires when it is so; fails with :class:`ConfigError`, and all is as it was.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._follow(settings)))

    def peers_changed(self) -> Deferred[list[str]]:
        """Let the routes be those of the stock peers by now.

        :returns: fires with what people should know; never fails.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._follow_peers()))

    def problems(self) -> dict[Network, str]:
        """The networks that are left out, and why."""
        places = self._offer.plan.places
        return {place.network: place.problem for place in places if place.problem is not None}

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows."""
        settings = self._offer.settings
        told = self._pushed()
        return {
            "internet": settings.internet,
            "client_to_client": settings.client_to_client,
            "dns": list(map(str, told.dns)),
            "dns_wanted": dns_text(settings.dns),
            "search": list(told.search),
            "excluded": list(map(str, told.excluded)),
            "routes": [
                {"network": str(place.network), "where": place.where(), "problem": place.problem}
                for place in self._offer.plan.places
            ],
            "guarded": self._nft,
            "names": {} if self._name_server is None else dict(self._name_server.counters),
        }

    # -- parts --------------------------------------------------------------------------------

    def _check(self, settings: NetworkSettings) -> None:
        if self._config.relay and not settings.client_to_client:
            raise ConfigError(f"--no-client-to-client: {NOT_WITH_RELAY}")
        needed = None if self._nft else hubnetwork.needs_nft(settings)
        if needed is not None:
            raise ConfigError(f"nft does not work here, and without it there is no {needed}")

    def _blocked(self, settings: NetworkSettings, before: NetworkSettings) -> list[str]:
        """What firewalls of this machine will block of what was not offered before."""
        if _reach(settings) == _reach(before):
            return []
        port, tun = self._config.port, self._config.tun
        known = hub_lines(self._system, port, tun, *_reach(before))
        lines = hub_lines(self._system, port, tun, *_reach(settings))
        return [line for line in lines if line not in known]

    def _machine(self) -> Machine:
        return Machine(
            tun=self._config.tun,
            mtu=self._config.mtu,
            sysctls=self._sysctls,
            nft=self._nft,
            in_use=NetworksInUse.read(self._system, self._config.tun),
            endpoints=numeric_hosts(self._endpoints()),
        )

    def _known(self) -> Known:
        self._seen_peers = self._peers()
        return Known(self._store.users(), self._seen_peers)

    def _plan(self, settings: NetworkSettings) -> Plan:
        return hubnetwork.plan(settings, self._pool, self._known(), self._machine())

    async def _follow(self, settings: NetworkSettings) -> None:
        wanted = self.options.over(settings)
        await self._make_so(wanted, self._plan(wanted))

    async def _follow_peers(self) -> list[str]:
        peers = self._peers()
        if peers == self._seen_peers:
            return []
        before = {place.problem for place in self._offer.plan.places}
        try:
            plan = self._plan(self._offer.settings)
            await self._make_so(self._offer.settings, plan)
        except (ConfigError, StartError) as error:
            self._seen_peers = {}
            self._log.error("routes to what is behind WireGuard peers: {error}", error=error)
            return [f"no routes were changed: {error}"]
        return [
            f"{place.problem}; no route leads there"
            for place in plan.places
            if place.problem is not None and place.problem not in before
        ]

    async def _make_so(self, settings: NetworkSettings, plan: Plan) -> None:
        """Linux first: what it refuses nobody has been told of."""
        assert self._apply is not None
        began = self._begin_answering(settings)
        try:
            lines = await self._apply(plan.state)
        except (CommandFailed, StartError) as error:
            if began:
                await self.close()
            raise ConfigError(f"Linux refuses it, all is as it was: {error}") from error
        for line in lines:
            self._log.info("{line}", line=line)
        if settings.dns != "hub":
            await self.close()
        self._now(Offer(settings, plan))
        self._settle()

    def _begin_answering(self, settings: NetworkSettings) -> bool:
        """Begin to answer for names if that is wanted and not so yet; tell whether it is new."""
        if settings.dns != "hub" or self._name_server is not None:
            return False
        try:
            self._listen()
        except StartError as error:
            if self._offer.settings.dns == "hub":
                return False  # it was not possible before, and is not what this change is about
            raise ConfigError(f"{error}; or start the hub anew") from error
        return True

    def _listen(self) -> None:
        addresses = list(map(str, hubnetwork.hub_addresses(self._pool)))
        server = NameServer(
            self._names,
            lambda: nameservers.upstream(without=addresses),
            hubnetwork.networks(self._pool),
            self._reactor,
        )
        server.listen(addresses)
        self._name_server = server

    def _pushed(self) -> Pushed:
        offer = self._offer
        routed = offer.plan.routed()
        return hubnetwork.pushed(offer.settings, self._pool, routed, self._name_server is not None)

    def _now(self, offer: Offer) -> None:
        """Tell the log and the core what is so now: the core sends clients what is new to them."""
        self._offer = offer
        problems = offer.plan.problems()
        for problem in problems:
            if problem not in self._told:
                self._log.warn("{problem}", problem=problem)
        self._told = set(problems)
        self._core.set_network(self._pushed(), offer.plan.subnets, boottime())


def _reach(settings: NetworkSettings) -> tuple[bool, bool]:
    """Whether clients are let beyond the VPN by the hub's machine itself, and ask it for names."""
    beyond = settings.internet or any(route.user is None for route in settings.routes)
    return beyond, settings.dns == "hub"
