"""Many clients in one process: cores with a UDP socket each, and no TUN.

    python bench/swarm.py HUB TOKEN CLIENTS DEVICES

They log in as ``swarm-0``, ``swarm-1`` … with DEVICES each, by keys made of the name,
and apply whatever they are told. Prints ``connected N`` when all have an address, and from then on
``told REVISIONS SECONDS`` each time that all of them have been told so often: SECONDS is the
monotonic clock when the last one had it.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyvpn.core.client import VPNClient
from pyvpn.core.events import Configured, ResolveServer
from pyvpn.core.login import LoginFlags, NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.token import NetworkToken
from pyvpn.tx.endpoint import UDPEndpoint

#: Seconds between logins: fewer than 100 a second, with which the hub would ask for cookies.
SPACING = 0.0125
PORT = 5050


def key_of(user: str) -> KeyPair:
    """The key pair of a user of the swarm; nobody needs a password here."""
    return KeyPair.of(hashlib.sha256(user.encode()).digest())


class Member:
    """One client."""

    def __init__(self, number: int, devices: int, keys: NetworkKeys, hub: str) -> None:
        self.user = f"swarm-{number // devices}"
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.socket.bind(("", 0))
        self.hub = UDPEndpoint((hub, PORT))
        self.told = 0
        self.core = VPNClient(
            keys=keys,
            user=self.user,
            device=number.to_bytes(16, "big"),
            device_name=f"device-{number}",
            last_stamp=0,
            flags=LoginFlags.SEGMENT_FRAMES,
            inner_mtu=1416,
            wall_clock=time.time_ns,
            random_bytes=os.urandom,
        )

    def start(self, key: KeyPair) -> None:
        self.core.start(key, now())
        self.settle()

    def read(self) -> None:
        try:
            while True:
                data = self.socket.recv(65536)
                self.core.datagrams_received(data, len(data), self.hub, now())
        except BlockingIOError:
            pass
        self.settle()

    def settle(self) -> None:
        """Do what the core asks, send what it has, until there is nothing more."""
        while True:
            event = self.core.next_event()
            if isinstance(event, ResolveServer):
                self.core.server_resolved([self.hub], now())
            elif isinstance(event, Configured):
                self.told += 1
                self.core.config_applied(event.revision, now())
            elif event is None:
                bursts = self.core.datagrams_to_send(now())
                for burst in bursts:
                    for head, body in zip(burst.buffers[::2], burst.buffers[1::2], strict=True):
                        self.socket.sendto(bytes(head) + bytes(body), self.hub.remote[:2])
                if not bursts:
                    return

    def due(self) -> None:
        timer = self.core.next_timer()
        if timer is not None and timer[0] <= now():
            self.core.handle_timer(now())
            self.settle()


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main(hub: str, token_text: str, count: int, devices: int) -> None:
    token = NetworkToken.from_text(token_text)
    keys = NetworkKeys.derive(token.login_public, token.network_secret)
    members = [Member(number, devices, keys, hub) for number in range(count)]
    by_descriptor = {member.socket.fileno(): member for member in members}
    poll = select.epoll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    started, next_start, reported, looked = 0, now(), 0, now()
    while True:
        for descriptor, _ in poll.poll(0.01):
            by_descriptor[descriptor].read()
        if started < count and now() >= next_start:
            members[started].start(key_of(members[started].user))
            started, next_start = started + 1, next_start + SPACING
        if now() - looked > 0.1:
            looked = now()
            for member in members[:started]:
                member.due()
        least = min(member.told for member in members)
        if least > reported:
            reported = least
            print(f"told {reported} {time.monotonic():.6f}", flush=True)
            if reported == 1:
                print(f"connected {count}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
