"""Which sysctls a hub asks for, from what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.desired import SystemState
from pyvpn.linux.forwarding import hub_sysctls
from pyvpn.testing.linux import render
from tests.linux.worlds import As, Child, KernelWorld, own_directory


class HubSysctls(SynchronousTestCase):
    """On a /proc of files."""

    def setUp(self) -> None:
        self.proc = own_directory(self)

    def put(self, key: str, value: str) -> None:
        path = Path(self.proc, "sys", key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n", encoding="ascii")

    def interface(self, name: str, accept_ra: str, forwarding: str, disable: str = "0") -> None:
        for leaf, value in (
            ("accept_ra", accept_ra),
            ("forwarding", forwarding),
            ("disable_ipv6", disable),
        ):
            self.put(f"net/ipv6/conf/{name}/{leaf}", value)

    def test_with_both_families(self) -> None:
        """Forwarding in both families, no redirects, and uplinks keep their advertisements."""
        for name in ("all", "default", "lo", "eth0", "eth1.100"):
            self.interface(name, "1", "0")
        self.assertEqual(
            list(hub_sysctls("leamit0", self.proc).items()),
            [
                ("net/ipv6/conf/eth0/accept_ra", "2"),
                ("net/ipv6/conf/eth1.100/accept_ra", "2"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/leamit0/send_redirects", "0"),
                ("net/ipv4/ip_forward", "1"),
            ],
        )

    def test_which_interfaces_count_as_uplinks(self) -> None:
        """Only where advertisements were accepted so far, or by another hub's doing still are."""
        self.interface("all", "1", "0")
        for name, accept_ra, forwarding, disable, wanted in (
            ("accepts", "1", "0", "0", True),
            ("never", "0", "0", "0", False),
            ("forwards", "1", "1", "0", False),
            ("kept", "2", "1", "0", True),
            ("without6", "1", "0", "1", False),
            ("leamit0", "1", "0", "0", False),
        ):
            self.interface(name, accept_ra, forwarding, disable)
            named = f"net/ipv6/conf/{name}/accept_ra" in hub_sysctls("leamit0", self.proc)
            self.assertEqual(named, wanted, name)

    def test_without_ipv6(self) -> None:
        """Without IPv6, or with IPv6 switched off, its part is missing and the rest is there."""
        for prepare in (lambda: None, lambda: self.interface("all", "1", "0", "1")):
            prepare()
            keys = list(hub_sysctls("leamit0", self.proc))
            self.assertEqual([key for key in keys if "ipv6" in key], [])
            self.assertEqual(len(keys), 3)


class OnTheKernel(SynchronousTestCase):
    """In a namespace with an uplink."""

    def setUp(self) -> None:
        self.world = KernelWorld()
        self.addCleanup(self.world.close)
        self.world.ip("link add up0 type veth peer name up1")
        self.world.add_tun("leamit0")
        self.directory = own_directory(self)

    def wanted(self, tun: str) -> SystemState:
        with self.world.namespace.inside():
            # /proc/self is the process's main thread, /proc/sys the calling thread's namespace.
            return SystemState(sysctls=hub_sysctls(tun))

    def test_on_and_off(self) -> None:
        """What a hub asks for is accepted, comes about, and goes back to what was."""
        before = render(self.world.system)
        child = Child(self.world.system, self.directory)
        child.apply(self.wanted("leamit0"))
        shown = render(self.world.system)
        for line in (
            "net/ipv6/conf/up0/accept_ra = 2",
            "net/ipv6/conf/up0/forwarding = 1",
            "net/ipv4/conf/up0/forwarding = 1",
            "net/ipv4/conf/leamit0/send_redirects = 0",
        ):
            self.assertIn(line, shown.splitlines())
        child.apply(evolve(self.wanted("leamit0"), sysctls={}))
        self.assertEqual(render(self.world.system), before)

    def test_two_hubs(self) -> None:
        """While a second hub runs, the end of the first changes nothing but its own interface."""
        self.world.remove_tun("leamit0")
        before = render(self.world.system)
        living = {"boot:10:1", "boot:20:1"}
        children = []
        for name, claim in (("leamit0", "boot:10:1"), ("leamit1", "boot:20:1")):
            self.world.add_tun(name)
            child = Child(As(self.world.system, claim, living), self.directory, name)
            child.apply(self.wanted(name))
            children.append(child)
        during = render(self.world.system)
        children[0].applied.undo_all()
        redirects = "net/ipv4/conf/leamit0/send_redirects = "
        self.assertEqual(
            render(self.world.system), during.replace(f"{redirects}0", f"{redirects}1")
        )
        children[1].applied.undo_all()
        self.world.remove_tun("leamit0")
        self.world.remove_tun("leamit1")
        self.assertEqual(render(self.world.system), before)
        self.assertEqual(os.listdir(self.directory), [])
