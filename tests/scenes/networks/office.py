"""An office LAN that lies behind a client: ``--share`` there, ``pyvpn route add`` on the hub.

The picture's router is the office's; its laptop is the machine that shares the LAN, its neighbour a
printer with a web page, which knows nothing of any VPN. Bob is on the road, at the roamer.
"""

from __future__ import annotations

from tests.scenes.ends import expect
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.course import OPTIONS, SLEEP, SORTING_OUTSIDE, Watch, neighbour
from tests.scenes.networks.lab import HOME, PRINTER_NAME, ROAMER, WWW_NAME, NetworksLab
from tests.scenes.networks.reach import BLOCKED, FULL, PLAIN, SPLIT, reaches
from tests.scenes.networks.state import difference, same, snapshot

GATEWAY, PRINTER, ROAD = "laptop", "neighbour", "roamer"
LAN = f"{HOME.ipv4}.0/24"
SHARE = ("--share", LAN)
#: What Bob can do without the VPN: the printer is not on the internet.
BOB = {**PLAIN, "page www v4": f"{WWW_NAME} sees itself", "ping neighbour": "-"}
#: With it, and the printer beyond it.
THERE = {
    "vpn alone": {**SPLIT, "page www v4": f"{WWW_NAME} sees itself"},
    "all traffic": FULL,
    "kill switch": FULL,
}


def office(lab: NetworksLab, variant: str, length: str) -> None:
    """A printer behind a client is reached by another client, by ping and by name, from the moment
    that the hub is told of its LAN until it is told otherwise or that client ends, however; the
    printer sees a neighbour. Both clients and the hub leave their machines as they were."""
    hub, gateway, bob = _opened(lab)
    machines = (GATEWAY, ROAD, "hub")
    hub.stop()
    before = {host: snapshot(lab, host) for host in machines}
    hub.start()
    gateway.up(*SHARE)
    bob.up(*OPTIONS[variant])
    alone = {**THERE[variant], "ping neighbour": "-"}
    reaches(lab, ROAD, alone, "before the hub knows of the LAN")
    lab.pyvpn("hub", "route", "add", LAN, "--via", "office")
    _printer_answers(lab, variant, "once the hub knows of the LAN")
    lab.pyvpn("hub", "route", "remove", LAN)
    reaches(lab, ROAD, alone, "after 'pyvpn route remove'")
    lab.pyvpn("hub", "route", "add", LAN, "--via", "office")
    _printer_answers(lab, variant, "after 'pyvpn route add' once more")
    for host in machines:
        expect(difference(before[host], snapshot(lab, host)), f"the VPN changes nothing on {host}")
    gateway.suspend(SLEEP[length])
    _printer_answers(lab, variant, "after the gateway's sleep")
    _bob_moves(lab)
    _printer_answers(lab, variant, "after Bob's address has changed")
    _bob_moves(lab, back=True)
    _gateway_dies(lab, gateway, before[GATEWAY], variant)
    bob.down()
    reaches(lab, ROAD, BOB, "after 'pyvpn down'")
    gateway.down()
    hub.stop()
    for host in machines:
        same(before[host], snapshot(lab, host), f"on {host} after the end")


def kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """Bob, who reaches the printer through the VPN with his kill switch set, sends not one
    plaintext packet, to the office or elsewhere, whatever happens to his client."""
    hub, gateway, bob = _opened(lab)
    lab.pyvpn("hub", "route", "add", LAN, "--via", "office")
    gateway.up(*SHARE)
    before = snapshot(lab, ROAD)
    watch = Watch(lab, ROAD, "inet", ROAD, SORTING_OUTSIDE)
    bob.up(*OPTIONS[variant])
    watch.set()
    _printer_answers(lab, variant, "connected")
    bob.suspend(SLEEP[length])
    _printer_answers(lab, variant, "after sleep")
    _bob_moves(lab)
    _printer_answers(lab, variant, "after an address change")
    _bob_moves(lab, back=True)
    for with_child in (False, True):
        bob.kill(with_child=with_child)
        reaches(lab, ROAD, BLOCKED, f"after kill -9, with child: {with_child}")
        bob.up(*OPTIONS[variant])
        _printer_answers(lab, variant, "connected after kill -9")
    hub.stop()
    reaches(lab, ROAD, BLOCKED, "with the hub away")
    hub.start()
    _printer_answers(lab, variant, "with the hub back")
    watch.lifted()
    bob.down()
    reaches(lab, ROAD, BOB, "after 'pyvpn down'")
    same(before, snapshot(lab, ROAD), "after 'pyvpn down'")
    watch.judge("tunnel", "neighbours", "resolver")


def _opened(lab: NetworksLab) -> tuple[Hub, Client, Client]:
    """The office is at work and Bob on the road: hub, the office's client, Bob's."""
    lab.serve(HOME)
    lab.lease(GATEWAY)
    lab.web(PRINTER, "printer")
    lab.web(ROAD, "bob")
    reaches(lab, ROAD, BOB, "before the VPN")
    asked = lab.run(ROAD, ["getent", "ahostsv4", PRINTER_NAME], check=True).stdout
    expect(neighbour(HOME) in asked, f"{PRINTER_NAME} is {asked!r}")
    hub = Hub(lab, "--internet").start()
    return hub, Client(hub, GATEWAY, "office"), Client(hub, ROAD, "bob")


def _printer_answers(lab: NetworksLab, variant: str, when: str) -> None:
    """Ping and page by name, and the printer has seen a machine of its own LAN; in the other
    direction the office's machine gets Bob's page by his name."""
    reaches(lab, ROAD, THERE[variant], when, seconds=45)
    (mine, *_) = lab.addresses(GATEWAY, "eth0")
    for host, name, right in (
        (ROAD, PRINTER_NAME, f"printer {mine}"),
        (GATEWAY, "bob.pyvpn", f"bob {lab.addresses(GATEWAY)[0]}"),
    ):
        argv = ["curl", "-sS", "-4", "-m", "5", f"http://{name}/"]
        page = lab.run(host, argv)
        said = page.stdout.strip() or page.stderr.strip()
        expect(said == right, f"{when}, {host} gets {said!r} of {name}, where {right!r} is right")


def _gateway_dies(lab: NetworksLab, gateway: Client, before: str, variant: str) -> None:
    """Whatever ends the office's client, its machine is as before and the printer out of reach;
    another start brings it back."""
    alone = {**THERE[variant], "ping neighbour": "-"}
    for with_child in (False, True):
        gateway.kill(with_child=with_child)
        if with_child:
            gateway.cleanup()
        same(before, snapshot(lab, GATEWAY), f"on the gateway after kill -9 ({with_child=})")
        reaches(lab, ROAD, alone, "after kill -9 of the gateway's client")
        gateway.up(*SHARE)
        _printer_answers(lab, variant, "with the gateway started again")


def _bob_moves(lab: NetworksLab, *, back: bool = False) -> None:
    """Bob's machine gets another address, or the old one."""
    old, new = ROAMER.ipv4, f"{ROAMER.ipv4}3"
    old6, new6 = ROAMER.ipv6, f"{ROAMER.ipv6}3"
    if back:
        old, new, old6, new6 = new, old, new6, old6
    # The old ones first: a second address of a network goes with the first.
    lines = [f"address del {old}/24 dev eth0", f"address del {old6}/64 dev eth0"]
    lines += [f"address add {new}/24 dev eth0", f"address add {new6}/64 dev eth0"]
    ways = (ROAMER.gateway4, ROAMER.gateway6)
    lines += [f"route replace default via {way} dev eth0" for way in ways]
    lab.ip(ROAD, *lines)
