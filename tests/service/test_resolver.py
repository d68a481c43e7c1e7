"""Names of servers: what ``getent`` says and does not say, in time and when it must end."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from pyvpn.service.resolver import Resolved, Resolver, find_getent

UNKNOWN = "this machine's resolver knows no address of that name"


class FakeProcess:
    """A process that ends when the test says so, or soon after it was killed."""

    def __init__(self, protocol: Any, argv: list[str]) -> None:
        self.protocol, self.argv = protocol, argv
        self.running, self.signals, self.pipes_open = True, list[str](), True

    def signalProcess(self, name: str) -> None:
        if not self.running:
            raise ProcessExitedAlready
        self.signals.append(name)

    def loseConnection(self) -> None:
        self.pipes_open = False

    def end(self, status: int = 0, signal: int | None = None) -> None:
        self.running = False
        good = not status and signal is None
        reason = ProcessDone(0) if good else ProcessTerminated(status, signal)
        self.protocol.processEnded(Failure(reason))


class ProcessClock(Clock):
    """A clock that can start processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.refusal: OSError | None = None

    def spawnProcess(self, protocol: Any, program: str, argv: list[str], env: Any) -> FakeProcess:
        assert (program, env) == ("/bin/getent", os.environ)
        if self.refusal is not None:
            raise self.refusal
        process = FakeProcess(protocol, argv)
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


class ResolverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ProcessClock()
        self.found: str | None = "/bin/getent"
        self.resolver = Resolver(self.clock, lambda: self.found)

    def assertIdle(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.resolver.close())

    def test_numeric(self) -> None:
        """Numeric addresses are their own answer at once, without a process."""
        servers = [("192.0.2.1", 1), ("2001:db8::1", 2), ("fe80::1%eth0", 3), ("192.0.2.1", 1)]
        done = self.successResultOf(self.resolver.resolve(servers))
        self.assertEqual(done, Resolved(servers[:3], []))
        self.assertEqual(self.clock.processes, [])
        self.assertIdle()

    def test_names(self) -> None:
        """Names are asked for all at once; addresses keep the order of servers and of answers."""
        servers = [("b.example", 5), ("192.0.2.1", 6), ("a.example", 7), ("a.example", 7)]
        done = self.resolver.resolve(servers)
        asked = [process.argv for process in self.clock.processes]
        names = ["b.example", "a.example", "a.example"]
        self.assertEqual(asked, [["getent", "ahosts", "--", name] for name in names])
        for process in self.clock.processes[1:]:
            process.protocol.outReceived(
                b"192.0.2.9 STREAM a.example\n192.0.2.9 DGRAM\n192.0.2.9 RAW"
            )
            process.protocol.errReceived(b"a word of some library")
            process.end()
        self.assertNoResult(done)
        first = self.clock.processes[0].protocol
        first.outReceived(b"2001:db8::7     STREAM b.exa")
        first.outReceived(b"mple\n2001:db8::7     DGRAM  \nfe80::1%eth0 RAW\n192.0.2.7       RAW\n")
        self.clock.processes[0].end()
        places = [("2001:db8::7", 5), ("fe80::1%eth0", 5), ("192.0.2.7", 5)]
        places += [("192.0.2.1", 6), ("192.0.2.9", 7)]
        self.assertEqual(self.successResultOf(done), Resolved(places, []))
        self.assertIdle()

    def test_problems(self) -> None:
        """Whatever else getent does is a line that names the host; other servers still count."""
        table: list[tuple[bytes, dict[str, int], str]] = [
            (b"", {"status": 2}, UNKNOWN),
            (b"192.0.2.7 STREAM x\n", {"status": 1}, "getent ended with status 1"),
            (b"", {"signal": 11}, "getent ended with signal 11"),
            (b"", {}, "getent named no address"),
            (b"\xff\0 x\n\n \nnonsense STREAM\n999.1.1.1 RAW\n", {}, "getent named no address"),
            # Cut off: it may be the beginning of another address.
            (b"192.0.2.1", {}, "getent named no address"),
            (b"x" * 70_000 + b"\n192.0.2.7 STREAM x\n", {}, "getent named no address"),
        ]
        for said, how, why in table:
            done = self.resolver.resolve([("a.example", 1), ("192.0.2.1", 2)])
            process = self.clock.processes[-1]
            process.protocol.outReceived(said)
            process.end(**how)
            problem = f"cannot resolve a.example: {why}"
            self.assertEqual(self.successResultOf(done), Resolved([("192.0.2.1", 2)], [problem]))
            self.assertIdle()

    def test_cannot_start(self) -> None:
        """A missing getent and a process that cannot be made are lines, too."""
        self.clock.refusal = OSError(errno.EAGAIN, "Resource temporarily unavailable")
        done = self.successResultOf(self.resolver.resolve([("a.example", 1)]))
        line = "cannot start /bin/getent: Resource temporarily unavailable"
        self.assertEqual(done.problems, [f"cannot resolve a.example: {line}"])
        self.found = None
        done = self.successResultOf(self.resolver.resolve([("a.example", 1)]))
        line = "getent is not installed (package libc-bin)"
        self.assertEqual(done.problems, [f"cannot resolve a.example: {line}"])
        self.assertIdle()

    def test_silence(self) -> None:
        """After 30 s a name is given up and its process killed; its end then changes nothing."""
        done = self.resolver.resolve([("a.example", 1)])
        self.clock.advance(29.9)
        self.assertNoResult(done)
        self.clock.advance(0.2)
        line = "cannot resolve a.example: no answer within 30 s"
        self.assertEqual(self.successResultOf(done), Resolved([], [line]))
        process = self.clock.processes[0]
        self.assertEqual((process.signals, process.pipes_open), (["KILL"], False))
        self.assertNoResult(self.resolver.close())
        process.end(signal=9)
        self.assertIdle()

    def test_close(self) -> None:
        """Closing kills what runs and waits for its end; who asked gets an answer all the same."""
        done = self.resolver.resolve([("a.example", 1), ("b.example", 2)])
        self.clock.processes[0].running = False  # has ended, and nobody noticed yet
        closed, again = self.resolver.close(), self.resolver.close()
        self.assertEqual(self.clock.processes[1].signals, ["KILL", "KILL"])
        for process in self.clock.processes:
            self.assertNoResult(closed)
            process.end(signal=9)
        self.successResultOf(closed)
        self.successResultOf(again)
        self.assertEqual(len(self.successResultOf(done).problems), 2)
        self.assertIdle()


class RealProcessTests(TestCase):
    """With processes and the reactor, which trial checks for what is left."""

    def test_getent(self) -> Deferred[None]:
        """The system's own: localhost has a loopback address, a name of no domain has none."""
        if find_getent() is None:
            raise SkipTest("getent is missing")

        async def ask() -> None:
            resolver = Resolver(reactor)
            places, problems = await resolver.resolve([("localhost", 5), ("nowhere.invalid", 6)])
            self.assertTrue(places)
            self.assertLessEqual(set(places), {("127.0.0.1", 5), ("::1", 5)})
            self.assertEqual(problems, [f"cannot resolve nowhere.invalid: {UNKNOWN}"])
            await resolver.close()

        return Deferred.fromCoroutine(ask())

    def test_option_as_name(self) -> Deferred[None]:
        """A name that looks like an option would be a name to getent as well."""
        if find_getent() is None:
            raise SkipTest("getent is missing")

        async def ask() -> None:
            resolver = Resolver(reactor)
            _, problems = await resolver.resolve([("--help", 5)])
            self.assertEqual(problems, [f"cannot resolve --help: {UNKNOWN}"])

        return Deferred.fromCoroutine(ask())

    def test_hanging(self) -> Deferred[None]:
        """One that hangs, with a child of its own that holds the pipe, ends at a stop."""
        place = tempfile.TemporaryDirectory(prefix=f"pyvpn-{os.getpid()}-")
        self.addCleanup(place.cleanup)
        program, pids = Path(place.name) / "getent", Path(place.name) / "pids"
        program.write_text(
            f"#!/bin/sh\nsleep 60 &\necho $! $$ > {pids}.new\nmv {pids}.new {pids}\nwait\n"
        )
        program.chmod(0o700)

        async def ask() -> None:
            resolver = Resolver(reactor, lambda: str(program))
            done = resolver.resolve([("a.example", 5)])
            while not pids.exists():
                await deferLater(reactor, 0.01)
            sleeper, shell = map(int, pids.read_text().split())
            self.addCleanup(os.kill, sleeper, 9)
            await resolver.close()
            self.assertFalse(Path(f"/proc/{shell}").exists())
            line = "cannot resolve a.example: getent ended with signal 9"
            self.assertEqual(await done, Resolved([], [line]))

        return Deferred.fromCoroutine(ask())
