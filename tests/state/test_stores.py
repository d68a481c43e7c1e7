"""Both stores against one set of tests, then what only a file on a disk can get wrong."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import methodcaller
from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import DeferredList, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

import pyvpn
from pyvpn.errors import StoreError
from pyvpn.state import memory, sqlite
from pyvpn.state.interface import AuditRecord, Device, IStore, User, WireGuardPeerRecord
from pyvpn.state.memory import MemoryStore
from pyvpn.state.sqlite import SQLiteStore, create_store
from tests.state import temporary_directory

ALICE = User("alice", b"\x01" * 32, True, 1_700_000_000)
BOB = User("b\u00f6b", b"\x02" * 32, False, 1_700_000_001)
LAPTOP = Device("alice", b"L" * 16, "laptop", b"\x40" + bytes(11), "10.10.0.2", "fd00::2", 5)
PHONE = Device("alice", b"P" * 16, "", bytes(12), None, None, 6)
DESK = Device("b\u00f6b", b"D" * 16, "desk", b"\xff" * 12, "10.10.0.3", None, 7)

ROUTER = WireGuardPeerRecord(
    "router",
    b"\x11" * 32,
    b"\x12" * 32,
    ("192.168.7.0/24", "fd77::/64"),
    "10.10.0.4",
    "fd00::4",
    25,
    True,
    1_700_000_002,
    "[2001:db8::1]:51820",
)
TABLET = WireGuardPeerRecord("t\u00e4b", b"\x13" * 32, bytes(32), (), None, None, 0, False, 8)


def replaced(value: Any, **changes: Any) -> Any:
    """The value with some fields changed, of any type."""
    return evolve(value, **changes)


def random_writes(random: Random, count: int) -> Iterator[Callable[[Any], Any]]:
    """Writes of every kind on few names, so that they meet."""

    def device() -> Device:
        user, number = random.choice("abc"), random.randrange(3)
        ipv4 = random.choice([None, "10.10.0.2"])
        return Device(user, bytes([number]) * 16, "", random.randbytes(12), ipv4, None, number)

    def peer(n: int) -> WireGuardPeerRecord:
        key, name = bytes([random.randrange(4)]) * 32, random.choice("klmn")
        return WireGuardPeerRecord(name, key, bytes(32), (), None, None, 0, True, n)

    for n in range(count):
        user = User(random.choice("abc"), random.randbytes(32), random.random() < 0.5, n)
        devices = [device() for _ in range(random.randrange(5))]
        records = [AuditRecord(n, user.name, "event", "")] * random.randrange(3)
        yield random.choice(
            [
                methodcaller("put_user", user),
                methodcaller("put_user", user),
                methodcaller("remove_user", user.name),
                methodcaller("put_devices", devices),
                methodcaller("put_devices", devices),
                methodcaller("remove_device", user.name, bytes(16)),
                methodcaller("put_peers", [peer(n) for _ in range(random.randrange(3))]),
                methodcaller("remove_peers", [peer(n).public_key]),
                methodcaller("set_setting", "key", str(n)),
                methodcaller("add_audit", records),
            ]
        )


class StoreTests:
    """What every store promises. A subclass gives ``make_store()``, a store not yet open."""

    def make_store(self) -> Any:
        raise NotImplementedError

    def opened(self) -> Any:
        """An open store that is closed when the test ends."""
        store = self.make_store()
        store.open()
        self.addCleanup(store.close)
        return store

    def test_interface(self) -> None:
        """It provides all that IStore names, with the same arguments."""
        verifyObject(IStore, self.make_store())

    def test_new_store_is_empty(self) -> None:
        """A new store knows nobody and no setting."""
        store = self.opened()
        self.assertEqual(({}, {}), (dict(store.users()), dict(store.devices())))
        self.assertEqual({}, dict(store.peers()))
        self.assertIsNone(store.setting("endpoint"))

    async def test_users(self) -> None:
        """Users are kept by name with all their values, and putting one again replaces it."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_user(BOB)
        self.assertEqual({"alice": ALICE, "b\u00f6b": BOB}, dict(store.users()))
        changed = replaced(ALICE, enabled=False, public_key=b"\x09" * 32)
        await store.put_user(changed)
        self.assertEqual(changed, store.users()["alice"])

    async def test_replacing_a_user_keeps_devices(self) -> None:
        """A new password does not cost a user the devices, stamps and leases."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_devices([LAPTOP])
        await store.put_user(replaced(ALICE, public_key=b"\x09" * 32))
        self.assertEqual({("alice", b"L" * 16): LAPTOP}, dict(store.devices()))

    async def test_devices(self) -> None:
        """Devices are kept by user and id, several in one write, and replaced one by one."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_user(BOB)
        await store.put_devices([LAPTOP, PHONE, DESK])
        later = replaced(LAPTOP, stamp=b"\x41" * 12, ipv4="10.10.0.9", ipv6=None, last_seen=99)
        await store.put_devices([later])
        expected = {(d.user, d.device_id): d for d in (later, PHONE, DESK)}
        self.assertEqual(expected, dict(store.devices()))

    async def test_devices_of_nobody(self) -> None:
        """In a batch the devices of a removed user are left out, and the others are written."""
        store = self.opened()
        await store.put_user(BOB)
        await store.put_devices([LAPTOP, DESK])
        self.assertEqual([DESK], list(store.devices().values()))

    async def test_remove_device(self) -> None:
        """Removing a device forgets that one only, and once more is harmless."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_devices([LAPTOP, PHONE])
        await store.remove_device("alice", b"L" * 16)
        await store.remove_device("alice", b"L" * 16)
        self.assertEqual([PHONE], list(store.devices().values()))

    async def test_remove_user(self) -> None:
        """Removing a user forgets the user's devices, no one else's, and once more is harmless."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_user(BOB)
        await store.put_devices([LAPTOP, PHONE, DESK])
        await store.remove_user("alice")
        await store.remove_user("alice")
        self.assertEqual([BOB], list(store.users().values()))
        self.assertEqual([DESK], list(store.devices().values()))

    async def test_peers(self) -> None:
        """Peers are kept by public key with all their values, and replaced one by one."""
        store = self.opened()
        await store.put_peers([ROUTER, TABLET])
        self.assertEqual({p.public_key: p for p in (ROUTER, TABLET)}, dict(store.peers()))
        changed = replaced(
            ROUTER, name="r", psk=bytes(32), allowed_ips=(), ipv4=None, keepalive=0, endpoint=None
        )
        await store.put_peers([changed])
        self.assertEqual({p.public_key: p for p in (changed, TABLET)}, dict(store.peers()))

    async def test_remove_peers(self) -> None:
        """Removing peers forgets those only, and once more is harmless; their names are free."""
        store = self.opened()
        await store.put_peers([ROUTER, TABLET])
        for _ in range(2):
            await store.remove_peers([ROUTER.public_key, b"?" * 32])
            self.assertEqual([TABLET], list(store.peers().values()))
        await store.put_peers([replaced(TABLET, name="router")])
        self.assertEqual(["router"], [peer.name for peer in store.peers().values()])

    async def test_peer_names(self) -> None:
        """A name that another peer has is refused with the whole write; a name may move in one."""
        store = self.opened()
        await store.put_peers([ROUTER, TABLET])
        for peers in (
            [replaced(TABLET, keepalive=9), replaced(ROUTER, name=TABLET.name)],
            [replaced(ROUTER, public_key=b"\x14" * 32)],
            [replaced(ROUTER, public_key=bytes([n]) * 32, name="new") for n in (20, 21)],
        ):
            with self.assertRaises(StoreError):
                await store.put_peers(peers)
            self.assertEqual({p.public_key: p for p in (ROUTER, TABLET)}, dict(store.peers()))
        renamed = [replaced(ROUTER, name="old"), replaced(TABLET, name="router")]
        await store.put_peers(renamed)
        self.assertEqual({p.public_key: p for p in renamed}, dict(store.peers()))
        with self.assertRaises(StoreError):
            await store.put_peers([replaced(ROUTER, public_key=b"\x14" * 32)])
        await store.put_peers([replaced(ROUTER, public_key=b"\x14" * 32, name=TABLET.name)])

    async def test_peers_stay(self) -> None:
        """Users and peers are apart: removing one leaves the other of the same name."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_peers([replaced(ROUTER, name="alice")])
        await store.remove_user("alice")
        self.assertEqual(1, len(store.peers()))

    async def test_settings(self) -> None:
        """A setting is what was last written."""
        store = self.opened()
        await store.set_setting("endpoint", "vpn.example.org:5050")
        await store.set_setting("endpoint", "")
        await store.set_setting("other", "x")
        self.assertEqual(("", "x"), (store.setting("endpoint"), store.setting("other")))

    async def test_audit(self) -> None:
        """The audit log answers with the newest records first, no more than asked for."""
        store = self.opened()
        records = [AuditRecord(n, None if n % 2 else "alice", "event", str(n)) for n in range(5)]
        await store.add_audit(records[:3])
        await store.add_audit(records[3:])
        self.assertEqual(records[:1:-1], await store.audit(3))
        self.assertEqual(records[::-1], await store.audit(100))
        self.assertEqual([], await store.audit(0))

    async def test_audit_is_bounded(self) -> None:
        """Above the limit the oldest audit records go, so that nobody can fill the disk."""
        self.patch(memory, "AUDIT_LIMIT", 10)
        self.patch(sqlite, "AUDIT_LIMIT", 10)
        store = self.opened()
        records = [AuditRecord(n, None, "event", "") for n in range(25)]
        for record in records:
            await store.add_audit([record])
        self.assertEqual(records[:14:-1], await store.audit(100))

    def test_order(self) -> None:
        """Writes asked for at once take effect in the order of asking."""
        store = self.opened()
        seen: list[int] = []

        def put(n: int) -> Any:
            write = store.put_user(replaced(ALICE, created=n))
            return write.addCallback(lambda _: seen.append(store.users()["alice"].created))

        writes = [put(n) for n in range(20)]
        writes.append(store.put_devices([LAPTOP]))

        def check(_: object) -> None:
            self.assertEqual(list(range(20)), seen)
            self.assertEqual([LAPTOP], list(store.devices().values()))

        return gatherResults(writes, consumeErrors=True).addCallback(check)

    def test_views_are_read_only(self) -> None:
        """Nobody changes the store by changing what it answered."""
        store = self.opened()
        with self.assertRaises(TypeError):
            store.users()["alice"] = ALICE
        with self.assertRaises(TypeError):
            store.peers()[b""] = ROUTER

    async def test_views_are_live(self) -> None:
        """What was answered once shows what is written later."""
        store = self.opened()
        users, peers = store.users(), store.peers()
        await store.put_user(ALICE)
        await store.put_peers([ROUTER])
        self.assertEqual(([ALICE], [ROUTER]), (list(users.values()), list(peers.values())))

    async def test_closed(self) -> None:
        """After close, which may come twice, writes fail with StoreError and reads go on."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.close()
        await store.close()
        with self.assertRaises(StoreError):
            await store.put_user(BOB)
        self.assertEqual([ALICE], list(store.users().values()))


class MemoryStoreTests(StoreTests, TestCase):
    """The promises of every store, kept by the one in memory."""

    timeout = 30

    def make_store(self) -> MemoryStore:
        return MemoryStore()


class InTemporaryDirectory:
    """A directory of the test's own, and its files as bytes."""

    def setUp(self) -> None:
        self.directory = temporary_directory()
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "store.sqlite"

    def contents(self) -> dict[str, bytes]:
        return {entry.name: entry.read_bytes() for entry in self.directory.iterdir()}


class SQLiteStoreTests(InTemporaryDirectory, StoreTests, TestCase):
    """The promises of every store, kept by the one on disk; and that it is on disk."""

    timeout = 30

    def make_store(self) -> SQLiteStore:
        return SQLiteStore(self.path, busy_timeout=0.01)

    async def test_durable(self) -> None:
        """When a write's Deferred fires, another process would find it, without any close."""
        store = self.opened()
        await store.put_user(ALICE)
        await store.put_user(BOB)
        await store.put_devices([LAPTOP, PHONE, DESK])
        await store.put_peers([ROUTER, TABLET])
        await store.set_setting("key", "value")
        await store.add_audit([AuditRecord(1, None, "event", "detail")])
        second = self.opened()
        self.assertEqual(dict(store.users()), dict(second.users()))
        self.assertEqual(
            {d.device_id: d for d in (LAPTOP, PHONE, DESK)},
            {d.device_id: d for d in second.devices().values()},
        )
        self.assertEqual({p.public_key: p for p in (ROUTER, TABLET)}, dict(second.peers()))
        self.assertEqual("value", second.setting("key"))
        self.assertEqual([AuditRecord(1, None, "event", "detail")], await second.audit(9))

    async def test_survives_kill(self) -> None:
        """The files as they are when the Deferred fires hold the write: kill -9 loses nothing."""
        store = self.opened()
        await store.put_user(ALICE)
        copy = self.directory / "copy"
        copy.mkdir()
        for name in ("store.sqlite", "store.sqlite-wal"):
            shutil.copy(self.directory / name, copy / name)
        self.path = copy / "store.sqlite"
        self.assertEqual([ALICE], list(self.opened().users().values()))

    async def test_disk_equals_copy(self) -> None:
        """After any mix of writes the file, the copy and a store in memory hold the same."""
        for seed in range(2):
            self.path = self.directory / f"{seed}.sqlite"
            store, model = self.opened(), MemoryStore()
            writes = []
            for call in random_writes(Random(seed), 60):
                written = call(model)
                written.addErrback(lambda failure: failure.trap(StoreError))  # a name is taken
                writes.append(call(store).addErrback(lambda failure: failure.trap(StoreError)))
            await gatherResults(writes)
            for other in (model, self.opened()):
                self.assertEqual(dict(other.users()), dict(store.users()), seed)
                self.assertEqual(dict(other.devices()), dict(store.devices()), seed)
                self.assertEqual(dict(other.peers()), dict(store.peers()), seed)
                self.assertEqual(other.setting("key"), store.setting("key"), seed)
            self.assertEqual(await model.audit(99), await store.audit(99))

    async def test_not_before_durable(self) -> None:
        """The copy in memory shows a write when it is durable and not when it is asked for."""
        store = self.opened()
        write = store.put_user(ALICE)
        self.assertEqual({}, dict(store.users()))
        await write
        self.assertEqual([ALICE], list(store.users().values()))

    async def test_synchronous(self) -> None:
        """Writes use WAL with synchronous=FULL (2) and foreign keys, on the thread's connection."""
        store = self.opened()
        await store.put_user(ALICE)

        def read(transaction: Any) -> list[object]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [transaction.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        self.assertEqual(["wal", 2, 1], await store._pool.runInteraction(read))

    async def test_locked(self) -> None:
        """While another program holds the file a write fails and changes nothing; then it works."""
        store = self.opened()
        await store.put_user(ALICE)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with self.assertRaisesRegex(StoreError, "another program is using the file"):
                await store.put_user(BOB)
            with self.assertRaises(StoreError):
                await store.remove_user("alice")
        self.assertEqual([ALICE], list(store.users().values()))
        self.assertEqual([ALICE], list(self.opened().users().values()))
        await store.put_user(BOB)
        self.assertEqual([ALICE, BOB], list(self.opened().users().values()))

    async def test_disk_full(self) -> None:
        """On a full disk a write fails whole, changes nothing, and names file and remedy."""
        store = self.opened()
        # SQLite takes 1 as "no larger than it is now".
        self.patch(sqlite, "PRAGMAS", (*sqlite.PRAGMAS, "PRAGMA max_page_count = 1"))
        await store.put_user(ALICE)
        many = [replaced(LAPTOP, device_id=bytes([n]) * 16) for n in range(250)]
        with self.assertRaisesRegex(StoreError, f"{self.path}: .*full; free some space"):
            await store.put_devices(many)
        self.assertEqual({}, dict(store.devices()))
        self.assertEqual({}, dict(self.opened().devices()))
        await store.put_devices(many[:1])

    async def test_broken_while_open(self) -> None:
        """A table lost under a running hub fails the write that needs it, and no other."""
        store = self.opened()
        await store.put_user(ALICE)
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("DROP TABLE settings")
        with self.assertRaisesRegex(StoreError, "settings"):
            await store.set_setting("key", "value")
        self.assertIsNone(store.setting("key"))
        await store.put_user(BOB)

    async def test_unstorable_value(self) -> None:
        """A value that SQLite cannot hold is a StoreError too and leaves the store working."""
        store = self.opened()
        with self.assertRaisesRegex(StoreError, "cannot hold this value"):
            await store.set_setting("key", "\udc80")
        with self.assertRaisesRegex(StoreError, "cannot hold this value"):
            await store.put_user(replaced(ALICE, created=2**70))
        await store.put_user(ALICE)
        self.assertEqual([ALICE], list(store.users().values()))

    def test_close_finishes_writes(self) -> None:
        """close() waits for the writes that were asked for, and fires after them."""
        store = self.make_store()
        store.open()
        fired: list[str] = []
        store.put_user(ALICE).addCallback(lambda _: fired.append("write"))

        def check(_: object) -> None:
            self.assertEqual(["write"], fired)
            self.assertEqual([ALICE], list(store.users().values()))
            self.assertEqual([ALICE], list(self.opened().users().values()))
            self.assertEqual(
                ["store.sqlite"], [name for name in self.contents() if "-" not in name]
            )

        return store.close().addCallback(check)

    def test_close_after_failed_write(self) -> None:
        """close() fires even if the last write fails."""
        store = self.make_store()
        store.open()
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("DROP TABLE users")
        write = store.put_user(ALICE)
        both = DeferredList([write, store.close()], consumeErrors=True)

        def check(results: list[tuple[bool, Any]]) -> None:
            self.assertEqual([False, True], [ok for ok, _ in results])

        return both.addCallback(check)

    async def test_ended_by_the_reactor(self) -> None:
        """close() fires also if the reactor's shutdown has ended the thread pool before."""
        store = self.opened()
        await store.put_user(ALICE)
        pool = store._pool
        reactor.removeSystemEventTrigger(pool.shutdownID)
        pool.finalClose()
        await store.close()

    async def test_open_again(self) -> None:
        """A closed store may be opened again; an open one not a second time."""
        store = self.opened()
        await store.put_user(ALICE)
        with self.assertRaisesRegex(StoreError, "open already"):
            store.open()
        await store.close()
        store.open()
        await store.put_user(BOB)
        self.assertEqual([ALICE, BOB], list(store.users().values()))


class WithoutReactorTests(InTemporaryDirectory, SynchronousTestCase):
    """Opening is synchronous and starts no thread: it works before the reactor runs."""

    def test_open_read_close(self) -> None:
        """Opening, reading and closing need no reactor, and closing fires at once."""
        create_store(self.path, {"subnet6_auto": "fd00::/64"})
        store = SQLiteStore(self.path, reactor=object())
        store.open()
        self.assertEqual("fd00::/64", store.setting("subnet6_auto"))
        self.assertIsNone(self.successResultOf(store.close()))
        self.assertEqual(["store.sqlite"], list(self.contents()))

    def test_never_opened(self) -> None:
        """Closing what never opened fires; writing to it fails and makes no file."""
        store = SQLiteStore(self.path)
        self.failureResultOf(store.put_user(ALICE), StoreError)
        self.assertIsNone(self.successResultOf(store.close()))
        self.assertEqual({}, self.contents())

    def test_mode(self) -> None:
        """The file and the two that SQLite puts beside it are for their owner only."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        SQLiteStore(self.path).open()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("INSERT INTO settings VALUES ('a', 'b')")
            connection.commit()
            modes = {e.name: e.stat().st_mode & 0o777 for e in self.directory.iterdir()}
        expected = dict.fromkeys(["store.sqlite", "store.sqlite-wal", "store.sqlite-shm"], 0o600)
        self.assertEqual(expected, modes)


#: The command line's way: a reactor for one errand.
UNDER_REACT = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from pyvpn.state.sqlite import SQLiteStore
async def work(reactor):
    store = SQLiteStore(sys.argv[1])
    store.open()
    await store.set_setting("key", "react")
    await store.close()
react(lambda reactor: Deferred.fromCoroutine(work(reactor)))
"""

#: A daemon's way: opened and written before the reactor runs, closed when it is told to stop.
UNDER_RUN = """
import sys
from pyvpn.state.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
store.open()
write = store.set_setting("key", "run")
from twisted.internet import reactor
write.addCallback(lambda _: reactor.callLater(0, reactor.stop))
def stop():
    closing = [store.close(), store.close()]
    return closing[1]
reactor.addSystemEventTrigger("before", "shutdown", stop)
reactor.run()
"""

#: A daemon that forgets to close: the reactor's own shutdown must not hang on the store.
WITHOUT_CLOSE = UNDER_RUN.replace("return closing[1]", "pass").replace(
    "closing = [store.close(), store.close()]", "store.set_setting('key', 'late')"
)


class ProcessTests(InTemporaryDirectory, SynchronousTestCase):
    """The store in processes of its own, as its users run the reactor."""

    def check(self, script: str, expected: str) -> None:
        """The script ends by itself, in silence, and has written ``expected``."""
        root = str(Path(pyvpn.__file__).parent.parent)
        ended = subprocess.run(
            [sys.executable, "-c", script, str(self.path)],
            check=False,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            timeout=30,
        )
        self.assertEqual((0, b"", b""), (ended.returncode, ended.stdout, ended.stderr))
        store = SQLiteStore(self.path)
        store.open()
        self.assertEqual(expected, store.setting("key"))

    def test_react(self) -> None:
        """It works under task.react."""
        self.check(UNDER_REACT, "react")

    def test_run(self) -> None:
        """It may be opened and written before the reactor runs, and closed in its shutdown."""
        self.check(UNDER_RUN, "run")

    def test_without_close(self) -> None:
        """A process that never closes it still ends, with the last write on disk."""
        self.check(WITHOUT_CLOSE, "late")


class BadFileTests(InTemporaryDirectory, SynchronousTestCase):
    """Every file that is not a good store is refused in one line, and stays as it was."""

    def refused(self, message: str, path: Path | None = None) -> None:
        """Opening says ``PATH: message`` (a regular expression) and changes no file."""
        path = path or self.path
        before = self.contents() if path.parent == self.directory else {}
        with self.assertRaises(StoreError) as caught:
            SQLiteStore(path, busy_timeout=0.01).open()
        text = str(caught.exception)
        self.assertRegex(text, f"^{path}: {message}$")
        self.assertNotIn("\n", text)
        if path.parent == self.directory:
            self.assertEqual(before, self.contents())

    def good(self) -> None:
        create_store(self.path, {"key": "value"})

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def test_control(self) -> None:
        """Positive control: the file that the other tests spoil opens as long as it is whole."""
        self.good()
        store = SQLiteStore(self.path)
        store.open()
        self.assertEqual("value", store.setting("key"))

    def test_not_a_database(self) -> None:
        """Any other file is no store."""
        self.path.write_bytes(b"hello, I am a letter to my aunt\n" * 200)
        self.refused("file is not a database; restore it from a backup, or move it away")

    def test_empty_file(self) -> None:
        """An empty file is not taken for a new network: that would lose every account silently."""
        self.path.touch()
        self.refused("the file is empty; restore it or remove it")

    def test_corrupt(self) -> None:
        """A page of rubbish in the middle is found when opening."""
        self.good()
        data = bytearray(self.path.read_bytes())
        data[4096:8192] = b"\xa5" * 4096
        self.path.write_bytes(data)
        self.refused(".*; restore it from a backup")

    def test_truncated(self) -> None:
        """A file cut short is found when opening."""
        self.good()
        self.path.write_bytes(self.path.read_bytes()[:-4096])
        self.refused(".*; restore it from a backup")

    def test_newer_schema(self) -> None:
        """A store that a newer PyVPN has written is left alone."""
        self.good()
        self.execute("UPDATE schema_version SET version = 99")
        self.refused(r"written by a newer PyVPN \(schema 99, known here up to 2\); upgrade PyVPN")

    def test_foreign_database(self) -> None:
        """The SQLite file of another program is left alone."""
        self.execute("CREATE TABLE cookies (name TEXT)")
        self.refused("this is a database of another program; move it away")

    def test_no_version(self) -> None:
        """A store without its version is refused, not guessed at."""
        self.good()
        self.execute("DELETE FROM schema_version")
        self.refused("the database has no schema version; restore it from a backup")

    def test_senseless_row(self) -> None:
        """A row that the schema allows and the program does not is refused when opening."""
        self.good()
        self.execute("INSERT INTO users VALUES ('alice', '%s', 1, 5)" % ("x" * 32))
        self.refused("a row in it makes no sense; restore it from a backup")

    def test_missing_table(self) -> None:
        """A store that lacks a table is refused."""
        self.good()
        self.execute("DROP TABLE devices")
        self.refused("no such table: devices; restore it from a backup")

    def test_directory(self) -> None:
        """A directory in place of the file is refused."""
        self.path.mkdir()
        with self.assertRaisesRegex(StoreError, f"^{self.path}: .*; check that the directory"):
            SQLiteStore(self.path).open()

    def test_no_directory(self) -> None:
        """A store in a directory that does not exist is refused."""
        self.refused("No such file or directory; .*", self.directory / "absent" / "store.sqlite")

    def test_locked(self) -> None:
        """A store on which another program is writing is refused after a bounded wait."""
        self.good()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            before = self.path.read_bytes()
            with self.assertRaisesRegex(StoreError, "another program is using the file"):
                SQLiteStore(self.path, busy_timeout=0.01).open()
            self.assertEqual(before, self.path.read_bytes())

    def unprivileged(self) -> None:
        """Until the test ends root's powers over file modes are off, also for SQLite."""
        if os.geteuid() == 0:
            os.chmod(self.directory, 0o755)
            for entry in (self.directory, *self.directory.iterdir()):
                os.chown(entry, 65534, 65534)
            self.addCleanup(os.seteuid, 0)
            os.seteuid(65534)

    def test_read_only(self) -> None:
        """A file that cannot be written is refused when opening and not at the first login."""
        self.good()
        self.unprivileged()
        self.path.chmod(0o400)
        self.refused(".*; make the file and its directory writable")
        self.path.chmod(0o600)
        SQLiteStore(self.path).open()  # positive control

    def test_unwritable_directory(self) -> None:
        """A directory that takes no new file cannot take a store, and none is left half made."""
        self.unprivileged()
        self.directory.chmod(0o500)
        self.refused("Permission denied; make the file and its directory readable and writable")
        self.directory.chmod(0o700)
        SQLiteStore(self.path).open()  # positive control


class SchemaTests(InTemporaryDirectory, SynchronousTestCase):
    """Numbered steps lead an older store to today's schema, or leave it as it was."""

    STEPS = sqlite.SCHEMA_STEPS
    NOTES = ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes SELECT name FROM users")

    def setUp(self) -> None:
        super().setUp()
        create_store(self.path, {})
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(
                "INSERT INTO users VALUES ('alice', ?, 1, 1700000000)", (b"\x01" * 32,)
            )
            connection.commit()

    def query(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(statement).fetchall()

    def test_step(self) -> None:
        """A store of yesterday's schema is brought forward once, with its rows."""
        self.patch(sqlite, "SCHEMA_STEPS", (*sqlite.SCHEMA_STEPS, self.NOTES))
        for _ in range(2):
            store = SQLiteStore(self.path)
            store.open()
            self.assertEqual([ALICE], list(store.users().values()))
        self.assertEqual([(3,)], self.query("SELECT version FROM schema_version"))
        self.assertEqual([("alice",)], self.query("SELECT text FROM notes"))

    def test_before_peers(self) -> None:
        """A store of the first release opens, keeps its users and takes peers from then on."""
        path = self.directory / "first.sqlite"
        self.patch(sqlite, "SCHEMA_STEPS", sqlite.SCHEMA_STEPS[:1])
        create_store(path, {"key": "value"})
        self.assertFalse(sqlite.has_peers(path))
        self.patch(sqlite, "SCHEMA_STEPS", self.STEPS)
        store = SQLiteStore(path)
        store.open()
        self.assertEqual(({}, "value"), (dict(store.peers()), store.setting("key")))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "INSERT INTO peers VALUES (?, ?, ?, '', NULL, NULL, 0, 1, 5, NULL)",
                (b"\x01" * 32, "kiwi", bytes(32)),
            )
            connection.commit()
        self.assertTrue(sqlite.has_peers(path))

    def test_failing_step(self) -> None:
        """A step that fails half-way leaves the store in its old schema, still good."""
        steps = sqlite.SCHEMA_STEPS
        self.patch(sqlite, "SCHEMA_STEPS", (*steps, self.NOTES, ("nonsense",)))
        with self.assertRaisesRegex(StoreError, "nonsense"):
            SQLiteStore(self.path).open()
        self.assertEqual([(2,)], self.query("SELECT version FROM schema_version"))
        self.assertEqual([], self.query("SELECT 1 FROM sqlite_master WHERE name = 'notes'"))
        self.patch(sqlite, "SCHEMA_STEPS", steps)
        SQLiteStore(self.path).open()

    def test_interrupted_creation(self) -> None:
        """What a crash while making a store leaves behind does not stop the next attempt."""
        (self.directory / "other.new").write_bytes(b"half")
        create_store(self.directory / "other", {"key": "value"})
        self.assertEqual({"store.sqlite", "other"}, set(self.contents()))
