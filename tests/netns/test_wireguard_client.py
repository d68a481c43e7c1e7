"""``twistd pyvpn-client --wireguard FILE.conf`` against a real wireguard-go."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from pyvpn.linux.firewall import MARK
from tests.netns.lab import PORT
from tests.netns.namespaces import pids
from tests.netns.processes import Process, wait_until
from tests.netns.test_start import snapshot
from tests.netns.test_wireguard_program import WireGuardLabCase
from tests.scenes.networks import state
from tests.scenes.networks.lab import (
    DNS,
    ELSEWHERE,
    HOME,
    HUB,
    ROUTER,
    VPN_NAME,
    WWW,
    WWW_NAME,
    NetworksLab,
)
from tests.scenes.tunnel import NETWORKS, Tunnel

NAME = "vpn.example.org"
LAPTOP, NEIGHBOUR = "laptop", f"{HOME.ipv4}.66"

#: What makes a way to the internet of a machine that forwards.
MASQUERADE = """
table inet office {
    chain out {
        type nat hook postrouting priority srcnat
        iifname wg0 masquerade
    }
}
"""
#: Those of the file's AllowedIPs and of its addresses.
ROUTES = {*NETWORKS.replace(" ", "").split(","), "10.10.0.2", "fd00:10::2"}


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
        """What goes into the tunnel, of the table that our rule asks."""
        found: set[str] = set()
        for family in ("-4", "-6"):
            rules = self.inside("kiwi", "ip", family, "rule")
            (table,) = re.findall(rf"30100:\s+not from all fwmark {MARK:#x} lookup (\d+)", rules)
            argv = ["ip", "-json", family, "route", "show", "table", table]
            found |= {route["dst"] for route in json.loads(self.inside("kiwi", *argv))}
        return found

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
        to the server."""
        self.stand_for("")
        self.tunnel.client.edit(Endpoint=f"{NAME}:{PORT}")
        process = self.start()
        process.wait_for_text(f"cannot resolve {NAME}: .*; trying on")
        self.stand_for(self.lab.hosts["pa"].ipv4)
        wait_until(lambda: self.status()["peers"][0]["endpoint"], "an address", 30)
        self.assertEqual(self.status()["state"], "connecting")
        self.stand_for(self.lab.hosts["hub"].ipv6)
        self.reached(process, 30)
        told = self.status()
        self.assertEqual(told["state"], "connected")
        self.assertEqual(told["server"], f"[{self.lab.hosts['hub'].ipv6}]:{PORT}")

    def test_endpoint_within(self) -> None:
        """A network that holds the server's outer address is routed, and the tunnel's own
        datagrams go past it."""
        outer = self.lab.hosts["hub"].ipv4
        self.tunnel.client.edit(AllowedIPs=f"10.10.0.0/24, {outer}/32")
        process = self.start()
        self.reached(process)
        self.assertIn(outer, self.routes())
        self.assertIn(" dev wg0 ", self.inside("kiwi", "ip", "route", "get", outer))
        self.assertNotIn("AllowedIPs", process.text())

    def test_set_by_others(self) -> None:
        """With ``Table = off`` there are addresses and no routes, and the mark is the file's."""
        text = self.conf.read_text()
        self.conf.write_text(
            text.replace("[Interface]\n", "[Interface]\nTable = off\nFwMark = 7\n")
        )
        before = snapshot(self.lab, "kiwi")["rules"]
        process = self.start()
        process.wait_until(lambda: self.lab.addresses("kiwi", "wg0"), "addresses", 10)
        shown = snapshot(self.lab, "kiwi")
        self.assertEqual(shown["rules"], before)
        self.assertNotIn("10.10.0.0/24", shown["routes"])
        self.assertEqual(self.inside("kiwi", "wg", "show", "wg0", "fwmark").strip(), "0x7")
        self.inside("kiwi", "ip", "route", "add", "10.10.0.0/24", "dev", "wg0")
        self.reached(process)

    def test_synced(self) -> None:
        """``wg syncconf`` with a file that names neither port nor mark, which wg then resets,
        leaves the tunnel working, also with the kill switch, which lets out one port."""
        self.tunnel.client.edit(AllowedIPs="0.0.0.0/0, ::/0")
        process = self.start("--kill-switch")
        self.reached(process)
        port = self.inside("kiwi", "wg", "show", "wg0", "listen-port")
        bare = self.lab.directory / "kiwi" / "bare.conf"
        bare.write_text(
            "\n".join(
                line
                for line in self.conf.read_text().splitlines()
                if line.partition("=")[0].strip() not in ("Address", "MTU", "ListenPort")
            )
        )
        self.inside("kiwi", "wg", "syncconf", "wg0", bare)
        self.assertEqual(self.inside("kiwi", "wg", "show", "wg0", "fwmark").strip(), hex(MARK))
        self.assertNotEqual(self.inside("kiwi", "wg", "show", "wg0", "listen-port"), port)
        self.reached(process)
        self.lab.pyvpn("kiwi", "cleanup", "--kill-switch")

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
        taken, a port in use; and after it a change that cannot be made, and what helps."""
        outer = self.lab.hosts["kiwi"].ipv4
        self.inside("kiwi", "ip", "link", "add", "wg9", "type", "bridge")
        taken = self.start("--tun", "wg8", "--port", "6000")
        self.reached(taken)
        argv = [self.lab.tool("twistd"), "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories("kiwi", "--state-dir", "--run-dir")
        own = self.lab.directory / "kiwi" / "resolv.conf"
        own.write_text("nameserver 192.0.2.53\n")
        self.inside("kiwi", "mount", "--bind", own, "/etc/resolv.conf")
        self.inside("kiwi", "mount", "-o", "remount,ro,bind", "/etc/resolv.conf")
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
                {"Address": "10.7.0.2/32", "MTU": "1420\nDNS = 10.10.0.1"},
                1,
                "'set name servers' failed with status 1: /etc/resolv.conf cannot be written: ",
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


class AllTrafficTests(WireGuardLabCase):
    """A laptop at home, with a file as people are given it: everything, and a name server."""

    make_lab = NetworksLab
    server = ("10.9.0.1", "fd00:9::1")

    def setUp(self) -> None:
        super().setUp()
        self.lab.serve(HOME)
        # As strict as machines are set to: what comes must come from where the answer would go.
        self.inside(LAPTOP, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
        self.lab.lease(LAPTOP)
        self.conf = self.lab.home(LAPTOP) / "office.conf"
        self._serve()
        self.before = state.snapshot(self.lab, LAPTOP)

    def _serve(self) -> None:
        """Debian's wireguard-go on the hub, which forwards, translates, and answers for names."""
        ours, theirs = (self.inside("hub", "wg", "genkey").strip() for _ in range(2))
        public = {
            key: self.lab.run("hub", ["wg", "pubkey"], stdin=f"{key}\n", check=True).stdout.strip()
            for key in (ours, theirs)
        }
        conf = self.lab.home("hub") / "wg0.conf"
        conf.write_text(
            f"[Interface]\nPrivateKey = {theirs}\nListenPort = {PORT}\n[Peer]\n"
            f"PublicKey = {public[ours]}\nAllowedIPs = 10.9.0.2/32, fd00:9::2/128\n"
        )
        self.inside("hub", "wireguard-go", "wg0")
        self.inside("hub", "wg", "setconf", "wg0", conf)
        lines = [f"address add {address} dev wg0" for address in ("10.9.0.1/24", "fd00:9::1/64")]
        self.lab.ip("hub", *lines, "link set wg0 up")
        forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.inside("hub", "sysctl", "-qw", *forward)
        self.lab.run("hub", ["nft", "-f", "-"], stdin=MASQUERADE, check=True)
        self.lab.dnsmasq(
            "hub", self.server[0], f"--server={DNS}", "--host-record=inside.office.test,10.9.0.1"
        )
        self.conf.write_text(
            f"[Interface]\nPrivateKey = {ours}\nAddress = 10.9.0.2/32, fd00:9::2/128\n"
            f"DNS = {self.server[0]}, office.test\n[Peer]\nPublicKey = {public[theirs]}\n"
            f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {VPN_NAME}:{PORT}\n"
        )
        self.conf.chmod(0o600)

    def start(self, *options: str) -> Process:
        argv = [self.lab.tool("twistd"), "-n", "pyvpn-client", "--wireguard", self.conf]
        argv += self.lab.directories(LAPTOP, "--state-dir", "--run-dir")
        process: Process = self.lab.spawn(LAPTOP, [*argv, *options], "pyvpn-client")
        self.lab.wait_answer(LAPTOP, self.server[0], 15, process)
        return process

    def page(self, family: int) -> str:
        """Whom the web server in the internet sees, asked for by name."""
        argv = ["curl", "-sS", "-m", "4", f"-{family}", f"http://{WWW_NAME}/"]
        return str(self.lab.run(LAPTOP, argv).stdout)

    def through(self, process: Process) -> None:
        """All traffic goes through the tunnel."""
        process.wait_until(lambda: HUB.ipv4 in self.page(4), "a page by IPv4", 20)
        process.wait_until(lambda: HUB.ipv6 in self.page(6), "a page by IPv6", 20)

    def inside_name(self) -> str:
        """The address of a name that only the tunnel's name server knows, made whole by the search
        domain; "" for none."""
        return str(self.lab.run(LAPTOP, ["getent", "ahostsv4", "inside"]).stdout).partition(" ")[0]

    def pings(self, address: str) -> bool:
        return bool(self.lab.ping(LAPTOP, address).returncode == 0)

    def test_all_traffic(self) -> None:
        """IPv4, IPv6 and names go through it, the LAN does not; after its end, in order and by
        ``kill -9``, all is as before, down to the text of rules, routes, nftables and
        resolv.conf."""
        self.assertNotIn(HUB.ipv4, self.page(4))
        process = self.start()
        self.through(process)
        self.assertEqual(self.inside_name(), self.server[0])
        self.assertTrue(self.pings(NEIGHBOUR))
        told = json.loads(self.lab.pyvpn(LAPTOP, "status", "--json").stdout)["client-office"]
        self.assertEqual((told["all_traffic"], told["name_servers"]), ([4, 6], [self.server[0]]))
        self.assertEqual(told["search"], ["office.test"])
        # The control: there is something to take back.
        self.assertNotEqual(state.snapshot(self.lab, LAPTOP), self.before)
        process.stop()
        self.assertEqual(state.difference(self.before, state.snapshot(self.lab, LAPTOP)), "")
        again = self.start()
        self.through(again)
        again.stop(signal.SIGKILL)
        wait_until(
            lambda: not state.difference(self.before, state.snapshot(self.lab, LAPTOP)),
            "the child to undo it",
            10,
        )
        self.assertIn(WWW_NAME, self.page(4))

    def test_everything_killed(self) -> None:
        """Service and child killed at once leave what the next start repairs, and its end leaves
        nothing; the server's name is found although resolv.conf is still the tunnel's."""
        process = self.start()
        found = [
            pid
            for pid in pids(self.lab.namespace(LAPTOP))
            if b"pyvpn" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        for how in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                os.kill(pid, how)
        process.wait()
        self.assertNotEqual(state.snapshot(self.lab, LAPTOP), self.before)
        again = self.start()
        self.through(again)
        self.assertEqual(self.inside_name(), self.server[0])
        again.stop()
        self.assertEqual(state.difference(self.before, state.snapshot(self.lab, LAPTOP)), "")

    def test_kill_switch(self) -> None:
        """With the kill switch nothing leaves but through the tunnel, while it is up and after it
        was killed; a new start finds its way past, and ``pyvpn down`` lifts it."""
        process = self.start("--kill-switch")
        self.through(process)
        self.assertFalse(self.pings(NEIGHBOUR))
        process.stop(signal.SIGKILL)
        wait_until(lambda: "office" not in self.links(LAPTOP), "the link to be gone", 10)
        self.assertEqual(self.page(4), "")
        again = self.start("--kill-switch")
        self.through(again)
        again.stop()
        self.assertEqual(self.page(4), "")
        self.lab.pyvpn(LAPTOP, "down", "office")
        self.assertEqual(state.difference(self.before, state.snapshot(self.lab, LAPTOP)), "")
        self.assertIn(WWW_NAME, self.page(4))
        self.assertTrue(self.pings(NEIGHBOUR))

    def test_names_left_alone(self) -> None:
        """With --no-dns resolv.conf stays what it is; with --lan-access no the LAN is out of
        reach."""
        path = self.lab.etc(LAPTOP, "resolv.conf")
        text = path.read_text()
        self.start("--no-dns", "--lan-access", "no")
        self.assertEqual(path.read_text(), text)
        self.assertFalse(self.pings(NEIGHBOUR))

    def test_public_server(self) -> None:
        """The server's name is found where the file's name server is the machine's own, too."""
        self.lab.name_servers(LAPTOP, DNS)
        self.conf.write_text(
            self.conf.read_text().replace(f"DNS = {self.server[0]}", f"DNS = {DNS}")
        )
        process = self.start()
        self.through(process)
        self.assertIn("PyVPN set the name servers", self.lab.etc(LAPTOP, "resolv.conf").read_text())

    def test_excluded(self) -> None:
        """With --exclude a part of all traffic goes where it went before."""
        process = self.start("--exclude", f"{WWW.ipv4}/32")
        self.assertIn(" dev eth0 ", self.inside(LAPTOP, "ip", "route", "get", WWW.ipv4))
        self.assertIn(" dev office ", self.inside(LAPTOP, "ip", "route", "get", DNS))
        process.wait_until(lambda: ROUTER.ipv4 in self.page(4), "a page past the tunnel", 20)
        process.wait_until(lambda: HUB.ipv6 in self.page(6), "a page through it", 20)

    def test_another_place(self) -> None:
        """In another network the tunnel goes on, with what is near there reached beside it."""
        process = self.start()
        self.lab.move(LAPTOP, ELSEWHERE)
        self.lab.wait_answer(LAPTOP, self.server[0], 20, process)
        self.through(process)
        wait_until(lambda: self.pings(f"{ELSEWHERE.ipv4}.66"), "the neighbour there", 10)
