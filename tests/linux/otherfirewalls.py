"""ufw, firewalld and Docker's rules, for real, in a namespace: with files of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

from tests.tx.namespace import Namespace

BOUND = 20.0
"""Seconds that one command may take, or firewalld to start: it takes 0.7 s on an idle machine."""

# All may do all; nobody else reaches the socket.
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow send_type="method_call"/><allow send_type="signal"/><allow send_requested_reply="true"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/>
<allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>
"""

# What dockerd 24 writes at its start, as iptables-save shows it, but for the rules of its own nets.
_DOCKER = """
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-ISOLATION-STAGE-2
-N DOCKER-USER
-P FORWARD DROP
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
"""


class OtherFirewall:
    """A place for a firewall of somebody else's: a namespace, and copies of its files.

    :raises SkipTest: one of ``programs`` is not installed.
    """

    programs: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()

    def __init__(self, namespace: Namespace) -> None:
        for program in self.programs:
            if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
                raise SkipTest(f"{program} is not installed")
        self.namespace = namespace
        self._files = tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-")
        for directory in ("/run", *self.directories):
            copy = Path(self._files + directory)
            if directory == "/run":
                (copy / "dbus").mkdir(parents=True)
                (copy / "lock").mkdir()
            else:
                shutil.copytree(directory, copy)

    def _inside(self, command: str) -> list[str]:
        """The command in a mount namespace of its own, in which its files are the copies."""
        mounts = "".join(
            f"mount --bind {self._files}{directory} {directory} && "
            for directory in ("/run", *self.directories)
        )
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{mounts}exec {command}"]

    def run(self, command: str, check: bool = True) -> str:
        """What the command printed."""
        with self.namespace.inside():
            done = subprocess.run(
                self._inside(command), capture_output=True, text=True, timeout=BOUND, check=False
            )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout} {done.stderr}")
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """A program that stays."""
        with self.namespace.inside():
            return subprocess.Popen(
                self._inside(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def close(self) -> None:
        """End it, and remove the copies; the rules go with the namespace."""
        shutil.rmtree(self._files)


class UFW(OtherFirewall):
    """ufw as Debian and Ubuntu have it, switched on."""

    programs = ("ufw", "iptables")
    directories = ("/etc/ufw", "/etc/default")

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace)
        try:
            self.run("ufw --force enable")
        except BaseException:
            self.close()
            raise


class Firewalld(OtherFirewall):
    """firewalld with a bus of its own, as Fedora has it: the uplink is in the zone ``public``."""

    programs = ("firewalld", "firewall-cmd", "dbus-daemon")
    directories = ("/etc/firewalld",)

    def __init__(self, namespace: Namespace, uplink: str) -> None:
        super().__init__(namespace)
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            Path(self._files, "run", "bus.conf").write_text(_BUS, encoding="ascii")
            socket = Path(self._files, "run", "dbus", "system_bus_socket")
            bus = self.start("dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile")
            self._processes.append(bus)
            _wait(socket.exists, "the bus")
            self._processes.append(self.start("firewalld --nofork --nopid"))
            _wait(lambda: "running" in self.run("firewall-cmd --state", check=False), "firewalld")
            self.run(f"firewall-cmd --zone=public --change-interface={uplink}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(BOUND)
        super().close()


class Docker(OtherFirewall):
    """Docker's rules, written with iptables as dockerd does."""

    programs = ("iptables-nft",)

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace)
        try:
            for line in _DOCKER.split("\n"):
                if line:
                    self.run(f"iptables-nft {line}")
        except BaseException:
            self.close()
            raise


def _wait(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND
    while not there():
        if time.monotonic() > deadline:
            raise SkipTest(f"{what} does not start here")
        time.sleep(0.05)
