"""The laboratory of the comparison: what its figures rest on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import LabError, why_not
from tests.netns.processes import search_path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))

from threehosts import HUB, A, C, ThreeHosts

#: Sends 100 times 20 datagrams of 1,000 bytes, 20 in one call (UDP_SEGMENT).
BULK = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
for _ in range(100):
    sock.sendmsg([bytes(20000)], [(17, 103, struct.pack("H", 1000))], 0, ("192.0.2.1", 9))
"""
#: The same to the client, since both directions are checked.
BACK = BULK.replace("192.0.2.1", "192.0.2.2")


class ThreeHostsTests(SynchronousTestCase):
    """The cable on the real kernel, as root."""

    lab: ThreeHosts

    def setUp(self) -> None:
        reason = why_not()
        if reason is None and shutil.which("ethtool", path=search_path()) is None:
            reason = "ethtool is missing"
        if reason is not None:
            required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
            raise (self.failureException if required else SkipTest)(reason)
        self.lab = ThreeHosts()
        self.addCleanup(self.lab.close)
        self.lab.__enter__()

    def send(self) -> None:
        self.lab.run(A, [sys.executable, "-c", BULK], check=True)
        self.lab.run(HUB, [sys.executable, "-c", BACK], check=True)

    def test_reach(self) -> None:
        """Each client reaches the hub on its own cable, and nothing beyond: what is measured
        inside a VPN cannot have gone around it."""
        for client in (A, C):
            for version in (4, 6):
                self.lab.wait_answer(client, self.lab.hub_from(client, version), 5)
        self.assertNotEqual(self.lab.ping(A, self.lab.hub_from(C)).returncode, 0)
        self.assertNotEqual(self.lab.ping(A, "10.10.0.1").returncode, 0)

    def test_loss_is_per_datagram(self) -> None:
        """Of super-packets single datagrams are lost, about as many as were asked for."""
        with self.lab.losing(50):
            self.send()
            counts = self.lab.loss_counted(HUB)
        self.assertEqual(counts.seen, 2000)
        self.assertEqual(counts.oversized, 0)
        self.assertTrue(30 < counts.dropped < 180, counts)

    def test_super_packets_are_noticed(self) -> None:
        """Where the cable does not cut them the counts are of super-packets, and that is an
        error: this is how the check of the loss would have been fooled."""

        def uncut() -> None:
            with self.lab.losing(0):
                for host, interface in ((A, "eth0"), (HUB, "to-a")):
                    argv = ["ethtool", "-K", interface, "tx-udp-segmentation", "on"]
                    self.lab.run(host, argv, check=True)
                self.send()

        error = self.assertRaises(LabError, uncut)
        self.assertIn("100 super-packets", str(error))

    def test_lossless_by_default(self) -> None:
        """After a lossy stretch the cable is whole again."""
        with self.lab.losing(50):
            self.send()
        done = self.lab.ping(A, self.lab.hub_from(A), count=100)
        self.assertIn(" 0% packet loss", done.stdout)
