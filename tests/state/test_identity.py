"""The file that keeps a client's device id and its last stamp."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

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
