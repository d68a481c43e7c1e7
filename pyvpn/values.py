"""Single values as people write them: each parser takes text and returns the checked value.

A parser raises :class:`~pyvpn.errors.ConfigError` with one line saying what is wrong and what would
be right; whoever called it knows the file or option it stood in (:mod:`pyvpn.config`).
"""

from __future__ import annotations

import os
import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Final, Literal, TypeVar

from pyvpn.errors import ConfigError
from pyvpn.token import host_and_port

N = TypeVar("N", IPv4Network, IPv6Network)
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Deliver = Literal["push", "poll"]
Cipher = Literal["auto", "aes-256-gcm", "chacha20-poly1305"]

MIN_MTU: Final = 1280  # below it the kernel deletes the device's IPv6 addresses
MAX_TUN_NAME: Final = 15  # IFNAMSIZ less the closing zero

_TUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


def _number(text: str, low: int, high: int, what: str) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and len(digits) < 10 and low <= int(digits) <= high:
        return int(digits)
    raise ConfigError(f"'{text}' is not {what}; give a number from {low} to {high}")


def port(text: str) -> int:
    """A UDP port to be reached at: 1 to 65535."""
    return _number(text, 1, 65535, "a port")


def local_port(text: str) -> int:
    """A UDP port to bind: 0 to 65535, where 0 means any free one."""
    return _number(text, 0, 65535, "a port")


def mtu(text: str) -> int:
    """An inner MTU in bytes: 1280 (what IPv6 needs) to 65535."""
    return _number(text, MIN_MTU, 65535, "an MTU")


def interval(text: str) -> float:
    """Seconds between two polls: 0.05 to 60."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.05 <= seconds <= 60:
        raise ConfigError(f"'{text}' is not a poll interval; give seconds from 0.05 to 60")
    return seconds


def deliver(text: str) -> Deliver:
    """How the hub hands over packets: ``push`` (at once) or ``poll`` (kept until a poll)."""
    if text == "push":
        return "push"
    if text == "poll":
        return "poll"
    raise ConfigError(f"'{text}' is not a way of delivery; choose push or poll")


def cipher(text: str) -> Cipher:
    """The cipher of the transport: ``auto`` leaves it to what the processors are good at."""
    if text == "auto":
        return "auto"
    if text == "aes-256-gcm":
        return "aes-256-gcm"
    if text == "chacha20-poly1305":
        return "chacha20-poly1305"
    raise ConfigError(f"'{text}' is not a cipher; choose auto, aes-256-gcm or chacha20-poly1305")


def switch(text: str) -> bool:
    """``true`` or ``false``, as TOML has them."""
    if text in ("true", "false"):
        return text == "true"
    raise ConfigError(f"'{text}' is neither true nor false")


def yes_no(text: str) -> bool:
    """``yes`` or ``no``; ``true`` and ``false`` of TOML mean the same."""
    words = {"yes": True, "true": True, "no": False, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    raise ConfigError(f"'{text}' is neither yes nor no")


def networks(text: str) -> tuple[Network, ...]:
    """Networks with commas between, none twice; an address alone is a network of one.

    Loopback and multicast are never routed, so they are refused.
    """
    found: dict[Network, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            network = ip_network(part)
        except ValueError as error:
            if "host bits" in str(error):
                right = ip_network(part, strict=False)
                raise ConfigError(
                    f"'{part}' has bits set beyond its prefix; write {right}"
                ) from None
            raise ConfigError(f"'{part}' is not a network; write it like 192.168.7.0/24") from None
        if network.is_loopback or network.is_multicast:
            raise ConfigError(f"{network} is never routed: it is for loopback or multicast")
        found[network] = None
    return tuple(found)


def within(network: Network, other: Network) -> bool:
    """Whether ``network`` is ``other`` or a part of it."""
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)


def address(text: str) -> Address:
    """One IPv4 or IPv6 address without a prefix length."""
    try:
        return ip_address(text.strip())
    except ValueError:
        raise ConfigError(f"'{text}' is not an IPv4 or IPv6 address") from None


def interface_address(text: str) -> str:
    """The local address to bind the outer UDP socket to, in its usual spelling."""
    return str(address(text))


def netmask(text: str) -> int:
    """An IPv4 netmask, ``255.255.255.0`` or ``24``, as a prefix length."""
    for prefix in range(33):
        if text.strip() in (str(prefix), str(IPv4Network((0, prefix)).netmask)):
            return prefix
    raise ConfigError(f"'{text}' is not a netmask; write it like 255.255.255.0")


def tun_name(text: str) -> str:
    """A name for the TUN device: what Linux accepts and every tool can quote."""
    if _TUN.fullmatch(text) and text not in ("all", "default", "lo"):
        return text
    raise ConfigError(
        f"'{text}' cannot name a TUN device; use at most {MAX_TUN_NAME} letters, digits, _ . -,"
        " beginning with a letter or digit"
    )


def profile_name(text: str) -> str:
    """A profile's name: it becomes part of file names, and ``server`` means the hub."""
    if text == "server":
        raise ConfigError("a profile cannot be called 'server': that name means the hub")
    if PROFILE_NAME.fullmatch(text):
        return text
    raise ConfigError(
        f"'{text}' cannot name a profile; use at most 32 letters, digits, . _ -,"
        " beginning with a letter or digit"
    )


def subnet4(text: str) -> IPv4Network:
    """The VPN's IPv4 network: /8 to /30, since the hub, a client and two edges need four."""
    network = _network(text, IPv4Network, "10.10.0.0/24")
    if network.prefixlen > 30:
        raise ConfigError(f"{network} is too small; the smallest subnet is a /30")
    if network.prefixlen < 8:
        raise ConfigError(f"{network} is too large; the largest subnet is a /8")
    return network


def subnet6(text: str) -> Literal["auto"] | IPv6Network | None:
    """The VPN's IPv6 network: ``auto`` (a prefix made at first start), ``none``, or /64 to /126."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    network = _network(text, IPv6Network, "auto, none or a prefix like fd12:3456:789a::/64")
    if network.prefixlen > 126:
        raise ConfigError(f"{network} is too small; the smallest IPv6 subnet is a /126")
    if network.prefixlen < 64:
        raise ConfigError(f"{network} is too large; the largest IPv6 subnet is a /64")
    return network


def _network(text: str, family: type[N], example: str) -> N:
    try:
        loose = ip_network(text.strip(), strict=False)
    except ValueError:
        loose = None
    if not isinstance(loose, family) or "/" not in text:
        raise ConfigError(f"'{text}' is not a subnet; write {example}")
    if loose.is_multicast or loose.is_loopback or loose.is_link_local or loose.is_unspecified:
        raise ConfigError(f"{loose} cannot be given to hosts; take a private subnet")
    if ip_address(text.strip().partition("/")[0]) != loose.network_address:
        raise ConfigError(f"'{text}' has bits set beyond its prefix; write {loose}")
    return loose


def host_port(text: str, default_port: int) -> tuple[str, int]:
    """``HOST[:PORT]``, where an IPv6 address stands in brackets, as (host, port)."""
    host, _, digits = host_and_port(text.strip(), default_port).rpartition(":")
    return host.strip("[]"), int(digits)


def endpoints(text: str, default_port: int) -> tuple[str, ...]:
    """One or several ``HOST[:PORT]`` with commas between, each spelled in full, none twice."""
    found = [host_and_port(part.strip(), default_port) for part in text.split(",")]
    return tuple(dict.fromkeys(found))


def directory(text: str) -> Path:
    """A directory, absolute, so that a daemon that changes its own still finds it."""
    if not text or "\0" in text:
        raise ConfigError("give the name of a directory")
    return Path(os.path.expanduser(text)).absolute()


def file_name(text: str) -> str:
    """The name of a file: neither empty, which would mean the current directory, nor with a zero,
    which no system call takes.
    """
    if not text or "\0" in text:
        raise ConfigError("give the name of a file")
    return text
