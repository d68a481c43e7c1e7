"""Programs that never rest: ``talk.py WWW4 WWW6 DNS NAME LAN``; a program of its own.

Until it is ended it sends, every tenth of a second and whatever becomes of it: pings and UDP by
IPv4 and IPv6, UDP from a socket that is bound to eth0, questions straight to a name server that
nobody configured, UDP and a ping to a neighbour, and bytes down TCP connections that it opened when
it began; and it fetches a page by name, with the resolver that /etc/resolv.conf has at that moment.
It prints ``talking`` once the connections are there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time

PAUSE = 0.1
UDP_PORT = 9


def ping(family: socket.AddressFamily, number: int) -> bytes:
    """An echo request; IPv6's checksum is the kernel's."""
    kind = 8 if family == socket.AF_INET else 128
    message = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, number & 0xFFFF)
    if family == socket.AF_INET6:
        return message
    total = sum(struct.unpack("!4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]


def question(number: int) -> bytes:
    """A DNS question for an address of leak.example.org."""
    name = b"\4leak\7example\3org\0"
    return struct.pack("!6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)


def send(socket_: socket.socket, data: bytes, to: tuple[str, int]) -> None:
    """Send, if it can be sent."""
    with contextlib.suppress(OSError):
        socket_.sendto(data, to)


def open_socket(family: socket.AddressFamily, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that never blocks."""
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def by_name(name: str) -> None:
    """Fetch the page again and again."""
    while True:
        for family in ("-4", "-6"):
            argv = ["curl", "-sS", family, "-m", "1", "-o", "/dev/null", f"http://{name}/"]
            subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)
        time.sleep(PAUSE)


def connected(addresses: list[str]) -> list[socket.socket]:
    """A TCP connection to each that answers within two seconds."""
    found = []
    for address in addresses:
        with contextlib.suppress(OSError):
            made = socket.create_connection((address, 80), 2)
            made.setblocking(False)
            found.append(made)
    return found


def main(www4: str, www6: str, dns: str, name: str, neighbour: str) -> None:
    """Talk."""
    four, six = socket.AF_INET, socket.AF_INET6
    icmp4 = open_socket(four, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    icmp6 = open_socket(six, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    udp4, udp6 = (open_socket(family, socket.SOCK_DGRAM) for family in (four, six))
    bound = [open_socket(family, socket.SOCK_DGRAM) for family in (four, six)]
    for each in bound:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    connections = connected([www4, www6])
    print("talking", len(connections), flush=True)
    threading.Thread(target=by_name, args=(name,), daemon=True).start()
    number = 0
    while True:
        number += 1
        send(icmp4, ping(four, number), (www4, 0))
        send(icmp6, ping(six, number), (www6, 0))
        send(icmp4, ping(four, number), (neighbour, 0))
        send(udp4, b"plain", (www4, UDP_PORT))
        send(udp6, b"plain", (www6, UDP_PORT))
        send(udp4, b"plain", (neighbour, UDP_PORT))
        send(udp4, question(number), (dns, 53))
        for each, address in zip(bound, (www4, www6), strict=True):
            send(each, b"bound", (address, UDP_PORT))
        for each in connections:
            with contextlib.suppress(OSError):
                each.send(b"G")
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
