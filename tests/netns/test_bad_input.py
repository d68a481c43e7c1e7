"""Damaged files of a hub and a client, through real ``twistd`` processes.

Each row: what is done to the files, the exact line. The status is 1; routes, rules, nft, links,
sysctls, files and processes are what they were before. Options and files that are read before
anything starts have their table in tests/test_bad_options.py.
"""

from __future__ import annotations

import base64
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.state.identity import ClientIdentity
from pyvpn.token import NetworkToken
from tests.netns.lab import built_for
from tests.netns.test_start import snapshot

PASSWORD = "correct horse kiwi"
LOSS = "restore it from a backup, or start a new network in another state directory"
BACKUP = "restore it from a backup"

Damage = Callable[[], object]


def contents(directory: Path) -> dict[str, object]:
    """Every file below a directory with mode and content; of logs and locks nothing: they stay."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        if not {"log", "lock"} & set(path.relative_to(directory).parts):
            content = path.read_bytes() if path.is_file() else None
            found[str(path)] = (path.lstat().st_mode, content)
    return found


class DamagedFiles(SynchronousTestCase):
    machine: dict[str, str]

    def setUp(self) -> None:
        self.lab = built_for(self)

    def refused(self, host: str, argv: list[str], line: str, *, daemon: bool) -> None:
        """It ends with status 1 and this line, and changes nothing."""
        home = self.lab.directory / host
        before = contents(home)
        mode = [] if daemon else ["-n"]
        done = self.lab.run(host, [self.lab.tool("twistd"), *mode, *argv], seconds=30)
        said = [text for text in done.stderr.splitlines() if text.startswith(f"{argv[0]}: ")]
        self.assertEqual(said, [f"{argv[0]}: {line}"], done.stderr)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(contents(home), before, line)
        self.assertEqual(snapshot(self.lab, host), self.machine, line)

    def test_state_directory(self) -> None:
        """Each of the hub's five files and their directory: damaged, lost, foreign, in the way."""
        home = self.lab.directory / "hub" / "one"
        state, good = home / "state", home / "good"
        argv = ["pyvpn-server", "--state-dir", str(state), "--run-dir", str(home / "run")]
        self.lab.pyvpn("hub", "--state-dir", str(good), "init")
        self.lab.pyvpn("hub", "--state-dir", str(home / "other"), "init")
        (home / "run").mkdir(0o700)
        token, key = state / "network.token", state / "login.key"
        stock = state / "wireguard.key"
        store, lock = state / "store.sqlite", state / "lock"
        key32 = "zeroblob(32)"
        peer = f"INSERT INTO peers VALUES ({key32}, 'k', {key32}, '', NULL, NULL, 0, 1, 0, NULL)"

        def sql(*statements: str) -> Damage:
            def change() -> None:
                database = sqlite3.connect(store)
                for statement in statements:
                    database.execute(statement)
                database.commit()
                database.close()

            return change

        def in_the_way(path: Path, make: Callable[[Path], object]) -> Damage:
            def change() -> None:
                path.unlink(missing_ok=True)
                make(path)

            return change

        foreign = base64.b64encode(b"\7" * 32).decode()
        no_subnet6 = (
            f"{store}: the setting subnet6_auto is missing or no network; restore it from a backup"
        )
        table: list[tuple[Damage, str]] = [
            (lambda: token.write_text("short"),
             f"{token}: network token: not base64url text without '='; {LOSS}"),
            (lambda: shutil.copy(home / "other" / "network.token", token),
             f"{key}: this is not the key of network.token; restore both from one backup"),
            (lambda: key.write_text(foreign[:20]), f"{key}: not 32 bytes in base64; {LOSS}"),
            (key.unlink, f"{key}: missing, while network.token is there; {LOSS}"),
            (in_the_way(key, lambda path: os.mkfifo(path, 0o600)),
             f"{key}: not a file; move it away"),
            (in_the_way(key, lambda path: path.symlink_to("nowhere")),
             f"{key}: cannot read: No such file or directory; check its owner and mode"),
            (lambda: stock.write_text(foreign[:20]), f"{stock}: not 32 bytes in base64; {LOSS}"),
            (lambda: (sql(peer)(), stock.unlink()),
             f"{stock}: missing, while store.sqlite is there; {LOSS}"),
            (lambda: store.write_bytes(b"no database" * 1000),
             f"{store}: file is not a database; restore it from a backup, or move it away"),
            (lambda: os.truncate(store, 5000),
             f"{store}: database disk image is malformed; {BACKUP}"),
            (lambda: os.truncate(store, 0),
             f"{store}: the file is empty; restore it or remove it"),
            (sql("UPDATE schema_version SET version = 999"),
             f"{store}: written by a newer PyVPN (schema 999, known here up to 2); upgrade PyVPN"),
            (sql("DELETE FROM settings"), no_subnet6),
            (sql("UPDATE settings SET value = 'fd00::/200'"), no_subnet6),
            (sql("PRAGMA ignore_check_constraints = ON",
                 "INSERT INTO users VALUES ('kiwi', 'text', 1, 0)"),
             f"{store}: the database is damaged (CHECK constraint failed in users); {BACKUP}"),
            (in_the_way(store, lambda path: path.mkdir(0o600)),
             f"{store}: not a file; move it away"),
            (in_the_way(lock, lambda path: path.mkdir()),
             f"{lock}: cannot lock: Is a directory; run as the user who owns the state directory,"
             " or choose another --state-dir"),
            (lambda: state.chmod(0o777),
             f"{state}: others may write to this directory; run: chmod 700 {state}"),
        ]  # fmt: skip
        self.machine = snapshot(self.lab, "hub")
        for number, (damage, line) in enumerate(table):
            shutil.copytree(good, state)
            state.chmod(0o700)
            damage()
            self.refused("hub", argv, line, daemon=number % 4 == 0)
            shutil.rmtree(state)
        # The control: undamaged it starts.
        shutil.copytree(good, state)
        state.chmod(0o700)
        process = self.lab.spawn("hub", [self.lab.tool("twistd"), "-n", *argv])
        process.wait_for_text("listens on UDP port 5050")

    def test_identity(self) -> None:
        """A client whose identity is damaged says so, and does not become another device."""
        home = self.lab.directory / "kiwi"
        token = home / "token"
        hub = home / "hub"
        self.lab.pyvpn("kiwi", "--state-dir", str(hub), "init")
        shutil.copy(hub / "network.token", token)
        password = home / "password"
        password.write_text(PASSWORD)
        argv = ["pyvpn-client", "--server", "198.51.100.2", "--user", "kiwi"]
        argv += ["--token-file", str(token), "--pw-file", str(password)]
        argv += ["--state-dir", str(home / "state"), "--run-dir", str(home / "run")]
        for directory in ("run", "state", "state/clients"):
            (home / directory).mkdir(0o700)
        self.machine = snapshot(self.lab, "kiwi")
        public = NetworkToken.from_text(token.read_text()).login_public
        path = ClientIdentity.load(home / "state", public, "kiwi", os.urandom).path
        for daemon in (False, True):
            path.write_text('{"device": "00", "last_stamp": 0}')
            line = f"{path}: this file is damaged; remove it, and the hub will see a new device"
            self.refused("kiwi", argv, line, daemon=daemon)
            path.unlink()
            path.mkdir()
            line = f"{path}: cannot read this file: Is a directory"
            self.refused("kiwi", argv, line, daemon=daemon)
            path.rmdir()
        # The control: without the file it makes one and starts.
        process = self.lab.spawn("kiwi", [self.lab.tool("twistd"), "-n", *argv])
        process.wait_until(path.exists, "the identity", 10)
