"""The laboratory itself: what the demo, the tests and the benchmarks rely on, without a VPN."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.netns import lab as laboratory
from tests.netns.lab import HOSTS, Lab, LabError, built_for
from tests.netns.namespaces import named


def _alive(pid: int) -> bool:
    """Whether a process is more than an entry that its parent has yet to take note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class LabTests(SynchronousTestCase):
    """One lab, its wires, counters, captures and servers."""

    def setUp(self) -> None:
        self.lab = built_for(self)

    def test_hosts_reach_each_other_outside(self) -> None:
        """Every host's outer address, IPv4 and IPv6, answers every other host."""
        for one in HOSTS:
            for other in HOSTS:
                for address in (other.ipv4, other.ipv6):
                    answer = self.lab.ping(one.name, address)
                    self.assertEqual(answer.returncode, 0, f"{one.name} {address} {answer}")

    def test_inner_addresses_are_unknown_outside(self) -> None:
        """Without the VPN nothing inside is reachable, so that what is reached went through it."""
        for host in HOSTS:
            for other in HOSTS:
                answer = self.lab.ping(host.name, other.inner4)
                self.assertNotEqual(answer.returncode, 0, f"{host.name} {other.inner4} {answer}")

    def test_own_resolv_conf(self) -> None:
        """Every host has a /etc/resolv.conf of its own, which keeps what is written to it, and
        neither the other hosts nor this machine see that."""
        before = Path("/etc/resolv.conf").read_text()
        kiwi, pa = self.lab.hosts["kiwi"], self.lab.hosts["pa"]
        show = ["cat", "/etc/resolv.conf"]
        self.assertEqual(self.lab.run("kiwi", show).stdout, f"nameserver {kiwi.gateway4}\n")
        self.lab.run("kiwi", ["sh", "-c", "echo changed >/etc/resolv.conf"], check=True)
        self.assertEqual(self.lab.run("kiwi", show).stdout, "changed\n")
        self.assertEqual(self.lab.run("pa", show).stdout, f"nameserver {pa.gateway4}\n")
        self.assertEqual(Path("/etc/resolv.conf").read_text(), before)

    def test_counters(self) -> None:
        """What the hub sends is counted per host and in both families, and what others send each
        other is not; this is the counter of the tests that the hub was silent."""
        silent = (0, 0)
        self.assertEqual(self.lab.count_from_hub(), {"kiwi": silent, "pa": silent})
        self.lab.ping("kiwi", self.lab.hosts["pa"].ipv4, count=2)
        self.assertEqual(self.lab.count_from_hub(), {"kiwi": silent, "pa": silent})
        self.assertEqual(self.lab.count_to_hub(), {"kiwi": silent, "pa": silent})
        self.lab.ping("kiwi", self.lab.hosts["hub"].ipv4, "-s", "72", count=2)
        # 20 bytes of IPv4, 8 of ICMP, 72 of payload
        self.assertEqual(self.lab.count_from_hub(), {"kiwi": (2, 200), "pa": silent})
        self.assertEqual(self.lab.count_to_hub(), {"kiwi": (2, 200), "pa": silent})
        self.lab.ping("pa", self.lab.hosts["hub"].ipv6, "-s", "72", count=1)
        self.assertEqual(self.lab.count_from_hub(), {"kiwi": (2, 200), "pa": (1, 120)})

    def test_counters_see_a_refusal(self) -> None:
        """An ICMP error from the hub counts as well: a closed port is not a silent one."""
        send = (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
            f".sendto(b'x', ('{self.lab.hosts['hub'].ipv4}', 9))"
        )
        self.lab.run("kiwi", ["/usr/bin/env", "python3", "-c", send], check=True)
        self.lab.wait_until(lambda: self.lab.count_from_hub()["kiwi"].packets, "the refusal", 5)

    def test_datagrams_are_counted_not_super_packets(self) -> None:
        """Sixteen datagrams sent in one system call (UDP_SEGMENT) count as sixteen."""
        send = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "s.setsockopt(17, 103, 1000);"
            f"s.sendto(bytes(16000), ('{self.lab.hosts['kiwi'].ipv4}', 9))"
        )
        self.lab.run("hub", ["/usr/bin/env", "python3", "-c", send], check=True)
        self.assertEqual(self.lab.count_from_hub()["kiwi"], (16, 16 * 1028))

    def test_capture(self) -> None:
        """A capture has what passed while it ran, and nothing from before."""
        pa = self.lab.hosts["pa"].ipv4
        self.lab.ping("kiwi", pa, "-p", b"before".hex())
        capture = self.lab.capture("inet", "any", "wire.pcap")
        self.lab.ping("kiwi", pa, "-p", b"during".hex())
        recorded = self.lab.captured(capture)
        self.assertIn(b"during" * 3, recorded)
        self.assertNotIn(b"before", recorded)

    def test_web_and_ssh(self) -> None:
        """The web server and the SSH server of the picture serve both families."""
        pages = self.lab.directory / "pages"
        pages.mkdir()
        (pages / "hello.txt").write_text("hello from kiwi")
        self.lab.start_web("kiwi", pages)
        self.lab.start_ssh("pa")
        kiwi, pa = self.lab.hosts["kiwi"], self.lab.hosts["pa"]
        for address in (kiwi.ipv4, f"[{kiwi.ipv6}]"):
            got = self.lab.run("pa", ["curl", "-sS", f"http://{address}/hello.txt"], check=True)
            self.assertEqual(got.stdout, "hello from kiwi")
        for address in (pa.ipv4, pa.ipv6):
            argv = self.lab.ssh("kiwi", "pa", address, "ip", "-br", "address", "show", "eth0")
            self.assertIn(pa.ipv4, self.lab.run("kiwi", argv, check=True).stdout)

    def test_no_trace_after_close(self) -> None:
        """Closing ends every process, a stopped and a stubborn one too, and leaves no namespace
        and no file; closing again is harmless."""
        directory = self.lab.directory
        stopped = self.lab.spawn("pa", ["sleep", "1000"])
        stopped.popen.send_signal(signal.SIGSTOP)
        orphan = self.lab.spawn("pa", ["sh", "-c", "sleep 1000 & echo $!"])
        orphan.wait()
        programs = (stopped.pid, int(orphan.text()))
        for pid in programs:
            self.assertTrue(_alive(pid), pid)
        prefix = self.lab.namespace("").rstrip("-")
        self.assertEqual(len(list(named(prefix))), 4)
        self.lab.close()
        self.lab.close()
        for pid in programs:
            self.assertFalse(_alive(pid), pid)
        self.assertEqual(list(named(prefix)), [])
        self.assertFalse(directory.exists())

    def test_no_trace_after_a_kill(self) -> None:
        """A process that is killed with its lab up, or ends without closing it, leaves nothing."""
        root = Path(__file__).resolve().parent.parent.parent
        program = (
            "import sys, signal\n"
            "from tests.netns.lab import Lab\n"
            "lab = Lab().__enter__()\n"
            "lab.spawn('pa', ['sleep', '1000'])\n"
            "print(lab.namespace('').rstrip('-'), lab.directory, flush=True)\n"
        )
        for end in ("signal.raise_signal(signal.SIGKILL)", "sys.exit()"):
            argv = [sys.executable, "-c", program + end]
            done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
            prefix, directory = done.stdout.split()
            self.addCleanup(laboratory.remove, prefix)
            self.lab.wait_until(lambda name=prefix: not list(named(name)), f"no {prefix}", 20)
            self.lab.wait_until(lambda name=directory: not Path(name).exists(), "no files", 5)

    def test_keep_and_remove(self) -> None:
        """A kept lab outlives its object and is removed by its name."""
        with Lab() as second:
            prefix = second.keep()
            directory = second.directory
            sleep = second.spawn("pa", ["sleep", "1000"])
        self.addCleanup(laboratory.remove, prefix)
        self.assertTrue(sleep.running or directory.exists())
        self.assertEqual(len(list(named(prefix))), 4)
        laboratory.remove(prefix)
        self.assertEqual(list(named(prefix)), [])
        self.assertFalse(directory.exists())
        self.assertNotEqual(sleep.wait(), 0)

    def test_failures_are_named(self) -> None:
        """A command that fails, a program that ends early and a condition that never comes: each
        is an error that says which and shows what was printed."""
        error = self.assertRaises(LabError, self.lab.run, "pa", ["ls", "/nowhere"], check=True)
        self.assertIn("/nowhere", str(error))
        program = self.lab.spawn("pa", ["sh", "-c", "echo last words; exit 7"])
        error = self.assertRaises(LabError, program.wait_for_text, "never printed", 5)
        self.assertIn("status 7", str(error))
        self.assertIn("last words", str(error))
        error = self.assertRaises(LabError, self.lab.wait_until, lambda: None, "a miracle", 0.05)
        self.assertIn("a miracle", str(error))


class RemoveTests(SynchronousTestCase):
    """Removing by name."""

    def test_only_labs(self) -> None:
        """A name that no lab can have is refused before anything is looked for."""
        for name in ("", "pyvpn", "pyvpn-1", "pyvpn-1-1-hub", "eth0", "../x"):
            self.assertRaises(LabError, laboratory.remove, name)
