"""A tunnel between two ends, ready to be looked at: what every scene begins with."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.netns import flows
from tests.netns.lab import INET, PORT, Process
from tests.scenes.ends import End, HubEnd, ShownPeer, at, conf_text, end, expect, peer_text
from tests.scenes.hosts import WireGuardLab
from tests.scenes.timers import RETRY
from tests.scenes.wire import Datagram, datagrams

ADDRESSES = {
    "hub": ("10.10.0.1", "fd00:10::1"),
    "kiwi": ("10.10.0.2", "fd00:10::2"),
    "pa": ("10.10.0.3", "fd00:10::3"),
}
NETWORKS = "10.10.0.0/24, fd00:10::/64"
FLOWS = Path(flows.__file__)


class Tunnel:
    """A server on ``hub`` and clients on other hosts.

    :ivar psk: whether each pair has a pre-shared key.
    :ivar keepalive: seconds; what each client's .conf says, 0: nothing.
    """

    def __init__(
        self,
        lab: WireGuardLab,
        client: str,
        server: str,
        *,
        hosts: tuple[str, ...] = ("kiwi",),
        psk: bool = True,
        keepalive: int = 0,
    ) -> None:
        self.lab = lab
        self.server = end(lab, "hub", server)
        self.clients = {host: end(lab, host, client) for host in hosts}
        self.psk = psk
        self.keepalive = keepalive
        if isinstance(self.server, HubEnd):
            self._add_to_hub(self.server)
        else:
            self._write_confs()

    @property
    def client(self) -> End:
        """The first client."""
        return next(iter(self.clients.values()))

    def up(self) -> Tunnel:
        """Start all; every client has had an answer through the tunnel when this returns."""
        # Our hub runs already: peers are added to a living one.
        if not self.server.pids():
            self.server.up()
        for client in self.clients.values():
            client.up()
            self.answered(client.host, self.server)
        return self

    def answered(self, host: str, other: End, seconds: float = 3 * RETRY) -> float:
        """Wait until the other end answers a ping of the host, by default for so long that two
        handshakes may be lost; the seconds it took."""
        return self.lab.wait_answer(host, other.address(), seconds)

    def public_key(self, of: End) -> str:
        """The public key that belongs to the private one in an end's .conf."""
        private = of.conf_value("PrivateKey")
        return of.wg("pubkey", stdin=f"{private}\n").strip()

    def peer_of_server(self, client: End | None = None) -> ShownPeer:
        """What the server's ``wg show`` says of a client, the first by default."""
        peers = self.server.show().peers
        key = self.public_key(client or self.client)
        expect(key in peers, f"wg shows no peer {key} on {self.server}")
        return peers[key]

    def ping(self, source: End, target: End, version: int, *options: str, count: int = 3) -> None:
        """Ping between ends; all must be answered."""
        address = target.address(version)
        done = self.lab.ping(source.host, address, *options, count=count)
        said = " ".join(done.stdout.split())[-200:]
        expect(done.returncode == 0, f"{source.host} pings {address} {options} in vain: {said}")
        expect(" 0% packet loss" in done.stdout, f"{source.host}'s pings to {address}: {said}")

    def silent(self, source: End, address: str) -> None:
        """Ping between ends; none may be answered."""
        done = self.lab.ping(source.host, address, count=2)
        expect(done.returncode != 0, f"{address} answers {source.host}, and must not")

    @contextlib.contextmanager
    def recorded(self, host: str = "kiwi") -> Iterator[list[Datagram]]:
        """Record a host's cable as long as this lasts; the list is filled at the end."""
        found: list[Datagram] = []
        capture = self.lab.capture(INET, host, f"{host}-{len(self.lab.processes)}.pcap")
        yield found
        found += datagrams(self.lab.captured(capture))

    def from_hub(self, host: str = "kiwi") -> int:
        """How many packets, of whatever kind, the hub has sent to a host's outer address."""
        return self.lab.count_from_hub()[host].packets

    def to_hub(self, host: str = "kiwi") -> int:
        """How many a host has sent to the hub's."""
        return self.lab.count_to_hub()[host].packets

    def keep_pinging(self, source: End, target: End) -> Process:
        """Ping twice a second, whatever comes of it."""
        argv = ["ping", "-n", "-i", "0.5", target.address()]
        return self.lab.spawn(source.host, argv, "ping")

    # -- the .conf files ----------------------------------------------------------------------

    def _write_confs(self) -> None:
        private = {each.host: self._wg("genkey") for each in (self.server, *self.clients.values())}
        public = {host: self._wg("pubkey", stdin=key) for host, key in private.items()}
        peers = []
        for host, client in self.clients.items():
            secret = {"PresharedKey": self._wg("genpsk")} if self.psk else {}
            keepalive = {"PersistentKeepalive": str(self.keepalive)} if self.keepalive else {}
            endpoint = {"Endpoint": at(self.lab.hosts["hub"].ipv4, PORT)}
            hub = peer_text(public["hub"], NETWORKS, **secret, **endpoint, **keepalive)
            own = [f"{ADDRESSES[host][0]}/32", f"{ADDRESSES[host][1]}/128"]
            _write(client.conf, conf_text(private[host], own, [hub]))
            peers.append(f"# {host}\n" + peer_text(public[host], ", ".join(own), **secret))
        own = [f"{ADDRESSES['hub'][0]}/24", f"{ADDRESSES['hub'][1]}/64"]
        _write(self.server.conf, conf_text(private["hub"], own, peers, PORT))

    def _add_to_hub(self, hub: HubEnd) -> None:
        hub.up()
        for host, client in self.clients.items():
            options = ["--psk"] if self.psk else []
            options += ["--keepalive", str(self.keepalive)]
            conf = self.lab.directory / "hub" / f"{host}.conf"
            hub.add_peer(host, conf, *options)
            _write(client.conf, conf.read_text())

    def _wg(self, what: str, stdin: str | None = None) -> str:
        done = self.lab.run("hub", ["wg", what], check=True, stdin=stdin and f"{stdin}\n")
        return done.stdout.strip()


def network_of(address: str) -> str:
    """The smallest network with an address in it."""
    return f"{address}/{128 if ':' in address else 32}"


def pass_tcp(lab: WireGuardLab, source: str, target: str, address: str, count: int) -> None:
    """Send so many bytes by TCP from host to host; they must arrive unchanged."""
    receive = [sys.executable, str(FLOWS), "tcp-receive", "7000"]
    receiver = lab.spawn(target, receive, "tcp-receive")
    receiver.wait_for_text("ready")
    send = [sys.executable, str(FLOWS), "tcp-send", address, "7000", str(count)]
    sent = lab.run(source, send, seconds=60, check=True).stdout.split()
    receiver.wait(10)
    arrived = receiver.text().split()[1:]
    expect(arrived == sent, f"TCP from {source} to {address}: sent {sent}, arrived {arrived}")


def shown_endpoint(text: str) -> tuple[str, int]:
    """Address and port of an endpoint as wg shows it."""
    found = re.fullmatch(r"\[?([0-9a-f.:]+?)\]?:(\d+)", text)
    expect(found, f"{text!r} is no endpoint")
    assert found is not None
    return found[1], int(found[2])


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
