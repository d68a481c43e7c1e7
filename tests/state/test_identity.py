"""The file that keeps a client's device id and its last stamp."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any
from unittest import mock

import attrs
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StoreError
from pyvpn.state.identity import ClientIdentity
from tests.state import temporary_directory

HUB = bytes(range(32))
DEVICE = "ab" * 16


class IdentityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = temporary_directory()
        self.addCleanup(shutil.rmtree, self.root)

    def load(self, user: str = "kiwi", hub: bytes = HUB) -> ClientIdentity:
        return ClientIdentity.load(self.root, hub, user, os.urandom)

    def test_kept(self) -> None:
        """An id is made once for each hub and user; with its stamp it is read again as saved."""
        made = self.load()
        self.assertEqual((len(made.device), made.last_stamp), (16, 0))
        self.assertFalse(made.path.exists())
        made.last_stamp = 1_704_067_200 * 10**9
        made.save()
        self.assertEqual(made.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.load(), made)
        for other in (self.load("pa"), self.load(hub=bytes(32))):
            self.assertNotEqual(other.path, made.path)
            self.assertNotEqual(other.device, made.device)

    def test_later_saves(self) -> None:
        """All saves but the first leave the file in its place and nobody waits for the disk."""
        identity = self.load()
        with mock.patch("os.fsync", wraps=os.fsync) as synced:
            identity.save()
            self.assertEqual(synced.call_count, 1)
            first = identity.path.stat()
            for stamp in (7, 1_704_067_200 * 10**9, (1 << 63) - 1, 0):
                identity.last_stamp = stamp
                identity.save()
                self.assertEqual(self.load(), identity)
                now = identity.path.stat()
                self.assertEqual((now.st_ino, now.st_size), (first.st_ino, 81))
            self.assertEqual(synced.call_count, 1)

    def test_power_cut(self) -> None:
        """A later save is one write into the first sector; the file loads before and after it."""
        identity = self.load()
        identity.last_stamp = 10**18
        identity.save()
        old = identity.path.read_bytes()
        written: list[tuple[bytes, int]] = []

        def lost(descriptor: int, data: bytes, offset: int) -> int:
            written.append((data, offset))
            return len(data)

        later = attrs.evolve(identity, last_stamp=10**18 + 1)
        with mock.patch("os.pwrite", lost):
            later.save()
        self.assertEqual(self.load(), identity)
        ((data, offset),) = written
        self.assertEqual((offset, len(data)), (0, len(old)))
        self.assertLessEqual(len(data), 512)
        self.assertEqual(data[: data.index(b"stamp")], old[: old.index(b"stamp")])
        identity.path.write_bytes(data)
        self.assertEqual(self.load(), later)

    def test_a_file_that_is_not_as_we_left_it(self) -> None:
        """A file that is gone, of another shape, or a way to another file is replaced whole."""
        identity = self.load()
        path, aside = identity.path, self.root / "aside"
        path.parent.mkdir()
        good = f'{{"device": "{identity.device.hex()}", "last_stamp": {7:>19}}}'

        def shorter() -> None:
            path.write_text(good.replace(" ", ""))  # as the version before wrote it
            path.chmod(0o600)

        def damaged() -> None:
            path.write_bytes(bytes(81))
            path.chmod(0o600)

        def symbolic() -> None:
            aside.write_text(good)
            aside.chmod(0o600)
            path.symlink_to(aside)

        def hard() -> None:
            symbolic()
            path.unlink()
            path.hardlink_to(aside)

        def readable() -> None:
            path.write_text(good)
            path.chmod(0o644)

        def removed() -> None:
            identity.save()
            path.unlink()

        makers = (
            shorter,
            damaged,
            symbolic,
            hard,
            readable,
            removed,
            lambda: os.mkfifo(path, 0o600),
        )
        for number, make in enumerate(makers):
            identity.last_stamp = 10**18 + number
            make()
            identity.save()
            self.assertEqual(self.load(), identity, make)
            now = path.lstat()
            self.assertEqual((now.st_mode, now.st_nlink), (stat.S_IFREG | 0o600, 1))
            if aside.exists():
                self.assertEqual(aside.read_text(), good)
                aside.unlink()
            path.unlink()

    def test_cannot_overwrite(self) -> None:
        """A short or refused write in place is made good by a whole one, or told as its error."""
        identity = self.load()
        identity.save()
        outcomes: list[Any] = [OSError(errno.EIO, "EIO"), lambda *_: 40]
        for number, outcome in enumerate(outcomes):
            identity.last_stamp = 10**18 + number
            with mock.patch("os.pwrite", side_effect=outcome):
                identity.save()
            self.assertEqual(self.load(), identity)
        denied = PermissionError(errno.EACCES, "Permission denied")
        with mock.patch("os.open", side_effect=denied):
            error = self.assertRaises(StoreError, identity.save)
        self.assertEqual(str(error), f"{identity.path}: cannot write it: Permission denied")
        self.assertEqual(self.load(), identity)

    def test_damaged(self) -> None:
        """Whatever else is in the file is refused in one line, and stays for its owner to see."""
        path = self.load().path
        path.parent.mkdir()
        good = f'{{"device": "{DEVICE}", "last_stamp": 7}}'
        table: list[str | bytes] = [
            "",
            "null",
            "[]",
            "{}",
            good[:-1],
            good + good,
            "[" * 100_000,  # regression: a RecursionError, which nobody caught
            b"\xff\xfe",
            b"\0" * 4096,
            good.replace("device", "Device"),
            good.replace(DEVICE, DEVICE[:-2]),
            good.replace(DEVICE, DEVICE + "ab"),
            good.replace(DEVICE, "xy" * 16),
            good.replace(f'"{DEVICE}"', "7"),
            good.replace("7", '"7"'),
            good.replace("7", "-1"),
            good.replace("7", "7.0"),
            good.replace("7", "true"),
            good.replace("7", "null"),
            good.replace("7", "1e400"),
            good.replace("7", str(1 << 63)),  # regression: the first login raised
            good.replace("7", "9" * 5000),
        ]
        line = f"{path}: this file is damaged; remove it, and the hub will see a new device"
        for content in table:
            data = content if isinstance(content, bytes) else content.encode()
            path.write_bytes(data)
            error = self.assertRaises(StoreError, self.load)
            self.assertEqual(str(error), line, data[:80])
            self.assertEqual(path.read_bytes(), data)
        path.write_text(good.replace("7", str((1 << 63) - 1)))  # the control
        self.assertEqual(self.load().last_stamp, (1 << 63) - 1)

    def test_unreadable(self) -> None:
        """A file that cannot be read, and a place that cannot be written, are named as such."""
        identity = self.load()
        path = identity.path
        path.parent.mkdir()
        makers: list[tuple[Callable[[], object], str]] = [
            (path.mkdir, "Is a directory"),
            (lambda: path.symlink_to(path), "Too many levels of symbolic links"),
        ]
        for make, reason in makers:
            make()
            error = self.assertRaises(StoreError, self.load)
            self.assertEqual(str(error), f"{path}: cannot read this file: {reason}")
            path.rmdir() if path.is_dir() else path.unlink()
        path.parent.rmdir()
        path.parent.write_text("in the way")
        error = self.assertRaises(StoreError, identity.save)
        self.assertEqual(str(error), f"{path}: cannot write it: File exists")
