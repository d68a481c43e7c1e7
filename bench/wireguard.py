"""What stock WireGuard peers cost the hub: handshakes, and 10,000 configured peers.

    python bench/wireguard.py [PEERS]

* handshakes a second that one core answers: in this process, without sockets, each of another peer
  and with another key, the initiation made beforehand; its first datagram on the new session is
  taken as well; counted is processor time. For the hub fewer than a hundred come in a second of its
  own time, so that it asks for no cookies;
* memory of a hub that has so many peers in its store, and how much later it is ready: real
  processes in a network namespace, against the same hub without peers.

Exit status: 0 every figure is met, 1 one is not, 2 nothing can be measured here.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import time
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import heading, show
from usage import resident

from pyvpn.accounts import in_reactor
from pyvpn.core import tai64n, wireguard
from pyvpn.core.login import NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import VPNServer
from pyvpn.core.transport import Session
from pyvpn.state.directory import StateDirectory
from pyvpn.state.interface import WireGuardPeerRecord
from pyvpn.state.sqlite import SQLiteStore
from pyvpn.tx.endpoint import UDPEndpoint
from tests.netns.lab import Lab, LabError, why_not

ASKED_RATE = 1500.0
ASKED_MEMORY = 60.0  # MiB
ASKED_LOAD = 2.0  # seconds
HANDSHAKES = 1000
ROUNDS = 5
STARTS = 3
SPACING = 0.011
FIRST = int(IPv4Address("10.0.0.2"))


class Initiators:
    """A hub's core, and peers of it that are about to begin their handshakes."""

    def __init__(self, count: int) -> None:
        login_key, self.key = KeyPair.of(os.urandom(32)), KeyPair.of(os.urandom(32))
        self.core = VPNServer(
            keys=NetworkKeys.derive(login_key.public, os.urandom(32)),
            login_key=login_key,
            network4=IPv4Network("10.0.0.0/8"),
            network6=None,
            inner_mtu=1416,
            aes=True,
            wall_clock=time.time_ns,
            random_bytes=os.urandom,
        )
        self.now = 1000.0
        self.core.wireguard.set_private_key(self.key.private, self.now)
        self.pairs = [KeyPair.of(os.urandom(32)) for _ in range(count)]
        for number, pair in enumerate(self.pairs):
            peer = self.core.wireguard.add(pair.public, self.now)
            self.core.wireguard.allow(peer, ip_network(FIRST + number))

    def initiations(self) -> list[wireguard.InitiationSent]:
        """One of each."""
        mac1_key = wireguard.mac1_key(self.key.public)
        return [
            wireguard.InitiationSent(
                pair,
                self.key.public,
                bytes(32),
                index=number,
                stamp=tai64n.pack(time.time_ns()),
                mac1_key=mac1_key,
                random_bytes=os.urandom,
            )
            for number, pair in enumerate(self.pairs)
        ]

    def round(self) -> float:
        """Return how many handshakes a second the core has done."""
        spent, done = 0.0, 0
        for number, initiation in enumerate(self.initiations()):
            self.now += SPACING
            endpoint = UDPEndpoint((f"::ffff:198.18.{number >> 8}.{number & 255}", 51820, 0, 0))
            spent += self.take(initiation.message, endpoint)
            started = time.thread_time()
            (answer,) = self.core.datagrams_to_send(self.now)
            spent += time.thread_time() - started
            keys = initiation.answered(bytes(answer.buffers[0]))
            session = Session(
                send_key=keys.send,
                receive_key=keys.receive,
                aes=False,
                local_index=initiation.index,
                remote_index=keys.remote_index,
                inner_mtu=1420,
                created=self.now,
            )
            spent += self.take(b"".join(session.seal_burst([b""])), endpoint)
            while (event := self.core.next_event()) is not None:
                done += type(event).__name__ == "WireGuardConnected"
        if done != len(self.pairs):
            raise LabError(f"{done} of {len(self.pairs)} handshakes came about")
        return done / spent

    def take(self, datagram: bytes, endpoint: UDPEndpoint) -> float:
        """Hand the core a datagram; the seconds that it took for it."""
        started = time.thread_time()
        self.core.datagrams_received(datagram, len(datagram), endpoint, self.now)
        return time.thread_time() - started


def handshakes() -> bool:
    hub = Initiators(HANDSHAKES)
    # New keys for a peer that is connected count as a new connection no more.
    rates = [hub.round(), *(Initiators(HANDSHAKES).round() for _ in range(ROUNDS - 1))]
    rate = statistics.median(rates)
    measured = f"{rate:,.0f}/s ({min(rates):,.0f}–{max(rates):,.0f})"
    return show("handshakes answered", f"≥ {ASKED_RATE:,.0f}/s", measured, rate >= ASKED_RATE)


def fill(state_dir: Path, count: int) -> None:
    """Put so many peers into a hub's store, each with an address of its own."""
    state = StateDirectory(state_dir)
    state.prepare(os.urandom)
    peers = [
        WireGuardPeerRecord(
            name=f"peer{number}",
            public_key=KeyPair.of(os.urandom(32)).public,
            psk=os.urandom(32),
            allowed_ips=(),
            ipv4=str(IPv4Address(FIRST + number)),
            ipv6=None,
            keepalive=25,
            enabled=True,
            created=int(time.time()),
        )
        for number in range(count)
    ]

    async def put() -> None:
        store = SQLiteStore(state.store_path)
        store.open()
        await store.put_peers(peers)
        await store.close()

    in_reactor(put)


def start(lab: Lab, state: Path, count: int) -> tuple[float, float]:
    """Start a hub; the seconds until it is ready, and its MiB then."""
    run = lab.directory / "hub" / "run"
    argv = [lab.tool("twistd"), "-n", "pyvpn-server", "--subnet", "10.0.0.0/8"]
    argv += ["--subnet6", "none", "--state-dir", state, "--run-dir", run]
    hub = lab.spawn("hub", argv, "pyvpn-server")
    hub.wait_for_text("listens on UDP port", 30)
    took = time.monotonic() - hub.started
    size = resident([hub.pid])
    directories = ["--state-dir", state, "--run-dir", run]
    listed = lab.run("hub", [lab.tool("pyvpn"), *directories, "peer", "list"], check=True)
    found = len(re.findall(r"^peer\d+\s", listed.stdout, re.MULTILINE))
    if found != count:
        raise LabError(f"the hub has {found} peers, not {count}")
    hub.stop()
    return took, size


def configured(count: int) -> bool:
    with Lab() as lab:
        home = lab.directory / "hub"
        figures: dict[int, list[tuple[float, float]]] = {0: [], count: []}
        fill(home / f"state-{count}", count)
        StateDirectory(home / "state-0").prepare(os.urandom)
        for _ in range(STARTS):
            # In turn, so that both see the same minute of a noisy machine.
            for peers, found in figures.items():
                found.append(start(lab, home / f"state-{peers}", peers))
        for peers in figures:
            shutil.rmtree(home / f"state-{peers}")
    (empty, none), (later, more) = (
        [statistics.median(values) for values in zip(*found, strict=True)]
        for found in figures.values()
    )
    grown, load = more - none, later - empty
    what = f"{count:,} peers configured"
    measured = f"{grown:.1f} MiB ({none:.0f} → {more:.0f})"
    met = show(f"{what}, memory", f"≤ {ASKED_MEMORY:.0f} MiB", measured, grown <= ASKED_MEMORY)
    measured = f"{load:.2f} s ({empty:.2f} → {later:.2f})"
    return (
        show(f"{what}, ready later by", f"≤ {ASKED_LOAD:g} s", measured, load <= ASKED_LOAD) and met
    )


def main(count: int) -> int:
    reason = why_not()
    if reason is not None:
        print(f"nothing can be measured here: {reason}", file=sys.stderr)
        return 2
    heading()
    met = handshakes()
    return 0 if configured(count) and met else 1


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
    except LabError as error:
        print(f"the measurement failed: {error}", file=sys.stderr)
        sys.exit(1)
