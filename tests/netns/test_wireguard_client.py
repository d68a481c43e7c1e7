"""``twistd pyvpn-client --wireguard FILE.conf`` against a real wireguard-go."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.netns.lab import PORT
from tests.netns.namespaces import pids
from tests.netns.processes import Process, wait_until
from tests.netns.test_start import snapshot
from tests.netns.test_wireguard_program import WireGuardLabCase
from tests.scenes.tunnel import NETWORKS, Tunnel

NAME = "vpn.example.org"
#: Those of the file, and the kernel's own to our IPv6 address.
NETWORKS_ROUTED = set(NETWORKS.replace(" ", "").split(","))
ROUTES = NETWORKS_ROUTED | {"fd00:10::2"}


class ClientTests(WireGuardLabCase):
    def setUp(self) -> None:
        super().setUp()
        self.tunnel = Tunnel(self.lab, "client", "wireguard-go")
        self.tunnel.server.up()
        self.conf = self.tunnel.client.conf
        self.conf.chmod(0o600)

    def start(self, *options: str | Path, host: str = "kiwi") -> Process:
        argv = [self.lab.tool("twistd"), "-n", "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories(host, "--state-dir", "--run-dir")
        process = self.lab.spawn(host, [*argv, *options], "pyvpn-client")
        process.wait_until(lambda: self.links(host), "its interface", 10)
        return process

    def reached(self, process: Process, seconds: float = 10) -> None:
        self.lab.wait_answer("kiwi", self.tunnel.server.address(), seconds, process)

    def routes(self) -> set[str]:
        shown = self.inside("kiwi", "ip", "-json", "route", "show", "dev", "wg0")
        shown6 = self.inside("kiwi", "ip", "-json", "-6", "route", "show", "dev", "wg0")
        return {route["dst"] for route in (*json.loads(shown), *json.loads(shown6))}

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.lab.pyvpn("kiwi", "status", "--json").stdout)
        return told["client-wg0"]

    def stand_for(self, address: str) -> None:
        """Let the name stand for an address on kiwi, and there alone."""
        hosts = self.lab.directory / "kiwi" / "hosts"
        known = hosts.exists()
        hosts.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n" if address else "")
        if not known:
            self.inside("kiwi", "mount", "--bind", str(hosts), "/etc/hosts")
            nsswitch = self.lab.directory / "kiwi" / "nsswitch.conf"
            nsswitch.write_text("hosts: files\n")
            self.inside("kiwi", "mount", "--bind", str(nsswitch), "/etc/nsswitch.conf")

    def test_file(self) -> None:
        """Addresses, MTU and routes are the file's, ``wg`` and ``pyvpn status`` tell of it, and
        after it nothing is left."""
        before = snapshot(self.lab, "kiwi")
        self.conf.write_text(self.conf.read_text().replace("1420", "1400"))
        process = self.start()
        self.reached(process)
        inner6 = self.tunnel.server.address(6)
        self.assertEqual(self.lab.ping("kiwi", inner6).returncode, 0)
        self.assertIn("mtu 1400", self.inside("kiwi", "ip", "link", "show", "wg0"))
        self.assertEqual(self.routes(), ROUTES)
        told = self.status()
        self.assertEqual(told["state"], "connected")
        self.assertEqual(told["server"], f"{self.lab.hosts['hub'].ipv4}:{PORT}")
        (peer,) = told["peers"]
        shown = self.inside("kiwi", "wg", "show", "wg0", "latest-handshakes").split()
        self.assertEqual(shown, [peer["public_key"], str(peer["last_handshake"])])
        process.stop()
        self.assertEqual(snapshot(self.lab, "kiwi"), before)
        self.assertEqual(self.sockets("kiwi"), set())

    def test_name(self) -> None:
        """A name without an address, and then with a wrong one, is looked up again until it leads
        to the server; its networks are routed only when it has an address."""
        self.stand_for("")
        self.tunnel.client.edit(Endpoint=f"{NAME}:{PORT}")
        process = self.start()
        process.wait_for_text(f"cannot resolve {NAME}: .*; trying on")
        self.assertEqual(self.routes(), ROUTES - NETWORKS_ROUTED)
        self.stand_for(self.lab.hosts["pa"].ipv4)
        wait_until(lambda: self.routes() == ROUTES, "routes", 10)
        self.assertEqual(self.status()["state"], "connecting")
        self.stand_for(self.lab.hosts["hub"].ipv6)
        self.reached(process, 30)
        told = self.status()
        self.assertEqual(told["state"], "connected")
        self.assertEqual(told["server"], f"[{self.lab.hosts['hub'].ipv6}]:{PORT}")

    def test_endpoint_within(self) -> None:
        """A network that holds the server's outer address is not routed, which would cut the
        tunnel's own way, and it is said so at once."""
        outer = f"{self.lab.hosts['hub'].ipv4}/32"
        self.tunnel.client.edit(AllowedIPs=f"0.0.0.0/0, 10.10.0.0/24, {outer}")
        process = self.start()
        self.reached(process)
        self.assertEqual(self.routes() - {"fd00:10::2"}, {"10.10.0.0/24"})
        lines = [line for line in process.text().splitlines() if line.startswith("pyvpn-client: ")]
        self.assertIn(f"{self.conf}: 0.0.0.0/0 in AllowedIPs: ", lines[0])
        self.assertIn(f"{self.conf}: {outer} of AllowedIPs holds the endpoint ", lines[1])

    def test_roams(self) -> None:
        """With another outer address it says something at once, so the server follows."""
        process = self.start()
        self.reached(process)
        new = "203.0.113.77"
        self.lab.ip(
            "kiwi",
            f"address delete {self.lab.hosts['kiwi'].ipv4}/24 dev eth0",
            f"address add {new}/24 dev eth0",
            "route add default via 203.0.113.1 dev eth0",
        )
        peer = self.tunnel.peer_of_server

        def followed() -> bool:
            return peer().endpoint.startswith(f"{new}:")

        wait_until(followed, "the server to follow", 10)
        self.reached(process)

    def test_daemon(self) -> None:
        """As a daemon it is one of ``pyvpn``'s instances, by the file's name; a second one is
        refused, and ``pyvpn down`` ends it."""
        argv = [self.lab.tool("twistd"), "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories("kiwi", "--state-dir", "--run-dir")
        before = snapshot(self.lab, "kiwi")
        done = self.lab.run("kiwi", argv)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.lab.wait_answer("kiwi", self.tunnel.server.address())
        again = self.lab.run("kiwi", argv)
        self.assertEqual(again.returncode, 1)
        self.assertRegex(again.stderr, r"^pyvpn-client: it runs already \(pid \d+, ")
        self.assertIn("client wg0  connected", self.lab.pyvpn("kiwi", "status").stdout)
        self.lab.pyvpn("kiwi", "down", "wg0")
        self.assertEqual(snapshot(self.lab, "kiwi"), before)

    def test_refused(self) -> None:
        """What is wrong is told before it forks, with nothing changed: a name or a network that is
        taken, a port in use; and after it, as the kernel says it, a route that is there."""
        outer = self.lab.hosts["kiwi"].ipv4
        self.inside("kiwi", "ip", "link", "add", "wg9", "type", "bridge")
        taken = self.start("--tun", "wg8", "--port", "6000")
        self.reached(taken)
        argv = [self.lab.tool("twistd"), "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories("kiwi", "--state-dir", "--run-dir")
        before = snapshot(self.lab, "kiwi")
        for options, changes, status, said in (
            (["--tun", "wg9"], {}, 1, "an interface named wg9 exists already; "),
            (["--port", "6000"], {}, 1, "UDP port 6000 is in use by another program; "),
            (
                [],
                {"Address": "203.0.113.9/24"},
                2,
                f"203.0.113.0/24 overlaps {outer}/24 of interface eth0; change Address in the file",
            ),
            (
                [],
                {"Address": "10.7.0.2/32", "AllowedIPs": "203.0.113.0/24"},
                1,
                "'ip route add 203.0.113.0/24 dev wg0' failed with status 1: ",
            ),
        ):
            self.tunnel.client.edit(**changes)
            done = self.lab.run("kiwi", [*argv, *options])
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn(f"pyvpn-client: {said}", done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            self.assertEqual(snapshot(self.lab, "kiwi"), before)

    def test_link_deleted(self) -> None:
        """A client whose interface somebody deletes ends with a line and status 1."""
        process = self.start()
        self.reached(process)
        self.inside("kiwi", "ip", "link", "delete", "wg0")
        self.assertEqual(process.wait(), 1)
        self.assertIn("pyvpn-client: wg0: ", process.text())
        self.assertEqual((self.links("kiwi"), self.sockets("kiwi")), (set(), set()))

    def test_killed(self) -> None:
        """After a kill of everything the next start repairs and goes on."""
        process = self.start()
        self.reached(process)
        for pid in pids(self.lab.namespace("kiwi")):
            if b"pyvpn" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not self.links("kiwi"), "the link to be gone")
        self.reached(self.start())
