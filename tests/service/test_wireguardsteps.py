"""A client of a WireGuard server: each failing step of its start, what it tells, its status."""

from __future__ import annotations

import base64
import os
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import TestCase

from pyvpn.config import WireGuardClientConfig
from pyvpn.core.noise import KeyPair
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import SystemState
from pyvpn.service.wireguardclient import WireGuardClientService
from pyvpn.wgconf import parse_conf
from tests.service import test_steps
from tests.service.test_steps import RecordingChild

SERVER = KeyPair.of(bytes(range(32))).public


class WireGuardClientTests(test_steps.StepsMixin, TestCase):
    steps = [
        "pyvpn.tx.udp.UDPPort.set_mark",
        "pyvpn.tx.udp.UDPPort.bind",
        "tests.service.test_steps.PipeTUN.__init__",
        "pyvpn.service.wireguardcontrol.WireGuardControl.__init__",
        "pyvpn.service.uapisocket.UAPISocket.open",
        "tests.service.test_steps.RecordingChild.start",
        "tests.service.test_steps.RecordingChild.apply",
        "pyvpn.tx.protocol.VPNProtocol.attach",
        "pyvpn.tx.tun.TUNPort.startReading",
        "pyvpn.service.uapisocket.UAPISocket.serve",
        "pyvpn.service.wireguardcontrol.WireGuardControl.set",
        "pyvpn.tx.linkmonitor.LinkMonitor.__init__",
        "pyvpn.service.controlsocket.ControlSocket.listen",
    ]

    def make(self, endpoint: str = "127.0.0.1:9") -> WireGuardClientService:
        file = self.directory / "office.conf"
        config = WireGuardClientConfig.load(
            {
                "wireguard": str(file),
                "port": self.port,
                "state_dir": str(self.directory / "client"),
                "run_dir": str(self.directory / "run"),
            }
        )
        private, public = (base64.b64encode(key).decode() for key in (os.urandom(32), SERVER))
        conf = parse_conf(
            f"[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.2/24\n[Peer]\n"
            f"PublicKey = {public}\nAllowedIPs = 10.8.0.0/16\nEndpoint = {endpoint}\n"
            "PersistentKeepalive = 7\n",
            "office.conf",
        )
        return WireGuardClientService(
            config, conf, None, self.surroundings(), uapi_directory=self.directory / "wireguard"
        )

    def test_twice(self) -> Deferred[None]:
        """A service that was stopped starts again, with a new core and all of the file in it."""

        async def run() -> None:
            service = self.make()
            for _ in range(2):
                self.assertIsNone(test_steps._start(service))
                (peer,) = service.core.wireguard.peers.values()
                self.assertEqual((peer.public_key, peer.keepalive_interval), (SERVER, 7))
                self.assertEqual(
                    [str(network) for network in service.core.wireguard.networks(peer)],
                    ["10.8.0.0/16"],
                )
                await maybeDeferred(service.stopService)
                self.assertNothingLeft()

        return Deferred.fromCoroutine(run())

    def test_status(self) -> Deferred[None]:
        """The control socket knows status alone, which tells the file, the sums and each peer,
        and no key but public ones."""

        async def run() -> None:
            service = self.make()
            self.assertIsNone(test_steps._start(service))
            told = service._command("status", {})
            self.assertRaises(ConfigError, service._command, "user_add", {})
            await maybeDeferred(service.stopService)
            self.assertEqual(told["state"], "connecting")
            self.assertEqual((told["role"], told["profile"]), ("client", "office"))
            self.assertEqual(told["server"], "127.0.0.1:9")
            self.assertEqual(told["addresses"], ["10.9.0.2/24"])
            (peer,) = told["peers"]
            self.assertEqual(peer["public_key"], base64.b64encode(SERVER).decode())
            self.assertEqual((peer["last_handshake"], peer["keepalive"]), (0, 7))
            self.assertEqual(peer["allowed_ips"], ["10.8.0.0/16"])
            secret = base64.b64encode(service._conf.private_key or b"").decode()
            self.assertNotIn(secret, repr(told))

        return Deferred.fromCoroutine(run())

    def test_routes_follow_names(self) -> Deferred[None]:
        """Networks of a peer that a name stands for are routed when it was looked up, less those
        in which it then lies; a name that moves there takes the route away."""
        states: list[SystemState] = []

        async def run() -> None:
            service = self.make("vpn.example.org:9")
            with mock.patch.object(
                RecordingChild, "apply", side_effect=lambda state: states.append(state) or []
            ):
                self.assertIsNone(test_steps._start(service))
            port: Any = mock.Mock()
            port.apply.side_effect = lambda state: maybeDeferred(lambda: states.append(state) or [])
            service._child_port = port
            for host in ("192.0.2.1", "192.0.2.1", "10.8.0.9", "192.0.2.1"):
                service._found(SERVER, [(host, 9)])
            await maybeDeferred(service.stopService)

        done = Deferred.fromCoroutine(run())

        def check(_: None) -> None:
            routes = [[route.destination for route in state.routes] for state in states]
            self.assertEqual(routes, [[], ["10.8.0.0/16"], [], ["10.8.0.0/16"]])

        return done.addCallback(check)
