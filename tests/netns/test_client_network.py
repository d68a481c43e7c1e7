"""What a client does when others take away what it has made of this machine's network, and what it
says where it cannot make it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import Lab, built_for
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.course import LAPTOP
from tests.scenes.networks.lab import HOME, NetworksLab
from tests.scenes.networks.state import snapshot

PASSWORD = "correct horse kiwi"
TABLES = ("table inet pyvpn-kill-switch", "table inet pyvpn-leamit0", "table arp pyvpn-leamit0")


class TakenAwayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lab: Lab = built_for(self)

    def tables(self, *before: str) -> list[str]:
        """The tables of nftables on the client's host, after these commands."""
        script = "; ".join([*before, "nft list tables"])
        return self.lab.run("kiwi", ["sh", "-c", script], check=True).stdout.splitlines()

    def test_flushed(self) -> None:
        """Who empties nftables takes guard and kill switch away for a moment only, connected or
        not; and a rule that is deleted comes back as well."""
        self.lab.start_hub({"kiwi": PASSWORD})
        self.lab.join("kiwi")
        options = ("--all-traffic", "--kill-switch")
        client = self.lab.start_client("kiwi", PASSWORD, *options)
        self.assertEqual(sorted(self.tables()), sorted(TABLES))
        self.assertEqual(self.tables("nft flush ruleset"), [])
        self.lab.wait_until(lambda: len(self.tables()) == 3, "our tables", 5)
        rules = ["sh", "-c", "ip rule delete priority 30100; ip rule"]
        self.assertNotIn("30100", self.lab.run("kiwi", rules, check=True).stdout)
        self.lab.wait_until(
            lambda: "30100" in self.lab.run("kiwi", ["ip", "rule"], check=True).stdout, "a rule", 5
        )
        client.stop()
        self.assertEqual(self.tables(), [TABLES[0]])
        wrong = self.lab.start_client("kiwi", "wrong", *options, seconds=None)
        wrong.wait_until(
            lambda: self.lab.pyvpn("kiwi", "status", check=False).returncode == 0, "a status", 15
        )
        self.lab.wait_until(lambda: TABLES[0] in self.tables(), "the kill switch", 5)
        self.assertEqual(self.tables("nft flush ruleset"), [])
        self.lab.wait_until(lambda: TABLES[0] in self.tables(), "the kill switch", 5)
        wrong.stop()


class RefusedTests(SynchronousTestCase):
    """What cannot be is told in one line, and the machine's network is what it was."""

    def setUp(self) -> None:
        built_for(self).close()  # skips or fails where there are no namespaces
        self.lab = NetworksLab()
        self.lab.__enter__()
        self.addCleanup(self.lab.close)
        self.lab.serve(HOME)
        self.lab.lease(LAPTOP)
        self.hub = Hub(self.lab, "--internet").start()
        self.client = Client(self.hub, LAPTOP, "alice")

    def refused(self, *words: str) -> str:
        """The one line of a command on the laptop that fails and changes nothing."""
        before = snapshot(self.lab, LAPTOP)
        done = self.lab.pyvpn(LAPTOP, *words, check=False, seconds=60)
        self.assertEqual(done.returncode, 1, done)
        self.lab.wait_until(lambda: snapshot(self.lab, LAPTOP) == before, "what was before", 10)
        (*_, line) = done.stderr.splitlines()
        return line

    def test_name_servers_of_another_owner(self) -> None:
        """Where a program that cannot be asked owns resolv.conf, it and the remedy are named."""
        script = (
            "mkdir -p /run/NetworkManager && cp /etc/resolv.conf /run/NetworkManager/"
            " && rm /etc/resolv.conf && ln -s /run/NetworkManager/resolv.conf /etc/resolv.conf"
        )
        self.lab.run(LAPTOP, ["sh", "-c", script], check=True)
        said = self.refused("up", "alice")
        self.assertIn("NetworkManager", said)
        self.assertIn("--no-dns", said)
        self.client.up("--no-dns")
        self.client.down()

    def test_a_second_client(self) -> None:
        """A machine is in a network once: a second client of it is told which interface is there
        already; and one that wants the kill switch, while another's stands, whose that is."""
        Client(self.hub, LAPTOP, "bob")
        tun = ("--tun", "leamit1")
        self.client.up("--all-traffic")
        said = self.refused("up", "bob", "--", *tun)
        self.assertIn("10.10.0.0/24 overlaps 10.10.0.2/24 of interface leamit0", said)
        self.client.down()
        self.client.up("--kill-switch")
        said = self.refused("up", "bob", "--", *tun, "--kill-switch")
        self.assertIn("the kill switch of client-alice stands", said)
        self.client.down()
        self.assertFalse(self.client.has_kill_switch())

    def test_the_network_that_we_are_in(self) -> None:
        """A hub whose network is the local one is refused with both named."""
        address = "10.10.0.77/24"
        self.lab.ip(LAPTOP, f"address add {address} dev eth0")
        said = self.refused("up", "alice")
        self.assertIn(f"10.10.0.0/24 overlaps {address} of interface eth0", said)
        self.lab.ip(LAPTOP, f"address delete {address} dev eth0")
        self.client.up()
        self.client.down()
