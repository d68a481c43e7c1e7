"""The privileged child as a process of its own, in a namespace: how it ends above all."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import CommandFailed, StartError
from pyvpn.linux import privsep
from pyvpn.linux.desired import Address, Link, SystemState
from pyvpn.linux.privsep import Answer, PrivilegedChild, cleanup
from pyvpn.linux.system import LinuxSystem
from pyvpn.testing.linux import render
from tests.linux.worlds import KernelWorld, files_in, own_directory

HUB = SystemState(
    links=(Link("leamit0", 1416, (Address("10.10.0.1/24"), Address("fd00:1::1/64")), 61_700),),
    sysctls={"net/ipv6/conf/all/forwarding": "1", "net/ipv4/ip_forward": "1"},
)

SERVICE = """
import sys
from pyvpn.linux.desired import Address, Link, Route, Rule, SystemState
from pyvpn.linux.firewall import ClientFirewall, HubFirewall, KillSwitch
from pyvpn.linux.nameservers import NameServers
from pyvpn.linux.privsep import PrivilegedChild
from pyvpn.linux.tun import open_tun
tun = open_tun("leamit0")
child = PrivilegedChild(sys.argv[1], sys.argv[2])
child.start()
child.apply({state!r})
print(child.pid, flush=True)
sys.stdin.read()
"""
"""What a service is to the child: it holds the TUN and the socket, and waits to be killed."""

PATIENCE = 20.0
"""Seconds; the bound of every wait here."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for ``condition``, looking often."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE} s for {what}")
        time.sleep(0.005)


def running(pid: int) -> bool:
    """Is there a process with that number which has not ended? (A zombie has.)"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] not in ("Z", "X")


class RealChild(SynchronousTestCase):
    """Each test has a namespace, a directory for the journal and one for the ledger."""

    def setUp(self) -> None:
        self.world = KernelWorld()
        self.addCleanup(self.world.close)
        self.directory = own_directory(self)
        self.journal = os.path.join(self.directory, "server.journal")
        self.ledger = os.path.join(self.directory, "ledger")

    def shown(self) -> str:
        return render(self.world.system)

    def start(self) -> PrivilegedChild:
        child = PrivilegedChild(self.journal, self.ledger)
        self.addCleanup(child.close)
        with self.world.namespace.inside():
            child.start()
        return child

    def start_service(self) -> tuple[subprocess.Popen[str], int]:
        """A service process with its child; the child's pid."""
        script = SERVICE.format(state=HUB)
        with self.world.namespace.inside():
            service = subprocess.Popen(
                [sys.executable, "-c", script, self.journal, self.ledger],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        assert service.stdin is not None
        assert service.stdout is not None
        self.addCleanup(service.wait, PATIENCE)
        self.addCleanup(service.stdin.close)
        self.addCleanup(service.stdout.close)
        self.addCleanup(service.kill)
        return service, int(service.stdout.readline())

    def cleanup(self) -> list[str]:
        with self.world.namespace.inside():
            return cleanup(self.directory, self.ledger)

    def test_apply_and_close(self) -> None:
        """A child applies, and when it is closed undoes all, says what, and leaves no file."""
        self.world.add_tun("leamit0")
        before = self.shown()
        child = self.start()
        commands = child.apply(HUB)
        self.assertIn("ip address add 10.10.0.1/24 dev leamit0", commands)
        for line in ("address 10.10.0.1/24 on leamit0", "gso_max_size 61700 on leamit0"):
            self.assertIn(line, self.shown().splitlines())
        self.assertEqual(child.apply(HUB), [])
        pid = child.pid
        assert pid is not None
        self.assertTrue(running(pid))
        self.assertIn("ip address delete 10.10.0.1/24 dev leamit0", child.close())
        self.assertEqual(child.close(), [])
        self.assertIsNone(child.pid)
        self.assertFalse(running(pid))
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])

    def test_without_waiting(self) -> None:
        """A begun request is answered on a descriptor, once, with its number; apply() goes on."""
        self.world.add_tun("leamit0")
        child = self.start()
        self.assertEqual(child.take_answers(), [])
        first = child.begin(HUB)
        refused = child.begin(SystemState((Link("nowhere0", 1416),)))
        answers: list[Answer] = []
        while len(answers) < 2:
            self.assertTrue(select.select([child.fileno()], [], [], PATIENCE)[0])
            answers += child.take_answers()
        self.assertEqual([answer.number for answer in answers], [first, refused])
        self.assertIn("ip address add 10.10.0.1/24 dev leamit0", answers[0].commands)
        self.assertIsNone(answers[0].error)
        self.assertEqual(answers[1].commands, [])
        self.assertIn("no interface nowhere0", str(answers[1].error))
        self.assertEqual(child.take_answers(), [])
        child.apply(HUB)
        child.close()
        self.assertEqual(child.fileno(), -1)
        for use in (lambda: child.begin(HUB), child.take_answers):
            error = self.assertRaises(StartError, use)
            self.assertEqual(str(error), "the privileged child is not running")

    def test_failed_apply(self) -> None:
        """A refused change comes as CommandFailed with the command, and the child goes on."""
        self.world.add_tun("leamit0")
        child = self.start()
        before = self.shown()
        with self.assertRaises(CommandFailed) as caught:
            child.apply(SystemState((Link("nowhere0", 1416),)))
        self.assertEqual(
            caught.exception.argv, ("ip", "link", "set", "dev", "nowhere0", "mtu", "1416")
        )
        self.assertIn("no interface nowhere0", str(caught.exception))
        self.assertEqual(self.shown(), before)
        child.apply(HUB)
        self.assertIn("address 10.10.0.1/24 on leamit0", self.shown())

    def test_refused_request(self) -> None:
        """What the VPN does not need is refused by the child itself."""
        child = self.start()
        with self.assertRaises(CommandFailed) as caught:
            child.apply(SystemState(sysctls={"kernel/core_pattern": "|/bin/sh"}))
        self.assertIn("is not one that the VPN needs", str(caught.exception))

    def test_service_killed(self) -> None:
        """After kill -9 of the service its child undoes everything and removes the journal."""
        before = self.shown()
        service, pid = self.start_service()
        self.assertIn("address 10.10.0.1/24 on leamit0", self.shown())
        self.assertEqual(files_in(self.directory)[-1], "server.journal")
        service.kill()
        wait_until(lambda: not running(pid), "the child's end")
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])
        self.assertEqual(self.cleanup(), [])

    def test_both_killed(self) -> None:
        """After kill -9 of both, cleanup repairs from the journal, says what, and then nothing."""
        before = self.shown()
        service, pid = self.start_service()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pid), "the child's end")
        service.kill()
        service.wait(PATIENCE)
        self.assertNotEqual(self.shown(), before)
        said = self.cleanup()
        self.assertIn("sysctl net/ipv4/ip_forward=0", said)
        self.assertIn(f"{self.journal} removed: its process {pid} ended without undoing", said)
        self.assertEqual(self.shown(), before)
        self.assertEqual(files_in(self.directory), [])
        self.assertEqual(self.cleanup(), [])

    def test_cleanup_leaves_the_living_alone(self) -> None:
        """Cleanup beside a running service finds nothing to repair and changes nothing."""
        service, pid = self.start_service()
        during = self.shown()
        self.assertEqual(self.cleanup(), [])
        self.assertEqual(self.shown(), during)
        self.assertTrue(running(pid))
        service.kill()
        wait_until(lambda: not running(pid), "the child's end")

    def test_start_after_both_were_killed(self) -> None:
        """The next start repairs first, so that in the end the oldest values are back."""
        before = self.shown()
        service, pid = self.start_service()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pid), "the child's end")
        service.kill()
        service.wait(PATIENCE)
        again, pid = self.start_service()
        again.kill()
        wait_until(lambda: not running(pid), "the child's end")
        self.assertEqual(self.shown(), before)

    def test_signals(self) -> None:
        """The child outlives SIGINT and SIGHUP, and on SIGTERM undoes all and ends."""
        self.world.add_tun("leamit0")
        before = self.shown()
        child = self.start()
        child.apply(HUB)
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
        self.assertEqual(child.apply(HUB), [])
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not running(pid), "the child's end")
        self.assertEqual(self.shown(), before)
        with self.assertRaises(StartError) as caught:
            child.apply(HUB)
        self.assertIn("the privileged child has ended", str(caught.exception))
        child.close()

    def test_second_child_on_one_journal(self) -> None:
        """A second child on the journal of a living one is refused, and disturbs nothing."""
        self.world.add_tun("leamit0")
        child = self.start()
        child.apply(HUB)
        during = self.shown()
        with self.assertRaises(StartError) as caught:
            self.start()
        self.assertIn(f"is in use by process {child.pid};", str(caught.exception))
        self.assertEqual(self.shown(), during)

    def test_no_run_directory(self) -> None:
        """A journal that cannot be written is an error that names it and the option."""
        child = PrivilegedChild("/proc/nowhere/server.journal", self.ledger)
        with self.assertRaises(StartError) as caught:
            child.start()
        self.assertIn("/proc/nowhere/server.journal", str(caught.exception))
        self.assertIn("--run-dir", str(caught.exception))
        self.assertIsNone(child.pid)

    def test_no_answer(self) -> None:
        """A child that does not answer is an error after a bounded wait, not a hang."""
        child = self.start()
        pid = child.pid
        assert pid is not None
        self.patch(privsep, "ANSWER_TIMEOUT", 0.05)
        os.kill(pid, signal.SIGSTOP)
        with self.assertRaises(StartError) as caught:
            child.apply(HUB)
        self.assertIn("gave no answer within", str(caught.exception))
        self.assertIn("did not end", child.close()[-1])
        self.assertFalse(running(pid))

    def test_without_privilege(self) -> None:
        """A child without privilege changes nothing and says which command was refused."""
        self.world.add_tun("leamit0")
        before = self.shown()
        child = PrivilegedChild(
            self.journal,
            self.ledger,
            prefix=("setpriv", "--bounding-set=-net_admin"),
        )
        self.addCleanup(child.close)
        with self.world.namespace.inside():
            child.start()
        with self.assertRaises(CommandFailed) as caught:
            child.apply(HUB)
        self.assertIn("Operation not permitted", str(caught.exception))
        self.assertEqual(self.shown(), before)


class TheChildAlone(SynchronousTestCase):
    """What can be said about the child without privilege."""

    def test_only_the_standard_library(self) -> None:
        """The child loads nothing but the standard library and our own modules below linux."""
        script = (
            "import sys; before = set(sys.modules)\n"
            "import pyvpn.linux.privileged\n"
            "names = {name.split('.')[0] for name in sys.modules}\n"
            "print(*sorted(names - set(sys.stdlib_module_names) - {'__main__'}))\n"
            "print(*sorted(name for name in sys.modules if name.startswith('pyvpn')))\n"
        )
        root = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({root!r})\n{script}"],
            capture_output=True,
            text=True,
            check=True,
        )
        foreign, ours = done.stdout.splitlines()
        self.assertEqual(foreign, "pyvpn")
        self.assertEqual(
            [name for name in ours.split() if not name.startswith("pyvpn.linux.")],
            ["pyvpn", "pyvpn.files", "pyvpn.linux"],
        )
        self.assertNotIn("pyvpn.linux.tun", ours)

    def test_missing_interpreter(self) -> None:
        """A child that cannot even be started is a StartError."""
        directory = own_directory(self)
        with mock.patch.object(sys, "executable", "/nowhere/python"):
            child = PrivilegedChild(os.path.join(directory, "server.journal"), directory)
        with self.assertRaises(StartError):
            child.start()

    def test_cleanup_of_nothing(self) -> None:
        """Without a run directory there is nothing to clean up."""
        self.assertEqual(cleanup("/nowhere/at/all"), [])

    def test_claims(self) -> None:
        """A process is alive by its claim; the same number with another start or boot is not."""
        system = LinuxSystem()
        claim = system.claim()
        boot, pid, started = claim.split(":")
        self.assertTrue(system.alive(claim))
        self.assertFalse(system.alive(f"{boot}:{pid}:{int(started) + 1}"))
        self.assertFalse(system.alive(f"other:{pid}:{started}"))
        for nonsense in ("", ":", "::", f"{boot}::", f"{boot}:{pid}:", f"{boot}:x:{started}"):
            self.assertFalse(system.alive(nonsense))
        ended = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
        )
        assert ended.stdin is not None
        stat = (
            Path(f"/proc/{ended.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        )
        claim = f"{boot}:{ended.pid}:{stat[19]}"
        self.assertTrue(system.alive(claim))
        ended.stdin.close()
        wait_until(lambda: not system.alive(claim), "the end of a process")
        ended.wait(PATIENCE)
