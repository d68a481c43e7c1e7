"""What happens to a laptop with a client on it, wherever it is: the same course of things at home
and in a café."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from tests.netns.lab import PORT
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
    Subnet,
)
from tests.scenes.networks.reach import BLOCKED, FULL_NO_LAN, reaches
from tests.scenes.networks.state import difference, same, snapshot
from tests.scenes.networks.wire import Sorting, tally

LAPTOP = "laptop"
#: What people choose, and the client's options for it.
OPTIONS = {
    "vpn alone": (),
    "all traffic": ("--all-traffic",),
    "kill switch": ("--all-traffic", "--kill-switch"),
}
#: How long a scene may be, and for how many seconds its machine sleeps.
SLEEP = {"quick": 20, "long": 180}
SORTING = Sorting(
    hub={(HUB.ipv4, PORT), (HUB.ipv6, PORT)},
    resolvers={HOME.gateway4, ELSEWHERE.gateway4},
    hub_names={VPN_NAME},
)
SORTING_OUTSIDE = replace(SORTING, resolvers={DNS})
#: Seconds for a packet that was on its way when the kill switch was set.
MOMENT = 0.1


@dataclass(frozen=True)
class Place:
    """A network that a laptop is in.

    :ivar router: options of the router's dnsmasq, where it hands out this subnet.
    :ivar plain: what can be done there without the VPN (reach.py).
    :ivar endpoint: what invitations to the VPN name.
    :ivar asks: whether the hub's name is asked for.
    :ivar settled: waits, with a lease in this subnet, until all is as it is going to be.
    """

    router: Callable[[Subnet], tuple[str, ...]]
    plain: Mapping[str, str]
    endpoint: str = VPN_NAME
    asks: bool = True
    settled: Callable[[NetworksLab, Subnet], None] = lambda lab, subnet: None

    def arrive(self, lab: NetworksLab, *, strict: bool) -> None:
        """The laptop has a lease, and reaches what there is but the VPN.

        :param strict: whether it drops what comes from where it would not answer to (rp_filter).
        """
        lab.serve(HOME, *self.router(HOME))
        setting = f"net.ipv4.conf.all.rp_filter={int(strict)}"
        lab.run(LAPTOP, ["sysctl", "-qw", setting], check=True)
        lab.lease(LAPTOP)
        self.settled(lab, HOME)
        reaches(lab, LAPTOP, self.plain, "before the VPN")

    def move(self, lab: NetworksLab, subnet: Subnet) -> None:
        """The laptop comes into another network of the same kind."""
        lab.move(LAPTOP, subnet, *self.router(subnet))
        self.settled(lab, subnet)


def stay(
    lab: NetworksLab, place: Place, there: Mapping[str, str], variant: str, length: str
) -> None:
    """The laptop has arrived. With the VPN `there` can be done, after sleep and in another place
    too; after ``pyvpn down``, SIGTERM, ``kill -9`` and ``pyvpn cleanup`` all is as before."""
    client = Client(Hub(lab, "--internet", endpoint=place.endpoint).start(), LAPTOP, "alice")
    before = snapshot(lab, LAPTOP)
    elsewhere = neighbour(ELSEWHERE)

    def up(when: str) -> None:
        client.up(*OPTIONS[variant])
        reaches(lab, LAPTOP, there, when)
        expect(difference(before, snapshot(lab, LAPTOP)), "the VPN changes nothing one could see")

    def as_before(when: str) -> None:
        same(before, snapshot(lab, LAPTOP), when)
        reaches(lab, LAPTOP, place.plain, when)

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
    place.move(lab, ELSEWHERE)
    reaches(lab, LAPTOP, there, "in another place", seconds=45, lan=elsewhere)
    client.down()
    reaches(lab, LAPTOP, place.plain, "after 'pyvpn down' in another place", lan=elsewhere)
    given = lab.etc(LAPTOP, "resolv.conf").read_text()
    expect(given == f"nameserver {ELSEWHERE.gateway4}\n", f"there resolv.conf is {given!r}")
    place.move(lab, HOME)
    as_before("back again")


class Watch:
    """Programs that never rest on a host, and a recording of what they put on the wire. At first
    nothing stops them.

    :param namespace: where the host's cable ends, at `interface`.
    """

    def __init__(
        self, lab: NetworksLab, host: str, namespace: str, interface: str, sorting: Sorting
    ) -> None:
        self.lab = lab
        self.host = host
        self.sorting = sorting
        self._since = self._until = 0.0
        words = (WWW.ipv4, WWW.ipv6, DNS, WWW_NAME, neighbour(HOME))
        self._talking = lab.spawn(host, [sys.executable, talk.__file__, *words], "talk")
        self._talking.wait_for_text("talking 2")
        self._recording = lab.capture(namespace, interface, f"{host}.pcap")
        self._some("at first")

    def set(self) -> None:
        """From now on the kill switch stands."""
        self._since = time.time() + MOMENT

    def lifted(self) -> None:
        """It has been lifted at this moment, or is about to be."""
        self._until = time.time()

    def recorded(self) -> bytes:
        """End the programs; all that was on the wire."""
        self._some("at the end")
        self._talking.stop()
        return self.lab.captured(self._recording)

    def judge(self, *let_out: str) -> None:
        """End the programs. :class:`Failed` unless there was no plaintext while the kill switch
        stood, some of each kind that is let out, and plaintext before and after."""
        pcap, mac = self.recorded(), self.lab.mac(self.host)
        sort = partial(tally, pcap, self.sorting, source=mac)
        found = sort(since=self._since, until=self._until)
        expect(not found.kinds["plaintext"], f"plaintext on the wire: {found}")
        for kind in let_out:
            expect(found.kinds[kind], f"no {kind} on the wire: {found}")
        for when, found in (
            ("before", sort(until=self._since - 2 * MOMENT)),
            ("after", sort(since=self._until)),
        ):
            expect(found.kinds["plaintext"] > 10, f"{when} the kill switch no plaintext: {found}")

    def _some(self, when: str) -> None:
        """Let them talk for a moment."""
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1, f"some plaintext {when}", 5)


def never_rest(lab: NetworksLab, place: Place, length: str) -> None:
    """The laptop has arrived. With the kill switch, programs that never rest put not one plaintext
    packet on the wire, whatever happens, until the kill switch is lifted."""
    hub = Hub(lab, "--internet", endpoint=place.endpoint).start()
    client = Client(hub, LAPTOP, "alice")
    before = snapshot(lab, LAPTOP)
    up = partial(client.up, *OPTIONS["kill switch"])
    watch = Watch(lab, LAPTOP, "router", LAPTOP, SORTING)
    hub.stop()
    up()
    watch.set()
    _through_all(lab, place, hub, client, up, length)
    watch.lifted()
    client.cleanup("--kill-switch")
    reaches(lab, LAPTOP, place.plain, "after 'pyvpn cleanup --kill-switch'")
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn cleanup --kill-switch'")
    up()
    reaches(lab, LAPTOP, FULL_NO_LAN, "connected after 'pyvpn cleanup --kill-switch'")
    client.down()
    reaches(lab, LAPTOP, place.plain, "after 'pyvpn down'")
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn down'")
    watch.judge("tunnel", "neighbours", "dhcp", *(["resolver"] if place.asks else []))


def _through_all(
    lab: NetworksLab,
    place: Place,
    hub: Hub,
    client: Client,
    up: Callable[[], None],
    length: str,
) -> None:
    """All that the kill switch must stand."""

    def stands(when: str) -> None:
        expect(client.has_kill_switch(), f"no kill switch {when}")
        reaches(lab, LAPTOP, BLOCKED, when)

    def connected(when: str, seconds: float = 30, subnet: Subnet = HOME) -> None:
        reaches(lab, LAPTOP, FULL_NO_LAN, when, seconds=seconds, lan=neighbour(subnet))

    stands("with the hub away")
    hub.start()
    connected("connected", 60)
    client.suspend(SLEEP[length])
    connected("after sleep")
    client.end()
    stands("after SIGTERM")
    up()
    connected("connected after SIGTERM")
    client.kill(with_child=False)
    stands("after kill -9 of the service")
    up()
    connected("connected after kill -9")
    client.kill(with_child=True)
    stands("after kill -9 of service and child")
    client.cleanup()
    stands("after 'pyvpn cleanup'")
    up()
    connected("connected after 'pyvpn cleanup'")
    place.move(lab, ELSEWHERE)
    connected("in another place", 45, ELSEWHERE)
    place.move(lab, HOME)
    connected("back again", 45)
    client.kill(with_child=True)
    client.cleanup()
    stands("after 'pyvpn cleanup' once more")


def neighbour(subnet: Subnet) -> str:
    """The address of the other host in the LAN."""
    return f"{subnet.ipv4}.66"
