"""The scenes: what real programs at the two ends of a tunnel must do, one function each.

A scene takes the laboratory and the kinds of its client and its server (ends.py), and raises
:class:`Failed` or :class:`LabError` with one line. ``SCENES`` has each with each pair that it is
for; the pairs of wireguard-go alone show that the scene itself is right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import NamedTuple

from tests.netns.lab import INET, PORT
from tests.netns.pings import Pings
from tests.netns.processes import wait_until
from tests.scenes import flood
from tests.scenes.ends import NEWEST, SOCKETS, End, Failed, HubEnd, QuickEnd, at, expect, peer_text
from tests.scenes.hosts import WireGuardLab
from tests.scenes.tunnel import NETWORKS, RETRY, Tunnel, network_of, shown_endpoint
from tests.scenes.wire import COOKIE_REPLY, DATA, INITIATION, RESPONSE, Datagram

#: WireGuard's timers, seconds (PROTOCOL 7).
REKEY_AFTER, KEEPALIVE, DEAD_AFTER = 120, 10, 15
#: A machine busy with other scenes may be late by so much.
LATE = 3.0
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
            tunnel.answered("kiwi", far)
        outside = ip_address(shown_endpoint(tunnel.peer_of_server().endpoint)[0])
        expect(outside.version == outer, f"outside it is {outside}, not IPv{outer}")
        for inner in (4, 6):
            for one, other in ((near, far), (far, near)):
                for size in (0, 1, 15, 16, 1300, 1372, 4000):
                    tunnel.ping(one, other, inner, "-s", str(size), count=2)
                tunnel.pass_tcp(one, other, inner, 4 * MEBIBYTE)


def rekey(lab: WireGuardLab, client: str, server: str) -> None:
    """New keys after 120 s of steady traffic, by one handshake of the initiator's, and no packet
    is lost over it."""
    tunnel = Tunnel(lab, client, server)
    with tunnel.recorded() as wire:
        tunnel.up()
        first = tunnel.peer_of_server().last_handshake
        with Pings(lab, "kiwi", tunnel.server.address()) as pings:
            wait_until(
                lambda: tunnel.peer_of_server().last_handshake != first,
                "another handshake",
                REKEY_AFTER + 10,
            )
            apart = tunnel.peer_of_server().last_handshake - first
            silence = pings.longest_silence()
    expect(abs(apart - REKEY_AFTER) <= 1 + LATE, f"the handshakes were {apart} s apart")
    expect(silence < 1, f"{silence:.2f} s without an answer")
    messages = [each for each in wire if each.kind in (INITIATION, RESPONSE)]
    kinds = [each.kind for each in messages]
    expect(kinds == [INITIATION, RESPONSE] * 2, f"the handshake messages were {kinds}")
    hub = ip_address(lab.hosts["hub"].ipv4)
    askers = {each.source for each in messages if each.kind == INITIATION}
    expect(hub not in askers, "the responder began a handshake while the initiator had traffic")


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
    expect(len(kept) in (3, 4, 5), f"{len(kept)} datagrams of kiwi's in 50 s")
    expect(max(apart) < 15 + LATE, f"{max(apart):.1f} s between two of kiwi's keepalives")
    tunnel.ping(tunnel.server, kiwi, 4)
    tunnel.silent(tunnel.server, pa.address())
    tunnel.ping(pa, tunnel.server, 4)


def cookie(lab: WireGuardLab, client: str, server: str) -> None:
    """A server whose queue of handshakes is flooded asks a newcomer for a cookie; the client comes
    again with it, and is let in while the flood lasts."""
    tunnel = Tunnel(lab, client, server)
    with tunnel.recorded() as wire:
        tunnel.up()
        tunnel.client.crash()
    captured = next(each.data for each in wire if each.kind == INITIATION)
    expect(captured[-16:] == bytes(16), "a first initiation has a cookie")
    argv = [lab.tool("python"), flood.__file__, lab.hosts["hub"].ipv4, str(PORT), captured.hex()]
    flooding = lab.spawn("pa", argv, "flood")
    flooding.wait_for_text("begins")
    cookies = tunnel.from_hub("pa")
    wait_until(lambda: tunnel.from_hub("pa") > cookies + 10, "cookies for the flood")
    with tunnel.recorded() as wire:
        tunnel.client.up()
        pinging = tunnel.keep_pinging(tunnel.client, tunnel.server)
        # One that is lost in the flood is tried again.
        pinging.wait_for_text("bytes from", 4 * RETRY + LATE)
        expect(flooding.running, "the flood has ended too early")
        flooding.popen.kill()
        pinging.stop()
    check_cookie(wire)


def check_cookie(wire: list[Datagram]) -> None:
    """An initiation without, a cookie for it, one with, a response to that, data."""
    asked = next((each for each in wire if each.kind == COOKIE_REPLY), None)
    expect(asked, "the server has sent the client no cookie")
    assert asked is not None
    before = [each for each in wire if each.kind == INITIATION and each.at < asked.at]
    expect(before and not before[-1].has_cookie, "the cookie answers no initiation without one")
    expect(asked.data[4:8] == before[-1].data[4:8], "the cookie is for another index")
    again = [each for each in wire if each.kind == INITIATION and each.has_cookie]
    expect(again, "the client has not used the cookie")
    wait = again[0].at - before[-1].at
    expect(wait < RETRY + LATE, f"the client came again after {wait:.1f} s")
    indices = {each.data[4:8] for each in again}
    answers = [each for each in wire if each.kind == RESPONSE and each.data[8:12] in indices]
    expect(answers, "no initiation with a cookie was answered")
    passed = [each for each in wire if each.kind == DATA and each.at > answers[0].at]
    expect(passed, "nothing passed after that")


def wrong_psk(lab: WireGuardLab, client: str, server: str) -> None:
    """With another pre-shared key at either end nothing passes: the server's answers are no longer
    than what asks for them, and no data is sent. With the right one all works."""
    tunnel = Tunnel(lab, client, server)
    near = tunnel.client
    right = near.conf_value("PresharedKey")
    near.edit(PresharedKey=near.wg("genpsk").strip())
    if not tunnel.server.pids():
        tunnel.server.up()
    with tunnel.recorded() as wire:
        near.up()
        in_vain(tunnel, initiations=2)
    kinds = {each.kind for each in wire}
    expect(kinds == {INITIATION, RESPONSE}, f"messages of the kinds {sorted(kinds)} passed")
    near.down()
    near.edit(PresharedKey=right)
    near.up()
    tunnel.answered("kiwi", tunnel.server)


def wrong_key(lab: WireGuardLab, client: str, server: str) -> None:
    """Whoever has a key that the server does not know, or another key for the server than its own,
    hears nothing at all; with the right ones all works."""
    tunnel = Tunnel(lab, client, server)
    near = tunnel.client
    right = {key: near.conf_value(key) for key in ("PrivateKey", "PublicKey")}
    other = near.wg("genkey").strip()
    wrong = {"PrivateKey": other, "PublicKey": near.wg("pubkey", stdin=other).strip()}
    if not tunnel.server.pids():
        tunnel.server.up()
    for key, value in wrong.items():
        near.edit(**{key: value})
        near.up()
        in_vain(tunnel, initiations=2)
        near.down()
        near.edit(**{key: right[key]})
        expect(tunnel.from_hub() == 0, f"the server answers a client with a wrong {key}")
    near.up()
    tunnel.answered("kiwi", tunnel.server)
    expect(tunnel.from_hub() > 0, "nothing was counted: the silence before proves nothing")


def in_vain(tunnel: Tunnel, initiations: int) -> None:
    """Let the client try to reach the server until it has begun so many handshakes."""
    before = tunnel.to_hub()
    pinging = tunnel.keep_pinging(tunnel.client, tunnel.server)
    try:
        wait_until(
            lambda: tunnel.to_hub() >= before + initiations,
            f"{initiations} initiations of {tunnel.client}",
            initiations * RETRY + LATE,
        )
    finally:
        pinging.stop()
    expect("bytes from" not in pinging.text(), "the server answers pings")


def many_networks(lab: WireGuardLab, client: str, server: str) -> None:
    """A peer with 2^16 allowed IPs: set within 20 s, shown, each used both ways and no other; one
    that is given to another peer is that one's."""
    tunnel = Tunnel(lab, client, server, hosts=("kiwi", "pa")).up()
    far, (kiwi, pa) = tunnel.server, tunnel.clients.values()
    keys = [tunnel.public_key(each) for each in (kiwi, pa)]
    own = tunnel.peer_of_server(kiwi).allowed_ips
    many = [f"{address}/32" for address in ip_network("10.200.0.0/16")]
    conf = lab.directory / "hub" / "many.conf"
    lines = [f"AllowedIPs = {', '.join(many[n : n + 256])}" for n in range(0, len(many), 256)]
    lines.append(f"AllowedIPs = {', '.join(own)}")
    conf.write_text("\n".join(["[Peer]", f"PublicKey = {keys[0]}", *lines, ""]))
    began = time.monotonic()
    far.wg("addconf", far.interface, str(conf), seconds=60)
    took = time.monotonic() - began
    expect(took < 20, f"setting them took {took:.1f} s")
    began = time.monotonic()
    shown = tunnel.peer_of_server(kiwi).allowed_ips
    took = time.monotonic() - began
    expect(shown == own | set(many), f"{len(shown)} of {len(own | set(many))} are shown")
    expect(took < 10, f"showing them took {took:.1f} s")

    ends = ["10.200.0.0", "10.200.77.88", "10.200.255.255"]
    outside = "10.201.0.1"
    for network in ("10.200.0.0/16", "10.201.0.0/16"):
        far.inside("ip", "route", "replace", network, "dev", far.interface)
    for host in (kiwi, pa):
        for address in (*ends, outside):
            host.inside("ip", "address", "add", f"{address}/32", "dev", host.interface)
    for address in ends:
        expect(lab.ping("hub", address, count=2).returncode == 0, f"{address} does not answer")
        from_there = lab.ping("kiwi", far.address(), "-I", address, count=2)
        expect(from_there.returncode == 0, f"nothing from {address} reaches the server")
    tunnel.silent(far, outside)
    from_outside = lab.ping("kiwi", far.address(), "-I", outside)
    expect(from_outside.returncode != 0, f"packets from {outside} pass")

    pas = tunnel.peer_of_server(pa).allowed_ips
    far.wg("set", far.interface, "peer", keys[1], "allowed-ips", ",".join([*pas, f"{ends[1]}/32"]))
    expect(f"{ends[1]}/32" in tunnel.peer_of_server(pa).allowed_ips, "pa has not got it")
    left = tunnel.peer_of_server(kiwi).allowed_ips
    expect(shown - left == {f"{ends[1]}/32"}, f"kiwi has {len(left)} left")
    before = tunnel.from_hub("pa")
    expect(lab.ping("hub", ends[1], count=2).returncode == 0, "pa does not answer there")
    expect(tunnel.from_hub("pa") >= before + 2, "the pings did not go to pa")


def many_routes(lab: WireGuardLab, client: str, server: str) -> None:
    """A .conf with 2^16 allowed IPs at the client: up within a minute, and each is used."""
    tunnel = Tunnel(lab, client, server)
    near, far = tunnel.client, tunnel.server
    many = [f"{address}/32" for address in ip_network("10.200.0.0/16")]
    near.edit(AllowedIPs=", ".join([*NETWORKS.split(", "), *many]))
    far.up()
    near.up()
    ends = ["10.200.0.0", "10.200.77.88", "10.200.255.255"]
    for address in (*ends, "10.201.0.1"):
        far.inside("ip", "address", "add", f"{address}/32", "dev", far.interface)
    wait_until(
        lambda: (
            len(near.inside("ip", "route", "show", "dev", near.interface).splitlines()) > len(many)
        ),
        "a route for each",
        60,
    )
    tunnel.answered("kiwi", far)
    for address in ends:
        expect(lab.ping("kiwi", address, count=2).returncode == 0, f"{address} does not answer")
    near.inside("ip", "route", "add", "10.201.0.1/32", "dev", near.interface)
    tunnel.silent(near, "10.201.0.1")


def agreement(lab: WireGuardLab, client: str, server: str) -> None:
    """`wg show all dump`, `wg showconf` and `wg syncconf` of both ends agree with each other and
    with what was on the wire, and syncing to what is there disturbs nothing."""
    tunnel = Tunnel(lab, client, server, keepalive=25)
    near, far = tunnel.client, tunnel.server
    with tunnel.recorded() as wire:
        tunnel.up()
        # Paced, so that none is lost; a multiple of 16, since not everybody counts the padding.
        tunnel.ping(near, far, 4, "-i", "0.01", "-s", "1012", count=300)
        settled(lambda: [near.show(), far.show()])
    one, other = near.show(), far.show()
    seen, peer = tunnel.peer_of_server(), one.peer
    for each in (near, far):
        every = [line.split("\t", 1) for line in each.wg("show", "all", "dump").splitlines()]
        expect({name for name, _ in every} == {each.interface}, f"'all' of {each} has others")
        own = [rest for _, rest in every]
        listed = each.wg("show", each.interface, "dump").splitlines()
        expect(len(own) == len(listed), f"'all' and '{each.interface}' of {each} differ")
        interfaces = each.wg("show", "interfaces").split()
        expect(interfaces == [each.interface], f"wg shows the interfaces {interfaces}")
    expect(peer.public_key == other.public_key, "the client's peer is not the server")
    expect(seen.public_key == one.public_key, "the server's peer is not the client")
    expect(peer.psk == seen.psk != "(none)", "the ends show different pre-shared keys")
    expect(other.port == PORT, f"the server shows the port {other.port}")
    expect(one.private_key == near.conf_value("PrivateKey"), "another private key than set")
    expect(peer.keepalive == "25", f"the client shows the keepalive {peer.keepalive}")
    told = set(near.conf_value("AllowedIPs").replace(" ", "").split(","))
    expect(peer.allowed_ips == told, f"the client shows {sorted(peer.allowed_ips)}")
    expected = {network_of(near.address(version)) for version in (4, 6)}
    expect(seen.allowed_ips == expected, f"the server shows {sorted(seen.allowed_ips)}")
    expect(peer.endpoint == at(lab.hosts["hub"].ipv4, PORT), f"the client shows {peer.endpoint}")
    expect(
        seen.endpoint == at(lab.hosts["kiwi"].ipv4, one.port),
        f"the server shows {seen.endpoint}, the client the port {one.port}",
    )
    apart = abs(peer.last_handshake - seen.last_handshake)
    expect(apart <= 1, f"the ends show handshakes {apart} s apart")
    answered = next(each.at for each in wire if each.kind == RESPONSE)
    late = abs(seen.last_handshake - answered)
    expect(late <= 2, f"the handshake shown is {late:.1f} s from that on the wire")
    passed = sum(len(each.data) for each in wire if str(each.source) == lab.hosts["kiwi"].ipv4)
    for what, count in (
        ("sent by the client", peer.sent),
        ("received by the server", seen.received),
    ):
        # All bytes of all datagrams, says wireguard-go; whether handshakes count is nobody's rule.
        expect(abs(count - passed) <= 148 + 92 + 64, f"{what}: {count} shown, {passed} on the wire")
    back = sum(len(each.data) for each in wire if str(each.target) == lab.hosts["kiwi"].ipv4)
    for what, count in (
        ("received by the client", peer.received),
        ("sent by the server", seen.sent),
    ):
        expect(abs(count - back) <= 148 + 92 + 64, f"{what}: {count} shown, {back} on the wire")
    for each in (near, far):
        synced(tunnel, each)


def settled(look: Callable[[], object]) -> None:
    """Wait until two looks, a tenth of a second apart, agree."""
    state = {"seen": look(), "at": time.monotonic()}

    def same() -> bool:
        if time.monotonic() < state["at"] + 0.2:
            return False
        before, state["seen"], state["at"] = state["seen"], look(), time.monotonic()
        return bool(before == state["seen"])

    wait_until(same, "counters that stand still")


def synced(tunnel: Tunnel, each: End) -> None:
    """What showconf prints is what syncconf takes: nothing changes, then one thing does."""
    before = each.show()
    text = each.wg("showconf", each.interface)
    conf = tunnel.lab.directory / each.host / "synced.conf"
    conf.write_text(text)
    handshake = tunnel.peer_of_server().last_handshake
    with Pings(tunnel.lab, "kiwi", tunnel.server.address()) as pings:
        each.wg("syncconf", each.interface, str(conf))
        silence = pings.longest_silence()
    expect(silence < 1, f"syncconf at {each} silenced the tunnel for {silence:.1f} s")
    expect(tunnel.peer_of_server().last_handshake == handshake, "syncconf made new keys")
    expect(each.wg("showconf", each.interface) == text, f"showconf of {each} changed")
    after = each.show()
    expect(constant(after) == constant(before), f"syncconf at {each} changed what wg shows")
    key = each.wg("pubkey", stdin=each.wg("genkey")).strip()
    more = text.rstrip() + "\n\n" + peer_text(key, "10.250.0.1/32")
    conf.write_text(more)
    each.wg("syncconf", each.interface, str(conf))
    expect(len(each.show().peers) == len(before.peers) + 1, f"{each} did not take another peer")
    conf.write_text(text)
    each.wg("syncconf", each.interface, str(conf))
    expect(constant(each.show()) == constant(before), f"{each} did not give it back")
    tunnel.ping(tunnel.client, tunnel.server, 4)


def constant(shown: object) -> object:
    """What traffic does not change of what ``wg show`` says."""
    return shown._replace(  # type: ignore[attr-defined]
        peers={
            key: peer._replace(received=0, sent=0)
            for key, peer in shown.peers.items()  # type: ignore[attr-defined]
        }
    )


def deleted_link(lab: WireGuardLab, client: str, server: str) -> None:
    """The program ends by itself, its socket gone, when its link is deleted (`wg-quick down` does
    no more), when its socket is removed, and when it is asked to; each time it can start again."""
    tunnel = Tunnel(lab, client, server).up()
    near = tunnel.client
    socket = f"{SOCKETS}/{near.interface}.sock"
    listed = near.inside("ls", "-A", SOCKETS).split()
    expect(listed == [f"{near.interface}.sock"], f"in {SOCKETS} there is {listed}")
    modes = near.inside("stat", "-c", "%a", SOCKETS, socket).split()
    expect(int(modes[1], 8) & 0o077 == 0, f"{socket} has the mode {modes[1]}")
    ways: dict[str, list[str]] = {
        "ip link delete": ["ip", "link", "delete", near.interface],
        "the socket removed": ["rm", socket],
        "SIGTERM": ["kill"],
    }
    for what, command in ways.items():
        found = near.pids()
        expect(found, f"{near} does not run")
        near.inside(*command, *([str(found[0])] if what == "SIGTERM" else []))
        wait_until(lambda: not near.pids(), f"{near} to end: {what}", 10)
        expect(not near.links(), f"{what}: the interface is still there")
        left = near.inside("ls", "-A", SOCKETS).split()
        expect(not left, f"{what}: {left} is left in {SOCKETS}")
        near.up()
        tunnel.answered("kiwi", tunnel.server)
    near.down()


def all_traffic(lab: WireGuardLab, client: str, server: str) -> None:
    """A .conf with 0.0.0.0/0 and ::/0, as phones have it: wg-quick marks the program's socket, so
    that all but its own datagrams goes through the tunnel."""
    tunnel = Tunnel(lab, client, server)
    near = tunnel.client
    near.edit(AllowedIPs="0.0.0.0/0, ::/0")
    tunnel.up()
    for version, address in ((4, lab.hosts["plum"].ipv4), (6, lab.hosts["plum"].ipv6)):
        way = near.inside("ip", f"-{version}", "route", "get", address)
        expect(f"dev {near.interface} " in way, f"the way to {address}: {way}")
        tunnel.ping(near, tunnel.server, version)
    expect(near.show().mark != "off", "no mark is shown")
    # Through the tunnel and out at the other end, as the server's kernel forwards it.
    tunnel.server.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.ip("plum", f"route add {near.address()}/32 via 198.18.0.1")
    lab.ip(INET, f"route add {near.address()}/32 via {lab.hosts['hub'].ipv4}")
    before = tunnel.to_hub()
    done = lab.ping("kiwi", lab.hosts["plum"].ipv4, count=3)
    expect(done.returncode == 0, "plum, behind the server, does not answer")
    expect(tunnel.to_hub() >= before + 3, "the pings did not go through the tunnel")
    near.down()
    rules = near.inside("ip", "rule", "show")
    expect("suppress_prefixlength" not in rules, "wg-quick left rules")
    expect("lookup 51820" not in rules, "wg-quick left rules")


def both_quiet(lab: WireGuardLab, client: str, server: str) -> None:
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


# -- our hub --------------------------------------------------------------------------------


def together(lab: WireGuardLab, client: str, server: str) -> None:
    """A stock peer, a password user and one who polls reach each other through one hub; wg shows
    the stock peer alone, and replacing all peers touches nobody else."""
    passwords = {"pa": "correct horse pa", "plum": "correct horse plum"}
    tunnel = Tunnel(lab, client, server)
    for user, password in passwords.items():
        secret = lab.directory / "hub" / f"{user}.secret"
        secret.touch(mode=0o600)
        secret.write_text(password + "\n")
        lab.pyvpn("hub", "user", "add", user, "--pw-file", str(secret))
        lab.join(user)
    tunnel.up()
    lab.start_client("pa", passwords["pa"])
    lab.start_client("plum", passwords["plum"], "--deliver", "poll", "--poll-interval", "0.5")
    inside = {
        host: lab.addresses(host, tunnel.client.interface if host == "kiwi" else "leamit0")
        for host in ("hub", "kiwi", "pa", "plum")
    }
    for one in inside:
        for other, addresses in inside.items():
            for address in addresses:
                done = lab.ping(one, str(address), "-W", "3", count=3)
                expect(done.returncode == 0, f"{one} does not reach {other} at {address}")
    shown = tunnel.server.show()
    expect(set(shown.peers) == {tunnel.public_key(tunnel.client)}, f"wg shows {set(shown.peers)}")
    for source, target in (("kiwi", "pa"), ("pa", "kiwi")):
        pass_file(lab, source, target, str(inside[target][0]))
    empty = lab.directory / "hub" / "empty.conf"
    empty.write_text(f"[Interface]\nPrivateKey = {shown.private_key}\nListenPort = {PORT}\n")
    with Pings(lab, "pa", str(inside["plum"][0])) as pings:
        tunnel.server.wg("syncconf", tunnel.server.interface, str(empty))
        silence = pings.longest_silence()
    expect(not tunnel.server.show().peers, "the hub still has stock peers")
    expect(silence < 5, f"password users were silent for {silence:.1f} s")
    expect(lab.ping("kiwi", str(inside["pa"][0]), count=2).returncode != 0, "kiwi is still in")


def pass_file(lab: WireGuardLab, source: str, target: str, address: str) -> None:
    """4 MiB by TCP between two hosts, unchanged."""
    from tests.scenes.tunnel import FLOWS

    receiver = lab.spawn(target, [lab.tool("python"), FLOWS, "tcp-receive", "7000"], "receive")
    receiver.wait_for_text("ready")
    send = [lab.tool("python"), FLOWS, "tcp-send", address, "7000", str(4 * MEBIBYTE)]
    sent = lab.run(source, send, seconds=60, check=True).stdout.split()
    receiver.wait(10)
    expect(receiver.text().split()[1:] == sent, f"TCP from {source} to {target} arrived changed")


def switched_off(lab: WireGuardLab, client: str, server: str) -> None:
    """`peer disable` ends a peer at once and `enable` brings it back, while the hub runs; `remove`
    ends it for good, and a restart changes none of it."""
    tunnel = Tunnel(lab, client, server).up()
    inner = tunnel.server.address()
    lab.pyvpn("hub", "peer", "disable", "kiwi")
    silent_until(lab, inner)
    before = tunnel.from_hub()
    tunnel.silent(tunnel.client, inner)
    expect(tunnel.from_hub() == before, "the hub still speaks to a disabled peer")
    tunnel.server.crash()
    tunnel.server.up()
    tunnel.silent(tunnel.client, inner)
    lab.pyvpn("hub", "peer", "enable", "kiwi")
    tunnel.answered("kiwi", tunnel.server, DEAD_AFTER + RETRY + LATE)
    lab.pyvpn("hub", "peer", "remove", "kiwi")
    silent_until(lab, inner)
    expect(not tunnel.server.show().peers, "wg still shows the removed peer")


def silent_until(lab: WireGuardLab, address: str) -> None:
    wait_until(lambda: lab.ping("kiwi", address).returncode != 0, f"silence of {address}", 5)


def key_made_elsewhere(lab: WireGuardLab, client: str, server: str) -> None:
    """`peer add --public-key` for a key that was made on the device: its .conf lacks only that."""
    tunnel = Tunnel(lab, client, server, hosts=())
    hub = tunnel.server
    assert isinstance(hub, HubEnd)
    from tests.scenes.ends import end

    kiwi = end(lab, "kiwi", client)
    private = kiwi.wg("genkey").strip()
    public = kiwi.wg("pubkey", stdin=private).strip()
    conf = lab.directory / "hub" / "kiwi.conf"
    hub.add_peer("kiwi", conf, "--public-key", public)
    text = conf.read_text()
    lines = [line for line in text.splitlines() if not line.strip(" #").startswith("PrivateKey")]
    place = lines.index("[Interface]") + 1
    kiwi.conf.write_text("\n".join([*lines[:place], f"PrivateKey = {private}", *lines[place:], ""]))
    kiwi.up()
    tunnel.answered("kiwi", hub)
    expect(set(hub.show().peers) == {public}, "wg shows another key")


def exported(lab: WireGuardLab, client: str, server: str) -> None:
    """`peer export --private-key` of our hub is a .conf that wg-quick brings up in its place: the
    clients do not notice the difference."""
    tunnel = Tunnel(lab, client, server, hosts=("kiwi", "pa")).up()
    text = lab.pyvpn("hub", "peer", "export", "--private-key").stdout
    tunnel.server.down()
    other = QuickEnd(lab, "hub", "wireguard-go")
    other.conf.touch(mode=0o600)
    other.conf.write_text(text)
    inside = dict(addresses_in(text))
    other.up()
    for host in tunnel.clients:
        lab.wait_answer(host, inside[4], DEAD_AFTER + RETRY + LATE)
        expect(lab.ping(host, inside[6], count=2).returncode == 0, f"{host} has no IPv6 inside")


def addresses_in(conf: str) -> Iterator[tuple[int, str]]:
    """The inner addresses that a .conf gives its interface."""
    for line in conf.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "Address":
            for word in value.split(","):
                address = ip_address(word.strip().partition("/")[0])
                yield address.version, str(address)


def imported(lab: WireGuardLab, client: str, server: str) -> None:
    """`peer import` of the .conf of a WireGuard server: its clients reach our hub after one change
    of theirs, the hub's key."""
    old = Tunnel(lab, client, "wireguard-go", hosts=("kiwi", "pa")).up()
    old.server.down()
    hub = HubEnd(lab, "hub", server)
    hub.up()
    lab.pyvpn("hub", "peer", "import", str(old.server.conf))
    listed = lab.pyvpn("hub", "peer", "list").stdout
    for host, near in old.clients.items():
        expect(host in listed, f"'peer list' does not name {host}: {listed}")
        near.wg("set", near.interface, "peer", near.show().peer.public_key, "remove")
        key = hub.show().public_key
        peer = ["peer", key, "endpoint", at(lab.hosts["hub"].ipv4, PORT)]
        secret = lab.directory / host / "psk"
        secret.write_text(near.conf_value("PresharedKey"))
        near.wg("set", near.interface, *peer, "preshared-key", str(secret), "allowed-ips", NETWORKS)
        lab.wait_answer(host, "10.10.0.1", 10)


class Scene(NamedTuple):
    """A scene with a pair of ends."""

    name: str
    act: Callable[[WireGuardLab, str, str], None]
    client: str
    server: str
    quick: bool
    #: what it takes at most, seconds
    seconds: int
    #: loads the machine so that others would suffer
    loud: bool = False


THEIRS = ("wireguard-go", NEWEST)
BETWEEN_THEIRS = [(name, name) for name in THEIRS]
TO_HUB = [(name, "hub") for name in (*THEIRS, "pyvpn-wg")]
FROM_CLIENT = [("client", name) for name in THEIRS]
FROM_OURS = [("pyvpn-wg", name) for name in THEIRS]
TO_OURS = [(name, "pyvpn-wg") for name in (*THEIRS, "pyvpn-wg")]
WITHOUT_HUB = [*BETWEEN_THEIRS, *FROM_CLIENT, *FROM_OURS, *TO_OURS]
ALL = [*WITHOUT_HUB[:2], *TO_HUB, *WITHOUT_HUB[2:]]
BY_QUICK = [*BETWEEN_THEIRS, *FROM_OURS, *TO_OURS]

#: What it is called, what it does, with whom, how long it takes at most (over 30 s: not quick).
LIST: list[tuple[str, Callable[[WireGuardLab, str, str], None], list[tuple[str, str]], int]] = [
    ("IPv4 and IPv6 inside and outside", reach, ALL, 90),
    ("new keys across 120 s", rekey, ALL, 180),
    ("the client's address and port change", roaming_client, ALL, 30),
    ("the server's address changes", roaming_server, ALL, 30),
    ("cookie under load", cookie, ALL, 60),
    ("the client is killed and started again", restarted_client, ALL, 60),
    ("the server is killed and started again", restarted_server, ALL, 60),
    ("keepalive behind a NAT that forgets in 20 s", nat_that_forgets, ALL, 120),
    ("passive keepalive", both_quiet, ALL, 45),
    ("2^16 allowed IPs", many_networks, [*BETWEEN_THEIRS, *TO_HUB, *TO_OURS], 120),
    ("2^16 allowed IPs in a client's .conf", many_routes, FROM_CLIENT, 180),
    ("a wrong pre-shared key", wrong_psk, ALL, 30),
    ("a wrong key draws silence", wrong_key, ALL, 45),
    ("wg show, showconf and syncconf agree", agreement, ALL, 45),
    ("the link is deleted", deleted_link, BY_QUICK, 45),
    ("all traffic by wg-quick", all_traffic, BY_QUICK, 30),
    ("stock peer, password user and poll client", together, TO_HUB, 60),
    ("peer disable, enable, remove", switched_off, TO_HUB, 90),
    ("peer add --public-key", key_made_elsewhere, TO_HUB, 30),
    ("peer export, to a server of theirs", exported, TO_HUB, 90),
    ("peer import, from a server of theirs", imported, TO_HUB, 60),
]

#: The pairs that the quick scenes of the test suite are played with.
QUICK_PAIRS = {
    ("wireguard-go", "wireguard-go"),
    ("wireguard-go", "hub"),
    ("client", "wireguard-go"),
    ("pyvpn-wg", "pyvpn-wg"),
}
QUICK = (roaming_client, roaming_server, restarted_client, wrong_psk, agreement, deleted_link)
QUICK += (all_traffic, together, exported, imported)


def scenes(environment: dict[str, str] | None = None) -> list[Scene]:
    """Every scene; those with the newest wireguard-go only where ``WIREGUARD_GO`` names one."""
    named = (environment if environment is not None else dict(os.environ)).get("WIREGUARD_GO")
    found = []
    for name, act, pairs, seconds in LIST:
        for client, server in pairs:
            if NEWEST in (client, server) and not named:
                continue
            quick = act in QUICK and (client, server) in QUICK_PAIRS
            full = f"{name}: {client} to {server}"
            found.append(Scene(full, act, client, server, quick, seconds, loud=act is cookie))
    return found


__all__ = ["SCENES_OF", "Failed", "Scene", "scenes"]
SCENES_OF = LIST
