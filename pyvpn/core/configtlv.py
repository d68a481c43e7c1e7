"""What a CONFIG frame carries: a hub's word about its network, as type-length-value items.

type u8, length u16 little-endian, value; an item never crosses the border of a part. The client
trusts none of it: the bounds of PROTOCOL 6 are checked here, for everything that arrives.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final, TypeAlias, TypeVar

from attrs import frozen

from pyvpn.errors import LocalProtocolError, RemoteProtocolError

CONFIG_INVALID: Final = "config_invalid"

MAX_PART_BYTES: Final = 1100
"""The items of one CONFIG part: its datagram passes any path that carries IPv6 (1,280)."""

MAX_ROUTES: Final = 1024
"""Routes and excluded routes together."""
MAX_ADDRESSES: Final = 16
"""Own addresses, DNS servers and search domains, each: PROTOCOL 6 sets no number, but each becomes
a command.
"""
MIN_MTU: Final = 1280
MAX_MTU: Final = 65535
MIN_POLL_INTERVAL: Final = 0.05
MAX_POLL_INTERVAL: Final = 25.0
"""Seconds: between the fastest poll of poll delivery and the one of push delivery."""
TOKEN_BYTES: Final = 92

TLV_ADDRESS: Final = 1
TLV_ROUTE: Final = 2
TLV_EXCLUDED: Final = 3
TLV_DNS: Final = 4
TLV_SEARCH: Final = 5
TLV_MTU: Final = 6
TLV_POLL_INTERVAL: Final = 7
TLV_TOKEN: Final = 8

_TLV: Final = struct.Struct("<BH")

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network


@frozen
class Config:
    """What a hub tells a client about its network. ``mtu`` in bytes, ``poll_interval`` in seconds
    (sent in whole milliseconds), ``token`` a new network token of 92 bytes; None where the hub
    says nothing.
    """

    addresses: tuple[Interface, ...] = ()
    routes: tuple[Network, ...] = ()
    excluded: tuple[Network, ...] = ()
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int | None = None
    poll_interval: float | None = None
    token: bytes | None = None


@frozen
class Pushed:
    """What a hub tells all of its clients, beside the addresses of each.

    :ivar routes: networks that are reached through it; 0.0.0.0/0 and ::/0 offer the internet.
    :ivar excluded: networks that are not, within wider ones that are.
    :ivar dns: name servers.
    :ivar search: domains to complete short names with.
    """

    routes: tuple[Network, ...] = ()
    excluded: tuple[Network, ...] = ()
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()


def pack_config(config: Config) -> list[bytes]:
    """``config`` as the items of each part, at least one part.

    :raises LocalProtocolError: a value does not fit its item, or a client would refuse it.
    """
    chunks = [b""]
    for tlv in _tlvs(config):
        if len(chunks[-1]) + len(tlv) > MAX_PART_BYTES:
            chunks.append(b"")
        chunks[-1] += tlv
    try:
        parse_config(chunks)
    except RemoteProtocolError:
        raise LocalProtocolError("a configuration that every client would refuse") from None
    return chunks


def _tlvs(config: Config) -> list[bytes]:
    """Each item of ``config`` as one TLV, in an order that depends on it alone."""
    values: list[tuple[int, bytes]] = []
    for interface in config.addresses:
        values.append((TLV_ADDRESS, interface.packed + bytes((interface.network.prefixlen,))))
    for kind, networks in ((TLV_ROUTE, config.routes), (TLV_EXCLUDED, config.excluded)):
        for network in networks:
            packed = network.network_address.packed
            values.append((kind, packed + bytes((network.prefixlen,))))
    values.extend((TLV_DNS, address.packed) for address in config.dns)
    try:
        values.extend((TLV_SEARCH, domain.encode("ascii")) for domain in config.search)
        if config.mtu is not None:
            values.append((TLV_MTU, struct.pack("<H", config.mtu)))
        if config.poll_interval is not None:
            milliseconds = round(config.poll_interval * 1000)
            values.append((TLV_POLL_INTERVAL, struct.pack("<H", milliseconds)))
        if config.token is not None:
            values.append((TLV_TOKEN, config.token))
        return [_TLV.pack(kind, len(value)) + value for kind, value in values]
    except (struct.error, UnicodeEncodeError, OverflowError, ValueError) as error:
        raise LocalProtocolError(f"a configuration that does not fit its frame: {error}") from None


def parse_config(chunks: Sequence[bytes]) -> Config:
    """The checked configuration in ``chunks``, each the items of one part.

    :raises RemoteProtocolError: ``config_invalid``: it breaks a rule of PROTOCOL 6.
    """
    values: dict[int, list[bytes]] = {kind: [] for kind in range(TLV_ADDRESS, TLV_TOKEN + 1)}
    for chunk in chunks:
        for kind, value in _split(chunk):
            if kind in values:  # a type of a later version is no mistake
                values[kind].append(value)
    try:
        config = Config(
            addresses=_each(values[TLV_ADDRESS], _interface),
            routes=_each(values[TLV_ROUTE], _network),
            excluded=_each(values[TLV_EXCLUDED], _network),
            dns=_each(values[TLV_DNS], _host),
            search=_each(values[TLV_SEARCH], _domain),
            mtu=_single(values[TLV_MTU], _mtu),
            poll_interval=_single(values[TLV_POLL_INTERVAL], _poll_interval),
            token=_single(values[TLV_TOKEN], _token),
        )
    except ValueError:
        raise RemoteProtocolError(CONFIG_INVALID) from None
    few = (config.addresses, config.dns, config.search)
    if len(config.routes) + len(config.excluded) > MAX_ROUTES or max(map(len, few)) > MAX_ADDRESSES:
        raise RemoteProtocolError(CONFIG_INVALID)
    return config


def _split(chunk: bytes) -> list[tuple[int, bytes]]:
    """The (type, value) pairs of one part."""
    found = []
    place = 0
    while place < len(chunk):
        start = place + _TLV.size
        if start > len(chunk):
            raise RemoteProtocolError(CONFIG_INVALID)
        kind, size = _TLV.unpack_from(chunk, place)
        place = start + size
        if place > len(chunk):
            raise RemoteProtocolError(CONFIG_INVALID)
        found.append((kind, chunk[start:place]))
    return found


_ValueT = TypeVar("_ValueT")


def _each(values: list[bytes], convert: Callable[[bytes], _ValueT]) -> tuple[_ValueT, ...]:
    """All values in their order, each once: a route added twice is a failing command."""
    return tuple(dict.fromkeys(map(convert, values)))


def _single(values: list[bytes], convert: Callable[[bytes], _ValueT]) -> _ValueT | None:
    if len(values) > 1:
        raise ValueError("more than one value")
    return convert(values[0]) if values else None


# Each of these raises ValueError for what the client must not take from a hub.


def _address(value: bytes) -> Address:
    if len(value) == 4:
        return IPv4Address(value)
    if len(value) != 16:
        raise ValueError("an address has 4 or 16 bytes")
    return IPv6Address(value)


def _host(value: bytes) -> Address:
    address = _address(value)
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError("not the address of a host")
    # In clouds a machine's own keys are told at 169.254.169.254, to whoever has it as a neighbour.
    if address.is_link_local:
        raise ValueError("a link-local address means nothing beyond its link")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError("an IPv4 address comes in 4 bytes")
    return address


def _interface(value: bytes) -> Interface:
    address, prefix = _host(value[:-1]), value[-1]
    # The interface's subnet becomes a route: a short prefix would be a default route by stealth.
    if prefix < (8 if address.version == 4 else 32):
        raise ValueError("a subnet this large would take other networks' traffic")
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, value[-1]))
    return IPv6Interface((address, value[-1]))


def _network(value: bytes) -> Network:
    address = _address(value[:-1])
    network: Network
    if isinstance(address, IPv4Address):
        network = IPv4Network((address, value[-1]))
    else:
        network = IPv6Network((address, value[-1]))
    if network.is_loopback or network.is_multicast or network.is_link_local:
        raise ValueError("what belongs to a link is never routed")
    return network


def _domain(value: bytes) -> str:
    domain = value.decode("ascii")
    if len(domain) > 253 or not all(map(_is_label, domain.split("."))):
        raise ValueError("not a domain name of LDH labels")
    return domain


def _is_label(label: str) -> bool:
    """RFC 5890 2.3.1: letters, digits and inner hyphens, 1 to 63 of them. ``label`` is ASCII."""
    return (
        1 <= len(label) <= 63
        and label.replace("-", "a").isalnum()
        and label[0] != "-"
        and label[-1] != "-"
    )


def _mtu(value: bytes) -> int:
    if len(value) != 2:
        raise ValueError("an MTU has 2 bytes")
    mtu = int.from_bytes(value, "little")
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ValueError("an MTU that cannot carry IPv6")
    return mtu


def _poll_interval(value: bytes) -> float:
    if len(value) != 2:
        raise ValueError("an interval has 2 bytes")
    seconds = int.from_bytes(value, "little") / 1000
    return min(max(seconds, MIN_POLL_INTERVAL), MAX_POLL_INTERVAL)


def _token(value: bytes) -> bytes:
    if len(value) != TOKEN_BYTES:
        raise ValueError("a token has 92 bytes")
    return value
