"""What a wg-quick file becomes: requests to the core, Linux's state, warnings and refusals."""

from __future__ import annotations

import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.config import WireGuardClientConfig
from pyvpn.core.noise import KeyPair
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import Address
from pyvpn.linux.fields import MAX_ENTRIES
from pyvpn.linux.firewall import MARK
from pyvpn.service import wireguardsetup
from pyvpn.service.clientlink import link_of
from pyvpn.service.clientnetwork import Machine, Plan, Wishes, plan
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


class NetworkTests(SetupCase):
    """What the core's Config and the wishes of a client are then."""

    def wishes(self, given: WireGuardConf, **options: object) -> Wishes:
        return wireguardsetup.wishes(self.options(**options), given)

    def options(self, **options: object) -> WireGuardClientConfig:
        return WireGuardClientConfig.load({"wireguard": str(self.file), **options})

    def planned(self, given: WireGuardConf, **options: object) -> Plan:
        """What comes of it on a machine with a LAN."""
        told, wishes = wireguardsetup.told(given), self.wishes(given, **options)
        link, notes = link_of(told, wishes, "office", 65535, ipv6=True)
        lans = (("eth0", IPv4Network("192.168.1.0/24")),)
        return plan(told, wishes, Machine("office", 7, (5,), lans=lans), link, notes)

    def routes(self, given: WireGuardConf, **options: object) -> dict[str, str]:
        routes = self.planned(given, **options).state.routes
        return {route.destination: route.kind for route in routes}

    def test_link(self) -> None:
        """The link has the file's name, addresses and MTU; an option beats the file, and 1420 is
        taken where nobody says anything."""
        given = conf("Address = 10.9.0.2/24, fd00:9::2/64\nMTU = 1380", peer("AllowedIPs = ::/0"))
        (link,) = self.planned(given).state.links
        self.assertEqual((link.name, link.mtu), ("office", 1380))
        self.assertEqual(link.addresses, (Address("10.9.0.2/24"), Address("fd00:9::2/64")))
        self.assertEqual(wireguardsetup.mtu(self.options(mtu=1300), given), 1300)
        self.assertEqual(self.wishes(given, mtu=1300).mtu, 1300)
        self.assertEqual(wireguardsetup.mtu(self.config, conf("", peer(""))), 1420)

    def test_narrow(self) -> None:
        """Each allowed network is one that the user wants, once, but for what is in the networks
        of our own addresses; a network of this machine goes through the tunnel if it is named."""
        given = conf(
            "Address = 10.9.0.2/24, 10.8.0.2/32",
            peer("AllowedIPs = 10.9.0.0/24, 10.9.0.7, 10.9.0.0/16, 10.8.0.0/24"),
            peer("AllowedIPs = 10.8.0.0/24, 2001:db8::/32, 192.168.0.0/16", OTHER),
        )
        self.assertEqual(wireguardsetup.told(given).routes, ())
        self.assertEqual(
            self.routes(given),
            {
                "10.9.0.0/24": "unicast",
                "10.8.0.2/32": "unicast",
                "10.9.0.0/16": "unicast",
                "10.8.0.0/24": "unicast",
                "2001:db8::/32": "unicast",
                "192.168.0.0/16": "unicast",
            },
        )
        named = conf("", peer("AllowedIPs = 192.168.1.0/24"))
        self.assertEqual(self.routes(named), {"192.168.1.0/24": "unicast"})

    def test_all_traffic(self) -> None:
        """/0 is all traffic of its family, in pieces too; the other family leads nowhere."""
        both = {
            "0.0.0.0/0": "unicast",
            "::/0": "unicast",
            "169.254.0.0/16": "throw",
            "192.168.1.0/24": "throw",
        }
        given = conf("", peer("AllowedIPs = 0.0.0.0/0, ::/0"))
        self.assertEqual(self.routes(given), both)
        self.assertEqual(wireguardsetup.full(given), {4, 6})
        halves = conf("", peer("AllowedIPs = 0.0.0.0/1, 128.0.0.0/1, ::/0"))
        pieces = {"0.0.0.0/1": "unicast", "128.0.0.0/1": "unicast"}
        self.assertEqual(self.routes(halves), both | pieces)
        four = conf("", peer("AllowedIPs = 0.0.0.0/0"))
        self.assertEqual(self.routes(four), both | {"::/0": "unreachable"})
        # The control: one half is none.
        half = conf("", peer("AllowedIPs = 0.0.0.0/1"))
        self.assertFalse(self.wishes(half).all_traffic)
        self.assertEqual(self.routes(half), {"0.0.0.0/1": "unicast"})

    def test_endpoint_within(self) -> None:
        """A network that holds the endpoint of a peer is routed as others are: what carries the
        tunnel goes past it by its mark."""
        given = conf("", peer("AllowedIPs = 10.1.0.0/16\nEndpoint = 10.1.2.3:1"))
        self.assertEqual(self.routes(given)["10.1.0.0/16"], "unicast")
        self.assertEqual(wireguardsetup.mark(given), MARK)

    def test_exclude(self) -> None:
        """What the option excludes stays outside, be it all of what the file names or a part."""
        given = conf("", peer("AllowedIPs = 10.1.0.0/16, 192.168.0.0/16"))
        (note,) = self.planned(given).notes
        self.assertIn("--exclude 192.168.1.0/24", note)
        nets = "192.168.1.0/24,10.1.0.0/16"
        self.assertEqual(
            self.routes(given, exclude=nets),
            {"192.168.0.0/16": "unicast", "192.168.1.0/24": "throw", "10.1.0.0/16": "throw"},
        )
        self.assertEqual(self.planned(given, exclude=nets).notes, ())

    def test_table(self) -> None:
        """Table says whether there are routes; those of other tables are left to wg-quick, and
        then the file's mark is used, if it has one."""
        for table, there in (
            ("auto", True),
            ("main", True),
            ("254", True),
            ("off", False),
            ("1234", False),
        ):
            peers = peer("AllowedIPs = 10.1.0.0/16, 0.0.0.0/0")
            given = conf(f"Table = {table}\nFwMark = 7", peers)
            state = self.planned(given).state
            self.assertEqual(bool(state.routes), there, table)
            self.assertEqual(bool(state.rules), there, table)
            self.assertEqual(wireguardsetup.mark(given), MARK if there else 7)
            self.assertEqual(wireguardsetup.mark(conf(f"Table = {table}", peers)), MARK)
            assert state.firewall is not None
            self.assertEqual(state.firewall.device, "office")

    def test_names(self) -> None:
        """DNS is set, servers and domains, for all names and without a table of ours too; not
        with --no-dns."""
        lines = "Address = 10.9.0.2/24\nDNS = 10.9.0.1, Example.org., ~corp.example, ~."
        for table in ("", "Table = off\n"):
            given = conf(table + lines, peer("AllowedIPs = 10.9.0.0/24"))
            names = self.planned(given).state.name_servers
            assert names is not None
            self.assertEqual(names.servers, ("10.9.0.1",))
            self.assertEqual(names.search, ("example.org", "corp.example"))
            self.assertTrue(names.exclusive)
            self.assertFalse(self.wishes(given, no_dns=1).dns)

    def test_options(self) -> None:
        """The kill switch and what stays reachable beside it are the options'."""
        given = conf("", peer("AllowedIPs = 0.0.0.0/0"))
        self.assertEqual(
            (self.wishes(given).kill_switch, self.wishes(given).keeps_lan), (False, True)
        )
        wishes = self.wishes(given, kill_switch=1)
        self.assertEqual((wishes.kill_switch, wishes.keeps_lan), (True, False))
        self.assertTrue(self.wishes(given, kill_switch=1, lan_access="yes").keeps_lan)
        self.assertFalse(self.wishes(given, lan_access="no").keeps_lan)

    def test_many(self) -> None:
        """The most networks that are taken make a state that the child takes, at once."""
        many = ", ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(4096))
        given = conf("Address = 10.250.0.2/24", peer(f"AllowedIPs = {many}, 0.0.0.0/0, ::/0"))
        wireguardsetup.check(self.config, given)
        self.assertEqual(len(self.planned(given).state.routes), 4096 + 7)
        self.assertLess(4096 + 7, MAX_ENTRIES)


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
        self.refused(
            conf("DNS = 10.9.0.1, a_b", ok),
            "DNS: 'a_b' is no domain; write letters, digits, hyphens and dots, and other letters"
            " as xn--…",
        )
        config, self.config = (
            self.config,
            WireGuardClientConfig.load({"wireguard": str(self.file), "kill_switch": 1}),
        )
        marked = conf("Table = off\nFwMark = 7", ok)
        self.refused(
            marked,
            f"FwMark: --kill-switch lets out the mark {MARK:#x} alone; leave one of the two out",
        )
        wireguardsetup.check(self.config, conf("FwMark = 7", ok))
        self.config = config
        # The controls.
        wireguardsetup.check(self.config, marked)
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
                [f"{undone} PostUp, PreDown; {remedy}"],
            ),
            (
                conf(f"{address}\nDNS = example.org\nSaveConfig = true\nTable = 7", every),
                [
                    f"{undone} DNS (it has no address), SaveConfig, Table = 7 (so no routes are"
                    f" set); {remedy}"
                ],
            ),
            (conf(address, every), []),
            (
                conf(address, peer("AllowedIPs = 0.0.0.0/0")),
                [
                    f"{self.file}: 0.0.0.0/0 in AllowedIPs without ::/0: the other family leads"
                    " nowhere, so that nothing leaves around the tunnel"
                ],
            ),
            (conf(f"{address}\nTable = off\nFwMark = 7", ok), []),
            (
                conf(f"{address}\nFwMark = 7", ok),
                [
                    f"{self.file}: FwMark = 0x7 is not used, since our routes go by {MARK:#x}; with"
                    " 'Table = off' it is"
                ],
            ),
        ):
            with mock.patch("pyvpn.service.wireguardsetup.ipv6_available", return_value=True):
                self.assertEqual(wireguardsetup.warnings(self.config, given), said)
        with mock.patch("pyvpn.service.wireguardsetup.ipv6_available", return_value=False):
            half = conf(address, peer("AllowedIPs = 0.0.0.0/0"))
            self.assertEqual(wireguardsetup.warnings(self.config, half), [])
        self.file.chmod(0o640)
        self.assertEqual(
            wireguardsetup.warnings(self.config, conf(address, ok)),
            [f"{self.file} holds a private key, and others may read it: chmod 600 it"],
        )
