"""The administration commands, on a store in memory, with and without a running hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.admin import Administration
from pyvpn.core.control import ByeReason
from pyvpn.core.leases import AddressPool
from pyvpn.errors import ConfigError, StoreError
from pyvpn.peers import StockPeers
from pyvpn.state.directory import StateDirectory
from pyvpn.state.interface import AuditRecord, Device, User
from pyvpn.state.memory import MemoryStore
from pyvpn.state.network import HubNetwork
from pyvpn.token import JoinLink

KEY = bytes(range(32))
OTHER_KEY = bytes(range(32, 64))
HUB_KEY = b"H" * 32
SUBNET = IPv4Network("10.10.0.0/24")
NOW = 1_800_000_000
ALICE_ROW = {"name": "alice", "enabled": True, "created": NOW}


class RecordingHub:
    """A hub that remembers what it was told, and what the store held at that moment."""

    def __init__(self, store: MemoryStore) -> None:
        clock = NOW * 1_000_000_000
        self.peers = StockPeers(store, AddressPool(SUBNET, None), HUB_KEY, wall_clock=lambda: clock)
        self.told: list[tuple[str, bytes | None, ByeReason]] = []
        self.rows: list[User | None] = []
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
        self.assertEqual({"name": "alice"}, self.do("user_remove", name="alice"))
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


class RefusalTests(AdministrationCase):
    """A table of wrong input: each is one line, and nothing happened."""

    def test_table(self) -> None:
        """Commands, arguments, names, keys and endpoints that are wrong."""
        self.add_alice()
        key = KEY.hex()
        known = (
            "user_add, user_passwd, user_list, user_disable, user_enable, user_remove, invite, "
            "endpoint_set, peer_add, peer_list, peer_enable, peer_disable, peer_remove, "
            "peer_export, status"
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
