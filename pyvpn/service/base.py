"""What both services do alike: start in order or not at all, stop in order, tell people."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pyvpn.config import InstanceFiles
from pyvpn.core.vpncore import VPNCore
from pyvpn.errors import StartError, VPNError
from pyvpn.linux.firewall import MARK
from pyvpn.linux.privsep import PrivilegedChild
from pyvpn.linux.tun import TUNDevice, open_tun
from pyvpn.service.controlsocket import ControlSocket, Run
from pyvpn.service.twistd import Process
from pyvpn.service.undo import Undo
from pyvpn.tx.protocol import PortLost, VPNProtocol
from pyvpn.tx.tun import TUNPort
from pyvpn.tx.udp import UDPPort


@frozen
class Surroundings:
    """What a service needs of the machine; tests put fakes in their places.

    :ivar owner: user and group id that the process will drop to, None to stay what it is.
    :ivar mark: of what must not enter the tunnel itself; 0 where there is no privilege to mark.
    """

    open_tun: Callable[[str], TUNDevice] = open_tun
    child: Callable[[str], PrivilegedChild] = PrivilegedChild
    random_bytes: Callable[[int], bytes] = os.urandom
    owner: tuple[int, int] | None = None
    mark: int = MARK


class VPNService(Service):
    """A service that owns a TUN, a UDP port, a privileged child and a control socket.

    ``privilegedStartService`` opens everything that needs root, ``startService`` begins to serve.
    Every step registers its undo before the change; a failed start undoes all and raises, or, under
    twistd, tells and ends the process. ``stopService`` awaits each undo.
    """

    _log = Logger()

    # All of these exist from _open() on.
    core: VPNCore[Any]
    protocol: VPNProtocol
    _tun: TUNPort
    _udp: UDPPort
    _child: PrivilegedChild

    def __init__(
        self,
        files: InstanceFiles,
        process: Process | None,
        surroundings: Surroundings,
        reactor: Any,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._files = files
        self._process = process
        self._surroundings = surroundings
        self._reactor = reactor
        self._undo = Undo()
        self._stopping = False
        self._serving = False

    # -- starting and stopping ----------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open all that needs privilege; harmless twice."""
        if not self._undo:
            self._stopping = False
            self._attempt(self._open)

    def startService(self) -> None:
        self.privilegedStartService()
        self._attempt(self._serve)
        Service.startService(self)
        if self._process is not None:
            self._process.started()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self._stopping = True
        if self._serving:
            self._serving = False
            self._farewell()
            self.protocol.transmit()
        return Deferred.fromCoroutine(self._undo.in_order())

    def _open(self) -> None:
        """Open ports, child and store, in order, registering undos."""
        raise NotImplementedError

    def _serve(self) -> None:
        """Begin to serve; privileges may be gone now."""
        raise NotImplementedError

    def _farewell(self) -> None:
        """Say good-bye on the wire."""
        raise NotImplementedError

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._serving = False
            self._undo.now()
            if self._process is not None and isinstance(error, VPNError | OSError):
                self._process.failed(error)
            raise

    # -- steps --------------------------------------------------------------------------------

    def _open_directory(self, path: Path) -> None:
        """Make a directory of ours, mode 0700, and give it to whom the process will become."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._give_away(path)

    def _give_away(self, path: Path) -> None:
        if self._surroundings.owner is not None:
            os.chown(path, *self._surroundings.owner)

    def _open_ports(
        self,
        protocol: VPNProtocol,
        udp: UDPPort,
        tun_name: str,
        fallback: UDPPort | None = None,
    ) -> None:
        """Open the UDP port, or the fallback where it is busy, and the TUN."""
        self._undo.push("close the UDP port", udp.close)
        try:
            udp.bind()
        except StartError as error:
            if fallback is None:
                raise
            self._undo.push("close the UDP port", fallback.close)
            fallback.bind()
            self._log.info(
                "{error}; taking UDP port {port} instead", error=error, port=fallback.localPort
            )
            udp = fallback
        device = self._surroundings.open_tun(tun_name)
        self._undo.push("close the TUN", device.close)
        self._udp = udp
        self._tun = TUNPort(device, protocol, reactor=self._reactor)
        self._undo.push("stop reading the TUN", self._tun.close)
        self.protocol = protocol

    def _open_child(self) -> PrivilegedChild:
        if self._files.socket.exists():
            # A killed process left it: whom we become must be able to see that nobody is there.
            self._give_away(self._files.socket)
        child = self._surroundings.child(str(self._files.journal))
        self._undo.push("undo what was changed in Linux", lambda: self._note(child.close()))
        self._note(child.start())
        self._child = child
        return child

    def _begin_traffic(self) -> None:
        self._serving = True
        self._undo.push("stop the timer", self.protocol.detach)
        self.protocol.attach(self._tun, self._udp)
        self._udp.startReading()
        self._tun.startReading()

    def _listen(self, run: Run) -> None:
        """Open the control socket: the last step, since only a running reactor can close it."""
        control = ControlSocket(self._files.socket, run, self._reactor)
        self._undo.push("close the control socket", control.close)
        control.listen()

    # -- running ------------------------------------------------------------------------------

    def _note(self, lines: list[str]) -> None:
        """Log what was changed in Linux."""
        for line in lines:
            self._log.info("{line}", line=line)

    def _port_lost(self, event: PortLost) -> None:
        self._die(f"{event.reason}; start it again")

    def _die(self, line: str) -> None:
        """End the process: what it needs is gone."""
        if self._stopping:
            return
        self._stopping = True
        if self._process is not None:
            self._process.die(line, self._reactor)
        else:
            self._log.critical("{line}", line=line)
            self.stopService()

    def _traffic_counters(self) -> dict[str, int]:
        """Return the counters of core and ports, each under its own name."""
        counters = dict(self.core.counters)
        for prefix, port in (("udp_", self._udp), ("tun_", self._tun)):
            counters.update({prefix + key: value for key, value in port.counters.items()})
        return counters
