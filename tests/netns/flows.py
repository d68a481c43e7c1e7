"""A sender and a receiver of TCP and UDP for the hosts of a lab, each one line of result.

::

    python flows.py tcp-receive PORT            bytes and sha256 of one connection
    python flows.py tcp-send ADDRESS PORT COUNT bytes and sha256 of what was sent
    python flows.py udp-receive PORT SIZE       answers each burst with how much of it is there
    python flows.py udp-send ADDRESS PORT SIZE PIECES BURSTS
                                                bursts that arrived whole, and those sent

UDP is sent with UDP_SEGMENT: one call makes PIECES datagrams of SIZE bytes, the last one byte
shorter. Standard library only: it runs wherever Python does.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import sys

UDP_SEGMENT, SO_RCVBUFFORCE = 103, 33
#: Burst, piece, how many there are.
HEADER = struct.Struct("!III")
PATIENCE = 2.0


def tcp_receive(port: int) -> str:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        digest, count = hashlib.sha256(), 0
        with connection:
            while data := connection.recv(1 << 20):
                digest.update(data)
                count += len(data)
    return f"{count} {digest.hexdigest()}"


def tcp_send(address: str, port: int, count: int) -> str:
    data = random.randbytes(count)
    with socket.create_connection((address, port), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    return f"{count} {hashlib.sha256(data).hexdigest()}"


def piece(burst: int, number: int, pieces: int, size: int) -> bytes:
    """What nobody else sends."""
    content = random.Random(burst << 16 | number).randbytes(size)
    return (HEADER.pack(burst, number, pieces) + content)[: size - (number == pieces - 1)]


def udp_receive(port: int, size: int) -> str:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        receiver.bind(("::", port))
        print("ready", flush=True)
        present: set[int] = set()
        present_of = -1
        while True:
            data, sender = receiver.recvfrom(65_535)
            if len(data) < HEADER.size:
                return "end"
            burst, number, pieces = HEADER.unpack_from(data)
            if burst != present_of:
                present, present_of = set(), burst
            if data == piece(burst, number, pieces, size):
                present.add(number)
            if len(present) == pieces:
                receiver.sendto(HEADER.pack(burst, len(present), pieces), sender)


def udp_send(address: str, port: int, size: int, pieces: int, bursts: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    whole = 0
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
        sender.settimeout(PATIENCE)
        sender.connect((address, port))
        for burst in range(bursts):
            sender.send(b"".join(piece(burst, number, pieces, size) for number in range(pieces)))
            try:
                answer = sender.recv(100)
            except TimeoutError:
                continue
            whole += answer == HEADER.pack(burst, pieces, pieces)
        sender.send(b"end")
    return f"{whole} {bursts}"


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    call = {
        "tcp-receive": tcp_receive,
        "tcp-send": tcp_send,
        "udp-receive": udp_receive,
        "udp-send": udp_send,
    }[what]
    values = [int(word) if word.isdigit() else word for word in arguments]
    print(call(*values))  # type: ignore[operator]
