"""The laboratory: PyVPN's picture as network namespaces, with real processes in them.

::

      hub 10.10.0.1           kiwi 10.10.0.2           pa 10.10.0.3        inside: leamit0
      (the VPN server)        (a web server)           (an SSH server)
         | eth0                  | eth0                   | eth0
         | 198.51.100.2          | 203.0.113.2            | 192.0.2.2       outside: documentation
         | 2001:db8:1::2         | 2001:db8:2::2          | 2001:db8:3::2   addresses only
         |                       |                        |
         | hub                   | kiwi                   | pa
      ===+=======================+========================+====
      inet: a router with .1 and ::1 of each net; it knows those three nets and nothing else

Everything a lab makes carries this process's pid in its name, is registered for removal before it
is made, and lives in the lab's own namespaces and temporary directory; a resolv.conf for each host
in /etc/netns. Needs root, ``ip``, ``nft``;
Linux only. The demo, the tests and the benchmarks share it. All waiting is on a condition, with a
bound; :class:`LabError` says in one line what did not come about, and shows the logs' ends.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import SkipTest, TestCase

from tests.netns.namespaces import (
    etc_of_links,
    ip,
    named,
    own_etc,
    remove_namespace,
    why_not,
)
from tests.netns.processes import LabError, Process, WaitedTooLong, search_path, wait_until

__all__ = [
    "HOSTS",
    "INET",
    "PORT",
    "TUN",
    "Count",
    "Host",
    "Lab",
    "LabError",
    "Process",
    "Server",
    "WaitedTooLong",
    "built_for",
    "remove",
    "wait_until",
    "why_not",
]

T = TypeVar("T")

INET = "inet"
PORT = 5050
TUN = "leamit0"

#: Runs a program with another /etc. Arguments: that one, where the machine's goes, the command.
OTHER_ETC = 'mount --bind /etc "$2" && mount --bind "$1" /etc && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Host:
    """One machine of the picture: its outer addresses (documentation nets) and its inner one."""

    name: str
    ipv4: str
    gateway4: str
    ipv6: str
    gateway6: str
    inner4: str


HOSTS = (
    Host("hub", "198.51.100.2", "198.51.100.1", "2001:db8:1::2", "2001:db8:1::1", "10.10.0.1"),
    Host("kiwi", "203.0.113.2", "203.0.113.1", "2001:db8:2::2", "2001:db8:2::1", "10.10.0.2"),
    Host("pa", "192.0.2.2", "192.0.2.1", "2001:db8:3::2", "2001:db8:3::1", "10.10.0.3"),
)


class Count(NamedTuple):
    """What an nft counter saw: whole IP packets and their bytes."""

    packets: int
    bytes: int


@dataclass
class Server:
    """The running hub: its process and the directories it was given."""

    process: Process
    state_dir: Path
    run_dir: Path
    passwords: dict[str, str] = field(default_factory=dict)


class Lab:
    """The picture, built on entry and removed on exit.

    :param venv: the virtual environment whose ``twistd`` and ``pyvpn`` run in the hosts; this
        process's own by default.
    :param echo: called with every command line before it runs.

    One process may have several labs, also at the same time.
    """

    _numbers = itertools.count(1)

    def __init__(
        self, venv: Path | None = None, echo: Callable[[str], None] = lambda line: None
    ) -> None:
        self.venv = Path(sys.prefix) if venv is None else venv
        self.hosts: Mapping[str, Host] = {host.name: host for host in HOSTS}
        self.processes: list[Process] = []
        self._prefix = f"pyvpn-{os.getpid()}-{next(self._numbers)}"
        self._echo = echo
        self._undo = contextlib.ExitStack()
        self._directory: Path | None = None
        # A link tells a client whom to ask, and that would be this machine's systemd-resolved.
        self._resolv_conf_is_link = Path("/etc/resolv.conf").is_symlink()
        self._watcher: subprocess.Popen[bytes] | None = None

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        reason = why_not()
        if reason is not None:
            raise LabError(reason)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every namespace and file; harmless twice."""
        atexit.unregister(self.close)
        self._undo.close()

    def keep(self) -> str:
        """Leave all as it is, also after this process; the name that :func:`remove` takes."""
        atexit.unregister(self.close)
        self._end_watcher()
        self._undo.pop_all()
        return self._prefix

    @property
    def directory(self) -> Path:
        """The lab's temporary directory; each host has its own below it."""
        if self._directory is None:
            raise LabError("the lab is not built yet: use it as 'with Lab() as lab'")
        return self._directory

    def namespace(self, host: str) -> str:
        """The network namespace's name as ``ip netns`` knows it."""
        return f"{self._prefix}-{host}"

    # -- programs -----------------------------------------------------------------------------

    def run(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        seconds: float = 30.0,
        check: bool = False,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a host to its end; with `check` a failure is a :class:`LabError`."""
        words = self._enter(host, argv)
        try:
            done = subprocess.run(
                words,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                cwd=self._home(host),
                env=self._environment(env),
                check=False,
            )
        except subprocess.TimeoutExpired:
            shown = shlex.join(map(str, argv))
            raise LabError(f"[{host}] {shown} took more than {seconds:g} s") from None
        if check and done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            shown = shlex.join(map(str, argv))
            raise LabError(f"[{host}] {shown} ended with status {done.returncode}: {said}")
        return done

    def spawn(
        self,
        host: str,
        argv: Sequence[str | Path],
        log: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program in a host; both its streams go to the host's file `log`.log."""
        words = self._enter(host, argv)
        number = len(self.processes)
        path = self._home(host) / f"{log or Path(argv[0]).name}-{number}.log"
        started = time.monotonic()
        with path.open("wb") as stream:
            popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self._home(host),
                env=self._environment(env),
                # The terminal's Ctrl-C is for the laboratory alone, which then ends the rest.
                start_new_session=True,
            )
        process = Process(host, [str(word) for word in argv], popen, path, started)
        self.processes.append(process)
        self._undo.callback(_end, process)
        return process

    def tool(self, name: str) -> Path:
        """A program of the virtual environment under test: ``twistd``, ``pyvpn``."""
        return self.venv / "bin" / name

    def wait_until(self, condition: Callable[[], T | None], what: str, seconds: float = 10.0) -> T:
        """:func:`wait_until`, here so that a test needs the lab alone."""
        return wait_until(condition, what, seconds)

    # -- PyVPN --------------------------------------------------------------------------------

    def start_hub(
        self, users: Mapping[str, str] | None = None, *options: str, seconds: float = 15.0
    ) -> Server:
        """Prepare the hub's state, add `users` (name -> password), start the server, wait until
        it answers on its control socket. `options` go to ``twistd -n pyvpn-server``."""
        home = self._home("hub")
        state, run = home / "state", home / "run"
        server_state = ["--state-dir", str(state), "--run-dir", str(run)]
        self.pyvpn("hub", "init", "--endpoint", f"{self.hosts['hub'].ipv4}:{PORT}")
        for name, password in (users or {}).items():
            self.pyvpn("hub", "user", "add", name, "--pw-file", str(self._secret("hub", password)))
        process = self.spawn(
            "hub",
            [self.tool("twistd"), "-n", "pyvpn-server", *server_state, *options],
            "pyvpn-server",
        )
        control = run / "server.sock"
        process.wait_until(lambda: _answers(control), f"the control socket {control}", seconds)
        return Server(process, state, run, dict(users or {}))

    def join(self, host: str, user: str | None = None, profile: str | None = None) -> str:
        """Invite `user` (the host's name by default) on the hub and join with the link on the
        host; the link."""
        user = user or host
        invitation = self.pyvpn("hub", "invite", user).stdout
        link = re.search(r"pyvpn://\S+", invitation)
        if link is None:
            raise LabError(f"'pyvpn invite {user}' printed no link: {invitation!r}")
        self.pyvpn(host, "join", link[0], "--name", profile or host)
        return link[0]

    def start_client(
        self,
        host: str,
        password: str,
        *options: str,
        profile: str | None = None,
        seconds: float | None = 15.0,
    ) -> Process:
        """Start ``twistd -n pyvpn-client --pw …`` on `host` and wait until the hub answers a ping
        through the tunnel (`seconds` None: do not wait)."""
        process = self.spawn(
            host,
            [
                self.tool("twistd"),
                "-n",
                "pyvpn-client",
                "--pw",
                password,
                "--profile",
                profile or host,
                *self._directories(host, "--profile-dir", "--state-dir", "--run-dir"),
                *options,
            ],
            "pyvpn-client",
        )
        if seconds is not None:
            self.wait_answer(host, self.hosts["hub"].inner4, seconds, process)
        return process

    def pyvpn(
        self, host: str, *arguments: str, check: bool = True, seconds: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the ``pyvpn`` command with the host's own directories."""
        directories = self._directories(host, "--profile-dir", "--state-dir", "--run-dir")
        # Before the arguments, which may have a "--" and options that are not pyvpn's.
        argv = [str(self.tool("pyvpn")), *directories, *arguments]
        return self.run(host, argv, check=check, seconds=seconds)

    # -- what there is to see -----------------------------------------------------------------

    def ping(
        self, host: str, address: str, *options: str, count: int = 1, seconds: float = 5.0
    ) -> subprocess.CompletedProcess[str]:
        """Ping once (or `count` times); the return code tells whether all were answered."""
        how = ["-n", "-c", str(count), "-i", "0.05", "-W", "1"]
        return self.run(host, ["ping", *how, *options, address], seconds=seconds + count)

    def wait_answer(
        self, host: str, address: str, seconds: float = 10.0, process: Process | None = None
    ) -> float:
        """Ping until the first answer; the seconds it took (since `process` was started, if
        given, and it must stay alive)."""
        start = process.started if process else time.monotonic()
        # One short ping after another, since one long ping keeps the source address it began with.
        argv = ["ping", "-n", "-c", "1", "-W", "0.1", address]

        def answered() -> bool:
            return self.run(host, argv, seconds=5).returncode == 0

        what = f"an answer from {address} to {host}"
        if process is None:
            wait_until(answered, what, seconds)
        else:
            process.wait_until(answered, what, seconds)
        return time.monotonic() - start

    def addresses(self, host: str, interface: str = TUN) -> list[IPv4Address | IPv6Address]:
        """The interface's addresses of global scope, IPv4 first; [] when there is none."""
        shown = ip("-n", self.namespace(host), "-json", "address", "show", check=False)
        found: list[IPv4Address | IPv6Address] = []
        for link in json.loads(shown.stdout or "[]"):
            if link.get("ifname") != interface:
                continue
            for entry in link.get("addr_info", ()):
                if entry.get("scope") == "global":
                    kind = IPv4Address if entry["family"] == "inet" else IPv6Address
                    found.append(kind(entry["local"]))
        return sorted(found, key=lambda address: address.version)

    def inner6(self, host: str) -> str:
        """The host's IPv6 address inside the VPN."""
        for address in self.addresses(host):
            if address.version == 6:
                return str(address)
        raise LabError(f"{host}'s {TUN} has no IPv6 address")

    def capture(self, host: str, interface: str, file: str) -> Process:
        """Record an interface (``any`` for all) with tcpdump into the file (see
        :meth:`captured`) of the host's directory until stopped; recording when this returns."""
        path = self._home(host) / file
        tcpdump = shutil.which("tcpdump", path=search_path())
        if tcpdump is None:
            raise LabError("tcpdump is missing (make deps installs it)")
        argv = [tcpdump, "-i", interface, "-n", "-s", "0", "-U", "-B", "32768"]
        process = self.spawn(host, [*argv, "-Z", "root", "-w", path], "tcpdump")
        process.wait_for_text("listening on")
        return process

    def captured(self, process: Process) -> bytes:
        """End a capture and return what it recorded, as the bytes of its file. A capture that
        had to leave packets out is an error: what it does not show would prove nothing."""
        # Interrupted, tcpdump leaves unread what the kernel still holds for it (up to a second's
        # worth): first ask it, again and again, until it has written all that the kernel saw.
        told = r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped"

        def caught_up() -> bool:
            process.popen.send_signal(signal.SIGUSR1)
            told_so_far = re.findall(told, process.text())
            return bool(told_so_far) and told_so_far[-1][0] == told_so_far[-1][1]

        process.wait_until(caught_up, "all packets written", 10)
        process.stop(signal.SIGINT)
        dropped = re.search(r"(\d+) packets? dropped by kernel", process.text())
        if dropped is None or int(dropped[1]):
            raise LabError(f"{process} left packets out: {process.text()!r}")
        return Path(process.argv[-1]).read_bytes()

    def count_from_hub(self) -> dict[str, Count]:
        """What the hub has put on the wire for each host so far, whatever the protocol: a port
        that is silent to strangers sends no ICMP error either."""
        return self._counters("from_hub_to_")

    def count_to_hub(self) -> dict[str, Count]:
        """What each host has put on the wire for the hub so far."""
        return self._counters("to_hub_from_")

    # -- servers of the picture ---------------------------------------------------------------

    def start_web(self, host: str, directory: Path, seconds: float = 10.0) -> Process:
        """Serve `directory` on port 80, IPv4 and IPv6, with Twisted's own web server."""
        argv = [
            str(self.tool("twistd")),
            "-n",
            "--pidfile=web.pid",
            "web",
            "--path",
            str(directory),
        ]
        # One dual-stack socket: "::" takes IPv4 as well.
        process = self.spawn(host, [*argv, "--listen", "tcp:80:interface=\\:\\:"], "web")
        return self._listening(process, 80, seconds)

    def start_ssh(self, host: str, seconds: float = 10.0) -> Process:
        """A real sshd on port 22 with a host key and configuration of its own; :meth:`ssh` has
        the only key that it lets in."""
        sshd = shutil.which("sshd", path=search_path())
        if sshd is None:
            raise LabError("sshd is missing (make deps installs openssh-server)")
        home = self._home(host)
        self._keygen(home / "host_key")
        self._keygen(self._client_key)
        keys = home / "authorized_keys"
        keys.write_text(self._client_key.with_suffix(".pub").read_text())
        keys.chmod(0o600)
        config = home / "sshd_config"
        config.write_text(
            f"HostKey {home / 'host_key'}\nAuthorizedKeysFile {keys}\nPidFile none\n"
            "AllowUsers root\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nStrictModes no\nPrintMotd no\n"
            # Without PAM sshd refuses root where its account is locked, as Ubuntu's is.
            f"UsePAM {'yes' if _root_is_locked() else 'no'}\n"
        )
        # sshd insists on /run/sshd: it gets a /run of its own, seen by nobody else, since
        # 'ip netns exec' has already given it a mount namespace.
        shell = 'mount -t tmpfs -o mode=755 none /run && mkdir /run/sshd && exec "$@"'
        argv = ["/bin/sh", "-c", shell, "sh", sshd, "-D", "-e", "-f", str(config)]
        return self._listening(self.spawn(host, argv, "sshd"), 22, seconds)

    def ssh(self, host: str, server: str, address: str, *command: str) -> list[str]:
        """The argv that runs `command` over SSH from `host` on `server`, which must be the
        sshd that :meth:`start_ssh` started there (its host key is pinned)."""
        known = self._home(host) / "known_hosts"
        key = (self._home(server) / "host_key.pub").read_text()
        known.write_text(f"{server} {key}")
        options = {
            "IdentityFile": str(self._client_key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": server,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "10",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *words, f"root@{address}", *command]

    # -- inside -------------------------------------------------------------------------------

    def _start_watcher(self) -> None:
        """Have the laboratory removed even if this process is killed, or simply ends: trial, for
        one, calls no tearDownClass. The watcher's standard input ends when we do."""
        atexit.register(self.close)
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "tests.netns.lab", self._prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parent.parent.parent,
            start_new_session=True,
        )

    def _end_watcher(self) -> None:
        if self._watcher is not None:
            # Killed before its input is closed, it removes nothing.
            self._watcher.kill()
            self._watcher.wait()
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
            self._watcher = None

    def _build(self) -> None:
        self._undo.callback(self._end_watcher)
        self._start_watcher()
        self._undo.callback(_remove_directory, self)
        self._directory = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-"))
        for name in (INET, *self.hosts):
            self._make_host(name)
        forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        # 'no such net' for every packet: wait_answer() then need not wait for a ping to time out
        refuse = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]
        self._inside(INET, ["sysctl", "-qw", *forward, *refuse])
        for index, host in enumerate(self.hosts.values(), start=101):
            self._cable(host, index)
        self._inside(INET, ["nft", "-f", "-"], stdin=self._counting_rules())

    def _make_host(self, name: str) -> None:
        """A namespace and a directory, with nothing in them yet."""
        (self._directory / name).mkdir(mode=0o700)
        namespace = self.namespace(name)
        self._undo.callback(remove_namespace, namespace)
        self._ip("netns", "add", namespace)
        self._ip("-n", namespace, "link", "set", "lo", "up")
        # A client changes it. Where it points nobody listens, and says so at once.
        host = self.hosts.get(name)
        server = f"nameserver {host.gateway4}\n" if host else ""
        files = {"resolv.conf": server}
        own_etc(namespace, files)
        if self._resolv_conf_is_link:
            etc_of_links(*self._etc(name), files)
        # An IPv6 address that is probed for duplicates cannot be used for its first second.
        self._inside(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])

    def _cable(self, host: Host, index: int) -> None:
        """Join a host to the internet: both ends are made in their namespaces, never outside.

        :param index: of the internet's end, other than the host's: ends of one number look like
            no pair to the kernel, which then takes a second to call the link ready for IPv6.
        """
        inet, own = self.namespace(INET), self.namespace(host.name)
        self._ip(
            *("-n", inet, "link", "add", host.name, "index", str(index), "type", "veth"),
            *("peer", "name", "eth0", "netns", own),
        )
        for namespace, interface, ipv4, ipv6 in (
            (inet, host.name, host.gateway4, host.gateway6),
            (own, "eth0", host.ipv4, host.ipv6),
        ):
            self._ip("-n", namespace, "address", "add", f"{ipv4}/24", "dev", interface)
            self._ip("-n", namespace, "address", "add", f"{ipv6}/64", "dev", interface)
            self._ip("-n", namespace, "link", "set", interface, "up")
        for name, interface in ((INET, host.name), (host.name, "eth0")):
            # A veth passes UDP super-packets on whole: counters would count those, not datagrams.
            if shutil.which("ethtool", path=search_path()):
                argv = ["ethtool", "-K", interface, "tx-udp-segmentation", "off"]
                self.run(name, argv)
        self._ip("-n", own, "route", "add", "default", "via", host.gateway4)
        self._ip("-n", own, "-6", "route", "add", "default", "via", host.gateway6)

    def _counting_rules(self) -> str:
        """An nft table for the internet's router: what goes between the hub and each host."""
        hub = self.hosts["hub"]
        lines = ["table inet lab {"]
        others = [host for host in self.hosts.values() if host is not hub]
        for host in others:
            lines += [
                f"  counter from_hub_to_{host.name} {{}}",
                f"  counter to_hub_from_{host.name} {{}}",
            ]
        # Before the routing decision, so that what cannot be delivered is counted as well.
        lines += ["  chain seen {", "    type filter hook prerouting priority -300;"]
        for host in others:
            name = host.name
            for kind, here, there in (("ip", hub.ipv4, host.ipv4), ("ip6", hub.ipv6, host.ipv6)):
                lines += [
                    f"    iifname hub {kind} daddr {there} counter name from_hub_to_{name}",
                    f"    iifname {name} {kind} daddr {here} counter name to_hub_from_{name}",
                ]
        return "\n".join([*lines, "  }", "}", ""])

    def _counters(self, prefix: str) -> dict[str, Count]:
        shown = self._inside(INET, ["nft", "-j", "list", "counters", "table", "inet", "lab"])
        entries = (entry.get("counter") for entry in json.loads(shown.stdout)["nftables"])
        return {
            entry["name"].removeprefix(prefix): Count(entry["packets"], entry["bytes"])
            for entry in entries
            if entry is not None and entry["name"].startswith(prefix)
        }

    def _listening(self, process: Process, port: int, seconds: float) -> Process:
        """Wait until something listens on the TCP port in the process's namespace."""

        def listens() -> bool:
            for table in ("tcp", "tcp6"):
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines():
                        words = line.split()
                        if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                            return True
            return False

        process.wait_until(listens, f"a listener on TCP port {port}", seconds)
        return process

    @property
    def _client_key(self) -> Path:
        return self.directory / "client_key"

    def _keygen(self, path: Path) -> None:
        if not path.exists():
            how = ["-q", "-t", "ed25519", "-N", "", "-C", "pyvpn-lab"]
            self._inside(INET, ["ssh-keygen", *how, "-f", str(path)])

    def _secret(self, host: str, text: str) -> Path:
        """A file with one line, readable by root alone, in the host's directory."""
        descriptor, name = tempfile.mkstemp(prefix="secret-", dir=self._home(host))
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text + "\n")
        return Path(name)

    def _directories(self, host: str, *options: str) -> list[str]:
        home = self._home(host)
        places = {"--profile-dir": "profiles", "--state-dir": "state", "--run-dir": "run"}
        return [word for name in options for word in (name, str(home / places[name]))]

    def _home(self, host: str) -> Path:
        return self.directory / host

    def _enter(self, host: str, argv: Sequence[str | Path]) -> list[str]:
        words = [str(word) for word in argv]
        self._echo(f"[{host}] {shlex.join(words)}")
        inside = ["ip", "netns", "exec", self.namespace(host)]
        if self._resolv_conf_is_link:
            inside += ["/bin/sh", "-c", OTHER_ETC, "sh", *map(str, self._etc(host))]
        return [*inside, *words]

    def _etc(self, host: str) -> tuple[Path, Path]:
        """The host's /etc, and where its machine's is seen, where resolv.conf is a link."""
        return self._home(host) / "own-etc", self._home(host) / "etc-beneath"

    def _inside(
        self, host: str, argv: Sequence[str | Path], stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(host, argv, check=True, stdin=stdin)

    def _ip(self, *words: str) -> None:
        self._echo(f"ip {shlex.join(words)}")
        ip(*words)

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """Plain surroundings: what is set for the developer must not decide a test."""
        plain = {
            "PATH": f"{self.venv / 'bin'}:{search_path()}",
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
        }
        return {**plain, **(more or {})}


def built_for(case: TestCase, **options: Any) -> Lab:
    """A lab for a test, removed after it. Where none can be built the test is skipped with the
    reason, or fails with it when PYVPN_REQUIRE_NETNS=1."""
    reason = why_not()
    if reason is not None:
        kind = case.failureException if os.environ.get("PYVPN_REQUIRE_NETNS") == "1" else SkipTest
        raise kind(reason)
    lab = Lab(**options)
    case.addCleanup(lab.close)
    return lab.__enter__()


def remove(prefix: str) -> None:
    """Remove a lab that :meth:`Lab.keep` left: its processes, namespaces and files."""
    if not re.fullmatch(r"pyvpn-\d+-\d+", prefix):
        raise LabError(f"{prefix!r} is not a lab's name; they look like pyvpn-1234-1")
    for namespace in list(named(prefix)):
        remove_namespace(namespace)
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}-*"):
        shutil.rmtree(directory)


def _answers(path: Path) -> bool:
    """Whether somebody listens on a UNIX socket: the file alone may be a dead process's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _end(process: Process) -> None:
    """End a process at the laboratory's end, however."""
    with contextlib.suppress(LabError):
        process.stop()


def _remove_directory(lab: Lab) -> None:
    if lab._directory is not None:
        shutil.rmtree(lab._directory, ignore_errors=True)


def _root_is_locked() -> bool:
    try:
        for line in Path("/etc/shadow").read_text().splitlines():
            name, password, *_ = line.split(":")
            if name == "root":
                return password.startswith("!")
    except OSError:
        pass
    return False


if __name__ == "__main__":  # the watcher
    sys.stdin.read()
    remove(sys.argv[1])
