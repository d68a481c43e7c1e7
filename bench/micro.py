"""What the parts of the core cost, one by one: ``make bench-micro``, without root.

    python bench/micro.py [-o FILE]     pyperf's options; --fast for a quick look

In one process, without sockets. A super-packet is what the kernel hands over for a TCP download:
64,000 bytes in segments of 1,364, each of which makes one datagram of 1,452. Times of super-packets
and bursts are for one segment; times of packets for one packet that comes alone.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pyperf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyvpn.core import segments, tai64n
from pyvpn.core.allowedips import AllowedIPs
from pyvpn.core.ippacket import checksum
from pyvpn.core.login import LoginAttempt, LoginFlags, LoginRequest, NetworkKeys, password_key
from pyvpn.core.noise import KeyPair
from pyvpn.core.replay import ReplayWindow
from pyvpn.core.transport import Session

MTU = 1416
SEGMENT = 1364
SEGMENTS = 46
RUN = 44  # datagrams of that size in the largest burst
VIRTIO_AND_HEADERS = 10 + 20 + 32
HUB, CLIENT = bytes((10, 10, 0, 1)), bytes((10, 10, 0, 2))
CLIENTS = 10_000

TCP_HEADER = struct.pack("!HHIIBBHHH", 443, 50000, 1, 1, 0x80, 0x18, 500, 0, 0) + bytes(12)


def tcp_frame(payload: int) -> bytes:
    """What the TUN gives for so many bytes of one TCP flow: a virtio header and an IPv4 packet."""
    transport = TCP_HEADER + os.urandom(payload)
    total = 20 + len(transport)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 7, 0x4000, 64, 6, 0, HUB, CLIENT)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    whole = payload <= SEGMENT
    virtio = struct.pack("=BBHHHH", 1, 0 if whole else 1, 52, 0 if whole else SEGMENT, 20, 16)
    return virtio + head + transport


def sessions(aes: bool) -> tuple[Session, Session]:
    """Two ends that know each other's keys."""
    one, other = os.urandom(32), os.urandom(32)

    def end(send: bytes, receive: bytes) -> Session:
        return Session(
            send_key=send,
            receive_key=receive,
            aes=aes,
            local_index=1,
            remote_index=2,
            inner_mtu=MTU,
            created=0.0,
            segments=True,
        )

    return end(one, other), end(other, one)


def timed(loops: int, work: Callable[[], Any]) -> float:
    """Seconds that so many calls take."""
    started = time.perf_counter()
    for _ in range(loops):
        work()
    return time.perf_counter() - started


class Parts:
    """The parts of the core, each with its material at hand."""

    def __init__(self, runner: pyperf.Runner) -> None:
        self.runner = runner

    def add(self, name: str, work: Callable[[], Any], count: int = 1) -> None:
        """Measure a call that does ``count`` of what its name says."""
        self.runner.bench_time_func(name, timed, work, inner_loops=count)

    def ciphers(self) -> None:
        """Sealing and opening, in bursts and alone."""
        for aes, cipher in ((True, "AES-256-GCM"), (False, "ChaCha20-Poly1305")):
            sender, receiver = sessions(aes)
            plaintexts = segments.split(tcp_frame(SEGMENT * RUN), MTU + segments.PREFIX_SIZE)
            assert len(plaintexts) == RUN
            self.add(
                f"seal, {cipher}, a segment of a burst",
                lambda sender=sender, them=plaintexts: sender.seal_burst(them),
                RUN,
            )
            small = os.urandom(96)
            self.add(
                f"seal, {cipher}, a packet of 96 bytes alone",
                lambda sender=sender, small=small: sender.seal_burst([small]),
            )
            self.opening(f"open, {cipher}, a segment of a burst", sender, receiver, plaintexts)
            sender, receiver = sessions(aes)
            self.opening(f"open, {cipher}, a packet of 96 bytes alone", sender, receiver, [small])

    def opening(
        self, name: str, sender: Session, receiver: Session, plaintexts: list[bytes]
    ) -> None:
        """Opening. The window would refuse a datagram that came before, so it forgets them."""
        count = len(plaintexts)
        first = sender.send_counter
        sealed = [bytes(body) for body in sender.seal_burst(plaintexts)[1::2]]
        counters = tuple(range(first, first + count))

        def work() -> None:
            receiver.window.highest = -1
            opened = receiver.open_burst(counters, sealed)
            assert len(opened) == count

        self.add(name, work, count)

    def super_packets(self) -> None:
        """Cutting and joining."""
        room = MTU + segments.PREFIX_SIZE
        frame = tcp_frame(SEGMENT * SEGMENTS)
        plaintexts = segments.split(frame, room)
        assert len(plaintexts) == SEGMENTS
        run = segments.join(plaintexts, 0)
        assert b"".join(run.frame)[VIRTIO_AND_HEADERS:] == frame[VIRTIO_AND_HEADERS:]
        self.add("split, a segment", lambda: segments.split(frame, room), SEGMENTS)
        self.add("join, a segment", lambda: segments.join(plaintexts, 0), SEGMENTS)
        alone = tcp_frame(512)
        (plaintext,) = [segments.lone(alone)]
        self.add("split, a packet of 564 bytes alone", lambda: segments.lone(alone))
        self.add("join, a packet of 564 bytes alone", lambda: segments.join([plaintext], 0))
        self.add(
            "cut for a stock peer, a segment", lambda: segments.complete(frame, room), SEGMENTS
        )

    def lookups(self) -> None:
        """Whose address it is, and whether a counter is new."""
        hosts: AllowedIPs[int] = AllowedIPs()
        for number in range(CLIENTS):
            address = 0x0A000002 + number
            hosts.insert(ip_network(address), number)
        known = (0x0A000002 + CLIENTS // 2).to_bytes(4, "big")
        assert hosts.lookup(known) == CLIENTS // 2
        self.add(f"lookup, one of {CLIENTS:,} clients", lambda: hosts.lookup(known))
        self.add("lookup, nobody's", lambda: hosts.lookup(b"\xc0\x00\x02\x01"))
        window = ReplayWindow()

        def accept() -> None:
            assert window.accept_run(window.highest + 1, RUN)

        self.add("replay window, a segment of a burst", accept, RUN)

    def logins(self) -> None:
        """A login: what each side works for it, and what a password costs its owner."""
        login_key, static = KeyPair.of(os.urandom(32)), KeyPair.of(os.urandom(32))
        keys = NetworkKeys.derive(login_key.public, os.urandom(32))
        stamp = tai64n.pack(tai64n.whiten(time.time_ns()))

        def attempt() -> LoginAttempt:
            return LoginAttempt(
                keys,
                static,
                index=1,
                stamp=stamp,
                device=bytes(16),
                user="alice",
                flags=LoginFlags.AES_256_GCM,
                random_bytes=os.urandom,
            )

        asked = attempt()

        def answer() -> bytes:
            request = LoginRequest(keys, login_key, asked.message, os.urandom)
            message, _ = request.answer(
                index=2, flags=LoginFlags.AES_256_GCM, inner_mtu=MTU, stamp=stamp
            )
            return message

        answered = answer()
        self.add("login, the client asks", attempt)
        self.add("login, the hub answers", answer)
        self.add("login, the client reads it", lambda: asked.answered(answered))
        self.add(
            "login, the password's key",
            lambda: password_key("correct horse", "alice", bytes(16), 17, 8, 1),
        )


def main() -> None:
    runner = pyperf.Runner()
    runner.metadata["description"] = "parts of PyVPN's core"
    parts = Parts(runner)
    parts.ciphers()
    parts.super_packets()
    parts.lookups()
    parts.logins()


if __name__ == "__main__":
    main()
