"""Who has a port: read from a /proc of files, and from the real one."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from pyvpn.linux.portowner import port_owner

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def line(local: str, state: str, inode: int) -> str:
    """A line of /proc/net/udp or tcp."""
    return f"  1: {local} 0:0 {state} 0:0 00:00000000 00000000     0        0 {inode} 2 0 0\n"


class RecordedTests(SynchronousTestCase):
    def setUp(self) -> None:
        if sys.byteorder == "big":
            raise SkipTest("the tables were recorded on a little-endian machine")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.proc = Path(directory.name)
        (self.proc / "net").mkdir()
        for pid, name, inode in ((71, "dnsmasq", 500), (712, "named", 501), (8, "sshd", 502)):
            (self.proc / str(pid) / "fd").mkdir(parents=True)
            (self.proc / str(pid) / "comm").write_text(name + "\n")
            (self.proc / str(pid) / "fd" / "4").symlink_to(f"socket:[{inode}]")
            (self.proc / str(pid) / "fd" / "5").symlink_to("/dev/null")

    def owner(self, address: str, **tables: str) -> str | None:
        for name, text in tables.items():
            (self.proc / "net" / name).write_text(HEAD + text)
        return port_owner(address, 53, str(self.proc))

    def test_nobody(self) -> None:
        """No table, other ports and addresses, and connections from port 53 are nobody."""
        self.assertIsNone(self.owner("10.10.0.1"))
        others = line("01000A0A:0036", "07", 500) + line("02000A0A:0035", "07", 500)
        connection = line("01000A0A:0035", "01", 500)
        self.assertIsNone(self.owner("10.10.0.1", udp=others, tcp=connection))

    def test_found(self) -> None:
        """A socket of the address or of all, of either family, names its program."""
        all6, one6 = "0" * 32 + ":0035", "000000FD000000000000000001000000:0035"
        mapped = "0000000000000000FFFF000001000A0A:0035"
        for address, table, local, state in (
            ("10.10.0.1", "udp", "01000A0A:0035", "07"),
            ("10.10.0.1", "udp", "00000000:0035", "07"),
            ("10.10.0.1", "tcp", "00000000:0035", "0A"),
            ("10.10.0.1", "udp6", all6, "07"),
            ("10.10.0.1", "tcp6", mapped, "0A"),
            ("fd00::1", "udp6", one6, "07"),
            ("fd00::1", "tcp6", all6, "0A"),
        ):
            found = self.owner(address, **{table: line(local, state, 501)})
            self.assertEqual(found, "named, pid 712", (address, table, local))
            (self.proc / "net" / table).unlink()

    def test_hidden(self) -> None:
        """A socket of a program that does not show is nobody's."""
        self.assertIsNone(self.owner("10.10.0.1", udp=line("00000000:0035", "07", 999)))


class RealTests(SynchronousTestCase):
    def test_own_socket(self) -> None:
        """Our own socket is found to be ours, and after it was closed nobody's."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            owner = port_owner("127.0.0.1", port)
            assert owner is not None
            self.assertTrue(owner.endswith(f", pid {os.getpid()}"), owner)
        self.assertIsNone(port_owner("127.0.0.1", port))
