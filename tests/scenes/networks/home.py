"""At home: a router that translates addresses, hands them out and answers DNS."""

from __future__ import annotations

import sys
import time

from tests.netns.lab import PORT, Process
from tests.netns.processes import wait_until
from tests.scenes.ends import expect
from tests.scenes.networks import talk
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.lab import (
    DNS,
    ELSEWHERE,
    HOME,
    HUB,
    VPN_NAME,
    WWW,
    WWW_NAME,
    NetworksLab,
)
from tests.scenes.networks.reach import BLOCKED, FULL, FULL_NO_LAN, PLAIN, SPLIT, reaches
from tests.scenes.networks.state import difference, same, snapshot
from tests.scenes.networks.wire import Sorting, Tally, tally

LAPTOP = "laptop"
#: variant → the client's options, and what can be done with them
VARIANTS = {
    "vpn alone": ((), SPLIT),
    "all traffic": (("--all-traffic",), FULL),
    "kill switch": (("--all-traffic", "--kill-switch"), FULL_NO_LAN),
}
#: length → seconds that the machine sleeps
SLEEP = {"quick": 20, "long": 180}
NEIGHBOUR, NEIGHBOUR_ELSEWHERE = f"{HOME.ipv4}.66", f"{ELSEWHERE.ipv4}.66"
SORTING = Sorting(
    hub={(HUB.ipv4, PORT), (HUB.ipv6, PORT)},
    resolvers={HOME.gateway4, ELSEWHERE.gateway4},
    hub_names={VPN_NAME},
)
#: One more than the tunnel's own: a packet that was on its way when the kill switch was set.
MOMENT = 0.1


def at_home(lab: NetworksLab) -> None:
    """The laptop has a lease, and reaches all there is but the VPN."""
    lab.serve(HOME)
    # As strict as some distributions have it.
    lab.run(LAPTOP, ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"], check=True)
    lab.lease(LAPTOP)
    reaches(lab, LAPTOP, PLAIN, "before the VPN")


def home(lab: NetworksLab, variant: str, length: str) -> None:
    """Behind a home router: names, pages and pings are as the options say, after sleep and in
    another place too; and after ``pyvpn down``, SIGTERM, ``kill -9`` and ``pyvpn cleanup`` the
    machine is as it was before, while it was not with the VPN up."""
    at_home(lab)
    client = Client(Hub(lab, "--internet").start(), LAPTOP, "alice")
    options, there = VARIANTS[variant]
    before = snapshot(lab, LAPTOP)

    def up(when: str) -> None:
        client.up(*options)
        reaches(lab, LAPTOP, there, when)
        expect(difference(before, snapshot(lab, LAPTOP)), "the VPN changes nothing one could see")

    def as_before(when: str) -> None:
        same(before, snapshot(lab, LAPTOP), when)
        reaches(lab, LAPTOP, PLAIN, when)

    up("connected")
    client.suspend(SLEEP[length])
    reaches(lab, LAPTOP, there, "after sleep", seconds=30)
    client.down()
    as_before("after 'pyvpn down'")

    up("connected again")
    client.end()
    as_before("after SIGTERM")

    up("connected after SIGTERM")
    client.kill(with_child=False)
    # The child undoes it, and is gone when kill() returns.
    as_before("after kill -9 of the service")

    up("connected after kill -9")
    client.kill(with_child=True)
    left = snapshot(lab, LAPTOP)
    expect(difference(before, left), "kill -9 of service and child leaves nothing to clean up")
    client.cleanup()
    as_before("after kill -9 of service and child, and 'pyvpn cleanup'")

    up("connected after 'pyvpn cleanup'")
    lab.move(LAPTOP, ELSEWHERE)
    reaches(lab, LAPTOP, there, "in another place", seconds=45, lan=NEIGHBOUR_ELSEWHERE)
    client.down()
    reaches(lab, LAPTOP, PLAIN, "after 'pyvpn down' in another place", lan=NEIGHBOUR_ELSEWHERE)
    given = lab.etc(LAPTOP, "resolv.conf").read_text()
    expect(given == f"nameserver {ELSEWHERE.gateway4}\n", f"there resolv.conf is {given!r}")
    lab.move(LAPTOP, HOME)
    as_before("at home again")


def kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """With the kill switch programs that never rest put not one plaintext packet on the wire: with
    the hub away, connected, asleep, after SIGTERM and ``kill -9``, across restarts, in another
    place, after ``pyvpn cleanup``; it stands until ``pyvpn cleanup --kill-switch`` or ``down``."""
    at_home(lab)
    hub = Hub(lab, "--internet").start()
    client = Client(hub, LAPTOP, "alice")
    options, there = VARIANTS["kill switch"]
    before = snapshot(lab, LAPTOP)
    talking = talk_on(lab)
    recording = lab.capture("router", LAPTOP, "kill-switch.pcap")
    # Two seconds of what the kill switch is there to stop.
    wait_until(lambda: time.monotonic() - recording.started > 2, "some plaintext", 5)

    def stands(when: str) -> None:
        expect(client.has_kill_switch(), f"no kill switch {when}")
        reaches(lab, LAPTOP, BLOCKED, when)

    hub.stop()
    client.up(*options)
    since = time.time() + MOMENT
    stands("with the hub away")
    hub.start()
    reaches(lab, LAPTOP, there, "connected", seconds=60)
    client.suspend(SLEEP[length])
    reaches(lab, LAPTOP, there, "after sleep", seconds=30)
    client.end()
    stands("after SIGTERM")
    client.up(*options)
    reaches(lab, LAPTOP, there, "connected after SIGTERM")
    client.kill(with_child=False)
    stands("after kill -9 of the service")
    client.up(*options)
    reaches(lab, LAPTOP, there, "connected after kill -9")
    client.kill(with_child=True)
    stands("after kill -9 of service and child")
    client.cleanup()
    stands("after 'pyvpn cleanup'")
    client.up(*options)
    reaches(lab, LAPTOP, there, "connected after 'pyvpn cleanup'")
    lab.move(LAPTOP, ELSEWHERE)
    reaches(lab, LAPTOP, there, "in another place", seconds=45, lan=NEIGHBOUR_ELSEWHERE)
    lab.move(LAPTOP, HOME)
    reaches(lab, LAPTOP, there, "at home again", seconds=45)
    client.kill(with_child=True)
    client.cleanup()
    until = time.time()
    client.cleanup("--kill-switch")
    reaches(lab, LAPTOP, PLAIN, "after 'pyvpn cleanup --kill-switch'")
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn cleanup --kill-switch'")
    client.up(*options)
    reaches(lab, LAPTOP, there, "connected after 'pyvpn cleanup --kill-switch'")
    client.down()
    reaches(lab, LAPTOP, PLAIN, "after 'pyvpn down'")
    talking.stop()
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn down'")
    pcap = lab.captured(recording)
    mac = lab.mac(LAPTOP)
    expect(plaintext(tally(pcap, SORTING, source=mac, until=since)), "no plaintext before it")
    silent(tally(pcap, SORTING, source=mac, since=since, until=until))
    expect(plaintext(tally(pcap, SORTING, source=mac, since=until)), "no plaintext after it")


def without_kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """The same programs with all traffic in the tunnel and no kill switch: after ``kill -9`` what
    they send is on the wire in plaintext, so that the count of the kill switch's scene is one."""
    at_home(lab)
    client = Client(Hub(lab, "--internet").start(), LAPTOP, "alice")
    options, there = VARIANTS[variant]
    client.up(*options)
    reaches(lab, LAPTOP, there, "connected")
    talking = talk_on(lab)
    recording = lab.capture("router", LAPTOP, "without.pcap")
    wait_until(lambda: time.monotonic() - recording.started > 2, "something in the tunnel", 5)
    killed = time.time()
    client.kill(with_child=False)
    reaches(lab, LAPTOP, PLAIN, "after kill -9 of the service")
    talking.stop()
    pcap, mac = lab.captured(recording), lab.mac(LAPTOP)
    # A socket bound to eth0, and what goes to the neighbour, are let past a tunnel by intent.
    inside = tally(pcap, SORTING, source=mac, until=killed)
    around = {f"UDP to {WWW.ipv4} port 9", f"UDP to {WWW.ipv6} port 9"}
    leaked = {what for what in inside.plaintext if NEIGHBOUR not in what} - around
    expect(inside.kinds["tunnel"], f"nothing went through the tunnel: {inside}")
    expect(not leaked, f"around the tunnel went {sorted(leaked)}")
    after = tally(pcap, SORTING, source=mac, since=killed)
    for what in (f"ICMP type 8 to {WWW.ipv4}", f"ICMPv6 type 128 to {WWW.ipv6}"):
        expect(after.plaintext[what], f"after kill -9 there is no {what}: {after}")


def talk_on(lab: NetworksLab) -> Process:
    """Start the programs that never rest."""
    words = (WWW.ipv4, WWW.ipv6, DNS, WWW_NAME, NEIGHBOUR)
    talking = lab.spawn(LAPTOP, [sys.executable, talk.__file__, *words], "talk")
    talking.wait_for_text("talking 2")
    return talking


def plaintext(found: Tally) -> int:
    """How many packets of it there were."""
    return found.kinds["plaintext"]


def silent(found: Tally) -> None:
    """No plaintext; and of what is let out something, so that it was looked at the right place."""
    expect(not plaintext(found), f"plaintext on the wire: {found}")
    for kind in ("tunnel", "neighbours", "dhcp", "resolver"):
        expect(found.kinds[kind], f"no {kind} on the wire: {found}")
