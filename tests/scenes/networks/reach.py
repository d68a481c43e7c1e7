"""What somebody at a machine can do: ping, names, pages by name, IPv4 and IPv6.

What is seen is words for each of :data:`LOOKS`, so that what should be seen can be written down and
compared. Of a page they say which server answered and whom it saw.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network

from tests.scenes.ends import Failed
from tests.scenes.networks.lab import (
    ELSEWHERE,
    HOME,
    HUB,
    ROAMER,
    ROUTER,
    SECOND,
    WWW,
    WWW_NAME,
    NetworksLab,
)

NOTHING = "-"

#: Who a server may see.
WHO = {
    "hub": (HUB.ipv4, HUB.ipv6, SECOND.ipv4, SECOND.ipv6),
    "router": (ROUTER.ipv4,),
    "itself": (
        *(f"{subnet.ipv6}::/64" for subnet in (HOME, ELSEWHERE)),
        *(f"{subnet.ipv4}.0/24" for subnet in (HOME, ELSEWHERE)),
        f"{ROAMER.ipv4}/24",
        f"{ROAMER.ipv6}/64",
    ),
    "its inner address": ("10.10.0.0/24", "fc00::/7"),
}

#: What is looked at → the command. {lan} is the neighbour in the LAN.
LOOKS = {
    "ping hub": "ping -n -c 1 -W 1 10.10.0.1",
    "name hub.pyvpn": "timeout 4 getent ahostsv4 hub.pyvpn",
    "page hub.pyvpn v4": "curl -sS -m 2 -4 http://hub.pyvpn/",
    "page hub.pyvpn v6": "curl -sS -m 2 -6 http://hub.pyvpn/",
    "ping www v4": f"ping -n -c 1 -W 1 {WWW.ipv4}",
    "ping www v6": f"ping -n -c 1 -W 1 {WWW.ipv6}",
    "name www": f"timeout 4 getent ahostsv4 {WWW_NAME}",
    "page www v4": f"curl -sS -m 2 -4 http://{WWW_NAME}/",
    "page www v6": f"curl -sS -m 2 -6 http://{WWW_NAME}/",
    "ping neighbour": "ping -n -c 1 -W 1 {lan}",
}

PLAIN = {
    "ping hub": NOTHING,
    "name hub.pyvpn": NOTHING,
    "page hub.pyvpn v4": NOTHING,
    "page hub.pyvpn v6": NOTHING,
    "ping www v4": "answered",
    "ping www v6": "answered",
    "name www": WWW.ipv4,
    "page www v4": f"{WWW_NAME} sees router",
    "page www v6": f"{WWW_NAME} sees itself",
    "ping neighbour": "answered",
}
#: The VPN alone goes through the tunnel.
SPLIT = {
    **PLAIN,
    "ping hub": "answered",
    "name hub.pyvpn": "10.10.0.1",
    "page hub.pyvpn v4": "hub sees its inner address",
    "page hub.pyvpn v6": "hub sees its inner address",
}
#: All goes through it but the LAN.
FULL = {**SPLIT, "page www v4": f"{WWW_NAME} sees hub", "page www v6": f"{WWW_NAME} sees hub"}
#: And the LAN is out of reach.
FULL_NO_LAN = {**FULL, "ping neighbour": NOTHING}
BLOCKED = dict.fromkeys(LOOKS, NOTHING)


def look(lab: NetworksLab, host: str, lan: str = f"{HOME.ipv4}.66") -> dict[str, str]:
    """What can be done now, all of it tried at once."""

    def one(command: str) -> str:
        done = lab.run(host, command.format(lan=lan).split(), seconds=30)
        return NOTHING if done.returncode else _words(command, done.stdout)

    with ThreadPoolExecutor(len(LOOKS)) as pool:
        return dict(zip(LOOKS, pool.map(one, LOOKS.values()), strict=True))


def reaches(
    lab: NetworksLab,
    host: str,
    expected: Mapping[str, str],
    when: str,
    *,
    seconds: float = 15.0,
    lan: str = f"{HOME.ipv4}.66",
) -> None:
    """:class:`Failed` unless what can be done is as expected within `seconds`."""
    deadline = time.monotonic() + seconds
    while (seen := look(lab, host, lan)) != dict(expected):
        if time.monotonic() > deadline:
            wrong = [
                f"{what}: {seen[what]!r} where {expected[what]!r} is right"
                for what in LOOKS
                if seen[what] != expected[what]
            ]
            raise Failed(f"{when}, on {host}:\n" + "\n".join(wrong))


def _words(command: str, said: str) -> str:
    if command.startswith("ping"):
        return "answered"
    words = said.split()
    if "getent" in command:
        return words[0] if words else NOTHING
    return f"{words[0]} sees {_who(words[1])}" if len(words) == 2 else repr(said)


def _who(address: str) -> str:
    for who, networks in WHO.items():
        if any(ip_address(address) in ip_network(each, strict=False) for each in networks):
            return who
    return address
