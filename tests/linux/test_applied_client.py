"""Tables of routes, rules, nftables and name servers: the same on a fake and on the kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux import killswitch, nameservers
from pyvpn.linux.desired import Address, Link, Route, Rule, SystemState
from pyvpn.linux.firewall import ClientFirewall, HubFirewall, KillSwitch
from pyvpn.linux.nameservers import NameServers
from pyvpn.linux.system import ChangeFailed
from pyvpn.testing.linux import render
from tests.linux.worlds import (
    As,
    Child,
    FakeWorld,
    KernelWorld,
    Killed,
    Watched,
    World,
    files_in,
    own_directory,
)

T = 0x50560007  # of our tables (0x50560000 and on), one that no other test uses
MARK = "0x2056"

LINK = Link("leamit0", 1416, (Address("10.10.0.2/24"), Address("fd00:1::2/64")))
SPLIT = SystemState(
    links=(LINK,),
    routes=(Route("10.10.0.0/24", "leamit0", T), Route("10.30.0.0/16", "leamit0", T)),
    rules=(Rule(4, T, "leamit0"), Rule(6, T, "leamit0")),
    sysctls={"net/ipv4/conf/all/src_valid_mark": "1"},
    firewall=ClientFirewall("leamit0", ("10.10.0.2", "fd00:1::2"), (5051,)),
    name_servers=NameServers("leamit0", ("10.10.0.1",), ("pyvpn",)),
)
FULL = evolve(
    SPLIT,
    routes=(
        *SPLIT.routes,
        Route("0.0.0.0/0", "leamit0", T),
        Route("::/0", "leamit0", T, "unreachable"),
        Route("192.168.7.0/24", "leamit0", T, "throw"),
        Route("fd00:7::/64", "leamit0", T, "throw"),
    ),
    name_servers=NameServers("leamit0", ("10.10.0.1",), ("pyvpn",), exclusive=True),
)
FULL_LINES = f"""\
address 10.10.0.2/24 on leamit0
route 0.0.0.0/0 on leamit0 table {T}
route 10.30.0.0/16 on leamit0 table {T}
route 192.168.7.0/24 throw table {T}
route ::/0 unreachable table {T}
route fd00:7::/64 throw table {T}
nft table inet pyvpn-leamit0 {{
net/ipv4/conf/all/src_valid_mark = 1
resolv.conf: nameserver 10.10.0.1
resolv.conf: search pyvpn""".splitlines()

SWITCH = KillSwitch("client-home", "leamit0", (5051,), ("192.0.2.53",))

BEFORE = "nameserver 192.0.2.53\nsearch example.net\n"


class Promises:
    """The tests; a subclass says in which world."""

    def make_world(self) -> World:
        raise NotImplementedError

    def setUp(self) -> None:
        self.world = self.make_world()
        self.addCleanup(self.world.close)
        self.directory = own_directory(self)
        self.root = Path(own_directory(self))
        (self.root / "etc").mkdir()
        (self.root / "etc" / "resolv.conf").write_text(BEFORE, encoding="ascii")
        self.without_tun = self.shown()
        self.world.add_tun("leamit0")
        self.child = self.new_child(self.world.system)
        self.before = self.shown()

    def new_child(self, system: object) -> Child:
        return Child(system, self.directory, root=str(self.root))

    def shown(self) -> str:
        """The machine as text, with what programs read of its resolv.conf."""
        text = (self.root / "etc" / "resolv.conf").read_text(encoding="ascii")
        lines = [f"resolv.conf: {line}" for line in text.splitlines() if line[0] != "#"]
        return "\n".join([render(self.world.system), *lines])

    def lines(self) -> list[str]:
        return self.shown().splitlines()

    def rules(self) -> list[str]:
        """Those of ours that there are: family and table."""
        return [
            line.split()[1]
            for line in self.lines()
            if line.startswith("rule")
            and "priority 30100 not" in line
            and f"fwmark {MARK}" in line
            and line.endswith(f"table {T}")
        ]

    def assertStands(self, lines: list[str]) -> None:
        shown = self.lines()
        self.assertEqual([line for line in lines if line not in shown], [])

    def test_full_tunnel(self) -> None:
        """Routes of each kind, rules, firewall, sysctl and name servers come about, and go."""
        self.child.apply(FULL)
        self.assertStands(FULL_LINES)
        self.assertEqual(self.rules(), ["-4", "-6"])
        self.assertNotIn("resolv.conf: nameserver 192.0.2.53", self.lines())
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)
        self.assertEqual(self.rules(), [])

    def test_twice_is_harmless(self) -> None:
        """The same state again changes nothing, with a kill switch too."""
        state = evolve(FULL, kill_switch=SWITCH)
        self.assertNotEqual(self.child.apply(state), [])
        once = self.shown()
        self.assertEqual(self.child.apply(state), [])
        self.assertEqual(self.shown(), once)

    def test_full_tunnel_on_and_off(self) -> None:
        """The switch touches the routes that differ, and not the links, rules or firewall."""
        self.child.apply(SPLIT)
        split = self.shown()
        log = self.child.apply(FULL)
        self.assertStands(FULL_LINES)
        self.assertEqual([line for line in log if "route" not in line and "resolv" not in line], [])
        self.assertEqual(len([line for line in log if "route add" in line]), 4)
        self.child.apply(SPLIT)
        self.assertEqual(sorted(self.lines()), sorted(split.splitlines()))
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_order(self) -> None:
        """Name servers come last and go first, and rules go before the routes that they lead to."""
        kinds = (" link ", " address ", " route ", " rule ", "nft:", "sysctl", "resolv.conf")

        def seen(log: list[str]) -> list[str]:
            found = [next(kind for kind in kinds if kind in line) for line in log]
            return list(dict.fromkeys(found))

        self.child.apply(SPLIT)
        self.child.apply(FULL)  # which makes routes after the name servers
        self.assertEqual(seen(self.child.applied.undo_all()), list(reversed(kinds)))
        self.assertEqual(seen(self.child.apply(FULL)), list(kinds))

    def test_moved_address(self) -> None:
        """A new address takes along what the kernel drops with the old one, in our table too."""
        self.child.apply(FULL)
        moved = evolve(LINK, addresses=(Address("10.10.0.9/24"), Address("fd00:1::9/64")))
        self.child.apply(evolve(FULL, links=(moved,)))
        self.assertStands([line.replace("10.10.0.2", "10.10.0.9") for line in FULL_LINES])
        self.assertEqual(self.rules(), ["-4", "-6"])

    def test_changed_firewall(self) -> None:
        """A table with other values takes the place of the old one in one transaction."""
        self.child.apply(FULL)
        scripts = []
        watched = Watched(self.world.system, scripts.append)
        self.child.applied._nft._system = watched  # type: ignore[assignment]
        other = ClientFirewall("leamit0", ("10.10.0.2",), (5052,))
        log = self.child.apply(evolve(FULL, firewall=other))
        self.assertEqual(log, ["nft: table inet pyvpn-leamit0 set"])
        self.assertEqual(len(scripts), 1)
        shown = self.shown()
        self.assertIn("5052", shown)
        self.assertNotIn("5051", shown)
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_failure_brings_the_firewall_back(self) -> None:
        """When a later step is refused, the old table stands again, replaced and never removed."""
        self.child.apply(FULL)
        before = self.shown()
        scripts: list[str] = []
        self.child.applied._nft._system = Watched(self.world.system, scripts.append)  # type: ignore[assignment]
        (self.root / "etc" / "resolv.conf").unlink()
        (self.root / "etc" / "resolv.conf").mkdir()
        other = evolve(
            FULL,
            firewall=ClientFirewall("leamit0", ("10.10.0.2",), (5052,)),
            name_servers=NameServers("leamit0", ("10.10.0.3",)),
        )
        error = self.assertRaises(ChangeFailed, self.child.apply, other)
        self.assertIn("resolv.conf", str(error))
        (self.root / "etc" / "resolv.conf").rmdir()
        (self.root / "etc" / "resolv.conf").write_text(BEFORE, encoding="ascii")
        self.assertEqual(
            [script.count("\ntable inet pyvpn-leamit0 {") for script in scripts], [1, 1]
        )
        without = [line for line in before.splitlines() if not line.startswith("resolv.conf")]
        self.assertStands(without)

    def test_failure_brings_all_back(self) -> None:
        """When a change is refused, routes, rules, firewall and name servers stand as before."""
        for first in (SystemState(), SPLIT):
            self.child.apply(first)
            before = self.shown()
            self.world.ip(f"route add throw 10.77.0.0/16 table {T}")
            wrong = evolve(
                FULL,
                routes=(*FULL.routes, Route("10.77.0.0/16", "leamit0", T)),
                firewall=HubFirewall("leamit0", ("10.10.0.0/24",)),
                rules=FULL.rules[1:],
                name_servers=None,
            )
            error = self.assertRaises(ChangeFailed, self.child.apply, wrong)
            self.assertIn("File exists", str(error))
            self.world.ip(f"route delete throw 10.77.0.0/16 table {T}")
            self.assertEqual(sorted(self.lines()), sorted(before.splitlines()))
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_undo_after_the_device_has_gone(self) -> None:
        """Of a TUN that has gone there remain rules, table, dead ends and name servers: they go."""
        self.child.apply(FULL)
        self.world.remove_tun("leamit0")
        self.assertStands([line for line in FULL_LINES if "on leamit0" not in line])
        self.assertEqual(self.rules(), ["-4", "-6"])
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.without_tun)
        self.assertEqual(files_in(self.directory), [])

    def test_device_made_anew(self) -> None:
        """On a new TUN of that name all comes about again, and one undo takes it back."""
        self.child.apply(FULL)
        once = self.shown()
        self.world.remove_tun("leamit0")
        self.world.add_tun("leamit0")
        self.assertNotIn(FULL_LINES[1], self.lines())
        self.child.apply(FULL)
        self.assertEqual(sorted(self.lines()), sorted(once.splitlines()))
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_flushed_tables_are_made_again(self) -> None:
        """Who empties nftables takes ours along; the next apply brings it back."""
        self.child.apply(FULL)
        self.world.system.run(["nft", "-f", "-"], "delete table inet pyvpn-leamit0\n")
        self.assertNotIn("table inet pyvpn-leamit0", self.shown())
        self.assertEqual(self.child.apply(FULL), ["nft: table inet pyvpn-leamit0 set"])
        self.assertStands(FULL_LINES)

    def test_lost_rules_and_routes_are_made_again(self) -> None:
        """What another program takes out of the rules and of our table comes back, and nothing
        else is touched; with the table gone as a whole, too."""
        self.child.apply(FULL)
        once = self.shown()
        words = f"priority 30100 not fwmark {MARK} lookup {T}"
        self.world.ip(f"rule delete {words}")
        self.world.ip(f"route delete 0.0.0.0/0 dev leamit0 table {T}")
        self.world.ip(f"route delete unreachable ::/0 table {T}")
        self.assertEqual(self.rules(), ["-6"])
        self.assertEqual(
            self.child.apply(FULL),
            [
                f"ip route add 0.0.0.0/0 dev leamit0 table {T}",
                f"ip route add unreachable ::/0 table {T} metric 4000000000",
                f"ip rule add {words}",
            ],
        )
        self.assertEqual(sorted(self.lines()), sorted(once.splitlines()))
        only = evolve(SPLIT, routes=(Route("10.30.0.1/32", "leamit0", T),))
        self.child.apply(only)
        self.assertEqual(self.child.apply(only), [])
        self.world.ip(f"route delete 10.30.0.1/32 dev leamit0 table {T}")
        self.assertEqual(len(self.child.apply(only)), 1)
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_any_name(self) -> None:
        """A TUN whose name is no name for nft gets its table too, once, and loses it again."""
        self.world.add_tun("a+b@c.d")
        before = self.shown()
        state = SystemState(
            links=(Link("a+b@c.d", 1416),), firewall=ClientFirewall("a+b@c.d", ("10.10.0.2",))
        )
        self.assertIn("pyvpn-a", self.child.apply(state)[-1])
        self.assertNotEqual(self.shown(), before)
        self.assertEqual(self.child.apply(state), [])
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), before)

    def test_killed_at_each_change(self) -> None:
        """Killed right before or after any change, with or without its TUN, repair undoes all."""
        moments = 0
        real_take = nameservers.take

        def kill_after(number: int) -> bool:
            """Was there still a change to be killed at?"""
            left = [number]

            def moment(change: str) -> None:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1

            def take(*arguments: Any) -> list[str]:
                moment("name servers")
                lines = real_take(*arguments)
                moment("name servers")
                return lines

            self.patch(nameservers, "take", take)
            child = self.new_child(Watched(self.world.system, moment, moment))
            try:
                child.apply(FULL)
            except Killed:
                return True
            left[0] = 1000
            child.applied.undo_all()
            return False

        while kill_after(moments):
            gone = moments % 3 == 2
            if gone:
                self.world.remove_tun("leamit0")
            later = As(self.world.system, "boot:2:2", {"boot:2:2"})
            self.new_child(self.world.system).repaired_by(later)
            expected = self.without_tun if gone else self.before
            self.assertEqual(self.shown(), expected, f"killed after {moments} moments")
            self.assertEqual(files_in(self.directory), [])
            if gone:
                self.world.add_tun("leamit0")
                self.before = self.shown()
            moments += 1
        # ip for links and IPv4 rules, ip -6, nft, the sysctl, resolv.conf: before and after each.
        self.assertEqual(moments, 2 * 5)
        self.assertEqual(self.shown(), self.before)

    def test_registered_before(self) -> None:
        """Rules, tables and name servers are in the journal on the disk before they are made."""
        seen = []

        def about_to(change: str) -> None:
            with open(child.journal_path, encoding="utf-8") as stream:
                seen.append([record["step"]["kind"] for record in json.load(stream)["records"]])

        child = self.new_child(Watched(self.world.system, about_to))
        child.apply(FULL)
        self.assertIn("rule", seen[0])
        self.assertNotIn("firewall", seen[0])
        self.assertIn("firewall", seen[2])
        with open(child.journal_path, encoding="utf-8") as stream:
            last = json.load(stream)["records"][-1]
        self.assertEqual(last["step"]["kind"], "name-servers")
        self.assertIn("192.0.2.53", json.dumps(last["before"]))

    def test_kill_switch_outlives(self) -> None:
        """The kill switch stays when a later state does not name it, and after the undo."""
        self.child.apply(SystemState(kill_switch=SWITCH))
        self.assertEqual(killswitch.standing(self.world.system), "client-home")
        self.assertEqual(self.child.applied.journal.records, [])
        self.child.apply(FULL)
        self.child.applied.undo_all()
        self.assertEqual(killswitch.standing(self.world.system), "client-home")
        self.assertIn("nft table inet pyvpn-kill-switch {", self.lines())
        killswitch.lift(self.world.system)
        self.assertEqual(self.shown(), self.before)

    def test_kill_switch_changes(self) -> None:
        """Its owner replaces it; it stands before anything else, and also if all else fails."""
        self.child.apply(SystemState(kill_switch=SWITCH))
        other = KillSwitch("client-home", "leamit0", (5052,))
        wrong = SystemState(links=(Link("nowhere0", 1416),), kill_switch=other)
        error = self.assertRaises(ChangeFailed, self.child.apply, wrong)
        self.assertIn("no interface nowhere0", str(error))
        shown = self.shown()
        self.assertIn("5052", shown)
        self.assertNotIn("5051", shown)

    def test_kill_switch_set_again(self) -> None:
        """One that was lifted meanwhile is set again by the same state."""
        self.child.apply(SystemState(kill_switch=SWITCH))
        killswitch.lift(self.world.system)
        self.child.apply(SystemState(kill_switch=SWITCH))
        self.assertEqual(killswitch.standing(self.world.system), "client-home")

    def test_kill_switch_of_another(self) -> None:
        """One that another client has set is left alone; the error names it, nothing is changed."""
        self.child.apply(SystemState(kill_switch=SWITCH))
        before = self.shown()
        mine = evolve(FULL, kill_switch=KillSwitch("client-work", "leamit0"))
        error = self.assertRaises(ChangeFailed, self.child.apply, mine)
        self.assertIn("the kill switch of client-home stands", str(error))
        self.assertEqual(self.shown(), before)

    def test_dead_ends_without_ipv6(self) -> None:
        """Where IPv6 is off on the TUN, what was to go through it goes nowhere, not around it."""
        self.world.without_ipv6()
        before = self.shown()
        both = evolve(FULL, routes=(Route("0.0.0.0/0", "leamit0", T), Route("::/0", "leamit0", T)))
        log = self.child.apply(both)
        self.assertIn("note: IPv6 is off on leamit0: ::/0 is not reachable at all", log)
        self.assertStands([f"route ::/0 unreachable table {T}"])
        self.assertEqual(self.rules(), ["-4", "-6"])
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), before)


class FakePromises(Promises, SynchronousTestCase):
    """On the fake."""

    def make_world(self) -> World:
        return FakeWorld()

    def test_no_nft(self) -> None:
        """Without nft a firewall that only guards is left out with a note, said once; all that
        would let through what it must not is an error that names the package."""
        assert isinstance(self.world, FakeWorld)
        self.world.linux.nft.installed = False
        log = self.child.apply(FULL)
        self.assertEqual(
            [line for line in log if line.startswith("note:")],
            [
                "note: going on without table inet pyvpn-leamit0: "
                "nft -f -: nft is not installed (package nftables)"
            ],
        )
        self.assertStands([line for line in FULL_LINES if "nft" not in line])
        self.assertEqual(self.child.apply(FULL), [])
        before = self.shown()
        hub = HubFirewall("leamit0", ("10.10.0.0/24",))
        plain = self.child.apply(evolve(FULL, firewall=hub))
        self.assertEqual(len(plain), 1)
        for wanted in (
            evolve(FULL, kill_switch=SWITCH),
            evolve(FULL, firewall=HubFirewall("leamit0", ("10.10.0.0/24",), internet=True)),
            evolve(FULL, firewall=HubFirewall("leamit0", (), client_to_client=False)),
            evolve(FULL, firewall=HubFirewall("leamit0", (), reachable=("10.1.0.0/16",))),
            evolve(FULL, firewall=ClientFirewall("leamit0", shared=("10.1.0.0/16",))),
        ):
            error = self.assertRaises(ChangeFailed, self.child.apply, wanted)
            self.assertEqual(error.stderr, "nft is not installed (package nftables)")
            self.assertEqual(self.shown(), before)
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)
        self.assertEqual(files_in(self.directory), [])

    def test_kernel_without_fib(self) -> None:
        """What the kernel refuses of nftables is quoted in one line: as a note where only a guard
        is missed, as an error elsewhere; a guard that stood before is gone then."""
        assert isinstance(self.world, FakeWorld)
        self.child.apply(evolve(FULL, firewall=HubFirewall("leamit0", ("10.10.0.0/24",))))
        self.world.linux.nft.refuse = "fib"
        log = self.child.apply(FULL)
        said = [line for line in log if line.startswith("note:")]
        self.assertEqual(len(said), 1)
        self.assertIn("Could not process rule: No such file or directory", said[0])
        self.assertIn("fib daddr", said[0])
        self.assertNotIn("^", said[0])
        self.assertNotIn("pyvpn-leamit0", self.shown())
        shared = ClientFirewall(
            "leamit0", ("10.10.0.2",), (5051,), ("10.1.0.0/16",), ("10.10.0.0/24",)
        )
        before = self.shown()
        error = self.assertRaises(ChangeFailed, self.child.apply, evolve(FULL, firewall=shared))
        self.assertIn("Could not process rule", error.stderr)
        self.assertEqual(self.shown(), before)

    def test_nft_says_nothing(self) -> None:
        """A table is not forgotten because nft is away for a while."""
        assert isinstance(self.world, FakeWorld)
        self.child.apply(FULL)
        self.world.linux.nft.installed = False
        self.assertEqual(self.child.apply(FULL), [])
        self.world.linux.nft.installed = True
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_nft_gone_before_the_undo(self) -> None:
        """A table that cannot be removed is said and stays in the journal; all else goes."""
        assert isinstance(self.world, FakeWorld)
        self.child.apply(FULL)
        self.world.linux.nft.installed = False
        log = self.child.applied.undo_all()
        self.assertEqual(len([line for line in log if line.startswith("note:")]), 1)
        kinds = [record.step.kind for record in self.child.applied.journal.records]
        self.assertEqual(kinds, ["firewall"])
        self.world.linux.nft.installed = True
        later = As(self.world.system, "boot:2:2", {"boot:2:2"})
        self.child.repaired_by(later)
        self.assertEqual(self.shown(), self.before)


class KernelPromises(Promises, SynchronousTestCase):
    """On the kernel, in a namespace."""

    def make_world(self) -> World:
        return KernelWorld()
