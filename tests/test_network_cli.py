"""``pyvpn network …`` and ``pyvpn route …``: what people see, and what is asked of the hub."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import status
from tests.test_cli import CommandTestCase, FakeHub

SHOWN: dict[str, Any] = {
    "internet": True,
    "client_to_client": False,
    "dns": "10.20.0.53,fd00::53",
    "search": ["corp.example", "x.example"],
    "excluded": [],
    "routes": [{"network": "10.20.0.0/16"}],
    "fixed": {"internet": "--internet"},
}
LINES = [
    "internet          on  (by --internet)",
    "client to client  off",
    "name servers      10.20.0.53, fd00::53",
    "search domains    corp.example, x.example",
    "kept out          none",
    "routes            1, see: pyvpn route list",
]
ROUTE = {"network": "10.30.0.0/16", "where": "behind al\x1b[2Jice/laptop", "problem": None}


class NetworkCase(CommandTestCase):
    """A hub that answers as one would, unless a test says otherwise."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: dict[str, Any] = {
            "network_show": SHOWN,
            "network_set": {**SHOWN, "warnings": ["mind the gap"]},
            "route_add": {"route": ROUTE, "warnings": []},
            "route_remove": {"route": ROUTE},
            "route_list": {"routes": []},
        }
        self.fake: FakeHub = self.hub(self.answer)

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = self.answers[command]
        if isinstance(answer, str):
            return {"ok": False, "error": answer, "kind": "config"}
        return {"ok": True, "result": answer}


class NetworkTests(NetworkCase):
    """``network show`` and ``network set``."""

    def test_show(self) -> None:
        """Each setting has its line; what an option fixes says so."""
        code, out, err = self.pyvpn("network", "show")
        self.assertEqual((0, LINES, ""), (code, out.splitlines(), err))
        self.assertEqual([("network_show", {})], self.fake.asked)

    def test_defaults(self) -> None:
        """The hub as name server, and no routes."""
        self.answers["network_show"] = {**SHOWN, "dns": "hub", "fixed": {}, "routes": []}
        _, out, _ = self.pyvpn("network", "show")
        lines = out.splitlines()
        self.assertEqual("internet          on", lines[0])
        self.assertEqual("name servers      hub (it knows the machines by name)", lines[2])
        self.assertEqual("routes            0", lines[5])

    def test_set(self) -> None:
        """What is given goes to the hub as it stands; its answer is shown, and its warnings."""
        code, out, err = self.pyvpn(
            *("network", "set", "--internet", "on", "--client-to-client", "off", "--dns", "hub"),
            *("--search", "corp.example", "--exclude", "none"),
        )
        self.assertEqual((0, LINES, "warning: mind the gap\n"), (code, out.splitlines(), err))
        arguments = {
            "internet": "on",
            "client_to_client": "off",
            "dns": "hub",
            "search": "corp.example",
            "exclude": "none",
        }
        self.assertEqual([("network_set", arguments)], self.fake.asked)

    def test_bad_input(self) -> None:
        """What is wrong in its form is refused without asking the hub, by the option's name."""
        everything = (
            "NET: 0.0.0.0/0 is everything; to offer clients the internet take --internet, or run:"
            " pyvpn network set --internet on"
        )
        for argv, line in (
            (["network", "set"], "nothing is to be changed; see: pyvpn network set --help"),
            (["network", "set", "--dns", "x"],
             "--dns: 'x' is no name server; give hub, none, or addresses with commas"),
            (["network", "set", "--search", "a_b"],
             "--search: 'a_b' is no domain; write letters, digits, hyphens and dots, and other"
             " letters as xn--…"),
            (["network", "set", "--exclude", "10.0.0.1/8"],
             "--exclude: '10.0.0.1/8' has bits set beyond its prefix; write 10.0.0.0/8"),
            (["route", "add", "0.0.0.0/0"], everything),
            (["route", "remove", "x"],
             "NET: 'x' is not a network; write it like 192.168.7.0/24"),
        ):  # fmt: skip
            code, out, err = self.pyvpn(*argv)
            self.assertEqual((1, "", f"pyvpn: {line}\n"), (code, out, err), argv)
        self.assertEqual([], self.fake.asked)
        self.pyvpn("route", "list")  # positive control: the hub is there to be asked
        self.assertEqual(1, len(self.fake.asked))

    def test_refused(self) -> None:
        """The hub's refusal is one line."""
        self.answers["network_set"] = "internet: this run of the hub was started with --internet"
        code, out, err = self.pyvpn("network", "set", "--internet", "off")
        line = "pyvpn: internet: this run of the hub was started with --internet\n"
        self.assertEqual((1, "", line), (code, out, err))


class RouteTests(NetworkCase):
    """``route add``, ``route remove`` and ``route list``."""

    def test_add(self) -> None:
        """The network and whom it is behind go to the hub; names cannot steer the terminal."""
        code, out, err = self.pyvpn("route", "add", "10.30.0.0/16", "--via", "alice/laptop")
        line = "10.30.0.0/16 behind al?[2Jice/laptop is a route now.\n"
        self.assertEqual((0, line, ""), (code, out, err))
        self.pyvpn("route", "add", "10.20.0.0/16")
        self.assertEqual(
            [
                ("route_add", {"network": "10.30.0.0/16", "via": "alice/laptop"}),
                ("route_add", {"network": "10.20.0.0/16"}),
            ],
            self.fake.asked,
        )

    def test_remove(self) -> None:
        """A route is named by its network alone."""
        code, out, err = self.pyvpn("route", "remove", "10.30.0.0/16")
        line = "10.30.0.0/16 behind al?[2Jice/laptop is a route no more.\n"
        self.assertEqual((0, line, ""), (code, out, err))
        self.assertEqual([("route_remove", {"network": "10.30.0.0/16"})], self.fake.asked)

    def test_list(self) -> None:
        """Each route has a row: where it is, whether it is used, and why if not."""
        self.answers["route_list"] = {
            "routes": [
                {"network": "10.20.0.0/16", "where": "on the hub's side", "source": "--route"},
                {"network": "10.30.0.0/16", "where": "behind alice", "source": "route"},
                {
                    "network": "10.40.0.0/16",
                    "where": "behind WireGuard peer office",
                    "source": "peer",
                    "problem": "10.40.0.0/16 overlaps 10.40.0.5/24 of interface eth0",
                },
            ]
        }
        code, out, err = self.pyvpn("route", "list")
        self.assertEqual((0, ""), (code, err))
        self.assertEqual(
            [
                "NETWORK       WHERE                         STATE",
                "10.20.0.0/16  on the hub's side             used      by --route",
                "10.30.0.0/16  behind alice                  used      -",
                "10.40.0.0/16  behind WireGuard peer office  left out  10.40.0.0/16 overlaps"
                " 10.40.0.5/24 of interface eth0",
            ],
            [line.rstrip() for line in out.splitlines()],
        )

    def test_none(self) -> None:
        """Without routes it says how to get one."""
        _, out, _ = self.pyvpn("route", "list")
        self.assertEqual(
            "no routes yet; add one with: pyvpn route add NET [--via USER[/DEVICE]]\n", out
        )


class UserTests(NetworkCase):
    """``user remove``, which takes routes away."""

    def test_remove(self) -> None:
        """It says which networks are reached no longer; of a user without any it says nothing."""
        self.answers["user_remove"] = {"name": "alice", "routes": ["10.30.0.0/16", "fd77::/64"]}
        _, out, _ = self.pyvpn("user", "remove", "alice")
        lines = [
            "alice removed.",
            "No longer reached, as it was behind alice: 10.30.0.0/16, fd77::/64",
        ]
        self.assertEqual(lines, out.splitlines())
        self.answers["user_remove"] = {"name": "alice", "routes": [], "warnings": []}
        _, out, _ = self.pyvpn("user", "remove", "alice")
        self.assertEqual(lines[:1], out.splitlines())


class StatusTests(SynchronousTestCase):
    """The hub's lines about its network in ``pyvpn status``."""

    NETWORK: dict[str, Any] = {
        "internet": True,
        "client_to_client": True,
        "dns": ["10.10.0.1", "fd00::1"],
        "dns_wanted": "hub",
        "search": ["pyvpn"],
        "routes": [],
        "guarded": True,
    }

    def lines(self, **changes: Any) -> list[str]:
        answer = {"network": {**self.NETWORK, **changes}}
        return status.hub_lines(answer, 0)[1:-1]

    def test_usual(self) -> None:
        """Internet, clients among each other, names, routes."""
        self.assertEqual(
            [
                "  internet   on, client to client on",
                "  names      10.10.0.1, fd00::1 (pyvpn)",
                "  routes     none",
            ],
            self.lines(),
        )

    def test_troubles(self) -> None:
        """What is left out, not answered or not kept back has its line."""
        routes = [{"network": f"10.{n}.0.0/16", "problem": None} for n in range(20, 30)]
        routes.append({"network": "10.30.0.0/16", "problem": "10.30.0.0/16 overlaps eth0"})
        found = self.lines(internet=False, dns=[], search=[], routes=routes, guarded=False)
        self.assertEqual("  internet   off, client to client on", found[0])
        self.assertEqual("  names      not answered, see the log", found[1])
        self.assertTrue(found[2].endswith("10.27.0.0/16, 2 more"), found[2])
        self.assertEqual(
            [
                "  problem: 10.30.0.0/16 overlaps eth0; left out",
                "  problem: nft does not work here: what leaves the VPN is not kept back",
            ],
            found[3:],
        )
        self.assertIn("  names      none", self.lines(dns=[], search=[], dns_wanted="none"))

    def test_older_hub(self) -> None:
        """An answer without a network has no lines of it."""
        self.assertEqual(["  nobody is connected"], status.hub_lines({}, 0)[1:])
