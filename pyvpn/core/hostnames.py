"""What the machines of a network are called in the DNS, from the names that people gave them."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from attrs import field, frozen

IPAddress = IPv4Address | IPv6Address
Names = Mapping[str, tuple[IPAddress, ...]]
"""Host names in lower case, without a dot at the end, to their addresses. Of the names that have an
address, the first in order is the one to give for it (PTR)."""

DOMAIN = "pyvpn"
"""The domain of all names."""

LABEL_SIZE = 63
"""Bytes of a label (RFC 1035 2.3.4)."""

HUB = "hub"

#: Names right below the domain that no user or device gets. Programs ask for these in the search
#: domain by themselves and obey whoever answers: web browsers take their proxy from "wpad".
RESERVED = frozenset({HUB, "localhost", "wpad", "isatap", "autodiscover"})

# A suffix is put on what is left of a label after this: room for a dash and five digits.
_STEM_SIZE = LABEL_SIZE - 6

# Characters of a text that are looked at.
_TEXT_SIZE = 4 * LABEL_SIZE

# Letters without a decomposition into one of ASCII and a mark (Unicode knows none for them), lower
# case as they come out of casefold().
_LATIN = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l"})
_LATIN |= str.maketrans({"þ": "th", "ħ": "h", "ŧ": "t", "ı": "i"})

_KEPT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


@frozen
class Host:
    """A device that may log in, or a stock peer.

    :ivar user: whose device it is; None for a stock peer.
    :ivar name: what it is called, any text.
    :ivar addresses: those it has a lease of. Without any it gets no name, but what it is called
        is not unique then if another one is called so.
    :ivar connected: a session is live.
    :ivar since: when it connected or, without a session, was last seen; any unit.
    :ivar key: tells hosts of one name and user apart: a device id, a public key.
    """

    user: str | None
    name: str
    addresses: tuple[IPAddress, ...] = ()
    connected: bool = False
    since: float = 0
    key: bytes = field(default=b"", repr=bytes.hex)


@lru_cache(1 << 15)
def label(text: str, otherwise: str = "device") -> str:
    """The label nearest to a text: letters a–z, digits, and single dashes inside (RFC 1123 2.1).

    Two dashes in a row would let a name begin with "xn--", which shows as another one in a browser
    (RFC 5890 2.3.1).

    :param otherwise: the label of a text of which nothing is left.
    """
    words: list[str] = [""]
    text = text[:_TEXT_SIZE].casefold()
    for character in unicodedata.normalize("NFKD", text).translate(_LATIN):
        if character in _KEPT:
            words[-1] += character
        elif character in "-_./\\:,;@+" or character.isspace():
            words.append("")
    return "-".join(filter(None, words))[:LABEL_SIZE].rstrip("-") or otherwise


def host_names(
    hosts: Iterable[Host],
    hub: Iterable[IPAddress],
    users: Iterable[str] = (),
    domain: str = DOMAIN,
) -> Names:
    """Name all machines of a network.

    * ``DEVICE.USER.pyvpn``: each device with an address.
    * ``USER.pyvpn``: the user's device that connected last; live ones come before others.
    * ``PEER.pyvpn``: each stock peer with an address.
    * ``DEVICE.pyvpn``: where one device of the network alone is called so.
    * ``hub.pyvpn`` and ``pyvpn``: the hub.

    What is not unique gets -2, -3 and so on. A text that is its own label keeps it, and then the
    order is that of the addresses: the pool gives the lowest that is free, so the machine that was
    there first mostly keeps its name. The time does not depend on the texts, only on how many.

    :param hub: the hub's own inner addresses.
    :param users: all accounts, those without a device among them.
    """
    devices: dict[str, list[Host]] = defaultdict(list)
    peers: list[Host] = []
    for host in sorted(hosts, key=_age):
        (peers if host.user is None else devices[host.user]).append(host)

    taken = set(RESERVED)
    # Of users without a device, too: their names are not for others to take.
    accounts = sorted({*users, *devices})
    owned = dict(zip(accounts, _labels(accounts, "user", taken), strict=True))
    peer_labels = _labels([peer.name for peer in peers], "peer", taken)

    names: dict[str, tuple[IPAddress, ...]] = {}
    hub = tuple(hub)
    if hub:
        names[f"{HUB}.{domain}"] = names[domain] = hub
    for peer, own in zip(peers, peer_labels, strict=True):
        names[f"{own}.{domain}"] = peer.addresses
    for user, own in owned.items():
        mine = devices[user]
        for device, called in zip(mine, _labels([d.name for d in mine], "device"), strict=True):
            names[f"{called}.{own}.{domain}"] = device.addresses
    for user, own in owned.items():
        if devices[user]:
            names[f"{own}.{domain}"] = _newest(devices[user])
    for called, device in _alone(devices.values()):
        if called not in taken:
            names[f"{called}.{domain}"] = device.addresses
    return {name: addresses for name, addresses in names.items() if addresses}


def _age(host: Host) -> tuple[bool, list[tuple[int, int]], str, bytes]:
    """Sorts who was there first to the front, as far as that shows; those with no address last."""
    addresses = sorted((int(address.version), int(address)) for address in host.addresses)
    return not addresses, addresses, host.name, host.key


def _labels(texts: Iterable[str], otherwise: str, taken: set[str] | None = None) -> list[str]:
    """A label for each text, no two the same and none in ``taken``, which grows by them."""
    texts = list(texts)
    taken = set() if taken is None else taken
    wanted = [label(text, otherwise) for text in texts]
    found: dict[int, str] = {}
    exact = [place for place, text in enumerate(texts) if text == wanted[place]]
    for place in [*exact, *range(len(texts))]:
        if place not in found and wanted[place] not in taken:
            found[place] = wanted[place]
            taken.add(wanted[place])
    # A counter for each stem, not for each label: else long labels with the same beginning would
    # try the same suffixes again and again.
    last: Counter[str] = Counter()
    for place, name in enumerate(wanted):
        if place not in found:
            stem = name[:_STEM_SIZE].rstrip("-")
            found[place] = _next(stem, last, taken)
    return [found[place] for place in range(len(texts))]


def _next(stem: str, last: Counter[str], taken: set[str]) -> str:
    number = max(last[stem], 1) + 1
    while f"{stem}-{number}" in taken:
        number += 1
    last[stem] = number
    taken.add(f"{stem}-{number}")
    return f"{stem}-{number}"


def _newest(devices: list[Host]) -> tuple[IPAddress, ...]:
    """The addresses of whichever device with addresses connected last; of two, the older one."""
    with_addresses = [device for device in devices if device.addresses]
    newest = max(with_addresses, key=lambda device: (device.connected, device.since), default=None)
    return newest.addresses if newest is not None else ()


def _alone(users: Iterable[list[Host]]) -> Iterator[tuple[str, Host]]:
    """Devices whose label nobody else's device has, whether that has an address or not."""
    called: dict[str, list[Host]] = defaultdict(list)
    for devices in users:
        for device in devices:
            called[label(device.name)].append(device)
    for own, devices in sorted(called.items()):
        if len(devices) == 1:
            yield own, devices[0]
