"""The state directory: what init makes, what start checks, and the lock."""

from __future__ import annotations

import base64
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv6Network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import pyvpn
from pyvpn.core.login import public_key
from pyvpn.errors import StoreError
from pyvpn.state import directory
from pyvpn.state.directory import StateDirectory, make_subnet6
from pyvpn.state.sqlite import SQLiteStore
from tests.state import temporary_directory

FILES = {"login.key", "network.token", "wireguard.key", "store.sqlite"}

#: Takes the lock of the directory argv[1], says so, and keeps it until its input ends.
HOLDER = """
import sys
from pyvpn.state.directory import StateDirectory
StateDirectory(sys.argv[1]).lock()
print("held", flush=True)
sys.stdin.read()
"""


class DirectoryCase(SynchronousTestCase):
    """A temporary place for a state directory that does not exist yet."""

    def setUp(self) -> None:
        self.root = temporary_directory()
        self.addCleanup(shutil.rmtree, self.root)
        self.path = self.root / "lib" / "pyvpn"
        self.state = StateDirectory(self.path)
        self.addCleanup(self.state.unlock)

    def files(self) -> dict[str, bytes]:
        return {e.name: e.read_bytes() for e in self.path.iterdir() if e.name != "lock"}

    def refused(self, action: Callable[[], object], message: str) -> None:
        """The action raises StoreError with exactly this line and changes no file."""
        before = self.files() if self.path.is_dir() else {}
        with self.assertRaises(StoreError) as caught:
            action()
        self.assertEqual(message, str(caught.exception))
        self.assertEqual(before, self.files() if self.path.is_dir() else {})

    def prepare(self) -> list[str]:
        return self.state.prepare(os.urandom)


class PrepareTests(DirectoryCase):
    """What ``pyvpn init`` and every start do."""

    def test_untouched(self) -> None:
        """Making the object makes nothing on disk."""
        self.assertFalse(self.path.parent.exists())

    def test_first(self) -> None:
        """The first time makes it all: keys that match, an empty store, a prefix; modes 0600."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.assertEqual(
            ["login.key", "network.token", "wireguard.key", "store.sqlite"], self.prepare()
        )
        self.assertEqual(FILES, set(self.files()))
        self.assertEqual(0o700, self.path.stat().st_mode & 0o777)
        self.assertEqual({0o600}, {e.stat().st_mode & 0o777 for e in self.path.iterdir()})
        token = self.state.token
        self.assertEqual((17, 8, 1), (token.log_n, token.r, token.p))
        self.assertEqual(token.login_public, public_key(self.state.login_private))
        store = SQLiteStore(self.state.store_path)
        store.open()
        self.assertEqual({}, dict(store.users()))
        network = IPv6Network(store.setting("subnet6_auto") or "")
        self.assertEqual(64, network.prefixlen)
        self.assertTrue(network.subnet_of(IPv6Network("fd00::/8")))

    def test_twice(self) -> None:
        """The second time makes nothing and changes nothing."""
        self.prepare()
        before = self.files()
        self.assertEqual([], self.prepare())
        self.assertEqual(before, self.files())

    def test_random(self) -> None:
        """Keys, secret, salt and prefix are five separate draws of the right sizes."""
        draws: list[int] = []

        def random_bytes(count: int) -> bytes:
            draws.append(count)
            return bytes([len(draws)]) * count

        self.state.prepare(random_bytes)
        self.assertEqual([32, 32, 16, 32, 5], draws)
        self.assertEqual(b"\x01" * 32, self.state.login_private)
        self.assertEqual(b"\x02" * 32, self.state.token.network_secret)
        self.assertEqual(b"\x03" * 16, self.state.token.password_salt)
        # RFC 7748, section 5: the three lowest bits are 0, and of the two highest the second is 1.
        self.assertEqual(b"\x00" + b"\x04" * 30 + b"\x44", self.state.wireguard_private)

    def test_subnet6(self) -> None:
        """The prefix is fd, 40 random bits and subnet 0 (RFC 4193)."""
        network = make_subnet6(lambda count: bytes(range(0xA0, 0xA0 + count)))
        self.assertEqual("fda0:a1a2:a3a4::/64", str(network))

    def test_interrupted(self) -> None:
        """A first time that was cut off after any step is finished by the next, keeping the key."""
        self.prepare()
        key = self.files()["login.key"]
        token = self.files()["network.token"]
        self.state.store_path.unlink()
        self.assertEqual(["store.sqlite"], self.prepare())
        self.assertEqual(token, self.files()["network.token"])
        self.state.store_path.unlink()
        self.state.token_path.unlink()
        self.state.token_path.with_name("network.token.new").write_text("half")
        self.assertEqual(["network.token", "store.sqlite"], self.prepare())
        self.assertEqual(key, self.files()["login.key"])
        self.assertEqual(FILES, set(self.files()))

    def test_while_in_use(self) -> None:
        """Beside a hub that has the lock a complete directory is checked, nothing is made."""
        self.prepare()
        hub = StateDirectory(self.path)
        hub.lock()
        self.addCleanup(hub.unlock)
        self.assertEqual([], self.prepare())
        self.state.store_path.unlink()
        with self.assertRaisesRegex(StoreError, "in use"):
            self.prepare()
        self.assertEqual(["store.sqlite"], hub.prepare(os.urandom))

    def test_lock_is_given_back(self) -> None:
        """Preparing keeps the lock if it was held before and lets go of it otherwise."""
        second = StateDirectory(self.path)
        self.prepare()
        second.lock()
        second.unlock()
        self.state.lock()
        self.state.store_path.unlink()
        self.prepare()
        with self.assertRaises(StoreError):
            second.lock()


class BadDirectoryTests(DirectoryCase):
    """A table of spoilt directories: each is refused with one line naming file and remedy."""

    LOSS = "restore it from a backup, or start a new network in another state directory"

    def test_control(self) -> None:
        """Positive control: unspoilt, the directory is accepted."""
        self.prepare()
        self.assertEqual([], self.prepare())

    def test_lost_file(self) -> None:
        """A key or token lost beside what depends on it is not silently made anew."""
        for name, dependent in (("login.key", "network.token"), ("network.token", "store.sqlite")):
            self.path = self.root / name
            self.state = StateDirectory(self.path)
            self.prepare()
            (self.path / name).unlink()
            message = f"{self.path / name}: missing, while {dependent} is there; {self.LOSS}"
            self.refused(self.prepare, message)

    def test_lost_wireguard_key(self) -> None:
        """The key that peers know is not silently made anew; one that nobody knows is made."""
        self.prepare()
        path = self.state.wireguard_path
        path.unlink()
        self.assertEqual(["wireguard.key"], self.prepare())  # positive control
        with closing(sqlite3.connect(self.state.store_path)) as connection:
            connection.execute(
                "INSERT INTO peers VALUES (?, ?, ?, '', NULL, NULL, 0, 1, 5, NULL)",
                (b"\x01" * 32, "kiwi", bytes(32)),
            )
            connection.commit()
        self.assertEqual([], self.prepare())
        path.unlink()
        self.refused(self.prepare, f"{path}: missing, while store.sqlite is there; {self.LOSS}")

    def test_missing(self) -> None:
        """Without init the token's reader says how to make one."""
        remedy = f"run: pyvpn init --state-dir {self.path}"
        message = f"{self.state.token_path}: missing; {remedy}"
        self.refused(lambda: self.state.token, message)

    def test_spoilt_contents(self) -> None:
        """Damaged, foreign or endless key files are refused, by every way to read them."""
        self.prepare()
        token, key = self.state.token_path, self.state.login_path
        good = token.read_text().strip()
        not_base64 = f"{token}: network token: not base64url text without '='; {self.LOSS}"
        wrong_key = f"{key}: not 32 bytes in base64; {self.LOSS}"
        other = base64.b64encode(b"\x07" * 32)
        table: list[tuple[Path, bytes, str]] = [
            (token, b"", not_base64),
            (token, b"\xff\xfe\x00", not_base64),
            (token, b"A" * 5000, not_base64),
            (token, good[:-4].encode(), f"{token}: network token: 89 bytes, it must have 92"),
            (
                token,
                ("A" + good[1:]).encode(),
                f"{token}: network token: this is no token of PyVPN",
            ),
            (key, b"", wrong_key),
            (key, b"not base64!", wrong_key),
            (key, base64.b64encode(bytes(31)), wrong_key),
            (key, other * 200, wrong_key),
            (
                key,
                other,
                f"{key}: this is not the key of network.token; restore both from one backup",
            ),
        ]
        for path, data, message in table:
            before = path.read_bytes()
            path.write_bytes(data)
            for action in (
                self.prepare,
                lambda: self.state.token,
                lambda: self.state.login_private,
            ):
                with self.assertRaises(StoreError) as caught:
                    action()
                text = str(caught.exception)
                self.assertTrue(text.startswith(message), (text, message))
                self.assertNotIn("\n", text)
            self.assertEqual(data, path.read_bytes())
            path.write_bytes(before)
            self.assertEqual([], self.prepare())

    def test_spoilt_wireguard_key(self) -> None:
        """A damaged key towards stock peers is refused, and not replaced by another."""
        self.prepare()
        path = self.state.wireguard_path
        self.assertEqual(public_key(self.state.wireguard_private), self.state.wireguard_public)
        path.write_text("not base64!")
        message = f"{path}: not 32 bytes in base64; {self.LOSS}"
        self.refused(self.prepare, message)
        self.refused(lambda: self.state.wireguard_private, message)
        path.unlink()
        remedy = f"run: pyvpn init --state-dir {self.path}"
        self.refused(lambda: self.state.wireguard_public, f"{path}: missing; {remedy}")

    def test_modes(self) -> None:
        """A secret that others may read is refused, and so is a directory that others may write."""
        self.prepare()
        for path in map(self.path.joinpath, sorted(FILES)):
            for mode in (0o640, 0o604, 0o620):
                path.chmod(mode)
                message = f"{path}: others may read this secret; run: chmod 600 {path}"
                self.refused(self.prepare, message)
            path.chmod(0o600)
        self.path.chmod(0o775)
        message = f"{self.path}: others may write to this directory; run: chmod 700 {self.path}"
        self.refused(self.prepare, message)
        self.path.chmod(0o755)  # what service managers make
        self.assertEqual([], self.prepare())

    def test_not_a_directory(self) -> None:
        """A file in the directory's place, or in its parent's, is refused."""
        self.path.parent.write_text("a file")
        with self.assertRaisesRegex(StoreError, f"^{self.path}: cannot make .*; run as root"):
            self.prepare()
        self.assertEqual("a file", self.path.parent.read_text())
        self.path.parent.unlink()
        self.path.parent.mkdir()
        self.path.write_text("a file")
        message = f"{self.path}: not a directory; choose another --state-dir"
        with self.assertRaises(StoreError) as caught:
            self.prepare()
        self.assertEqual(message, str(caught.exception))

    def test_not_a_file(self) -> None:
        """A directory or pipe in a key file's place is refused and not waited for."""
        self.prepare()
        self.state.login_path.unlink()
        os.mkfifo(self.state.login_path, 0o600)
        with self.assertRaisesRegex(StoreError, f"^{self.state.login_path}: not a file; move it"):
            self.prepare()

    def test_unwritable(self) -> None:
        """Without the right to write nothing is made, and the message names who could."""
        self.path.mkdir(parents=True)
        if os.geteuid() == 0:
            for path in (self.root, self.path.parent, self.path):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
        self.path.chmod(0o500)
        remedy = "run as the user who owns the state directory, or choose another --state-dir"
        message = f"{self.path / 'lock'}: cannot lock: Permission denied; {remedy}"
        self.refused(self.prepare, message)
        self.path.chmod(0o700)
        self.prepare()  # positive control

    def test_disk_full(self) -> None:
        """A write that fails leaves neither a half file nor its temporary."""

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(directory.os, "fsync", full)
        remedy = "free some space, or make the directory writable"
        path = self.state.login_path
        with self.assertRaises(StoreError) as caught:
            self.prepare()
        message = f"{path}: cannot write: No space left on device; {remedy}"
        self.assertEqual(message, str(caught.exception))
        self.assertEqual({}, self.files())


class LockTests(DirectoryCase):
    """One process at a time."""

    def busy(self, pid: int) -> str:
        return (
            f"{self.path} is in use by another PyVPN process (pid {pid}); stop it, or give this "
            "one its own --state-dir"
        )

    def test_second(self) -> None:
        """A second holder is told who the first is; after unlock it gets the lock."""
        self.state.lock()
        self.state.lock()
        second = StateDirectory(self.path)
        self.refused(second.lock, self.busy(os.getpid()))
        self.state.unlock()
        self.state.unlock()
        second.lock()
        second.unlock()

    def test_no_pid(self) -> None:
        """A lock file without a number still gives a sentence."""
        self.state.lock()
        self.state.lock_path.write_text("rubbish")
        with self.assertRaisesRegex(StoreError, "by another PyVPN process; stop it"):
            StateDirectory(self.path).lock()

    def test_other_process(self) -> None:
        """Another process's lock is seen with its pid, and ends with that process, even killed."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(pyvpn.__file__).parent.parent)},
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertEqual(b"held\n", process.stdout.readline())
        self.refused(self.state.lock, self.busy(process.pid))
        process.kill()
        process.wait(10)
        self.state.lock()
        self.assertEqual(f"{os.getpid()}\n", self.state.lock_path.read_text())
