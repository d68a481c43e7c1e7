"""What the hub was last started with: commands that need it may come while it does not run."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network

from attrs import frozen
from twisted.internet.defer import Deferred

from pyvpn.config import INNER_MTU, SERVER_PORT, SUBNET
from pyvpn.errors import StoreError
from pyvpn.state.directory import SUBNET6_SETTING
from pyvpn.state.interface import IStore

#: The store's setting.
NETWORK_SETTING = "network"


@frozen
class HubNetwork:
    """A hub's inner networks, its UDP port and the inner MTU of its interface."""

    subnet: IPv4Network
    subnet6: IPv6Network | None
    port: int
    mtu: int

    @classmethod
    def stored(cls, store: IStore) -> HubNetwork:
        """What the last start used; before the first one, what it will use without options.

        :raises StoreError: the setting makes no sense.
        """
        text = store.setting(NETWORK_SETTING)
        try:
            if text is None:
                subnet6 = store.setting(SUBNET6_SETTING)
                return cls(
                    SUBNET, IPv6Network(subnet6) if subnet6 else None, SERVER_PORT, INNER_MTU
                )
            entry = json.loads(text)
            subnet6 = entry["subnet6"]
            return cls(
                IPv4Network(entry["subnet"]),
                None if subnet6 is None else IPv6Network(subnet6),
                int(entry["port"]),
                int(entry["mtu"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the store's setting '{NETWORK_SETTING}' is damaged; start the hub once"
            ) from error

    def keep(self, store: IStore) -> Deferred[None] | None:
        """Write it, if it is not there already."""
        entry = {
            "subnet": str(self.subnet),
            "subnet6": None if self.subnet6 is None else str(self.subnet6),
            "port": self.port,
            "mtu": self.mtu,
        }
        text = json.dumps(entry)
        if store.setting(NETWORK_SETTING) == text:
            return None
        return store.set_setting(NETWORK_SETTING, text)

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """The inner networks, IPv4 first."""
        return [self.subnet] if self.subnet6 is None else [self.subnet, self.subnet6]

    def addresses(self) -> list[str]:
        """The hub's own inner addresses, the first host of each network, with prefix lengths."""
        return [f"{network[1]}/{network.prefixlen}" for network in self.networks()]
