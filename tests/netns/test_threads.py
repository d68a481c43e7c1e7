"""A client is one thread, whatever it does: the first other one would slow malloc for good."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import TUN, Process, built_for

PASSWORD = "correct horse kiwi"
NAME = "hub.example"
WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


def tasks(process: Process) -> int:
    """The threads that a process has. Twisted's never end while it runs."""
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


class Threads(SynchronousTestCase):
    def setUp(self) -> None:
        self.lab = built_for(self)
        self.home = self.lab.directory / "kiwi"

    def start_client(self, hosts: str) -> Process:
        """Start Kiwi's client with the hub's name as its server, and that /etc/hosts."""
        file = self.home / "hosts"
        file.write_text(hosts)
        argv: list[str | Path] = ["unshare", "--mount", "sh", "-c", WITH_HOSTS, file]
        argv += [self.lab.tool("twistd"), "-n", "pyvpn-client", "--server", NAME]
        argv += ["--profile", "kiwi", "--pw", PASSWORD]
        for name in ("profile", "state", "run"):
            place = "profiles" if name == "profile" else name
            argv += [f"--{name}-dir", self.home / place]
        return self.lab.spawn("kiwi", argv, "pyvpn-client")

    def test_one_task(self) -> None:
        """A client that made its key, looked up a name, kept its identity, set up its TUN and its
        MTU, was asked for its status and saw networks change has one task; the hub, whose store
        has a thread, shows more."""
        hub = self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi")
        client = self.start_client(f"{self.lab.hosts['hub'].ipv4} {NAME}\n")
        self.lab.wait_answer("kiwi", "10.10.0.1", 15, client)
        client.wait_for_text("packets of [0-9]+ bytes reach the hub whole", 30)
        (identity,) = (self.home / "state" / "clients").iterdir()
        self.assertEqual(identity.stat().st_size, 81)
        add = ["ip", "address", "add", "198.18.0.1/32", "dev", "lo"]
        self.lab.run("kiwi", add, check=True)
        self.assertIn("10.10.0.2", self.lab.pyvpn("kiwi", "status").stdout)
        self.assertEqual(self.lab.ping("kiwi", "10.10.0.1", count=5).returncode, 0)
        self.assertEqual(tasks(client), 1)
        self.assertGreater(tasks(hub.process), 1)
        client.stop()
        self.assertEqual(self.lab.addresses("kiwi", TUN), [])

    def test_unknown_name(self) -> None:
        """A name without an address is told, and found when it has one: nothing is remembered."""
        self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi")
        client = self.start_client("127.0.0.1 localhost\n")
        client.wait_for_text(f"cannot resolve {NAME}: .*; trying on", 30)
        (self.home / "hosts").write_text(f"{self.lab.hosts['hub'].ipv4} {NAME}\n")
        self.lab.wait_answer("kiwi", "10.10.0.1", 30, client)
        self.assertEqual(tasks(client), 1)
