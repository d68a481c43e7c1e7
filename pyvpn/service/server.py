"""The hub as a service."""

from __future__ import annotations

import errno
import time
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from pyvpn.admin import ENDPOINT_SETTING, Administration
from pyvpn.config import ServerConfig
from pyvpn.core.control import ByeReason
from pyvpn.core.events import (
    ConfigRefused,
    LeaseLost,
    LeaseRequested,
    LoginRequested,
    SessionConfirmed,
    SessionEnded,
    WireGuardConnected,
    WireGuardDisconnected,
)
from pyvpn.core.leases import KEEP_UNSEEN, AddressPool, Lease
from pyvpn.core.login import NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import (
    VPNServer,
)
from pyvpn.errors import AddressTaken, PoolExhausted, StartError, StoreError
from pyvpn.linux.cpu import wants_aes
from pyvpn.linux.preflight import ipv6_available
from pyvpn.linux.system import LinuxSystem
from pyvpn.linux.uplink import port_forward_hint
from pyvpn.peers import LiveCore, StockPeers, restored_leases
from pyvpn.service import hubnetwork, statistics
from pyvpn.service.base import Surroundings, VPNService
from pyvpn.service.childport import ChildPort
from pyvpn.service.devicerecords import DeviceRecords
from pyvpn.service.hubnames import HubNames
from pyvpn.service.livenetwork import LiveNetwork
from pyvpn.service.twistd import Process
from pyvpn.service.uapisocket import UAPI_DIRECTORY, UAPISocket
from pyvpn.service.wireguardcontrol import WireGuardControl, keep_device
from pyvpn.state.directory import SUBNET6_SETTING, StateDirectory
from pyvpn.state.network import HubNetwork
from pyvpn.state.sqlite import SQLiteStore
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.protocol import PortLost, VPNServerProtocol
from pyvpn.tx.timer import boottime
from pyvpn.tx.udp import UDPPort
from pyvpn.uapi import Changes, UAPIError

#: Devices of one user (docs/protocol.rst, "Limits").
DEVICES_PER_USER = 16

Holder = tuple[str, bytes]


class ServerService(VPNService):
    """The hub: opens everything, decides about logins and leases, writes what must last.

    :param config: checked settings.
    :param process: the twistd process around it, None when embedded elsewhere.
    :param uapi_directory: where ``wg`` looks for the socket of our interface.
    """

    core: VPNServer
    peers: StockPeers
    network: LiveNetwork

    def __init__(
        self,
        config: ServerConfig,
        process: Process | None = None,
        surroundings: Surroundings | None = None,
        reactor: Any = None,
        uapi_directory: Path = UAPI_DIRECTORY,
    ) -> None:
        super().__init__(config.files, process, surroundings or Surroundings(), reactor)
        self._config = config
        self._uapi_directory = uapi_directory
        self._state = StateDirectory(config.state_dir)
        self._store = SQLiteStore(self._state.store_path)
        self._started = 0.0

    # -- starting -----------------------------------------------------------------------------

    def _open(self) -> None:
        config, random_bytes = self._config, self._surroundings.random_bytes
        self._open_directory(config.run_dir)
        self._undo.push("unlock the state directory", self._state.unlock)
        self._state.lock()
        self._state.prepare(random_bytes)
        self._undo.push("close the store", self._store.close)
        self._store.open()
        self._pool = AddressPool(config.subnet, self._network6())
        self.core = self._make_core()
        self._records = DeviceRecords(self._store, self.core, self._state.store_path)
        self._names = HubNames(self._store, self._pool, self.core, self._connected)
        protocol = VPNServerProtocol(self.core, self._event)
        udp = UDPPort(config.port, protocol, config.interface or "", reactor=self._reactor)
        self._open_ports(protocol, udp, config.tun)
        self._restore()
        self._open_uapi()
        self._open_network()
        for path in (self._state.path, *self._state.path.iterdir()):
            self._give_away(path)

    def _network6(self) -> IPv6Network | None:
        """Return the inner IPv6 network; a kernel without IPv6 has a network without it."""
        wanted = self._config.subnet6
        if wanted is not None and not ipv6_available():
            self._log.warn("IPv6 is off in this kernel: the network has IPv4 only")
            return None
        if wanted == "auto":
            stored = self._store.setting(SUBNET6_SETTING)
            try:
                return IPv6Network(stored or "")
            except ValueError:
                raise StoreError(
                    f"{self._state.store_path}: the setting {SUBNET6_SETTING} is missing or no"
                    " network; restore it from a backup"
                ) from None
        return wanted

    def _make_core(self) -> VPNServer:
        token = self._state.token
        return VPNServer(
            keys=NetworkKeys.derive(token.login_public, token.network_secret),
            login_key=KeyPair.of(self._state.login_private),
            network4=self._pool.network4,
            network6=self._pool.network6,
            inner_mtu=self._config.mtu,
            aes=wants_aes(self._config.cipher),
            relay=self._config.relay,
            wall_clock=time.time_ns,
            random_bytes=self._surroundings.random_bytes,
        )

    def _restore(self) -> None:
        """Tell the core and the pool what the store remembers."""
        now = boottime()
        private = self._state.wireguard_private
        self.core.wireguard.set_private_key(private, now)
        for user in self._store.users().values():
            if user.enabled:
                self.core.set_user(user.name, user.public_key, now)
        self.peers = StockPeers(
            self._store,
            self._pool,
            KeyPair.of(private).public,
            LiveCore(
                wireguard=self.core.wireguard,
                now=boottime,
                endpoint=self._endpoint,
                settle=self.protocol.transmit,
                connected=self._connected,
                forget=self._forget_unseen,
            ),
        )
        self.peers.restore()
        leases = restored_leases(self._pool, self._store)
        for holder, device in self._store.devices().items():
            self.core.restore_device(*holder, device.name, device.stamp, leases.get(holder))

    def _endpoint(self, text: str) -> UDPEndpoint:
        host, _, port = text.rpartition(":")
        return self._udp.endpoint(host.strip("[]"), int(port))

    def _forget_unseen(self, holder: Holder) -> None:
        self.core.forget_device(*holder, boottime())

    def _open_uapi(self) -> None:
        """Let ``wg`` find our interface; a hub does its work also where it cannot."""
        control = WireGuardControl(
            self.core.wireguard,
            self._udp,
            changed=self._changed_by_wg,
            settle=self.protocol.transmit,
            guard=self._guard,
            name_of=self.peers.name_of,
        )
        uapi = UAPISocket(self._tun.device.name, control, self._reactor, self._uapi_directory)
        self._undo.push("close the socket for wg", uapi.close)
        self._uapi: UAPISocket | None = uapi
        try:
            uapi.open()
        except StartError as error:
            self._log.warn("{error}; wg will not show this hub", error=error)
            self._uapi = None

    def _open_network(self) -> None:
        """Set Linux up, and answer for names."""
        self.network = LiveNetwork(
            self._config,
            self._store,
            self._pool,
            self.core,
            peers=self.peers.behind,
            endpoints=self._public,
            names=self._names.current,
            settle=self.protocol.transmit,
            reactor=self._reactor,
        )
        child = self._open_child()
        self._undo.push("answer for names no more", self.network.close)
        self._note(self.network.open(child.apply))

    def _serve(self) -> None:
        child = ChildPort(self._child, self._reactor)
        self._undo.push("stop waiting for the privileged child", child.close)
        self.network.serve(child.apply)
        self._administration = Administration(self._store, self._state, self)
        self._undo.push("write what is not written yet", self._records.written)
        self._begin_traffic()
        if self._uapi is not None:
            self._uapi.serve()
        self._started = boottime()
        network = HubNetwork(
            self._pool.network4, self._pool.network6, self._config.port, self._config.mtu
        )
        if (kept := network.keep(self._store)) is not None:
            kept.addErrback(self._records.failed)
        if self._config.endpoint is not None:
            endpoint = {"endpoint": self._config.endpoint}
            setting = self._administration.run("endpoint_set", endpoint)
            setting.addErrback(self._records.failed)
        self._log.info(
            "the hub of {network4}, {network6} listens on UDP port {port}",
            network4=self._pool.network4,
            network6=self._pool.network6 or "no IPv6",
            port=self._config.port,
        )
        if self._process is not None and not self._store.users():
            self._process.say("no users yet; add one with: pyvpn user add NAME")
        self._hint()
        # Whoever finds an answer there may end us, which takes a running reactor: the very last.
        self._listen(self._command)

    def _hint(self) -> None:
        """Tell people what their router must be told, if the hub is behind one."""
        try:
            hint = port_forward_hint(LinuxSystem(), self._config.port, self._public())
        except StartError:
            return
        if hint is not None and self._process is not None:
            self._process.say(hint)

    def _public(self) -> str | None:
        """By what clients reach this hub, ``HOST:PORT`` with commas."""
        return self._config.endpoint or self._store.setting(ENDPOINT_SETTING)

    def _farewell(self) -> None:
        self.core.stop(ByeReason.STOPPED, boottime())

    # -- what wg asks -------------------------------------------------------------------------

    def _guard(self, changes: Changes) -> None:
        """Refuse what is the hub's, and what would be a password user's."""
        keep_device(changes)
        users = {user.public_key: user.name for user in self._store.users().values()}
        for change in changes.peers:
            name = users.get(change.public_key)
            if name is not None:
                raise UAPIError(errno.EINVAL, f"user '{name}' has the key of a peer to be")
            for network, remove in change.allowed_ips:
                if not remove and self.peers.is_hub(network):
                    raise UAPIError(errno.EADDRINUSE, f"{network} is the hub's own address")

    def _changed_by_wg(self, public_keys: set[bytes]) -> Deferred[None]:
        done = self.peers.changed(public_keys)
        done.addCallback(self._routes_follow)
        return done.addErrback(self._not_kept)

    async def _peers_routed(self) -> None:
        for warning in await self.network.peers_changed():
            self._log.warn("{warning}", warning=warning)

    def _routes_follow(self, _: object) -> Deferred[None]:
        self._names.changed()
        return Deferred.fromCoroutine(self._peers_routed())

    def _not_kept(self, failure: Failure) -> None:
        """Tell wg and the log that a change will last until the next start only."""
        self._records.failed(failure)
        raise UAPIError(errno.EIO, f"what wg has changed is not kept: {failure.value}")

    # -- what the core asks -------------------------------------------------------------------

    def _event(self, event: object) -> None:
        if isinstance(event, LeaseRequested | LeaseLost | SessionEnded) or (
            isinstance(event, SessionConfirmed) and event.new
        ):
            self._names.changed()
        if isinstance(event, LoginRequested):
            # Who may not log in has no key in the core; nothing else can refuse yet.
            self.core.login_decided(event.id, True, boottime())
        elif isinstance(event, LeaseRequested):
            self.core.lease_decided(event.id, self._lease(event), boottime())
            self._records.keep((event.user, event.device))
        elif isinstance(event, LeaseLost):
            self._records.keep((event.user, event.device))
        elif isinstance(event, SessionConfirmed):
            self._records.keep((event.user, event.device))
            if event.new:
                self._log.info(
                    "{user} is connected from {endpoint}", user=event.user, endpoint=event.endpoint
                )
        elif isinstance(event, SessionEnded):
            self._log.info("{user} is disconnected: {reason}", user=event.user, reason=event.reason)
        elif isinstance(event, ConfigRefused):
            self._log.warn(
                "{user}'s machine could not apply what it was told of the network (status"
                " {status}): its routes and name servers are as before",
                user=event.user,
                status=event.status,
            )
        elif isinstance(event, WireGuardConnected):
            if event.new:
                self._log.info(
                    "WireGuard peer {name} is connected from {endpoint}",
                    name=self.peers.name_of(event.public_key),
                    endpoint=event.endpoint,
                )
        elif isinstance(event, WireGuardDisconnected):
            self._log.info(
                "WireGuard peer {name} is disconnected: {reason}",
                name=self.peers.name_of(event.public_key),
                reason=event.reason,
            )
        elif isinstance(event, PortLost):
            self._port_lost(event)

    def _lease(self, request: LeaseRequested) -> Lease | ByeReason:
        holder = (request.user, request.device)
        if not self._make_room(holder):
            return ByeReason.TOO_MANY_DEVICES
        try:
            return self._pool.lease(
                holder, request.wanted4, request.wanted6, int(time.time()), self._connected
            )
        except PoolExhausted:
            return ByeReason.POOL_FULL
        except AddressTaken:
            return ByeReason.ADDRESS_TAKEN

    def _make_room(self, holder: Holder) -> bool:
        """Tell whether a device may be added; one unseen for 30 days gives way for it."""
        devices = {
            key: device for key, device in self._store.devices().items() if key[0] == holder[0]
        }
        if holder in devices or len(devices) < DEVICES_PER_USER:
            return True
        oldest = min(devices, key=lambda key: devices[key].last_seen)
        if self._connected(oldest) or time.time() - devices[oldest].last_seen < KEEP_UNSEEN:
            return False
        self.core.forget_device(*oldest, boottime())
        self._pool.release(oldest)
        self._store.remove_device(*oldest).addErrback(self._records.failed)
        return True

    def _connected(self, holder: Holder) -> bool:
        peer = self.core.peer(*holder)
        return peer is not None and peer.current is not None

    # -- the control socket ---------------------------------------------------------------------

    def _command(self, command: str, arguments: dict[str, Any]) -> Deferred[dict[str, Any]]:
        return self._administration.run(command, arguments)

    def user_changed(self, name: str, public_key: bytes | None, reason: ByeReason) -> None:
        """Let a user log in with a key, or no more; see :class:`pyvpn.admin.LiveHub`."""
        now = boottime()
        self._names.changed()
        if public_key is not None:
            self.core.set_user(name, public_key, now)
        else:
            self.core.remove_user(name, reason, now)
        if name not in self._store.users():
            for holder in [holder for holder in self._pool.leases() if holder[0] == name]:
                self._pool.release(holder)
                self.core.forget_device(*holder, now)
        self.protocol.transmit()

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows."""
        now = boottime()
        return {
            "role": "server",
            "uptime": now - self._started,
            "port": self._udp.localPort,
            "endpoint": self._store.setting(ENDPOINT_SETTING),
            "addresses": hubnetwork.interfaces(self._pool),
            "network": self.network.status(),
            **statistics.of_ports(self._tun, self._udp),
            "clock_behind": self.core.clock_behind(),
            "sessions": [statistics.of_session(peer, now) for peer in self.core.connected_peers()],
            "wireguard_sessions": [
                statistics.of_stock_session(record, peer, now)
                for record, peer in self.peers.connected()
            ],
            "counters": self._traffic_counters(),
        }
