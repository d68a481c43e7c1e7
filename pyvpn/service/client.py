"""A client as a service."""

from __future__ import annotations

import socket
import time
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from pyvpn.config import ClientConfig
from pyvpn.core.client import (
    VPNClient,
)
from pyvpn.core.control import ByeReason, Config
from pyvpn.core.events import (
    Configured,
    Connected,
    Disconnected,
    MTUFound,
    NoAnswer,
    NotGranted,
    Refused,
    ResolveServer,
    StampUsed,
)
from pyvpn.core.login import LoginFlags, NetworkKeys, password_key
from pyvpn.core.noise import KeyPair
from pyvpn.core.segments import PREFIX_SIZE
from pyvpn.core.transport import datagrams_a_send
from pyvpn.core.vpncore import DEFAULT_INNER_MTU as INNER_MTU
from pyvpn.errors import ConfigError, StartError, StoreError
from pyvpn.linux.cpu import wants_aes
from pyvpn.linux.desired import Address, Link, SystemState
from pyvpn.linux.preflight import ipv6_available, subnet_free
from pyvpn.service import statistics
from pyvpn.service.base import Surroundings, VPNService
from pyvpn.service.childport import ChildPort
from pyvpn.service.resolver import Resolved, Resolver
from pyvpn.service.twistd import Process
from pyvpn.state.identity import ClientIdentity
from pyvpn.tx.linkmonitor import LinkMonitor
from pyvpn.tx.protocol import PortLost, VPNClientProtocol
from pyvpn.tx.timer import boottime
from pyvpn.tx.udp import UDPPort
from pyvpn.values import host_port

#: Said when nobody answers; a hub tells nobody which of these it is (docs/protocol.rst, "Login").
NO_ANSWER = (
    "no answer from {server}: wrong user or password, account disabled, wrong token, this machine's"
    " clock, UDP blocked, or the hub is down; trying on"
)

#: Said when --cipher pins what the hub does not do.
CIPHER_NOT_GRANTED = (
    "the hub does not grant AES-256-GCM, which --cipher asks for; leave that option out, or start"
    " the hub with --cipher aes-256-gcm"
)

_REFUSALS: dict[int, str] = {
    ByeReason.DISABLED: "the account was disabled",
    ByeReason.EXPIRED: "the account has expired",
    ByeReason.QUOTA: "the account's quota is used up",
    ByeReason.ADDRESS_TAKEN: "the address asked for is not free",
    ByeReason.TOO_MANY_DEVICES: "this user has too many devices",
    ByeReason.POOL_FULL: "the network has no address left",
}

LARGEST_MTU = 65535

#: What Linux takes off the bound of super-packets for headers (net/tcp.h, MAX_TCP_HEADER; and 1),
#: and that bound at most.
_TCP_HEADROOM = 321
LARGEST_GSO_SIZE = 65_536


class ClientService(VPNService):
    """A client: logs in, applies what the hub says, stays connected.

    It never has a second thread (docs/architecture.rst, "Decisions"): what would block beside the
    traffic is done by processes.

    :param config: checked settings.
    :param password: the user's; only the key made of it is kept.
    :param process: the twistd process around it, None when embedded elsewhere.
    """

    core: VPNClient

    def __init__(
        self,
        config: ClientConfig,
        password: str,
        process: Process | None = None,
        surroundings: Surroundings | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__(config.files, process, surroundings or Surroundings(), reactor)
        self._config = config
        self._password = password
        self._key: KeyPair | None = None
        self._applying = DeferredLock()
        self._resolving = False
        self._applied: tuple[str, ...] = ()
        self._told: Config | None = None
        self._mtu_found = INNER_MTU

    # -- starting -----------------------------------------------------------------------------

    def _open(self) -> None:
        config = self._config
        self._open_directory(config.run_dir)
        self._open_directory(config.state_dir)
        self._open_directory(config.state_dir / "clients")
        token = config.token
        self._identity = ClientIdentity.load(
            config.state_dir, token.login_public, config.user, self._surroundings.random_bytes
        )
        wanted = config.tun_addr
        self.core = VPNClient(
            keys=NetworkKeys.derive(token.login_public, token.network_secret),
            user=config.user,
            device=self._identity.device,
            device_name=socket.gethostname()[:32],
            last_stamp=self._identity.last_stamp,
            wanted4=None if isinstance(wanted, IPv6Address) else wanted,
            wanted6=wanted if isinstance(wanted, IPv6Address) else None,
            flags=self._offers(),
            required=self._requires(),
            inner_mtu=config.mtu or LARGEST_MTU,
            poll_interval=config.poll_interval,
            wall_clock=time.time_ns,
            random_bytes=self._surroundings.random_bytes,
        )
        self._open_network()
        self._open_child()

    def _offers(self) -> LoginFlags:
        flags = LoginFlags.SEGMENT_FRAMES
        if wants_aes(self._config.cipher):
            flags |= LoginFlags.AES_256_GCM
        if self._config.deliver == "poll":
            flags |= LoginFlags.DELIVER_ON_POLL
        return flags

    def _requires(self) -> LoginFlags:
        # ChaCha20-Poly1305 needs no word here: a hub cannot choose what was not offered.
        pinned = self._config.cipher == "aes-256-gcm"
        return LoginFlags.AES_256_GCM if pinned else LoginFlags(0)

    def _open_network(self) -> None:
        """Open UDP and TUN; a busy port that nobody asked for gives way to a free one."""
        config = self._config
        protocol = VPNClientProtocol(self.core, self._event)
        make_port = partial(
            UDPPort,
            protocol=protocol,
            interface=config.interface or "",
            reactor=self._reactor,
            pin_source=False,
        )
        fallback = None if config.port_explicit else make_port(0)
        self._open_ports(protocol, make_port(config.port), config.tun, fallback)

    def _serve(self) -> None:
        # Before anything is served: it takes 0.4 s, and nobody waits for us yet.
        key = self._make_key()
        self._checked: frozenset[IPv4Network | IPv6Network] = frozenset()
        self._child_port = ChildPort(self._child, self._reactor)
        self._undo.push("stop waiting for the privileged child", self._child_port.close)
        self._resolver = Resolver(self._reactor)
        self._undo.push("stop looking up names", self._resolver.close)
        self._begin_traffic()
        monitor = LinkMonitor(self._link_changed, self._reactor)
        self._undo.push("stop watching the network", monitor.close)
        self._listen(self._command)
        # A name is looked up by a process, whose end only a running reactor notices.
        self._reactor.callWhenRunning(self._log_in, key)

    def _make_key(self) -> KeyPair:
        """Make the key of the password once, and forget the password.

        :raises StartError: scrypt cannot have its memory, 128 MiB with the usual token.
        """
        if self._key is None:
            token = self._config.token
            try:
                private = password_key(
                    self._password,
                    self._config.user,
                    token.password_salt,
                    token.log_n,
                    token.r,
                    token.p,
                )
            except Exception as error:
                why = str(error) or type(error).__name__
                raise StartError(f"making the key of the password failed: {why}") from error
            self._key = KeyPair.of(private)
            self._password = ""
        return self._key

    def _log_in(self, key: KeyPair) -> None:
        if not self._serving:
            return
        self.core.start(key, boottime())
        self.protocol.transmit()

    def _link_changed(self) -> None:
        if self._serving and self.core.running:
            self.core.link_changed(boottime())
            self.protocol.transmit()

    def _farewell(self) -> None:
        if self.core.running:
            self.core.stop(boottime())

    # -- what the core tells --------------------------------------------------------------------

    def _event(self, event: object) -> None:
        server = ", ".join(self._config.servers)
        if isinstance(event, ResolveServer):
            self._resolve()
        elif isinstance(event, StampUsed):
            self._identity.last_stamp = event.nanoseconds
            self._save()
        elif isinstance(event, Connected):
            self._log.info("{endpoint} has let us in", endpoint=event.endpoint)
            if LoginFlags.DELIVER_ON_POLL in self._offers() & ~event.flags:
                self._log.warn("this hub delivers at once, not on polls")
        elif isinstance(event, Configured):
            self._apply(event.config, event.revision)
        elif isinstance(event, MTUFound):
            self._mtu_found = event.mtu
            self._log.info("packets of {mtu} bytes reach the hub whole", mtu=event.mtu)
            self._set_mtu()
        elif isinstance(event, NotGranted):
            # All that is ever required; nothing gets better by trying on.
            self._die(CIPHER_NOT_GRANTED)
        elif isinstance(event, NoAnswer):
            self._log.warn("{line}", line=NO_ANSWER.format(server=server))
        elif isinstance(event, Disconnected):
            self._log.warn("disconnected: {reason}; trying on", reason=event.reason)
        elif isinstance(event, Refused):
            why = _REFUSALS.get(event.reason, f"reason {event.reason}")
            self._log.warn("the hub refuses us: {why}; next try in 5 minutes", why=why)
        elif isinstance(event, PortLost):
            self._port_lost(event)

    def _save(self) -> None:
        try:
            self._identity.save()
        except StoreError as error:
            self._log.error("{reason}", reason=error)

    # -- the server's name ----------------------------------------------------------------------

    def _resolve(self) -> None:
        """Look the servers' names up, once at a time: a dead resolver takes half a minute."""
        if self._resolving:
            return
        self._resolving = True
        servers = [host_port(server, 0) for server in self._config.servers]
        self._resolver.resolve(servers).addCallback(self._resolved)

    def _resolved(self, found: Resolved) -> None:
        self._resolving = False
        if not self._serving:
            return
        endpoints = []
        for host, port in found.places:
            try:
                endpoints.append(self._udp.endpoint(host, port))
            except ValueError:
                continue  # IPv6, while this kernel has none
        if not endpoints:
            for problem in found.problems:
                self._log.warn("{problem}; trying on", problem=problem)
        self.core.server_resolved(endpoints, boottime())
        self.protocol.transmit()

    # -- configuration --------------------------------------------------------------------------

    def _apply(self, config: Config, revision: int) -> None:
        self._told = config
        state = self._system_state(config)
        networks = frozenset(interface.network for interface in config.addresses)
        done = self._applying.run(self._set_up, networks, state)
        done.addCallback(self._applied_now, state, revision)
        done.addErrback(self._broken, "setting up the TUN")

    def _set_up(
        self, networks: frozenset[IPv4Network | IPv6Network], state: SystemState
    ) -> Deferred[list[str]]:
        """Set the TUN up, unless the hub's networks are in use here already."""
        # It asks `ip` and blocks for some milliseconds. With other networks than before nothing is
        # being served; the same ones come with every login, and have been on the TUN since.
        if networks != self._checked:
            remedy = "this machine cannot be in both networks"
            subnet_free(networks, ours=self._config.tun, remedy=remedy)
            self._checked = networks
        return self._child_port.apply(state)

    def _applied_now(self, lines: list[str], state: SystemState, revision: int) -> None:
        self._note(lines)
        if self._serving:
            self.core.config_applied(revision, boottime())
            self.protocol.transmit()
        self._applied = tuple(address.interface for address in state.links[0].addresses)
        self._log.info(
            "connected; this machine is {addresses} on {tun}",
            addresses=", ".join(self._applied),
            tun=self._config.tun,
        )

    def _set_mtu(self) -> None:
        """Let the TUN take what reaches the hub: the addresses stay as they are."""
        if self._told is None:
            return
        state = self._system_state(self._told)
        done = self._applying.run(self._child_port.apply, state)
        done.addCallback(self._note)
        done.addErrback(self._broken, "setting the TUN's MTU")

    def _system_state(self, config: Config) -> SystemState:
        """Return what the hub's word means for Linux, under the options given."""
        addresses = []
        for interface in config.addresses:
            if interface.version == 6 and not ipv6_available():
                continue
            peer = self._config.tun_dstaddr
            if isinstance(interface, IPv4Interface) and self._config.tun_netmask is not None:
                interface = IPv4Interface((interface.ip, self._config.tun_netmask))
            if peer is None or peer.version != interface.version:
                addresses.append(Address(str(interface)))
            elif peer in interface.network:
                addresses.append(Address(str(interface), str(peer)))
            else:
                self._log.warn(
                    "--tun-dstaddr {peer} is not in the hub's network {network}; going without it",
                    peer=peer,
                    network=interface.network,
                )
                addresses.append(Address(str(interface)))
        # Never less than 1280: the kernel would take the interface's IPv6 addresses away.
        most = min(config.mtu or LARGEST_MTU, self._config.mtu or LARGEST_MTU)
        mtu = min(most, self._mtu_found)
        return SystemState(
            links=(Link(self._config.tun, mtu, tuple(addresses), gso_max_size(mtu)),)
        )

    def _broken(self, failure: Failure, doing: str) -> None:
        self._die(f"{doing} failed: {failure.getErrorMessage()}")

    # -- the control socket ---------------------------------------------------------------------

    def _command(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command != "status":
            raise ConfigError(f"a client has no command '{command}'; it has: status")
        return self.status()

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows."""
        hub = self.core.hub
        return {
            "role": "client",
            "profile": self._config.profile,
            "state": self.core.state.value,
            "server": str(hub.endpoint) if hub.endpoint else ", ".join(self._config.servers),
            "user": self._config.user,
            "addresses": list(self._applied),
            **statistics.of_peer(hub),
            **statistics.of_ports(self._tun, self._udp),
            "last_heard": None if hub.last_heard is None else boottime() - hub.last_heard,
            "counters": self._traffic_counters(),
        }


def gso_max_size(mtu: int) -> int:
    """Return the bound for our own kernel's super-packets with which each of TCP is one send.

    44 pieces with 1,436 bytes of MTU, in place of 47 in two sends: 5 to 8 % less processor time.
    By bytes, not by segments, which would end UDP super-packets of many small ones. And not on a
    hub: there super-packets come through that others have made, and the kernel cuts longer ones
    into single packets.
    """
    # Below one piece more, even of the shortest: IPv6 and TCP with time stamps.
    size = (datagrams_a_send(mtu + PREFIX_SIZE) + 1) * (mtu - 72) - 1 + _TCP_HEADROOM
    return min(size, LARGEST_GSO_SIZE)
