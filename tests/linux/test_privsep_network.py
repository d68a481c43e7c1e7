"""The privileged child and a client's whole network, in a namespace with files of its own: what
the machine's own tools show is the same before and after, however the client ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.desired import Address, Link, Route, SystemState
from pyvpn.linux.firewall import HubFirewall
from tests.linux import test_privsep as privsep
from tests.linux.test_applied_client import FULL, SWITCH
from tests.linux.test_privsep import PATIENCE, running, wait_until
from tests.linux.worlds import files_in, own_directory
from tests.netns.namespaces import ETC_OF_NAMESPACES, ip, own_etc, remove_namespace, why_not

SERVICE = privsep.SERVICE + "child.close()\n"
"""A client or hub as the child knows it; it ends when its input does."""

CLEANUP = """
import sys
from pyvpn.linux.privsep import cleanup
print(*cleanup(sys.argv[1], sys.argv[2]), sep="\\n")
"""

SHOWN = (
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "nft --stateless list ruleset",
    "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort",
    "cat /etc/resolv.conf",
)
"""What there is to see, by the commands that show it."""

THE_SWITCH = ("nft", "--stateless", "list", "table", "inet", "pyvpn-kill-switch")

SOMEBODY_ELSES = """
table inet other {
    chain input { type filter hook input priority filter; policy accept; tcp dport 23 drop; }
}
"""

HUB = SystemState(
    links=(Link("leamit0", 1416, (Address("10.10.0.1/24"), Address("fd00:1::1/64"))),),
    routes=(Route("10.20.0.0/16", "leamit0"), Route("fd00:2::/64", "leamit0")),
    sysctls={
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/conf/all/send_redirects": "0",
        "net/ipv4/ip_forward": "1",
    },
    firewall=HubFirewall(
        "leamit0",
        ("10.10.0.0/24", "fd00:1::/64"),
        internet=True,
        client_to_client=False,
        subnets=("10.20.0.0/16", "fd00:2::/64"),
        reachable=("192.0.2.0/24",),
    ),
)

_numbers = itertools.count()


class WholeNetwork(SynchronousTestCase):
    """Each test has a namespace with an uplink, another one's table and a resolv.conf."""

    def setUp(self) -> None:
        missing = why_not()
        if missing is not None:
            if os.environ.get("PYVPN_REQUIRE_NETNS") == "1":
                self.fail(missing)
            raise SkipTest(missing)
        self.namespace = f"pyvpn-{os.getpid()}-child{next(_numbers)}"
        self.addCleanup(remove_namespace, self.namespace)
        ip("netns", "add", self.namespace)
        own_etc(self.namespace, {"resolv.conf": "nameserver 192.0.2.53\n"})
        for line in (
            "link set lo up",
            "link add uplink type veth peer name router",
            "link set dev uplink addrgenmode none",
            "link set dev router addrgenmode none",
            "link set uplink up",
            "link set router up",
            "address add 192.0.2.2/24 dev uplink",
            "address add 2001:db8::2/64 dev uplink nodad",
            "route add default via 192.0.2.1",
            "-6 route add default via 2001:db8::1 dev uplink",
            "rule add priority 100 to 198.51.100.0/24 lookup main",
        ):
            ip("-n", self.namespace, *line.split())
        self.run_inside("nft", "-f", "-", stdin=SOMEBODY_ELSES)
        self.directory = own_directory(self)
        self.places = (f"{self.directory}/client-home.journal", f"{self.directory}/ledger")

    def run_inside(self, *words: str, stdin: str = "") -> str:
        """Run a command in the namespace, with its own /etc; what it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def shown(self) -> dict[str, str]:
        """The text of each command."""
        return {line: self.run_inside("sh", "-c", line) for line in SHOWN}

    def start_service(self, state: SystemState) -> tuple[subprocess.Popen[str], int]:
        """A client or hub that has made its network so; and the pid of its child."""
        script = SERVICE.format(state=state)
        client = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, sys.executable, "-c", script, *self.places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert client.stdin is not None
        assert client.stdout is not None
        self.addCleanup(client.wait, PATIENCE)
        self.addCleanup(client.stdin.close)
        self.addCleanup(client.stdout.close)
        self.addCleanup(client.kill)
        return client, int(client.stdout.readline())

    def kill_both(self, client: subprocess.Popen[str], pid: int) -> None:
        """Nobody is left who could undo anything."""
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pid), "the child's end")
        client.kill()
        client.wait(PATIENCE)

    def lift(self) -> None:
        """The kill switch stands; take it away, as a person would."""
        self.assertIn("table inet pyvpn-kill-switch", self.run_inside("nft", "list", "tables"))
        self.run_inside("nft", "delete", "table", "inet", "pyvpn-kill-switch")

    def test_client_ends(self) -> None:
        """A client that stops leaves each text as it was; while it ran, each was another."""
        before = self.shown()
        client, pid = self.start_service(FULL)
        during = self.shown()
        for line in SHOWN:
            self.assertNotEqual(during[line], before[line], line)
        self.assertEqual(during["cat /etc/resolv.conf"].count("\nnameserver"), 1)
        assert client.stdin is not None
        client.stdin.close()
        wait_until(lambda: not running(pid), "the child's end")
        client.wait(PATIENCE)
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])

    def test_client_killed(self) -> None:
        """After kill -9 of the client its child leaves each text as it was, but for the kill
        switch, which stands as it stood."""
        before = self.shown()
        client, pid = self.start_service(evolve(FULL, kill_switch=SWITCH))
        stood = self.run_inside(*THE_SWITCH)
        client.kill()
        wait_until(lambda: not running(pid), "the child's end")
        self.assertEqual(self.run_inside(*THE_SWITCH), stood)
        self.lift()
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])

    def test_both_killed(self) -> None:
        """After kill -9 of client and child, cleanup leaves each text as it was; the kill switch
        stands, and its rules and name servers had remained before."""
        before = self.shown()
        self.kill_both(*self.start_service(evolve(FULL, kill_switch=SWITCH)))
        after = self.shown()
        for line in ("ip rule", "ip -6 rule", "nft --stateless list ruleset", SHOWN[-1]):
            self.assertNotEqual(after[line], before[line], line)
        said = self.run_inside(sys.executable, "-c", CLEANUP, self.directory, self.places[1])
        self.assertIn("nft: table inet pyvpn-leamit0 removed", said)
        self.assertIn("client-home.journal removed: its process", said)
        self.lift()
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])

    def test_hub(self) -> None:
        """A hub that gives internet access leaves each text as it was, killed alone or with its
        child; while it ran, its rules and sysctls were there."""
        before = self.shown()
        hub, pid = self.start_service(HUB)
        during = self.shown()
        for line in SHOWN[2:6]:
            self.assertNotEqual(during[line], before[line], line)
        hub.kill()
        wait_until(lambda: not running(pid), "the child's end")
        self.assertEqual(self.shown(), before)
        self.kill_both(*self.start_service(HUB))
        self.assertNotEqual(self.shown(), before)
        said = self.run_inside(sys.executable, "-c", CLEANUP, self.directory, self.places[1])
        self.assertIn("nft: table inet pyvpn-leamit0 removed", said)
        self.assertEqual(self.shown(), before)

    def test_next_start_repairs(self) -> None:
        """A client that starts after both were killed ends with each text as it first was."""
        before = self.shown()
        self.kill_both(*self.start_service(evolve(FULL, kill_switch=SWITCH)))
        client, pid = self.start_service(evolve(FULL, kill_switch=SWITCH))
        client.kill()
        wait_until(lambda: not running(pid), "the child's end")
        self.lift()
        self.assertEqual(self.shown(), before)

    def test_the_machine_itself(self) -> None:
        """The files over /etc are the namespace's: the machine's own resolv.conf stays."""
        own = Path("/etc/resolv.conf").read_bytes()
        client, pid = self.start_service(FULL)
        inside = (ETC_OF_NAMESPACES / self.namespace / "resolv.conf").read_text(encoding="ascii")
        self.assertIn("nameserver 10.10.0.1", inside)
        self.assertEqual(Path("/etc/resolv.conf").read_bytes(), own)
        client.kill()
        wait_until(lambda: not running(pid), "the child's end")
