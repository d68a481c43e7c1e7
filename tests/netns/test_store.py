"""A real hub whose store is full, read-only, damaged or from the future: one line, and no harm."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.state.sqlite import SQLiteStore
from tests.netns.lab import Process, built_for
from tests.netns.test_start import snapshot

PASSWORDS = {"kiwi": "correct horse kiwi"}
NO_SPACE = "database or disk is full; free some space on its disk"


def contents(directory: Path) -> dict[str, bytes]:
    """All files of the state directory but the lock, which names the last process."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file() and path.name != "lock"
    }


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lab = built_for(self)
        self.home = self.lab.directory / "hub"
        self.state, self.run_dir = self.home / "state", self.home / "run"

    def spawn(self, mount: str = "", *words: str) -> Process:
        """Start the hub, with a shell line before that mounts something for it alone."""
        shell = f'{mount} exec "$0" "$@"'
        directories = ["--state-dir", str(self.state), "--run-dir", str(self.run_dir)]
        twistd = [str(self.lab.tool("twistd")), "-n", "pyvpn-server", *directories]
        return self.lab.spawn("hub", ["/bin/sh", "-c", shell, *twistd, *words], "pyvpn-server")

    def add_user(self, name: str, hub: Process | None = None) -> tuple[int, str]:
        """Run ``pyvpn user add``, with the hub's view of the disks; its status and complaint."""
        secret = self.home / "secret"
        secret.write_text(f"correct horse {name}\n")
        secret.chmod(0o600)
        view = [] if hub is None else ["nsenter", "--mount", "--target", str(hub.pid)]
        directories = ["--state-dir", str(self.state), "--run-dir", str(self.run_dir)]
        argv = [*view, self.lab.tool("pyvpn"), *directories, "user", "add", name]
        done = self.lab.run("hub", [*argv, "--pw-file", str(secret)])
        return done.returncode, done.stderr

    def prepared(self) -> None:
        """A state directory with a user, and no hub."""
        self.lab.pyvpn("hub", "init", "--endpoint", "198.51.100.2:5050")
        self.assertEqual(self.add_user("kiwi")[0], 0)

    # -- a store that cannot be used -------------------------------------------------------------

    def test_refused_at_the_start(self) -> None:
        """Each unusable store ends the start with its line and status 1, also as a daemon; nothing
        of the state directory is changed, and nothing is left in Linux.
        """
        self.prepared()
        good = contents(self.state)
        store = self.state / "store.sqlite"

        def rubbish() -> None:
            data = bytearray(store.read_bytes())
            data[4096:8192] = b"\xa5" * 4096
            store.write_bytes(data)

        def sql(statement: str) -> Callable[[], None]:
            def change() -> None:
                with closing(sqlite3.connect(store)) as connection:
                    connection.execute(statement)
                    connection.commit()

            return change

        future = "UPDATE schema_version SET version = 7"
        table: list[tuple[Callable[[], object], str]] = [
            (rubbish, r"the database is damaged \(.*\); restore it from a backup"),
            (lambda: os.truncate(store, 8192), r".*; restore it from a backup"),
            (lambda: os.truncate(store, 0), "the file is empty; restore it or remove it"),
            (
                lambda: store.write_bytes(b"Dear aunt, " * 999),
                "file is not a database; restore it from a backup, or move it away",
            ),
            (
                sql(future),
                r"written by a newer PyVPN \(schema 7, known here up to \d+\); upgrade PyVPN",
            ),
            (
                sql("DROP TABLE schema_version"),
                "this is a database of another program; move it away",
            ),
            (sql("DROP TABLE users"), "no such table: users; restore it from a backup"),
        ]
        directories = ["--state-dir", str(self.state), "--run-dir", str(self.run_dir)]
        for spoil, message in table:
            spoil()
            before = contents(self.state), snapshot(self.lab, "hub")
            for mode in (["-n"], []) if spoil is rubbish else (["-n"],):
                argv = [self.lab.tool("twistd"), *mode, "pyvpn-server", *directories]
                done = self.lab.run("hub", argv)
                lines = re.findall(r"^pyvpn-server: (.*)$", done.stderr, re.MULTILINE)
                self.assertEqual((done.returncode, len(lines)), (1, 1), done.stderr)
                # A daemon has room for 90 characters and the log's name.
                if mode:
                    self.assertRegex(lines[0], f"^{store}: {message}$")
                self.assertNotIn("Traceback", done.stderr)
                self.assertEqual((contents(self.state), snapshot(self.lab, "hub")), before)
            for name in contents(self.state):
                (self.state / name).unlink()
            for name, data in good.items():
                (self.state / name).write_bytes(data)
                (self.state / name).chmod(0o600)
        self.spawn().wait_for_text("listens on UDP port 5050")  # control: the good one

    def test_disks_that_take_nothing(self) -> None:
        """A start on a read-only or full disk says so in one line and changes nothing."""
        self.prepared()
        store = self.state / "store.sqlite"
        before = contents(self.state), snapshot(self.lab, "hub")
        quoted = f"'{self.state}'"
        read_only = f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted} &&"
        full = (
            f"mount -t tmpfs -o size=200k,mode=700 none /mnt && cp -a {quoted}/. /mnt &&"
            f" mount --move /mnt {quoted} && cd {quoted} &&"
            " { cat /dev/zero > filler 2>/dev/null; true; } && cd / &&"
        )
        for mount, expected in (
            (
                read_only,
                f"cannot write to {self.state}: its file system is read-only; choose another"
                " directory",
            ),
            (full, f"{store}: (disk I/O error; check its disk, and whether it is full|{NO_SPACE})"),
        ):
            hub = self.spawn(mount)
            self.assertEqual(hub.wait(), 1, hub.text())
            lines = re.findall(r"^pyvpn-server: (.*)$", hub.text(), re.MULTILINE)
            self.assertEqual(len(lines), 1, hub.text())
            self.assertRegex(lines[0], f"^{expected}$")
            self.assertEqual((contents(self.state), snapshot(self.lab, "hub")), before)
        self.spawn().wait_for_text("listens on UDP port 5050")  # control

    # -- a store that fails under a running hub ----------------------------------------------

    def test_disk_full_while_running(self) -> None:
        """On a full disk the hub goes on: users it knows log in, and each change of accounts fails
        with a line that says why. With room again it writes what it owes.
        """
        self.prepared()
        quoted = f"'{self.state}'"
        hub = self.spawn(
            f"mount -t tmpfs -o size=1m,mode=700 none /mnt && cp -a {quoted}/. /mnt &&"
            f" mount --move /mnt {quoted} &&"
        )
        hub.wait_for_text("listens on UDP port 5050")
        self.lab.join("kiwi")
        disk = Path(f"/proc/{hub.pid}/root{self.state}")
        with (disk / "filler").open("wb", buffering=0) as filler, self.assertRaises(OSError):
            while True:
                filler.write(bytes(512))
        code, said = self.add_user("pa", hub)
        self.assertEqual((code, said), (1, f"pyvpn: {self.state}/store.sqlite: {NO_SPACE}\n"))
        client = self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        hub.wait_for_text(f"store.sqlite: {NO_SPACE}; trying on")
        self.assertEqual(self.devices(disk), 0)
        client.stop()
        (disk / "filler").unlink()
        self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        hub.wait_for_text("store.sqlite: it can be written again")
        self.lab.wait_until(lambda: self.devices(disk) == 1, "the device is on disk")
        self.assertEqual(self.add_user("pa", hub), (0, ""))

    def devices(self, disk: Path) -> int:
        """How many devices the files hold, as the next hub would find them."""
        copy = self.home / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("store.sqlite", "store.sqlite-wal"):
            shutil.copy(disk / name, copy)
        store = SQLiteStore(copy / "store.sqlite")
        store.open()
        return len(store.devices())

    def test_killed_after_each_acknowledgement(self) -> None:
        """What `pyvpn user add` has said is done is there after a kill -9 in the next moment."""
        self.prepared()
        names = ["kiwi"]
        for name in ("pa", "ma", "uncle"):
            hub = self.spawn()
            hub.wait_for_text("listens on UDP port 5050")
            self.assertEqual(self.add_user(name), (0, ""))
            os.kill(hub.pid, signal.SIGKILL)
            hub.wait()
            names.append(name)
            store = SQLiteStore(self.state / "store.sqlite")
            store.open()
            self.assertEqual(sorted(store.users()), sorted(names))
