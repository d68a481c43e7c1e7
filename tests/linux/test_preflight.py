"""The checks before anything starts: a table of bad machines and the line that each earns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import ConfigError, StartError
from pyvpn.linux import preflight
from pyvpn.linux.system import Completed
from pyvpn.testing.linux import FakeLinux
from tests.linux.worlds import KernelWorld, own_directory
from tests.tx.namespace import Namespace


class SubnetPromises:
    """Overlaps, on a fake and on the kernel."""

    def make_world(self) -> KernelWorld | None:
        raise NotImplementedError

    def setUp(self) -> None:
        world = self.make_world()
        if world is None:
            self.system = FakeLinux()
            self.system.add_link("eth0")
            self.ip = lambda line: self.system.run(["ip", "-batch", "-"], line + "\n")
        else:
            self.addCleanup(world.close)
            self.system = world.system
            self.ip = world.ip
            self.ip("tuntap add dev eth0 mode tun")
        for line in (
            "link set dev eth0 up",
            "address add 192.168.7.9/16 dev eth0",
            "address add fd00:7::9/64 dev eth0",
            "route add 10.20.30.0/24 dev eth0",
            "route add fd00:8::/64 dev eth0",
            "route add 10.0.0.0/8 dev eth0",
        ):
            self.ip(line)

    def test_free(self) -> None:
        """A network apart from all others is free, also below a wider route."""
        preflight.subnet_free([ip_network("10.10.0.0/24"), ip_network("fd00:9::/64")], self.system)

    def test_taken(self) -> None:
        """A network that overlaps an interface or holds a route is refused, naming that."""
        for network, line in (
            (
                "192.168.0.0/24",
                "192.168.0.0/24 overlaps 192.168.7.9/16 of interface eth0;"
                " choose another network with --subnet",
            ),
            (
                "192.0.0.0/8",
                "192.0.0.0/8 overlaps 192.168.7.9/16 of interface eth0;"
                " choose another network with --subnet",
            ),
            (
                "fd00:7::/112",
                "fd00:7::/112 overlaps fd00:7::9/64 of interface eth0;"
                " choose another network with --subnet6",
            ),
            (
                "127.0.0.0/24",
                "127.0.0.0/24 overlaps 127.0.0.1/8 of interface lo;"
                " choose another network with --subnet",
            ),
            (
                "10.20.0.0/16",
                "10.20.0.0/16 overlaps the route to 10.20.30.0/24 (eth0);"
                " choose another network with --subnet",
            ),
            (
                "fd00:8::/64",
                "fd00:8::/64 overlaps the route to fd00:8::/64 (eth0);"
                " choose another network with --subnet6",
            ),
        ):
            with self.assertRaises(ConfigError) as caught:
                preflight.subnet_free([ip_network(network)], self.system)
            self.assertEqual(str(caught.exception), line)


class SubnetOnTheFake(SubnetPromises, SynchronousTestCase):
    """On the fake."""

    def make_world(self) -> KernelWorld | None:
        return None


class SubnetOnTheKernel(SubnetPromises, SynchronousTestCase):
    """On the kernel, in a namespace."""

    def make_world(self) -> KernelWorld | None:
        return KernelWorld()

    def test_blackhole(self) -> None:
        """A route to nowhere inside our network draws packets away as well."""
        self.ip("route add blackhole 10.10.0.128/25")
        with self.assertRaises(ConfigError) as caught:
            preflight.subnet_free([ip_network("10.10.0.0/24")], self.system)
        self.assertIn("overlaps the route to 10.10.0.128/25", str(caught.exception))


class WithoutIP(FakeLinux):
    """A machine on which ip(8) is not installed."""

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        return Completed(127, "", "ip is not installed (package iproute2)")


class Checks(SynchronousTestCase):
    """What needs no privilege."""

    def test_no_ip_command(self) -> None:
        """Without iproute2 the error names the package."""
        with self.assertRaises(StartError) as caught:
            preflight.subnet_free([ip_network("10.10.0.0/24")], WithoutIP())
        self.assertIn("package iproute2", str(caught.exception))

    def test_tun_available(self) -> None:
        """A missing node is an error with the remedy; a node that opens is none."""
        directory = own_directory(self)
        with self.assertRaises(StartError) as caught:
            preflight.tun_available(os.path.join(directory, "tun"))
        self.assertIn("modprobe tun", str(caught.exception))
        preflight.tun_available("/dev/null")

    def test_privileged(self) -> None:
        """CAP_NET_ADMIN among the effective capabilities decides, not the user id."""
        proc = own_directory(self)
        Path(proc, "self").mkdir()
        status = Path(proc, "self", "status")
        status.write_text("Name:\tx\nCapEff:\t0000000000001000\n", encoding="ascii")
        preflight.privileged(proc)
        status.write_text("Name:\tx\nCapEff:\tffffffffffffefff\n", encoding="ascii")
        with self.assertRaises(StartError) as caught:
            preflight.privileged(proc)
        self.assertEqual(
            str(caught.exception),
            "no privilege to set up interfaces (CAP_NET_ADMIN); start as root, with sudo",
        )

    def test_tun_name_free(self) -> None:
        """A name that an interface has is refused, another one is not."""
        with self.assertRaises(StartError) as caught:
            preflight.tun_name_free("lo")
        self.assertIn("an interface named lo exists already", str(caught.exception))
        preflight.tun_name_free(f"pv{os.getpid()}")

    def test_udp_port(self) -> None:
        """A port in use is refused, for all addresses and for one; it is free afterwards."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]
            for interface in (None, "127.0.0.1"):
                with self.assertRaises(StartError) as caught:
                    preflight.udp_port_free(port, interface)
                self.assertEqual(
                    str(caught.exception),
                    f"UDP port {port} is in use by another program;"
                    " choose another with --port, or stop it",
                )
        preflight.udp_port_free(port)
        preflight.udp_port_free(port, "127.0.0.1")
        preflight.udp_port_free(0)

    def test_foreign_address(self) -> None:
        """An address that this machine has not is refused under the option's name."""
        with self.assertRaises(ConfigError) as caught:
            preflight.udp_port_free(0, "192.0.2.77")
        self.assertEqual(
            str(caught.exception),
            "--interface: 192.0.2.77 is not an address of this machine; 'ip address' lists them",
        )

    def test_ipv6_available(self) -> None:
        """Without the files, or with disable_ipv6 for all or for new interfaces, there is none."""
        proc = own_directory(self)
        self.assertFalse(preflight.ipv6_available(proc))
        for all_value, default_value in (("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")):
            for name, value in (("all", all_value), ("default", default_value)):
                path = Path(proc, "sys/net/ipv6/conf", name, "disable_ipv6")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(value + "\n", encoding="ascii")
            self.assertEqual(
                preflight.ipv6_available(proc), (all_value, default_value) == ("0", "0")
            )

    def test_writable(self) -> None:
        """A directory that is there or can be made passes, and nothing is made by the check."""
        directory = own_directory(self)
        preflight.writable(directory)
        preflight.writable(os.path.join(directory, "a", "b"))
        self.assertEqual(os.listdir(directory), [])
        blocking = Path(directory, "file")
        blocking.touch()
        for path in (blocking, blocking / "below"):
            with self.assertRaises(StartError) as caught:
                preflight.writable(path)
            self.assertIn(f"{blocking} is not a directory", str(caught.exception))
        with self.assertRaises(StartError) as caught:
            preflight.writable("/proc/sys/pyvpn")
        self.assertIn("cannot write to /proc/sys", str(caught.exception))


class OnTheKernel(SynchronousTestCase):
    """The same on the kernel, in a namespace."""

    def setUp(self) -> None:
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)

    def test_privilege(self) -> None:
        """Root passes the check, and a process that has given root up does not."""
        preflight.privileged()
        script = (
            "import os, sys; from pyvpn.linux import preflight\n"
            "from pyvpn.errors import StartError\n"
            "preflight.privileged()\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: preflight.privileged()\n"
            "except StartError as error: sys.exit(str(error))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        self.assertIn("no privilege to set up interfaces", done.stderr)

    def test_without_ipv6(self) -> None:
        """With IPv6 off in the namespace it is not available, and a port can still be checked."""
        with self.namespace.inside():
            self.assertTrue(preflight.ipv6_available())
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")
            self.assertFalse(preflight.ipv6_available())
            preflight.udp_port_free(5050)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("0.0.0.0", 5050))
                with self.assertRaises(StartError):
                    preflight.udp_port_free(5050)
