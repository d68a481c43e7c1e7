"""Hub and client as people run them, and what may befall a client."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from tests.netns.lab import PORT, Process
from tests.netns.processes import wait_until
from tests.scenes.ends import Failed, expect
from tests.scenes.networks.lab import VPN_NAME, NetworksLab

KILL_SWITCH = "pyvpn-kill-switch"


class Hub:
    """``twistd -n pyvpn-server`` on the host ``hub``, and its users.

    :ivar options: those it is started with.
    :ivar endpoint: what invitations say.
    """

    def __init__(self, lab: NetworksLab, *options: str, endpoint: str = VPN_NAME) -> None:
        self.lab = lab
        self.options = options
        self.endpoint = endpoint
        self._process: Process | None = None
        lab.pyvpn("hub", "init", "--endpoint", f"{endpoint}:{PORT}")
        lab.web("hub", "hub")

    def start(self) -> Hub:
        """Start it; it answers ``pyvpn`` when this returns."""
        directories = self.lab.directories("hub", "--state-dir", "--run-dir")
        argv = [str(self.lab.tool("twistd")), "-n", "pyvpn-server", *directories, *self.options]
        self._process = self.lab.spawn("hub", argv, "pyvpn-server")

        def answers() -> bool:
            return self.lab.pyvpn("hub", "status", check=False).returncode == 0

        self._process.wait_until(answers, "an answer to 'pyvpn status' on the hub", 15)
        return self

    def stop(self) -> None:
        """End it."""
        assert self._process is not None
        self._process.stop()

    def kill(self) -> None:
        """``kill -9`` of the service; its child has ended too when this returns."""
        assert self._process is not None
        pids = [self._process.pid, *children(self._process.pid)]
        self._process.popen.kill()
        self._process.popen.wait()
        wait_until(lambda: not any(map(alive, pids)), "the end of the hub's child", 20)

    def invite(self, user: str) -> str:
        """Add a user; the link."""
        secret = self.lab.home("hub") / f"password-{user}"
        secret.write_text(password(user))
        secret.chmod(0o600)
        self.lab.pyvpn("hub", "user", "add", user, "--pw-file", str(secret))
        invitation = self.lab.pyvpn("hub", "invite", user).stdout
        link = re.search(r"pyvpn://\S+", invitation)
        expect(link, f"'pyvpn invite {user}' printed no link: {invitation!r}")
        assert link is not None
        return link[0]


class Client:
    """A profile on a host, with the user's password in a file: ``pyvpn up`` and ``pyvpn down``.

    :ivar user: the user's name, and the profile's.
    :param at: the address of the hub's that it is to use, in place of the endpoint.
    """

    def __init__(self, hub: Hub, host: str, user: str, at: str | None = None) -> None:
        self.lab = hub.lab
        self.host = host
        self.user = user
        self._known: list[int] = []
        secret = self.lab.home(host) / f"password-{user}"
        secret.write_text(password(user))
        secret.chmod(0o600)
        words = ("--name", user, "--pw-file", str(secret))
        link = hub.invite(user).replace(f"@{hub.endpoint}", f"@{at or hub.endpoint}", 1)
        self.lab.pyvpn(host, "join", link, *words)

    def up(self, *options: str) -> None:
        """Start it in the background; `options` are those of ``twistd pyvpn-client``."""
        words = ("up", self.user, "--", *options)
        done = self.lab.pyvpn(self.host, *words, check=False, seconds=60)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise Failed(
                f"'pyvpn {' '.join(words)}' ended with {done.returncode}: {said}{self.log()}"
            )

    def log(self, lines: int = 12) -> str:
        """The end of its log, to be put after a line that says what is wrong."""
        shown = self.lab.pyvpn(self.host, "logs", self.user, check=False).stdout
        return "".join(f"\n| {line}" for line in shown.splitlines()[-lines:])

    def down(self) -> None:
        """``pyvpn down``."""
        self.lab.pyvpn(self.host, "down", self.user, seconds=60)
        expect(not self._pids(), "the client still runs after 'pyvpn down'")

    def cleanup(self, *options: str) -> str:
        """``pyvpn cleanup``; what it says."""
        return self.lab.pyvpn(self.host, "cleanup", *options).stdout

    def end(self) -> None:
        """SIGTERM, as a system that shuts down sends it."""
        self._send(signal.SIGTERM, self._pids()[:1])
        self._gone()

    def kill(self, *, with_child: bool) -> None:
        """``kill -9`` of the service, or of it and its child at once; nothing of it runs any more
        when this returns."""
        pids = self._pids()
        expect(len(pids) >= 2, f"the client has no child: {pids}")
        if with_child:
            # Stopped first, so that none of them has a moment to notice.
            self._send(signal.SIGSTOP, pids)
        self._send(signal.SIGKILL, pids if with_child else pids[:1])
        self._gone()

    def suspend(self, seconds: float) -> None:
        """As a machine does that sleeps: nothing of the client runs for a while."""
        pids = self._pids()
        self._send(signal.SIGSTOP, pids)
        try:
            # There is nothing to wait for but the time.
            time.sleep(seconds)
        finally:
            self._send(signal.SIGCONT, pids)

    def has_kill_switch(self) -> bool:
        """Whether one stands on the host, whoever runs."""
        return KILL_SWITCH in self.lab.run(self.host, ["nft", "list", "tables"], check=True).stdout

    def _pids(self) -> list[int]:
        """The service's and its descendants', it first; [] if it does not run."""
        try:
            service = int(
                (self.lab.home(self.host) / "run" / f"client-{self.user}.pid").read_text()
            )
        except (FileNotFoundError, ValueError):
            return []
        found = [service] if alive(service) else []
        for pid in found:
            found += [each for each in children(pid) if alive(each)]
        self._known = found or self._known
        return found

    def _send(self, how: int, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, how)

    def _gone(self) -> None:
        wait_until(lambda: not any(alive(pid) for pid in self._known), "the end of the client", 20)


def password(user: str) -> str:
    """A user's password in these scenes."""
    return f"{user} has a long password"


def alive(pid: int) -> bool:
    """Whether a process is more than an entry that its parent has yet to take note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return found
