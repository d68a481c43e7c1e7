"""What administrators may do to what a network offers: settings and routes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from attrs import evolve
from twisted.internet.defer import Deferred

from pyvpn import routes
from pyvpn.errors import ConfigError
from pyvpn.routes import Route
from pyvpn.state.holders import holder
from pyvpn.state.interface import Device, IStore
from pyvpn.state.network import HubNetwork
from pyvpn.state.settings import SETTING, NetworkOptions, NetworkSettings, dns_text
from pyvpn.values import Network

Audit = Callable[[str | None, str, str], Coroutine[Any, Any, None]]


class Live(Protocol):
    """The network of a running hub, as far as administration touches it.

    :ivar options: those of its start, which win over settings.
    """

    options: NetworkOptions

    def check(self, settings: NetworkSettings) -> list[str]:
        """Refuse what the hub could not follow (ConfigError); return what people should know."""

    def follow(self, settings: NetworkSettings) -> Deferred[None]:
        """Make it so; fails with ConfigError, and all is as it was."""

    def peers_changed(self) -> Deferred[list[str]]:
        """Let the routes be those of the stock peers by now; never fails."""

    def problems(self) -> Mapping[Network, str]:
        """The networks that are left out, and why."""


class NetworkAdministration:
    """The commands ``network_…`` and ``route_…`` of an administration, and its part in others.

    :param live: the running hub's network, None without one.
    :param audit: writes (user, event, detail).
    """

    def __init__(self, store: IStore, live: Live | None, audit: Audit) -> None:
        self._store = store
        self._live = live
        self._audit = audit
        self._options = NetworkOptions() if live is None else live.options

    def settings(self) -> NetworkSettings:
        """What the store holds.

        :raises StoreError: it makes no sense.
        """
        return NetworkSettings.stored(self._store.setting)

    # -- commands -----------------------------------------------------------------------------

    async def show(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {internet, client_to_client, dns, search, excluded, routes, fixed}: as it is.

        ``fixed`` tells which option fixes what until the hub is started without it.
        """
        wanted = self._options.over(self.settings())
        return {
            "internet": wanted.internet,
            "client_to_client": wanted.client_to_client,
            "dns": dns_text(wanted.dns),
            "search": [] if wanted.dns == "none" else list(wanted.domains),
            "excluded": list(map(str, wanted.excluded)),
            "routes": self._rows(wanted),
            "fixed": self._options.fixed(),
        }

    async def set(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{internet and client_to_client: on or off, dns, search, exclude} → as :meth:`show`, with
        ``warnings``: what is given is changed."""
        changes: dict[str, Any] = {}
        for key, (name, parse) in _SETTINGS.items():
            if key in arguments:
                if (option := self._options.fixed().get(name)) is not None:
                    raise ConfigError(
                        f"this run of the hub was started with {option}; start it without to change"
                        " that",
                        key=key,
                    )
                try:
                    changes[name] = parse(arguments[key])
                except ConfigError as error:
                    raise ConfigError(error.message, key=key) from None
        if not changes:
            raise ConfigError("nothing is to be changed; see: pyvpn network set --help")
        settings = evolve(self.settings(), **changes)
        self._check_excluded(settings)
        warnings = await self._change(settings, "network_set", ",".join(sorted(changes)))
        if "dns" in changes:
            warnings = warnings + routes.unreached(settings.dns, self._networks(settings))
        return {**await self.show({}), "warnings": warnings}

    async def route_add(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{network, via: USER or USER/DEVICE, empty for the hub's side} → {route, warnings}."""
        route = Route(_network(arguments), *holder(self._store, arguments.get("via", "")))
        settings = self.settings()
        self._check_new(route, self._options.over(settings))
        if len(settings.routes) >= routes.MOST_ROUTES:
            raise ConfigError(f"there are {routes.MOST_ROUTES} routes already, which is the most")
        settings = evolve(settings, routes=(*settings.routes, route))
        detail = f"{route.network} {self._where(route)}"
        warnings = await self._change(settings, "route_added", detail, route.user)
        return {"route": self._row(route), "warnings": warnings}

    async def route_remove(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{network} → {route}: what it was."""
        network = _network(arguments)
        settings = self.settings()
        if network in self._options.routes:
            raise ConfigError(
                f"this run of the hub was started with --route {network}; start it without to take"
                " the route away"
            )
        found = [route for route in settings.routes if route.network == network]
        if not found:
            raise self._no_route(network)
        route, row = found[0], self._row(found[0])
        left = tuple(other for other in settings.routes if other is not route)
        detail = f"{route.network} {self._where(route)}"
        await self._change(evolve(settings, routes=left), "route_removed", detail, route.user)
        return {"route": row}

    async def route_list(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {routes}: each {network, where, source, problem}, those of stock peers too."""
        return {"routes": self._rows(self._options.over(self.settings()))}

    # -- for the other commands -----------------------------------------------------------------

    async def forget_user(self, name: str) -> list[str]:
        """Take away the routes to what is behind a user; return what they were."""
        settings = self.settings()
        gone = [route for route in settings.routes if route.user == name]
        if gone:
            left = tuple(route for route in settings.routes if route.user != name)
            await self._change(evolve(settings, routes=left), "routes_removed", "", name)
        return [str(route.network) for route in gone]

    async def follow_peers(self) -> list[str]:
        """Let the hub's routes follow a change of stock peers; return warnings."""
        return [] if self._live is None else await self._live.peers_changed()

    def offered(self, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """What a new stock peer may be told: {internet, dns, search, routes}.

        :param without: the networks behind that peer itself.
        """
        wanted = self._options.over(self.settings())
        dns: list[str] = []
        if wanted.dns == "hub":
            network = HubNetwork.stored(self._store)
            dns = [address.partition("/")[0] for address in network.addresses()]
        elif wanted.dns != "none":
            dns = list(map(str, wanted.dns))
        routed = [row["network"] for row in self._rows(wanted) if row["problem"] is None]
        return {
            "internet": wanted.internet,
            "dns": dns,
            "search": list(wanted.domains) if dns else [],
            "routes": [network for network in routed if network not in without],
        }

    # -- checks -------------------------------------------------------------------------------

    def _check_new(self, new: Route, settings: NetworkSettings) -> None:
        network = new.network
        if conflict := routes.vpn_conflict(network, HubNetwork.stored(self._store).networks()):
            raise ConfigError(conflict)
        other = routes.route_conflict(new, settings.routes)
        if other is not None:
            if other == new:
                raise ConfigError(f"{network} {self._where(new)} is there already")
            raise ConfigError(
                f"{network} {self._where(new)} overlaps {other.network} {self._where(other)}"
            )
        for name, behind in self._peers().items():
            if (theirs := routes.overlapping(network, behind)) is not None:
                raise ConfigError(f"{network} overlaps {theirs} behind WireGuard peer {name}")
        if network in settings.excluded:
            raise ConfigError(
                f"clients keep {network} out of the tunnel; see: pyvpn network set --exclude"
            )

    def _check_excluded(self, settings: NetworkSettings) -> None:
        vpn = HubNetwork.stored(self._store).networks()
        routed = {route.network for route in self._options.over(settings).routes}
        for network in settings.excluded:
            if conflict := routes.exclusion_conflict(network, vpn):
                raise ConfigError(conflict, key="exclude")
            if network in routed:
                raise ConfigError(f"{network} is a route; remove that before", key="exclude")

    def _no_route(self, network: Network) -> ConfigError:
        for name, behind in self._peers().items():
            if network in behind:
                return ConfigError(
                    f"{network} is behind WireGuard peer '{name}': it goes with the peer"
                )
        return ConfigError(f"there is no route to {network}; to see all: pyvpn route list")

    # -- changes and answers ----------------------------------------------------------------------

    async def _change(
        self, settings: NetworkSettings, event: str, detail: str, user: str | None = None
    ) -> list[str]:
        """Let the hub follow, then write: what cannot be had is not kept, nor the other way."""
        before = self.settings()
        warnings: list[str] = []
        if self._live is not None:
            warnings = self._live.check(settings)
            await self._live.follow(settings)
        try:
            await self._store.set_setting(SETTING, settings.to_text())
        except BaseException:
            if self._live is not None:
                await self._live.follow(before)
            raise
        await self._audit(user, event, detail)
        return warnings

    def _peers(self) -> dict[str, list[Network]]:
        """What is allowed to enabled stock peers beyond their own addresses, by their names."""
        vpn = HubNetwork.stored(self._store).networks()
        found: dict[str, list[Network]] = {}
        for record in self._store.peers().values():
            networks = [network for text in record.allowed_ips for network in routes.networks(text)]
            beyond = [n for n in networks if n.prefixlen and not routes.overlapping(n, vpn)]
            if record.enabled and beyond:
                found[record.name] = beyond
        return found

    def _networks(self, settings: NetworkSettings) -> list[Network]:
        """What clients reach, problems or not."""
        routed = [route.network for route in self._options.over(settings).routes]
        behind = [network for networks in self._peers().values() for network in networks]
        return HubNetwork.stored(self._store).networks() + routed + behind

    def _rows(self, settings: NetworkSettings) -> list[dict[str, Any]]:
        problems = {} if self._live is None else self._live.problems()
        rows = [self._row(route) for route in settings.routes]
        rows += [
            {
                "network": str(network),
                "where": f"behind WireGuard peer {name}",
                "source": "peer",
                "problem": problems.get(network),
            }
            for name, behind in sorted(self._peers().items())
            for network in behind
        ]
        return rows

    def _row(self, route: Route) -> dict[str, Any]:
        problems = {} if self._live is None else self._live.problems()
        fixed = route.user is None and route.network in self._options.routes
        return {
            "network": str(route.network),
            "where": self._where(route),
            "source": "--route" if fixed else "route",
            "problem": problems.get(route.network),
        }

    def _where(self, route: Route) -> str:
        device: Device | None = None
        if route.user is not None and route.device is not None:
            device = self._store.devices().get((route.user, route.device))
        return route.where("" if device is None else device.name)


def _network(arguments: dict[str, str]) -> Network:
    try:
        found = routes.routes(arguments["network"])
    except ConfigError as error:
        raise ConfigError(error.message, key="network") from None
    if len(found) > 1:
        raise ConfigError("give one network at a time", key="network")
    return found[0]


def _switch(text: str) -> bool:
    if text in ("on", "off"):
        return text == "on"
    raise ConfigError(f"'{text}' is neither on nor off")


#: The arguments of ``network_set``: the setting's name and the parser.
_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "internet": ("internet", _switch),
    "client_to_client": ("client_to_client", _switch),
    "dns": ("dns", routes.name_servers),
    "search": ("search", routes.domains),
    "exclude": ("excluded", routes.excluded),
}
SET_ARGUMENTS = frozenset(_SETTINGS)
