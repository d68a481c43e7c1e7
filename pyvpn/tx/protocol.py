"""The shell around a core: feed, send, tell, re-arm. Nothing here decides about the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyvpn.core.burst import Buffer, Burst
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.timer import BoottimeTimer, boottime
from pyvpn.tx.tun import TUNPort
from pyvpn.tx.udp import UDPPort

# A core that raises from its timer is tried again after this, in seconds, not at once for ever.
AFTER_EXCEPTION = 1.0


class Core(Protocol):
    """The face that ``VPNServer`` and ``VPNClient`` share; ``now`` is boottime seconds."""

    def packets_from_tun(self, frames: list[bytes], now: float) -> list[Burst]: ...

    def datagrams_received(
        self, buffer: Buffer, size: int, endpoint: Any, now: float
    ) -> list[list[Buffer]]: ...

    def datagrams_to_send(self, now: float) -> list[Burst]: ...

    def next_timer(self) -> tuple[float, str] | None: ...

    def handle_timer(self, now: float) -> None: ...

    def settled(self) -> bool: ...

    def frames_to_write(self) -> list[list[Buffer]]: ...

    def next_event(self) -> object | None: ...


class Timer(Protocol):
    """A :class:`BoottimeTimer` or its stand-in on a virtual clock."""

    def arm(self, when: float | None) -> None: ...

    def close(self) -> None: ...


@frozen
class PortLost:
    """An event of this layer: a descriptor became unusable and was closed.

    :ivar port: ``"tun"`` or ``"udp"``.
    :ivar reason: one line.
    """

    port: str
    reason: str


class VPNProtocol(DatagramProtocol):
    """Ties one core to one TUN, one UDP port and one timer.

    :param core: the protocol itself.
    :param on_event: gets every event of the core, in order, and :class:`PortLost`. It may call into
        the core; whatever that queues is sent when it returns.
    :param clock: boottime seconds.
    :param timer_factory: makes the timer from the function to call; opened by :meth:`attach`.
    """

    _log = Logger()
    tun: TUNPort
    udp: UDPPort

    def __init__(
        self,
        core: Core,
        on_event: Callable[[object], None],
        clock: Callable[[], float] = boottime,
        timer_factory: Callable[[Callable[[], None]], Timer] = BoottimeTimer,
    ) -> None:
        self.core = core
        self._on_event = on_event
        self._clock = clock
        self._timer_factory = timer_factory
        self._timer: Timer | None = None
        self._armed: float | None = None

    def attach(self, tun: TUNPort, udp: UDPPort) -> None:
        """Take both ports (which may start reading now) and start the timer."""
        self.tun = tun
        self.udp = udp
        self._timer = self._timer_factory(self.timerFired)
        self.transmit()

    def detach(self) -> None:
        """Stop the timer; the ports belong to the caller. Harmless twice."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
            self._armed = None

    # From the ports

    def framesReceived(self, frames: list[bytes]) -> None:
        """One turn's frames from the TUN."""
        now = self._clock()
        try:
            bursts = self.core.packets_from_tun(frames, now)
            if bursts:
                self.udp.writeBursts(bursts)
        finally:
            if not self.core.settled():
                self.transmit(now)

    def burstReceived(self, buffer: Buffer, size: int, endpoint: UDPEndpoint) -> None:
        """Datagrams of one sender; what they call for leaves at :meth:`turnEnded`."""
        frames = self.core.datagrams_received(buffer, size, endpoint, self._clock())
        if frames:
            self.tun.writeFrames(frames)

    def turnEnded(self) -> None:
        """The UDP port has handed over all of this turn."""
        if not self.core.settled():
            self.transmit()
        self.tun.readNow()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Twisted's way to deliver: a burst of one. ``addr`` is a :class:`UDPEndpoint`."""
        self.burstReceived(datagram, len(datagram), addr)
        self.turnEnded()

    def sendingPaused(self) -> None:
        """The socket is full: leave frames in the TUN's queue."""
        self.tun.stopReading()

    def sendingResumed(self) -> None:
        """The socket has room."""
        self.tun.startReading()

    def tunConnectionLost(self, reason: Failure) -> None:
        """The TUN device was deleted."""
        self._tell(PortLost("tun", f"{self.tun.device.name}: {reason.getErrorMessage()}"))

    def udpConnectionLost(self, reason: Failure) -> None:
        """The socket became unusable."""
        self._tell(PortLost("udp", f"UDP port {self.udp.port}: {reason.getErrorMessage()}"))

    def timerFired(self) -> None:
        """The armed time has come, or a later one was announced since."""
        self._armed = None
        now = self._clock()
        due = self.core.next_timer()
        try:
            if due is not None and due[0] <= now:
                self.core.handle_timer(now)
        except Exception:
            self._log.failure("the core's timer raised")
            self._arm(now + AFTER_EXCEPTION)
            return
        self.transmit(now)

    # To the ports

    def transmit(self, now: float | None = None) -> None:
        """Send what the core has queued, tell its events, re-arm the timer.

        To be called after every call into the core that does not come from here.
        """
        core = self.core
        if now is None:
            now = self._clock()
        while True:
            bursts = core.datagrams_to_send(now)
            if bursts:
                self.udp.writeBursts(bursts)
            frames = core.frames_to_write()
            if frames:
                self.tun.writeFrames(frames)
            event = core.next_event()
            if event is None:
                break
            while event is not None:
                self._tell(event)
                event = core.next_event()
        due = core.next_timer()
        # A later deadline than the armed one needs no system call: deadlines move on with every
        # packet, and timerFired finds that it is not due yet.
        if due is not None and (self._armed is None or due[0] < self._armed):
            self._arm(due[0])

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._armed = when
            self._timer.arm(when)

    def _tell(self, event: object) -> None:
        try:
            self._on_event(event)
        except Exception:
            self._log.failure("handling {event} raised", event=event)


class VPNServerProtocol(VPNProtocol):
    """The hub's side: the core is a ``VPNServer``."""


class VPNClientProtocol(VPNProtocol):
    """A client's side: the core is a ``VPNClient``."""
