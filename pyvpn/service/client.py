"""A client as a service."""

from __future__ import annotations

import socket
import time
from functools import partial
from ipaddress import IPv6Address
from typing import Any

from twisted.internet.defer import Deferred
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
from pyvpn.errors import ConfigError, StartError, StoreError, VPNError
from pyvpn.linux.cpu import wants_aes
from pyvpn.service import statistics
from pyvpn.service.base import Surroundings
from pyvpn.service.clientnetwork import Wishes
from pyvpn.service.resolver import Resolved
from pyvpn.service.tunnelclient import TunnelClient
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

#: What a CONFIG_ACK says where it is not "applied".
NOT_APPLIED = 1


class ClientService(TunnelClient):
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
        self._question: object | None = None
        self._news: tuple[Config, int] | None = None
        self._applying = False
        self._problem = ""

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
        self._open_setup(
            config.tun, wishes_of(config), hub=self._outside, route=self.core.set_routes
        )

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
        self._udp.set_mark(self._surroundings.mark)

    def _serve(self) -> None:
        # Before anything is served: it takes 0.4 s, and nobody waits for us yet.
        key = self._make_key()
        self._serve_setup()
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
            self._settling.changed()

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
            self._log.info("packets of {mtu} bytes reach the hub whole", mtu=event.mtu)
            self._path_takes(event.mtu)
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
        if self._question is None:
            self._ask()

    def _ask(self) -> None:
        question = self._question = object()
        servers = [host_port(server, 0) for server in self._config.servers]
        self._resolver.resolve(servers).addCallback(self._resolved, question)

    def _look_again(self) -> Deferred[list[str]]:
        """Do what follows from other networks around us; whom we asked in the old one is silent."""
        if self._question is not None:
            self._ask()
        return super()._look_again()

    def _resolved(self, found: Resolved, question: object) -> None:
        if question is not self._question:
            return
        self._question = None
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

    # -- the network ----------------------------------------------------------------------------

    def _apply(self, config: Config, revision: int) -> None:
        """Bring the network to the hub's last word; of words that come meanwhile only the newest
        waits, since a hub can send them faster than Linux takes them.
        """
        self._news = config, revision
        if not self._applying:
            self._apply_news()

    def _apply_news(self) -> None:
        news, self._news = self._news, None
        if news is None:
            return
        self._applying = True
        config, revision = news
        done = self._network.configure(config)
        done.addCallback(self._applied, revision)
        done.addErrback(self._not_applied, revision)
        done.addCallback(self._applied_all)

    def _applied_all(self, _: object) -> None:
        self._applying = False
        if self._serving:
            self._apply_news()

    def _applied(self, lines: list[str], revision: int) -> None:
        self._note(lines)
        self._problem = ""
        if self._serving:
            self.core.config_applied(revision, boottime())
            self.protocol.transmit()
        self._log.info(
            "connected; this machine is {addresses} on {tun}",
            addresses=", ".join(self._network.addresses),
            tun=self._config.tun,
        )

    def _not_applied(self, failure: Failure, revision: int) -> None:
        """Without a network there is nothing to stay for; with one, news that cannot be are told
        to people and to the hub, and what was stays.
        """
        self._problem = failure.getErrorMessage()
        if self._network.plan is None or not failure.check(VPNError):
            self._broken(failure)
            return
        self._log.error(
            "what the hub says now is not applied, what was stays: {line}", line=self._problem
        )
        if self._serving:
            self.core.config_applied(revision, boottime(), NOT_APPLIED)
            self.protocol.transmit()

    def _broken(self, failure: Failure) -> None:
        self._die(f"setting up the TUN failed: {failure.getErrorMessage()}")

    def _path_takes(self, mtu: int) -> None:
        done = self._network.path_takes(mtu)
        done.addCallback(self._note)
        done.addErrback(self._mtu_not_set)

    def _mtu_not_set(self, failure: Failure) -> None:
        if not failure.check(VPNError):
            self._broken(failure)
            return
        self._log.error("the MTU stays as it is: {line}", line=failure.getErrorMessage())

    def _ports(self) -> tuple[int, ...]:
        return (self._udp.localPort, *self._resolver.ports)

    def _outside(self) -> tuple[str, ...]:
        """The hub's outer address, if there is a session with it."""
        endpoint = self.core.hub.endpoint
        if endpoint is None:
            return ()
        address = IPv6Address(endpoint.wire_address()[:16])
        return (str(address.ipv4_mapped or address),)

    # -- the control socket ---------------------------------------------------------------------

    def _command(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "status":
            return self.status()
        if command == "traffic":
            return self._send_all(arguments)
        raise ConfigError(f"a client has no command '{command}'; it has: status, traffic")

    def _send_all(self, arguments: dict[str, Any]) -> Deferred[dict[str, Any]]:
        """{what: all or vpn} → {notes}: what goes through the hub, until the client ends."""
        what = arguments.get("what")
        if what not in ("all", "vpn"):
            raise ConfigError("traffic: what must be 'all' or 'vpn'")
        return self._network.send_all(what == "all").addCallback(self._switched)

    def _switched(self, lines: list[str]) -> dict[str, Any]:
        self._note(lines)
        return {"notes": [line for line in lines if line.startswith("note:")]}

    def status(self) -> dict[str, Any]:
        """What ``pyvpn status`` shows."""
        hub = self.core.hub
        return {
            "role": "client",
            "profile": self._config.profile,
            "state": self.core.state.value,
            "server": str(hub.endpoint) if hub.endpoint else ", ".join(self._config.servers),
            "user": self._config.user,
            "addresses": self._network.addresses,
            "problem": self._problem,
            **self._network.status(),
            **statistics.of_peer(hub),
            **statistics.of_ports(self._tun, self._udp),
            "last_heard": None if hub.last_heard is None else boottime() - hub.last_heard,
            "counters": self._traffic_counters(),
        }


def wishes_of(config: ClientConfig) -> Wishes:
    """What the options say."""
    return Wishes(
        all_traffic=config.all_traffic,
        lan_access=config.lan_access,
        include=config.include,
        exclude=config.exclude,
        routes=not config.no_routes,
        dns=not config.no_dns,
        share=config.share,
        kill_switch=config.kill_switch,
        mtu=config.mtu,
        peer=config.tun_dstaddr,
        netmask=config.tun_netmask,
    )
