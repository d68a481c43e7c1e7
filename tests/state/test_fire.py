"""The file of the store, while processes are killed and disks run full under it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import pyvpn
from tests.state import temporary_directory

ROOT = Path(pyvpn.__file__).parent.parent
KILLS = 40  # bench/crashes.py does 200

#: The control's store: it acknowledges a write when it is asked for.
TOO_EARLY = """
import sys
from twisted.internet.defer import succeed
from tests.state import fire
write = fire.SQLiteStore._write
fire.SQLiteStore._write = lambda *arguments: write(*arguments) and succeed(None)
sys.exit(fire.main())
"""


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


class KillTests(SynchronousTestCase):
    """See tests/state/fire.py."""

    def setUp(self) -> None:
        self.directory = temporary_directory()
        self.addCleanup(shutil.rmtree, self.directory)

    def test_nothing_acknowledged_is_lost(self) -> None:
        """After kill -9 at any moment under load the file holds what the writes acknowledged so far
        make, and of what was under way the first few, each whole, or nothing.
        """
        ended = python("-m", "tests.state.fire", self.directory, str(KILLS), "1")
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        found = re.match(r"(\d+) kills, (\d+) acknowledged writes, all present", ended.stdout)
        assert found is not None, ended.stdout
        self.assertEqual(int(found[1]), KILLS)
        self.assertGreater(int(found[2]), 10 * KILLS)  # it was under load

    def test_control(self) -> None:
        """Control: a store that acknowledges before its commit is found out."""
        ended = python("-c", TOO_EARLY, self.directory, str(KILLS), "1")
        self.assertEqual(ended.returncode, 1, ended.stdout)
        self.assertRegex(ended.stderr, "the file is (not as after|gone)")


#: Fills its disk again and again, and says what the store says, its path left out.
FULL = """
import os, signal, sys
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from pyvpn.errors import StoreError
from pyvpn.state.memory import MemoryStore
from tests.state import fire

path, filler = Path(sys.argv[1]), Path(sys.argv[1]).with_name("filler")

def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(512)):
                pass
        except OSError:
            pass

def opened(which):
    store = fire.SQLiteStore(which)
    try:
        store.open()
    except StoreError as error:
        print("open:", str(error).replace(str(which), "PATH"))
    return store

async def work(reactor):
    store, model, number = opened(path), MemoryStore(), 0
    for round in range(3):
        failed = 0
        while not failed:
            try:
                await fire.write(number)(store)
            except StoreError as error:
                print("write:", str(error).replace(str(path), "PATH"))
                failed = 1
            else:
                fire.write(number)(model)
            number += 1
            if number == 30 * (round + 1):
                fill()
        assert fire.seen(store, []) == fire.seen(model, []), "the copy is not what was acknowledged"
        audit = [record.when for record in model._audit]
        assert fire.on_disk(path) == fire.seen(model, audit), "the file is not either"
        filler.unlink()
    print("again:", await store.set_setting("key 0", "there is room again"))
    await store.close()
    fill()
    before = path.read_bytes()
    opened(path)
    opened(path.with_name("new.sqlite"))
    assert path.read_bytes() == before, "a refused store was changed"
    filler.unlink()
    print("left:", sorted(entry.name for entry in path.parent.iterdir()))
    assert opened(path).setting("key 0") == "there is room again"

react(lambda reactor: Deferred.fromCoroutine(work(reactor)))
"""

NO_SPACE = "PATH: database or disk is full; free some space on its disk"


class FullDiskTests(SynchronousTestCase):
    """A real disk of 2 MiB, seen by one process alone."""

    def setUp(self) -> None:
        self.directory = temporary_directory()
        self.addCleanup(shutil.rmtree, self.directory)
        if os.geteuid() or not shutil.which("unshare"):
            self.no_disk("making a small disk needs root and unshare")

    def no_disk(self, reason: str) -> None:
        required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
        raise self.failureException(reason) if required else SkipTest(reason)

    def test_full_disk(self) -> None:
        """On a full disk each write fails whole, in one line; what was acknowledged stays, and with
        room it goes on; a start on a full disk is refused in one line, and changes nothing.
        """
        mount = 'mount -t tmpfs -o size=2m none "$1" || exit 77; shift; exec "$@"'
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
        ended = subprocess.run(
            [*argv, self.directory, sys.executable, "-c", FULL, self.directory / "store.sqlite"],
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if ended.returncode == 77:
            self.no_disk(ended.stderr)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""), ended.stdout + ended.stderr)
        self.assertEqual(
            ended.stdout.splitlines(),
            [
                *[f"write: {NO_SPACE}"] * 3,
                "again: None",
                # A store that was used has a log, for whose index SQLite finds no room.
                "open: PATH: disk I/O error; check its disk, and whether it is full",
                f"open: {NO_SPACE}",
                "left: ['store.sqlite', 'store.sqlite-shm', 'store.sqlite-wal']",
            ],
        )
        self.assertEqual(list(self.directory.iterdir()), [])  # the disk was the process's own
