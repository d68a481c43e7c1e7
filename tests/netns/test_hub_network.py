"""What a hub offers, on the kernel: the internet, clients apart, a network behind one, names."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import Lab, built_for, wait_until

PASSWORD = "correct horse battery"
#: Whatever a hub may change on its machine.
STATE = (
    "ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all | grep -v fe80;"
    " nft list ruleset; grep . /proc/sys/net/ipv[46]/conf/*/forwarding"
    " /proc/sys/net/ipv4/conf/*/send_redirects /proc/sys/net/ipv6/conf/*/accept_ra"
)
#: Counts echo requests that leave the hub under its own address, and under one of the VPN.
COUNTING = """
table inet counting {
    chain leaving {
        type filter hook postrouting priority 300;
        oifname eth0 ip saddr 198.51.100.2 icmp type echo-request counter comment "own"
        oifname eth0 ip6 saddr 2001:db8:1::2 icmpv6 type echo-request counter comment "own6"
        oifname eth0 ip saddr 10.10.0.0/24 counter comment "inner"
    }
}
"""


class HubNetworkTests(SynchronousTestCase):
    """A hub, kiwi that sends all of its traffic through it, and pa that does not."""

    lab: Lab

    def setUp(self) -> None:
        self.lab = built_for(self)
        self.before = self.state()
        self.hub("init", "--endpoint", "198.51.100.2:5050")
        self.hub("network", "set", "--internet", "on", "--client-to-client", "off")
        self.server = self.lab.start_hub({"kiwi": PASSWORD, "pa": PASSWORD})
        for host, options in (("pa", ()), ("kiwi", ("--all-traffic",))):
            self.lab.join(host)
            self.lab.start_client(host, PASSWORD, *options)

    def hub(self, *arguments: str) -> str:
        return self.lab.pyvpn("hub", *arguments).stdout

    def state(self) -> str:
        return self.lab.run("hub", ["sh", "-c", STATE]).stdout

    def counts(self) -> dict[str, int]:
        """Packets by the comment of the rule that counted them."""
        rules = self.lab.run("hub", ["nft", "list", "table", "inet", "counting"]).stdout
        found = {}
        for line in rules.splitlines():
            words = line.split()
            if "comment" in words:
                packets = int(words[words.index("packets") + 1])
                found[words[-1].strip('"')] = packets
        return found

    def reaches(self, address: object) -> bool:
        return self.lab.ping("kiwi", str(address)).returncode == 0

    def test_all(self) -> None:
        """Each change is there at once, and at the end the machine is as it was before."""
        inner = self.lab.addresses("pa")

        # The internet, in both families, under the hub's own addresses.
        self.lab.run("hub", ["nft", "-f", "-"], stdin=COUNTING, check=True)
        wait_until(lambda: self.reaches("192.0.2.2"), "the internet through the hub", 5)
        self.assertTrue(self.reaches("2001:db8:3::2"))
        counts = self.counts()
        self.assertGreaterEqual(counts["own"], 1)
        self.assertEqual((1, 0), (counts["own6"], counts["inner"]))
        self.lab.run("hub", ["nft", "delete", "table", "inet", "counting"], check=True)

        # Clients apart, and together: the positive control.
        self.assertEqual([False, False], list(map(self.reaches, inner)))
        self.hub("network", "set", "--client-to-client", "on")
        self.assertEqual([True, True], list(map(self.reaches, inner)))

        # A network behind pa.
        self.lab.run("pa", ["ip", "address", "add", "10.77.0.1/32", "dev", "lo"], check=True)
        self.assertFalse(self.reaches("10.77.0.1"))
        self.hub("route", "add", "10.77.0.0/16", "--via", "pa")
        wait_until(lambda: self.reaches("10.77.0.1"), "the network behind pa", 5)

        # Names, by the resolver of kiwi's own machine.
        asked = self.lab.run("kiwi", ["getent", "ahostsv4", "pa.pyvpn"], check=True).stdout
        self.assertEqual(str(inner[0]), asked.split()[0])

        shown = self.hub("status")
        self.assertIn("  internet   on, client to client on\n", shown)
        self.assertIn("  routes     10.77.0.0/16\n", shown)
        self.assertNotEqual(self.before, self.state())
        self.server.process.stop()
        self.assertEqual(self.before, self.state())
