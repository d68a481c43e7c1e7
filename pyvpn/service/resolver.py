"""Names of servers to addresses, asked of the system by a process of its own.

``getaddrinfo`` is the only way to all that a machine knows (files, DNS, mDNS, what else its
nsswitch.conf names), and it blocks, half a minute where a name server is dead. A thread for it
would slow the data path for good (docs/architecture.rst, "Decisions"). ``getent ahosts`` is
``getaddrinfo`` as a program, less the addresses of a family that this machine has none of itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList, gatherResults, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from pyvpn.linux.system import COMMAND_ENVIRONMENT

TIMEOUT = 30.0
"""Seconds for one name: three name servers that are dead take glibc that long (resolv.conf)."""

MAX_ANSWER = 64 << 10
"""Bytes that are kept of an answer: about 400 addresses, three lines each."""

_NOT_FOUND = 2  # getent(1)

Place = tuple[str, int]
"""A host (name or numeric address) and a port."""


class Resolved(NamedTuple):
    """What came of some servers.

    :ivar places: numeric addresses and ports, in the order in which to try them, none twice.
    :ivar problems: a line for each name that has no address now.
    """

    places: list[Place]
    problems: list[str]


class _Answer(NamedTuple):
    addresses: list[str]
    problem: str | None


def find_getent() -> str | None:
    """Where the program is; the caller's PATH does not count, as for other commands."""
    return shutil.which("getent", path=COMMAND_ENVIRONMENT["PATH"])


class Resolver:
    """The system's resolver.

    :param reactor: ``spawnProcess`` and ``callLater`` are all that is asked of it.
    :param find: where ``getent`` is, None where it is not; asked for each name.
    """

    def __init__(self, reactor: Any, find: Callable[[], str | None] = find_getent) -> None:
        self._reactor = reactor
        self._find = find
        self._open: set[_Question] = set()

    def resolve(self, servers: Sequence[Place]) -> Deferred[Resolved]:
        """Look all of them up at the same time; never fails, and takes :data:`TIMEOUT` at most.

        Numeric addresses need nobody: with them alone the Deferred has fired already.
        """
        answers = gatherResults([self._ask(host) for host, _ in servers])
        return answers.addCallback(_merge, servers)

    def close(self) -> Deferred[Any]:
        """End what still runs; fires when it has ended. Harmless twice."""
        questions = list(self._open)
        for question in questions:
            question.kill()
        return DeferredList([question.ended for question in questions])

    def _ask(self, host: str) -> Deferred[_Answer]:
        if _is_numeric(host):
            return succeed(_Answer([host], None))
        program = self._find()
        if program is None:
            return succeed(_failed(host, "getent is not installed (package libc-bin)"))
        question = _Question(host)
        # Names cannot begin with a dash (pyvpn.token); "--" says so to getent as well. It has our
        # environment, as getaddrinfo would have: RES_OPTIONS and others are the resolver's.
        argv = ["getent", "ahosts", "--", host]
        try:
            self._reactor.spawnProcess(question, program, argv, env=os.environ)
        except OSError as error:
            return succeed(_failed(host, f"cannot start {program}: {error.strerror}"))
        self._open.add(question)
        question.ended.addCallback(lambda _: self._open.discard(question))
        overdue = self._reactor.callLater(TIMEOUT, question.give_up)
        question.answer.addCallback(_no_longer, overdue)
        return question.answer


class _Question(ProcessProtocol):
    """One ``getent`` and what it says.

    :ivar answer: fires when it has ended, or was given up.
    :ivar ended: fires with None when the process is gone, after ``answer``.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._said = b""
        self.answer: Deferred[_Answer] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[:MAX_ANSWER]

    def processEnded(self, reason: Failure) -> None:
        self._fire(_read(self._host, self._said, reason))
        self.ended.callback(None)

    def give_up(self) -> None:
        self._fire(_failed(self._host, f"no answer within {TIMEOUT:.0f} s"))
        self.kill()

    def kill(self) -> None:
        assert self.transport is not None
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass
        # Its end is all that is waited for then, not that of others who hold the pipe.
        self.transport.loseConnection()

    def _fire(self, answer: _Answer) -> None:
        if not self.answer.called:
            self.answer.callback(answer)


def _no_longer(answer: _Answer, overdue: Any) -> _Answer:
    if overdue.active():
        overdue.cancel()
    return answer


def _read(host: str, said: bytes, reason: Failure) -> _Answer:
    """Read lines like ``192.0.2.7  STREAM name``, three for each address."""
    ended: Any = reason.value
    if not isinstance(ended, ProcessDone):
        if ended.exitCode == _NOT_FOUND:
            return _failed(host, "this machine's resolver knows no address of that name")
        how = f"status {ended.exitCode}" if ended.signal is None else f"signal {ended.signal}"
        return _failed(host, f"getent ended with {how}")
    # What follows the last newline was cut off, and may look like another address.
    whole = said.rpartition(b"\n")[0].decode("ascii", "replace")
    words = [line.split()[:1] for line in whole.splitlines()]
    addresses = [word for line in words for word in line if _is_numeric(word)]
    if not addresses:
        return _failed(host, "getent named no address")
    return _Answer(list(dict.fromkeys(addresses)), None)


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _failed(host: str, why: str) -> _Answer:
    return _Answer([], f"cannot resolve {host}: {why}")


def _merge(answers: list[_Answer], servers: Sequence[Place]) -> Resolved:
    pairs = zip(answers, servers, strict=True)
    places = [(address, port) for answer, (_, port) in pairs for address in answer.addresses]
    problems = [answer.problem for answer in answers if answer.problem is not None]
    return Resolved(list(dict.fromkeys(places)), problems)
