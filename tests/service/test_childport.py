"""The privileged child in the reactor: answers, failures and the end, without waiting."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from pyvpn.errors import CommandFailed, StartError
from pyvpn.linux.desired import Link, SystemState
from pyvpn.linux.privsep import Answer, PrivilegedChild
from pyvpn.service.childport import ChildPort

STATE = SystemState((Link("leamit0", 1416),))


class ReaderClock(Clock):
    """A clock that knows who wants to read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


class ScriptedChild:
    """A child that says what the test puts into ``answers``; an exception there is raised."""

    def __init__(self) -> None:
        self.asked: list[SystemState] = []
        self.answers: list[Answer | Exception] = []
        self.gone: Exception | None = None

    def begin(self, state: SystemState) -> int:
        if self.gone is not None:
            raise self.gone
        self.asked.append(state)
        return len(self.asked)

    def fileno(self) -> int:
        return 7

    def take_answers(self) -> list[Answer]:
        taken, self.answers = self.answers, []
        for answer in taken:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in taken if isinstance(answer, Answer)]


class ChildPortTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ReaderClock()
        self.child = ScriptedChild()
        self.port = ChildPort(self.child, self.clock)  # type: ignore[arg-type]

    def arrives(self, *answers: Answer | Exception) -> None:
        self.child.answers += answers
        for reader in list(self.clock.readers):
            reader.doRead()

    def assertIdle(self) -> None:
        """Nobody reads, no time runs."""
        self.assertEqual(self.clock.readers, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answers(self) -> None:
        """Each answer reaches who asked for it, as lines or as the error; then nothing waits."""
        first, second = self.port.apply(STATE), self.port.apply(STATE)
        self.assertEqual(self.clock.readers, [self.port])
        self.assertNoResult(first)
        failed = CommandFailed(["ip", "link"], 2, "no")
        self.arrives(Answer(2, [], failed))
        self.assertIs(self.failureResultOf(second).value, failed)
        self.assertNoResult(first)
        self.arrives(Answer(1, ["ip link set"], None))
        self.assertEqual(self.successResultOf(first), ["ip link set"])
        self.assertIdle()

    def test_no_answer(self) -> None:
        """After 10 s it is given up with a line; its late answer and strange ones are nobody's."""
        late = self.port.apply(STATE)
        self.clock.advance(9.9)
        self.assertNoResult(late)
        self.clock.advance(0.2)
        error = self.failureResultOf(late, StartError).value
        self.assertEqual(str(error), "the privileged child gave no answer within 10 s")
        self.assertIdle()
        again = self.port.apply(STATE)
        self.arrives(Answer(1, ["late"], None), Answer(None, ["undone"], None))
        self.assertNoResult(again)
        self.arrives(Answer(2, ["in time"], None))
        self.assertEqual(self.successResultOf(again), ["in time"])
        self.assertIdle()

    def test_gone(self) -> None:
        """The child's end fails what waits with its own line, as does one that was before."""
        ended = StartError("the privileged child has ended")
        for lose in (
            lambda: self.arrives(ended),
            lambda: self.port.connectionLost(Failure(OSError())),
        ):
            waiting = self.port.apply(STATE)
            self.child.answers = [ended]
            lose()
            self.assertIs(self.failureResultOf(waiting).value, ended)
            self.assertIdle()
        self.child.gone = ended
        self.assertIs(self.failureResultOf(self.port.apply(STATE)).value, ended)
        self.assertIdle()

    def test_nonsense(self) -> None:
        """An answer that cannot be read fails what waits, and does not leave doRead."""
        waiting = self.port.apply(STATE)
        self.arrives(KeyError("ok"))
        self.failureResultOf(waiting, KeyError)
        self.assertIdle()

    def test_close(self) -> None:
        """A stop fails what waits, and closing twice is harmless."""
        waiting = self.port.apply(STATE)
        self.port.close()
        self.failureResultOf(waiting, StartError)
        self.port.close()
        self.assertIdle()


class RealChildTests(TestCase):
    """With a process and the reactor; what it is asked for needs no privilege."""

    def test_process(self) -> Deferred[None]:
        """Two requests, one refused, and the child's end: each Deferred tells what happened."""
        place = tempfile.TemporaryDirectory(prefix=f"pyvpn-{os.getpid()}-")
        self.addCleanup(place.cleanup)
        child = PrivilegedChild(os.path.join(place.name, "test.journal"), place.name)
        self.addCleanup(child.close)
        child.start()
        port = ChildPort(child, reactor)
        self.addCleanup(port.close)

        async def talk() -> None:
            self.assertEqual(await port.apply(SystemState()), [])
            with self.assertRaises(CommandFailed) as caught:
                await port.apply(SystemState(sysctls={"kernel/core_pattern": "x"}))
            self.assertIn("is not one that the VPN needs", str(caught.exception))
            self.assertEqual(await port.apply(SystemState()), [])
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)
            waiting = port.apply(SystemState())
            os.kill(child.pid, signal.SIGKILL)
            with self.assertRaises(StartError) as ended:
                await waiting
            self.assertIn("the privileged child has ended", str(ended.exception))
            self.assertNotIn(port, reactor.getReaders())

        return Deferred.fromCoroutine(talk())
