"""The scenes: what real programs at the two ends of a tunnel must do.

A scene is a function of traffic.py, handshakes.py, control.py or hub.py. It takes the laboratory
and the kinds of its client and its server (ends.py), and raises :class:`Failed` or
:class:`LabError` with one line. ``LIST`` has each with each pair that it is for; the pairs of
wireguard-go alone show that the scene itself is right.

``NETWORKS`` has those of networks/, about the networks that people are in. They have a laboratory
of their own, and take in place of the ends a word for the client's options and one for how long
the scene may be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.scenes.control import agreement, all_traffic, deleted_link, many_in_conf, many_networks
from tests.scenes.ends import NEWEST, THEIRS
from tests.scenes.handshakes import cookie, rekey, rekey_when_idle, wrong_key, wrong_psk
from tests.scenes.hosts import WireGuardLab
from tests.scenes.hub import exported, imported, key_made_elsewhere, switched_off, together
from tests.scenes.networks import cafe, home, office, uplinks
from tests.scenes.networks.lab import NetworksLab
from tests.scenes.traffic import (
    nat_that_forgets,
    passive_keepalive,
    reach,
    restarted_client,
    restarted_server,
    roaming_client,
    roaming_server,
)

#: The laboratory, and a word each for the client and the server, or for options and length.
Act = Callable[[Any, str, str], None]


class Scene(NamedTuple):
    """A scene with a pair of ends."""

    name: str
    act: Act
    client: str
    server: str
    quick: bool
    #: what it takes at most, seconds
    seconds: int
    #: loads the machine so that others would suffer
    loud: bool = False
    lab: type[WireGuardLab] | type[NetworksLab] = WireGuardLab


BETWEEN_THEIRS = [(name, name) for name in THEIRS]
TO_HUB = [(name, "hub") for name in (*THEIRS, "pyvpn-wg", "client")]
FROM_CLIENT = [("client", name) for name in THEIRS]
FROM_OURS = [("pyvpn-wg", name) for name in THEIRS]
TO_OURS = [(name, "pyvpn-wg") for name in (*THEIRS, "pyvpn-wg")]
WITHOUT_HUB = [*BETWEEN_THEIRS, *FROM_CLIENT, *FROM_OURS, *TO_OURS]
ALL = [*WITHOUT_HUB[:2], *TO_HUB, *WITHOUT_HUB[2:]]
BY_QUICK = [*BETWEEN_THEIRS, *FROM_OURS, *TO_OURS]

#: What it is called, what it does, with whom, how many seconds it takes at most.
LIST: list[tuple[str, Act, list[tuple[str, str]], int]] = [
    ("IPv4 and IPv6 inside and outside", reach, ALL, 90),
    ("new keys across 120 s", rekey, ALL, 180),
    ("new keys by keepalives alone", rekey_when_idle, ALL, 180),
    ("the client's address and port change", roaming_client, ALL, 30),
    ("the server's address changes", roaming_server, ALL, 30),
    ("cookie under load", cookie, ALL, 60),
    ("the client is killed and started again", restarted_client, ALL, 60),
    ("the server is killed and started again", restarted_server, ALL, 60),
    ("keepalive behind a NAT that forgets in 20 s", nat_that_forgets, ALL, 120),
    ("passive keepalive", passive_keepalive, ALL, 45),
    ("2^16 allowed IPs", many_networks, [*BETWEEN_THEIRS, *TO_HUB, *TO_OURS], 120),
    ("2^16 allowed IPs in a client's .conf", many_in_conf, FROM_CLIENT, 60),
    ("a wrong pre-shared key", wrong_psk, ALL, 30),
    ("a wrong key draws silence", wrong_key, ALL, 45),
    ("wg show, showconf and syncconf agree", agreement, ALL, 45),
    ("the link is deleted", deleted_link, BY_QUICK, 45),
    ("all traffic", all_traffic, WITHOUT_HUB, 30),
    ("stock peer, password user and poll client", together, TO_HUB, 60),
    ("peer disable, enable, remove", switched_off, TO_HUB, 90),
    ("peer add --public-key", key_made_elsewhere, TO_HUB, 30),
    ("peer export, to a server of theirs", exported, TO_HUB, 90),
    ("peer import, from a server of theirs", imported, TO_HUB, 60),
]

#: Those of the test suite: no waiting for a timer of the protocol.
QUICK = {
    (reach, "wireguard-go", "hub"),
    (reach, "client", "wireguard-go"),
    (roaming_client, "client", "wireguard-go"),
    (roaming_client, "pyvpn-wg", "pyvpn-wg"),
    (roaming_server, "wireguard-go", "hub"),
    (restarted_client, "wireguard-go", "wireguard-go"),
    (restarted_client, "wireguard-go", "hub"),
    (restarted_client, "client", "wireguard-go"),
    (agreement, "wireguard-go", "hub"),
    (agreement, "pyvpn-wg", "pyvpn-wg"),
    (deleted_link, "pyvpn-wg", "pyvpn-wg"),
    (all_traffic, "pyvpn-wg", "pyvpn-wg"),
    (together, "wireguard-go", "hub"),
    (key_made_elsewhere, "wireguard-go", "hub"),
    (imported, "wireguard-go", "hub"),
}


#: What it is called, what it does, the client's options, how many seconds it takes at most when it
#: is quick.
NETWORKS: list[tuple[str, Act, list[str], int]] = [
    ("home router", home.home, ["vpn alone", "all traffic"], 120),
    ("home router, programs that never rest", home.kill_switch, ["kill switch"], 150),
    ("home router, programs that never rest", home.without_kill_switch, ["all traffic"], 30),
    ("hostile café", cafe.cafe, ["vpn alone", "all traffic"], 120),
    ("hostile café, programs that never rest", cafe.kill_switch, ["kill switch"], 150),
    ("hostile café, a neighbour who probes", cafe.probes, ["all traffic"], 45),
    ("hostile café, routes to the VPN's own network", cafe.stolen, ["vpn alone"], 30),
    ("office LAN behind a client", office.office, ["vpn alone", "all traffic"], 150),
    (
        "office LAN behind a client, programs that never rest",
        office.kill_switch,
        ["kill switch"],
        120,
    ),
    ("hub with two uplinks", uplinks.uplinks, ["vpn alone", "all traffic"], 120),
    ("hub with two uplinks, one fails", uplinks.fails_over, ["kill switch"], 300),
]
#: Those of the test suite.
QUICK_NETWORKS = {
    (home.home, "all traffic"),
    (home.kill_switch, "kill switch"),
    (home.without_kill_switch, "all traffic"),
    (cafe.probes, "all traffic"),
    (cafe.stolen, "vpn alone"),
    (office.office, "vpn alone"),
    (uplinks.uplinks, "all traffic"),
}
#: Those in which a machine sleeps: twenty seconds, and once more for minutes, LONGER in all.
SLEEPING = {
    home.home,
    home.kill_switch,
    cafe.cafe,
    cafe.kill_switch,
    office.office,
    office.kill_switch,
}
LONGER = 200


def networks() -> list[Scene]:
    """Every scene of networks/."""
    found = []
    for name, act, variants, seconds in NETWORKS:
        for variant in variants:
            quick = (act, variant) in QUICK_NETWORKS
            full = f"{name}: {variant}"
            short = Scene(full, act, variant, "quick", quick, seconds, lab=NetworksLab)
            found.append(short)
            if act in SLEEPING:
                limit = seconds + LONGER
                full = f"{full}, long"
                found.append(Scene(full, act, variant, "long", False, limit, lab=NetworksLab))
    return found


def scenes(environment: Mapping[str, str] = os.environ) -> list[Scene]:
    """Every scene; those with the newest wireguard-go only where ``WIREGUARD_GO`` names one."""
    named = environment.get("WIREGUARD_GO")
    found = []
    for name, act, pairs, seconds in LIST:
        for client, server in pairs:
            if NEWEST in (client, server) and not named:
                continue
            quick = (act, client, server) in QUICK
            full = f"{name}: {client} to {server}"
            found.append(Scene(full, act, client, server, quick, seconds, loud=act is cookie))
    return [*found, *networks()]
