"""Paths of other sizes than 1500 bytes: narrow, wide, and narrow all at once; with real processes.

::

      hub ══ 9000 or less ══ inet ══ 1500, 1280 or 9000 ══ kiwi

The router in the middle cuts nothing that must not be cut, and what its ICMP says is never needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import TUN, Lab, Process, built_for

PASSWORD = "correct horse kiwi"
HUB4 = "10.10.0.1"
KIWI4 = "10.10.0.2"
#: What ping says when it was told of a path of 1280 bytes inside.
TOLD = r"(?i)(too big|too long|frag needed).*mtu ?= ?1280"


class MTUTests(SynchronousTestCase):
    """Each test has a network of its own, whose cables it sets before the client comes."""

    net: Lab

    def setUp(self) -> None:
        self.net = built_for(self)

    def cable(self, host: str, mtu: int) -> None:
        """Set the MTU of both ends of a host's cable."""
        for place, interface in ((host, "eth0"), ("inet", host)):
            argv = ["ip", "link", "set", "dev", interface, "mtu", str(mtu)]
            self.net.run(place, argv, check=True)

    def connect(self, *options: str) -> Process:
        self.net.start_hub({"kiwi": PASSWORD})
        self.net.join("kiwi")
        return self.net.start_client("kiwi", PASSWORD, *options)

    def tun_mtu(self, host: str) -> int:
        done = self.net.run(host, ["ip", "-json", "link", "show", "dev", TUN], check=True)
        return int(json.loads(done.stdout)[0]["mtu"])

    def wait_mtu(self, mtu: int, seconds: float = 15) -> None:
        self.net.wait_until(
            lambda: self.tun_mtu("kiwi") == mtu, f"kiwi's {TUN} has an MTU of {mtu}", seconds
        )

    def pings(self, size: int) -> None:
        """Ping with so many bytes both ways; the first may be what teaches a kernel."""
        for host, address in (("kiwi", HUB4), ("hub", KIWI4)):
            self.net.ping(host, address, "-s", str(size), count=1)
            answer = self.net.ping(host, address, "-s", str(size), count=3)
            self.assertEqual(answer.returncode, 0, f"{host}: {answer.stdout}")
            self.assertIn(" 0% packet loss", answer.stdout, host)

    def page(self, server: str, size: int = 5_000_000) -> str:
        """Serve a page; return the hash of its bytes."""
        directory = self.net.directory / server / "web"
        directory.mkdir(parents=True, exist_ok=True)
        page = os.urandom(size)
        (directory / "page").write_bytes(page)
        self.net.start_web(server, directory)
        return hashlib.sha256(page).hexdigest()

    def fetch(self, host: str, address: str, seconds: float = 20) -> str:
        target = self.net.directory / f"{host}-page"
        argv = ["curl", "-sS", "-g", "-o", str(target), f"http://{address}/page"]
        self.net.run(host, argv, check=True, seconds=seconds)
        return hashlib.sha256(target.read_bytes()).hexdigest()

    def transfers(self) -> None:
        """Move 5 MB each way, in both families inside."""
        pages = {host: self.page(host) for host in ("hub", "kiwi")}
        hub6, kiwi6 = (f"[{self.net.inner6(host)}]" for host in ("hub", "kiwi"))
        for host, server, addresses in (
            ("kiwi", "hub", (HUB4, hub6)),
            ("hub", "kiwi", (KIWI4, kiwi6)),
        ):
            for address in addresses:
                self.assertEqual(self.fetch(host, address), pages[server], f"{host} ← {address}")

    def test_narrow(self) -> None:
        """A hop of 1280 bytes in the middle stalls nothing: 5 MB pass each way, and pings that are
        larger; the TUN's MTU stays at 1280, so its IPv6 address stays too.
        """
        self.cable("kiwi", 1280)
        self.connect()
        self.pings(1300)
        self.wait_mtu(1280)
        self.transfers()
        self.pings(1300)
        self.pings(1190)  # more than a datagram takes, less than the TUN's MTU
        # The hub's TUN takes more; its kernel believes what the core says about this client.
        for address in (KIWI4, self.net.inner6("kiwi")):
            said = self.net.ping("hub", address, "-M", "do", "-s", "2000", count=3)
            self.assertRegex(
                said.stdout + said.stderr, r"(?i)(too big|too long|frag needed).*mtu ?= ?1280"
            )
        self.assertTrue(self.net.inner6("kiwi"))

    def test_behind_a_narrow_path(self) -> None:
        """A client with a path of 1500 bytes is told by the hub that another's takes less, in both
        families; then what it sends arrives.
        """
        self.cable("kiwi", 1280)
        self.net.start_hub({"kiwi": PASSWORD, "pa": PASSWORD})
        for host in ("kiwi", "pa"):
            self.net.join(host)
            self.net.start_client(host, PASSWORD)
        self.wait_mtu(1280)
        for address in (KIWI4, self.net.inner6("kiwi")):
            self.net.wait_until(
                lambda a=address: self.net.ping("pa", a, "-s", "100", count=1).returncode == 0,
                f"pa reaches {address}",
            )
            said = self.net.ping("pa", address, "-M", "do", "-s", "1350", count=5)
            self.assertRegex(said.stdout + said.stderr, TOLD)
            self.assertEqual(self.net.ping("pa", address, "-s", "1350", count=2).returncode, 0)

    def test_wide(self) -> None:
        """A path of 9000 bytes is used by itself: datagrams of 8,980 bytes are on the wire."""
        for host in ("hub", "kiwi"):
            self.cable(host, 9000)
        # Without this the interfaces carry, and tcpdump sees, 64 datagrams as one.
        for place, interface in (
            *(("hub", "eth0"), ("inet", "hub")),
            *(("kiwi", "eth0"), ("inet", "kiwi")),
        ):
            argv = ["ethtool", "-K", interface, "tx-udp-segmentation", "off"]
            self.net.run(place, argv, check=True)
        self.connect()
        self.wait_mtu(8916)
        recording = self.net.capture("inet", "kiwi", "wide.pcap")
        self.transfers()
        self.pings(8000)
        sizes = packet_sizes(self.net.captured(recording))
        self.assertGreater(max(sizes), 8900)
        self.assertLessEqual(max(sizes), 9000 + 14)  # they are datagrams

    def test_shrinks_and_grows(self) -> None:
        """A path that becomes narrow in the middle of a transfer costs a pause, not the transfer;
        and a client that is told less than it could have stays with it.
        """
        self.connect("--mtu", "1400")
        self.wait_mtu(1400)
        digest = self.page("hub", 60_000_000)
        target = self.net.directory / "kiwi-page"
        argv = ["curl", "-sS", "--limit-rate", "12M", "-o", str(target), f"http://{HUB4}/page"]
        transfer = self.net.spawn("kiwi", argv, "curl")
        self.net.wait_until(
            lambda: target.exists() and target.stat().st_size > 1_000_000, "it runs", 10
        )
        self.cable("kiwi", 1280)
        self.assertLess(target.stat().st_size, 50_000_000, "control: it is under way")
        started = time.monotonic()
        self.assertEqual(transfer.wait(60), 0, transfer.text)
        self.assertLess(time.monotonic() - started, 25, "of which 5 s are the rest of the page")
        self.assertEqual(hashlib.sha256(target.read_bytes()).hexdigest(), digest)


def packet_sizes(pcap: bytes) -> list[int]:
    """Return how long the packets of a capture were on the wire."""
    order = "<" if pcap[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    sizes, at = [], 24
    while at + 16 <= len(pcap):
        _, _, kept, size = struct.unpack_from(f"{order}IIII", pcap, at)
        sizes.append(size)
        at += 16 + kept
    return sizes
