"""What clients are offered, as a store keeps it and as the options of a run change it."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.config import ServerConfig
from pyvpn.errors import StoreError
from pyvpn.routes import Route
from pyvpn.state.settings import NetworkOptions, NetworkSettings

FULL = NetworkSettings(
    internet=True,
    client_to_client=False,
    dns=(ip_address("10.20.0.53"), ip_address("fd00::53")),
    search=("corp.example",),
    excluded=(ip_network("192.168.0.0/16"),),
    routes=(
        Route(ip_network("10.20.0.0/16")),
        Route(ip_network("10.30.0.0/16"), "jo/e"),
        Route(ip_network("fd00:7::/64"), "alice", bytes(range(16))),
    ),
)


def stored(text: str | None) -> NetworkSettings:
    return NetworkSettings.stored({"network_settings": text}.get)


class NetworkSettingsTests(SynchronousTestCase):
    """The one setting of the store."""

    def test_defaults(self) -> None:
        """A store without it offers the VPN, clients to each other, and the hub's names."""
        self.assertEqual(NetworkSettings(False, True, "hub", (), (), ()), stored(None))

    def test_round_trip(self) -> None:
        """What is written is read again, every field of it."""
        for settings in (NetworkSettings(), FULL, evolve(FULL, dns="none")):
            self.assertEqual(settings, stored(settings.to_text()))

    def test_damaged(self) -> None:
        """Whatever is not what we wrote is a StoreError in one line, never half taken."""
        entry = json.loads(FULL.to_text())
        self.assertEqual(FULL, stored(json.dumps(entry)))  # positive control
        routes = entry["routes"]
        bad: list[dict[str, Any]] = [
            {"internet": 1},
            {"client_to_client": None},
            {"dns": "ns.example"},
            {"dns": 5},
            {"search": "a b"},
            {"excluded": "10.0.0.1/8"},
            {"routes": None},
            {"routes": [{**routes[0], "network": "0.0.0.0/0"}]},
            {"routes": [{**routes[0], "network": "10.0.0.0/8,11.0.0.0/8"}]},
            {"routes": [{**routes[0], "device": "00"}]},
            {"routes": [{**routes[2], "device": "zz"}]},
            {"routes": [{"network": "10.20.0.0/16"}]},
        ]
        texts = ["", "[]", "null", "{}", *(json.dumps({**entry, **change}) for change in bad)]
        for text in texts:
            error = self.assertRaises(StoreError, stored, text)
            self.assertRegex(
                str(error),
                r"\Athe store's setting 'network_settings' is damaged \(.*\); restore the state"
                r" directory from a backup\Z",
            )


class NetworkOptionsTests(SynchronousTestCase):
    """Options against settings."""

    def test_nothing_given(self) -> None:
        """A run without options has the settings, and fixes none of them."""
        options = NetworkOptions.of(ServerConfig.load(None, {"internet": 0}))
        self.assertEqual(FULL, options.over(FULL))
        self.assertEqual({}, options.fixed())

    def test_options_win(self) -> None:
        """What is given wins over the setting; routes come on top, each network once."""
        given = {
            "internet": 1,
            "no-client-to-client": 1,
            "dns": "none",
            "search": "none",
            "exclude": "none",
            "route": "10.30.0.0/16,10.40.0.0/16",
        }
        options = NetworkOptions.of(ServerConfig.load(None, given))
        wanted = NetworkSettings(
            internet=True,
            client_to_client=False,
            dns="none",
            routes=(
                Route(ip_network("10.30.0.0/16")),
                Route(ip_network("10.40.0.0/16")),
                FULL.routes[0],
                FULL.routes[2],
            ),
        )
        self.assertEqual(wanted, options.over(FULL))
        self.assertEqual(
            {
                "internet": "--internet",
                "client_to_client": "--no-client-to-client",
                "dns": "--dns",
                "search": "--search",
                "excluded": "--exclude",
            },
            options.fixed(),
        )
