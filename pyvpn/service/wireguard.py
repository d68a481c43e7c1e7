"""A WireGuard interface as a service: a core of stock peers, its TUN, its UDP port, its socket."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pyvpn.config import RUN_DIR, STATE_DIR, InstanceFiles
from pyvpn.core.events import WireGuardConnected, WireGuardDisconnected
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.core.wireguardpeers import STOCK_MTU
from pyvpn.linux.tun import set_mtu
from pyvpn.service.base import Surroundings, VPNService
from pyvpn.service.twistd import Process
from pyvpn.service.uapisocket import UAPI_DIRECTORY, UAPISocket
from pyvpn.service.wireguardcontrol import WireGuardControl, key_text
from pyvpn.tx.protocol import PortLost, VPNProtocol
from pyvpn.tx.timer import boottime
from pyvpn.tx.udp import UDPPort


class WireGuardService(VPNService):
    """What both users of a :class:`WireGuardDevice` have in common.

    :param uapi_directory: where ``wg`` looks for the socket of the interface.
    """

    core: WireGuardDevice
    _control: WireGuardControl
    _uapi: UAPISocket

    def __init__(
        self,
        files: InstanceFiles,
        process: Process | None,
        surroundings: Surroundings,
        reactor: Any,
        uapi_directory: Path,
    ) -> None:
        super().__init__(files, process, surroundings, reactor)
        self._uapi_directory = uapi_directory

    def _open_interface(
        self,
        name: str,
        port: int,
        *,
        mtu: int = STOCK_MTU,
        address: str = "",
        mark: int = 0,
        pin_source: bool = True,
    ) -> None:
        """Open core, UDP port, TUN and the socket for ``wg``, which answers after :meth:`_serve`.

        :param address: the local one to use, empty for all.
        """
        self.core = WireGuardDevice(
            wall_clock=time.time_ns,
            random_bytes=self._surroundings.random_bytes,
            inner_mtu=mtu,
        )
        protocol = VPNProtocol(self.core, self._event)
        udp = UDPPort(port, protocol, address, reactor=self._reactor, pin_source=pin_source)
        udp.set_mark(mark)
        self._open_ports(protocol, udp, name)
        self._control = WireGuardControl(
            self.core.wireguard, udp, changed=self._changed, settle=self._settle
        )
        self._uapi = UAPISocket(
            self._tun.device.name,
            self._control,
            self._reactor,
            self._uapi_directory,
            self._uapi_removed,
        )
        self._undo.push("close the socket for wg", self._uapi.close)
        self._uapi.open()

    def _serve(self) -> None:
        self._begin_traffic()
        self._uapi.serve()

    def _farewell(self) -> None:
        self.core.stop(boottime())

    def _changed(self, public_keys: set[bytes]) -> None:
        """Take that ``wg`` has changed peers; they last as long as the interface."""

    def _settle(self) -> None:
        """Send what the core has queued, at the end of each request of ``wg``."""
        self.protocol.transmit()

    def _uapi_removed(self) -> None:
        """Take that somebody has removed the socket for ``wg``."""

    def _event(self, event: object) -> None:
        if isinstance(event, WireGuardConnected):
            if event.new:
                self._log.info(
                    "peer {key} is there, at {endpoint}",
                    key=key_text(event.public_key),
                    endpoint=event.endpoint,
                )
        elif isinstance(event, WireGuardDisconnected):
            self._log.info(
                "peer {key} is gone: {reason}", key=key_text(event.public_key), reason=event.reason
            )
        elif isinstance(event, PortLost):
            self._port_lost(event)


class InterfaceService(WireGuardService):
    """A bare interface, which others set up: ``wg`` its peers, ``ip`` addresses and routes.

    It ends when its link is deleted or its socket is removed, as wireguard-go does. Nothing in
    Linux is changed but that the link is there, with WireGuard's MTU.

    :param name: of the interface.
    :param process: the process around it, None when embedded elsewhere.
    """

    def __init__(
        self,
        name: str,
        process: Process | None = None,
        surroundings: Surroundings | None = None,
        reactor: Any = None,
        uapi_directory: Path = UAPI_DIRECTORY,
    ) -> None:
        # Of these files it makes none: no child, no store, no control socket.
        files = InstanceFiles.of(f"wg-{name}", RUN_DIR, STATE_DIR)
        super().__init__(files, process, surroundings or Surroundings(), reactor, uapi_directory)
        self._name = name

    def _open(self) -> None:
        self._open_interface(self._name, 0)
        set_mtu(self._name, STOCK_MTU)

    def _port_lost(self, event: PortLost) -> None:
        if event.port == "tun":
            self._end("the link is gone")
        else:
            super()._port_lost(event)

    def _uapi_removed(self) -> None:
        self._end(f"{self._uapi.path} is gone")

    def _end(self, why: str) -> None:
        """End well: whoever took these away wants no interface any more."""
        if self._stopping:
            return
        self._log.info("{why}: ending", why=why)
        if self._process is not None:
            self._stopping = True
            self._reactor.stop()  # which stops the service
        else:
            self.stopService()
