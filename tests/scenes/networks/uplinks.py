"""A hub with two ways to the internet, an address on each, of which one may fail.

::

      hub eth0 198.51.100.2, 2001:db8:1::2        hub eth1 198.19.0.2, 2001:db8:5::2
                    |                                           |
      ==============+===========================================+=================  inet

What leaves by either must have that one's address: providers drop the rest. two.example.org has
the addresses of both.
"""

from __future__ import annotations

from tests.netns.lab import INET, PORT, Host
from tests.scenes.ends import expect
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.course import LAPTOP, OPTIONS, SLEEP, Watch
from tests.scenes.networks.lab import (
    DNS,
    ELSEWHERE,
    HOME,
    HUB,
    SECOND,
    TWO_NAME,
    WWW_NAME,
    NetworksLab,
)
from tests.scenes.networks.reach import BLOCKED, FULL, FULL_NO_LAN, PLAIN, SPLIT, reaches
from tests.scenes.networks.state import same, snapshot
from tests.scenes.networks.wire import UDP, Sorting, frames, read

ROAD = "roamer"
FIRST = HUB
WAYS = {"eth0": FIRST, "eth1": SECOND}
ON_THE_ROAD = {"page www v4": f"{WWW_NAME} sees itself", "ping neighbour": "-"}
THERE = {"vpn alone": SPLIT, "all traffic": FULL}
SORTING = Sorting(
    hub={(address, PORT) for way in WAYS.values() for address in (way.ipv4, way.ipv6)},
    resolvers={HOME.gateway4, ELSEWHERE.gateway4},
    hub_names={TWO_NAME},
)


def uplinks(lab: NetworksLab, variant: str, length: str) -> None:
    """Clients who asked at different addresses of a hub are answered from those, whichever uplink
    its default route takes; with one uplink gone those who know a name come back by the other; a
    hub that is killed leaves its machine as it was, and its clients come back to the next."""
    _second_uplink(lab)
    before = snapshot(lab, "hub")
    hub = Hub(lab, "--internet", endpoint=FIRST.ipv4).start()
    alice, bob = Client(hub, LAPTOP, "alice"), Client(hub, ROAD, "bob", at=SECOND.ipv4)
    captures = {name: lab.capture(INET, name, f"{name}.pcap") for name in ("hub", "second")}

    def all_reach(when: str, seconds: float = 15) -> None:
        road = ON_THE_ROAD if variant == "vpn alone" else {"ping neighbour": "-"}
        reaches(lab, LAPTOP, THERE[variant], when, seconds=seconds)
        reaches(lab, ROAD, {**THERE[variant], **road}, when, seconds=seconds)

    alice.up(*OPTIONS[variant])
    bob.up(*OPTIONS[variant])
    all_reach("asked at both uplinks")
    _default_by(lab, SECOND)
    all_reach("with the default route by the second uplink")
    _default_by(lab, FIRST)
    all_reach("with the default route by the first again")
    seen = {name: _answered_from(lab.captured(process)) for name, process in captures.items()}
    right = {"hub": {FIRST.ipv4}, "second": {SECOND.ipv4}}
    expect(seen == right, f"answers left from {seen}, where {right} is right")

    hub.kill()
    same(before, snapshot(lab, "hub"), "on the hub after kill -9")
    hub.start()
    all_reach("with the hub started again", 60)
    bob.down()
    alice.down()
    hub.stop()
    same(before, snapshot(lab, "hub"), "on the hub after its end")


def fails_over(lab: NetworksLab, variant: str, length: str) -> None:
    """A client who knows the hub by a name with both addresses comes back when the uplink that it
    uses fails, either of them, and after sleep, in another place and after ``kill -9`` too; with
    the kill switch, without a plaintext packet."""
    _second_uplink(lab)
    hub = Hub(lab, "--internet", endpoint=TWO_NAME).start()
    alice = Client(hub, LAPTOP, "alice")
    before = snapshot(lab, LAPTOP)
    watch = Watch(lab, LAPTOP, "router", LAPTOP, SORTING)
    alice.up(*OPTIONS[variant])
    watch.set()
    reaches(lab, LAPTOP, FULL_NO_LAN, "connected")
    for gone, left in ((FIRST, SECOND), (SECOND, FIRST)):
        _fail(lab, gone)
        _default_by(lab, left)
        reaches(lab, LAPTOP, FULL_NO_LAN, f"with {gone.ipv4} gone", seconds=90)
        _fail(lab)
    hub.kill()
    reaches(lab, LAPTOP, BLOCKED, "with the hub killed")
    hub.start()
    reaches(lab, LAPTOP, FULL_NO_LAN, "with the hub started again", seconds=60)
    alice.suspend(SLEEP[length])
    reaches(lab, LAPTOP, FULL_NO_LAN, "after sleep", seconds=60)
    for place, when in ((ELSEWHERE, "in another place"), (HOME, "back again")):
        lab.move(LAPTOP, place)
        reaches(lab, LAPTOP, FULL_NO_LAN, when, seconds=60)
    for with_child in (False, True):
        alice.kill(with_child=with_child)
        reaches(lab, LAPTOP, BLOCKED, "after kill -9")
        alice.up(*OPTIONS[variant])
        reaches(lab, LAPTOP, FULL_NO_LAN, "started after kill -9")
    watch.lifted()
    alice.down()
    reaches(lab, LAPTOP, PLAIN, "after 'pyvpn down'")
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn down'")
    watch.judge("tunnel", "neighbours", "dhcp", "resolver")


def _second_uplink(lab: NetworksLab) -> None:
    """The hub gets its second uplink, and rules by which each address leaves by its own."""
    lab.serve(HOME)
    lab.lease(LAPTOP)
    lab.plug(INET, "second", "hub", "eth1")
    near = (f"{SECOND.gateway4}/24", f"{SECOND.gateway6}/64")
    lab.ip(INET, *(f"address add {address} dev second" for address in near))
    own = (f"{SECOND.ipv4}/24", f"{SECOND.ipv6}/64")
    lab.ip("hub", *(f"address add {address} dev eth1" for address in own))
    for table, way in ((101, FIRST), (102, SECOND)):
        for family, address in (("-4", way.ipv4), ("-6", way.ipv6)):
            rule = ["ip", family, "rule", "add", "from", address, "lookup", str(table)]
            lab.run("hub", rule, check=True)
        _routes(lab, way, f"table {table}")
    lab.name_servers("hub", DNS)


def _routes(lab: NetworksLab, way: Host, where: str = "") -> None:
    """The default routes of both families by an uplink."""
    device = next(name for name, each in WAYS.items() if each is way)
    for gateway in (way.gateway4, way.gateway6):
        lab.ip("hub", f"route replace default via {gateway} dev {device} {where}")


def _default_by(lab: NetworksLab, way: Host) -> None:
    """What is not asked for at an address of the hub's leaves by this uplink."""
    # Other than IPv4's, 'replace' leaves IPv6's by another device alone.
    lab.run("hub", ["ip", "-6", "route", "flush", "default", "table", "main"])
    _routes(lab, way)


def _fail(lab: NetworksLab, *ways: Host) -> None:
    """Of these uplinks' providers one hears nothing any more, of the others again; the hub's
    interfaces do not notice."""
    names = {"hub" if way is FIRST else "second" for way in ways}
    drops = {
        hook: [f"{key} {name} drop" for name in names]
        for hook, key in (("prerouting", "iifname"), ("postrouting", "oifname"))
    }
    chains = [
        f"chain {hook} {{ type filter hook {hook} priority -400; {'; '.join(rules)}; }}"
        for hook, rules in drops.items()
        if rules
    ]
    table = "table inet failed"
    rules = "\n".join([f"add {table}", f"delete {table}", f"{table} {{", *chains, "}"])
    lab.run(INET, ["nft", "-f", "-"], stdin=rules, check=True)


def _answered_from(pcap: bytes) -> set[str]:
    """The addresses that the hub has sent from, out of its port."""
    packets = (read(frame.data) for frame in frames(pcap))
    return {
        str(each.source)
        for each in packets
        if each is not None and each.protocol == UDP and each.source_port == PORT
    }
