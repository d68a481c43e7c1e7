"""At home: a router that translates addresses, hands them out and answers DNS."""

from __future__ import annotations

import time

from tests.scenes.ends import expect
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.course import (
    LAPTOP,
    OPTIONS,
    SORTING,
    Place,
    Watch,
    neighbour,
    never_rest,
    stay,
)
from tests.scenes.networks.lab import HOME, WWW, NetworksLab
from tests.scenes.networks.reach import FULL, PLAIN, SPLIT, reaches
from tests.scenes.networks.wire import tally

THERE = {"vpn alone": SPLIT, "all traffic": FULL}
PLACE = Place(lambda subnet: (), PLAIN)


def home(lab: NetworksLab, variant: str, length: str) -> None:
    """Behind a home router: names, pages and pings are as the options say, after sleep and in
    another place too; and after ``pyvpn down``, SIGTERM, ``kill -9`` and ``pyvpn cleanup`` the
    machine is as it was before, while it was not with the VPN up."""
    PLACE.arrive(lab, strict=True)
    stay(lab, PLACE, THERE[variant], variant, length)


def kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """With the kill switch programs that never rest put not one plaintext packet on the wire: with
    the hub away, connected, asleep, after SIGTERM and ``kill -9``, across restarts, in another
    place, after ``pyvpn cleanup``; it stands until ``pyvpn cleanup --kill-switch`` or ``down``."""
    PLACE.arrive(lab, strict=True)
    never_rest(lab, PLACE, length)


def without_kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """The same programs with all traffic in the tunnel and no kill switch: after ``kill -9`` what
    they send is on the wire in plaintext, so that the count of the kill switch's scene is one."""
    PLACE.arrive(lab, strict=True)
    client = Client(Hub(lab, "--internet").start(), LAPTOP, "alice")
    client.up(*OPTIONS[variant])
    reaches(lab, LAPTOP, FULL, "connected")
    watch = Watch(lab, LAPTOP, "router", LAPTOP, SORTING)
    killed = time.time()
    client.kill(with_child=False)
    reaches(lab, LAPTOP, PLAIN, "after kill -9 of the service")
    pcap, mac = watch.recorded(), lab.mac(LAPTOP)
    # A socket bound to eth0, and what goes to the neighbour, are let past a tunnel by intent.
    inside = tally(pcap, SORTING, source=mac, until=killed)
    around = {f"UDP to {WWW.ipv4} port 9", f"UDP to {WWW.ipv6} port 9"}
    leaked = {what for what in inside.plaintext if neighbour(HOME) not in what} - around
    expect(inside.kinds["tunnel"], f"nothing went through the tunnel: {inside}")
    expect(not leaked, f"around the tunnel went {sorted(leaked)}")
    after = tally(pcap, SORTING, source=mac, since=killed)
    for what in (f"ICMP type 8 to {WWW.ipv4}", f"ICMPv6 type 128 to {WWW.ipv6}"):
        expect(after.plaintext[what], f"after kill -9 there is no {what}: {after}")
