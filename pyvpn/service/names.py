"""Where a hub is, asked past the tunnel first and the way of other programs then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from pyvpn.service.markedresolver import MarkedResolver
from pyvpn.service.resolver import Place, Resolved, Resolver


class Names:
    """The name servers that were set before us, by marked datagrams; then ``getent``.

    The first works while everything else goes into a tunnel that is not up yet. The second knows
    names that no name server does (``hub.local``).

    :param name_servers: numeric addresses, in the order to ask.
    :param marked: whether there is privilege to mark; without, it is ``getent`` alone.
    """

    def __init__(
        self, reactor: Any, name_servers: Callable[[], Sequence[str]], marked: bool
    ) -> None:
        self._marked = MarkedResolver(reactor, name_servers) if marked else None
        self._system = Resolver(reactor)

    @property
    def ports(self) -> tuple[int, ...]:
        """The local UDP ports that questions leave from."""
        return () if self._marked is None else self._marked.ports

    def open(self) -> None:
        """Open what needs privilege.

        :raises StartError: it cannot be had.
        """
        if self._marked is not None:
            self._marked.open()

    def start(self) -> None:
        """Begin to listen for answers."""
        if self._marked is not None:
            self._marked.start()

    def resolve(self, servers: Sequence[Place]) -> Deferred[Resolved]:
        """Look all of them up; never fails, and takes a minute at most.

        Numeric addresses need nobody: with them alone the Deferred has fired already.
        """
        if self._marked is None:
            return self._system.resolve(servers)
        return self._marked.resolve(servers).addCallback(self._again, servers)

    def close(self) -> Deferred[Any]:
        """Give up what is being looked up; harmless twice."""
        closing = [self._system.close()]
        if self._marked is not None:
            closing.append(self._marked.close())
        return gatherResults(closing)

    def _again(self, found: Resolved, servers: Sequence[Place]) -> Resolved | Deferred[Resolved]:
        if found.places:
            return found
        return self._system.resolve(servers).addCallback(
            lambda other: other if other.places else found
        )
