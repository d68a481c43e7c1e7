"""Namespaces joined by cables, where a test sees each packet that crosses, and sends its own."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.system import LinuxSystem
from pyvpn.linux.tun import VNET_HEADER_SIZE, open_tun
from tests.tx.namespace import Namespace

ETH_P_ALL, ETH_P_ARP, ETH_P_EXPERIMENT = 0x0003, 0x0806, 0x88B5  # linux/if_ether.h, IEEE 802
PACKET_OUTGOING = 4  # linux/if_packet.h
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58

# Neighbour discovery and multicast listeners (RFC 4861, RFC 3810): sent when the kernel likes.
HOUSEKEEPING = (130, 131, 132, 133, 134, 135, 136, 143)


class Packet(NamedTuple):
    """What a test asks of a packet; protocol 0 is ARP, and ``data`` is what follows the IP header.

    ``port`` is the destination port, or the type of an ICMP packet.
    """

    protocol: int
    source: str
    destination: str
    port: int
    data: bytes

    @property
    def housekeeping(self) -> bool:
        """Does the kernel send such a thing at times of its own?"""
        return self.protocol == 0 or (self.protocol == ICMP6 and self.port in HOUSEKEEPING)


def read_packet(packet: bytes) -> Packet:
    """Of an IPv4 packet, or an IPv6 packet with at most a hop-by-hop header."""
    if packet[0] >> 4 == 4:
        protocol, data = packet[9], packet[(packet[0] & 15) * 4 :]
        addresses = packet[12:16], packet[16:20]
    else:
        protocol, data = packet[6], packet[40:]
        addresses = packet[8:24], packet[24:40]
        if protocol == 0:
            protocol, data = data[0], data[8 + data[1] * 8 :]
    port = data[0] if protocol in (ICMP, ICMP6) else int.from_bytes(data[2:4], "big")
    source, destination = (str(ip_address(one)) for one in addresses)
    return Packet(protocol, source, destination, port, data)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source: str, destination: str, protocol: int, data: bytes, place: int) -> bytes:
    """An IP packet around ``data``, whose own checksum stands at offset ``place``."""
    ends = ip_address(source).packed + ip_address(destination).packed
    pseudo = ends + struct.pack("!II", len(data), protocol)
    whole = data if protocol == ICMP else pseudo + data
    data = data[:place] + struct.pack("!H", checksum(whole)) + data[place + 2 :]
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, len(data), protocol, 64) + ends + data
    head = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(data), 0, 64, protocol, 0)
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + data


def udp(source: str, destination: str, port: int = 9, data: bytes = b"", sport: int = 7) -> bytes:
    """A UDP packet."""
    return ip(
        source, destination, UDP, struct.pack("!HHHH", sport, port, 8 + len(data), 0) + data, 6
    )


def echo(source: str, destination: str) -> bytes:
    """What ping sends."""
    six = ":" in source
    kind = 128 if six else 8
    data = struct.pack("!BBHHH", kind, 0, 0, 5, 6)
    return ip(source, destination, ICMP6 if six else ICMP, data, 2)


def syn(source: str, destination: str, port: int, segment: int) -> bytes:
    """The first packet of a TCP connection, which takes segments of ``segment`` bytes."""
    head = struct.pack("!HHIIBBHHH", 7, port, 1, 0, 6 << 4, 2, 65535, 0, 0)
    return ip(source, destination, TCP, head + struct.pack("!BBH", 2, 4, segment), 16)


def segment_size(packet: Packet) -> int:
    """The size that a TCP packet names first of its options."""
    assert packet.data[20:22] == b"\x02\x04", packet
    return int.from_bytes(packet.data[22:24], "big")


class Tunnel:
    """A TUN device in a namespace, with a test at its other end."""

    def __init__(self, namespace: Namespace, name: str, addresses: Iterable[str], mtu: int = 1416):
        with namespace.inside():
            self._device = open_tun(name)
        namespace.ip(f"link set {name} mtu {mtu} up")
        for address in addresses:
            nodad = " nodad" if ":" in address else ""
            namespace.ip(f"address add {address} dev {name}{nodad}")

    def deliver(self, *packets: bytes) -> None:
        """The packets come out of the tunnel, on to the kernel."""
        for packet in packets:
            os.write(self._device.fileno(), bytes(VNET_HEADER_SIZE) + packet)

    def taken(self) -> list[Packet]:
        """What the kernel has sent into the tunnel since the last call."""
        settle()
        found = []
        while True:
            try:
                frame = os.read(self._device.fileno(), 65536)
            except BlockingIOError:
                return [packet for packet in found if not packet.housekeeping]
            found.append(read_packet(frame[VNET_HEADER_SIZE:]))

    def close(self) -> None:
        """Take the device away."""
        self._device.close()


class Cable:
    """A veth pair: ``near`` is the interface of ``here``, ``far`` the one of ``there``."""

    _fences = 0

    def __init__(self, here: Namespace, near: str, there: Namespace, far: str) -> None:
        for namespace in (here, there):
            quiet(namespace)
        here.ip(f"link add {near} type veth peer name {far} netns {there.path()}")
        here.ip(f"link set {near} up")
        there.ip(f"link set {far} up")
        self._sender = _packet_socket(here, near)
        self._receiver = _packet_socket(there, far)

    def crossed(self) -> list[Packet]:
        """All that came out at the far end since the last call.

        A frame of our own, past all rules, is the end mark: what was sent before it came before.
        """
        settle()
        Cable._fences += 1
        mark = struct.pack("!6s6sHI", b"\xff" * 6, b"\x02" * 6, ETH_P_EXPERIMENT, self._fences)
        self._sender.send(mark.ljust(60, b"\0"))
        found = []
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            frame, address = self._receiver.recvfrom(65536)
            if address[2] == PACKET_OUTGOING:
                continue
            if frame.startswith(mark):
                return found
            if address[1] == ETH_P_ARP:
                found.append(Packet(0, "", "", 0, frame[14:]))
            elif address[1] != ETH_P_EXPERIMENT:
                found.append(read_packet(frame[14:]))
        raise AssertionError("the end mark did not cross the cable")

    def ours(self) -> list[Packet]:
        """As :meth:`crossed`, without what the kernel sends at times of its own."""
        return [packet for packet in self.crossed() if not packet.housekeeping]

    def close(self) -> None:
        """Stop looking; the cable goes with its namespaces."""
        self._sender.close()
        self._receiver.close()


def quiet(namespace: Namespace) -> None:
    """Addresses of IPv6 that are made from now on can be used at once."""
    set_sysctl(namespace, "net/ipv6/conf/default/accept_dad", 0)


def set_sysctl(namespace: Namespace, key: str, value: int) -> None:
    """``key`` is a path below /proc/sys."""
    with namespace.inside():
        Path("/proc/sys", key).write_text(str(value), encoding="ascii")


def forward(namespace: Namespace) -> None:
    """The namespace becomes a router."""
    set_sysctl(namespace, "net/ipv4/ip_forward", 1)
    set_sysctl(namespace, "net/ipv6/conf/all/forwarding", 1)


def nft(namespace: Namespace, text: str) -> None:
    """Load a script of nft in the namespace, or fail with what nft says."""
    with namespace.inside():
        done = LinuxSystem().run(["nft", "-f", "-"], text)
    if done.code:
        raise AssertionError(f"{done.stderr}\n{text}")


def settle() -> None:
    """Wait until the kernel has carried all packets as far as they get.

    Each hop puts a packet into a queue of the processor, which a busy kernel empties when it comes
    to it. We stay on one processor (:class:`KernelTest`), so what we send ourselves now comes after
    what waits there, and a few times of that are as many hops.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
        mark.settimeout(5)
        mark.bind(("127.0.0.1", 0))
        mark.connect(mark.getsockname())
        for _ in range(8):
            mark.send(b"")
            mark.recv(1)


def received(listener: socket.socket) -> bytes | None:
    """What came to the socket, None for nothing."""
    settle()
    try:
        return listener.recv(65536, socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return None


def _packet_socket(namespace: Namespace, device: str) -> socket.socket:
    with namespace.inside():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.settimeout(5)
    made.bind((device, ETH_P_ALL))
    return made


class KernelTest(SynchronousTestCase):
    """Namespaces with cables, for the length of a test, which stays on one processor."""

    def run(self, result: Any) -> Any:
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        try:
            return super().run(result)
        finally:
            os.sched_setaffinity(0, processors)

    def namespace(self) -> Namespace:
        made = Namespace()
        self.addCleanup(made.close)
        return made

    def tunnel(self, where: Namespace, *addresses: str, name: str = "tun0") -> Tunnel:
        made = Tunnel(where, name, addresses)
        self.addCleanup(made.close)
        return made

    def cable(self, here: Namespace, near: str, there: Namespace, far: str) -> Cable:
        made = Cable(here, near, there, far)
        self.addCleanup(made.close)
        return made

    def listener(self, where: Namespace, address: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with where.inside():
            made = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        made.bind((address, port))
        return made


def add_addresses(namespace: Namespace, device: str, *addresses: str) -> None:
    """Usable at once."""
    for address in addresses:
        namespace.ip(f"address add {address} dev {device}" + " nodad" * (":" in address))


def ends(packets: Iterable[Packet]) -> list[tuple[int, str, str]]:
    """(protocol, source, destination) of each."""
    return [(packet.protocol, packet.source, packet.destination) for packet in packets]
