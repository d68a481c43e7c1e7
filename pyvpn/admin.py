"""What administrators may do to a network, whoever asks: a command line, or a live hub's socket.

Each command takes a dict of texts and answers with a dict that JSON can carry. Passwords never come
here: whoever asks has made the user's public key from the password already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from shlex import quote
from typing import Any, Final, Protocol, TypeVar

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, DeferredLock

from pyvpn.core.control import ByeReason
from pyvpn.core.leases import AddressPool
from pyvpn.errors import ConfigError, VPNError
from pyvpn.network_admin import SET_ARGUMENTS, Live, NetworkAdministration
from pyvpn.peers import NewPeer, StockPeers, addresses_of, restored_leases
from pyvpn.state.directory import StateDirectory
from pyvpn.state.interface import AuditRecord, Device, IStore, User, WireGuardPeerRecord
from pyvpn.state.network import HubNetwork
from pyvpn.token import MAX_LINK_ADDRESSES, JoinLink, host_and_port, user_name
from pyvpn.wgconf import (
    NO_PSK,
    format_key,
    parse_allowed_ips,
    parse_endpoint,
    parse_keepalive,
    parse_key,
)

T = TypeVar("T")

#: The store's setting with the hub's public addresses, ``host:port`` joined by commas.
ENDPOINT_SETTING = "endpoint"


#: The largest inner MTU of stock peers: it fits in 1,500 bytes of IPv6 (PROTOCOL 5).
PEER_MTU: Final = 1416


class LiveHub(Protocol):
    """A running hub, as far as administration touches it.

    :ivar peers: its stock WireGuard peers.
    :ivar network: what it offers to its clients.
    """

    peers: StockPeers

    @property
    def network(self) -> Live: ...

    def user_changed(self, name: str, public_key: bytes | None, reason: ByeReason) -> None:
        """A user's row was written.

        :param public_key: 32 bytes with which this user may log in from now on, or None: no more.
        :param reason: told to sessions that end because of it.
        """

    def status(self) -> dict[str, Any]:
        """What runs, in values that JSON can carry."""


@frozen
class _Command:
    run: Callable[[Administration, dict[str, str]], Coroutine[Any, Any, dict[str, Any]]]
    arguments: frozenset[str]
    optional: frozenset[str] = frozenset()


class Administration:
    """The commands of one network, one at a time.

    :param store: open, and written by this process alone.
    :param state: the directory with the network token, for join links.
    :param hub: the running hub that each change is told to after it is durable; None without one.
    :param wall_clock: Unix time in nanoseconds.
    """

    def __init__(
        self,
        store: IStore,
        state: StateDirectory,
        hub: LiveHub | None = None,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._state = state
        self._hub = hub
        self._wall_clock = wall_clock
        # Between looking a name up and writing it no other command may come.
        self._turn = DeferredLock()
        self._peers = None if hub is None else hub.peers
        live = None if hub is None else hub.network
        self._network = NetworkAdministration(store, live, self._audit)

    def run(self, command: str, arguments: dict[str, Any]) -> Deferred[dict[str, Any]]:
        """Do one command.

        The Deferred fails with :class:`ConfigError` for an unknown command or a wrong argument, and
        with :class:`StoreError` if the change could not be made durable. Nothing is raised.
        """
        return self._turn.run(self._run, command, arguments)

    def _run(self, command: str, arguments: dict[str, Any]) -> Deferred[dict[str, Any]]:
        known = _COMMANDS.get(command)
        if known is None:
            raise ConfigError(f"unknown command {command!r}; known are {', '.join(_COMMANDS)}")
        if not isinstance(arguments, dict) or set(arguments) - known.optional != known.arguments:
            wanted = ", ".join(sorted(known.arguments)) or "none"
            raise ConfigError(f"{command}: wrong arguments; expected: {wanted}")
        for name, value in arguments.items():
            if not isinstance(value, str):
                raise ConfigError(f"{command}: {name} must be text")
        return Deferred.fromCoroutine(known.run(self, arguments))

    async def user_add(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name, public_key in hex} → {user}: a new account, enabled."""
        name = user_name(arguments["name"])
        key = _public_key(arguments["public_key"])
        if name in self._store.users():
            raise ConfigError(
                f"user '{name}' exists already; for a new password: pyvpn user passwd {quote(name)}"
            )
        if any(peer.name == name for peer in self._store.peers().values()):
            raise ConfigError(f"there is a WireGuard peer '{name}'; choose another name")
        self._check_not_a_peer(key)
        return await self._change(User(name, key, True, self._now()), "user_added")

    async def user_passwd(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name, public_key in hex} → {user}: a new password."""
        user = self._existing(arguments)
        key = _public_key(arguments["public_key"])
        self._check_not_a_peer(key)
        return await self._change(evolve(user, public_key=key), "user_password_changed")

    async def user_enable(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {user}: logins are granted again; live sessions are not disturbed."""
        user = self._existing(arguments)
        if user.enabled:
            return {"user": _user_row(user)}
        return await self._change(evolve(user, enabled=True), "user_enabled")

    async def user_disable(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {user}: no more logins, and live sessions end."""
        return await self._change(evolve(self._existing(arguments), enabled=False), "user_disabled")

    async def user_remove(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {name, routes, warnings}: the account, its devices and their leases are gone,
        and the routes to networks behind them, which the answer names."""
        name = self._existing(arguments).name
        await self._store.remove_user(name)
        if self._hub is not None:
            self._hub.user_changed(name, None, ByeReason.DISABLED)
        await self._audit(name, "user_removed")
        try:
            return {"name": name, "routes": await self._network.forget_user(name), "warnings": []}
        except VPNError as error:  # whatever it is, the user is gone
            return {"name": name, "routes": [], "warnings": [f"the user's routes stay: {error}"]}

    async def user_list(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {users}: all users by name, each with the devices seen so far."""
        devices: dict[str, list[dict[str, Any]]] = {}
        for _, device in sorted(self._store.devices().items()):
            devices.setdefault(device.user, []).append(_device_row(device))
        users = sorted(self._store.users().items())
        return {"users": [_user_row(u) | {"devices": devices.get(n, [])} for n, u in users]}

    async def invite(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {link}: a join link, which holds the network's secret."""
        user = self._existing(arguments)
        if not user.enabled:
            raise ConfigError(
                f"user '{user.name}' is disabled; first run: pyvpn user enable {quote(user.name)}"
            )
        endpoint = self._store.setting(ENDPOINT_SETTING)
        if not endpoint:
            raise ConfigError(
                "no endpoint is set, so a link could not say where the hub is; set its public "
                "address: pyvpn init --endpoint HOST[:PORT]"
            )
        link = JoinLink(user.name, tuple(endpoint.split(",")), self._state.token).to_text()
        await self._audit(user.name, "user_invited")
        return {"link": link}

    async def endpoint_set(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{endpoint: HOST[:PORT], several with commas} → {endpoint}: what links will say."""
        addresses = [host_and_port(text.strip()) for text in arguments["endpoint"].split(",")]
        if len(addresses) > MAX_LINK_ADDRESSES:
            raise ConfigError(
                f"endpoint: {len(addresses)} addresses, at most {MAX_LINK_ADDRESSES} are allowed"
            )
        endpoint = ",".join(addresses)
        await self._store.set_setting(ENDPOINT_SETTING, endpoint)
        await self._audit(None, "endpoint_set", endpoint)
        return {"endpoint": endpoint}

    async def status(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {running, state_dir, endpoint, users, users_enabled, devices, peers, peers_enabled,
        hub}.

        ``hub`` is what the running hub says of itself, or None.
        """
        users, peers = self._store.users().values(), self._store.peers().values()
        return {
            "running": self._hub is not None,
            "state_dir": str(self._state.path),
            "endpoint": self._store.setting(ENDPOINT_SETTING),
            "users": len(users),
            "users_enabled": sum(user.enabled for user in users),
            "devices": len(self._store.devices()),
            "peers": len(peers),
            "peers_enabled": sum(peer.enabled for peer in peers),
            "hub": None if self._hub is None else self._hub.status(),
        }

    # -- what the network offers ----------------------------------------------------------------

    async def network_show(self, arguments: dict[str, str]) -> dict[str, Any]:
        """See :meth:`NetworkAdministration.show`."""
        return await self._network.show(arguments)

    async def network_set(self, arguments: dict[str, str]) -> dict[str, Any]:
        """See :meth:`NetworkAdministration.set`."""
        return await self._network.set(arguments)

    async def route_add(self, arguments: dict[str, str]) -> dict[str, Any]:
        """See :meth:`NetworkAdministration.route_add`."""
        return await self._network.route_add(arguments)

    async def route_remove(self, arguments: dict[str, str]) -> dict[str, Any]:
        """See :meth:`NetworkAdministration.route_remove`."""
        return await self._network.route_remove(arguments)

    async def route_list(self, arguments: dict[str, str]) -> dict[str, Any]:
        """See :meth:`NetworkAdministration.route_list`."""
        return await self._network.route_list(arguments)

    # -- stock WireGuard peers -----------------------------------------------------------------

    async def peer_add(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name, public_key and psk in base64, allowed_ips with commas, keepalive, endpoint} →
        {name, addresses, hub_public_key, endpoint, networks, internet, dns, search, mtu,
        warnings}: a new peer.

        ``psk`` may be empty. Without ``allowed_ips`` it gets leased addresses alone; those of the
        VPN's own networks in it become its own. ``endpoint`` is ``address:port`` or empty or not
        given. The answer has what the peer's .conf says; its ``endpoint`` is the hub's or None,
        ``networks`` are the VPN's own and those beyond it, ``dns`` and ``search`` are for a peer
        that sends everything through the hub, which makes sense if ``internet`` is true.
        """
        new = NewPeer(
            name=_peer_name(arguments),
            public_key=_parsed(arguments, "public_key", parse_key),
            psk=_parsed(arguments, "psk", parse_key) if arguments["psk"] else NO_PSK,
            networks=_parsed(arguments, "allowed_ips", parse_allowed_ips),
            keepalive=_parsed(arguments, "keepalive", parse_keepalive),
            endpoint=_parsed(arguments, "endpoint", _numeric_endpoint)
            if arguments.get("endpoint")
            else None,
        )
        record, warnings = await self._stock_peers().add(new)
        await self._audit(record.name, "peer_added", format_key(record.public_key))
        warnings += await self._network.follow_peers()
        network = HubNetwork.stored(self._store)
        endpoint = self._store.setting(ENDPOINT_SETTING)
        offered = self._network.offered(without=frozenset(record.allowed_ips))
        return {
            "name": record.name,
            "addresses": addresses_of(record),
            "hub_public_key": format_key(self._stock_peers().hub_public),
            "endpoint": endpoint.split(",")[0] if endpoint else None,
            "networks": [*map(str, network.networks()), *offered.pop("routes")],
            **offered,
            "mtu": min(PEER_MTU, network.mtu),
            "warnings": warnings,
        }

    async def peer_list(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {peers}: all by name; those that the hub has in use with what it knows of them."""
        records = sorted(self._store.peers().values(), key=lambda record: record.name)
        return {"peers": [self._peer_row(record) for record in records]}

    async def peer_enable(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {peer, warnings}: it may connect again."""
        record, warnings = await self._stock_peers().enable(_peer_name(arguments))
        await self._audit(record.name, "peer_enabled")
        warnings += await self._network.follow_peers()
        return {"peer": self._peer_row(record), "warnings": warnings}

    async def peer_disable(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {peer}: it may connect no more; its session ends, its addresses stay."""
        record = await self._stock_peers().disable(_peer_name(arguments))
        await self._audit(record.name, "peer_disabled")
        await self._network.follow_peers()
        return {"peer": self._peer_row(record)}

    async def peer_remove(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name} → {name}: the peer is forgotten, and its addresses are free."""
        record = await self._stock_peers().remove(_peer_name(arguments))
        await self._audit(record.name, "peer_removed")
        await self._network.follow_peers()
        return {"name": record.name}

    async def peer_export(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{} → {hub_private_key, port, addresses, peers}: what a .conf of the hub says.

        The rows of ``peers`` are those of :meth:`peer_list` with ``psk`` besides.
        """
        network = HubNetwork.stored(self._store)
        records = sorted(self._store.peers().values(), key=lambda record: record.name)
        await self._audit(None, "peers_exported")
        return {
            "hub_private_key": format_key(self._state.wireguard_private),
            "port": network.port,
            "addresses": network.addresses(),
            "mtu": network.mtu,
            "peers": [
                self._peer_row(record)
                | {"psk": format_key(record.psk) if record.psk != NO_PSK else ""}
                for record in records
            ],
        }

    def _stock_peers(self) -> StockPeers:
        """The hub's peers; without a running hub, those that it would start with."""
        if self._peers is None:
            network = HubNetwork.stored(self._store)
            pool = AddressPool(network.subnet, network.subnet6)
            self._peers = StockPeers(
                self._store, pool, self._state.wireguard_public, wall_clock=self._wall_clock
            )
            self._peers.restore()
            restored_leases(pool, self._store)
        return self._peers

    def _peer_row(self, record: WireGuardPeerRecord) -> dict[str, Any]:
        peer = None if self._peers is None else self._peers.in_core(record.public_key)
        endpoint = record.endpoint if peer is None else peer.endpoint
        return {
            "name": record.name,
            "public_key": format_key(record.public_key),
            "addresses": addresses_of(record),
            "allowed_ips": list(record.allowed_ips),
            "keepalive": record.keepalive,
            "enabled": record.enabled,
            "created": record.created,
            "endpoint": None if endpoint is None else str(endpoint),
            "last_handshake": 0 if peer is None else peer.last_handshake // 1_000_000_000,
            "rx_bytes": 0 if peer is None else peer.rx_bytes,
            "tx_bytes": 0 if peer is None else peer.tx_bytes,
        }

    def _check_not_a_peer(self, public_key: bytes) -> None:
        peer = self._store.peers().get(public_key)
        if peer is not None:
            raise ConfigError(f"public_key: the WireGuard peer '{peer.name}' has this key")

    # -- all -----------------------------------------------------------------------------------

    async def _change(self, user: User, event: str) -> dict[str, Any]:
        """Write a row, then tell the hub, then the audit log: a revocation waits for no log."""
        await self._store.put_user(user)
        if self._hub is not None:
            if user.enabled:
                # Sessions that an old password opened must come again with the new one.
                self._hub.user_changed(user.name, user.public_key, ByeReason.RESTARTING)
            else:
                self._hub.user_changed(user.name, None, ByeReason.DISABLED)
        await self._audit(user.name, event)
        return {"user": _user_row(user)}

    async def _audit(self, user: str | None, event: str, detail: str = "") -> None:
        await self._store.add_audit([AuditRecord(self._now(), user, event, detail)])

    def _existing(self, arguments: dict[str, str]) -> User:
        name = user_name(arguments["name"])
        user = self._store.users().get(name)
        if user is None:
            raise ConfigError(f"there is no user '{name}'; to see all: pyvpn user list")
        return user

    def _now(self) -> int:
        return self._wall_clock() // 1_000_000_000


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32 or len(text) != 64:
        raise ConfigError("public_key: expected 64 hexadecimal digits")
    return key


def _peer_name(arguments: dict[str, str]) -> str:
    """A peer's name: what may be a user's, since people tell them apart by name alone."""
    try:
        return user_name(arguments["name"])
    except ConfigError as error:
        raise ConfigError(error.message.replace("user name", "peer name", 1)) from None


def _parsed(arguments: dict[str, str], key: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(arguments[key])
    except ConfigError as error:
        raise ConfigError(error.message, key=key) from None


def _numeric_endpoint(text: str) -> str:
    """``ADDRESS:PORT``: the hub asks no name server."""
    endpoint = parse_endpoint(text)
    try:
        ip_address(endpoint.rpartition(":")[0].strip("[]"))
    except ValueError:
        raise ConfigError(f"'{text}' is no numeric address with a port") from None
    return endpoint


def _user_row(user: User) -> dict[str, Any]:
    return {"name": user.name, "enabled": user.enabled, "created": user.created}


def _device_row(device: Device) -> dict[str, Any]:
    return {
        "device_id": device.device_id.hex(),
        "name": device.name,
        "ipv4": device.ipv4,
        "ipv6": device.ipv6,
        "last_seen": device.last_seen,
    }


_NOTHING: frozenset[str] = frozenset()
_NAME = frozenset({"name"})
_NETWORK = frozenset({"network"})
_NAME_AND_KEY = frozenset({"name", "public_key"})
_COMMANDS: dict[str, _Command] = {
    "user_add": _Command(Administration.user_add, _NAME_AND_KEY),
    "user_passwd": _Command(Administration.user_passwd, _NAME_AND_KEY),
    "user_list": _Command(Administration.user_list, _NOTHING),
    "user_disable": _Command(Administration.user_disable, _NAME),
    "user_enable": _Command(Administration.user_enable, _NAME),
    "user_remove": _Command(Administration.user_remove, _NAME),
    "invite": _Command(Administration.invite, _NAME),
    "endpoint_set": _Command(Administration.endpoint_set, frozenset({"endpoint"})),
    "peer_add": _Command(
        Administration.peer_add,
        frozenset({"name", "public_key", "psk", "allowed_ips", "keepalive"}),
        frozenset({"endpoint"}),
    ),
    "peer_list": _Command(Administration.peer_list, _NOTHING),
    "peer_enable": _Command(Administration.peer_enable, _NAME),
    "peer_disable": _Command(Administration.peer_disable, _NAME),
    "peer_remove": _Command(Administration.peer_remove, _NAME),
    "peer_export": _Command(Administration.peer_export, _NOTHING),
    "network_show": _Command(Administration.network_show, _NOTHING),
    "network_set": _Command(Administration.network_set, _NOTHING, SET_ARGUMENTS),
    "route_add": _Command(Administration.route_add, _NETWORK, frozenset({"via"})),
    "route_remove": _Command(Administration.route_remove, _NETWORK),
    "route_list": _Command(Administration.route_list, _NOTHING),
    "status": _Command(Administration.status, _NOTHING),
}
