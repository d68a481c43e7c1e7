"""The administration commands, on a store in memory, with and without a running hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.admin import Administration
from pyvpn.core.control import ByeReason
from pyvpn.core.leases import AddressPool
from pyvpn.errors import ConfigError, StoreError
from pyvpn.peers import StockPeers
from pyvpn.routes import Route
from pyvpn.state.directory import StateDirectory
from pyvpn.state.interface import AuditRecord, Device, User
from pyvpn.state.memory import MemoryStore
from pyvpn.state.network import HubNetwork
from pyvpn.state.settings import NetworkOptions, NetworkSettings
from pyvpn.token import JoinLink
from pyvpn.values import Network

KEY = bytes(range(32))
OTHER_KEY = bytes(range(32, 64))
HUB_KEY = b"H" * 32
SUBNET = IPv4Network("10.10.0.0/24")
NOW = 1_800_000_000
ALICE_ROW = {"name": "alice", "enabled": True, "created": NOW}


class RecordingNetwork:
    """What a hub offers, by a hub that remembers what it was told, and refuses what it shall."""

    def __init__(self) -> None:
        self.options = NetworkOptions()
        self.followed: list[NetworkSettings] = []
        self.peer_changes = 0
        self.refusal: ConfigError | None = None
        self.warnings: list[str] = []
        self.left_out: dict[Network, str] = {}

    def check(self, settings: NetworkSettings) -> list[str]:
        return self.warnings

    def follow(self, settings: NetworkSettings) -> Deferred[None]:
        if self.refusal is not None:
            return fail(self.refusal)
        self.followed.append(settings)
        return succeed(None)

    def peers_changed(self) -> Deferred[list[str]]:
        self.peer_changes += 1
        return succeed(self.warnings)

    def problems(self) -> dict[Network, str]:
        return self.left_out


class RecordingHub:
    """A hub that remembers what it was told, and what the store held at that moment."""

    def __init__(self, store: MemoryStore) -> None:
        clock = NOW * 1_000_000_000
        self.peers = StockPeers(store, AddressPool(SUBNET, None), HUB_KEY, wall_clock=lambda: clock)
        self.told: list[tuple[str, bytes | None, ByeReason]] = []
        self.rows: list[User | None] = []
        self.network = RecordingNetwork()
        self._store = store

    def user_changed(self, name: str, public_key: bytes | None, reason: ByeReason) -> None:
        self.told.append((name, public_key, reason))
        self.rows.append(self._store.users().get(name))

    def status(self) -> dict[str, Any]:
        return {"sessions": 3}


class SlowStore(MemoryStore):
    """A store whose user rows become durable when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Deferred[None], User]] = []

    def put_user(self, user: User) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.waiting.append((done, user))
        return done

    def finish(self) -> None:
        done, user = self.waiting.pop(0)
        super().put_user(user)
        done.callback(None)


class AdministrationCase(SynchronousTestCase):
    """An administration with a hub, on a store in memory and a directory not made yet."""

    store_class: type[MemoryStore] = MemoryStore

    def setUp(self) -> None:
        root = Path(tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-"))
        self.addCleanup(shutil.rmtree, root)
        self.state = StateDirectory(root / "state")
        self.store = self.store_class()
        self.hub = RecordingHub(self.store)
        self.admin = self.administration(self.hub)

    def administration(self, hub: RecordingHub | None) -> Administration:
        clock = NOW * 1_000_000_000 + 999_999_999
        return Administration(self.store, self.state, hub, wall_clock=lambda: clock)

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.successResultOf(self.admin.run(command, arguments))
        return result

    def refused(self, message: str, command: str, arguments: Any) -> None:
        """The command fails with exactly this line, tells nobody and writes nothing."""
        before = (dict(self.store.users()), self.audit(), list(self.hub.told))
        failure = self.failureResultOf(self.admin.run(command, arguments), ConfigError)
        self.assertEqual(message, str(failure.value))
        self.assertEqual(before, (dict(self.store.users()), self.audit(), self.hub.told))

    def audit(self) -> list[AuditRecord]:
        records: list[AuditRecord] = self.successResultOf(self.store.audit(100))
        return records

    def add_alice(self) -> None:
        """Put alice there, and forget that the hub was told."""
        self.do("user_add", name="alice", public_key=KEY.hex())
        self.hub.told.clear()
        self.hub.rows.clear()


class UserTests(AdministrationCase):
    """The life of an account."""

    def test_add(self) -> None:
        """A new user is written enabled, then known to the hub, then in the audit log."""
        answer = self.do("user_add", name="alice", public_key=KEY.hex())
        alice = User("alice", KEY, True, NOW)
        self.assertEqual({"user": ALICE_ROW}, answer)
        self.assertEqual({"alice": alice}, dict(self.store.users()))
        self.assertEqual([("alice", KEY)], [told[:2] for told in self.hub.told])
        self.assertEqual([alice], self.hub.rows)
        self.assertEqual([AuditRecord(NOW, "alice", "user_added", "")], self.audit())

    def test_name_is_normalised(self) -> None:
        """A name in another normal form is the same account, in every command."""
        self.do("user_add", name="jo\u0308rg", public_key=KEY.hex())
        self.assertEqual(["j\u00f6rg"], list(self.store.users()))
        self.do("user_disable", name="jo\u0308rg")
        self.assertFalse(self.store.users()["j\u00f6rg"].enabled)

    def test_passwd(self) -> None:
        """A new password is a new key; the hub learns it; the user stays as old as before."""
        self.add_alice()
        answer = self.do("user_passwd", name="alice", public_key=OTHER_KEY.hex())
        self.assertEqual({"user": ALICE_ROW}, answer)
        self.assertEqual(User("alice", OTHER_KEY, True, NOW), self.store.users()["alice"])
        self.assertEqual([("alice", OTHER_KEY, ByeReason.RESTARTING)], self.hub.told)
        self.assertEqual("user_password_changed", self.audit()[0].event)

    def test_passwd_of_disabled(self) -> None:
        """A new password does not let a disabled user in."""
        self.add_alice()
        self.do("user_disable", name="alice")
        self.do("user_passwd", name="alice", public_key=OTHER_KEY.hex())
        self.assertFalse(self.store.users()["alice"].enabled)
        self.assertIsNone(self.hub.told[-1][1])

    def test_disable_and_enable(self) -> None:
        """Disabling ends sessions with BYE 2; enabling lets the same key in again."""
        self.add_alice()
        self.assertFalse(self.do("user_disable", name="alice")["user"]["enabled"])
        self.assertEqual([("alice", None, 2)], self.hub.told)
        self.assertEqual([User("alice", KEY, False, NOW)], self.hub.rows)
        self.assertTrue(self.do("user_enable", name="alice")["user"]["enabled"])
        self.assertEqual(("alice", KEY), self.hub.told[-1][:2])
        self.assertEqual(User("alice", KEY, True, NOW), self.store.users()["alice"])
        events = [record.event for record in self.audit()]
        self.assertEqual(["user_enabled", "user_disabled", "user_added"], events)

    def test_enable_twice(self) -> None:
        """Enabling who is enabled disturbs no session."""
        self.add_alice()
        self.assertEqual({"user": ALICE_ROW}, self.do("user_enable", name="alice"))
        self.assertEqual([], self.hub.told)

    def test_disable_twice(self) -> None:
        """Disabling again tells the hub again: repeating is what one does when in doubt."""
        self.add_alice()
        self.do("user_disable", name="alice")
        self.do("user_disable", name="alice")
        self.assertEqual([("alice", None, 2)] * 2, self.hub.told)

    def test_remove(self) -> None:
        """Removing forgets user and devices and ends the sessions."""
        self.add_alice()
        self.store.put_devices([Device("alice", bytes(16), "", bytes(12), None, None, 0)])
        answer = {"name": "alice", "routes": [], "warnings": []}
        self.assertEqual(answer, self.do("user_remove", name="alice"))
        self.assertEqual(({}, {}), (dict(self.store.users()), dict(self.store.devices())))
        self.assertEqual([("alice", None, 2)], self.hub.told)
        self.assertEqual([None], self.hub.rows)
        self.assertEqual("user_removed", self.audit()[0].event)

    def test_list(self) -> None:
        """The list is sorted by name, shows the devices, and holds no key or stamp."""
        self.do("user_add", name="bob", public_key=OTHER_KEY.hex())
        self.add_alice()
        phone = Device("alice", b"P" * 16, "phone", b"S" * 12, "10.10.0.2", None, 77)
        self.store.put_devices([phone])
        row = {
            "device_id": "50" * 16,
            "name": "phone",
            "ipv4": "10.10.0.2",
            "ipv6": None,
            "last_seen": 77,
        }
        bob = {"name": "bob", "enabled": True, "created": NOW, "devices": []}
        self.assertEqual({"users": [ALICE_ROW | {"devices": [row]}, bob]}, self.do("user_list"))

    def test_without_hub(self) -> None:
        """All of it works on the store alone."""
        self.admin = self.administration(None)
        self.do("user_add", name="alice", public_key=KEY.hex())
        self.do("user_passwd", name="alice", public_key=OTHER_KEY.hex())
        self.do("user_disable", name="alice")
        self.do("user_enable", name="alice")
        self.do("user_remove", name="alice")
        self.assertEqual({}, dict(self.store.users()))
        self.assertEqual(5, len(self.audit()))


class InviteTests(AdministrationCase):
    """Join links."""

    def test_link(self) -> None:
        """The link names the user, all addresses in order and the token; it is noted."""
        self.state.prepare(os.urandom)
        self.add_alice()
        self.do("endpoint_set", endpoint="vpn.example.org, 192.0.2.1:99")
        link = JoinLink.from_text(self.do("invite", name="alice")["link"])
        addresses = ("vpn.example.org:5050", "192.0.2.1:99")
        self.assertEqual(JoinLink("alice", addresses, self.state.token), link)
        self.assertEqual(AuditRecord(NOW, "alice", "user_invited", ""), self.audit()[0])

    def test_endpoint(self) -> None:
        """The endpoint is kept in its full spelling, and the change is in the audit log."""
        answer = self.do("endpoint_set", endpoint="VPN.example.org")
        self.assertEqual({"endpoint": "vpn.example.org:5050"}, answer)
        self.assertEqual("vpn.example.org:5050", self.store.setting("endpoint"))
        self.assertEqual(
            [AuditRecord(NOW, None, "endpoint_set", "vpn.example.org:5050")], self.audit()
        )

    def test_no_endpoint(self) -> None:
        """Without an endpoint there is no link but the way to set one."""
        self.add_alice()
        message = (
            "no endpoint is set, so a link could not say where the hub is; set its public address: "
            "pyvpn init --endpoint HOST[:PORT]"
        )
        self.refused(message, "invite", {"name": "alice"})

    def test_disabled(self) -> None:
        """A user who could not log in gets no link."""
        self.add_alice()
        self.do("user_disable", name="alice")
        message = "user 'alice' is disabled; first run: pyvpn user enable alice"
        self.refused(message, "invite", {"name": "alice"})

    def test_no_token(self) -> None:
        """Without a token the link fails with the store's own remedy."""
        self.add_alice()
        self.do("endpoint_set", endpoint="h.example")
        failure = self.failureResultOf(self.admin.run("invite", {"name": "alice"}), StoreError)
        self.assertIn("network.token: missing; run: pyvpn init", str(failure.value))


class StatusTests(AdministrationCase):
    """What status tells."""

    def test_live(self) -> None:
        """With a hub: the counts of the store, and what the hub says."""
        self.add_alice()
        self.do("user_add", name="bob", public_key=KEY.hex())
        self.do("user_disable", name="bob")
        self.do("endpoint_set", endpoint="h.example")
        expected = {
            "running": True,
            "state_dir": str(self.state.path),
            "endpoint": "h.example:5050",
            "users": 2,
            "users_enabled": 1,
            "devices": 0,
            "peers": 0,
            "peers_enabled": 0,
            "hub": {"sessions": 3},
        }
        self.assertEqual(expected, self.do("status"))

    def test_alone(self) -> None:
        """Without a hub it says so."""
        self.admin = self.administration(None)
        status = self.do("status")
        self.assertEqual(
            (False, None, None), tuple(status[k] for k in ("running", "hub", "endpoint"))
        )


class PeerTests(AdministrationCase):
    """Stock WireGuard peers; tests/test_peers.py has what happens to pool and core."""

    PEER = "AQEB" * 10 + "AQE="  # the bytes 01 01 01 … in base64
    PSK = "AgIC" * 10 + "AgI="
    NO_PSK = "A" * 43 + "="
    HUB = "SEhI" * 10 + "SEg="

    def add(self, **changes: str) -> dict[str, Any]:
        arguments = {
            "name": "phone",
            "public_key": self.PEER,
            "psk": "",
            "allowed_ips": "",
            "keepalive": "0",
        }
        return self.do("peer_add", **{**arguments, **changes})

    def row(self, **changes: Any) -> dict[str, Any]:
        row = {
            "name": "phone",
            "public_key": self.PEER,
            "addresses": ["10.10.0.2/32"],
            "allowed_ips": [],
            "keepalive": 0,
            "enabled": True,
            "created": NOW,
            "endpoint": None,
            "last_handshake": 0,
            "rx_bytes": 0,
            "tx_bytes": 0,
        }
        return {**row, **changes}

    def test_add(self) -> None:
        """The answer is what the peer's .conf says; row and audit log have what was asked for."""
        self.store.set_setting("subnet6_auto", "fd00::/64")
        self.do("endpoint_set", endpoint="vpn.example.org,192.0.2.1")
        answer = self.add(psk=self.PSK, allowed_ips="192.168.7.1/24, fd77::/64", keepalive="25")
        self.assertEqual(
            {
                "name": "phone",
                "addresses": ["10.10.0.2/32"],
                "hub_public_key": self.HUB,
                "endpoint": "vpn.example.org:5050",
                # Retyped from PROTOCOL 5: the largest inner packet that fits in 1,500 bytes.
                "networks": ["10.10.0.0/24", "fd00::/64"],
                "internet": False,
                "dns": ["10.10.0.1", "fd00::1"],
                "search": ["pyvpn"],
                "mtu": 1416,
                "warnings": [],
            },
            answer,
        )
        expected = self.row(allowed_ips=["192.168.7.0/24", "fd77::/64"], keepalive=25)
        self.assertEqual({"peers": [expected]}, self.do("peer_list"))
        self.assertEqual(b"\x02" * 32, self.store.peers()[b"\x01" * 32].psk)
        self.assertEqual(AuditRecord(NOW, "phone", "peer_added", self.PEER), self.audit()[0])

    def test_warnings(self) -> None:
        """Who loses a network is told of."""
        self.add(allowed_ips="192.168.7.0/24")
        answer = self.add(name="b", public_key=self.PSK, allowed_ips="192.168.7.0/24")
        self.assertEqual(
            ["192.168.7.0/24 is b's now and phone's no more: the later wins"], answer["warnings"]
        )

    def test_endpoint(self) -> None:
        """An address where the peer is may be given; without ours the answer has none."""
        self.assertIsNone(self.add(endpoint="[2001:db8::1]:51820")["endpoint"])
        self.assertEqual("[2001:db8::1]:51820", self.do("peer_list")["peers"][0]["endpoint"])

    def test_life(self) -> None:
        """Disable, enable, remove: each tells the row, or the name that is gone."""
        self.add()
        self.assertEqual({"peer": self.row(enabled=False)}, self.do("peer_disable", name="phone"))
        self.assertEqual({"peer": self.row(), "warnings": []}, self.do("peer_enable", name="phone"))
        self.assertEqual({"name": "phone"}, self.do("peer_remove", name="phone"))
        self.assertEqual({"peers": []}, self.do("peer_list"))
        events = [(record.user, record.event) for record in self.audit()]
        self.assertEqual(
            [
                ("phone", "peer_removed"),
                ("phone", "peer_enabled"),
                ("phone", "peer_disabled"),
                ("phone", "peer_added"),
            ],
            events,
        )

    def test_export(self) -> None:
        """The export has the hub's private key and the peers' pre-shared ones, and is noted."""
        self.state.prepare(lambda count: b"\x01" * count)
        self.add(psk=self.PSK)
        self.add(name="b", public_key=self.PSK)
        exported = self.do("peer_export")
        # 01 01 01 …, clamped (RFC 7748, section 5): 00 01 … 01 41.
        self.assertEqual("AAEB" + "AQEB" * 9 + "AUE=", exported["hub_private_key"])
        self.assertEqual((5050, ["10.10.0.1/24"]), (exported["port"], exported["addresses"]))
        psks = {row["name"]: row["psk"] for row in exported["peers"]}
        self.assertEqual({"b": "", "phone": self.PSK}, psks)
        self.assertEqual("peers_exported", self.audit()[0].event)

    def test_status(self) -> None:
        """The status counts peers, and those that may connect."""
        self.add()
        self.add(name="b", public_key=self.PSK)
        self.do("peer_disable", name="b")
        status = self.do("status")
        self.assertEqual((2, 1), (status["peers"], status["peers_enabled"]))

    def test_users_and_peers(self) -> None:
        """A user gets neither a peer's name nor a peer's key."""
        self.add()
        self.add_alice()
        key = (b"\x01" * 32).hex()
        taken = "public_key: the WireGuard peer 'phone' has this key"
        self.refused(
            "there is a WireGuard peer 'phone'; choose another name",
            "user_add",
            {"name": "phone", "public_key": KEY.hex()},
        )
        self.refused(taken, "user_add", {"name": "bob", "public_key": key})
        self.refused(taken, "user_passwd", {"name": "alice", "public_key": key})

    def test_wrong_values(self) -> None:
        """Each wrong value is told by its key; nothing is kept, and no key is repeated."""
        good = {
            "name": "x",
            "public_key": self.PEER,
            "psk": "",
            "allowed_ips": "",
            "keepalive": "0",
        }
        wanted = "allowed_ips, keepalive, name, psk, public_key"
        no_key = "not a key; a key is 44 characters of base64, as 'wg genkey' prints it"
        for changes, message in (
            ({"name": ""}, "peer name: 0 bytes of UTF-8, 1 to 32 are allowed"),
            ({"public_key": ""}, f"public_key: {no_key}"),
            ({"public_key": "ff" * 32}, f"public_key: {no_key}"),
            ({"psk": self.PSK[:-2] + "J="}, f"psk: {no_key}"),
            (
                {"allowed_ips": "10.0.0.0/33"},
                "allowed_ips: '10.0.0.0/33' is not a network; write it like 10.10.0.0/24 or"
                " fd00::/64",
            ),
            (
                {"keepalive": "65536"},
                "keepalive: '65536' is not off or seconds; give a number from 0 to 65535",
            ),
            (
                {"endpoint": "example.org:51820"},
                "endpoint: 'example.org:51820' is no numeric address with a port",
            ),
            ({"colour": "red"}, f"peer_add: wrong arguments; expected: {wanted}"),
        ):
            self.refused(message, "peer_add", {**good, **changes})
        self.assertEqual({}, dict(self.store.peers()))
        self.do("peer_add", **good)

    def test_without_hub(self) -> None:
        """Without a hub the network is that of its last start, with the devices' leases."""
        self.state.prepare(os.urandom)
        self.store.put_user(User("alice", KEY, True, NOW))
        self.store.put_devices([Device("alice", bytes(16), "", bytes(12), "10.9.0.2", None, 0)])
        network = HubNetwork(IPv4Network("10.9.0.0/16"), None, 99, 1280)
        network.keep(self.store)
        self.assertIsNone(network.keep(self.store))  # no second write
        self.admin = self.administration(None)
        answer = self.add()
        self.assertEqual(
            (["10.9.0.3/32"], ["10.9.0.0/16"], 1280),
            (answer["addresses"], answer["networks"], answer["mtu"]),
        )
        exported = self.do("peer_export")
        self.assertEqual((99, ["10.9.0.1/16"]), (exported["port"], exported["addresses"]))

    def test_damaged_network(self) -> None:
        """A setting that cannot be read is told of in one line."""
        self.state.prepare(os.urandom)
        self.admin = self.administration(None)
        for text in ("{", "[]", "{}", '{"subnet": "x", "subnet6": null, "port": 1, "mtu": 1}'):
            self.store.set_setting("network", text)
            failure = self.failureResultOf(self.admin.run("peer_export", {}), StoreError)
            self.assertEqual(
                "the store's setting 'network' is damaged; start the hub once", str(failure.value)
            )


class NetworkTests(AdministrationCase):
    """What clients are offered, by a hub that runs; and the routes."""

    def setUp(self) -> None:
        super().setUp()
        self.add_alice()

    def settings(self) -> NetworkSettings:
        return NetworkSettings.stored(self.store.setting)

    def network_refused(self, message: str, command: str, **arguments: str) -> None:
        """Refused with this line; neither the store nor the hub has another network after."""
        before = (self.settings(), list(self.hub.network.followed))
        self.refused(message, command, arguments)
        self.assertEqual(before, (self.settings(), self.hub.network.followed))

    def add_devices(self) -> None:
        for number, name in ((1, "laptop"), (2, "phone"), (3, "phone")):
            device = Device("alice", bytes([number]) * 16, name, bytes(12), None, None, NOW)
            self.store.put_devices([device])

    def test_defaults(self) -> None:
        """Nobody has set anything: the VPN alone, its clients, and their names."""
        self.assertEqual(
            {
                "internet": False,
                "client_to_client": True,
                "dns": "hub",
                "search": ["pyvpn"],
                "excluded": [],
                "routes": [],
                "fixed": {},
            },
            self.do("network_show"),
        )

    def test_set(self) -> None:
        """What is set is followed by the hub, durable, in the audit log and in the answer; the
        rest stays."""
        self.do("network_set", search="corp.example")
        self.hub.network.warnings = ["mind the gap"]
        answer = self.do(
            "network_set",
            internet="on",
            client_to_client="off",
            dns="10.20.0.53,fd00::53",
            exclude="192.168.0.0/16",
        )
        first, *rest = answer.pop("warnings")
        self.assertEqual("mind the gap", first)
        self.assertEqual(2, len(rest))  # of the name servers, which no route leads to
        self.assertEqual(self.do("network_show"), answer)
        self.assertEqual(
            (True, False, "10.20.0.53,fd00::53", ["corp.example"], ["192.168.0.0/16"]),
            tuple(answer[key] for key in list(answer)[:5]),
        )
        self.assertEqual([self.settings()], self.hub.network.followed[1:])
        self.assertEqual(
            AuditRecord(NOW, None, "network_set", "client_to_client,dns,excluded,internet"),
            self.audit()[0],
        )
        self.do("network_set", dns="none", exclude="none", internet="off")
        self.assertEqual([], self.do("network_show")["search"])
        self.assertEqual(((), False), (self.settings().excluded, self.settings().internet))

    def test_unreached_name_server(self) -> None:
        """A private name server that no route leads to is warned of; one in a network is not."""
        self.do("route_add", network="10.20.0.0/16")
        answer = self.do("network_set", dns="10.20.0.53,10.21.0.53,10.10.0.9,9.9.9.9")
        line = "clients have no way to the name server 10.21.0.53; add a route to its network"
        self.assertEqual([line], answer["warnings"])

    def test_fixed(self) -> None:
        """What the run was started with is shown as it is, and cannot be set meanwhile."""
        self.hub.network.options = NetworkOptions(
            internet=True, excluded=(), routes=(ip_network("10.30.0.0/16"),)
        )
        self.admin = self.administration(self.hub)
        shown = self.do("network_show")
        self.assertEqual({"internet": "--internet", "excluded": "--exclude"}, shown["fixed"])
        self.assertTrue(shown["internet"])
        self.assertEqual("--route", shown["routes"][0]["source"])
        remedy = "; start it without to change that"
        self.network_refused(
            f"internet: this run of the hub was started with --internet{remedy}",
            "network_set",
            internet="off",
        )
        self.network_refused(
            f"exclude: this run of the hub was started with --exclude{remedy}",
            "network_set",
            exclude="192.168.0.0/16",
        )
        self.network_refused(
            "this run of the hub was started with --route 10.30.0.0/16; start it without to take"
            " the route away",
            "route_remove",
            network="10.30.0.0/16",
        )
        self.network_refused(
            "10.30.0.0/16 behind alice overlaps 10.30.0.0/16 on the hub's side",
            "route_add",
            network="10.30.0.0/16",
            via="alice",
        )
        self.assertEqual("none", self.do("network_set", dns="none")["dns"])
        self.assertFalse(self.settings().internet)  # the option is of the run, not of the store

    def test_routes(self) -> None:
        """Routes on the hub's side, behind a user and behind one device come and go."""
        self.add_devices()
        self.do("route_add", network="10.20.0.0/16")
        self.do("route_add", network="10.30.0.0/16", via="alice")
        self.do("route_add", network="10.40.0.0/16", via="alice/laptop")
        self.do("route_add", network="10.20.7.0/24")  # within one of the same place
        where = ["on the hub's side", "behind alice", "behind alice/laptop", "on the hub's side"]
        rows = self.do("route_list")["routes"]
        self.assertEqual(where, [row["where"] for row in rows])
        self.assertEqual(
            (
                Route(ip_network("10.20.0.0/16")),
                Route(ip_network("10.30.0.0/16"), "alice"),
                Route(ip_network("10.40.0.0/16"), "alice", b"\x01" * 16),
                Route(ip_network("10.20.7.0/24")),
            ),
            self.settings().routes,
        )
        self.assertEqual(self.settings(), self.hub.network.followed[-1])
        detail = ("alice", "route_added", "10.40.0.0/16 behind alice/laptop")
        audit = self.audit()[1]
        self.assertEqual(detail, (audit.user, audit.event, audit.detail))
        # A device that is called otherwise today is the same one.
        self.store.put_devices([Device("alice", b"\x01" * 16, "mac", bytes(12), None, None, NOW)])
        removed = self.do("route_remove", network="10.40.0.0/16")["route"]
        self.assertEqual(
            ("10.40.0.0/16", "behind alice/mac"), (removed["network"], removed["where"])
        )
        self.assertEqual(3, len(self.settings().routes))
        self.assertEqual(self.settings(), self.hub.network.followed[-1])

    def test_left_out(self) -> None:
        """What the hub leaves out is listed with the reason."""
        self.do("route_add", network="10.20.0.0/16")
        self.hub.network.left_out = {ip_network("10.20.0.0/16"): "the LAN is here"}
        (row,) = self.do("route_list")["routes"]
        self.assertEqual("the LAN is here", row["problem"])

    def test_device_by_id(self) -> None:
        """Of two devices of one name one is meant by its id."""
        self.add_devices()
        self.network_refused(
            "via: 'alice' has 2 devices called 'phone'; give one of their ids in place of the name:"
            " 02020202, 03030303",
            "route_add",
            network="10.20.0.0/16",
            via="alice/phone",
        )
        self.do("route_add", network="10.20.0.0/16", via="alice/03030303")
        self.assertEqual(b"\x03" * 16, self.settings().routes[0].device)

    def test_name_with_slash(self) -> None:
        """A user whose name holds a slash is found, and so is a device of that user."""
        self.do("user_add", name="alice/x", public_key=OTHER_KEY.hex())
        device = Device("alice/x", bytes(16), "y", bytes(12), None, None, NOW)
        self.store.put_devices([device])
        self.do("route_add", network="10.20.0.0/16", via="alice/x")
        self.do("route_add", network="10.30.0.0/16", via="alice/x/y")
        self.assertEqual(
            [("alice/x", None), ("alice/x", bytes(16))],
            [(route.user, route.device) for route in self.settings().routes],
        )

    def test_conflicts(self) -> None:
        """Two networks that cannot be together are both named, and nothing has changed."""
        self.add_devices()
        self.do("route_add", network="10.20.0.0/16")
        self.do("route_add", network="10.30.0.0/16", via="alice")
        self.do("network_set", exclude="192.168.0.0/16")
        peer = {"name": "office", "public_key": PeerTests.PEER, "psk": "", "keepalive": "0"}
        self.do("peer_add", **peer, allowed_ips="10.50.0.0/16")
        for network, via, message in (
            ("10.10.0.0/16", "", "10.10.0.0/16 overlaps the VPN's own network 10.10.0.0/24"),
            ("fd77::/64", "", "fd77::/64 is IPv6, which this VPN has not"),
            ("10.20.0.0/16", "", "10.20.0.0/16 on the hub's side is there already"),
            ("10.20.1.0/24", "alice",
             "10.20.1.0/24 behind alice overlaps 10.20.0.0/16 on the hub's side"),
            ("10.30.0.0/15", "alice/laptop",
             "10.30.0.0/15 behind alice/laptop overlaps 10.30.0.0/16 behind alice"),
            ("10.50.1.0/24", "", "10.50.1.0/24 overlaps 10.50.0.0/16 behind WireGuard peer office"),
            ("192.168.0.0/16", "", "clients keep 192.168.0.0/16 out of the tunnel; see: pyvpn"
             " network set --exclude"),
        ):  # fmt: skip
            self.network_refused(message, "route_add", network=network, via=via)
        self.network_refused(
            "exclude: 10.20.0.0/16 is a route; remove that before",
            "network_set",
            exclude="10.20.0.0/16",
        )
        self.network_refused(
            "exclude: 10.10.0.0/24 is part of the VPN's own network 10.10.0.0/24",
            "network_set",
            exclude="10.10.0.0/24",
        )
        self.do("network_set", exclude="10.0.0.0/8")  # the VPN's own stays in it

    def test_bad_input(self) -> None:
        """A table of wrong values."""
        self.add_devices()
        peer = {"name": "office", "public_key": PeerTests.PEER, "psk": "", "keepalive": "0"}
        self.do("peer_add", **peer, allowed_ips="10.50.0.0/16")
        for command, arguments, message in (
            ("network_set", {}, "nothing is to be changed; see: pyvpn network set --help"),
            ("network_set", {"internet": "yes"}, "internet: 'yes' is neither on nor off"),
            ("network_set", {"dns": "x"},
             "dns: 'x' is no name server; give hub, none, or addresses with commas"),
            ("route_add", {"network": "0.0.0.0/0"},
             "network: 0.0.0.0/0 is everything; to offer clients the internet take --internet, or"
             " run: pyvpn network set --internet on"),
            ("route_add", {"network": "10.0.0.0/8,11.0.0.0/8"},
             "network: give one network at a time"),
            ("route_add", {"network": ""}, "network: give a network, like 192.168.7.0/24"),
            ("route_add", {"network": "10.20.0.0/16", "via": "bob/x"},
             "via: there is no user 'bob'; to see all: pyvpn user list"),
            ("route_add", {"network": "10.20.0.0/16", "via": "alice/tv"},
             "via: 'alice' has no device 'tv'; there are: laptop, phone, phone"),
            ("route_add", {"network": "10.20.0.0/16", "via": "office"},
             "via: 'office' is a WireGuard peer; what is behind one is said when it is added: pyvpn"
             " peer add office --allowed-ips …"),
            ("route_remove", {"network": "10.20.0.0/16"},
             "there is no route to 10.20.0.0/16; to see all: pyvpn route list"),
            ("route_remove", {"network": "10.50.0.0/16"},
             "10.50.0.0/16 is behind WireGuard peer 'office': it goes with the peer"),
        ):  # fmt: skip
            self.network_refused(message, command, **arguments)

    def test_hub_refuses(self) -> None:
        """What the hub cannot follow is not kept."""
        self.hub.network.refusal = ConfigError("Linux refuses it, all is as it was: no")
        self.network_refused("Linux refuses it, all is as it was: no", "network_set", internet="on")

    def test_not_durable(self) -> None:
        """What cannot be written the hub takes back."""
        full = mock.patch.object(
            self.store, "set_setting", lambda key, value: fail(StoreError("the disk is full"))
        )
        with full:
            failed = self.admin.run("network_set", {"internet": "on"})
            self.failureResultOf(failed, StoreError)
        self.assertEqual([True, False], [told.internet for told in self.hub.network.followed])
        self.assertFalse(self.settings().internet)

    def test_user_removed(self) -> None:
        """With a user go the routes to what is behind, which the answer names; others stay."""
        self.do("route_add", network="10.20.0.0/16")
        self.do("route_add", network="10.30.0.0/16", via="alice")
        answer = self.do("user_remove", name="alice")
        self.assertEqual(["10.30.0.0/16"], answer["routes"])
        self.assertEqual((Route(ip_network("10.20.0.0/16")),), self.settings().routes)
        self.assertEqual(self.settings(), self.hub.network.followed[-1])

    def test_user_removed_all_the_same(self) -> None:
        """Settings that cannot be read keep nobody from being removed."""
        self.store.set_setting("network_settings", "{")
        answer = self.do("user_remove", name="alice")
        self.assertEqual({}, dict(self.store.users()))
        (warning,) = answer["warnings"]
        self.assertIn("the user's routes stay: the store's setting 'network_settings'", warning)

    def test_peers(self) -> None:
        """Each change of stock peers is followed by the hub's routes; a new one learns others."""
        self.do("route_add", network="10.20.0.0/16")
        self.do("network_set", internet="on", search="corp.example")
        peer = {"psk": "", "keepalive": "0"}
        self.do("peer_add", **peer, name="a", public_key=PeerTests.PEER, allowed_ips="10.50.0.0/16")
        self.hub.network.warnings = ["10.60.0.0/16 is taken; no route leads there"]
        answer = self.do(
            "peer_add", **peer, name="b", public_key=PeerTests.PSK, allowed_ips="10.60.0.0/16"
        )
        self.assertEqual(self.hub.network.warnings, answer["warnings"])
        self.assertEqual(["10.10.0.0/24", "10.20.0.0/16", "10.50.0.0/16"], answer["networks"])
        self.assertTrue(answer["internet"])
        self.assertEqual(["10.10.0.1"], answer["dns"])
        self.assertEqual(["pyvpn", "corp.example"], answer["search"])
        for change in ("disable", "enable", "remove"):
            self.do(f"peer_{change}", name="b")
        self.assertEqual(5, self.hub.network.peer_changes)
        rows = self.do("route_list")["routes"]
        self.assertEqual(
            [("10.20.0.0/16", "on the hub's side"), ("10.50.0.0/16", "behind WireGuard peer a")],
            [(row["network"], row["where"]) for row in rows],
        )

    def test_without_hub(self) -> None:
        """Without a running hub settings and routes are kept for its next start."""
        self.admin = self.administration(None)
        self.do("network_set", internet="on")
        self.do("route_add", network="10.30.0.0/16", via="alice")
        self.network_refused(
            "10.10.0.0/25 overlaps the VPN's own network 10.10.0.0/24",
            "route_add",
            network="10.10.0.0/25",
        )
        self.assertEqual(
            NetworkSettings(internet=True, routes=(Route(ip_network("10.30.0.0/16"), "alice"),)),
            self.settings(),
        )
        self.assertEqual([], self.hub.network.followed)


class RefusalTests(AdministrationCase):
    """A table of wrong input: each is one line, and nothing happened."""

    def test_table(self) -> None:
        """Commands, arguments, names, keys and endpoints that are wrong."""
        self.add_alice()
        key = KEY.hex()
        known = (
            "user_add, user_passwd, user_list, user_disable, user_enable, user_remove, invite, "
            "endpoint_set, peer_add, peer_list, peer_enable, peer_disable, peer_remove, "
            "peer_export, network_show, network_set, route_add, route_remove, route_list, status"
        )
        hex_key = "public_key: expected 64 hexadecimal digits"
        nobody = "there is no user 'bob'; to see all: pyvpn user list"
        empty = "user name: 0 bytes of UTF-8, 1 to 32 are allowed"
        table: list[tuple[str, Any, str]] = [
            ("reboot", {}, f"unknown command 'reboot'; known are {known}"),
            ("__init__", {}, f"unknown command '__init__'; known are {known}"),
            ("user_add", {}, "user_add: wrong arguments; expected: name, public_key"),
            ("user_add", {"name": "bob"}, "user_add: wrong arguments; expected: name, public_key"),
            ("user_list", {"x": "y"}, "user_list: wrong arguments; expected: none"),
            ("status", None, "status: wrong arguments; expected: none"),
            ("user_disable", ["name"], "user_disable: wrong arguments; expected: name"),
            ("user_disable", {"name": 5}, "user_disable: name must be text"),
            ("user_add", {"name": "", "public_key": key}, empty),
            ("user_add", {"name": "bob", "public_key": ""}, hex_key),
            ("user_add", {"name": "bob", "public_key": key[2:]}, hex_key),
            ("user_add", {"name": "bob", "public_key": key + "00"}, hex_key),
            ("user_add", {"name": "bob", "public_key": "g" * 64}, hex_key),
            ("user_passwd", {"name": "alice", "public_key": "00"}, hex_key),
            ("user_passwd", {"name": "bob", "public_key": key}, nobody),
            ("user_disable", {"name": "bob"}, nobody),
            ("user_enable", {"name": "bob"}, nobody),
            ("user_remove", {"name": "bob"}, nobody),
            ("invite", {"name": "bob"}, nobody),
            (
                "user_add",
                {"name": "alice", "public_key": key},
                "user 'alice' exists already; for a new password: pyvpn user passwd alice",
            ),
            ("endpoint_set", {"endpoint": ""}, "address '': not a valid host name"),
            ("endpoint_set", {"endpoint": "a,,b"}, "address '': not a valid host name"),
            (
                "endpoint_set",
                {"endpoint": "h:70000"},
                "address 'h:70000': the port must be 1 to 65535",
            ),
            (
                "endpoint_set",
                {"endpoint": ",".join(["h"] * 9)},
                "endpoint: 9 addresses, at most 8 are allowed",
            ),
        ]
        for command, arguments, message in table:
            self.refused(message, command, arguments)
        self.assertIsNone(self.store.setting("endpoint"))
        self.do("user_remove", name="alice")  # after all that it still works


class DurabilityTests(AdministrationCase):
    """The hub is told after the disk, and commands do not overtake each other."""

    store_class = SlowStore

    def test_hub_after_disk(self) -> None:
        """The hub hears of a change when it is durable and not before."""
        result = self.admin.run("user_add", {"name": "alice", "public_key": KEY.hex()})
        self.assertNoResult(result)
        self.assertEqual([], self.hub.told)
        self.store.finish()
        self.successResultOf(result)
        self.assertEqual(1, len(self.hub.told))

    def test_one_at_a_time(self) -> None:
        """Of two that add the same name at once one is refused, instead of both being written."""
        arguments = {"name": "alice", "public_key": KEY.hex()}
        first = self.admin.run("user_add", arguments)
        second = self.admin.run("user_add", arguments | {"public_key": OTHER_KEY.hex()})
        self.assertEqual(1, len(self.store.waiting))
        self.store.finish()
        self.successResultOf(first)
        self.failureResultOf(second, ConfigError)
        self.assertEqual(KEY, self.store.users()["alice"].public_key)

    def test_failed_write(self) -> None:
        """If the disk fails the caller hears it, the hub does not, and the next command works."""
        self.patch(self.store, "put_user", lambda user: fail(StoreError("disk; full; free some")))
        arguments = {"name": "alice", "public_key": KEY.hex()}
        self.failureResultOf(self.admin.run("user_add", arguments), StoreError)
        self.assertEqual(([], []), (self.hub.told, self.audit()))
        self.assertEqual({"users": []}, self.do("user_list"))

    def test_failed_audit(self) -> None:
        """If only the audit log fails, the revocation has reached the hub all the same."""
        MemoryStore.put_user(self.store, User("alice", KEY, True, NOW))
        self.patch(self.store, "add_audit", lambda records: fail(StoreError("disk; full; free")))
        result = self.admin.run("user_disable", {"name": "alice"})
        self.store.finish()
        self.failureResultOf(result, StoreError)
        self.assertEqual([("alice", None, 2)], self.hub.told)
