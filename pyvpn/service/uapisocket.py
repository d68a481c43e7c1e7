"""The UNIX socket at which ``wg`` finds a WireGuard interface that lives in a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pyvpn.service.wireguardcontrol import WireGuardControl

#: Where ``wg`` looks, and nowhere else.
UAPI_DIRECTORY: Final = Path("/var/run/wireguard")


class UAPISocket:
    """Listens at ``DIRECTORY/INTERFACE.sock``, for root only.

    :meth:`open` and :meth:`serve` are two steps, so that a program can fork, or give up its
    privileges, between them: who connects meanwhile waits.

    :param interface: the TUN's name.
    :param control: carries out the requests.
    :param on_removed: called once when somebody else removes the socket, which is how some ask an
        interface to end.
    """

    def __init__(
        self,
        interface: str,
        control: WireGuardControl,
        reactor: Any = None,
        directory: Path = UAPI_DIRECTORY,
        on_removed: Callable[[], None] | None = None,
    ) -> None:
        self.path = directory / f"{interface}.sock"
        self._control = control
        self._reactor = reactor
        self._on_removed = on_removed

    def open(self) -> None:
        """Make the socket; a stale one is replaced. Needs no reactor.

        :raises StartError: somebody answers there already, or it cannot be made.
        """
        raise NotImplementedError

    def serve(self) -> None:
        """Take requests from now on."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up on all, close, and remove the socket if it is still ours; harmless twice."""
        raise NotImplementedError
