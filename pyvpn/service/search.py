"""Looking for peers by the names in a configuration, until they answer, and when they are lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pyvpn.service.resolver import Place, Resolved
from pyvpn.tx.timer import BoottimeTimer, boottime

#: Seconds from one try to the next, doubled up to the second.
FIRST_WAIT: Final = 5.0
LAST_WAIT: Final = 300.0
#: Of how many tries in a row without an answer people are told: the third is 15 s after the first.
TRIES_UNTOLD: Final = 3


@define
class _Sought:
    """One peer: when the next try is due, None while it answers or its name is looked up."""

    place: Place
    due: float | None
    tried: float = 0.0
    wait: float = FIRST_WAIT
    tries: int = 0
    there: bool = False


class Search:
    """Resolves where peers are, tries one address after the other, and begins anew.

    A name is looked up for each try: it may stand for another address by now.

    :param wanted: place (name or address, and port) by peer.
    :param resolve: :meth:`pyvpn.service.names.Names.resolve`.
    :param attempt: to shake hands with a peer at an address now.
    :param in_vain: gets a peer, once an outage, that does not answer at this address.
    """

    _log = Logger()

    def __init__(
        self,
        wanted: Mapping[bytes, Place],
        resolve: Callable[[list[Place]], Deferred[Resolved]],
        *,
        attempt: Callable[[bytes, Place], None],
        in_vain: Callable[[bytes, Place], None],
        clock: Callable[[], float] = boottime,
        timer_factory: Callable[[Callable[[], None]], Any] = BoottimeTimer,
    ) -> None:
        self._wanted = wanted
        self._resolve = resolve
        self._attempt = attempt
        self._in_vain = in_vain
        self._clock = clock
        self._timer_factory = timer_factory
        self._sought: dict[bytes, _Sought] = {}
        self._timer: Any = None

    def start(self) -> None:
        """Try all of them now."""
        now = self._clock()
        self._timer = self._timer_factory(self._due)
        self._sought = {key: _Sought(place, now) for key, place in self._wanted.items()}
        self._due()

    def close(self) -> None:
        """Look for nobody any more; harmless twice."""
        self._sought = {}
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def answered(self, key: bytes) -> None:
        """Rest: this peer was found, or has found us."""
        sought = self._sought.get(key)
        if sought is not None:
            sought.there, sought.due = True, None
            sought.wait, sought.tries = FIRST_WAIT, 0

    def lost(self, key: bytes) -> None:
        """Look for this peer again."""
        sought = self._sought.get(key)
        if sought is not None and sought.there:
            sought.there, sought.due = False, self._clock()
            self._arm()

    def hurry(self) -> None:
        """Begin with short waits again: the network is another now.

        A name that is being looked up in the one of before is asked for anew: there it may take
        long to learn that nobody answers.
        """
        for sought in self._sought.values():
            soon = sought.tried + FIRST_WAIT
            if not sought.there:
                sought.wait = FIRST_WAIT
                sought.due = soon if sought.due is None else min(sought.due, soon)
        self._arm()

    def _due(self) -> None:
        now = self._clock()
        for key, sought in list(self._sought.items()):
            if sought.due is not None and sought.due <= now:
                sought.due, sought.tried = None, now
                self._resolve([sought.place]).addCallback(self._resolved, key, sought, now)
        self._arm()

    def _resolved(self, resolved: Resolved, key: bytes, sought: _Sought, asked: float) -> None:
        if self._sought.get(key) is not sought or sought.there:
            return  # closed, or it has found us meanwhile
        if sought.tried != asked and not resolved.places:
            return  # asked for anew since
        sought.due = self._clock() + sought.wait
        sought.wait = min(2 * sought.wait, LAST_WAIT)
        for problem in resolved.problems:
            self._log.warn("{problem}; trying on", problem=problem)
        if resolved.places:
            place = resolved.places[sought.tries % len(resolved.places)]
            if sought.tries == TRIES_UNTOLD - 1:
                self._in_vain(key, place)
            sought.tries += 1
            self._attempt(key, place)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            dues = [sought.due for sought in self._sought.values() if sought.due is not None]
            self._timer.arm(min(dues, default=None))
