"""What a running client does when others take away what it has made of this machine's network."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import Lab, built_for

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
