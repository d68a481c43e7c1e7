"""Super-packets with real processes and the real kernel at both ends.

::

      kiwi 10.10.0.2 ── leamit0 ══ eth0 ── inet ── eth0 ══ leamit0 ── hub 10.10.0.1
           TCP, UDP_SEGMENT          one datagram a segment       what arrived, byte for byte

The lab's counters see datagrams, not UDP super-packets: its cables do not pass those on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.firewall import TABLES
from tests.netns import flows
from tests.netns.lab import TUN, built_for

PASSWORD = "correct horse kiwi"
HUB4, KIWI4 = "10.10.0.1", "10.10.0.2"
TRANSFER = 20_000_000
TCP_PORT, UDP_PORT = 4001, 4002
#: The longest datagram of a path of 1500 bytes as nft counts it.
LONGEST = 1500


class SuperPacketTests(SynchronousTestCase):
    """Each test has a network of its own, with the hub and Kiwi in it."""

    def setUp(self) -> None:
        self.net = built_for(self)

    def connect(self, *options: str) -> None:
        self.net.start_hub({"kiwi": PASSWORD})
        self.net.join("kiwi")
        self.net.start_client("kiwi", PASSWORD, *options)

    def status(self, host: str) -> Any:
        (answer,) = json.loads(self.net.pyvpn(host, "status", "--json").stdout).values()
        return answer

    def offloads(self, *names: str) -> None:
        """Skip where the kernel has not what a test is about."""
        for host in ("hub", "kiwi"):
            had = self.status(host)["tun_offloads"]
            for name in names:
                if not had[name]:
                    raise SkipTest(f"this kernel's TUN has no {name}")

    def written(self, host: str) -> int:
        """Frames that the VPN has written to a host's TUN, as the kernel counts them."""
        argv = ["ip", "-json", "-s", "link", "show", "dev", TUN]
        (link,) = json.loads(self.net.run(host, argv, check=True).stdout)
        return int(link["stats64"]["rx"]["packets"])

    def flow(self, sender: str, receiver: str, address: str, count: int = TRANSFER) -> None:
        """A TCP connection that carries so many random bytes; they arrive all, and right."""
        program = [self.net.tool("python"), Path(flows.__file__).resolve()]
        sink = self.net.spawn(receiver, [*program, "tcp-receive", str(TCP_PORT)], "sink")
        sink.wait_for_text("ready")
        argv = [*program, "tcp-send", address, str(TCP_PORT), str(count)]
        sent = self.net.run(sender, argv, check=True, seconds=60).stdout.strip()
        self.assertEqual(sink.wait(), 0)
        self.assertEqual(sink.text().split("\n")[1], sent)
        self.assertEqual(sent.split()[0], str(count))

    def bursts(self, sender: str, receiver: str, address: str, size: int, pieces: int) -> None:
        """UDP super-packets, ten of them, each awaited: they arrive whole, piece by piece."""
        program = [self.net.tool("python"), Path(flows.__file__).resolve()]
        port = str(UDP_PORT)
        sink = self.net.spawn(receiver, [*program, "udp-receive", port, str(size)], "sink")
        sink.wait_for_text("ready")
        argv = [*program, "udp-send", address, port, str(size), str(pieces), "10"]
        sent = self.net.run(sender, argv, check=True, seconds=60).stdout.strip()
        self.assertEqual(sent, "10 10", f"{pieces} × {size} to {address}")
        self.assertEqual(sink.wait(), 0)

    def ways(self) -> list[tuple[str, str, str]]:
        """Sender, receiver and the receiver's address, each way in both families."""
        return [
            ("kiwi", "hub", HUB4),
            ("hub", "kiwi", KIWI4),
            ("kiwi", "hub", self.net.inner6("hub")),
            ("hub", "kiwi", self.net.inner6("kiwi")),
        ]

    def moved_whole(self) -> None:
        """TCP each way in both families, in far fewer writes than segments."""
        self.offloads("csum", "tso")
        for sender, receiver, address in self.ways():
            (session,) = self.status("hub")["sessions"]
            before = session["rx_packets"] if receiver == "hub" else session["tx_packets"]
            frames, packets = self.written(receiver), sum(self.on_the_wire(receiver))
            self.flow(sender, receiver, address)
            (session,) = self.status("hub")["sessions"]
            after = session["rx_packets"] if receiver == "hub" else session["tx_packets"]
            segments = after - before
            # Segments are counted as such, each is a datagram, and many go in one write.
            self.assertGreater(segments, TRANSFER / LONGEST)
            self.assertLess(segments, TRANSFER / 1000)
            self.assertGreaterEqual(sum(self.on_the_wire(receiver)) - packets, segments)
            self.assertLess(self.written(receiver) - frames, segments / 3)

    def on_the_wire(self, receiver: str) -> list[int]:
        """Datagrams so far to the hub, or from it."""
        seen = self.net.count_to_hub() if receiver == "hub" else self.net.count_from_hub()
        return [seen["kiwi"].packets]

    def test_tcp(self) -> None:
        """20 MB each way in IPv4 and IPv6 arrive unchanged and move as super-packets, over IPv4."""
        self.connect()
        self.moved_whole()
        seen = self.net.count_to_hub()["kiwi"]
        self.assertLessEqual(seen.bytes / seen.packets, LONGEST)

    def test_tcp_over_ipv6(self) -> None:
        """And over IPv6, with the other cipher."""
        self.connect("--server", "[2001:db8:1::2]:5050", "--cipher", "chacha20-poly1305")
        self.moved_whole()

    def test_udp(self) -> None:
        """What UDP_SEGMENT sends arrives whole: 128 short pieces, and 44 that just fit.

        And up to the bound of the client's interface in few writes; above it its kernel cuts.
        """
        self.connect()
        self.offloads("csum", "uso")
        for sender, receiver, address in self.ways():
            few = ((100, 128), (450, 128), (1300, 44), (1000, 60))
            for size, pieces in (*few, (500, 128), (1000, 2)):
                frames = self.written(receiver)
                self.bursts(sender, receiver, address, size, pieces)
                if (size, pieces) in few:
                    self.assertLess(
                        self.written(receiver) - frames, 10 * pieces / 3, (size, pieces)
                    )

    def index(self, host: str) -> int:
        """The number of the TUN's interface."""
        shown = self.net.run(host, ["ip", "-json", "link", "show", TUN], check=True).stdout
        return int(json.loads(shown)[0]["ifindex"])

    def test_a_far_end_with_mss_48(self) -> None:
        """TCP to a host that takes 48 bytes at a time: 1,361 pieces a super-packet, all arrive."""
        self.connect()
        self.offloads("csum", "tso")
        for receiver, sender, there, here in (
            ("hub", "kiwi", HUB4, KIWI4),
            ("kiwi", "hub", KIWI4, HUB4),
        ):
            # The receiver offers what its route says; less than 48 bytes nobody sends. A client's
            # table comes before the main one.
            table = str(TABLES + self.index(receiver)) if receiver == "kiwi" else "main"
            route = ["ip", "route", "replace", f"{here}/32", "dev", TUN, "advmss", "48"]
            self.net.run(receiver, [*route, "table", table], check=True)
            (session,) = self.status("hub")["sessions"]
            kind = "rx_packets" if receiver == "hub" else "tx_packets"
            before = session[kind]
            self.flow(sender, receiver, there, 500_000)
            (session,) = self.status("hub")["sessions"]
            self.assertGreater(session[kind] - before, 500_000 / 60)

    def test_loss(self) -> None:
        """With one datagram in a hundred lost each way, transfers end, and right."""
        self.connect()
        rules = """table inet loss {
  counter lost {}
  chain thin {
    type filter hook prerouting priority -200;
    udp dport 5050 numgen random mod 100 < 1 counter name lost drop
    udp sport 5050 numgen random mod 100 < 1 counter name lost drop
  }
}
"""
        self.net.run("inet", ["nft", "-f", "-"], stdin=rules, check=True)
        for sender, receiver, address in self.ways()[:2]:
            self.flow(sender, receiver, address, TRANSFER // 4)
        argv = ["nft", "-j", "list", "counters", "table", "inet", "loss"]
        entries = json.loads(self.net.run("inet", argv, check=True).stdout)["nftables"]
        (lost,) = [entry["counter"] for entry in entries if "counter" in entry]
        seen = self.net.count_to_hub()["kiwi"].packets + self.net.count_from_hub()["kiwi"].packets
        # The control: that many datagrams were lost, and none of them was a super-packet.
        self.assertLess(seen / 300, lost["packets"])
        self.assertLessEqual(lost["bytes"] / lost["packets"], LONGEST)
