"""A client of a WireGuard server that is not ours, set up from a file as wg-quick(8) reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pyvpn.config import WireGuardClientConfig
from pyvpn.core.events import WireGuardConnected, WireGuardDisconnected
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.errors import ConfigError
from pyvpn.linux.firewall import MARK
from pyvpn.service import statistics, wireguardsetup
from pyvpn.service.base import Surroundings
from pyvpn.service.resolver import Place
from pyvpn.service.search import Search
from pyvpn.service.tunnelclient import TunnelClient
from pyvpn.service.twistd import Process
from pyvpn.service.uapisocket import UAPI_DIRECTORY
from pyvpn.service.wireguard import WireGuardService
from pyvpn.service.wireguardcontrol import key_text
from pyvpn.tx.linkmonitor import LinkMonitor
from pyvpn.tx.timer import boottime
from pyvpn.wgconf import WireGuardConf

LARGEST_PATH: Final = 65535  # nothing is found out of it: the MTU is the file's word

#: Said when nobody answers: WireGuard tells nobody which of these it is.
NO_ANSWER: Final = (
    "no answer from {place}: the wrong key stands there for it or here for us, this machine's clock"
    " was set back, UDP is blocked, or it is down; trying on"
)


class WireGuardClientService(TunnelClient, WireGuardService):
    """A client of a foreign WireGuard server: finds it, and stays connected.

    :param config: checked settings.
    :param conf: what the file says, checked by :func:`pyvpn.service.wireguardsetup.check`.
    :param process: the twistd process around it, None when embedded elsewhere.
    """

    def __init__(
        self,
        config: WireGuardClientConfig,
        conf: WireGuardConf,
        process: Process | None = None,
        surroundings: Surroundings | None = None,
        reactor: Any = None,
        uapi_directory: Path = UAPI_DIRECTORY,
    ) -> None:
        super().__init__(
            config.files, process, surroundings or Surroundings(), reactor, uapi_directory
        )
        self._config = config
        self._conf = conf
        self._there: set[bytes] = set()

    # -- starting -----------------------------------------------------------------------------

    def _open(self) -> None:
        config, conf = self._config, self._conf
        self._there.clear()
        mark = wireguardsetup.mark(conf)
        # Without privilege to mark, as in tests, ours is none.
        self._mark = self._surroundings.mark if mark == MARK else mark
        self._open_directory(config.run_dir)
        self._open_interface(
            config.tun,
            wireguardsetup.port(config, conf),
            mtu=wireguardsetup.mtu(config, conf),
            address=config.interface or "",
            mark=self._mark,
            pin_source=False,
        )
        child = self._open_setup(
            config.tun,
            wireguardsetup.wishes(config, conf),
            # What carries the tunnel goes past it by its mark, wherever the server is.
            hub=lambda: (),
            route=lambda networks: None,
            path=LARGEST_PATH,
        )
        self._note(child.apply(self._network.begin(wireguardsetup.told(conf))))
        self._note([f"note: {note}" for note in self._network.status()["notes"]])

    def _serve(self) -> None:
        self._serve_setup()
        self._guarded = self._ports()
        self._search = Search(
            wireguardsetup.places(self._conf),
            self._resolver.resolve,
            attempt=self._attempt_at,
            in_vain=self._in_vain,
        )
        self._undo.push("stop looking for peers", self._search.close)
        super()._serve()
        self._control.set(wireguardsetup.changes(self._conf))
        monitor = LinkMonitor(self._link_changed, self._reactor)
        self._undo.push("stop watching the network", monitor.close)
        self._listen(self._command)
        # A name may be looked up by a process, whose end only a running reactor notices.
        self._reactor.callWhenRunning(self._begin_search)

    def _begin_search(self) -> None:
        if self._serving:
            self._log.info(
                "this machine is {addresses} on {tun}",
                addresses=", ".join(self._network.addresses) or "without an address",
                tun=self._config.tun,
            )
            self._search.start()

    # -- finding peers ------------------------------------------------------------------------

    def _attempt_at(self, key: bytes, place: Place) -> None:
        peer = self.core.wireguard.peers.get(key)
        if peer is None:
            return  # `wg set` has removed it
        try:
            endpoint = self._udp.endpoint(*place)
        except ValueError as error:  # IPv6, while this kernel has none
            self._log.warn("{error}", error=error)
            return
        now = boottime()
        self.core.wireguard.set_endpoint(peer, endpoint, now)
        self.core.wireguard.connect(peer, now)
        self.protocol.transmit()

    def _in_vain(self, key: bytes, place: Place) -> None:
        host, port = place
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._log.warn("{line}", line=NO_ANSWER.format(place=f"{shown} ({key_text(key)})"))

    def _link_changed(self) -> None:
        if self._serving:
            self._search.hurry()
            self.core.wireguard.rebound(boottime())
            self.protocol.transmit()
            self._settling.changed()

    def _event(self, event: object) -> None:
        super()._event(event)
        if not self._serving:
            return  # the end of all peers at the end
        if isinstance(event, WireGuardConnected):
            self._there.add(event.public_key)
            self._search.answered(event.public_key)
        elif isinstance(event, WireGuardDisconnected):
            self._there.discard(event.public_key)
            self._search.lost(event.public_key)

    # -- Linux --------------------------------------------------------------------------------

    def _ports(self) -> tuple[int, ...]:
        """The ports whose datagrams go by our mark."""
        ours = (self._udp.localPort,) if self._udp.mark == self._surroundings.mark else ()
        return (*ours, *self._resolver.ports)

    def _settle(self) -> None:
        """``wg setconf`` and ``syncconf`` also reset what their file does not name: without the
        mark all traffic would loop, and without its port the tunnel would be blocked.
        """
        routed = wireguardsetup.routed(self._conf) or self._config.kill_switch
        if routed and self._udp.mark != self._mark:
            self._log.warn(
                "the fwmark stays {mark:#x}, by which this machine's routes go", mark=self._mark
            )
            self._udp.set_mark(self._mark)
        super()._settle()
        if self._ports() != self._guarded:
            self._guarded = self._ports()
            self._settling.now()

    # -- the control socket -------------------------------------------------------------------

    def _command(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command != "status":
            raise ConfigError(f"a client has no command '{command}'; it has: status")
        return self.status()

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows: the sums of all peers, and each of them."""
        now = boottime()
        peers = list(self.core.wireguard.peers.values())
        heard = [now - peer.last_heard for peer in peers if peer.last_heard is not None]
        sums = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
        return {
            "role": "client",
            "profile": self._config.profile,
            "state": "connected" if self._there else "connecting",
            "server": ", ".join(str(peer.endpoint) for peer in peers if peer.endpoint)
            or ", ".join(peer.endpoint for peer in self._conf.peers if peer.endpoint),
            "addresses": self._network.addresses,
            **self._network.status(),
            "cipher": statistics.CHACHA if self._there else None,
            **{key: sum(getattr(peer, key) for peer in peers) for key in sums},
            **statistics.of_ports(self._tun, self._udp),
            "last_heard": min(heard, default=None),
            "wireguard": str(self._config.file),
            "peers": [self._peer_status(peer, now) for peer in peers],
            "counters": self._traffic_counters(),
        }

    def _peer_status(self, peer: WireGuardPeer, now: float) -> dict[str, Any]:
        return {
            "public_key": key_text(peer.public_key),
            "endpoint": str(peer.endpoint) if peer.endpoint else None,
            "allowed_ips": [str(network) for network in self.core.wireguard.networks(peer)],
            "keepalive": peer.keepalive_interval,
            "last_handshake": peer.last_handshake // 1_000_000_000,
            "last_heard": None if peer.last_heard is None else now - peer.last_heard,
            "rx_bytes": peer.rx_bytes,
            "rx_packets": peer.rx_packets,
            "tx_bytes": peer.tx_bytes,
            "tx_packets": peer.tx_packets,
        }
