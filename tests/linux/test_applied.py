"""Desired state on a fake and on the kernel: the same promises on both."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.applied import repair_journal, take_journal
from pyvpn.linux.desired import Address, Link, Route, SystemState
from pyvpn.linux.journal import JournalError
from pyvpn.linux.ledger import PROC_SYS
from pyvpn.linux.system import ChangeFailed, Completed, System
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

HUB = SystemState(
    links=(Link("leamit0", 1416, (Address("10.10.0.1/24"), Address("fd00:1::1/64"))),),
    routes=(Route("10.20.0.0/16", "leamit0"), Route("fd00:2::/64", "leamit0")),
    sysctls={
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/conf/all/send_redirects": "0",
        "net/ipv4/conf/leamit0/send_redirects": "0",
        "net/ipv4/ip_forward": "1",
    },
)
CLIENT_LINK = Link("leamit0", 1416, (Address("10.10.0.2/24", "10.10.0.1"),))

HUB_LINES = """\
link leamit0 up mtu 1416
address 10.10.0.1/24 on leamit0
address fd00:1::1/64 on leamit0
route 10.10.0.0/24 on leamit0
route 10.20.0.0/16 on leamit0
route fd00:1::/64 on leamit0
route fd00:2::/64 on leamit0
net/ipv4/conf/all/accept_redirects = 0
net/ipv4/conf/all/forwarding = 1
net/ipv4/conf/all/send_redirects = 0
net/ipv4/conf/leamit0/forwarding = 1
net/ipv4/conf/leamit0/send_redirects = 0
net/ipv6/conf/all/forwarding = 1
net/ipv6/conf/leamit0/addr_gen_mode = 1""".splitlines()

#: What ip(8) says where it does not know the word, and where the kernel refuses.
OLD_IP = (
    Completed(255, "", 'Error: either "dev" is duplicate, or "gso_max_size" is a garbage.'),
    Completed(1, "", "RTNETLINK answers: Operation not supported\nCommand failed -:1\n"),
)


class WithoutGSOMaxSize:
    """A system whose ip(8), or whose kernel, knows nothing of gso_max_size."""

    def __init__(self, system: System, says: Completed) -> None:
        self._system = system
        self._says = says

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        if "gso_max_size" in stdin:
            return self._says
        done = self._system.run(argv, stdin)
        return done._replace(stdout=done.stdout.replace("gso_max_size", "other"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)


class Promises:
    """The tests; a subclass says in which world."""

    def make_world(self) -> World:
        raise NotImplementedError

    def setUp(self) -> None:
        self.world = self.make_world()
        self.addCleanup(self.world.close)
        self.directory = own_directory(self)
        self.world.add_tun("leamit0")
        self.child = Child(self.world.system, self.directory)
        self.before = self.shown()

    def shown(self) -> str:
        return render(self.world.system)

    def lines(self) -> list[str]:
        return self.shown().splitlines()

    def test_what_is_desired_comes_about(self) -> None:
        """Addresses, routes, MTU and sysctls of a hub are on the system after one apply."""
        self.child.apply(HUB)
        shown = self.lines()
        self.assertEqual([line for line in HUB_LINES if line not in shown], [])

    def test_empty_means_gone(self) -> None:
        """An empty state takes all back, also what the kernel had changed along with ours."""
        self.child.apply(HUB)
        self.assertNotEqual(self.shown(), self.before)
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_twice_is_harmless(self) -> None:
        """The same state again runs no command at all."""
        self.assertNotEqual(self.child.apply(HUB), [])
        once = self.shown()
        self.assertEqual(self.child.apply(HUB), [])
        self.assertEqual(self.shown(), once)

    def test_another_address(self) -> None:
        """A changed address replaces the old one, and the routes over the link survive that."""
        self.child.apply(HUB)
        moved = evolve(HUB.links[0], addresses=(Address("10.10.0.9/24"), HUB.links[0].addresses[1]))
        self.child.apply(evolve(HUB, links=(moved,)))
        shown = self.lines()
        self.assertNotIn("address 10.10.0.1/24 on leamit0", shown)
        for line in HUB_LINES:
            self.assertIn(line.replace("10.10.0.1/", "10.10.0.9/"), shown)

    def test_first_of_two_addresses_goes(self) -> None:
        """Removing the first address of a subnet keeps its second, which the kernel takes along."""
        both = (Address("10.10.0.1/24"), Address("10.10.0.5/24"))
        self.child.apply(SystemState((Link("leamit0", 1416, both),)))
        self.child.apply(SystemState((Link("leamit0", 1416, both[1:]),)))
        addresses = [line for line in self.lines() if line.startswith("address 10.")]
        self.assertEqual(addresses, ["address 10.10.0.5/24 on leamit0"])

    def test_peer_address(self) -> None:
        """The seed's --tun-dstaddr is the other end, with the whole subnet behind it."""
        self.child.apply(SystemState((CLIENT_LINK,)))
        shown = self.lines()
        self.assertIn("address 10.10.0.2/24 peer 10.10.0.1 on leamit0", shown)
        self.assertIn("route 10.10.0.0/24 on leamit0", shown)
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_mtu_alone(self) -> None:
        """A new MTU does not take addresses or routes away, not even for a moment."""
        self.child.apply(HUB)
        log = self.child.apply(evolve(HUB, links=(evolve(HUB.links[0], mtu=1300),)))
        self.assertEqual([line for line in log if "mtu" not in line], [])
        self.assertIn("link leamit0 up mtu 1300", self.lines())
        self.assertEqual([line for line in HUB_LINES[1:] if line not in self.lines()], [])
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_gso_size(self) -> None:
        """A link gets the bound of super-packets that is wished for; without the wish it is as
        before, and neither takes its addresses away."""
        wish = "gso_max_size 61700 on leamit0"
        for most in (61_700, None):
            log = self.child.apply(evolve(HUB, links=(evolve(HUB.links[0], gso_max_size=most),)))
            self.assertEqual([line for line in HUB_LINES if line not in self.lines()], [])
            self.assertEqual(wish in self.lines(), most is not None)
        self.assertEqual(log, ["ip link set dev leamit0 gso_max_size 65536"])
        self.child.apply(evolve(HUB, links=(evolve(HUB.links[0], gso_max_size=61_700),)))
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_segments_refused(self) -> None:
        """Where ip(8) or the kernel does not know that wish, all else comes about; it is said once,
        and a later state does not try it again."""
        wishing = evolve(HUB, links=(evolve(HUB.links[0], gso_max_size=61_700),))
        for says in OLD_IP:
            child = Child(WithoutGSOMaxSize(self.world.system, says), own_directory(self))
            notes = [line for line in child.apply(wishing) if line.startswith("note:")]
            self.assertEqual(
                notes,
                [
                    "note: going on without this: ip link set dev leamit0 gso_max_size 61700: "
                    + says.stderr.splitlines()[0]
                ]
                if "Command failed" in says.stderr
                else [f"note: going on without this: ip -batch -: {says.stderr}"],
            )
            self.assertEqual([line for line in HUB_LINES if line not in self.lines()], [])
            self.assertEqual(child.apply(wishing), [])
            lower = evolve(wishing.links[0], mtu=1300)
            self.assertEqual(
                child.apply(evolve(wishing, links=(lower,))),
                ["ip link set dev leamit0 mtu 1500", "ip link set dev leamit0 mtu 1300"],
            )
            child.applied.undo_all()
            self.assertEqual(self.shown(), self.before)

    def test_failure_in_the_middle_of_the_first_apply(self) -> None:
        """When a change is refused, everything is as before the call, and the error quotes it."""
        self.world.ip("address add 10.99.0.1/24 dev leamit0")
        before = self.shown()
        taken = evolve(HUB.links[0], addresses=(*HUB.links[0].addresses, Address("10.99.0.1/24")))
        with self.assertRaises(ChangeFailed) as caught:
            self.child.apply(evolve(HUB, links=(taken,)))
        self.assertEqual(" ".join(caught.exception.argv), "ip address add 10.99.0.1/24 dev leamit0")
        # The words are the kernel's: "RTNETLINK answers: File exists" before Linux 6.
        self.assertRegex(caught.exception.stderr, "already assigned|File exists")
        self.assertEqual(self.shown(), before)
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), before)

    def test_failure_in_the_middle_of_a_change(self) -> None:
        """When a change of an existing state is refused, that state stands again."""
        self.child.apply(HUB)
        before = self.shown()
        wrong = evolve(CLIENT_LINK, addresses=(*CLIENT_LINK.addresses, Address("10.10.0.3/24")))
        bad = SystemState((wrong,), (Route("10.10.0.0/24", "leamit0"),))
        with self.assertRaises(ChangeFailed):
            self.child.apply(bad)
        self.assertEqual(sorted(self.lines()), sorted(before.splitlines()))
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), self.before)

    def test_only_tun_interfaces(self) -> None:
        """An interface that is no TUN is not touched, whatever the service asks for."""
        with self.assertRaises(ChangeFailed) as caught:
            self.child.apply(SystemState((Link("lo", 1416, (Address("10.10.0.1/24"),)),)))
        self.assertIn("not a TUN interface", caught.exception.stderr)
        self.assertEqual(self.shown(), self.before)

    def test_no_such_interface(self) -> None:
        """A link that is not there is an error that names it."""
        with self.assertRaises(ChangeFailed) as caught:
            self.child.apply(SystemState((Link("other0", 1416),)))
        self.assertIn("no interface other0", caught.exception.stderr)

    def test_ipv6_off(self) -> None:
        """Where IPv6 is off, its part is left out with a note and the rest works."""
        self.world.without_ipv6()
        before = self.shown()
        log = self.child.apply(HUB)
        shown = self.lines()
        self.assertIn("address 10.10.0.1/24 on leamit0", shown)
        self.assertIn("route 10.20.0.0/16 on leamit0", shown)
        self.assertEqual(
            [line for line in log if line.startswith("note:")],
            [
                "note: IPv6 is off on leamit0: address fd00:1::1/64 left out",
                "note: IPv6 is off on leamit0: route fd00:2::/64 left out",
                "note: IPv6 is off: sysctl net/ipv6/conf/all/forwarding left out",
            ],
        )
        self.child.apply(SystemState())
        self.assertEqual(self.shown(), before)

    def test_device_made_anew(self) -> None:
        """When the TUN was closed and opened again, the same state is applied to the new one."""
        self.child.apply(HUB)
        self.world.remove_tun("leamit0")
        self.world.add_tun("leamit0")
        self.assertNotIn("address 10.10.0.1/24 on leamit0", self.lines())
        self.child.apply(HUB)
        shown = self.lines()
        self.assertEqual([line for line in HUB_LINES if line not in shown], [])

    def test_undo_after_the_device_has_gone(self) -> None:
        """After a killed service its TUN is gone already: sysctls go back, the journal goes."""
        self.world.remove_tun("leamit0")
        before = self.shown()
        self.world.add_tun("leamit0")
        self.child.apply(HUB)
        self.world.remove_tun("leamit0")
        self.assertNotEqual(self.shown(), before)
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])

    def test_a_value_that_was_so_before_stays(self) -> None:
        """Forwarding that was on before the hub is on after it."""
        self.world.system.write(f"{PROC_SYS}/net/ipv4/ip_forward", "1")
        before = self.shown()
        log = self.child.apply(HUB)
        self.assertNotIn("sysctl net/ipv4/ip_forward=1", log)
        self.child.applied.undo_all()
        self.assertEqual(self.shown(), before)
        self.assertIn("net/ipv4/conf/all/forwarding = 1", before)

    def test_a_value_that_somebody_else_set_stays(self) -> None:
        """What the administrator changed while we ran is not ours to restore."""
        self.child.apply(HUB)
        self.world.system.write(f"{PROC_SYS}/net/ipv4/conf/all/send_redirects", "1")
        self.world.system.write(f"{PROC_SYS}/net/ipv4/ip_forward", "0")
        self.world.system.write(f"{PROC_SYS}/net/ipv4/conf/all/accept_redirects", "0")
        log = self.child.applied.undo_all()
        self.assertIn(
            "note: sysctl net/ipv4/ip_forward is 0 now, set by somebody else: left alone", log
        )
        self.assertIn("net/ipv4/conf/all/accept_redirects = 0", self.lines())

    def test_one_interface_that_forwarded_before(self) -> None:
        """Restoring the switch for all keeps the interface that forwarded on its own before."""
        self.world.system.write(f"{PROC_SYS}/net/ipv4/conf/lo/forwarding", "1")
        before = self.shown()
        self.child.apply(HUB)
        self.child.applied.undo_all()
        self.assertIn("net/ipv4/conf/lo/forwarding = 1", before)
        self.assertEqual(self.shown(), before)

    def test_two_hubs_on_one_machine(self) -> None:
        """The first hub to stop leaves forwarding on for the other, the last one restores it."""
        living = {"boot:10:1", "boot:20:1"}
        first = Child(As(self.world.system, "boot:10:1", living), self.directory, "first")
        second = Child(As(self.world.system, "boot:20:1", living), self.directory, "second")
        shared = SystemState(sysctls={"net/ipv4/ip_forward": "1"})
        first.apply(shared)
        second.apply(shared)
        log = first.applied.undo_all()
        self.assertEqual(log, ["note: sysctl net/ipv4/ip_forward stays 1: process 20 needs it"])
        self.assertIn("net/ipv4/conf/all/forwarding = 1", self.lines())
        second.applied.undo_all()
        self.assertEqual(self.shown(), self.before)
        self.assertEqual(files_in(self.directory), [])

    def test_second_hub_inherits_from_a_dead_one(self) -> None:
        """A hub that starts after another was killed restores what was before the killed one."""
        living = {"boot:10:1", "boot:20:1"}
        first = Child(As(self.world.system, "boot:10:1", living), self.directory, "first")
        shared = SystemState(sysctls={"net/ipv4/ip_forward": "1"})
        first.apply(shared)
        living.remove("boot:10:1")
        second = Child(As(self.world.system, "boot:20:1", living), self.directory, "second")
        second.apply(shared)
        repaired = repair_journal(first.journal_path, second.system, second.ledger_directory)
        self.assertIn("first.journal removed", repaired[-1])
        self.assertIn("net/ipv4/conf/all/forwarding = 1", self.lines())
        second.applied.undo_all()
        self.assertEqual(self.shown(), self.before)

    def test_undo_is_registered_before_each_change(self) -> None:
        """Before a command runs or a sysctl is written, the journal on the disk names it."""
        seen = []

        def about_to(change: str) -> None:
            with open(child.journal_path, encoding="utf-8") as stream:
                steps = [record["step"] for record in json.load(stream)["records"]]
            for line in change.splitlines():
                key, _, value = line.partition("=")
                registered = [
                    step
                    for step in steps
                    if (step["kind"] == "sysctl" and (step["key"], step["value"]) == (key, value))
                    or (step["kind"] == "address" and f"address add {step['interface']}" in line)
                    or (step["kind"] == "route" and f"route add {step['destination']}" in line)
                    or (step["kind"] == "mtu" and f"mtu {step['mtu']}" in line)
                    or (step["kind"] == "quiet" and "addrgenmode" in line)
                    or (step["kind"] == "up" and line.endswith(" up"))
                ]
                self.assertEqual(len(registered), 1, line)
                seen.append(line)

        child = Child(Watched(self.world.system, about_to), self.directory)
        child.apply(HUB)
        self.assertEqual(len(seen), 7 + len(HUB.sysctls))

    def test_killed_at_each_change(self) -> None:
        """Killed right before or right after any change, the repair from the journal undoes all."""
        moments = 2 * (1 + len(HUB.sysctls))
        for survived in range(moments):
            left = [survived]

            def moment(change: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1

            child = Child(Watched(self.world.system, moment, moment), self.directory)
            with self.assertRaises(Killed):
                child.apply(HUB)
            later = As(self.world.system, "boot:2:2", {"boot:2:2"})
            repair_journal(child.journal_path, later, child.ledger_directory)
            self.assertEqual(self.shown(), self.before, f"killed after {survived} moments")
            self.assertEqual(files_in(self.directory), [])
        self.child.apply(HUB)
        self.assertNotEqual(self.shown(), self.before)

    def test_start_repairs_first(self) -> None:
        """A new child repairs what a killed one left, so that it learns the true old values."""
        self.child.apply(HUB)
        later = As(self.world.system, "boot:2:2", {"boot:2:2"})
        applied, log = take_journal(self.child.journal_path, later, self.child.ledger_directory)
        self.assertEqual(self.shown(), self.before)
        self.assertIn("sysctl net/ipv4/ip_forward=0", log)
        self.assertEqual(applied.undo_all(), [])
        self.assertEqual(files_in(self.directory), [])

    def test_journal_of_a_living_child(self) -> None:
        """A journal whose process lives is not touched: the error names the process."""
        self.child.apply(HUB)
        before = self.shown()
        with self.assertRaises(JournalError) as caught:
            take_journal(self.child.journal_path, self.world.system, self.child.ledger_directory)
        self.assertIn("is in use by process 1;", str(caught.exception))
        self.assertEqual(self.shown(), before)


class FakePromises(Promises, SynchronousTestCase):
    """On the fake."""

    def make_world(self) -> World:
        return FakeWorld()

    def test_refused_sysctl(self) -> None:
        """A sysctl that cannot be written (a read-only /proc/sys) undoes the whole apply.

        On the fake alone: a namespace's own /proc/sys cannot be made read-only for us.
        """
        assert isinstance(self.world, FakeWorld)
        self.world.linux.refuse = "net/ipv4/ip_forward"
        with self.assertRaises(ChangeFailed) as caught:
            self.child.apply(HUB)
        self.assertEqual(caught.exception.argv, ["sysctl", "net/ipv4/ip_forward=1"])
        self.assertEqual(caught.exception.stderr, "Operation not permitted")
        self.assertEqual(self.shown(), self.before)

    def test_each_line_refused_in_turn(self) -> None:
        """Whichever of the ip commands is refused, the system is as before and says which.

        On the fake alone: the kernel has no reason to refuse most of them.
        """
        assert isinstance(self.world, FakeWorld)
        self.child.apply(HUB)
        lines = [line[3:] for line in self.world.linux.commands if line.startswith("ip ")]
        self.child.apply(SystemState())
        self.assertEqual(len(lines), 7)
        for line in lines:
            self.world.linux.refuse = line
            with self.assertRaises(ChangeFailed) as caught:
                self.child.apply(HUB)
            self.assertEqual(caught.exception.argv, ["ip", *line.split()])
            self.assertEqual(self.shown(), self.before)

    def test_journal_of_another_namespace(self) -> None:
        """A journal of a namespace that still exists is refused, one of a lost namespace goes."""
        assert isinstance(self.world, FakeWorld)
        self.child.apply(HUB)
        before = self.shown()
        elsewhere = As(self.world.linux, "boot:2:2", {"boot:2:2"})
        elsewhere.namespace = lambda: "boot:namespace:2"  # type: ignore[attr-defined]
        with self.assertRaises(JournalError):
            repair_journal(self.child.journal_path, elsewhere, self.child.ledger_directory)
        elsewhere.namespace_exists = lambda name: False  # type: ignore[attr-defined]
        log = repair_journal(self.child.journal_path, elsewhere, self.child.ledger_directory)
        self.assertIn("the network namespace it belongs to is gone", log[0])
        self.assertEqual(files_in(self.directory), [])
        self.assertEqual(self.shown(), before)

    def test_damaged_journal(self) -> None:
        """A journal that is not ours is an error that names the file, and stays."""
        other = {"step": {"kind": "firewall", "firewall": {"kind": "client"}}, "before": {}}
        whole = {"version": 1, "claim": "boot:3:3", "namespace": "x", "records": [other]}
        wrong = ("", "{", "[]", '{"version": 2}', '{"version": 1, "records": 7}')
        for text in (*wrong, json.dumps(whole)):
            with open(self.child.journal_path, "w", encoding="utf-8") as stream:
                stream.write(text)
            with self.assertRaises(JournalError) as caught:
                repair_journal(
                    self.child.journal_path, self.world.system, self.child.ledger_directory
                )
            self.assertIn(self.child.journal_path, str(caught.exception))
            self.assertEqual(files_in(self.directory), ["server.journal"])

    def test_foreign_journal(self) -> None:
        """A journal that others can write, or a link to one, is not carried out; ours is."""
        self.child.apply(HUB)
        during = self.shown()
        path = self.child.journal_path
        later = As(self.world.system, "boot:2:2", {"boot:2:2"})
        os.chmod(path, 0o666)
        with self.assertRaises(JournalError) as caught:
            repair_journal(path, later, self.child.ledger_directory)
        self.assertIn("others may write it", str(caught.exception))
        os.chmod(path, 0o600)
        os.rename(path, path + ".real")
        os.symlink(path + ".real", path)
        with self.assertRaises(JournalError):
            repair_journal(path, later, self.child.ledger_directory)
        self.assertEqual(self.shown(), during)
        os.replace(path + ".real", path)
        repair_journal(path, later, self.child.ledger_directory)
        self.assertEqual(self.shown(), self.before)

    def test_links_in_the_run_directory(self) -> None:
        """Links that the service's user left in the run directory lead nowhere."""
        target = os.path.join(self.directory, "target")
        with open(target, "w", encoding="utf-8") as stream:
            stream.write("untouched")
        os.symlink(target, self.child.journal_path + ".new")
        self.child.apply(HUB)
        with open(target, encoding="utf-8") as stream:
            self.assertEqual(stream.read(), "untouched")
        self.assertFalse(os.path.islink(self.child.journal_path))

    def test_journal_cannot_be_written(self) -> None:
        """Nothing is changed when no undo can be registered."""
        child = Child(self.world.system, "/dev/null")
        with self.assertRaises(JournalError) as caught:
            child.apply(HUB)
        self.assertIn("--run-dir", str(caught.exception))
        self.assertEqual(self.shown(), self.before)


class KernelPromises(Promises, SynchronousTestCase):
    """On the kernel, in a namespace."""

    def make_world(self) -> World:
        return KernelWorld()
