"""Delivery on poll with real processes: Kiwi polls, Pa does not, on one hub.

::

      kiwi 10.10.0.2 ──┐                      ┌── pa 10.10.0.3
      polls            ├── inet ── hub ───────┤   has all at once
                       └──  10.10.0.1         ┘
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import INET, Lab, LabError, Process, built_for

PASSWORDS = {"kiwi": "correct horse kiwi", "pa": "correct horse pa"}
PORT = 7777

#: Prints the lines that come to a UDP port, with the time of each.
LISTENER = f"""
import socket, time
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind(("0.0.0.0", {PORT}))
print("listening", flush=True)
while True:
    print(port.recv(2048).decode(), time.monotonic(), flush=True)
"""

#: Sends lines by UDP, in order: an address, then the lines.
SENDER = f"""
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.argv[2:]:
    port.sendto(line.encode(), (sys.argv[1], {PORT}))
"""


class PollTests(SynchronousTestCase):
    """Each test has a network of its own."""

    lab: Lab

    def setUp(self) -> None:
        self.lab = built_for(self)
        self.lab.start_hub(PASSWORDS)
        self.listeners: dict[str, Process] = {}

    def start(self, host: str, *options: str) -> None:
        """Connect a host, and have it listen for lines."""
        self.lab.join(host)
        self.lab.start_client(host, PASSWORDS[host], *options)
        listener = self.lab.spawn(host, [sys.executable, "-c", LISTENER], "listener")
        listener.wait_for_text("listening")
        self.listeners[host] = listener

    def send(self, host: str, *lines: str) -> float:
        """Send lines from the hub's machine to a host; when that was done."""
        address = self.lab.hosts[host].inner4
        self.lab.run("hub", [sys.executable, "-c", SENDER, address, *lines], check=True)
        return time.monotonic()

    def heard(self, host: str) -> dict[str, float]:
        """What a host has heard, in order, and when."""
        found = re.findall(r"^(\S+) ([\d.]+)$", self.listeners[host].text(), re.MULTILINE)
        return {line: float(at) for line, at in found}

    def wait_heard(self, host: str, line: str, seconds: float) -> float:
        """Wait for a line; when it was heard."""
        self.lab.wait_until(lambda: line in self.heard(host), f"{line!r} at {host}", seconds)
        return self.heard(host)[line]

    def cut(self, host: str) -> None:
        """Cut a host's cable in the middle: its own end looks as before."""
        rule = f"iifname {host} drop\n    oifname {host} drop"
        chain = f"chain cut {{\n    type filter hook forward priority 0;\n    {rule}\n  }}"
        self.router(f"table inet cut {{\n  {chain}\n}}\n")

    def heal(self) -> None:
        self.router("delete table inet cut\n")

    def router(self, rules: str) -> None:
        self.lab.run(INET, ["nft", "-f", "-"], stdin=rules, check=True)

    def status(self) -> Any:
        return json.loads(self.lab.pyvpn("hub", "status", "--json").stdout)["server"]

    def test_side_by_side(self) -> None:
        """Kiwi has what is sent to it with its next poll, up to a second later, Pa at once; order
        and number are right, what they ask is answered, and `status` tells who polls.
        """
        self.start("kiwi", "--deliver", "poll", "--poll-interval", "2")
        self.start("pa")
        lines = [f"line-{number}" for number in range(50)]
        waits = {"kiwi": 0.0, "pa": 0.0}
        for round in range(2):
            for host in waits:
                named = [f"{round}-{line}" for line in lines]
                sent = self.send(host, *named)
                heard = self.wait_heard(host, named[-1], 5)
                waits[host] = max(waits[host], heard - sent)
                self.assertEqual(list(self.heard(host))[-50:], named)
        self.assertLess(waits["pa"], 0.5)
        self.assertTrue(0.1 < waits["kiwi"] < 3, waits)
        self.assertEqual(self.lab.ping("kiwi", "10.10.0.3", "-W", "5", count=2).returncode, 0)
        ways = {session["user"]: session["deliver"] for session in self.status()["sessions"]}
        self.assertEqual(ways, {"kiwi": "poll", "pa": "push"})

    def test_while_the_client_is_away(self) -> None:
        """What the mailbox buys: a message sent while the cable is cut arrives with the next poll
        after. The one to a client with delivery at once is lost.
        """
        self.start("kiwi", "--deliver", "poll")
        self.start("pa")
        for host in ("kiwi", "pa"):
            self.wait_heard_after_cut(host)
        self.assertNotIn("while-away", self.heard("pa"))
        self.assertEqual(list(self.heard("kiwi")), ["before", "while-away", "after"])

    def wait_heard_after_cut(self, host: str) -> None:
        self.send(host, "before")
        self.wait_heard(host, "before", 5)
        self.cut(host)
        self.send(host, "while-away")
        # The hub has sealed it and sent it into the cut, or keeps it; a poll or two are lost.
        self.assertRaises(LabError, self.wait_heard, host, "while-away", 2.5)
        self.heal()
        self.send(host, "after")
        self.wait_heard(host, "after", 5)

    def test_over_a_link_that_forgets(self) -> None:
        """A client that polls every 3 s behind a NAT that forgets it after 1 s, and then gives it
        another port: nothing is lost, and it never logs in anew. (The proportions of once a minute
        and 20 s; tests/sim has those.)
        """
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            setting = f"net.netfilter.{name}=1"
            done = self.lab.run(INET, ["sysctl", "-qw", setting])
            if done.returncode:  # not loaded before the first rule that needs it
                self.masquerade()
                self.lab.run(INET, ["sysctl", "-qw", setting], check=True)
        self.masquerade()
        self.start("kiwi", "--deliver", "poll", "--poll-interval", "3")
        endpoints = set()
        lines = []
        for number in range(3):
            lines.append(f"line-{number}")
            self.send("kiwi", lines[-1])
            self.wait_heard("kiwi", lines[-1], 6)
            endpoints.add(self.status()["sessions"][0]["endpoint"])
        self.assertEqual(list(self.heard("kiwi")), lines)
        self.assertGreater(len(endpoints), 1)
        self.assertEqual({e.rpartition(":")[0] for e in endpoints}, {"198.51.100.1"})
        log = "\n".join(process.text() for process in self.lab.processes)
        self.assertEqual(log.count("has let us in"), 1)

    def masquerade(self) -> None:
        """Have the router hide Kiwi behind its own address, at a random port each time."""
        rule = "iifname kiwi oifname hub masquerade random"
        chain = f"chain out {{\n    type nat hook postrouting priority srcnat;\n    {rule}\n  }}"
        self.router("add table inet forgetful\ndelete table inet forgetful\n")
        self.router(f"table inet forgetful {{\n  {chain}\n}}\n")
