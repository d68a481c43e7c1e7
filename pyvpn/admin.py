"""What administrators may do to a network, whoever asks: a command line, or a live hub's socket.

Each command takes a dict of texts and answers with a dict that JSON can carry. Passwords never come
here: whoever asks has made the user's public key from the password already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from shlex import quote
from typing import Any, Protocol

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, DeferredLock

from pyvpn.core.control import ByeReason
from pyvpn.errors import ConfigError
from pyvpn.state.directory import StateDirectory
from pyvpn.state.interface import AuditRecord, Device, IStore, User
from pyvpn.token import MAX_LINK_ADDRESSES, JoinLink, host_and_port, user_name

#: The store's setting with the hub's public addresses, ``host:port`` joined by commas.
ENDPOINT_SETTING = "endpoint"


class LiveHub(Protocol):
    """A running hub, as far as administration touches it."""

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
        if not isinstance(arguments, dict) or set(arguments) != known.arguments:
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
        return await self._change(User(name, key, True, self._now()), "user_added")

    async def user_passwd(self, arguments: dict[str, str]) -> dict[str, Any]:
        """{name, public_key in hex} → {user}: a new password."""
        user = self._existing(arguments)
        key = _public_key(arguments["public_key"])
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
        """{name} → {name}: the account, its devices and their leases are gone."""
        name = self._existing(arguments).name
        await self._store.remove_user(name)
        if self._hub is not None:
            self._hub.user_changed(name, None, ByeReason.DISABLED)
        await self._audit(name, "user_removed")
        return {"name": name}

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
        """{} → {running, state_dir, endpoint, users, users_enabled, devices, hub}.

        ``hub`` is what the running hub says of itself, or None.
        """
        users = self._store.users().values()
        return {
            "running": self._hub is not None,
            "state_dir": str(self._state.path),
            "endpoint": self._store.setting(ENDPOINT_SETTING),
            "users": len(users),
            "users_enabled": sum(user.enabled for user in users),
            "devices": len(self._store.devices()),
            "hub": None if self._hub is None else self._hub.status(),
        }

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
    "status": _Command(Administration.status, _NOTHING),
}
