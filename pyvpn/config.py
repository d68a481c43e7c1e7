"""Options, configuration files and profiles: text from people becomes frozen, checked values.

The parsers of single values are those of :mod:`pyvpn.values`; the loaders here add where a bad
value stands: the file with line and key, or the option. Nothing here touches the network or the
reactor.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final, Literal

from attrs import evolve, frozen

from pyvpn import routes
from pyvpn.errors import ConfigError
from pyvpn.files import replace_file
from pyvpn.token import NetworkToken, user_name
from pyvpn.values import (
    PROFILE_NAME,
    Address,
    Cipher,
    Deliver,
    Network,
    address,
    cipher,
    deliver,
    directory,
    endpoints,
    file_name,
    host_port,
    interface_address,
    interval,
    local_port,
    mtu,
    netmask,
    networks,
    port,
    profile_name,
    subnet4,
    subnet6,
    switch,
    tun_name,
    yes_no,
)

__all__ = [  # the parsers of single values belong to this module's face too
    "Address",
    "Cipher",
    "ClientConfig",
    "Deliver",
    "InstanceFiles",
    "Profile",
    "ServerConfig",
    "WireGuardClientConfig",
    "address",
    "choose_profile",
    "cipher",
    "deliver",
    "directory",
    "endpoints",
    "host_port",
    "interface_address",
    "interval",
    "local_port",
    "mtu",
    "netmask",
    "port",
    "profile_name",
    "profile_names",
    "profile_path",
    "read_password_file",
    "read_text",
    "subnet4",
    "subnet6",
    "tun_name",
    "user_name",
    "write_private_file",
]

SERVER_PORT: Final = 5050  # the ports of 2017, as all defaults here
CLIENT_PORT: Final = 12000
TUN_NAME: Final = "leamit0"
#: The most: a path of 9000 bytes - 48 outer IPv6 and UDP - 32 - 4. Each path's own is found out.
INNER_MTU: Final = 8916
SUBNET: Final = IPv4Network("10.10.0.0/24")
STATE_DIR: Final = Path("/var/lib/pyvpn")
RUN_DIR: Final = Path("/run/pyvpn")
PROFILE_DIR: Final = Path("/etc/pyvpn/clients")

MAX_SOCKET_PATH: Final = 107  # sun_path less the closing zero
MAX_PASSWORD_FILE: Final = 4096  # bytes: more is another file by mistake

JOIN_LINE: Final = "pyvpn join 'pyvpn://…'"
NOT_WITH_RELAY: Final = (
    "clients reach each other all the same with --relay, which goes past the kernel and its rules;"
    " leave one of the two out"
)


@frozen
class _Key:
    """How one key of a file is read: the TOML types it may have, and the parser of its text."""

    types: tuple[type, ...]
    parse: Callable[[str], Any]


def _text(parse: Callable[[str], Any]) -> _Key:
    return _Key((str,), parse)


def _flag() -> _Key:
    return _Key((bool,), switch)


def _integer(parse: Callable[[str], Any]) -> _Key:
    return _Key((int,), parse)


_TYPE_NAMES: Final = {
    str: "text in quotes",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: 'a list like ["a", "b"]',
}


def read_text(path: Path, what: str) -> str:
    """The text of a file, or a ConfigError that names the file and what it should have held."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no such {what}", path=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"this {what} is not UTF-8 text", path=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot read this {what}: {error.strerror}", path=str(path)) from None


def _read_toml(path: Path, what: str, keys: Mapping[str, _Key]) -> dict[str, Any]:
    """The parsed values of a flat TOML file; errors carry file, line and key."""
    text = read_text(path, what)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), None
        if found := re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", message):
            message, line = found[1], int(found[2])
        raise ConfigError(f"not valid TOML: {message}", path=str(path), line=line) from None
    return {key: _file_value(path, text, keys, key, value) for key, value in table.items()}


def _file_value(path: Path, text: str, keys: Mapping[str, _Key], key: str, value: Any) -> Any:
    line = _line_of(text, key)

    def wrong(message: str) -> ConfigError:
        return ConfigError(message, path=str(path), line=line, key=key)

    if key not in keys:
        near = difflib.get_close_matches(key, keys, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(keys))}"
        raise wrong(f"unknown key; {hint}")
    types = keys[key].types
    if type(value) not in types:
        raise wrong(f"must be {' or '.join(_TYPE_NAMES[kind] for kind in types)}")
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        raise wrong(f"must be {_TYPE_NAMES[list]}")
    try:
        return keys[key].parse(",".join(map(_spelled, items)))
    except ConfigError as error:
        raise wrong(error.message) from None


def _line_of(text: str, key: str) -> int | None:
    """The line of a file where a key stands, if it can be found."""
    start = re.search(rf"^[ \t]*\[?[\"']?{re.escape(key)}[\"']?[ \t]*[=\].]", text, re.MULTILINE)
    return text.count("\n", 0, start.start()) + 1 if start else None


def _spelled(item: object) -> str:
    """A value as people write it, which is what the parsers take."""
    return str(item).lower() if isinstance(item, bool) else str(item)


def _options(overrides: Mapping[str, object], keys: Mapping[str, _Key]) -> dict[str, Any]:
    """The parsed values of the known options that were given; errors name the option."""
    values = {}
    for name, given in overrides.items():
        key = name.replace("-", "_")
        if key not in keys or given is None:
            continue
        if keys[key].types == (bool,):
            # A flag can only be given; that it is not given does not take back the file's word.
            if given:
                values[key] = True
            continue
        items = given if isinstance(given, list | tuple) else [given]
        try:
            values[key] = keys[key].parse(",".join(map(_spelled, items)))
        except ConfigError as error:
            raise ConfigError(error.message, path="--" + key.replace("_", "-")) from None
    return values


def _checked_endpoints(text: str) -> str:
    # The default port is another value, known only when all are read.
    endpoints(text, SERVER_PORT)
    return text


def _file(text: str, option: str) -> Path:
    """The path that an option names."""
    try:
        return Path(os.path.expanduser(file_name(text)))
    except ConfigError as error:
        raise ConfigError(error.message, path=option) from None


def read_password_file(text: str) -> str:
    """The password in a file (its first line), or from standard input for ``-``."""
    if text == "-":
        password = sys.stdin.readline()
    else:
        path = _file(text, "--pw-file")
        if path.is_file() and path.stat().st_size > MAX_PASSWORD_FILE:
            raise ConfigError("too long for a password file; write one line", path=text)
        password = read_text(path, "password file")
    password = password.partition("\n")[0].rstrip("\r")
    if not password:
        raise ConfigError("the password is empty; write it on the first line", path=text)
    return password


def write_private_file(path: Path, text: str) -> None:
    """Replace a file whole or not at all, readable by its owner only; makes its directory."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write it: {error.strerror}", path=str(path)) from None


@frozen
class InstanceFiles:
    """Where one running hub (``server``) or client (``client-PROFILE``) keeps its files."""

    pid_file: Path
    socket: Path
    journal: Path
    log: Path

    @classmethod
    def of(cls, instance: str, run_dir: Path, state_dir: Path) -> InstanceFiles:
        """The files of an instance; a run directory too long for a UNIX socket is refused."""
        socket = run_dir / f"{instance}.sock"
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"'{run_dir}' is too long for a socket; choose a shorter directory",
                path="--run-dir",
            )
        return cls(
            pid_file=run_dir / f"{instance}.pid",
            socket=socket,
            journal=run_dir / f"{instance}.journal",
            log=state_dir / "log" / f"{instance}.log",
        )


_SERVER_KEYS: Final[Mapping[str, _Key]] = {
    "port": _integer(port),
    "interface": _text(interface_address),
    "subnet": _text(subnet4),
    "subnet6": _text(subnet6),
    "tun": _text(tun_name),
    "mtu": _integer(mtu),
    "cipher": _text(cipher),
    "relay": _flag(),
    "endpoint": _Key((str, list), _checked_endpoints),
    "internet": _flag(),
    "no_client_to_client": _flag(),
    "dns": _Key((str, list), routes.name_servers),
    "search": _Key((str, list), routes.domains),
    "route": _Key((str, list), routes.routes),
    "exclude": _Key((str, list), routes.excluded),
    "state_dir": _text(directory),
    "run_dir": _text(directory),
}


@frozen
class ServerConfig:
    """All that ``pyvpn-server`` can be told. ``endpoint``: ``HOST:PORT``, several with commas.

    What is None or () of the network that clients are offered is as administrators have set it
    (:class:`pyvpn.state.settings.NetworkOptions`).
    """

    port: int = SERVER_PORT
    interface: str | None = None
    subnet: IPv4Network = SUBNET
    subnet6: Literal["auto"] | IPv6Network | None = "auto"
    tun: str = TUN_NAME
    mtu: int = INNER_MTU
    cipher: Cipher = "auto"
    relay: bool = False
    endpoint: str | None = None
    internet: bool | None = None
    no_client_to_client: bool | None = None
    dns: routes.DNS | None = None
    search: tuple[str, ...] | None = None
    route: tuple[Network, ...] = ()
    exclude: tuple[Network, ...] | None = None
    state_dir: Path = STATE_DIR
    run_dir: Path = RUN_DIR

    @classmethod
    def load(cls, path: str | Path | None, overrides: Mapping[str, object]) -> ServerConfig:
        """The defaults, then the file (if any), then the options given.

        :param path: a TOML file whose keys are the options' names with underscores, or None.
        :param overrides: options by name (hyphens or underscores), text or already numbers;
            None and names that are no setting of the hub are passed over.
        :raises ConfigError: naming file, line and key, or the option.
        """
        values: dict[str, Any] = {}
        if path is not None:
            path = _file(str(path), "--config")
            values = _read_toml(path, "configuration file", _SERVER_KEYS)
        given = _options(overrides, _SERVER_KEYS)
        config = cls(**{**values, **given})
        if config.endpoint is not None:
            config = evolve(config, endpoint=",".join(endpoints(config.endpoint, config.port)))
        if config.relay and config.no_client_to_client:
            raise ConfigError(NOT_WITH_RELAY, path="--no-client-to-client")
        if (found := config._conflict()) is not None:
            key, message = found
            if key in given:
                raise ConfigError(message, path=f"--{key}")
            assert path is not None  # where else should it stand
            line = _line_of(read_text(path, "configuration file"), key)
            raise ConfigError(message, path=str(path), line=line, key=key)
        config.files  # noqa: B018  (refuses a run directory that no socket fits in)
        return config

    def _conflict(self) -> tuple[str, str] | None:
        """Which of the networks cannot be with which other one: the key, and why."""
        vpn: list[Network] = [self.subnet]
        if isinstance(self.subnet6, IPv6Network):
            vpn.append(self.subnet6)
        for network in self.exclude or ():
            if conflict := routes.exclusion_conflict(network, vpn):
                return "exclude", conflict
            if network in self.route:
                return "exclude", f"{network} is a --route, too"
        for network in self.route:
            if network.version == 6 and self.subnet6 == "auto":
                continue  # which one it is stands in the store
            if conflict := routes.vpn_conflict(network, vpn):
                return "route", conflict
        return None

    @property
    def files(self) -> InstanceFiles:
        """Pid file, control socket, journal and log of this hub."""
        return InstanceFiles.of("server", self.run_dir, self.state_dir)


# -- clients ---------------------------------------------------------------------------------------


def _servers(text: str) -> tuple[str, ...]:
    return endpoints(text, SERVER_PORT)


def _token(text: str) -> NetworkToken:
    return NetworkToken.from_text(text.strip())


def _token_file(text: str) -> NetworkToken:
    path = Path(os.path.expanduser(file_name(text)))
    try:
        return _token(read_text(path, "token file"))
    except ConfigError as error:
        raise ConfigError(f"{text}: {error.message}") from None


_CLIENT_SETTINGS: Final[Mapping[str, _Key]] = {
    "tun_addr": _text(address),
    "tun": _text(tun_name),
    "port": _integer(local_port),
    "deliver": _text(deliver),
    "poll_interval": _Key((int, float), interval),
    "mtu": _integer(mtu),
    "cipher": _text(cipher),
    "all_traffic": _flag(),
    "kill_switch": _flag(),
    "lan_access": _Key((str, bool), yes_no),
    "include": _Key((str, list), networks),
    "exclude": _Key((str, list), networks),
    "no_routes": _flag(),
    "no_dns": _flag(),
    "share": _Key((str, list), networks),
}
_PROFILE_KEYS: Final[Mapping[str, _Key]] = {
    "servers": _Key((str, list), _servers),
    "user": _text(user_name),
    "token": _text(_token),
    "password_file": _text(file_name),
    **_CLIENT_SETTINGS,
}
_CLIENT_OPTIONS: Final[Mapping[str, _Key]] = {
    **_CLIENT_SETTINGS,
    "server": _text(_servers),
    "user": _text(user_name),
    "token_file": _text(_token_file),
    "profile": _text(profile_name),
    "profile_dir": _text(directory),
    "tun_dstaddr": _text(address),
    "tun_netmask": _text(netmask),
    "interface": _text(interface_address),
    "run_dir": _text(directory),
    "state_dir": _text(directory),
}


@frozen
class Profile:
    """What one machine needs to enter one network, as ``pyvpn join`` writes it.

    ``password_file`` may be relative to the profile's own directory. ``None`` means not set.
    """

    name: str
    servers: tuple[str, ...]
    user: str
    token: NetworkToken
    password_file: str | None = None
    tun_addr: Address | None = None
    tun: str | None = None
    port: int | None = None
    deliver: Deliver | None = None
    poll_interval: float | None = None
    mtu: int | None = None
    cipher: Cipher | None = None
    all_traffic: bool | None = None
    kill_switch: bool | None = None
    lan_access: bool | None = None
    include: tuple[Network, ...] | None = None
    exclude: tuple[Network, ...] | None = None
    no_routes: bool | None = None
    no_dns: bool | None = None
    share: tuple[Network, ...] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read ``NAME.toml``.

        :raises ConfigError: naming file, line and key.
        """
        path = Path(path)
        values = _read_toml(path, "profile", _PROFILE_KEYS)
        for key in ("servers", "user", "token"):
            if key not in values:
                raise ConfigError(
                    f"the key is missing; join again with: {JOIN_LINE}", path=str(path), key=key
                )
        return cls(name=path.stem, **values)

    def save(self, path: str | Path) -> None:
        """Write the profile, mode 0600 since it holds the network's secret."""
        lines = [f"servers = [{', '.join(_quote(server) for server in self.servers)}]"]
        lines += [f"user = {_quote(self.user)}", f"token = {_quote(self.token.to_text())}"]
        for key in ("password_file", *_CLIENT_SETTINGS):
            value = getattr(self, key)
            if value is not None:
                lines.append(f"{key} = {_toml(value)}")
        write_private_file(Path(path), "\n".join(lines) + "\n")


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return _spelled(value) if isinstance(value, int | float) else _quote(str(value))


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\u{ord(c[0]):04x}", escaped) + '"'


def profile_path(profile_dir: str | Path, name: str) -> Path:
    """The file of a profile."""
    return Path(profile_dir) / f"{name}.toml"


def profile_names(profile_dir: str | Path) -> list[str]:
    """The names of all profiles in a directory, sorted; none if there is no such directory."""
    try:
        entries: Iterable[str] = os.listdir(profile_dir)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(
            f"cannot read the profiles: {error.strerror}; run it as root", path=str(profile_dir)
        ) from None
    stems = (entry.removesuffix(".toml") for entry in entries if entry.endswith(".toml"))
    return sorted(stem for stem in stems if PROFILE_NAME.fullmatch(stem))


def choose_profile(profile_dir: str | Path, name: str | None) -> Profile:
    """The named profile; without a name ``default``, else the only one there is.

    :raises ConfigError: when there is none or no telling which; it names what exists and how to
        join a network.
    """
    names = profile_names(profile_dir)
    if name is None:
        name = "default" if "default" in names or len(names) != 1 else names[0]
        if name not in names and names:
            raise ConfigError(
                f"{profile_dir} holds several profiles ({', '.join(names)}) and none is called"
                f" 'default'; give --profile NAME, or join another network with: {JOIN_LINE}"
            )
    if name not in names:
        there = f"there are: {', '.join(names)}" if names else "there is none yet"
        raise ConfigError(
            f"{profile_dir} holds no profile '{name}' ({there}); join a network with: {JOIN_LINE}"
        )
    return Profile.load(profile_path(profile_dir, name))


@frozen
class ClientConfig:
    """All that ``pyvpn-client`` is told but the password. ``None`` leaves it to the hub.

    ``servers`` are ``HOST:PORT`` in the order to try; ``tun_netmask`` is a prefix length;
    ``port_explicit`` says that somebody asked for that port, so no other may take its place.
    ``lan_access`` is None where nobody chose: yes, but no with ``kill_switch``.
    """

    servers: tuple[str, ...]
    user: str
    token: NetworkToken
    tun_addr: Address | None = None
    tun_dstaddr: Address | None = None
    tun_netmask: int | None = None
    interface: str | None = None
    port: int = CLIENT_PORT
    port_explicit: bool = False
    tun: str = TUN_NAME
    deliver: Deliver = "push"
    poll_interval: float | None = None
    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR
    profile: str = "default"
    mtu: int | None = None
    cipher: Cipher = "auto"
    password_file: Path | None = None
    all_traffic: bool = False
    kill_switch: bool = False
    lan_access: bool | None = None
    include: tuple[Network, ...] = ()
    exclude: tuple[Network, ...] = ()
    no_routes: bool = False
    no_dns: bool = False
    share: tuple[Network, ...] = ()

    @classmethod
    def load(cls, overrides: Mapping[str, object]) -> ClientConfig:
        """The profile's settings under the options given.

        With ``server`` no profile is needed: then ``user`` and ``token_file`` must be given too,
        or ``profile`` to take them from.

        :param overrides: options by name (hyphens or underscores); None and unknown pass.
        :raises ConfigError: naming the option or the profile's file, line and key.
        """
        given = _options(overrides, _CLIENT_OPTIONS)
        profile_dir = given.pop("profile_dir", PROFILE_DIR)
        name = given.pop("profile", None)
        if "token_file" in given:
            given["token"] = given.pop("token_file")
        if "server" in given:
            given["servers"] = given.pop("server")
        values: dict[str, Any] = {}
        if name is not None or "servers" not in given:
            profile = choose_profile(profile_dir, name)
            values = _profile_values(profile, profile_dir)
        values |= given
        for key, option in (("user", "--user"), ("token", "--token-file")):
            if key not in values:
                raise ConfigError("--server without a profile needs this option too", path=option)
        values["port_explicit"] = "port" in values
        config = cls(**values)
        config.files  # noqa: B018  (refuses a run directory that no socket fits in)
        return config

    @property
    def files(self) -> InstanceFiles:
        """Pid file, control socket, journal and log of this client."""
        return InstanceFiles.of(f"client-{self.profile}", self.run_dir, self.state_dir)


_WIREGUARD_OPTIONS: Final[Mapping[str, _Key]] = {
    "wireguard": _text(lambda text: Path(os.path.expanduser(file_name(text))).absolute()),
    "tun": _text(tun_name),
    "mtu": _integer(mtu),
    "port": _integer(local_port),
    "interface": _text(interface_address),
    "kill_switch": _flag(),
    "lan_access": _Key((str, bool), yes_no),
    "exclude": _Key((str, list), networks),
    "no_dns": _flag(),
    "run_dir": _text(directory),
    "state_dir": _text(directory),
}
#: What a client of a foreign WireGuard server has no use for: its file says all that.
_NOT_WITH_WIREGUARD: Final = (
    *("pw", "pw_file", "server", "user", "token_file", "profile", "profile_dir", "tun_addr"),
    *("tun_dstaddr", "tun_netmask", "cipher", "deliver", "poll_interval", "all_traffic", "include"),
    *("no_routes", "share"),
)


@frozen
class WireGuardClientConfig:
    """What ``pyvpn-client --wireguard FILE.conf`` is told beside the file.

    The TUN has the file's name, as with wg-quick, and so has the client for ``pyvpn status``.
    ``None`` leaves it to the file, and ``lan_access`` to ``kill_switch``: without that, yes.
    """

    file: Path
    tun: str
    mtu: int | None = None
    port: int | None = None
    interface: str | None = None
    kill_switch: bool = False
    lan_access: bool | None = None
    exclude: tuple[Network, ...] = ()
    no_dns: bool = False
    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR

    @classmethod
    def load(cls, overrides: Mapping[str, object]) -> WireGuardClientConfig:
        """Take the options.

        :param overrides: options by name (hyphens or underscores), ``wireguard`` among them.
        :raises ConfigError: naming the option.
        """
        # A flag that was not given is 0.
        given = {
            name.replace("-", "_") for name, value in overrides.items() if value not in (None, 0)
        }
        for key in _NOT_WITH_WIREGUARD:
            if key in given:
                raise ConfigError(
                    "does not go with --wireguard, whose file says who we are and where the server"
                    " is",
                    path="--" + key.replace("_", "-"),
                )
        values = _options(overrides, _WIREGUARD_OPTIONS)
        file = values.pop("wireguard")
        try:
            tun = values.setdefault("tun", file.name.removesuffix(".conf"))
            profile_name(tun_name(tun))
        except ConfigError as error:
            raise ConfigError(f"{error.message}; name it with --tun", path="--wireguard") from None
        config = cls(file, **values)
        config.files  # noqa: B018  (refuses a run directory that no socket fits in)
        return config

    @property
    def profile(self) -> str:
        """The name by which ``pyvpn status``, ``logs`` and ``down`` know this client."""
        return self.tun

    @property
    def files(self) -> InstanceFiles:
        """Pid file, control socket, journal and log of this client."""
        return InstanceFiles.of(f"client-{self.profile}", self.run_dir, self.state_dir)


def _profile_values(profile: Profile, profile_dir: str | Path) -> dict[str, Any]:
    """A profile's settings that are set, by the names of :class:`ClientConfig`."""
    values = {key: getattr(profile, key) for key in _PROFILE_KEYS}
    values = {key: value for key, value in values.items() if value is not None}
    values["profile"] = profile.name
    if "password_file" in values:
        values["password_file"] = Path(profile_dir) / os.path.expanduser(values["password_file"])
    return values
