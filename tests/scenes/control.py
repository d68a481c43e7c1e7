"""What wg and wg-quick see and change."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_network

from tests.netns.lab import INET, PORT
from tests.netns.pings import Pings
from tests.netns.processes import wait_until
from tests.scenes.ends import (
    SOCKETS,
    End,
    Shown,
    at,
    expect,
    peer_text,
)
from tests.scenes.hosts import WireGuardLab
from tests.scenes.tunnel import NETWORKS, Tunnel, network_of
from tests.scenes.wire import RESPONSE

MEBIBYTE = 1 << 20


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


def many_in_conf(lab: WireGuardLab, client: str, server: str) -> None:
    """A .conf with 2^16 allowed IPs at the client: up within 20 s, and each is used. The routes to
    them are one, set by hand (``Table = off``).

    Not for wg-quick: its shell reads such a file for minutes.
    """
    tunnel = Tunnel(lab, client, server)
    near, far = tunnel.client, tunnel.server
    many = [f"{address}/32" for address in ip_network("10.200.0.0/16")]
    near.edit(AllowedIPs=", ".join([*NETWORKS.split(", "), *many]))
    text = near.conf.read_text()
    near.conf.write_text(text.replace("[Interface]\n", "[Interface]\nTable = off\n"))
    far.up()
    began = time.monotonic()
    near.up()
    for network in ("10.10.0.0/24", "10.200.0.0/16", "10.201.0.0/16"):
        near.inside("ip", "route", "add", network, "dev", near.interface)
    tunnel.answered("kiwi", far)
    took = time.monotonic() - began
    expect(took < 20, f"it took {took:.1f} s")
    ends = ["10.200.0.0", "10.200.77.88", "10.200.255.255"]
    for address in (*ends, "10.201.0.1"):
        far.inside("ip", "address", "add", f"{address}/32", "dev", far.interface)
    for address in ends:
        expect(lab.ping("kiwi", address, count=2).returncode == 0, f"{address} does not answer")
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
    # All bytes of all datagrams, as wireguard-go and the kernel count.
    for what, count in (
        ("sent by the client", peer.sent),
        ("received by the server", seen.received),
    ):
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
    """Wait until two looks, a fifth of a second apart, agree."""
    seen: object = None
    at_least = 0.0

    def same() -> bool:
        nonlocal seen, at_least
        if time.monotonic() < at_least:
            return False
        before, seen, at_least = seen, look(), time.monotonic() + 0.2
        return before == seen

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


def constant(shown: Shown) -> Shown:
    """What traffic does not change of what ``wg show`` says."""
    peers = {key: peer._replace(received=0, sent=0) for key, peer in shown.peers.items()}
    return shown._replace(peers=peers)


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
    """A .conf with 0.0.0.0/0 and ::/0, as phones have it: the program's socket is marked, by
    wg-quick or by itself, so that all but its own datagrams goes through the tunnel."""
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
    rules = near.inside("ip", "rule", "show").split("\n")
    left = [rule for rule in rules if rule and rule.split()[-1] not in ("local", "main", "default")]
    expect(not left and len(rules) == 4, f"rules are left: {left}")
