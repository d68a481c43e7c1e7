"""The store under fire: a process that writes is killed with -9, and its file looked at.

    python -m tests.state.fire DIRECTORY KILLS [SEED]

Each process writes as fast as the store lets it, many writes at a time, and tells each write's
number through a pipe when its Deferred fires: that is the acknowledgement. It is killed at a random
moment: while it opens the store or makes it, in the middle of a transaction, of a checkpoint, or
between two. Then the file must hold exactly what the first so many writes make, no fewer than were
acknowledged: nothing acknowledged is lost, nothing is half there, nothing is out of order.

Prints one line of figures; status 1 and the reason when something was lost.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from operator import methodcaller
from pathlib import Path
from random import Random
from typing import Any

# The reactor's modules, and not the reactor: each child gets its own after the fork.
import twisted.internet.epollreactor
import twisted.internet.task
from attrs import define
from twisted.internet.defer import Deferred

from pyvpn.state.interface import AuditRecord, Device, User, WireGuardPeerRecord
from pyvpn.state.memory import MemoryStore
from pyvpn.state.sqlite import SQLiteStore

#: Writes that one process has under way at a time.
AT_ONCE = 8
#: Writes of one process: more than are needed for SQLite to copy its log back into the file.
MOST_WRITES = 5000
#: Processes on one file; then a new one, so that its making is under fire as well.
ON_ONE_FILE = 10
#: The latest moment of a kill, seconds after the fork, when the store works in memory and on disk.
LATEST = 0.12


class Lost(Exception):
    """The file does not hold what it must."""


@define
class Figures:
    """What happened."""

    kills: int = 0
    acknowledged: int = 0
    beyond: int = 0
    before_the_first: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged} acknowledged writes, all present;"
            f" {self.beyond} more were on disk; {self.before_the_first} kills came before the"
            " first acknowledgement"
        )


def write(number: int) -> Callable[[Any], Any]:
    """The write of a number: of every kind, on few names so that they meet, no two alike."""
    random = Random(number)
    user = User(random.choice("abcd"), random.randbytes(32), random.random() < 0.5, number)
    devices = [
        Device(
            random.choice("abcd"),
            bytes([random.randrange(40)]) * 16,
            f"device {number}" + "x" * random.randrange(400),
            random.randbytes(12),
            None,
            None,
            number,
        )
        for _ in range(random.randrange(1, 30))
    ]
    keys = [bytes([random.randrange(40)]) * 32 for _ in range(random.randrange(1, 30))]
    peers = [
        WireGuardPeerRecord(
            f"peer {key[0]}",
            key,
            random.randbytes(32),
            ("fd77::/64",),
            None,
            None,
            25,
            True,
            number,
        )
        for key in keys
    ]
    return random.choice(
        [
            methodcaller("put_user", user),
            methodcaller("put_peers", peers),
            methodcaller("remove_peers", keys[:3]),
            methodcaller("put_devices", devices),
            methodcaller("put_devices", devices),
            methodcaller("remove_device", user.name, bytes([random.randrange(40)]) * 16),
            methodcaller(*(("remove_user", user.name) if number % 7 == 0 else ("put_user", user))),
            methodcaller("set_setting", f"key {number % 5}", str(number)),
            methodcaller("add_audit", [AuditRecord(number, user.name, "event", "")] * 2),
        ]
    )


# -- the process that is killed --------------------------------------------------------------------


def burn(path: Path, first: int, acknowledgements: int) -> None:
    """Write the writes from ``first`` on until killed; tell each when it is durable."""
    store = SQLiteStore(path)
    store.open()
    numbers = iter(range(first, first + MOST_WRITES))

    async def one_after_another() -> None:
        for number in numbers:
            await write(number)(store)
            os.write(acknowledgements, b"%d\n" % number)

    async def load(reactor: Any) -> None:
        lanes = [Deferred.fromCoroutine(one_after_another()) for _ in range(AT_ONCE)]
        for lane in lanes:
            await lane
        await store.close()
        signal.pause()  # all is written; the kill is still to come

    twisted.internet.task.react(lambda reactor: Deferred.fromCoroutine(load(reactor)))


# -- the one that kills and looks ------------------------------------------------------------------


@define
class Seen:
    """All that a store holds, to be compared."""

    users: dict[str, User]
    devices: dict[tuple[str, bytes], Device]
    peers: dict[bytes, WireGuardPeerRecord]
    settings: list[str | None]
    audit: list[int]


def seen(store: Any, audit: list[int]) -> Seen:
    settings = [store.setting(f"key {number}") for number in range(5)]
    return Seen(dict(store.users()), dict(store.devices()), dict(store.peers()), settings, audit)


def on_disk(path: Path) -> Seen:
    """What a hub would find at its next start."""
    store = SQLiteStore(path)
    store.open()
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT at FROM audit ORDER BY id").fetchall()
    return seen(store, [at for (at,) in rows])


def expected(model: MemoryStore) -> Seen:
    return seen(model, [record.when for record in model._audit])


class Fire:
    """Kills writers of one file and keeps the model of what it must hold.

    :param directory: for the file; empty.
    """

    def __init__(self, directory: Path, random: Random, figures: Figures) -> None:
        self.path = directory / "store.sqlite"
        self.model = MemoryStore()
        self.written = 0
        self._random = random
        self._figures = figures

    def kill_one(self) -> None:
        """Let a process write, kill it, and check.

        :raises Lost: what it left is wrong.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                burn(self.path, self.written, writer)
            finally:
                os._exit(3)  # never back into the parent's code
        os.close(writer)
        with open(reader, "rb") as pipe:
            moment = time.monotonic() + self._random.random() * LATEST
            told = self._told_until(pipe.fileno(), moment)
            os.kill(pid, signal.SIGKILL)
            told += pipe.read()
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise Lost(f"the writer ended by itself: {os.waitstatus_to_exitcode(status)}")
        # The kill may cut the last line.
        numbers = [int(line) for line in told.decode().split("\n")[:-1]]
        self._figures.kills += 1
        self._figures.acknowledged += len(numbers)
        self._figures.before_the_first += not numbers
        self._check(numbers)

    @staticmethod
    def _told_until(descriptor: int, deadline: float) -> bytes:
        """Read, so that the pipe never fills, until the moment of the kill."""
        told = b""
        while (left := deadline - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                data = os.read(descriptor, 65536)
                if not data:
                    return told
                told += data
        return told

    def _check(self, acknowledged: list[int]) -> None:
        last = max(acknowledged, default=self.written - 1)
        if sorted(acknowledged) != list(range(self.written, last + 1)):
            raise Lost(f"acknowledged out of order: {acknowledged}")
        if not self.path.exists():
            if last >= 0:
                raise Lost(f"the file is gone, with {last + 1} acknowledged writes")
            return
        found = on_disk(self.path)
        while self.written <= last:
            self._write_model()
        for beyond in range(AT_ONCE + 1):
            if expected(self.model) == found:
                self._figures.beyond += beyond
                return
            self._write_model()
        raise Lost(f"the file is not as after {last + 1} writes, nor as after up to {beyond} more")

    def _write_model(self) -> None:
        write(self.written)(self.model)
        self.written += 1


def run(directory: Path, kills: int, seed: int) -> Figures:
    """Kill ``kills`` writers.

    :raises Lost: something was lost.
    """
    random, figures = Random(seed), Figures()
    fire: Fire | None = None
    while figures.kills < kills:
        if fire is None or figures.kills % ON_ONE_FILE == 0:
            fire = Fire(Path(tempfile.mkdtemp(dir=directory)), random, figures)
        fire.kill_one()
    return figures


def main() -> int:
    directory, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0])
    try:
        print(run(directory, kills, seed))
    except Lost as problem:
        print(f"seed {seed}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
