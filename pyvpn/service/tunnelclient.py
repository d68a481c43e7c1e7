"""What clients of both kinds, of a hub and of a WireGuard server, do to this machine's network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred

from pyvpn.core.vpncore import DEFAULT_INNER_MTU as INNER_MTU
from pyvpn.linux.privsep import PrivilegedChild
from pyvpn.service.base import VPNService
from pyvpn.service.childport import ChildPort
from pyvpn.service.clientnetwork import Wishes
from pyvpn.service.names import Names
from pyvpn.service.networksetup import NetworkSetup
from pyvpn.service.settling import Settling
from pyvpn.values import Network


class TunnelClient(VPNService):
    """A client's part of a service: names asked past the tunnel, and the network set up."""

    # All of these exist from _open_setup() on, the last from _serve_setup() on.
    _resolver: Names
    _child_port: ChildPort
    _network: NetworkSetup
    _settling: Settling

    def _ports(self) -> tuple[int, ...]:
        """Return the local UDP ports whose datagrams go by our mark."""
        raise NotImplementedError

    def _open_setup(
        self,
        tun: str,
        wishes: Wishes,
        *,
        hub: Callable[[], tuple[str, ...]],
        route: Callable[[Iterable[Network]], None],
        path: int = INNER_MTU,
    ) -> PrivilegedChild:
        """Open what needs privilege, and set the kill switch before anybody is asked for anything.

        The other parameters are those of :class:`NetworkSetup`.
        """
        self._resolver = Names(self._reactor, self._servers_before, bool(self._surroundings.mark))
        self._undo.push("stop looking up names", self._resolver.close)
        self._resolver.open()
        child = self._open_child()
        self._child_port = ChildPort(child, self._reactor)
        self._network = NetworkSetup(
            self._files.socket.stem,
            tun,
            wishes,
            self._child_port,
            ports=self._ports,
            hub=hub,
            route=route,
            path=path,
        )
        if (state := self._network.before_all()) is not None:
            self._note(child.apply(state))
        return child

    def _serve_setup(self) -> None:
        """Begin to listen for answers, and to follow what changes on this machine."""
        self._undo.push("stop waiting for the privileged child", self._child_port.close)
        self._settling = Settling(self._look_again, self._note, self._reactor)
        self._undo.push("stop waiting for the network to settle", self._settling.close)
        self._settling.watch_firewall()
        self._resolver.start()

    def _look_again(self) -> Deferred[list[str]]:
        """Do what follows from other networks around us."""
        return self._network.look_again()

    def _servers_before(self) -> list[str]:
        return self._network.servers_before()
