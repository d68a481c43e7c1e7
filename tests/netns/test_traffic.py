"""The picture of the README with real processes: hub, Kiwi and Pa, and what must pass between them.

::

      kiwi 10.10.0.2 ──┐                      ┌── pa 10.10.0.3
      web server       ├── inet ── hub ───────┤   SSH server
                       └──  10.10.0.1         ┘
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import TUN, built_for

PASSWORDS = {"kiwi": "correct horse kiwi", "pa": "correct horse pa"}
MARKER = b"the quick brown kiwi jumps over the lazy hub"


class TrafficTests(SynchronousTestCase):
    """Each test has a network of its own, with Kiwi and Pa in it."""

    def setUp(self) -> None:
        self.net = built_for(self)
        self.net.start_hub(PASSWORDS)
        for host, password in PASSWORDS.items():
            self.net.join(host)
            self.net.start_client(host, password)

    def inner(self, host: str) -> list[str]:
        return [str(address) for address in self.net.addresses(host)]

    def test_ping_everywhere(self) -> None:
        """ICMP passes hub↔client and client↔client, in both families, without a loss."""
        for one in ("hub", "kiwi", "pa"):
            for other in ("hub", "kiwi", "pa"):
                for address in self.inner(other):
                    answer = self.net.ping(one, address, count=5)
                    self.assertEqual(answer.returncode, 0, answer.stdout)
                    self.assertIn(" 0% packet loss", answer.stdout)

    def test_ping_of_every_size(self) -> None:
        """Packets of 28 to 1416 bytes pass whole, and larger ones in fragments: padding and MTU."""
        for size in (0, 1, 3, 4, 15, 16, 1371, 1387, 1388, 1389, 4000, 20000):
            answer = self.net.ping("kiwi", "10.10.0.3", "-s", str(size), count=2)
            self.assertEqual(answer.returncode, 0, f"{size}: {answer.stdout}")

    def test_http(self) -> None:
        """A web page of 3 MB arrives unchanged, over IPv4 and IPv6, from client to client."""
        page = os.urandom(3_000_000)
        directory = self.net.directory / "kiwi" / "web"
        directory.mkdir(exist_ok=True)
        (directory / "page").write_bytes(page)
        self.net.start_web("kiwi", directory)
        for address in ("10.10.0.2", f"[{self.net.inner6('kiwi')}]"):
            target = self.net.directory / "pa" / "page"
            argv = ["curl", "-sS", "-g", "-o", str(target), f"http://{address}/page"]
            self.net.run("pa", argv, check=True, seconds=60)
            self.assertEqual(
                hashlib.sha256(target.read_bytes()).hexdigest(), hashlib.sha256(page).hexdigest()
            )

    def test_ssh(self) -> None:
        """An SSH session runs a command on Pa from Kiwi, over IPv4 and IPv6."""
        self.net.start_ssh("pa")
        for address in ("10.10.0.3", self.net.inner6("pa")):
            argv = self.net.ssh(
                "kiwi", "pa", address, "echo", "$((6 * 7))", "in", "$SSH_CONNECTION"
            )
            said = self.net.run("kiwi", argv, check=True).stdout
            self.assertTrue(said.startswith("42 in "), said)

    def test_nothing_readable_outside(self) -> None:
        """What is plain on the TUN is on no wire outside; the TUN's capture proves the marker."""
        outside = self.net.capture("inet", "any", "outside.pcap")
        inside = self.net.capture("hub", TUN, "inside.pcap")
        pattern = MARKER[:16].hex()
        self.net.ping("kiwi", "10.10.0.3", "-p", pattern, "-s", "200", count=3)
        recorded = self.net.captured(outside)
        self.assertIn(MARKER[:16] * 4, self.net.captured(inside))
        self.assertGreater(len(recorded), 6 * 200)
        self.assertNotIn(MARKER[:16], recorded)
        for address in (b"\x0a\x0a\x00\x02", b"\x0a\x0a\x00\x03"):
            self.assertNotIn(address, recorded)

    def test_wrong_password_gets_nothing(self) -> None:
        """A wrong password draws no byte from the hub; the right one moves the same counter."""
        self.net.join("pa", "kiwi", profile="guess")
        self.count_port("pa", 12009)
        # A TUN and a port of its own: Pa's own client runs on, and its traffic is not counted.
        options = ("--tun", "leamit9", "--port", "12009")
        attempt = self.net.start_client(
            "pa", "wrong horse", *options, profile="guess", seconds=None
        )
        self.net.wait_until(
            lambda: self.counter("login_wrong") >= 1, "the hub saw the wrong password", 10
        )
        attempt.wait_for_text("no answer from .*wrong user or password", 25)
        self.assertGreaterEqual(self.counter("login_wrong"), 3)
        self.assertEqual(self.seen_at_port("pa", 12009), 0)
        attempt.stop()
        right = self.net.start_client(
            "pa", PASSWORDS["kiwi"], *options, profile="guess", seconds=None
        )
        self.net.wait_until(
            lambda: self.seen_at_port("pa", 12009) > 0, "the right password draws an answer", 10
        )
        right.stop()

    def counter(self, name: str) -> int:
        status = json.loads(self.net.pyvpn("hub", "status", "--json").stdout)
        return _find(status, "counters").get(name, 0)

    def count_port(self, host: str, port: int) -> None:
        """Count what comes from the hub to one UDP port of a host, by a rule of our own there."""
        rule = f"udp sport 5050 udp dport {port} counter name seen"
        chain = f"chain incoming {{\ntype filter hook prerouting priority -300;\n{rule};\n}}"
        ruleset = f"table inet count{port} {{\ncounter seen {{ }}\n{chain}\n}}\n"
        self.net.run(host, ["nft", "-f", "-"], stdin=ruleset, check=True)

    def seen_at_port(self, host: str, port: int) -> int:
        """Return how many datagrams :meth:`count_port` has counted."""
        argv = ["nft", "-j", "list", "counters", "table", "inet", f"count{port}"]
        entries = json.loads(self.net.run(host, argv, check=True).stdout)["nftables"]
        return sum(entry["counter"]["packets"] for entry in entries if "counter" in entry)


def _find(status: Any, key: str) -> dict[str, int]:
    """Return the first dict of that name anywhere in a status."""
    if isinstance(status, dict):
        if isinstance(status.get(key), dict):
            return dict(status[key])
        status = list(status.values())
    if isinstance(status, list):
        for entry in status:
            found = _find(entry, key)
            if found:
                return found
    return {}
