"""Our hub's own: password users beside stock peers, and ``pyvpn peer``."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from tests.netns.lab import PORT
from tests.netns.pings import Pings
from tests.netns.processes import wait_until
from tests.scenes.ends import (
    HubEnd,
    QuickEnd,
    at,
    end,
    expect,
)
from tests.scenes.hosts import WireGuardLab
from tests.scenes.timers import DEAD_AFTER, LATE, RETRY
from tests.scenes.tunnel import NETWORKS, Tunnel, pass_tcp

MEBIBYTE = 1 << 20


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
        pass_tcp(lab, source, target, str(inside[target][0]), 4 * MEBIBYTE)
    empty = lab.directory / "hub" / "empty.conf"
    empty.write_text(f"[Interface]\nPrivateKey = {shown.private_key}\nListenPort = {PORT}\n")
    with Pings(lab, "pa", str(inside["plum"][0])) as pings:
        tunnel.server.wg("syncconf", tunnel.server.interface, str(empty))
        silence = pings.longest_silence()
    expect(not tunnel.server.show().peers, "the hub still has stock peers")
    expect(silence < 5, f"password users were silent for {silence:.1f} s")
    expect(lab.ping("kiwi", str(inside["pa"][0]), count=2).returncode != 0, "kiwi is still in")


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
