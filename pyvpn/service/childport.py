"""The privileged child in the reactor: a service that serves does not wait for its answers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from pyvpn.errors import StartError
from pyvpn.linux import privsep
from pyvpn.linux.desired import SystemState
from pyvpn.linux.privsep import PrivilegedChild


@implementer(IReadDescriptor)
class ChildPort:
    """Asks a started child, and fires Deferreds as it answers.

    :param child: started; whoever started it closes it, after this.
    """

    def __init__(self, child: PrivilegedChild, reactor: Any) -> None:
        self._child = child
        self._reactor = reactor
        self._waiting: dict[int | None, tuple[Deferred[list[str]], Any]] = {}

    def apply(self, state: SystemState) -> Deferred[list[str]]:
        """:meth:`PrivilegedChild.apply` as a Deferred: the same lines, the same errors.

        An answer that takes longer than :data:`~pyvpn.linux.privsep.ANSWER_TIMEOUT` is given up.
        """
        try:
            number = self._child.begin(state)
        except StartError:
            return fail()
        if not self._waiting:
            self._reactor.addReader(self)
        answer: Deferred[list[str]] = Deferred()
        overdue = self._reactor.callLater(privsep.ANSWER_TIMEOUT, self._give_up, number)
        self._waiting[number] = answer, overdue
        return answer

    def close(self) -> None:
        """Wait for nothing any more; harmless twice."""
        self._fail_all(StartError("the privileged child is being stopped"))

    def doRead(self) -> None:
        try:
            answers = self._child.take_answers()
        except Exception as error:
            # StartError: it has ended. Anything else would be an answer that cannot be read; what
            # leaves doRead would take the descriptor out of the reactor, and nobody would know.
            self._fail_all(error)
            return
        for answer in answers:
            waiting = self._take(answer.number)
            if waiting is None:
                continue  # given up before
            if answer.error is None:
                waiting.callback(answer.commands)
            else:
                waiting.errback(answer.error)

    def fileno(self) -> int:
        return self._child.fileno()

    def logPrefix(self) -> str:
        return "privileged child"

    def connectionLost(self, reason: Failure) -> None:
        self.doRead()  # says itself what happened

    def _give_up(self, number: int) -> None:
        waiting = self._take(number)
        if waiting is not None:
            waiting.errback(privsep.no_answer())

    def _take(self, number: int | None) -> Deferred[list[str]] | None:
        """Who waits for this answer; it is not waited for any more."""
        waiting, overdue = self._waiting.pop(number, (None, None))
        if overdue is not None and overdue.active():
            overdue.cancel()
        if waiting is not None and not self._waiting:
            self._reactor.removeReader(self)
        return waiting

    def _fail_all(self, error: Exception) -> None:
        for number in list(self._waiting):
            waiting = self._take(number)
            if waiting is not None:
                waiting.errback(error)
