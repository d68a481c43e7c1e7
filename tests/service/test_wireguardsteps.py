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
from pyvpn.linux.firewall import MARK
from pyvpn.service import networksetup
from pyvpn.service.wireguardclient import WireGuardClientService
from pyvpn.uapi import Changes
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
        "pyvpn.service.names.Names.open",
        "tests.service.test_steps.RecordingChild.start",
        "pyvpn.service.networksetup.NetworkSetup.begin",
        "tests.service.test_steps.RecordingChild.apply",
        "pyvpn.service.names.Names.start",
        "pyvpn.tx.protocol.VPNProtocol.attach",
        "pyvpn.tx.tun.TUNPort.startReading",
        "pyvpn.service.uapisocket.UAPISocket.serve",
        "pyvpn.service.wireguardcontrol.WireGuardControl.set",
        "pyvpn.tx.linkmonitor.LinkMonitor.__init__",
        "pyvpn.service.controlsocket.ControlSocket.listen",
    ]

    def setUp(self) -> None:
        super().setUp()
        for name, value in (("private_lans", []), ("other_full_tunnel", None)):
            self.patch(networksetup.uplink, name, mock.Mock(return_value=value))
        self.patch(networksetup.socket, "if_nametoindex", mock.Mock(return_value=7))

    def make(
        self, interface: str = "", options: dict[str, object] | None = None
    ) -> WireGuardClientService:
        file = self.directory / "office.conf"
        config = WireGuardClientConfig.load(
            {
                "wireguard": str(file),
                "port": self.port,
                "state_dir": str(self.directory / "client"),
                "run_dir": str(self.directory / "run"),
                **(options or {}),
            }
        )
        private, public = (base64.b64encode(key).decode() for key in (os.urandom(32), SERVER))
        conf = parse_conf(
            f"[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.2/24\n{interface}[Peer]\n"
            f"PublicKey = {public}\nAllowedIPs = 10.8.0.0/16\nEndpoint = 127.0.0.1:9\n"
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
            self.assertEqual((told["routes"], told["all_traffic"]), (["10.8.0.0/16"], []))
            (peer,) = told["peers"]
            self.assertEqual(peer["public_key"], base64.b64encode(SERVER).decode())
            self.assertEqual((peer["last_handshake"], peer["keepalive"]), (0, 7))
            self.assertEqual(peer["allowed_ips"], ["10.8.0.0/16"])
            secret = base64.b64encode(service._conf.private_key or b"").decode()
            self.assertNotIn(secret, repr(told))

        return Deferred.fromCoroutine(run())

    def test_wg_resets(self) -> Deferred[None]:
        """What ``wg syncconf`` resets beside peers does no harm: the mark stays, and with another
        port the rules for it are made anew."""

        async def run() -> None:
            service = self.make()
            self.assertIsNone(test_steps._start(service))
            look = self.patched(service, "_settling").now
            service._control.set(Changes(fwmark=0))
            self.assertEqual(service._udp.mark, MARK)
            look.assert_not_called()
            service._control.set(Changes(listen_port=0))
            self.assertNotEqual(service._udp.localPort, self.port)
            look.assert_called_once_with()
            self.assertIn(service._udp.localPort, service._ports())
            await maybeDeferred(service.stopService)

        return Deferred.fromCoroutine(run())

    def test_mark_of_others(self) -> Deferred[None]:
        """Where others set the routes the mark is theirs, from the file and from ``wg``, and no
        rule of ours knows the port then."""

        async def run() -> None:
            service = self.make(interface="Table = off\nFwMark = 7\n")
            self.assertIsNone(test_steps._start(service))
            self.assertEqual(service._udp.mark, 7)
            self.assertNotIn(service._udp.localPort, service._ports())
            service._control.set(Changes(fwmark=8))
            self.assertEqual(service._udp.mark, 8)
            await maybeDeferred(service.stopService)

        return Deferred.fromCoroutine(run())

    def test_kill_switch_first(self) -> Deferred[None]:
        """The kill switch stands before anything else is set."""
        states: list[SystemState] = []

        async def run() -> None:
            service = self.make(options={"kill_switch": 1})
            with mock.patch.object(
                RecordingChild, "apply", side_effect=lambda state: states.append(state) or []
            ):
                self.assertIsNone(test_steps._start(service))
            await maybeDeferred(service.stopService)
            first, second = states
            assert first.kill_switch is not None
            self.assertEqual((first.links, first.kill_switch.owner), ((), "client-office"))
            self.assertIn(self.port, first.kill_switch.ports)
            self.assertEqual(second.kill_switch, first.kill_switch)
            self.assertEqual([link.name for link in second.links], ["office"])

        return Deferred.fromCoroutine(run())

    def patched(self, service: WireGuardClientService, name: str) -> Any:
        made = mock.Mock(wraps=getattr(service, name))
        self.patch(service, name, made)
        made.now = mock.Mock()
        return made
