"""What happens to a running network: accounts change, processes die, addresses are asked for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import TUN, Lab, Process, Server, built_for
from tests.netns.test_start import files, snapshot

PASSWORDS = {"kiwi": "correct horse kiwi", "pa": "correct horse pa"}


def restart(lab: Lab, hub: Server, *options: str, service_options: Sequence[str] = ()) -> Process:
    """Start the hub again on the same state; ``options`` are twistd's own."""
    state = ["--state-dir", str(hub.state_dir), "--run-dir", str(hub.run_dir)]
    argv = [lab.tool("twistd"), "-n", *options, "pyvpn-server", *state, *service_options]
    process = lab.spawn("hub", argv, "pyvpn-server")
    process.wait_for_text("listens on UDP port 5050")
    return process


class LifeTests(SynchronousTestCase):
    """Each test has a network of its own, Kiwi in it."""

    def setUp(self) -> None:
        self.lab = built_for(self)

    def up(self, *hub_options: str) -> tuple[Server, Process]:
        hub = self.lab.start_hub(PASSWORDS, *hub_options)
        self.lab.join("kiwi")
        return hub, self.lab.start_client("kiwi", PASSWORDS["kiwi"])

    def sessions(self) -> list[str]:
        status = json.loads(self.lab.pyvpn("hub", "status", "--json").stdout)
        return [session["user"] for session in status["server"]["sessions"]]

    def test_disable_and_enable(self) -> None:
        """`user disable` ends a live session, and the client is told; `enable` lets it in again."""
        _, client = self.up()
        self.assertEqual(self.sessions(), ["kiwi"])
        self.lab.pyvpn("hub", "user", "disable", "kiwi")
        self.assertEqual(self.sessions(), [])
        client.wait_for_text("the hub refuses us: the account was disabled")
        self.assertNotEqual(self.lab.ping("kiwi", "10.10.0.1").returncode, 0)
        client.stop()
        again = self.lab.start_client("kiwi", PASSWORDS["kiwi"], seconds=None)
        again.wait_for_text("no answer from", 25)
        self.lab.pyvpn("hub", "user", "enable", "kiwi")
        self.lab.wait_answer("kiwi", "10.10.0.1", 12)

    def test_changed_password(self) -> None:
        """`user passwd` ends the sessions of the old password; the new one logs in."""
        _, client = self.up()
        new = self.lab.directory / "hub" / "new"
        new.write_text("another horse kiwi\n")
        self.lab.pyvpn("hub", "user", "passwd", "kiwi", "--pw-file", str(new))
        client.wait_for_text("disconnected")
        client.stop()
        self.lab.start_client("kiwi", "another horse kiwi")

    def test_hub_killed(self) -> None:
        """`kill -9` of the hub: the child restores Linux; a new hub has traffic again in 20 s, with
        the same address; no login stamp is accepted twice."""
        before = snapshot(self.lab, "hub")
        hub, _ = self.up()
        address = self.lab.addresses("kiwi")
        os.kill(hub.process.pid, signal.SIGKILL)
        self.lab.wait_until(
            lambda: snapshot(self.lab, "hub") == before, "Linux is as it was before the hub"
        )
        restart(self.lab, hub)
        self.lab.wait_answer("kiwi", "10.10.0.1", 20)
        self.assertEqual(self.lab.addresses("kiwi"), address)

    def test_hub_stopped_and_started(self) -> None:
        """A hub that stops in order says BYE: clients are back within seconds of its return."""
        hub, client = self.up()
        hub.process.stop()
        client.wait_for_text("disconnected: hub stopped")
        restart(self.lab, hub)
        self.lab.wait_answer("kiwi", "10.10.0.1", 12)

    def test_client_killed(self) -> None:
        """`kill -9` of a client: its child restores Linux, and the next start works at once."""
        self.lab.start_hub(PASSWORDS)
        self.lab.join("kiwi")
        before = snapshot(self.lab, "kiwi")
        client = self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        os.kill(client.pid, signal.SIGKILL)
        self.lab.wait_until(
            lambda: snapshot(self.lab, "kiwi") == before, "Linux is as it was before the client"
        )
        self.lab.start_client("kiwi", PASSWORDS["kiwi"])

    def test_sent_while_the_client_was_down(self) -> None:
        """What the hub's machine sends to a client that is down arrives once it has started, its
        TUN set up (regression: it came too early and was lost).
        """
        _, client = self.up()
        address = str(self.lab.addresses("kiwi")[0])
        client.stop()
        ping = self.lab.spawn("hub", ["ping", "-n", "-c", "1", "-W", "30", address])
        self.assertEqual(self.sessions(), [])
        self.lab.start_client("kiwi", PASSWORDS["kiwi"], seconds=None)
        self.assertEqual(ping.wait(20), 0, ping.text())

    def test_both_killed_and_cleaned_up(self) -> None:
        """`kill -9` of hub and child leaves the journal; `pyvpn cleanup` repairs from it."""
        before = snapshot(self.lab, "hub")
        hub, _ = self.up()
        children = self.lab.run("hub", ["pgrep", "-P", str(hub.process.pid)]).stdout.split()
        self.assertEqual(len(children), 1, children)
        for pid in (int(children[0]), hub.process.pid):
            os.kill(pid, signal.SIGKILL)
        hub.process.wait()
        self.assertTrue((hub.run_dir / "server.journal").exists())
        self.assertNotEqual(snapshot(self.lab, "hub"), before)
        said = self.lab.pyvpn("hub", "cleanup").stdout
        self.assertIn("ip_forward", said)
        self.assertEqual(snapshot(self.lab, "hub"), before)
        self.assertFalse((hub.run_dir / "server.journal").exists())

    def test_stop_leaves_nothing(self) -> None:
        """After SIGTERM Linux is as it was and the run directory is empty, on both sides."""
        before = snapshot(self.lab, "hub"), snapshot(self.lab, "kiwi")
        hub, client = self.up()
        self.assertNotEqual(snapshot(self.lab, "hub"), before[0])
        # twistd ends by the signal that it was sent.
        ended = (client.stop(), hub.process.stop())
        self.assertEqual(ended, (-signal.SIGTERM, -signal.SIGTERM))
        self.assertEqual((snapshot(self.lab, "hub"), snapshot(self.lab, "kiwi")), before)
        for host in ("hub", "kiwi"):
            names = [name for name in files(self.lab.directory / host) if name.startswith("run/")]
            self.assertEqual(names, [])

    def test_without_root(self) -> None:
        """With twistd's --uid hub and client give up root and still serve, stop and undo."""
        before = snapshot(self.lab, "hub")
        hub = self.lab.start_hub(PASSWORDS)
        hub.process.stop()
        self.lab.directory.chmod(0o755)
        for host in ("hub", "kiwi"):
            (self.lab.directory / host).chmod(0o755)
        server = restart(self.lab, hub, "--uid", "65534", "--gid", "65534")
        self.assertEqual(_uid(server.pid), 65534)
        self.lab.join("kiwi")
        self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        self.assertEqual(self.sessions(), ["kiwi"])
        self.assertEqual(server.stop(), -signal.SIGTERM)
        self.assertEqual(snapshot(self.lab, "hub"), before)

    def test_answers_come_from_the_address_asked(self) -> None:
        """A hub with a second address answers from that one; both families, one socket."""
        namespace_address = "198.51.100.77"
        for words in (
            ["ip", "address", "add", f"{namespace_address}/24", "dev", "eth0"],
            ["ip", "address", "add", "2001:db8:1::77/64", "dev", "eth0", "nodad"],
        ):
            self.lab.run("hub", words, check=True)
        self.lab.start_hub(PASSWORDS)
        self.lab.join("kiwi")
        for server in (f"{namespace_address}:5050", "[2001:db8:1::77]:5050"):
            client = self.lab.start_client("kiwi", PASSWORDS["kiwi"], "--server", server)
            status = json.loads(self.lab.pyvpn("kiwi", "status", "--json").stdout)
            self.assertEqual(status["client-kiwi"]["server"], server)
            client.stop()

    def test_wanted_addresses(self) -> None:
        """A free address is granted and kept; one that another user has is refused by name."""
        self.lab.start_hub(PASSWORDS)
        self.lab.join("kiwi")
        client = self.lab.start_client("kiwi", PASSWORDS["kiwi"], "--tun-addr", "10.10.0.77")
        self.assertEqual(str(self.lab.addresses("kiwi")[0]), "10.10.0.77")
        client.stop()
        self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        self.assertEqual(str(self.lab.addresses("kiwi")[0]), "10.10.0.77")
        self.lab.join("pa")
        options = ("--tun-addr", "10.10.0.77")
        other = self.lab.start_client("pa", PASSWORDS["pa"], *options, seconds=None)
        other.wait_for_text("the hub refuses us: the address asked for is not free")
        self.assertEqual(self.lab.addresses("pa"), [])

    def test_two_hubs_on_one_machine(self) -> None:
        """Of two hubs with their own directories, the first to stop leaves the other forwarding."""
        first = self.lab.start_hub(PASSWORDS)
        home = self.lab.directory / "hub" / "second"
        argv = [
            self.lab.tool("twistd"),
            "-n",
            "pyvpn-server",
            "--state-dir",
            str(home / "state"),
            "--run-dir",
            str(home / "run"),
            "--tun",
            "leamit1",
            "--port",
            "6000",
            "--subnet",
            "10.11.0.0/24",
        ]
        second = self.lab.spawn("hub", argv, "second")
        second.wait_for_text("listens on UDP port 6000")
        first.process.stop()
        forwarding = ["sysctl", "-n", "net.ipv4.ip_forward"]
        self.assertEqual(self.lab.run("hub", forwarding).stdout.strip(), "1")
        second.stop()
        self.assertEqual(self.lab.run("hub", forwarding).stdout.strip(), "0")

    def test_name_resolved_again(self) -> None:
        """The server's name is looked up at each reconnect: a hub that moved is found again."""
        hosts = self.lab.directory / "kiwi" / "hosts"
        hosts.write_text("203.0.113.1 hub.example\n127.0.0.1 localhost\n")
        hub = self.lab.start_hub(PASSWORDS)
        self.lab.join("kiwi")
        # The old address belongs to the router, which does not answer there.
        shell = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        home = self.lab.directory / "kiwi"
        argv = [
            "/bin/sh",
            "-c",
            shell,
            "sh",
            self.lab.tool("twistd"),
            "-n",
            "pyvpn-client",
            "--profile-dir",
            home / "profiles",
            "--state-dir",
            home / "state",
            "--run-dir",
            home / "run",
            "--pw",
            PASSWORDS["kiwi"],
            "--server",
            "hub.example:5050",
            "--profile",
            "kiwi",
        ]
        client = self.lab.spawn("kiwi", argv, "moving")
        client.wait_for_text("no answer from hub.example:5050", 25)
        with hosts.open("r+") as file:
            file.write("198.51.100.2 hub.example\n127.0.0.1 localhost\n")
        self.lab.wait_answer("kiwi", "10.10.0.1", 15)
        self.assertEqual(hub.process.running, True)

    def test_network_comes_back(self) -> None:
        """A client whose cable is plugged in again after a long time is back within seconds, not at
        the next try of its back-off."""
        hub = self.lab.start_hub(PASSWORDS)
        self.lab.join("kiwi")
        self.lab.run("kiwi", ["ip", "link", "set", "eth0", "down"], check=True)
        client = self.lab.start_client("kiwi", PASSWORDS["kiwi"], seconds=None)
        client.wait_for_text("no answer from", 25)
        for words in (
            ["ip", "link", "set", "eth0", "up"],
            ["ip", "route", "add", "default", "via", self.lab.hosts["kiwi"].gateway4],
        ):
            self.lab.run("kiwi", words, check=True)
        self.lab.wait_answer("kiwi", "10.10.0.1", 3)
        self.assertTrue(hub.process.running)

    def test_tun_deleted(self) -> None:
        """A TUN that somebody deletes ends the client with one line and status 1."""
        _, client = self.up()
        self.lab.run("kiwi", ["ip", "link", "delete", TUN], check=True)
        client.wait_for_text(f"pyvpn-client: {TUN}: .*start it again")
        self.assertEqual(client.wait(), 1)


def _uid(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no user")
