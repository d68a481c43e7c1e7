"""``pyvpn-wg``: how it begins and ends, and ``wg-quick`` with it against a real wireguard-go."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.netns.lab import Lab
from tests.netns.namespaces import pids, why_not
from tests.netns.processes import Process, search_path, wait_until
from tests.scenes.hosts import WireGuardLab
from tests.scenes.tunnel import Tunnel

SOCKETS = "/var/run/wireguard"


class WireGuardLabCase(SynchronousTestCase):
    """A test in a laboratory with WireGuard's programs."""

    lab: Any
    make_lab: Callable[[], Lab] = WireGuardLab

    def setUp(self) -> None:
        missing = [
            name
            for name in ("wg", "wg-quick", "wireguard-go")
            if shutil.which(name, path=search_path()) is None
        ]
        reason = why_not() or (f"missing commands: {', '.join(missing)}" if missing else None)
        if reason is not None:
            required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
            raise (self.failureException if required else SkipTest)(reason)
        self.lab = type(self).make_lab()
        self.addCleanup(self.lab.close)
        self.lab.__enter__()

    def inside(self, host: str, *argv: str | Path) -> str:
        return self.lab.run(host, argv, check=True).stdout

    def links(self, host: str) -> set[str]:
        shown = self.inside(host, "ip", "-brief", "link").splitlines()
        return {line.split()[0].partition("@")[0] for line in shown} - {"lo", "eth0"}

    def sockets(self, host: str) -> set[str]:
        shown = self.lab.run(host, ["ls", SOCKETS])
        return set(shown.stdout.split())


class ProgramTests(WireGuardLabCase):
    """The program by itself."""

    def setUp(self) -> None:
        super().setUp()
        self.program = self.lab.tool("pyvpn-wg")

    def daemons(self) -> list[int]:
        """Processes of the host that run the program."""
        found = []
        for pid in pids(self.lab.namespace("hub")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if str(self.program) in words:
                found.append(pid)
        return found

    def is_gone(self) -> None:
        wait_until(lambda: not self.daemons(), "the program to end")
        self.assertEqual((self.links("hub"), self.sockets("hub")), (set(), set()))

    def start(self, *options: str) -> Process:
        process = self.lab.spawn("hub", [self.program, "-f", *options, "wg0"])
        process.wait_until(self.answers, "an answer to wg", 10)
        return process

    def answers(self) -> bool:
        return self.lab.run("hub", ["wg", "show", "wg0"]).returncode == 0

    def test_daemon(self) -> None:
        """It returns when ``wg`` can talk to it, and changes nothing in Linux but that the
        interface is there, down, with WireGuard's MTU; a second one of that name is refused."""
        before = self.surroundings()
        done = self.lab.run("hub", [self.program, "wg0"])
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        # At once, without waiting.
        private, public, port, mark = self.inside("hub", "wg", "show", "wg0", "dump").split()
        self.assertEqual((private, public, mark), ("(none)", "(none)", "off"))
        self.assertTrue(int(port))
        self.assertEqual(self.inside("hub", "ip", "-oneline", "address", "show", "dev", "wg0"), "")
        link = self.inside("hub", "ip", "link", "show", "wg0")
        self.assertIn("mtu 1420", link)
        self.assertIn("state DOWN", link)
        self.assertEqual(self.surroundings(), before)
        again = self.lab.run("hub", [self.program, "wg0"])
        said = "an interface named wg0 exists already; 'ip link delete wg0' removes it"
        self.assertEqual((again.returncode, again.stderr), (1, f"pyvpn-wg: {said}\n"))
        (daemon,) = self.daemons()
        # It keeps nothing of whoever started it: neither output nor directory nor session.
        streams = {os.readlink(f"/proc/{daemon}/fd/{stream}") for stream in range(3)}
        self.assertEqual(streams - {"/dev/null"}, set())
        self.assertEqual(os.readlink(f"/proc/{daemon}/cwd"), "/")
        self.assertEqual(os.getsid(daemon), daemon)
        os.kill(daemon, signal.SIGTERM)
        self.is_gone()

    def surroundings(self) -> list[str]:
        """What a VPN may change beside its interface."""
        settings = self.inside(
            "hub", "sysctl", "-a", "-r", "forward|redirects|accept_ra|valid_mark"
        )
        others = [line for line in settings.splitlines() if ".wg0." not in line]
        for argv in (["ip", "rule"], ["ip", "route"], ["nft", "list", "ruleset"]):
            others.append(self.inside("hub", *argv))
        return others

    def test_ends(self) -> None:
        """Deleting the link, removing the socket, SIGTERM, SIGINT and SIGHUP each end it well, and
        leave neither link nor socket."""
        for end in (
            lambda process: self.inside("hub", "ip", "link", "delete", "wg0"),
            lambda process: self.inside("hub", "rm", f"{SOCKETS}/wg0.sock"),
            lambda process: os.kill(process.pid, signal.SIGTERM),
            lambda process: os.kill(process.pid, signal.SIGINT),
            lambda process: os.kill(process.pid, signal.SIGHUP),
        ):
            process = self.start()
            self.assertEqual(self.links("hub"), {"wg0"})
            end(process)
            self.assertEqual(process.wait(), 0, process.text())
            self.is_gone()

    def test_foreground(self) -> None:
        """It stays in the foreground when the environment says so, as wireguard-go does."""
        process = self.lab.spawn("hub", [self.program, "wg0"], env={"WG_PROCESS_FOREGROUND": "1"})
        process.wait_until(self.answers, "an answer to wg", 10)
        self.assertTrue(process.running)
        self.assertEqual(process.stop(), 0)

    def test_failures(self) -> None:
        """A start that fails says why in one line, ends with the right status, and leaves nothing,
        in the background and in the foreground."""
        self.inside("hub", "mkdir", "-p", f"{SOCKETS}/taken.sock")
        unprivileged = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
        program = str(self.program)
        name = "cannot name an interface; use at most 15 letters, digits, _ = + . -"
        for argv, status, said in (
            (
                [program, "taken"],
                1,
                f"{SOCKETS}/taken.sock is in the way, and it is no socket; remove it",
            ),
            (
                [*unprivileged, program, "wg0"],
                1,
                "no privilege to set up interfaces (CAP_NET_ADMIN); start as root, with sudo",
            ),
            ([program, "a/b"], 2, f"error: argument INTERFACE: 'a/b' {name}"),
            ([program, "x" * 16], 2, f"error: argument INTERFACE: '{'x' * 16}' {name}"),
            ([program, ".."], 2, f"error: argument INTERFACE: '..' {name}"),
            ([program], 2, "error: the following arguments are required: INTERFACE"),
        ):
            for more in ([], ["-f"]):
                done = self.lab.run("hub", [*argv, *more])
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertEqual(done.stderr.splitlines()[-1], f"pyvpn-wg: {said}")
                self.assertNotIn("Traceback", done.stderr)
                self.assertEqual((self.links("hub"), self.daemons()), (set(), []))

    def test_killed(self) -> None:
        """What a killed one leaves behind, its socket, does not keep the next from starting."""
        process = self.start()
        process.popen.kill()
        process.wait()
        wait_until(lambda: not self.links("hub"), "the link to be gone")
        self.assertEqual(self.sockets("hub"), {"wg0.sock"})
        self.assertEqual(self.start().stop(), 0)
        self.is_gone()


class QuickTests(WireGuardLabCase):
    """``wg-quick up`` and ``down`` with it, against wireguard-go at the other end."""

    def test_both_roles(self) -> None:
        """As client and as server it carries IPv4 and IPv6 inside, and is gone after ``down``."""
        for client, server in (("pyvpn-wg", "wireguard-go"), ("wireguard-go", "pyvpn-wg")):
            tunnel = Tunnel(self.lab, client, server).up()
            for version in (4, 6):
                tunnel.ping(tunnel.client, tunnel.server, version)
            for end in (tunnel.client, tunnel.server):
                self.assertTrue(end.show().peer.last_handshake, end)
                end.down()
                self.assertEqual(end.links(), [])
                self.assertEqual(self.sockets(end.host), set())

    def test_everything(self) -> None:
        """Where AllowedIPs has all addresses, wg-quick's marks and rules send all but the tunnel's
        own datagrams through it."""
        tunnel = Tunnel(self.lab, "pyvpn-wg", "wireguard-go").up()
        # The control: at first the hub's outer address is reached the plain way.
        self.assertEqual(self.pinged_through(tunnel), 0)
        tunnel.client.down()
        tunnel.client.edit(AllowedIPs="0.0.0.0/0, ::/0")
        tunnel.client.up()
        tunnel.answered("kiwi", tunnel.server)
        self.assertEqual(int(tunnel.client.show().mark, 16), 51820)
        self.assertGreaterEqual(self.pinged_through(tunnel), 3 * 84)
        tunnel.client.down()

    def pinged_through(self, tunnel: Tunnel) -> int:
        """The bytes that pings to the hub's outer address sent through the tunnel."""
        before = tunnel.client.show().peer.sent
        pinged = self.lab.ping("kiwi", self.lab.hosts["hub"].ipv4, count=3)
        self.assertEqual(pinged.returncode, 0, pinged.stdout)
        return tunnel.client.show().peer.sent - before
