"""In a café whose network is hostile.

Its DHCP sends everything through the neighbour by routes that are longer than a default (option
121), also into the VPN; its resolver sends every name to the neighbour's web server;
the neighbour forwards what it gets, announces itself as an IPv6 router with such routes, and knocks
at the tunnel's addresses from the LAN.
"""

from __future__ import annotations

import sys
from functools import partial

from tests.netns.lab import TUN
from tests.scenes.ends import expect
from tests.scenes.networks import attacks
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.course import (
    LAPTOP,
    OPTIONS,
    SORTING,
    Place,
    neighbour,
    never_rest,
    stay,
)
from tests.scenes.networks.lab import HOME, HUB, WWW, NetworksLab, Subnet
from tests.scenes.networks.reach import FULL, PLAIN, SPLIT, reaches
from tests.scenes.networks.state import same, snapshot
from tests.scenes.networks.wire import tally

ATTACKER = "neighbour"
#: Addresses for the control of the probes; no client gets them.
BARE = ("10.10.0.250", "fd00:77::250")
#: Pings that follow the probes.
MARKERS = 5
#: Holds the VPN's network.
WIDE = "10.0.0.0/8"
#: The VPN's network itself, and the hub in it.
ITSELF = ("10.10.0.0/24", f"{HUB.inner4}/32")

#: Every name is the attacker's.
LIED = {
    **PLAIN,
    "name www": neighbour(HOME),
    "page www v4": f"{ATTACKER} sees itself",
    "page www v6": f"{ATTACKER} sees itself",
    "name hub.pyvpn": neighbour(HOME),
    "page hub.pyvpn v4": f"{ATTACKER} sees itself",
    "page hub.pyvpn v6": f"{ATTACKER} sees itself",
}
THERE = {"vpn alone": SPLIT, "all traffic": FULL}


def rogue(subnet: Subnet, *more: str) -> tuple[str, ...]:
    """What the hostile router hands out; `more` are routes."""
    routes = ("0.0.0.0/1", "128.0.0.0/1", f"{WWW.ipv4}/32", WIDE, *more)
    by_attacker = ",".join(f"{route},{neighbour(subnet)}" for route in routes)
    # One address for every subnet: what is said must not depend on where it is said.
    lies = [f"--address=/#/{neighbour(HOME)}", f"--address=/#/{HOME.ipv6}::66"]
    return (f"--dhcp-option=121,{by_attacker}", *lies)


def settled(lab: NetworksLab, subnet: Subnet) -> None:
    """Wait until everything outside the VPN goes through the neighbour, who announces himself once
    a second."""
    for network, by in (
        ("0.0.0.0/1", neighbour(subnet)),
        ("128.0.0.0/1", neighbour(subnet)),
        ("::/1", lab.link_local(ATTACKER)),
        ("8000::/1", lab.link_local(ATTACKER)),
    ):
        known = partial(_goes_by, lab, network, by)
        lab.wait_until(known, f"the way to {network} by the neighbour", 15)


PLACE = Place(rogue, LIED, endpoint=HUB.ipv4, asks=False, settled=settled)


def enter(lab: NetworksLab) -> None:
    """The laptop is in the café, and its packets go through the neighbour."""
    forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
    quiet = ["net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0"]
    lab.run(ATTACKER, ["sysctl", "-qw", *forward, *quiet], check=True)
    lab.web(ATTACKER, ATTACKER)
    # As NetworkManager has it: what a router announces is believed to the last bit.
    believe = "net.ipv6.conf.eth0.accept_ra_rt_info_max_plen=128"
    lab.run(LAPTOP, ["sysctl", "-qw", believe], check=True)
    lab.spawn(ATTACKER, [sys.executable, attacks.__file__, "announce"], "announce")
    PLACE.arrive(lab, strict=False)


def cafe(lab: NetworksLab, variant: str, length: str) -> None:
    """In a hostile café the VPN's network, and with all traffic everything, goes into the tunnel
    all the same; names are the hub's; after each end of the client the machine is as before."""
    enter(lab)
    stay(lab, PLACE, THERE[variant], variant, length)


def kill_switch(lab: NetworksLab, variant: str, length: str) -> None:
    """In a hostile café the kill switch lets not one plaintext packet out, as at home."""
    enter(lab)
    never_rest(lab, PLACE, length)


def stolen(lab: NetworksLab, variant: str, length: str) -> None:
    """A café that claims to have the VPN's own network, and the hub in it, by routes through the
    neighbour, gets nothing of what is for the VPN, and does not keep the client from it."""
    enter(lab)
    client = Client(Hub(lab, "--internet", endpoint=HUB.ipv4).start(), LAPTOP, "alice")
    lab.move(LAPTOP, HOME, *rogue(HOME, *ITSELF))
    settled(lab, HOME)
    for network in ITSELF:
        expect(_goes_by(lab, network, neighbour(HOME)), f"{network} is not the neighbour's")
    before = snapshot(lab, LAPTOP)
    client.up(*OPTIONS[variant])
    reaches(lab, LAPTOP, THERE[variant], "connected")
    client.down()
    same(before, snapshot(lab, LAPTOP), "after 'pyvpn down'")


def probes(lab: NetworksLab, variant: str, length: str) -> None:
    """A neighbour who sends to the tunnel's addresses on the LAN, as himself and as somebody whom
    the laptop talks to through the tunnel, learns nothing: no packet comes back, in the LAN or
    through the tunnel, while an address that is not the tunnel's answers him. With all traffic in
    the tunnel nothing goes through his hands, whatever he and the router announce."""
    enter(lab)
    client = Client(Hub(lab, "--internet", endpoint=HUB.ipv4).start(), LAPTOP, "alice")
    for bare in BARE:
        lab.ip(LAPTOP, f"address add {bare} dev lo")
        answers = _probed(lab, bare)
        expect(min(answers) > 0, f"probes of {bare}, in no tunnel, draw no answer: {answers}")
        lab.ip(LAPTOP, f"address del {bare} dev lo")

    client.up(*OPTIONS[variant])
    reaches(lab, LAPTOP, FULL, "connected")
    recording = lab.capture("router", LAPTOP, "cafe.pcap")
    for address in map(str, lab.addresses(LAPTOP)):
        answers = _probed(lab, address)
        expect(max(answers) == 0, f"to probes of {address} the laptop has answered: {answers}")
    reaches(lab, LAPTOP, FULL, "connected, and probed")
    found = tally(lab.captured(recording), SORTING, source=lab.mac(LAPTOP))
    # The LAN stays reachable without the kill switch: these are a ping of the neighbour's, and the
    # answers to what followed the probes.
    answers_to_markers = f"ICMP type 0 to {neighbour(HOME)}"
    leaked = set(found.plaintext) - {f"ICMP type 8 to {neighbour(HOME)}", answers_to_markers}
    expect(not leaked, f"around the tunnel went {sorted(leaked)}")
    replies, right = found.plaintext[answers_to_markers], MARKERS * len(lab.addresses(LAPTOP))
    expect(replies == right, f"the neighbour got {replies} echo replies, where {right} are right")
    expect(found.kinds["tunnel"], f"nothing went through the tunnel: {found}")
    # Were it not for our table, they would be answered.
    lab.run(LAPTOP, ["nft", "delete", "table", "inet", f"pyvpn-{TUN}"], check=True)
    for address in map(str, lab.addresses(LAPTOP)):
        answers = _probed(lab, address)
        expect(
            max(answers) > 0, f"without our table, probes of {address} draw no answer: {answers}"
        )
    client.down()
    reaches(lab, LAPTOP, LIED, "after 'pyvpn down'")


def _probed(lab: NetworksLab, address: str) -> tuple[int, int]:
    """Probe an address of the laptop's from the LAN; how many echo replies and TCP resets the
    laptop has sent for it, wherever to."""
    six = ":" in address
    before = _sent(lab)
    argv = [sys.executable, attacks.__file__, "probe", address, lab.mac(LAPTOP), lab.mac(ATTACKER)]
    sources = (f"{HOME.ipv6}::66", WWW.ipv6) if six else (neighbour(HOME), WWW.ipv4)
    lab.run(ATTACKER, [*argv, *sources], check=True)
    # A machine that is busy takes its time: once it has answered these, it has seen the probes.
    (mine, *_) = lab.addresses(LAPTOP, "eth0")
    expect(lab.ping(ATTACKER, str(mine), count=MARKERS).returncode == 0, "the LAN is silent")
    after = _sent(lab)
    return after[0] - before[0] - MARKERS, after[1] - before[1]


def _goes_by(lab: NetworksLab, network: str, by: str) -> bool:
    family = "-6" if ":" in network else "-4"
    argv = ["ip", family, "route", "show", "exact", network, "table", "main"]
    return f"via {by} " in lab.run(LAPTOP, argv, check=True).stdout


def _sent(lab: NetworksLab) -> tuple[int, int]:
    """Echo replies of both families and TCP resets that the laptop's kernel has sent."""
    argv = ["nstat", "-asz", "IcmpOutEchoReps", "Icmp6OutEchoReplies", "TcpOutRsts"]
    values = {}
    for line in lab.run(LAPTOP, argv, check=True).stdout.splitlines()[1:]:
        name, value, *_ = line.split()
        values[name] = int(value)
    replies = values["IcmpOutEchoReps"] + values["Icmp6OutEchoReplies"]
    return replies, values["TcpOutRsts"]
