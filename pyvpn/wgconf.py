"""The configuration files of WireGuard: what wg(8) and wg-quick(8) read, and the phone apps.

Read as those two read them: ``#`` begins a comment, keys do not care for case, a key that is given
again adds to lists and replaces anything else. Besides, a comment may name a peer (:func:`_named`),
as people and the scripts that make such files do.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from pyvpn.config import read_text
from pyvpn.errors import ConfigError
from pyvpn.token import host_and_port, user_name

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

KEY_SIZE: Final = 32  # bytes, of private, public and pre-shared keys alike
NO_PSK: Final = bytes(KEY_SIZE)  # what WireGuard takes for "no pre-shared key"
MAX_MARK: Final = 2**32 - 1
COMMANDS: Final = ("PreUp", "PostUp", "PreDown", "PostDown")

SPACES: Final = " \t\n\v\f\r"  # isspace(3) in the C locale: what both programs skip
_NO_SPACES: Final = str.maketrans("", "", SPACES)


@frozen
class PeerConf:
    """A ``[Peer]``.

    :ivar public_key: 32 bytes.
    :ivar psk: 32 bytes, all zero for none.
    :ivar allowed_ips: networks without host bits, none twice.
    :ivar endpoint: ``host:port``, the host a name, an IPv4 address, or IPv6 in brackets.
    :ivar keepalive: seconds, 0 for off.
    :ivar name: what a comment calls this peer; empty if none does.
    """

    public_key: bytes
    psk: bytes = field(default=NO_PSK, repr=False)
    allowed_ips: tuple[Network, ...] = ()
    endpoint: str | None = None
    keepalive: int = 0
    name: str = ""


@frozen
class WireGuardConf:
    """A whole file: its ``[Interface]`` and its peers in their order.

    :ivar private_key: 32 bytes as they stand there, or None.
    :ivar listen_port: None or 0: any.
    :ivar dns: the addresses under ``DNS``; ``search`` are the names there.
    :ivar table: ``off``, ``auto``, or a routing table by number or name; None as ``auto``.
    :ivar fwmark: the mark on outer packets, 0 for off.
    :ivar commands: (one of :data:`COMMANDS`, text for the shell), in their order.
    """

    private_key: bytes | None = field(default=None, repr=False)
    addresses: tuple[Interface, ...] = ()
    listen_port: int | None = None
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int | None = None
    table: str | None = None
    fwmark: int = 0
    commands: tuple[tuple[str, str], ...] = ()
    save_config: bool = False
    peers: tuple[PeerConf, ...] = ()


# -- single values: each takes text and raises ConfigError without a place -------------------------


def parse_key(text: str) -> bytes:
    """32 bytes from base64, in the one spelling that stands for them; the text is not repeated in
    the error, since it may be a secret.
    """
    if re.fullmatch(r"[A-Za-z0-9+/]{43}=", text):
        key = base64.b64decode(text)
        if format_key(key) == text:
            return key
    raise ConfigError("not a key; a key is 44 characters of base64, as 'wg genkey' prints it")


def format_key(key: bytes) -> str:
    """A key as base64."""
    return base64.b64encode(key).decode("ascii")


def parse_allowed_ip(text: str) -> Network:
    """``ADDRESS[/PREFIX]``; a host without its prefix, bits beyond the prefix do not matter."""
    host, slash, prefix = text.partition("/")
    # ip_network knows netmasks too, wg does not.
    if "%" not in host and (not slash or prefix.isdigit()):
        try:
            return ip_network(text, strict=False)
        except ValueError:
            pass
    raise ConfigError(f"'{text}' is not a network; write it like 10.10.0.0/24 or fd00::/64")


def parse_allowed_ips(text: str) -> tuple[Network, ...]:
    """Networks with commas between, none twice; none at all for empty text."""
    compact = text.translate(_NO_SPACES)
    parts = compact.split(",") if compact else []
    return tuple(dict.fromkeys(parse_allowed_ip(part) for part in parts))


def parse_endpoint(text: str) -> str:
    """``HOST:PORT`` in its usual spelling; an IPv6 address may stand without brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not host or text.endswith("]"):
        raise ConfigError(f"'{text}' is not an endpoint; write HOST:PORT or [IPV6]:PORT")
    bare = ":" in host and not host.startswith("[")
    return host_and_port(f"[{host}]:{port}" if bare else text)


def parse_keepalive(text: str) -> int:
    """Seconds, 1 to 65535; 0 or ``off`` for none."""
    return 0 if text.lower() == "off" else _number(text, 0, 65535, "off or seconds")


def _number(text: str, low: int, high: int, what: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise ConfigError(f"'{text}' is not {what}; give a number from {low} to {high}")


def _mark(text: str) -> int:
    if text.lower() == "off":
        return 0
    if re.fullmatch(r"0x[0-9A-Fa-f]{1,8}", text):
        return int(text, 16)
    return _number(text, 0, MAX_MARK, "off or a mark")


def _port(text: str) -> int:
    return _number(text, 0, 65535, "a port")


def _mtu(text: str) -> int | None:
    return _number(text, 68, 65535, "an MTU") if text else None  # RFC 791: 68 is the least


def _table(text: str) -> str | None:
    if text and not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise ConfigError(f"'{text}' is not a routing table; give auto, off, a number or a name")
    return text or None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def _listed(text: str) -> list[str]:
    """Split as wg-quick does: commas and spaces alike."""
    return [part for part in re.split(f"[,{SPACES}]+", text) if part]


def _interface_address(text: str) -> Interface:
    try:
        if "%" not in text:
            return ip_interface(text)
    except ValueError:
        pass
    raise ConfigError(f"'{text}' is not an address; write it like 10.10.0.2/24 or fd00::2/64")


def _addresses(text: str) -> tuple[Interface, ...]:
    return tuple(_interface_address(part) for part in _listed(text))


def _dns(text: str) -> tuple[Address | str, ...]:
    return tuple(_resolver(part) for part in _listed(text))


def _resolver(text: str) -> Address | str:
    # wg-quick's own test of what is meant as an address.
    if re.fullmatch(r"[0-9.]+|.*:.*", text) is None:
        if re.fullmatch(r"~?[A-Za-z0-9_.-]*", text):
            return text
        raise ConfigError(f"'{text}' is neither an address nor a search domain")
    try:
        return ip_address(text)
    except ValueError:
        raise ConfigError(f"'{text}' is not an address") from None


# -- the file --------------------------------------------------------------------------------------


@define
class _Section:
    """A section while it is read: its values by key, spelled as here."""

    line: int
    kind: str
    values: dict[str, Any] = field(factory=dict)
    title: str = ""  # a comment above the header or before the first key
    name: str = ""  # '# Name = …'

    def put(self, key: str, value: Any) -> None:
        """Add to a list, replace anything else."""
        if isinstance(value, tuple):
            value = self.values.get(key, ()) + value
        self.values[key] = value


def _command(text: str) -> str:
    return text


# What wg-quick takes for itself (it keeps the spaces in values), and what it leaves to wg (which
# first removes every space).
_QUICK: Final[dict[str, Callable[[str], Any]]] = {
    "Address": _addresses,
    "DNS": _dns,
    "MTU": _mtu,
    "Table": _table,
    "SaveConfig": _truth,
    **dict.fromkeys(COMMANDS, _command),
}
_INTERFACE: Final[dict[str, Callable[[str], Any]]] = {
    "PrivateKey": parse_key,
    "ListenPort": _port,
    "FwMark": _mark,
}
_PEER: Final[dict[str, Callable[[str], Any]]] = {
    "PublicKey": parse_key,
    "PresharedKey": parse_key,
    "AllowedIPs": parse_allowed_ips,
    "Endpoint": parse_endpoint,
    "PersistentKeepalive": parse_keepalive,
}
_KEYS: Final = {"Interface": {**_QUICK, **_INTERFACE}, "Peer": _PEER}

_NAME_LINE: Final = re.compile(r"(?:friendly_)?name\s*[=:]\s*(.*)", re.IGNORECASE)
_SETTING: Final = re.compile(r"\w+\s*=")  # a setting that somebody has commented out


def load_conf(path: str | Path) -> WireGuardConf:
    """The configuration in a file.

    :raises ConfigError: naming file, line and key.
    """
    return parse_conf(read_text(Path(path), "WireGuard configuration file"), str(path))


def parse_conf(text: str, name: str) -> WireGuardConf:
    """The configuration in ``text``.

    A public key in two sections, which wg lets pass, is refused: one of them is a mistake.

    :param name: of the file, for errors.
    :raises ConfigError: naming file, line and key; never repeating a key's value.
    """
    sections: list[_Section] = []
    above = ""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content, _, comment = line.partition("#")
        content, comment = content.strip(SPACES), comment.lstrip("#").strip(SPACES)
        if not content:
            _remark(sections, comment)
            above = comment
            continue
        if header := re.fullmatch(r"\[(interface|peer)\]", content.translate(_NO_SPACES).lower()):
            sections.append(_Section(number, header[1].capitalize(), title=_named(above)))
            found = _NAME_LINE.fullmatch(above)
            sections[-1].name = _named(found[1]) if found else ""
        else:
            _read_line(sections, content, name, number)
        above = ""
    return _assembled(sections, name)


def _remark(sections: list[_Section], comment: str) -> None:
    """A line with nothing but a comment: does it name the peer of this section?"""
    if not sections:
        return
    section = sections[-1]
    if found := _NAME_LINE.fullmatch(comment):
        section.name = section.name or _named(found[1])
    elif not section.values and _named(comment):
        section.title = _named(comment)


def _named(comment: str) -> str:
    """The name of a peer in a comment; empty if that cannot be a name here.

    ``# Name = laptop`` in the section; else a comment line right below or above its ``[Peer]``.
    """
    if _SETTING.match(comment):
        return ""
    try:
        return user_name(comment.removeprefix("BEGIN_PEER ").strip(SPACES))
    except ConfigError:
        return ""


def _read_line(sections: list[_Section], content: str, name: str, number: int) -> None:
    """One ``Key = value`` into the last section."""
    word, equals, value = content.partition("=")
    word, value = word.translate(_NO_SPACES), value.strip(SPACES)
    if content.startswith("["):
        raise ConfigError(f"unknown section {content}", path=name, line=number)
    if not equals:
        raise ConfigError(
            f"'{word[:40]}' is no line of the form Key = value", path=name, line=number
        )
    if not sections:
        raise ConfigError(
            "it must stand below [Interface] or [Peer]", path=name, line=number, key=word
        )
    section = sections[-1]
    keys = _KEYS[section.kind]
    key = next((known for known in keys if known.lower() == word.lower()), None)
    if key is None:
        near = difflib.get_close_matches(word, keys, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(keys)}"
        raise ConfigError(
            f"unknown key in [{section.kind}]; {hint}", path=name, line=number, key=word
        )
    if key not in _QUICK:
        value = value.translate(_NO_SPACES)
    try:
        if key in COMMANDS:
            if value:
                section.put("commands", ((key, value),))
        elif key == "AllowedIPs":
            _allow(section, value)
        else:
            section.put(key, keys[key](value))
    except ConfigError as error:
        raise ConfigError(error.message, path=name, line=number, key=key) from None


def _allow(section: _Section, value: str) -> None:
    """Add networks; newer wg also knows ``-`` before one, which takes it back, and ``+``."""
    allowed = section.values.setdefault("AllowedIPs", {})
    for part in value.split(",") if value else []:
        network = parse_allowed_ip(part[1:] if part[:1] in ("+", "-") else part)
        if part.startswith("-"):
            allowed.pop(network, None)
        else:
            allowed[network] = None


def _assembled(sections: Iterable[_Section], name: str) -> WireGuardConf:
    """The value objects; later ``[Interface]`` sections go on with the first."""
    interface = _Section(0, "Interface")
    peers: dict[bytes, PeerConf] = {}
    lines: dict[bytes, int] = {}
    for section in sections:
        if section.kind == "Interface":
            for key, value in section.values.items():
                interface.put(key, value)
            continue
        peer = _peer(section, name)
        if peer.public_key in peers:
            raise ConfigError(
                f"the peer in line {lines[peer.public_key]} has the same key",
                path=name,
                line=section.line,
                key="PublicKey",
            )
        peers[peer.public_key] = peer
        lines[peer.public_key] = section.line
    values = interface.values
    private = values.get("PrivateKey")
    dns = values.get("DNS", ())
    return WireGuardConf(
        private_key=None if private == bytes(KEY_SIZE) else private,
        addresses=values.get("Address", ()),
        listen_port=values.get("ListenPort"),
        dns=tuple(entry for entry in dns if not isinstance(entry, str)),
        search=tuple(entry for entry in dns if isinstance(entry, str)),
        mtu=values.get("MTU"),
        table=values.get("Table"),
        fwmark=values.get("FwMark", 0),
        commands=values.get("commands", ()),
        save_config=values.get("SaveConfig", False),
        peers=tuple(peers.values()),
    )


def _peer(section: _Section, name: str) -> PeerConf:
    values = section.values
    if "PublicKey" not in values:
        raise ConfigError("this [Peer] has none", path=name, line=section.line, key="PublicKey")
    return PeerConf(
        public_key=values["PublicKey"],
        psk=values.get("PresharedKey", NO_PSK),
        allowed_ips=tuple(values.get("AllowedIPs", ())),
        endpoint=values.get("Endpoint"),
        keepalive=values.get("PersistentKeepalive", 0),
        name=section.name or section.title,
    )


def format_conf(conf: WireGuardConf) -> str:
    """The text of a file; :func:`parse_conf` makes the same of it again."""
    lines = ["[Interface]"]
    if conf.private_key is not None:
        lines.append(f"PrivateKey = {format_key(conf.private_key)}")
    if conf.addresses:
        lines.append(f"Address = {', '.join(map(str, conf.addresses))}")
    if conf.listen_port is not None:
        lines.append(f"ListenPort = {conf.listen_port}")
    if conf.dns or conf.search:
        lines.append(f"DNS = {', '.join(map(str, (*conf.dns, *conf.search)))}")
    if conf.mtu is not None:
        lines.append(f"MTU = {conf.mtu}")
    if conf.table is not None:
        lines.append(f"Table = {conf.table}")
    if conf.fwmark:
        lines.append(f"FwMark = {conf.fwmark:#x}")
    lines += [f"{key} = {command}" for key, command in conf.commands]
    if conf.save_config:
        lines.append("SaveConfig = true")
    for peer in conf.peers:
        lines += ["", "[Peer]", *_peer_lines(peer)]
    return "\n".join(lines) + "\n"


def _peer_lines(peer: PeerConf) -> list[str]:
    lines = [f"# Name = {peer.name}"] if peer.name else []
    lines.append(f"PublicKey = {format_key(peer.public_key)}")
    if peer.psk != NO_PSK:
        lines.append(f"PresharedKey = {format_key(peer.psk)}")
    if peer.allowed_ips:
        lines.append(f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}")
    if peer.endpoint is not None:
        lines.append(f"Endpoint = {peer.endpoint}")
    if peer.keepalive:
        lines.append(f"PersistentKeepalive = {peer.keepalive}")
    return lines
