"""What a hub's network offers to its clients, as administrators have set it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import evolve, frozen

from pyvpn import routes
from pyvpn.config import ServerConfig
from pyvpn.errors import ConfigError, StoreError
from pyvpn.routes import DNS, Route
from pyvpn.values import Network

#: The store's setting.
SETTING: Final = "network_settings"

#: The domain under which a hub knows its clients by name.
DOMAIN: Final = "pyvpn"


@frozen
class NetworkSettings:
    """What clients are offered beside the VPN itself.

    :ivar internet: whether the hub forwards to everywhere.
    :ivar client_to_client: whether clients reach each other.
    :ivar dns: whom clients ask for names.
    :ivar search: domains to complete short names with; with ``dns`` the hub, ours comes first.
    :ivar excluded: networks that clients keep out of the tunnel.
    :ivar routes: networks on the hub's side and behind clients.
    """

    internet: bool = False
    client_to_client: bool = True
    dns: DNS = "hub"
    search: tuple[str, ...] = ()
    excluded: tuple[Network, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The search domains, with ours where the hub answers for it."""
        return tuple(dict.fromkeys((DOMAIN, *self.search))) if self.dns == "hub" else self.search

    @classmethod
    def stored(cls, setting: Callable[[str], str | None]) -> NetworkSettings:
        """What a store holds, the defaults if it holds nothing.

        :param setting: :meth:`pyvpn.state.interface.IStore.setting`.
        :raises StoreError: it makes no sense.
        """
        text = setting(SETTING)
        if text is None:
            return cls()
        try:
            return cls._read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise StoreError(
                f"the store's setting '{SETTING}' is damaged ({error}); restore the state directory"
                " from a backup"
            ) from error

    @classmethod
    def _read(cls, entry: Mapping[str, Any]) -> NetworkSettings:
        for key in ("internet", "client_to_client"):
            if not isinstance(entry[key], bool):
                raise TypeError(f"{key} is neither true nor false")
        return cls(
            internet=entry["internet"],
            client_to_client=entry["client_to_client"],
            dns=routes.name_servers(entry["dns"]),
            search=routes.domains(entry["search"] or "none"),
            excluded=routes.excluded(entry["excluded"] or "none"),
            routes=tuple(map(_route, entry["routes"])),
        )

    def to_text(self) -> str:
        """The setting's value: JSON whose texts are those that people may write."""
        return json.dumps(
            {
                "internet": self.internet,
                "client_to_client": self.client_to_client,
                "dns": dns_text(self.dns),
                "search": ",".join(self.search),
                "excluded": ",".join(map(str, self.excluded)),
                "routes": [
                    {
                        "network": str(route.network),
                        "user": route.user,
                        "device": None if route.device is None else route.device.hex(),
                    }
                    for route in self.routes
                ],
            }
        )


def _route(entry: Mapping[str, Any]) -> Route:
    (network,) = routes.routes(entry["network"])
    user, device = entry["user"], entry["device"]
    if not isinstance(user, str | None) or (user is None and device is not None):
        raise TypeError(f"the route to {network} is nobody's")
    return Route(network, user, None if device is None else bytes.fromhex(device))


def dns_text(dns: DNS) -> str:
    """Name servers as people write them."""
    return dns if isinstance(dns, str) else ",".join(map(str, dns))


@frozen
class NetworkOptions:
    """What the options of one run say of the network; None where they say nothing."""

    internet: bool | None = None
    client_to_client: bool | None = None
    dns: DNS | None = None
    search: tuple[str, ...] | None = None
    excluded: tuple[Network, ...] | None = None
    routes: tuple[Network, ...] = ()

    @classmethod
    def of(cls, config: ServerConfig) -> NetworkOptions:
        """Those that a hub was started with, its configuration file included."""
        apart = config.no_client_to_client
        return cls(
            internet=config.internet,
            client_to_client=None if apart is None else not apart,
            dns=config.dns,
            search=config.search,
            excluded=config.exclude,
            routes=config.route,
        )

    def over(self, settings: NetworkSettings) -> NetworkSettings:
        """Settings as this run has them: options win, and their routes come on top."""
        given = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        kept = tuple(route for route in settings.routes if route.network not in self.routes)
        return evolve(settings, **given, routes=(*map(Route, self.routes), *kept))

    def fixed(self) -> dict[str, str]:
        """What cannot be changed while this run lasts: the setting's name → the option."""
        return {name: option for name, option in OPTIONS.items() if getattr(self, name) is not None}


#: The settings, and the options of the hub that fix them.
OPTIONS: Final = {
    "internet": "--internet",
    "client_to_client": "--no-client-to-client",
    "dns": "--dns",
    "search": "--search",
    "excluded": "--exclude",
}
