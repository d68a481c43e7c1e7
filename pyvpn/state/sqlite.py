"""The store of one hub: an SQLite file, with a copy of it in memory that answers all reads.

``open()`` is synchronous, so that a bad file is reported before anything else has started. Writes
go through one thread of :mod:`twisted.enterprise.adbapi`, which keeps them in order.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import Any
from urllib.parse import quote

from attrs import astuple
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pyvpn.errors import StoreError
from pyvpn.files import sync_directory
from pyvpn.state.interface import (
    AUDIT_LIMIT,
    AuditRecord,
    Device,
    IStore,
    User,
    WireGuardPeerRecord,
)
from pyvpn.state.memory import MemoryStore

log = Logger()

#: Step n (counted from 1) leads from schema n - 1 to schema n. Released steps never change.
SCHEMA_STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE schema_version (version INTEGER NOT NULL)",
        "INSERT INTO schema_version VALUES (0)",
        """CREATE TABLE users (
            name TEXT PRIMARY KEY NOT NULL,
            public_key BLOB NOT NULL CHECK (length(public_key) = 32),
            enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
            created INTEGER NOT NULL)""",
        """CREATE TABLE devices (
            user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
            device_id BLOB NOT NULL CHECK (length(device_id) = 16),
            name TEXT NOT NULL,
            stamp BLOB NOT NULL CHECK (length(stamp) = 12),
            ipv4 TEXT,
            ipv6 TEXT,
            last_seen INTEGER NOT NULL,
            PRIMARY KEY (user, device_id))""",
        "CREATE TABLE settings (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at INTEGER NOT NULL,
            user TEXT,
            event TEXT NOT NULL,
            detail TEXT NOT NULL)""",
    ),
    (
        """CREATE TABLE peers (
            public_key BLOB PRIMARY KEY NOT NULL CHECK (length(public_key) = 32),
            name TEXT NOT NULL UNIQUE,
            psk BLOB NOT NULL CHECK (length(psk) = 32),
            allowed_ips TEXT NOT NULL,
            ipv4 TEXT,
            ipv6 TEXT,
            keepalive INTEGER NOT NULL CHECK (keepalive BETWEEN 0 AND 65535),
            enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
            created INTEGER NOT NULL,
            endpoint TEXT)""",
    ),
)

#: Of every connection. FULL: a commit in WAL mode reaches the disk before it is reported.
PRAGMAS = ("PRAGMA foreign_keys = ON", "PRAGMA synchronous = FULL")

BUSY_TIMEOUT = 5.0  #: seconds that a write waits for another program (sqlite3, a backup) to let go

_PUT_USER = """INSERT INTO users (name, public_key, enabled, created) VALUES (?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET
    public_key = excluded.public_key, enabled = excluded.enabled, created = excluded.created"""
_PUT_DEVICE = """INSERT OR REPLACE INTO devices
    (user, device_id, name, stamp, ipv4, ipv6, last_seen)
    SELECT ?, ?, ?, ?, ?, ?, ? WHERE ? IN (SELECT name FROM users)"""
_PEER_COLUMNS = """name, public_key, psk, allowed_ips, ipv4, ipv6, keepalive, enabled, created,
    endpoint"""
# Not OR REPLACE: that would make room by removing another peer of the same name.
_PUT_PEER = f"""INSERT INTO peers ({_PEER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (public_key) DO UPDATE SET
    name = excluded.name, psk = excluded.psk, allowed_ips = excluded.allowed_ips,
    ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, keepalive = excluded.keepalive,
    enabled = excluded.enabled, created = excluded.created, endpoint = excluded.endpoint"""
_PUT_SETTING = "INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)"
_ADD_AUDIT = "INSERT INTO audit (at, user, event, detail) VALUES (?, ?, ?, ?)"
_TRIM_AUDIT = "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?"

_REMEDIES = {
    "BUSY": "another program is using the file; close that program",
    "LOCKED": "another program is using the file; close that program",
    "CANTOPEN": "check that the directory is there and may be read and written",
    "READONLY": "make the file and its directory writable",
    "PERM": "make the file and its directory writable",
    "FULL": "free some space on its disk",
    "IOERR": "check its disk, and whether it is full",
    "CORRUPT": "restore it from a backup",
    "NOTADB": "restore it from a backup, or move it away",
}


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what the system and SQLite raise into one line that names the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{path}: {reason}; make the file and its directory readable and writable"
        ) from error


def _explain(path: str, error: sqlite3.Error) -> StoreError:
    name = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
    reason = " ".join(str(error).split())
    return StoreError(f"{path}: {reason}; {_REMEDIES.get(name, 'restore it from a backup')}")


def _uri(path: str) -> str:
    # mode=rw: a file that is gone must be an error and not a new, empty network.
    return f"file:{quote(os.path.abspath(path))}?mode=rw"


def _prepare(connection: sqlite3.Connection) -> None:
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(_uri(path), uri=True, timeout=timeout, isolation_level=None)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # some errors have rolled back already
            connection.execute("ROLLBACK")
        raise


def create_store(path: str | os.PathLike[str], settings: Mapping[str, str]) -> None:
    """Make a new store holding nothing but ``settings``: all of it or, after a crash, none.

    The caller has made sure that there is no file ``path`` and that nobody else is making one.

    :raises StoreError: it cannot be written.
    """
    path = os.fspath(path)
    new = f"{path}.new"
    with _explained(path):
        for leftover in (new, f"{new}-journal"):
            with suppress(FileNotFoundError):
                os.unlink(leftover)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with closing(_connect(new, BUSY_TIMEOUT)) as connection, _transaction(connection):
                _step_up(connection, 0)
                connection.executemany(_PUT_SETTING, settings.items())
            os.rename(new, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(new)
            raise
        sync_directory(os.path.dirname(os.path.abspath(path)))


def has_peers(path: str | os.PathLike[str]) -> bool:
    """Tell whether a store knows stock WireGuard peers; False for one of an older schema.

    :raises StoreError: it cannot be read.
    """
    path = os.fspath(path)
    with _explained(path), closing(_connect(path, BUSY_TIMEOUT)) as connection:
        tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'peers'"
        if connection.execute(tables).fetchone() != (1,):
            return False
        return connection.execute("SELECT 1 FROM peers LIMIT 1").fetchone() is not None


def _step_up(connection: sqlite3.Connection, version: int) -> None:
    for statement in chain.from_iterable(SCHEMA_STEPS[version:]):
        connection.execute(statement)
    connection.execute("UPDATE schema_version SET version = ?", (len(SCHEMA_STEPS),))


def _check(connection: sqlite3.Connection, path: str) -> int:
    """Return the schema version of a sound store, having changed nothing."""
    (verdict,) = connection.execute("PRAGMA quick_check (1)").fetchone()
    if verdict != "ok":
        reason = " ".join(str(verdict).split())
        raise StoreError(f"{path}: the database is damaged ({reason}); restore it from a backup")
    tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    if connection.execute(tables).fetchone() != (1,):
        raise StoreError(f"{path}: this is a database of another program; move it away")
    versions = connection.execute("SELECT version FROM schema_version").fetchall()
    if len(versions) != 1 or not isinstance(versions[0][0], int):
        raise StoreError(f"{path}: the database has no schema version; restore it from a backup")
    version: int = versions[0][0]
    if version > len(SCHEMA_STEPS):
        raise StoreError(
            f"{path}: written by a newer PyVPN (schema {version}, known here up to "
            f"{len(SCHEMA_STEPS)}); upgrade PyVPN"
        )
    return version


def _load(connection: sqlite3.Connection, path: str) -> MemoryStore:
    copy = MemoryStore()
    try:
        for name, key, enabled, created in connection.execute(
            "SELECT name, public_key, enabled, created FROM users"
        ):
            copy.put_user(User(name, key, bool(enabled), created))
        devices = connection.execute(
            "SELECT user, device_id, name, stamp, ipv4, ipv6, last_seen FROM devices"
        )
        copy.put_devices([Device(*row) for row in devices])
        peers = connection.execute(f"SELECT {_PEER_COLUMNS} FROM peers")
        copy.put_peers([_peer(*row) for row in peers])
        for key, value in connection.execute("SELECT key, value FROM settings"):
            copy.set_setting(key, value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: a row in it makes no sense; restore it from a backup") from error
    return copy


def _peer_row(peer: WireGuardPeerRecord) -> tuple[Any, ...]:
    name, key, psk, networks, *rest = astuple(peer, recurse=False)
    return (name, key, psk, ",".join(networks), *rest)


def _peer(
    name: str, key: bytes, psk: bytes, networks: str, ipv4: Any, ipv6: Any, *rest: Any
) -> WireGuardPeerRecord:
    keepalive, enabled, created, endpoint = rest
    allowed_ips = tuple(networks.split(",")) if networks else ()
    return WireGuardPeerRecord(
        name, key, psk, allowed_ips, ipv4, ipv6, keepalive, bool(enabled), created, endpoint
    )


@implementer(IStore)
class SQLiteStore:
    """An :class:`~pyvpn.state.interface.IStore` in one file (and SQLite's two beside it).

    :param path: the database; :meth:`open` makes it if it is missing.
    :param reactor: whose thread pool calls come back to; by default the global one.
    :param busy_timeout: seconds that a write waits for another program's lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        reactor: Any = None,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        self.path = os.fspath(path)
        self._reactor = reactor
        self._busy_timeout = busy_timeout
        self._copy = MemoryStore()
        self._open = False
        self._pool: Any = None
        self._unfinished = 0
        self._closing: list[Deferred[None]] = []

    def open(self) -> None:
        if self._open or self._pool is not None:
            raise StoreError(f"{self.path}: this store is open already")
        with _explained(self.path):
            if not os.path.lexists(self.path):
                create_store(self.path, {})
            elif os.stat(self.path).st_size == 0:
                # SQLite would take it for a new database, and every account would be gone.
                raise StoreError(f"{self.path}: the file is empty; restore it or remove it")
            with closing(_connect(self.path, self._busy_timeout)) as connection:
                version = _check(connection, self.path)
                with _transaction(connection):  # which also finds out whether it can be written
                    if version < len(SCHEMA_STEPS):
                        _step_up(connection, version)
                    copy = _load(connection, self.path)
                # Where shared memory is missing SQLite keeps its old journal: slower, as durable.
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
        self._copy = copy
        self._open = True

    def close(self) -> Deferred[None]:
        self._open = False
        done: Deferred[None] = Deferred()
        self._closing.append(done)
        self._finish_closing()
        return done

    def _finish_closing(self) -> None:
        if self._unfinished:
            return
        pool, self._pool = self._pool, None
        # A pool that is neither running nor going to was ended by the reactor's shutdown.
        if pool is not None and (pool.running or pool.startID is not None):
            try:
                pool.close()
            except Exception:
                log.failure("{path}: closing failed", path=self.path)
        waiting, self._closing = self._closing, []
        for done in waiting:
            done.callback(None)

    def users(self) -> Mapping[str, User]:
        return self._copy.users()

    def devices(self) -> Mapping[tuple[str, bytes], Device]:
        return self._copy.devices()

    def peers(self) -> Mapping[bytes, WireGuardPeerRecord]:
        return self._copy.peers()

    def setting(self, key: str) -> str | None:
        return self._copy.setting(key)

    def put_user(self, user: User) -> Deferred[None]:
        row = (user.name, user.public_key, int(user.enabled), user.created)
        return self._write([(_PUT_USER, [row])], lambda: self._copy.put_user(user))

    def remove_user(self, name: str) -> Deferred[None]:
        delete = "DELETE FROM users WHERE name = ?"  # and the devices, by ON DELETE CASCADE
        return self._write([(delete, [(name,)])], lambda: self._copy.remove_user(name))

    def put_devices(self, devices: list[Device]) -> Deferred[None]:
        devices = list(devices)
        rows = [
            (d.user, d.device_id, d.name, d.stamp, d.ipv4, d.ipv6, d.last_seen, d.user)
            for d in devices
        ]
        return self._write([(_PUT_DEVICE, rows)], lambda: self._copy.put_devices(devices))

    def remove_device(self, user: str, device_id: bytes) -> Deferred[None]:
        delete = "DELETE FROM devices WHERE user = ? AND device_id = ?"
        return self._write(
            [(delete, [(user, device_id)])], lambda: self._copy.remove_device(user, device_id)
        )

    def put_peers(self, peers: list[WireGuardPeerRecord]) -> Deferred[None]:
        peers = list(peers)
        rows = [_peer_row(peer) for peer in peers]
        return self._write([(_PUT_PEER, rows)], lambda: self._copy.put_peers(peers))

    def remove_peers(self, public_keys: list[bytes]) -> Deferred[None]:
        public_keys = list(public_keys)
        delete = "DELETE FROM peers WHERE public_key = ?"
        rows = [(key,) for key in public_keys]
        return self._write([(delete, rows)], lambda: self._copy.remove_peers(public_keys))

    def set_setting(self, key: str, value: str) -> Deferred[None]:
        return self._write(
            [(_PUT_SETTING, [(key, value)])], lambda: self._copy.set_setting(key, value)
        )

    def add_audit(self, records: list[AuditRecord]) -> Deferred[None]:
        rows = [(r.when, r.user, r.event, r.detail) for r in records]
        return self._write(
            [(_ADD_AUDIT, rows), (_TRIM_AUDIT, [(AUDIT_LIMIT,)])],
            lambda: None,  # the copy holds no audit log: nobody reads it in a hurry
        )

    def audit(self, limit: int) -> Deferred[list[AuditRecord]]:
        def read(transaction: Any) -> list[AuditRecord]:
            transaction.execute(
                "SELECT at, user, event, detail FROM audit ORDER BY id DESC LIMIT ?",
                (max(limit, 0),),
            )
            return [AuditRecord(*row) for row in transaction.fetchall()]

        return self._in_thread(read)

    def _write(
        self, statements: list[tuple[str, Iterable[tuple[Any, ...]]]], update: Callable[[], object]
    ) -> Deferred[None]:
        """Run the statements in one transaction, then ``update`` the copy."""

        def change(transaction: Any) -> None:
            for statement, rows in statements:
                transaction.executemany(statement, rows)

        def durable(result: object) -> None:
            update()

        return self._in_thread(change, durable)

    def _in_thread(
        self, interaction: Callable[[Any], Any], then: Callable[[Any], Any] = lambda result: result
    ) -> Deferred[Any]:
        if not self._open:
            return fail(StoreError(f"{self.path}: the store is closed"))
        if self._pool is None:
            self._pool = self._start_pool()
        answer: Deferred[Any] = Deferred()

        def finished(outcome: Any) -> None:
            self._unfinished -= 1
            answer.callback(outcome)  # its callbacks first, so that close() fires after them
            if self._closing:
                self._finish_closing()

        self._unfinished += 1
        result: Deferred[Any] = self._pool.runInteraction(interaction)
        result.addCallbacks(then, self._failed).addBoth(finished)
        return answer

    def _start_pool(self) -> Any:
        """One thread with one connection, begun when the reactor runs.

        Only now, at the first write: making it earlier would choose the global reactor, and need it
        to run, in programs that only read.
        """
        pool: Any = ConnectionPool  # it has no types
        return pool(
            "sqlite3",
            _uri(self.path),
            uri=True,
            timeout=self._busy_timeout,
            isolation_level="IMMEDIATE",  # ask for the lock at the start, where waiting is possible
            check_same_thread=False,  # the pool closes it from the reactor's thread
            cp_min=1,
            cp_max=1,
            cp_openfun=_prepare,
            cp_reactor=self._reactor,
        )

    def _failed(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, sqlite3.Error):
            raise _explain(self.path, error) from error
        if isinstance(error, UnicodeError | OverflowError):
            raise StoreError(f"{self.path}: it cannot hold this value ({error})") from error
        return failure
