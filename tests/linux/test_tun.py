"""Opening the TUN device: what the service gets, and one clear line when it gets none."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StartError
from pyvpn.linux.tun import (
    VNET_HEADER_SIZE,
    Offloads,
    explain_tun_error,
    negotiate_offloads,
    open_tun,
)
from tests.linux.worlds import own_directory
from tests.tx.namespace import Namespace


class OpenTUN(SynchronousTestCase):
    """On the kernel, in a namespace."""

    def setUp(self) -> None:
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)
        # Else the kernel sends packets of its own, unasked.
        with self.namespace.inside():
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")

    def test_descriptor(self) -> None:
        """The descriptor does not block, is not inherited, and the interface has our name."""
        with self.namespace.inside():
            tun = open_tun("leamit0")
        self.addCleanup(tun.close)
        self.assertEqual(tun.name, "leamit0")
        self.assertFalse(os.get_blocking(tun.fileno()))
        self.assertFalse(os.get_inheritable(tun.fileno()))
        self.assertIn("leamit0", self.namespace.ip("link show"))
        self.namespace.ip("link set leamit0 up")
        with self.assertRaises(BlockingIOError):
            os.read(tun.fileno(), 65536)

    def test_virtio_header(self) -> None:
        """Each packet comes behind a virtio header of ten bytes, and goes in behind one."""
        with self.namespace.inside():
            tun = open_tun("leamit0")
        self.addCleanup(tun.close)
        self.namespace.ip("link set leamit0 up")
        self.namespace.ip("address add 10.10.0.1/24 dev leamit0")
        # An echo request of 10.10.0.2 makes the kernel answer out of the TUN.
        request = bytes.fromhex(
            "4500001c000000004001 66cc 0a0a0002 0a0a0001 0800 f7ff 0000 0000".replace(" ", "")
        )
        request = request[:10] + _checksum(request[:10] + b"\0\0" + request[12:20]) + request[12:]
        self.assertEqual(
            os.writev(tun.fileno(), [bytes(VNET_HEADER_SIZE), request]),
            VNET_HEADER_SIZE + len(request),
        )
        frame = os.read(tun.fileno(), 65536)
        self.assertEqual(frame[:VNET_HEADER_SIZE], bytes(VNET_HEADER_SIZE))
        packet = frame[VNET_HEADER_SIZE:]
        self.assertEqual(packet[0], 0x45)
        self.assertEqual(packet[12:20], bytes.fromhex("0a0a0001 0a0a0002"))
        self.assertEqual(packet[20], 0)

    def udp_frames(self, offload: bool) -> list[bytes]:
        """What the TUN brings of ten datagrams of 1000 bytes that left by one UDP_SEGMENT send."""
        with self.namespace.inside():
            tun = open_tun("leamit0", offload=offload)
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(tun.close)
        self.addCleanup(sender.close)
        self.assertEqual(str(tun.offloads), "csum, tso, uso" if offload else "none")
        self.namespace.ip("link set leamit0 up")
        self.namespace.ip("address add 10.10.0.1/24 dev leamit0")
        segment = (socket.SOL_UDP, 103, struct.pack("=H", 1000))
        sender.sendmsg([bytes(10_000)], [segment], 0, ("10.10.0.2", 9))
        frames = []
        while True:
            try:
                frames.append(os.read(tun.fileno(), 65600))
            except BlockingIOError:
                break
        tun.close()
        return frames

    def test_offloads(self) -> None:
        """If asked for, a UDP super-packet comes as one frame that says how to cut it."""
        [frame] = self.udp_frames(offload=True)
        self.assertEqual(len(frame), VNET_HEADER_SIZE + 28 + 10_000)
        flags, kind, _, size, start, offset = struct.unpack_from("<BBHHHH", frame)
        self.assertEqual((flags, kind, size, start, offset), (1, 5, 1000, 20, 6))

    def test_no_offloads(self) -> None:
        """Not asked for, the same comes as ten whole packets with nothing left to do."""
        frames = self.udp_frames(offload=False)
        self.assertEqual([len(frame) for frame in frames], [VNET_HEADER_SIZE + 1028] * 10)
        self.assertEqual({frame[:VNET_HEADER_SIZE] for frame in frames}, {bytes(10)})

    def test_close(self) -> None:
        """Closing removes the interface; twice is harmless, and the name is free again."""
        with self.namespace.inside():
            tun = open_tun("leamit0")
        self.assertIn("leamit0", self.namespace.ip("link show"))
        tun.close()
        tun.close()
        self.assertEqual(tun.fileno(), -1)
        self.assertNotIn("leamit0", self.namespace.ip("link show"))
        with self.namespace.inside():
            open_tun("leamit0").close()

    def test_name_taken(self) -> None:
        """An interface of that name, ours or foreign, TUN or not, is left as it is."""
        with self.namespace.inside():
            tun = open_tun("leamit0")
        self.addCleanup(tun.close)
        self.namespace.ip("tuntap add dev left0 mode tun")
        self.namespace.ip("link add veth0 type veth peer name veth1")
        before = self.namespace.ip("address show")
        for name in ("leamit0", "left0", "veth0", "lo"):
            with self.namespace.inside(), self.assertRaises(StartError) as caught:
                open_tun(name)
            self.assertEqual(
                str(caught.exception),
                f"an interface named {name} exists already;"
                " stop the program that made it, or choose another name with --tun",
            )
        self.assertEqual(self.namespace.ip("address show"), before)

    def test_invalid_name(self) -> None:
        """A name that the kernel or pytun refuses is an error that quotes it."""
        for name in ("sixteen_letters_", "a/b", "..", "a b"):
            with self.namespace.inside(), self.assertRaises(StartError) as caught:
                open_tun(name)
            self.assertIn(f"the kernel refuses {name!r}", str(caught.exception))

    def test_without_privilege(self) -> None:
        """Without privilege the error says so and names the remedy; nothing is made."""
        script = (
            "import os, sys; from pyvpn.linux.tun import *; from pyvpn.errors import StartError\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: open_tun('leamit0')\n"
            "except StartError as error: sys.exit(str(error))\n"
        )
        with self.namespace.inside():
            done = subprocess.run(
                [sys.executable, "-c", script],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[2],
                check=False,
            )
        self.assertEqual(
            done.stderr.strip(),
            "no privilege to make a TUN interface (/dev/net/tun); start as root, with sudo",
        )
        self.assertNotIn("leamit0", self.namespace.ip("link show"))


class Negotiation(SynchronousTestCase):
    """On kernels that know less; the numbers are those of linux/if_tun.h."""

    TUNSETOFFLOAD = 0x400454D0
    CSUM, TSO4, TSO6, ECN, USO4, USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40

    def negotiate(self, known: int) -> tuple[Offloads, list[int]]:
        """With a kernel that refuses every bit that is not in `known`; what it was asked."""
        asked: list[int] = []

        def ioctl(fd: int, request: int, bits: int) -> None:
            self.assertEqual((fd, request), (7, self.TUNSETOFFLOAD))
            asked.append(bits)
            if bits & ~known:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        return negotiate_offloads(7, ioctl), asked

    def test_by_kernel(self) -> None:
        """Each kernel gives the most it knows, never TSO with ECN, and the device says which."""
        tso = self.CSUM | self.TSO4 | self.TSO6
        everything = tso | self.USO4 | self.USO6
        for known, expected, asked, words in (
            (everything | self.ECN, Offloads(True, True, True), [everything], "csum, tso, uso"),
            (tso | self.ECN, Offloads(True, True, False), [everything, tso], "csum, tso"),
            (self.CSUM, Offloads(), [everything, tso, 0], "none"),
            (0, Offloads(), [everything, tso, 0], "none"),
        ):
            self.assertEqual(self.negotiate(known), (expected, asked))
            self.assertEqual(str(expected), words)

    def test_broken_device(self) -> None:
        """A device that refuses even to do nothing is an error."""

        def ioctl(fd: int, request: int, bits: int) -> None:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

        with self.assertRaises(OSError):
            negotiate_offloads(7, ioctl)


class NoDevice(SynchronousTestCase):
    """Without the kernel's help."""

    def test_no_node(self) -> None:
        """Without /dev/net/tun the error says how to get it."""
        node = os.path.join(own_directory(self), "tun")
        with self.assertRaises(StartError) as caught:
            open_tun("leamit0", node)
        self.assertEqual(
            str(caught.exception),
            f"{node} does not exist; load the kernel module with 'modprobe tun' as root"
            f" (in a container: pass the device in, as with --device {node})",
        )

    def test_every_error_has_a_line(self) -> None:
        """Whatever errno comes, the explanation is one line."""
        for number in (*errno.errorcode, None):
            error = OSError(number, "") if number is not None else OSError("words")
            line = explain_tun_error("leamit0", error)
            self.assertTrue(line)
            self.assertNotIn("\n", line)


def _checksum(header: bytes) -> bytes:
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    return (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
