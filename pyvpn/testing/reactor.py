"""A reactor for memory descriptors on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from zope.interface import implementer

from pyvpn.testing.clock import ClockTimer, VirtualClock
from pyvpn.testing.memory import MemoryDescriptor, MemoryNetwork

# More turns than any test needs: something wakes itself for ever.
MOST_TURNS = 10_000


@implementer(IReactorFDSet)
class MemoryReactor(VirtualClock):
    """Calls ports whose memory descriptors are ready, as the epoll reactor does.

    :param network: whose descriptors it watches.
    """

    def __init__(self, network: MemoryNetwork, boottime: float = 1000.0) -> None:
        super().__init__(boottime)
        self.network = network
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    def timer(self, callback: Callable[[], None]) -> ClockTimer:
        """A ``timer_factory`` for protocols."""
        return ClockTimer(callback, self)

    def addReader(self, reader: Any) -> None:
        self._readers[reader.fileno()] = reader

    def addWriter(self, writer: Any) -> None:
        self._writers[writer.fileno()] = writer

    def removeReader(self, reader: Any) -> None:
        self._readers.pop(reader.fileno(), None)

    def removeWriter(self, writer: Any) -> None:
        self._writers.pop(writer.fileno(), None)

    def removeAll(self) -> list[Any]:
        everything = list({*self._readers.values(), *self._writers.values()})
        self._readers.clear()
        self._writers.clear()
        return everything

    def getReaders(self) -> list[Any]:
        return list(self._readers.values())

    def getWriters(self) -> list[Any]:
        return list(self._writers.values())

    def turn(self) -> bool:
        """Make the calls that are due, serve every descriptor that is ready once; whether any."""
        busy = (due := self.next_due()) is not None and due <= self.rightNow
        if busy:
            super().advance(0)
        for fd in sorted({*self._readers, *self._writers}):
            device = self.network.descriptors.get(fd)
            if device is not None:
                busy = self._serve(fd, device) or busy
        return busy

    def _serve(self, fd: int, device: MemoryDescriptor) -> bool:
        if device.broken() and not device.readable():
            return self._disconnect(fd, CONNECTION_DONE)
        why, busy = None, False
        reader = self._readers.get(fd)
        if reader is not None and device.readable():
            why, busy = reader.doRead(), True
        writer = self._writers.get(fd)
        if writer is not None and not why and device.writable():
            why, busy = writer.doWrite(), True
        if why:
            self._disconnect(fd, why)
        return busy

    def _disconnect(self, fd: int, why: Exception) -> bool:
        port = self._readers.pop(fd, None) or self._writers.get(fd)
        self._writers.pop(fd, None)
        if port is not None:
            port.connectionLost(Failure(why))
        return port is not None

    def settle(self) -> None:
        """Serve until nothing is ready; time stands still.

        :raises AssertionError: it never ends.
        """
        for _ in range(MOST_TURNS):
            if not self.turn():
                return
        raise AssertionError("the memory network never comes to rest")

    def advance(self, amount: float) -> None:
        """Go on by ``amount`` seconds, stopping at each timer, the network at rest in between."""
        target = self.rightNow + amount
        self.settle()
        while (due := self.next_due()) is not None and due <= target:
            super().advance(max(0.0, due - self.rightNow))
            self.settle()
        super().advance(max(0.0, target - self.rightNow))
        self.settle()
