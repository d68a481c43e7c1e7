"""Starting: every bad input ends with one clear line and a status, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import TUN, Lab, built_for

PASSWORD = "correct horse kiwi"


def snapshot(lab: Lab, host: str) -> dict[str, str]:
    """Return what a start may change in a host: Linux's state as text, and processes."""
    namespace = lab.namespace(host)
    asked = {
        "links": ["ip", "-o", "link"],
        "addresses": ["ip", "-o", "address"],
        "routes": ["ip", "route", "show", "table", "all"],
        "routes6": ["ip", "-6", "route", "show", "table", "all"],
        "rules": ["ip", "rule"],
        "nft": ["nft", "list", "ruleset"],
        "sysctls": ["sysctl", "-a", "-r", "forward|redirects|accept_ra$"],
        "processes": ["ip", "netns", "pids", namespace],
    }
    found = {}
    for what, argv in asked.items():
        text = lab.run(host, argv).stdout
        # Counters and lifetimes move on by themselves; the asking processes come and go.
        text = re.sub(r"expires \S+|\b(valid|preferred)_lft \S+", "", text)
        found[what] = "" if what == "processes" else text
    running = lab.run(host, asked["processes"]).stdout.split()
    names = []
    for pid in running:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "pyvpn" in command and "netns" not in command:
            names.append(command)
    found["processes"] = "\n".join(sorted(names))
    return found


def files(directory: Path) -> set[str]:
    """Return all files below a directory; directories and logs may stay after a failed start."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.parent.name != "log"
    }


class StartTests(SynchronousTestCase):
    """Starts of hub and client in one namespace each."""

    def setUp(self) -> None:
        self.lab = built_for(self)
        self.home = self.lab.directory / "hub" / "one"

    def server(self, *options: str) -> list[str]:
        state = ["--state-dir", str(self.home / "state"), "--run-dir", str(self.home / "run")]
        return ["pyvpn-server", *state, *options]

    def twistd(self, host: str, *argv: str) -> tuple[int, str]:
        done = self.lab.run(host, [self.lab.tool("twistd"), *argv], seconds=30)
        return done.returncode, done.stderr

    def refused(self, host: str, argv: list[str], expected: str, status: int) -> None:
        """Start it without and as a daemon: the same line, the same status, nothing changed."""
        for mode in (["-n"], []):
            before = snapshot(self.lab, host), files(self.lab.directory / host)
            code, said = self.twistd(host, *mode, *argv)
            lines = [line for line in said.splitlines() if line.startswith(f"{argv[0]}: ")]
            self.assertIn(f"{argv[0]}: {expected}", lines, said)
            self.assertEqual(code, status, said)
            self.assertNotIn("Traceback", said)
            after = snapshot(self.lab, host), files(self.lab.directory / host)
            self.assertEqual(before[0], after[0])
            self.assertEqual(before[1], after[1])

    def test_options_of_the_hub(self) -> None:
        """Bad values of options are named with the option, before anything is touched."""
        config = self.lab.directory / "hub" / "hub.toml"
        config.write_text('port = 5050\nsubnett = "10.1.0.0/24"\n')
        table = [
            (["--port", "66000"], "--port: '66000' is not a port; give a number from 1 to 65535"),
            (
                ["--subnet", "10.2.0.0/31"],
                "--subnet: 10.2.0.0/31 is too small; the smallest subnet is a /30",
            ),
            (
                ["--config", str(config)],
                f"{config}, line 2, subnett: unknown key; did you mean 'subnet'?",
            ),
            (["--nonsense"], "option --nonsense not recognized; see: twistd pyvpn-server --help"),
            (
                ["--interface", "198.51.100.77"],
                "--interface: 198.51.100.77 is not an address of this machine; 'ip address' lists"
                " them",
            ),
            (
                ["--subnet", "198.51.100.0/24"],
                "198.51.100.0/24 overlaps 198.51.100.2/24 of interface eth0;"
                " choose another network with --subnet",
            ),
        ]
        for options, expected in table:
            self.refused("hub", self.server(*options), expected, 2)

    def test_machine_of_the_hub(self) -> None:
        """A busy port, a taken TUN, a damaged store and a second process are told as they are."""
        running = self.lab.start_hub({"kiwi": PASSWORD})
        other = ["--tun", "leamit1", "--port", "6000", "--subnet", "10.11.0.0/24"]
        self.refused(
            "hub",
            self.server("--tun", "leamit1", "--subnet", "10.11.0.0/24"),
            "UDP port 5050 is in use by another program; choose another with --port, or stop it",
            1,
        )
        self.refused(
            "hub",
            self.server("--port", "6000", "--subnet", "10.11.0.0/24"),
            f"an interface named {TUN} exists already; stop the program that made it, or choose"
            " another name with --tun",
            1,
        )
        state = str(running.state_dir)
        self.refused(
            "hub",
            ["pyvpn-server", "--state-dir", state, "--run-dir", str(self.home / "run"), *other],
            f"{state} is in use by another PyVPN process (pid {running.process.pid}); stop it, or"
            " give this one its own --state-dir",
            1,
        )
        self.refused(
            "hub",
            ["pyvpn-server", "--state-dir", str(self.home), "--run-dir", str(running.run_dir)],
            f"it runs already (pid {running.process.pid}, it listens on"
            f" {running.run_dir}/server.sock)",
            1,
        )
        # The control: with all of these its own, a second hub starts beside the first.
        code, said = self.twistd("hub", *self.server(*other))
        self.assertEqual(code, 0, said)
        pid_file = self.home / "run" / "server.pid"
        pid = int(pid_file.read_text())
        self.addCleanup(_kill, pid)
        self.lab.pyvpn("hub", "--run-dir", str(self.home / "run"), "down", "server")
        self.assertFalse(pid_file.exists())
        self.assertEqual(self.lab.ping("hub", "10.10.0.1").returncode, 0)

    def test_no_privilege(self) -> None:
        """Without root, hub and client say so; with it, the same line works (see the others)."""
        # The capability is what counts, not the user: this interpreter may be root's alone.
        argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        done = self.lab.run("hub", [*argv, self.lab.tool("twistd"), "-n", *self.server()])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"pyvpn-server: .*(root|CAP_NET_ADMIN)")

    def test_ipv6_off(self) -> None:
        """A kernel without IPv6 gets an IPv4 network, and says so."""
        for host in ("hub", "kiwi"):
            for name in ("all", "default"):
                key = f"net.ipv6.conf.{name}.disable_ipv6=1"
                self.lab.run(host, ["sysctl", "-w", key], check=True)
        hub = self.lab.start_hub({"kiwi": PASSWORD})
        hub.process.wait_for_text("IPv6 is off in this kernel")
        self.lab.join("kiwi")
        self.lab.start_client("kiwi", PASSWORD)
        self.assertEqual([str(a) for a in self.lab.addresses("kiwi")], ["10.10.0.2"])


class ClientStartTests(SynchronousTestCase):
    """Starts of a client."""

    def setUp(self) -> None:
        self.lab = built_for(self)
        self.home = self.lab.directory / "kiwi"

    def client(self, *options: str) -> list[str]:
        directories = [
            "--profile-dir",
            str(self.home / "profiles"),
            "--state-dir",
            str(self.home / "state"),
            "--run-dir",
            str(self.home / "run"),
        ]
        return ["pyvpn-client", *directories, *options]

    refused = StartTests.refused
    twistd = StartTests.twistd

    def test_bad_input(self) -> None:
        """What a person can get wrong before there is a network is told in one line."""
        profiles = self.home / "profiles"
        self.refused(
            "kiwi",
            self.client("--pw", "x"),
            f"{profiles} holds no profile 'default' (there is none yet); join a network with:"
            " pyvpn join 'pyvpn://…'",
            2,
        )
        self.refused(
            "kiwi",
            self.client("--pw", "x", "--server", "h"),
            "--user: --server without a profile needs this option too",
            2,
        )
        self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi", profile="default")
        self.refused(
            "kiwi",
            self.client(),
            "no password: give --pw-file FILE, or start it on a terminal to be asked",
            2,
        )
        self.refused(
            "kiwi",
            self.client("--pw", "x", "--tun-addr", "10.10.0.500"),
            "--tun-addr: '10.10.0.500' is not an IPv4 or IPv6 address",
            2,
        )
        self.refused(
            "kiwi",
            self.client("--pw-file", str(self.home / "none")),
            f"{self.home / 'none'}: there is no such password file",
            2,
        )

    def test_the_line_of_the_seed(self) -> None:
        """`--tun-adr 10.10.0.2 --tun-dstaddr 10.10.0.1 --pw …` as a daemon, from a profile; the
        password is gone from the process list, and the end leaves nothing."""
        self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi", profile="default")
        before = snapshot(self.lab, "kiwi")
        line = ("--tun-adr", "10.10.0.9", "--tun-dstaddr", "10.10.0.1", "--pw", PASSWORD)
        code, said = self.twistd("kiwi", *self.client(*line))
        self.assertEqual(code, 0, said)
        self.assertIn("pyvpn-client: --pw leaves the password in the shell's history", said)
        pid = int((self.home / "run" / "client-default.pid").read_text())
        self.addCleanup(_kill, pid)
        self.lab.wait_answer("kiwi", "10.10.0.1")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        self.assertIn(b"--pw\0xxxx", command)
        self.assertNotIn(PASSWORD.encode(), command)
        shown = self.lab.run("kiwi", ["ip", "-json", "address", "show", TUN]).stdout
        entry = json.loads(shown)[0]["addr_info"][0]
        self.assertEqual((entry["local"], entry["address"]), ("10.10.0.9", "10.10.0.1"))
        self.lab.pyvpn("kiwi", "down", "default")
        self.assertEqual(before, snapshot(self.lab, "kiwi"))
        self.assertEqual([name for name in files(self.home) if name.startswith("run/")], [])

    def test_busy_port(self) -> None:
        """The usual port being busy, a client takes a free one and says so; asked for, it fails."""
        self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi")
        holder = (
            "import socket, time; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM);"
            " s.bind(('::', 12000)); print('held', flush=True); time.sleep(60)"
        )
        self.lab.spawn("kiwi", ["python3", "-c", holder]).wait_for_text("held")
        self.refused(
            "kiwi",
            self.client("--profile", "kiwi", "--pw", PASSWORD, "--port", "12000"),
            "UDP port 12000 is in use by another program; choose another with --port, or stop it",
            1,
        )
        client = self.lab.start_client("kiwi", PASSWORD)
        client.wait_for_text("UDP port 12000 is in use .*; taking UDP port [0-9]+ instead")

    def test_nobody_answers(self) -> None:
        """Without a hub the client says after 15 s what can be the matter, and goes on trying."""
        hub = self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi")
        hub.process.stop()
        client = self.lab.start_client("kiwi", PASSWORD, seconds=None)
        client.wait_for_text(
            "no answer from 198.51.100.2:5050: wrong user or password, account disabled, wrong"
            " token, this machine's clock, UDP blocked, or the hub is down; trying on",
            25,
        )
        self.lab.spawn(
            "hub",
            [
                self.lab.tool("twistd"),
                "-n",
                "pyvpn-server",
                "--state-dir",
                str(hub.state_dir),
                "--run-dir",
                str(hub.run_dir),
            ],
        )
        self.lab.wait_answer("kiwi", "10.10.0.1", 15)


def _kill(pid: int) -> None:
    """End a daemon that a failed test left, if it is still ours."""
    try:
        if b"twistd" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)
    except (OSError, ProcessLookupError):
        pass
