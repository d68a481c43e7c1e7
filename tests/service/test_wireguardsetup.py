"""What a wg-quick file becomes: requests to the core, Linux's state, warnings and refusals."""

from __future__ import annotations

import tempfile
from ipaddress import ip_address
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.config import WireGuardClientConfig
from pyvpn.core.noise import KeyPair
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import Address, Route
from pyvpn.service import wireguardsetup
from pyvpn.wgconf import WireGuardConf, format_key, parse_conf

PRIVATE = bytes(range(1, 33))
PEER, OTHER = bytes([7]) * 32, bytes([9]) * 32


def conf(interface: str = "", *peers: str) -> WireGuardConf:
    text = f"[Interface]\nPrivateKey = {format_key(PRIVATE)}\n{interface}\n"
    return parse_conf(text + "\n".join(peers), "office.conf")


def peer(more: str, key: bytes = PEER) -> str:
    return f"[Peer]\nPublicKey = {format_key(key)}\n{more}\n"


class SetupCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = Path(directory.name) / "office.conf"
        self.file.touch(0o600)
        self.config = WireGuardClientConfig.load({"wireguard": str(self.file)})


class StateTests(SetupCase):
    """Links and routes."""

    def routes(self, given: WireGuardConf, known: wireguardsetup.Known | None = None) -> list[str]:
        state = wireguardsetup.system_state(self.config, given, known or {})
        self.assertEqual({route.device for route in state.routes} - {"office"}, set())
        return [route.destination for route in state.routes]

    def test_link(self) -> None:
        """The link has the file's name, addresses and MTU; an option beats the file, and 1420 is
        taken where nobody says anything."""
        given = conf("Address = 10.9.0.2/24, fd00:9::2/64\nMTU = 1380", peer("AllowedIPs = ::/0"))
        (link,) = wireguardsetup.system_state(self.config, given, {}).links
        self.assertEqual((link.name, link.mtu), ("office", 1380))
        self.assertEqual(link.addresses, (Address("10.9.0.2/24"), Address("fd00:9::2/64")))
        config = WireGuardClientConfig.load({"wireguard": str(self.file), "mtu": 1300})
        self.assertEqual(wireguardsetup.mtu(config, given), 1300)
        self.assertEqual(wireguardsetup.mtu(self.config, conf("", peer(""))), 1420)

    def test_routes(self) -> None:
        """Each allowed network becomes a route once, but for all traffic and for what is in the
        networks of our own addresses."""
        given = conf(
            "Address = 10.9.0.2/24, 10.8.0.2/32",
            peer("AllowedIPs = 0.0.0.0/0, ::/0, 10.9.0.0/24, 10.9.0.7, 10.9.0.0/16, 10.8.0.0/24"),
            peer("AllowedIPs = 10.8.0.0/24, 2001:db8::/32", OTHER),
        )
        self.assertEqual(self.routes(given), ["10.9.0.0/16", "10.8.0.0/24", "2001:db8::/32"])

    def test_table(self) -> None:
        """Table says whether there are routes; those of other tables are left to wg-quick."""
        for table, there in (
            ("auto", True),
            ("main", True),
            ("254", True),
            ("off", False),
            ("1234", False),
        ):
            given = conf(f"Table = {table}", peer("AllowedIPs = 10.1.0.0/16"))
            self.assertEqual(self.routes(given), ["10.1.0.0/16"] * there, table)

    def test_names_first(self) -> None:
        """The networks of a peer whose name has not been looked up yet are not routed: who knows
        the name may be there."""
        given = conf("", peer("AllowedIPs = 10.1.0.0/16\nEndpoint = vpn.example.org:1"),
                     peer("AllowedIPs = 10.2.0.0/16", OTHER))  # fmt: skip
        self.assertEqual(self.routes(given), ["10.2.0.0/16"])
        known = {PEER: {ip_address("192.0.2.1")}}
        self.assertEqual(self.routes(given, known), ["10.1.0.0/16", "10.2.0.0/16"])

    def test_endpoint_within(self) -> None:
        """A network that holds the endpoint of any peer is not routed, and it is said which."""
        given = conf(
            "",
            peer("AllowedIPs = 10.1.0.0/16, 10.2.0.0/16\nEndpoint = 10.1.2.3:1"),
            peer("AllowedIPs = 2001:db8::/32\nEndpoint = [2001:db8::5]:1", OTHER),
        )
        known = {PEER: {ip_address("10.1.2.3")}, OTHER: {ip_address("2001:db8::5")}}
        self.assertEqual(self.routes(given, known), ["10.2.0.0/16"])
        held = [(str(network), text) for network, text in
                wireguardsetup.held_endpoints(given, known)]  # fmt: skip
        self.assertEqual(held, [("10.1.0.0/16", "10.1.2.3"), ("2001:db8::/32", "2001:db8::5")])
        self.assertEqual(wireguardsetup.held_endpoints(given, {}), [])

    def test_route_values(self) -> None:
        """A route goes through the link of that state."""
        given = conf("", peer("AllowedIPs = 10.1.0.0/16"))
        state = wireguardsetup.system_state(self.config, given, {})
        self.assertEqual(state.routes, (Route("10.1.0.0/16", "office"),))


class ChangesTests(SetupCase):
    def test_changes(self) -> None:
        """The core gets the key as X25519 uses it, and each peer with all but its endpoint."""
        given = conf(
            "",
            peer("PresharedKey = " + format_key(OTHER) + "\nPersistentKeepalive = 25\n"
                 "AllowedIPs = 10.1.0.0/16\nEndpoint = vpn.example.org:1"),
        )  # fmt: skip
        made = wireguardsetup.changes(given)
        assert made.private_key is not None
        self.assertEqual(made.private_key[0] & 7, 0)
        self.assertEqual(KeyPair.of(made.private_key).public, KeyPair.of(PRIVATE).public)
        self.assertTrue(made.replace_peers)
        (one,) = made.peers
        self.assertEqual((one.public_key, one.preshared_key, one.keepalive), (PEER, OTHER, 25))
        self.assertIsNone(one.endpoint)
        self.assertEqual([str(ip.network) for ip in one.allowed_ips], ["10.1.0.0/16"])

    def test_port(self) -> None:
        """The port is the option's, else the file's, else any; 0 as an option is any, too."""
        for option, line, port in (
            (None, "", 0),
            (None, "ListenPort = 7", 7),
            (8, "ListenPort = 7", 8),
            (0, "ListenPort = 7", 0),
        ):
            config = WireGuardClientConfig.load({"wireguard": str(self.file), "port": option})
            self.assertEqual(wireguardsetup.port(config, conf(line, peer(""))), port)


class CheckTests(SetupCase):
    """What is refused, and what is warned of."""

    def refused(self, given: WireGuardConf, said: str) -> None:
        with self.assertRaises(ConfigError) as caught:
            wireguardsetup.check(self.config, given)
        self.assertEqual(str(caught.exception), f"{self.file}, {said}")

    def test_refused(self) -> None:
        """A file that cannot work is refused with the key that is wrong."""
        ok = peer("AllowedIPs = 10.1.0.0/16")
        self.refused(
            parse_conf("[Interface]\n" + ok, "office.conf"),
            "PrivateKey: it is missing in [Interface]; 'wg genkey' makes one",
        )
        self.refused(conf(), "[Peer]: there is none, so nobody to talk to")
        self.refused(
            conf("", ok, peer("", KeyPair.of(PRIVATE).public)),
            "PublicKey: a [Peer] has this machine's own key",
        )
        self.refused(conf("MTU = 575", ok), "MTU: 575 is too small; the least here is 576")
        for six in (conf("MTU = 1279\nAddress = fd00::1/64", ok),
                    conf("MTU = 1279", peer("AllowedIPs = fd00::/64"))):  # fmt: skip
            self.refused(six, "MTU: 1279 is too small; the least here is 1280")
        many = ", ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(4097))
        self.refused(
            conf("", peer(f"AllowedIPs = {many}")),
            "AllowedIPs: these are 4097 routes, more than 4096; write 'Table = off' and set them"
            " yourself",
        )
        # The controls.
        fewer = many.rpartition(",")[0]
        for good in (
            conf("", ok),
            conf("MTU = 576", ok),
            conf("MTU = 1280\nAddress = fd00::1/64", ok),
            conf("", peer(f"AllowedIPs = {fewer}")),
            conf("Table = off", peer(f"AllowedIPs = {many}")),
        ):
            wireguardsetup.check(self.config, good)

    def test_warnings(self) -> None:
        """What is not done is said, and only that."""
        address = "Address = 10.9.0.2/24"
        remedy = "for that, use wg-quick with WG_QUICK_USERSPACE_IMPLEMENTATION=pyvpn-wg"
        undone = f"{self.file}: not done by --wireguard:"
        ok = peer("AllowedIPs = 10.1.0.0/16")
        every = peer("AllowedIPs = 0.0.0.0/0, ::/0, 10.1.0.0/16")
        for given, said in (
            (conf(address, ok), []),
            (conf(f"{address}\nTable = off", every), []),
            (conf("", ok), [f"{self.file}: no Address, so this machine has none in the tunnel"]),
            (
                conf(f"{address}\nPostUp = true\nPostUp = true\nPreDown = x\nDNS = 10.9.0.1", ok),
                [f"{undone} PostUp, PreDown, DNS; {remedy}"],
            ),
            (
                conf(f"{address}\nDNS = example.org\nSaveConfig = true\nTable = 7", every),
                [f"{undone} DNS, SaveConfig, Table = 7 (so no routes are set); {remedy}"],
            ),
            (
                conf(address, every),
                [
                    f"{self.file}: 0.0.0.0/0 and ::/0 in AllowedIPs: --wireguard does not send all"
                    " traffic of this machine through the tunnel, only what goes to narrower"
                    f" networks there; {remedy}"
                ],
            ),
        ):
            self.assertEqual(wireguardsetup.warnings(self.config, given), said)
        held = conf(address, peer("AllowedIPs = 10.1.0.0/16\nEndpoint = 10.1.0.1:1"))
        self.assertEqual(
            wireguardsetup.warnings(self.config, held),
            [
                f"{self.file}: 10.1.0.0/16 of AllowedIPs holds the endpoint 10.1.0.1, so it is not"
                f" routed through the tunnel; {remedy}"
            ],
        )
        self.file.chmod(0o640)
        self.assertEqual(
            wireguardsetup.warnings(self.config, conf(address, ok)),
            [f"{self.file} holds a private key, and others may read it: chmod 600 it"],
        )
