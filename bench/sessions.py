"""What many live sessions cost the hub: memory, and the time of a packet among them.

    python bench/sessions.py [SESSIONS]

In one process, without sockets: real logins, real keys. Memory is what the process grew by. Times
are ratios within this run, medians of several rounds; the packet is 1,400 bytes, as in a download.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyvpn.core import control, tai64n
from pyvpn.core.events import LeaseRequested, LoginRequested
from pyvpn.core.leases import Lease
from pyvpn.core.login import LoginAttempt, LoginFlags, NetworkKeys, TransportKeys
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import VPNServer
from pyvpn.core.transport import Session
from pyvpn.testing.simulation import ip_packet
from pyvpn.tx.endpoint import UDPEndpoint

ROUNDS = 15
PACKETS = 4096
RUN = 32
#: Seconds of the hub's time between logins: under 100 a second, so that none needs a cookie, and
#: 10,000 of them within the 180 s of a session.
LOGIN_SPACING = 0.011
MEMORY, LONE, IN_RUNS = 150.0, 1.5, 10.0


def resident() -> int:
    """Return this process's resident bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Hub:
    """A hub's core and what its clients know: their keys and addresses."""

    def __init__(self) -> None:
        login_key = KeyPair.of(os.urandom(32))
        self.keys = NetworkKeys.derive(login_key.public, os.urandom(32))
        self.core = VPNServer(
            keys=self.keys,
            login_key=login_key,
            network4=IPv4Network("10.0.0.0/8"),
            network6=IPv6Network("fd00::/64"),
            inner_mtu=1416,
            aes=True,
            wall_clock=time.time_ns,
            random_bytes=os.urandom,
        )
        self.clients: list[tuple[TransportKeys, int, Lease, UDPEndpoint]] = []

    def log_in(self, number: int, now: float) -> None:
        """One client from its first datagram to a lease."""
        name, static = f"user{number}", KeyPair.of(os.urandom(32))
        host = f"::ffff:198.18.{number >> 8 & 255}.{number & 255}"
        endpoint = UDPEndpoint((host, 10000 + (number >> 16), 0, 0))
        core = self.core
        core.set_user(name, static.public, now)
        attempt = LoginAttempt(
            self.keys,
            static,
            index=number,
            stamp=tai64n.pack(tai64n.whiten(time.time_ns())),
            device=os.urandom(16),
            user=name,
            flags=LoginFlags.AES_256_GCM,
            random_bytes=os.urandom,
        )
        core.datagrams_received(attempt.message, len(attempt.message), endpoint, now)
        self.decide(number, now)
        (answer,) = core.datagrams_to_send(now)
        keys = attempt.answered(bytes(answer.buffers[0]))
        session = client_session(keys, number, now)
        poll = control.Poll(tai64n.pack(time.time_ns()), 1, 0, 0).pack()
        hello = control.Hello(None, None, "bench").pack()
        for frame in (poll, hello):
            datagram = b"".join(session.seal_burst([frame]))
            core.datagrams_received(datagram, len(datagram), endpoint, now)
        lease = self.decide(number, now)
        core.datagrams_to_send(now)
        assert lease is not None
        self.clients.append((keys, number, lease, endpoint))

    def decide(self, number: int, now: float) -> Lease | None:
        lease = None
        while (event := self.core.next_event()) is not None:
            if isinstance(event, LoginRequested):
                self.core.login_decided(event.id, True, now)
            elif isinstance(event, LeaseRequested):
                lease = Lease(IPv4Address(0x0A000002 + number), None)
                self.core.lease_decided(event.id, lease, now)
        return lease

    def datagrams(
        self, order: list[int], run: int, now: float
    ) -> list[tuple[bytes, int, UDPEndpoint]]:
        """Seal packets from the clients in that order, ``run`` of each, as the hub gets them."""
        sessions: dict[int, Session] = {}
        sealed = []
        for which in order:
            keys, number, lease, endpoint = self.clients[which]
            if which not in sessions:
                sessions[which] = client_session(keys, number, now)
                sessions[which].send_counter = self.counters.get(which, 100)
            packet = ip_packet(lease.ipv4, IPv4Address("10.0.0.1"), bytes(1380))
            buffers = sessions[which].seal_burst([packet] * run)
            sealed.append((b"".join(buffers), len(packet) + 32, endpoint))
            self.counters[which] = sessions[which].send_counter
        return sealed

    counters: dict[int, int] = {}

    def take(self, sealed: list[tuple[bytes, int, UDPEndpoint]], now: float) -> float:
        """Return the seconds that the hub took for them."""
        receive, expected = self.core.datagrams_received, 0
        started = time.perf_counter()
        for datagrams, size, endpoint in sealed:
            expected += len(receive(datagrams, size, endpoint, now))
        taken = time.perf_counter() - started
        assert expected == sum(len(data) // size for data, size, _ in sealed), "packets were lost"
        return taken


def client_session(keys: TransportKeys, index: int, now: float) -> Session:
    return Session(
        send_key=keys.send,
        receive_key=keys.receive,
        aes=True,
        local_index=index,
        remote_index=keys.remote_index,
        inner_mtu=1416,
        created=now,
    )


def compare(hub: Hub, run: int, now: float) -> tuple[float, float]:
    """Return the median µs a packet from one session, and from all in random order."""
    ones, manys = [], []
    everybody = range(len(hub.clients))
    for _ in range(ROUNDS):
        count = PACKETS // run
        one = hub.datagrams([0] * count, run, now)
        many = hub.datagrams(random.choices(everybody, k=count), run, now)
        # In turn, so that both see the same hour of a noisy machine.
        ones.append(hub.take(one, now) / (count * run) * 1e6)
        manys.append(hub.take(many, now) / (count * run) * 1e6)
    return statistics.median(ones), statistics.median(manys)


def main(sessions: int) -> int:
    now = 1000.0
    hub = Hub()
    hub.log_in(0, now)
    before = resident()
    for number in range(1, sessions):
        now += LOGIN_SPACING
        hub.log_in(number, now)
    grown = (resident() - before) / 2**20
    # Everybody has said something before: no timer is new, no window has its first jump.
    hub.take(hub.datagrams(list(range(sessions)), 1, now), now)
    lone_one, lone_many = compare(hub, 1, now)
    run_one, run_many = compare(hub, RUN, now)
    dearer = lone_many - lone_one
    share = (run_many / run_one - 1) * 100
    rows = [
        (f"{sessions:,} live sessions, memory", MEMORY, grown, "MiB", ""),
        (
            "a lone packet in random order, dearer by",
            LONE,
            dearer,
            "µs",
            f"{lone_one:.2f} → {lone_many:.2f}",
        ),
        (f"in runs of {RUN}, dearer by", IN_RUNS, share, "%", f"{run_one:.2f} → {run_many:.2f} µs"),
    ]
    for what, asked, measured, unit, detail in rows:
        verdict = "met" if measured <= asked else "NOT MET"
        print(f"{what:<42} ≤ {asked:g} {unit:<4} {measured:8.2f} {unit:<4} {verdict}  {detail}")
    return 0 if all(measured <= asked for _, asked, measured, _, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
