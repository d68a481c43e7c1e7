"""What passes through a tunnel, and what happens to it when addresses change or ends are killed."""

from __future__ import annotations

import time
from ipaddress import ip_address
from itertools import pairwise

from tests.netns.lab import INET, PORT
from tests.netns.pings import Pings
from tests.netns.processes import wait_until
from tests.scenes.ends import (
    NEWEST,
    THEIRS,
    at,
    expect,
)
from tests.scenes.hosts import WireGuardLab
from tests.scenes.timers import DEAD_AFTER, KEEPALIVE, LATE, RETRY
from tests.scenes.tunnel import Tunnel, pass_tcp, shown_endpoint
from tests.scenes.wire import Datagram

MEBIBYTE = 1 << 20


def reach(lab: WireGuardLab, client: str, server: str) -> None:
    """IPv4 and IPv6 inside, over IPv4 and IPv6 outside: pings of every size, TCP both ways."""
    tunnel = Tunnel(lab, client, server).up()
    near, far = tunnel.client, tunnel.server
    for outer in (4, 6):
        if outer == 6:
            near.down()
            near.edit(Endpoint=at(lab.hosts["hub"].ipv6, PORT))
            near.up()
            # Newer wireguard-go loses its first answers to a peer that was at IPv4 before.
            tunnel.answered("kiwi", far, (5 if server == NEWEST else 1) * RETRY + LATE)
        outside = ip_address(shown_endpoint(tunnel.peer_of_server().endpoint)[0])
        expect(outside.version == outer, f"outside it is {outside}, not IPv{outer}")
        for inner in (4, 6):
            for one, other in ((near, far), (far, near)):
                # Our hub's own link is wider than the path: the first large one tells its kernel.
                lab.ping(one.host, other.address(inner), "-s", "4000")
                for size in (0, 1, 15, 16, 1300, 1372, 4000):
                    tunnel.ping(one, other, inner, "-s", str(size), count=2)
                pass_tcp(lab, one.host, other.host, other.address(inner), 4 * MEBIBYTE)


def roaming_client(lab: WireGuardLab, client: str, server: str) -> None:
    """A NAT shows the client from another address and port in the middle of its traffic: the server
    follows at once, without a handshake. Then its own address changes under it."""
    tunnel = Tunnel(lab, client, server).up()
    before = tunnel.peer_of_server()
    port = shown_endpoint(before.endpoint)[1]
    with Pings(lab, "kiwi", tunnel.server.address()) as pings:
        lab.router(shown_as("kiwi", "hub", "203.0.113.2", "203.0.113.77", port, 40001))
        silence = pings.longest_silence()
    expect(silence < LATE, f"{silence:.2f} s without an answer behind the NAT")
    after = tunnel.peer_of_server()
    expect(after.endpoint == "203.0.113.77:40001", f"the server shows {after.endpoint}")
    expect(after.last_handshake == before.last_handshake, "it took a handshake")
    tunnel.ping(tunnel.server, tunnel.client, 4)
    time_for_another_move()
    with Pings(lab, "kiwi", tunnel.server.address()) as pings:
        lab.ip(
            "kiwi",
            "address del 203.0.113.2/24 dev eth0",
            "address add 203.0.113.3/24 dev eth0",
            "route add default via 203.0.113.1",
        )
        silence = pings.longest_silence()
    expect(silence < patience(client), f"{silence:.2f} s without an answer")
    after = tunnel.peer_of_server()
    expect(after.endpoint.startswith("203.0.113.3:"), f"the server shows {after.endpoint}")
    tunnel.ping(tunnel.server, tunnel.client, 6)


def patience(kind: str) -> float:
    """How long an end of a kind may need when the address that it sends from is taken away.

    Debian's wireguard-go goes on sending from the address that is gone, until it makes new keys: it
    looks for EINVAL, and newer kernels say ENETUNREACH. Ours must not.
    """
    return DEAD_AFTER + RETRY + LATE if kind in THEIRS else LATE


def time_for_another_move() -> None:
    """PROTOCOL 6 lets a stock peer's endpoint move once a second."""
    moved = time.monotonic()
    wait_until(lambda: time.monotonic() > moved + 1.1, "the next move", 2)


def shown_as(host: str, other: str, own: str, shown: str, own_port: int, shown_port: int) -> str:
    """A NAT between two hosts that shows one from another address and port than its own, and lets
    nothing more through to its own."""
    back = f"iifname {other} ip daddr"
    return f"""
        table ip moved {{
          chain out {{
            type filter hook postrouting priority 0;
            iifname {host} oifname {other} ip saddr {own} udp sport {own_port} \\
              udp sport set {shown_port} ip saddr set {shown}
          }}
          chain back {{
            type filter hook prerouting priority -200;
            {back} {own} udp dport {own_port} drop
            {back} {shown} udp dport {shown_port} udp dport set {own_port} ip daddr set {own}
          }}
        }}"""


def roaming_server(lab: WireGuardLab, client: str, server: str) -> None:
    """The server is shown from another address while it has something to say: the client follows at
    once, without a handshake, and finds it there by itself. Then its own address changes."""
    tunnel = Tunnel(lab, client, server).up()
    before = tunnel.peer_of_server().last_handshake
    with tunnel.recorded() as wire:
        with Pings(lab, "hub", tunnel.client.address()) as pings:
            lab.router(shown_as("hub", "kiwi", "198.51.100.2", "198.51.100.77", PORT, 40001))
            silence = pings.longest_silence()
        tunnel.ping(tunnel.client, tunnel.server, 4)
    expect(silence < LATE, f"{silence:.2f} s without an answer behind the NAT")
    expect(tunnel.peer_of_server().last_handshake == before, "it took a handshake")
    expect(last_target(wire) == ("198.51.100.77", 40001), f"Kiwi sends to {last_target(wire)}")
    time_for_another_move()
    with tunnel.recorded() as wire:
        with Pings(lab, "hub", tunnel.client.address()) as pings:
            lab.ip(
                "hub",
                "address del 198.51.100.2/24 dev eth0",
                "address add 198.51.100.99/24 dev eth0",
                "route add default via 198.51.100.1",
            )
            silence = pings.longest_silence()
        tunnel.ping(tunnel.client, tunnel.server, 6)
    expect(silence < patience(server), f"{silence:.2f} s without an answer")
    expect(last_target(wire) == ("198.51.100.99", PORT), f"Kiwi sends to {last_target(wire)}")


def last_target(wire: list[Datagram]) -> tuple[str, int]:
    """Where Kiwi's last datagram went."""
    last = [each for each in wire if str(each.source) == "203.0.113.2"][-1]
    return str(last.target), last.target_port


def restarted_client(lab: WireGuardLab, client: str, server: str) -> None:
    """The client is killed and started again, three times: it is in at once."""
    tunnel = Tunnel(lab, client, server).up()
    for _ in range(3):
        tunnel.client.crash()
        tunnel.client.up()
        took = tunnel.answered("kiwi", tunnel.server)
        expect(took < RETRY, f"an answer only {took:.1f} s after the start")
    tunnel.ping(tunnel.server, tunnel.client, 6)


def restarted_server(lab: WireGuardLab, client: str, server: str) -> None:
    """The server is killed and started again: the client notices within 15 s of its sending in
    vain, and makes new keys."""
    tunnel = Tunnel(lab, client, server).up()
    tunnel.server.crash()
    tunnel.server.up()
    took = tunnel.answered("kiwi", tunnel.server, DEAD_AFTER + RETRY + LATE)
    expect(took > 1, "that was no restart: the old keys still worked")
    tunnel.ping(tunnel.server, tunnel.client, 6)


def nat_that_forgets(lab: WireGuardLab, client: str, server: str) -> None:
    """Behind a NAT that forgets in 20 s a client with a keepalive of 15 s can be reached at any
    time; beside it one without cannot, until it says something itself."""
    lab.run(INET, ["sysctl", "-qw", "net.netfilter.nf_conntrack_acct=0"])
    lab.router("""
        table ip nat {
          chain out {
            type nat hook postrouting priority 100;
            oifname hub masquerade
          }
        }""")
    forget = [f"net.netfilter.nf_conntrack_udp_timeout{kind}=20" for kind in ("", "_stream")]
    lab.run(INET, ["sysctl", "-qw", *forget], check=True)
    tunnel = Tunnel(lab, client, server, hosts=("kiwi", "pa"), keepalive=15)
    kiwi, pa = tunnel.clients.values()
    without = pa.conf.read_text().replace("PersistentKeepalive = 15\n", "")
    expect("PersistentKeepalive" not in without, "pa's .conf has another keepalive")
    pa.conf.write_text(without)
    tunnel.up()
    outside, _ = shown_endpoint(tunnel.peer_of_server(kiwi).endpoint)
    expect(outside == lab.hosts["hub"].gateway4, f"kiwi is seen as {outside}: there is no NAT")
    quiet = time.monotonic()
    with tunnel.recorded() as wire:
        wait_until(lambda: time.monotonic() > quiet + 50, "50 s of quiet", 60)
    kept = [each for each in wire if str(each.target) == lab.hosts["hub"].ipv4]
    apart = [after.at - before.at for before, after in pairwise(kept)]
    expect(3 <= len(kept) <= 8, f"{len(kept)} datagrams of kiwi's in 50 s")
    expect(max(apart) < 15 + LATE, f"{max(apart):.1f} s between two of kiwi's keepalives")
    tunnel.ping(tunnel.server, kiwi, 4)
    tunnel.silent(tunnel.server, pa.address())
    tunnel.ping(pa, tunnel.server, 4)


def passive_keepalive(lab: WireGuardLab, client: str, server: str) -> None:
    """Data without an answer draws one keepalive after 10 s; who says nothing hears nothing."""
    tunnel = Tunnel(lab, client, server).up()
    time_for_another_move()
    far = tunnel.server
    rules = (
        "table inet mute {\n  chain in {\n    type filter hook input priority 0\n"
        f'    iifname "{far.interface}" icmp type echo-request drop\n  }}\n}}\n'
    )
    lab.run("hub", ["nft", "-f", "-"], stdin=rules, check=True)
    with tunnel.recorded() as wire:
        tunnel.silent(tunnel.client, far.address())
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + KEEPALIVE + LATE, "10 s and some", 20)
    hub = ip_address(lab.hosts["hub"].ipv4)
    from_hub = [each for each in wire if each.source == hub]
    to_hub = [each for each in wire if each.target == hub]
    expect([len(each.data) for each in from_hub] == [32], f"the server sent {lengths(from_hub)}")
    waited = from_hub[0].at - to_hub[0].at
    expect(abs(waited - KEEPALIVE) < LATE, f"its keepalive came after {waited:.1f} s")
    expect(len(to_hub) == 2, f"the client sent {lengths(to_hub)}")


def lengths(wire: list[Datagram]) -> list[int]:
    return [len(each.data) for each in wire]
