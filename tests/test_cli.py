"""The ``pyvpn`` command: what people see, its exit status, and what it asks of hub and client."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import __version__, accounts, cli, instance, status
from pyvpn.config import Profile
from pyvpn.core import login
from pyvpn.linux import killswitch
from pyvpn.linux.system import ChangeFailed
from pyvpn.state.directory import StateDirectory
from pyvpn.terminal import table
from pyvpn.token import JoinLink, NetworkToken

REPOSITORY = Path(__file__).resolve().parent.parent
TOKEN = NetworkToken(17, 8, 1, bytes([9]) * 32, bytes(range(32)), bytes(range(16)))
LINK = JoinLink("kiwi", ("vpn.example.org:5050",), TOKEN).to_text()
Answer = Callable[[str, dict[str, Any]], dict[str, Any]]

# Stands in for twistd: writes the pid file, answers on the control socket, ends on SIGTERM.
FAKE_TWISTD = r"""
import json, os, signal, socket, sys
args = sys.argv[1:]
pid_file = args[args.index("--pidfile") + 1]
with open(args[args.index("--logfile") + 1], "w") as log:
    log.write("first line\nname \x1b[2J of a device\n")
if "--fail" in args:
    sys.stderr.write("Usage: twistd\nOptions:\n\n/x/twistd: UDP port 5050 is in use; stop it\n")
    sys.exit(1)
seen = {"args": args, "stdin": sys.stdin.readline(), "env": os.environ.get("PYVPN_PW")}
path = pid_file.replace(".pid", ".sock")
role = {"role": "client", "state": "connected", "addresses": ["10.10.0.2/24"], "seen": seen}
told, tell = os.pipe()
if os.fork():
    os.close(tell)
    os.read(told, 1)
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
def end(*_):
    os.unlink(path); os.unlink(pid_file); os._exit(0)
signal.signal(signal.SIGTERM, end)
signal.alarm(60)
with open(pid_file, "w") as file:
    file.write(str(os.getpid()))
if "--deaf" in args:
    os.unlink(pid_file); os._exit(0)
os.write(tell, b"x")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(5)
while True:
    connection = server.accept()[0]
    if connection.recv(65536):
        connection.sendall(json.dumps({"ok": True, "result": role}).encode() + b"\n")
    connection.close()
"""


class Terminal(io.StringIO):
    """A standard stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class FakeHub:
    """A control socket that answers each command by a function and keeps what was asked."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer
        self._server = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server.bind(str(path))
        self._server.listen(5)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._server.accept()[0]
            except OSError:
                return
            with connection, connection.makefile("rwb") as lines:
                line = lines.readline()
                if not line:
                    continue  # somebody who only wanted to know who listens
                request = json.loads(line)
                self.asked.append((request["command"], request["arguments"]))
                reply = self._answer(request["command"], request["arguments"])
                lines.write(json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)


def done(**result: Any) -> Answer:
    return lambda command, arguments: {"ok": True, "result": result}


class CommandTestCase(SynchronousTestCase):
    """Runs the command on directories of the test's own."""

    def setUp(self) -> None:
        # Short, unlike mktemp's: a UNIX socket's path has at most 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="pv"))
        self.addCleanup(shutil.rmtree, self.base)
        self.state, self.run_dir = self.base / "state", self.base / "run"
        self.profiles = self.base / "profiles"
        self.directories = ["--state-dir", str(self.state), "--run-dir", str(self.run_dir)]
        self.directories += ["--profile-dir", str(self.profiles)]
        self.patch(sys, "stdin", io.StringIO())
        os.environ.pop("PYVPN_PW", None)

    def pyvpn(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of one command, in this process."""
        out, err = self.streams()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([*self.directories, *arguments])
            except SystemExit as leaving:
                code = int(leaving.code or 0)
        return code, out.getvalue(), err.getvalue()

    def streams(self) -> tuple[io.StringIO, io.StringIO]:
        return io.StringIO(), io.StringIO()

    def process(self, *arguments: str, given: str = "") -> tuple[int, str, str]:
        """The same in a process of its own: what needs the reactor."""
        ended = subprocess.run(
            [sys.executable, "-m", "pyvpn.cli", *self.directories, *arguments],
            input=given,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            timeout=60,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    def hub(self, answer: Answer, name: str = "server") -> FakeHub:
        fake = FakeHub(self.run_dir / f"{name}.sock", answer)
        self.addCleanup(fake.close)
        return fake

    def locked_state(self) -> StateDirectory:
        """A state directory as a running hub keeps it."""
        state = StateDirectory(self.state)
        state.prepare(os.urandom)
        state.lock()
        self.addCleanup(state.unlock)
        return state

    def as_nobody(self) -> None:
        """Go on without root's privilege over files."""
        if os.geteuid() == 0:
            self.base.chmod(0o711)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)

    def tree(self) -> list[str]:
        """Everything below the test's directories."""
        return sorted(str(path) for path in self.base.rglob("*"))


class BadInputTests(CommandTestCase):
    """What people can get wrong: one line, a status, nothing left behind."""

    def test_table(self) -> None:
        """Each bad command line ends with its exact message and status and changes no file."""
        password = self.base / "short"
        password.write_text("short\n")
        same = self.base / "same"
        same.write_text("Kiwi-kiwi-kiwi\n")
        directory = self.base
        state, run, profiles = self.state, self.run_dir, self.profiles
        join = "join a network with: pyvpn join 'pyvpn://…'"
        cases: list[tuple[list[str], str, int]] = [
            (["init", "--endpoint", "1.2.3.4.5"],
             "--endpoint: address '1.2.3.4.5': not a valid IPv4 address", 1),
            (["user", "add", "kiwi"],
             f"{state}: there is no network here yet; make one with: pyvpn init", 1),
            (["user", "list"],
             f"{state}: there is no network here yet; make one with: pyvpn init", 1),
            (["user", "add", "x" * 33], "user name: 33 bytes of UTF-8, 1 to 32 are allowed", 1),
            (["user", "add", "a\x1bb"],
             "user name: control characters, line breaks and text that is not UTF-8 are refused",
             1),
            (["invite", "kiwi"],
             f"{state}: there is no network here yet; make one with: pyvpn init", 1),
            (["join", "http://vpn.example.org"],
             "join link: expected pyvpn://USER@HOST:PORT/#t=TOKEN; put it in single quotes in a"
             " shell", 1),
            (["join", LINK[:-3]],
             "network token: 90 bytes, it must have 92; copy all of it again", 1),
            (["join", LINK, "--name", "server"],
             "a profile cannot be called 'server': that name means the hub", 1),
            (["join", LINK, "--pw-file", "/nonexistent"],
             "/nonexistent: there is no such password file", 1),
            (["join", LINK, "--save-password"],
             "-: the password is empty; write it on the first line", 1),
            (["up", "home"], f"{profiles} holds no profile 'home' (there is none yet); {join}", 1),
            (["up", "a/b"],
             "'a/b' cannot name a profile; use at most 32 letters, digits, . _ -, beginning with a"
             " letter or digit", 1),
            (["down", "home"], "home is not running", 3),
            (["down", "server"], "server is not running", 3),
            (["logs", "home"],
             f"{state}/log/client-home.log: no log yet; start it with: pyvpn up home", 3),
            (["status"], f"nothing runs here (no answer in {run})", 3),
            (["--run-dir", f"/tmp/{'d' * 100}", "status"],
             f"nothing runs here (no answer in /tmp/{'d' * 100})", 3),
            (["--run-dir", f"/tmp/{'d' * 100}", "down", "server"],
             f"--run-dir: '/tmp/{'d' * 100}' is too long for a socket; choose a shorter directory",
             1),
        ]  # fmt: skip
        before = self.tree()
        for arguments, message, expected in cases:
            code, out, err = self.pyvpn(*arguments)
            self.assertEqual((code, err), (expected, f"pyvpn: {message}\n"), arguments)
            self.assertEqual(out, "", arguments)
            self.assertEqual(self.tree(), before, arguments)
        self.assertTrue(directory.is_dir())

    def test_usage(self) -> None:
        """Wrong usage is status 2 with the usage before the message."""
        for arguments, message in [
            ([], "the following arguments are required: COMMAND"),
            (["user"], "the following arguments are required: COMMAND"),
            (["frobnicate"], "invalid choice: 'frobnicate'"),
            (["join"], "the following arguments are required: LINK"),
            (["--run-dir", "", "status"], "argument --run-dir: give the name of a directory"),
            (["status", "--", "x"], "only 'up' passes options on after --"),
            (["user", "add", "a", "--prompt", "--pw-file", "-"], "not allowed with argument"),
        ]:
            code, _, err = self.pyvpn(*arguments)
            self.assertEqual(code, 2)
            self.assertIn(message, err)

    def test_weak_passwords(self) -> None:
        """A password that is too short or the name is refused before anything is asked of a hub."""
        self.locked_state()
        hub = self.hub(done())
        for name, password, problem in [
            ("kiwi", "short", "has fewer than 10 characters"),
            ("kiwi-kiwi-kiwi", "Kiwi-kiwi-kiwi", "is the same as the user name"),
        ]:
            self.patch(sys, "stdin", io.StringIO(password + "\n"))
            code, out, err = self.pyvpn("user", "add", name, "--pw-file", "-")
            self.assertEqual((code, out), (1, ""))
            self.assertEqual(
                err,
                f"pyvpn: this password {problem}; take another, or leave it out to get one made\n",
            )
        self.assertEqual(hub.asked, [])

    def test_no_privilege(self) -> None:
        """Who may not read or write the directories learns that with status 4."""
        StateDirectory(self.state).prepare(os.urandom)
        self.run_dir.mkdir(0o700)
        self.profiles.mkdir(0o700)
        self.as_nobody()
        for arguments, message in [
            (["--run-dir", str(self.base / "other"), "user", "list"],
             f"{self.state} is not yours to read; run it as root"),
            (["user", "list"],
             f"{self.run_dir}/server.sock is not yours to use; run it as root"),
            (["status"], f"{self.run_dir} is not yours to read; run it as root"),
            (["join", LINK],
             f"{self.profiles}: cannot read the profiles: Permission denied; run it as root"),
        ]:  # fmt: skip
            code, _, err = self.pyvpn(*arguments)
            self.assertEqual((code, err), (4, f"pyvpn: {message}\n"))

    if os.geteuid() != 0:
        test_no_privilege.skip = "only root can make files that this process may not read"  # type: ignore[attr-defined]


class HubTests(CommandTestCase):
    """Commands to a running hub."""

    def test_user_add(self) -> None:
        """The hub gets the public key of the password that is printed, and never the password."""
        token = self.locked_state().token
        hub = self.hub(done())
        code, out, err = self.pyvpn("user", "add", "kiwi")
        self.assertEqual((code, err), (0, ""))
        lines = out.splitlines()
        password = lines[2].split()[1]
        self.assertEqual(
            lines,
            [
                "kiwi added.",
                "",
                f"  password  {password}",
                "",
                "It is shown this once and stored nowhere.",
                "Next: pyvpn invite kiwi",
            ],
        )
        private = login.password_key(password, "kiwi", token.password_salt, 17, 8, 1)
        key = login.public_key(private).hex()
        self.assertEqual(hub.asked, [("user_add", {"name": "kiwi", "public_key": key})])

    def test_given_password(self) -> None:
        """A password from stdin is not shown; the key is that of the NFC form."""
        token = self.locked_state().token
        hub = self.hub(done())
        self.patch(sys, "stdin", io.StringIO("cafe\u0301 au lait\n"))
        code, out, _ = self.pyvpn("user", "passwd", "kiwi", "--pw-file", "-")
        self.assertEqual((code, out), (0, "kiwi has a new password.\n"))
        private = login.password_key("caf\u00e9 au lait", "kiwi", token.password_salt, 17, 8, 1)
        key = login.public_key(private).hex()
        self.assertEqual(hub.asked, [("user_passwd", {"name": "kiwi", "public_key": key})])

    def test_other_networks_hub(self) -> None:
        """A key is never made with another salt than that of the hub which would store it."""
        StateDirectory(self.state).prepare(os.urandom)
        hub = self.hub(done())
        code, _, err = self.pyvpn("user", "add", "kiwi")
        self.assertEqual(code, 1)
        self.assertEqual(
            err,
            f"pyvpn: {self.state}: the hub that runs here uses another state directory; give that"
            " with --state-dir\n",
        )
        self.assertEqual(hub.asked, [])

    def test_changes(self) -> None:
        """disable, enable and remove ask exactly that of the hub."""
        hub = self.hub(done())
        for change in ("disable", "enable", "remove"):
            self.assertEqual(self.pyvpn("user", change, "pa"), (0, f"pa {change}d.\n", ""))
        self.assertEqual(
            hub.asked,
            [(f"user_{change}", {"name": "pa"}) for change in ("disable", "enable", "remove")],
        )

    def test_refusals(self) -> None:
        """What the hub refuses is shown in its words, as one line, with status 1."""
        reply: dict[str, Any] = {}
        self.hub(lambda command, arguments: reply)
        for kind in ("config", "store", "other", "new kind"):
            reply = {"ok": False, "error": "no user\n'pa'; see", "kind": kind}
            self.assertEqual(
                self.pyvpn("user", "disable", "pa"), (1, "", "pyvpn: no user 'pa'; see\n")
            )

    def test_nonsense(self) -> None:
        """A hub that answers nonsense is one line, not a traceback."""
        replies: list[Any] = [None, [], {}, {"ok": True}, {"ok": True, "result": 3}, {"ok": False}]
        left = list(replies)
        self.hub(lambda command, arguments: left.pop())
        for _reply in replies:
            code, _, err = self.pyvpn("user", "disable", "pa")
            self.assertEqual(code, 1)
            self.assertEqual(
                err,
                f"pyvpn: the answer at {self.run_dir}/server.sock makes no sense; are both the same"
                " version?\n",
            )

    def test_invite(self) -> None:
        """In a pipe only the link; on a terminal the QR code, the warning and the next step."""
        self.hub(done(link=LINK))
        self.assertEqual(self.pyvpn("invite", "kiwi"), (0, LINK + "\n", ""))
        self.patch(self, "streams", lambda: (Terminal(), io.StringIO()))
        code, out, _ = self.pyvpn("invite", "kiwi")
        self.assertEqual(code, 0)
        for part in (LINK, "\u2588", "holds the network's secret", "not hold the password",
                     "sudo pyvpn join 'LINK'"):  # fmt: skip
            self.assertIn(part, out)
        self.assertNotIn("not running", out)
        self.patch(accounts, "alone", lambda state_dir, talk: {"link": LINK})
        out = self.pyvpn("--run-dir", str(self.base / "other"), "invite", "kiwi")[1]
        self.assertIn("The hub is not running; start it with: sudo pyvpn up server", out)

    def test_user_list(self) -> None:
        """The accounts as an aligned table."""
        users = [
            {
                "name": "kiwi",
                "enabled": True,
                "created": None,
                "devices": [
                    {"device_id": "ab" * 16, "name": "", "ipv4": "10.10.0.2"},
                    {"device_id": "cd" * 16, "name": "laptop", "ipv4": None},
                ],
            },
            {"name": "pa", "enabled": False, "created": None, "devices": []},
        ]
        self.hub(done(users=users))
        out = self.pyvpn("user", "list")[1]
        self.assertEqual(
            out.splitlines(),
            [
                "USER  STATE     SINCE  DEVICES",
                "kiwi  enabled   -      abababab 10.10.0.2, laptop -",
                "pa    disabled  -      -",
            ],
        )


class AloneTests(CommandTestCase):
    """Commands on the state directory, with no hub running."""

    def test_life_of_an_account(self) -> None:
        """init, user add, invite, disable and remove work from one process to the next."""
        code, out, err = self.process("init", "--endpoint", "vpn.example.org")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                f"state directory  {self.state} (made)",
                "endpoint         vpn.example.org:5050",
                "",
                "Next: pyvpn user add NAME",
            ],
        )
        self.assertEqual(self.process("init")[1].splitlines()[0][-19:], "(was there already)")
        given = ("user", "add", "kiwi", "--pw-file", "-")
        self.assertEqual(
            self.process(*given, given="a long password\n"),
            (0, "kiwi added.\nNext: pyvpn invite kiwi\n", ""),
        )
        code, out, err = self.process("invite", "kiwi")
        self.assertEqual((code, err), (0, ""))
        link = JoinLink.from_text(out)
        self.assertEqual((link.user, link.addresses), ("kiwi", ("vpn.example.org:5050",)))
        self.assertEqual(link.token, StateDirectory(self.state).token)
        self.assertEqual(self.process("user", "disable", "kiwi"), (0, "kiwi disabled.\n", ""))
        self.assertIn("disabled", self.process("user", "list")[1])
        self.assertEqual(self.process("user", "remove", "kiwi"), (0, "kiwi removed.\n", ""))
        self.assertIn("no users yet", self.process("user", "list")[1])

    def test_invite_without_endpoint(self) -> None:
        """An invitation without an endpoint is refused and says how to set one."""
        self.process("init")
        self.process("user", "add", "kiwi")
        code, out, err = self.process("invite", "kiwi")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("pyvpn init --endpoint", err)
        self.assertEqual(err.count("\n"), 1)

    def test_locked(self) -> None:
        """While another process holds the state directory, the command names it and stops."""
        self.locked_state()
        code, _, err = self.process("user", "list")
        self.assertEqual(code, 1)
        self.assertEqual(
            err,
            f"pyvpn: {self.state} is in use by another PyVPN process (pid {os.getpid()});"
            " stop it, or give this one its own --state-dir\n",
        )

    def test_damaged_files(self) -> None:
        """A file of the state directory or a profile that is damaged is named, and left alone."""
        self.process("init", "--endpoint", "vpn.example.org")
        token, key = self.state / "network.token", self.state / "login.key"
        store = self.state / "store.sqlite"
        profile, password = self.profiles / "home.toml", self.base / "password"
        self.profiles.mkdir(0o700)
        password.write_text("a long password\n")
        loss = "restore it from a backup, or start a new network in another state directory"
        no_token = f"{token}: network token: not base64url text without '='; {loss}"
        self.process("user", "add", "kiwi")
        passwd = ["user", "passwd", "kiwi", "--pw-file", str(password)]
        empty = "the password is empty; write it on the first line"
        table: list[tuple[Path, bytes, list[str], str]] = [
            (token, b"x", ["init"], no_token),
            (token, b"x", passwd, no_token),
            (token, b"x", ["invite", "kiwi"], no_token),
            (key, b"x", ["init"], f"{key}: not 32 bytes in base64; {loss}"),
            (key, b"x", passwd, f"{key}: not 32 bytes in base64; {loss}"),
            (store, b"", ["user", "list"], f"{store}: the file is empty; restore it or remove it"),
            (store, b"x" * 9000, ["init"],
             f"{store}: file is not a database; restore it from a backup, or move it away"),
            (store, b"x" * 9000, ["user", "remove", "kiwi"],
             f"{store}: file is not a database; restore it from a backup, or move it away"),
            (password, b"\n", passwd, f"{password}: {empty}"),
            (password, b"\xff\n", passwd, f"{password}: this password file is not UTF-8 text"),
            (profile, b"user = 1\n", ["up", "home"],
             f"{profile}, line 1, user: must be text in quotes"),
            (profile, b"user = 1\n", ["join", LINK, "--name", "home"],
             f"{profile}, line 1, user: must be text in quotes"),
        ]  # fmt: skip
        for path, content, arguments, message in table:
            before = path.read_bytes() if path.exists() else None
            path.write_bytes(content)
            code, out, err = self.process(*arguments)
            self.assertEqual((code, out, err), (1, "", f"pyvpn: {message}\n"), arguments)
            self.assertEqual(path.read_bytes(), content)
            path.unlink() if before is None else path.write_bytes(before)
        self.assertEqual(self.process(*passwd)[0], 0)  # the control

    def test_unknown_users(self) -> None:
        """What cannot be done to an account is said in one line, with status 1."""
        StateDirectory(self.state).prepare(os.urandom)
        password = self.base / "password"
        password.write_text("a long password\n")
        self.process("user", "add", "kiwi", "--pw-file", str(password))
        given = ["--pw-file", str(password)]
        nobody = "there is no user 'pa'; to see all: pyvpn user list"
        exists = "user 'kiwi' exists already; for a new password: pyvpn user passwd kiwi"
        for arguments, message in (
            (["user", "disable", "pa"], nobody),
            (["user", "enable", "pa"], nobody),
            (["user", "remove", "pa"], nobody),
            (["user", "passwd", "pa", *given], nobody),
            (["invite", "pa"], nobody),
            (["user", "add", "kiwi", *given], exists),
        ):
            found = self.process(*arguments)
            self.assertEqual(found, (1, "", f"pyvpn: {message}\n"), arguments)

    def test_starts_fast(self) -> None:
        """Commands that need no reactor do not import Twisted."""
        code = "import sys, pyvpn.cli; print('twisted' in sys.modules, 'attrs' in sys.modules)"
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        self.assertEqual(ended.stdout, "False True\n")


class JoinTests(CommandTestCase):
    """Turning a link into a profile."""

    def test_join(self) -> None:
        """The profile holds what the link held, is private, and the next command is named."""
        code, out, err = self.pyvpn("join", LINK)
        path = self.profiles / "vpn.example.org.toml"
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                f"profile  vpn.example.org ({path})",
                "server   vpn.example.org:5050",
                "user     kiwi",
                "",
                "Next: sudo pyvpn up vpn.example.org",
            ],
        )
        self.assertEqual(
            Profile.load(path), Profile("vpn.example.org", ("vpn.example.org:5050",), "kiwi", TOKEN)
        )
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)

    def test_link_from_stdin(self) -> None:
        """A link may come from stdin, since it is a secret; an IPv6 host becomes a file name."""
        link = JoinLink("kiwi", ("[2001:db8::1]:5050", "b:1"), TOKEN).to_text()
        self.patch(sys, "stdin", io.StringIO(link + "\n"))
        self.assertEqual(self.pyvpn("join", "-")[0], 0)
        self.assertEqual(os.listdir(self.profiles), ["2001-db8--1.toml"])

    def test_save_password(self) -> None:
        """The password is kept beside the profile, private, and only when asked for."""
        self.patch(sys, "stdin", io.StringIO("a long password\n"))
        self.assertEqual(self.pyvpn("join", LINK, "--name", "home", "--save-password")[0], 0)
        path = self.profiles / "home.password"
        self.assertEqual(path.read_text(), "a long password\n")
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(Profile.load(self.profiles / "home.toml").password_file, "home.password")
        self.pyvpn("join", LINK, "--name", "other")
        self.assertFalse((self.profiles / "other.password").exists())

    def test_again(self) -> None:
        """A new link of the same network and user renews the profile and keeps its settings."""
        Profile("home", ("old:1",), "kiwi", TOKEN, tun="vpn7").save(self.profiles / "home.toml")
        self.assertEqual(self.pyvpn("join", LINK, "--name", "home")[0], 0)
        found = Profile.load(self.profiles / "home.toml")
        self.assertEqual((found.servers, found.tun), (("vpn.example.org:5050",), "vpn7"))

    def test_other_network(self) -> None:
        """A link of another user or network never overwrites a profile."""
        self.pyvpn("join", LINK, "--name", "home")
        path = self.profiles / "home.toml"
        before = path.read_bytes()
        other = NetworkToken(17, 8, 1, bytes([9]) * 32, bytes(range(32)), bytes(16))
        for link in (JoinLink("pa", ("a:1",), TOKEN), JoinLink("kiwi", ("a:1",), other)):
            code, _, err = self.pyvpn("join", link.to_text(), "--name", "home")
            self.assertEqual(code, 1)
            self.assertEqual(
                err,
                f"pyvpn: {path}: this profile is of another user or network; choose another name"
                " with --name NAME\n",
            )
            self.assertEqual(path.read_bytes(), before)


class InstanceTests(CommandTestCase):
    """Starting and ending daemons, with a stand-in for twistd."""

    def setUp(self) -> None:
        super().setUp()
        script = self.base / "fake_twistd.py"
        script.write_text(FAKE_TWISTD)
        self.patch(cli, "require_privilege", lambda: None)
        self.standing: str | None = None
        self.patch(killswitch, "lift", self.lift)
        self.patch(instance, "twistd", lambda: [sys.executable, str(script)])
        Profile("home", ("a:1",), "kiwi", TOKEN).save(self.profiles / "home.toml")
        self.addCleanup(self.end)

    def end(self) -> None:
        for path in self.run_dir.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)

    def lift(self, system: object, owner: str | None = None) -> list[str]:
        """A machine with the kill switch of one client, or with none."""
        if self.standing is None or owner not in (None, self.standing):
            return []
        lifted, self.standing = self.standing, None
        return [f"kill switch of {lifted} lifted"]

    def test_kill_switch(self) -> None:
        """down lifts the client's own kill switch, of one that was killed too, and no other;
        cleanup lifts any, but only when it is told to."""
        os.environ["PYVPN_PW"] = "a long password"
        self.addCleanup(os.environ.pop, "PYVPN_PW", None)
        self.standing = "client-home"
        self.assertEqual(self.pyvpn("up", "home")[0], 0)
        code, out, _ = self.pyvpn("down", "home")
        self.assertEqual((code, out.splitlines()[1]), (0, "kill switch of client-home lifted"))
        self.standing = "client-home"
        self.assertEqual(
            self.pyvpn("down", "home"),
            (0, "home was not running\nkill switch of client-home lifted\n", ""),
        )
        self.assertEqual(self.pyvpn("down", "home")[0], 3)
        self.standing = "client-other"
        self.assertEqual(self.pyvpn("down", "home")[0], 3)
        self.assertEqual(self.pyvpn("cleanup"), (0, "nothing to repair\n", ""))
        self.assertEqual(self.standing, "client-other")
        self.assertEqual(
            self.pyvpn("cleanup", "--kill-switch"), (0, "kill switch of client-other lifted\n", "")
        )

    def test_no_way_to_lift(self) -> None:
        """A kill switch that cannot be lifted is an error, not a silence."""

        def lift(system: object, owner: str | None = None) -> list[str]:
            raise ChangeFailed(["nft"], 1, "no")

        self.patch(killswitch, "lift", lift)
        code, _, err = self.pyvpn("cleanup", "--kill-switch")
        self.assertNotEqual(code, 0)
        self.assertIn("the kill switch cannot be lifted: nft: no", err)

    def test_traffic(self) -> None:
        """traffic asks the running client, and shows what it has to say."""
        asked: list[Any] = []

        def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
            asked.append((command, arguments))
            return {"ok": True, "result": {"notes": ["note: half of it"]}}

        self.hub(answer, "client-home")
        self.assertEqual(
            self.pyvpn("traffic", "home", "all"),
            (0, "all traffic goes through home\nnote: half of it\n", ""),
        )
        self.assertEqual(asked[-1], ("traffic", {"what": "all"}))
        self.assertEqual(self.pyvpn("traffic", "home", "vpn")[0], 0)
        self.assertEqual(asked[-1], ("traffic", {"what": "vpn"}))
        self.assertEqual(self.pyvpn("traffic", "other", "vpn")[0], 3)

    def seen(self, name: str) -> dict[str, Any]:
        answer = cli.ask(self.run_dir / f"client-{name}.sock", "status")
        return dict(answer["seen"])

    def test_up_and_down(self) -> None:
        """up starts the client with our directories, twice is harmless; down ends it."""
        os.environ["PYVPN_PW"] = "a long password"
        self.addCleanup(os.environ.pop, "PYVPN_PW", None)
        code, out, err = self.pyvpn("up", "home", "--", "--deliver", "poll")
        pid = int((self.run_dir / "client-home.pid").read_text())
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(out.splitlines()[0], f"home is up (pid {pid})")
        self.assertEqual(out.splitlines()[1], "client home  connected")
        seen = self.seen("home")
        self.assertEqual(
            seen["args"],
            ["--pidfile", f"{self.run_dir}/client-home.pid",
             "--logfile", f"{self.state}/log/client-home.log", "pyvpn-client",
             "--state-dir", str(self.state), "--run-dir", str(self.run_dir),
             "--profile", "home", "--profile-dir", str(self.profiles),
             "--deliver", "poll", "--pw-file", "-"],
        )  # fmt: skip
        self.assertEqual(self.pyvpn("up", "home")[1], f"home is running already (pid {pid})\n")
        self.assertEqual(self.pyvpn("down", "home"), (0, f"home is down (was pid {pid})\n", ""))
        with contextlib.suppress(FileNotFoundError):  # where nobody reaps it, a zombie stays
            self.assertEqual(Path(f"/proc/{pid}/cmdline").read_bytes(), b"")
        self.assertEqual(self.pyvpn("down", "home")[0], 3)

    def test_password_by_pipe(self) -> None:
        """The password reaches the client by a pipe, not by a command line or the environment."""
        os.environ["PYVPN_PW"] = "a long password"
        self.addCleanup(os.environ.pop, "PYVPN_PW", None)
        self.pyvpn("up", "home")
        seen = self.seen("home")
        self.assertEqual((seen["stdin"], seen["env"]), ("a long password\n", None))
        self.assertNotIn("a long password", " ".join(seen["args"]))
        self.pyvpn("down", "home")

    def test_password_of_the_profile(self) -> None:
        """With a password file in the profile nobody is asked and nothing is piped."""
        Profile("home", ("a:1",), "kiwi", TOKEN, password_file="x").save(
            self.profiles / "home.toml"
        )
        self.assertEqual(self.pyvpn("up", "home")[0], 0)
        self.assertNotIn("--pw-file", self.seen("home")["args"])
        self.pyvpn("down", "home")

    def test_last_words(self) -> None:
        """Of one that has ended by itself the log's last reason is told; of one that has not, or
        that never ran, nothing is."""
        ended = instance.Instance.named("home", self.run_dir, self.state)
        self.assertIsNone(ended.last_words())
        ended.files.log.parent.mkdir(parents=True)
        ended.files.log.write_text(
            "2026 [x#critical] an older one\n2026 [x#info] up\n"
            "2026 [x#critical] setting up the TUN failed: no\n2026 [-] Server Shut Down.\n"
        )
        self.assertEqual(ended.last_words(), "setting up the TUN failed: no")
        self.patch(instance.Instance, "pid", lambda _: 1)
        self.patch(instance, "listener_pid", lambda _: 1)
        self.assertIsNone(ended.last_words())

    def test_no_password(self) -> None:
        """Without a password and a terminal nothing starts, in one line."""
        code, _, err = self.pyvpn("up", "home")
        self.assertEqual(
            (code, err),
            (1, "pyvpn: no terminal to ask for the password; give it with --pw-file FILE\n"),
        )
        self.assertFalse(self.run_dir.exists())

    def test_failed_start(self) -> None:
        """The last words of a twistd that does not start are the message; nothing runs."""
        code, out, err = self.pyvpn("up", "server", "--", "--fail")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(err, "pyvpn: UDP port 5050 is in use; stop it\n")
        self.assertEqual(os.listdir(self.run_dir), [])

    def test_death_after_start(self) -> None:
        """A daemon that ends at once is told of, with the place of its log."""
        code, _, err = self.pyvpn("up", "server", "--", "--deaf")
        self.assertEqual(code, 1)
        self.assertEqual(
            err,
            "pyvpn: it started but does not answer; see 'pyvpn logs server'"
            f" ({self.state}/log/server.log)\n",
        )

    def test_stale_pid_file(self) -> None:
        """A pid file whose number now belongs to another process ends nothing."""
        self.run_dir.mkdir()
        (self.run_dir / "client-home.pid").write_text(str(os.getpid()))
        self.assertEqual(self.pyvpn("down", "home")[0], 3)
        (self.run_dir / "client-home.pid").unlink()

    def test_logs(self) -> None:
        """The log is shown without what could steer the terminal."""
        self.pyvpn("up", "server")
        self.assertEqual(
            self.pyvpn("logs", "server"), (0, "first line\nname ?[2J of a device\n", "")
        )
        self.pyvpn("down", "server")

    def test_reasons(self) -> None:
        """The cause is found in each way in which twistd says it."""
        for said, why in [
            ("An error has occurred: b'no TUN'\nPlease look at log file …\n", "no TUN"),
            ("usage\n\n/opt/x/twistd: bad option\n", "bad option"),
            ("one line\n", "one line"),
            ("pyvpn-server: too long a line …\nAn error has occurred: b'too long'\nPlease …\n",
             "too long a line …"),
            ("", ""),
        ]:  # fmt: skip
            self.assertEqual(instance.reason(said), why)


class StatusTests(CommandTestCase):
    """The status of everything that runs here."""

    HUB: dict[str, Any] = {
        "role": "server",
        "uptime": 7384,
        "port": 5050,
        "addresses": ["10.10.0.1/24", "fd12::1/64"],
        "sessions": [
            {"user": "kiwi", "device": "00" * 16, "name": "lap\x1b[2Jtop",
             "endpoint": "192.0.2.7:12000", "addresses": ["10.10.0.2", "fd12::2"], "age": 61,
             "rx_bytes": 1_400_000, "rx_packets": 1001, "tx_bytes": 999, "tx_packets": 1,
             "cipher": "AES-256-GCM", "path_mtu": 1500, "path_mtu_searching": False,
             "last_seen": 4},
            {"user": "pa", "device": "ab" * 16},
            {"user": "ma", "device": "cd" * 16, "cipher": "ChaCha20-Poly1305", "path_mtu": 1280,
             "path_mtu_searching": True},
        ],
        "tun_offloads": {"csum": True, "tso": True, "uso": False},
        "udp_offloads": {"gso": True, "gro": True},
        "counters": {"mac1_invalid": 3, "inner_malformed": 0},
    }  # fmt: skip
    CLIENT: dict[str, Any] = {
        "role": "client",
        "profile": "home",
        "state": "connected",
        "server": "vpn.example.org:5050",
        "user": "kiwi",
        "addresses": ["10.10.0.2/24"],
        "rx_bytes": 0,
        "rx_packets": 0,
        "tx_bytes": 5_000_000_000,
        "tx_packets": 1,
        "cipher": "ChaCha20-Poly1305",
        "path_mtu": 1280,
        "path_mtu_searching": True,
        "tun_offloads": {"csum": False, "tso": False, "uso": False},
        "udp_offloads": {"gso": False, "gro": True},
        "last_heard": 0.4,
        "counters": {},
    }

    def test_network(self) -> None:
        """A client says what goes through it, which name servers came with it, and what is not
        as it was asked for."""
        for more, lines in (
            (
                {"routes": ["192.168.7.0/24"], "name_servers": ["10.10.0.1"], "search": ["pyvpn"]},
                ["  through it the VPN and 192.168.7.0/24", "  names      10.10.0.1 (pyvpn)"],
            ),
            (
                {"routes": [f"10.{n}.0.0/16" for n in range(6)]},
                [
                    "  through it the VPN and 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16"
                    " and 2 more"
                ],
            ),
            ({"all_traffic": [4, 6]}, ["  through it all traffic"]),
            (
                {"all_traffic": [4]},
                ["  through it all IPv4 traffic; the other family leads nowhere"],
            ),
            (
                {"all_traffic_asked": True, "notes": ["it is off\x1b"]},
                ["  through it the VPN; all else leads nowhere", "  note: it is off?"],
            ),
            (
                {"kill_switch": True, "problem": "no way"},
                [
                    "  nothing leaves but through it; lift that with: pyvpn down home",
                    "  problem: no way",
                ],
            ),
        ):
            said = status.client_lines("home", {**self.CLIENT, **more}, 0.0)
            for line in lines:
                self.assertIn(line, said)

    def test_both(self) -> None:
        """Hub and client of one machine, as aligned text; names cannot steer the terminal."""
        self.hub(done(**self.HUB))
        self.hub(done(**self.CLIENT), "client-home")
        code, out, err = self.pyvpn("status")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "client home  connected",
                "  server     vpn.example.org:5050",
                "  user       kiwi",
                "  addresses  10.10.0.2/24",
                "  through it the VPN",
                "  names      -",
                "  cipher     ChaCha20-Poly1305",
                "  path MTU   1280+",
                "  offloads   TUN none; UDP gro",
                "  received   0 B in 0 packets, sent 5.0 GB in 1 packet",
                "  heard      0 s ago",
                "hub  up 2 h 3 min, UDP port 5050, 10.10.0.1/24, fd12::1/64",
                "  offloads   TUN csum, tso; UDP gso, gro",
                "  USER  DEVICE      ADDRESSES           ENDPOINT         CIPHER"
                "    PATH MTU  SINCE      RECEIVED  PACKETS  SENT   PACKETS  HEARD",
                "  kiwi  lap?[2Jtop  10.10.0.2, fd12::2  192.0.2.7:12000  AES"
                "       1500      1 min 1 s  1.4 MB    1001     999 B  1        4 s ago",
                "  pa    abababab    -                   -                -  "
                "       -         -          -         -        -      -        -",
                "  ma    cdcdcdcd    -                   -                ChaCha20"
                "  1280+     -          -         -        -      -        -",
                "  counters   mac1_invalid 3",
            ],
        )

    def test_peers(self) -> None:
        """Stock WireGuard peers have a table of their own; each table is there if it is needed."""
        peer = {
            "name": "ph\x1b[2Jone",
            "addresses": ["10.10.0.3", "fd12::3"],
            "allowed_ips": ["192.168.7.0/24"],
            "endpoint": "192.0.2.8:51820",
            "last_handshake": 1_800_000_000,
            "rx_bytes": 1_400_000,
            "rx_packets": 1001,
            "tx_bytes": 999,
            "tx_packets": 1,
            "last_seen": 4,
        }
        answer = {**self.HUB, "sessions": [], "wireguard_sessions": [peer, {"name": "pa"}]}
        self.assertEqual(
            status.instance_lines("server", answer, now=1_800_000_061)[2:],
            [
                "  WIREGUARD PEER  ADDRESSES           ENDPOINT         HANDSHAKE      RECEIVED"
                "  PACKETS  SENT   PACKETS  HEARD",
                "  ph?[2Jone       10.10.0.3, fd12::3  192.0.2.8:51820  1 min 1 s ago  1.4 MB  "
                "  1001     999 B  1        4 s ago",
                "  pa              -                   -                -              -       "
                "  -        -      -        -",
                "  counters   mac1_invalid 3",
            ],
        )
        both = {**answer, "sessions": self.HUB["sessions"]}
        lines = status.instance_lines("server", both, now=1_800_000_061)
        self.assertEqual(
            ["USER", "kiwi", "pa", "ma", "WIREGUARD", "ph?[2Jone", "pa", "counters"],
            [line.split()[0] for line in lines[2:]],
        )
        nobody = {**answer, "wireguard_sessions": []}
        self.assertIn("  nobody is connected", status.instance_lines("server", nobody, now=0.0))

    def test_json(self) -> None:
        """--json is what the processes said, by instance."""
        self.hub(done(**self.HUB))
        code, out, _ = self.pyvpn("status", "--json")
        self.assertEqual((code, json.loads(out)), (0, {"server": self.HUB}))

    def test_wrapped(self) -> None:
        """What administration wraps around the hub's own words is shown as one."""
        self.hub(done(running=True, users=2, hub=self.HUB))
        found = json.loads(self.pyvpn("status", "--json")[1])
        self.assertEqual(found, {"server": {"running": True, "users": 2, **self.HUB}})

    def test_missing_keys(self) -> None:
        """An answer without any key, or with keys of other types, is shown with dashes."""
        strange = {key: {"x": [None]} for key in [*self.HUB, *self.CLIENT]}
        for answer in ({}, strange, {"sessions": [1, {}]}):
            for role in ("server", "client-home"):
                lines = status.instance_lines(role, {**answer, "role": role}, now=0.0)
                self.assertGreater(len(lines), 1)

    def test_left_over_socket(self) -> None:
        """A socket of a killed process is told of, beside what does run."""
        self.hub(done(**self.CLIENT), "client-home")
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(self.run_dir / "server.sock"))
        dead.close()
        code, out, _ = self.pyvpn("status")
        self.assertEqual(code, 0)
        self.assertIn(
            "server: ended without clearing up; repair it with: pyvpn cleanup", out.splitlines()
        )

    def test_colour(self) -> None:
        """Bold only on a terminal, and never with NO_COLOR."""
        self.hub(done(**self.HUB))
        self.patch(os, "environ", {**os.environ, "TERM": "xterm"})
        os.environ.pop("NO_COLOR", None)
        self.assertNotIn("\x1b", self.pyvpn("status")[1])
        self.patch(self, "streams", lambda: (Terminal(), io.StringIO()))
        self.assertIn("\x1b[1mhub", self.pyvpn("status")[1])
        os.environ["NO_COLOR"] = "1"
        self.assertNotIn("\x1b", self.pyvpn("status")[1])

    def test_words(self) -> None:
        """Ages and amounts are short."""
        self.assertEqual(status.duration(90061), "1 d 1 h")
        self.assertEqual(status.duration(59.9), "59 s")
        self.assertEqual(status.ago(1_700_000_000, 1_700_000_065), "1 min 5 s ago")
        self.assertEqual(status.amount(999), "999 B")
        self.assertEqual(status.amount(10**20), "100000.0 PB")

    def test_wide_letters(self) -> None:
        """Columns stay aligned after letters of double width."""
        lines = table(["A", "B"], [["日本", 1], ["ab", 2]])
        self.assertEqual(lines, ["A     B", "日本  1", "ab    2"])


class MiscellaneousTests(CommandTestCase):
    """The rest of the command line."""

    def test_version(self) -> None:
        """--version names program and version."""
        self.assertEqual(self.pyvpn("--version")[:2], (0, f"pyvpn {__version__}\n"))

    def test_exit_status_in_help(self) -> None:
        """Every command's help documents the exit status."""
        for arguments in ([], ["user", "add"], ["up"], ["status"]):
            self.assertIn("4 no", self.pyvpn(*arguments, "--help")[1])

    def test_cleanup(self) -> None:
        """cleanup says what was repaired, or that nothing was."""
        self.run_dir.mkdir()
        self.assertEqual(self.pyvpn("cleanup"), (0, "nothing to repair\n", ""))

    def test_reader_gone(self) -> None:
        """A reader that went away (``| head``) is no traceback."""
        read, write = os.pipe()
        os.close(read)
        ended = subprocess.run(
            [sys.executable, "-m", "pyvpn.cli", "join", LINK, "--profile-dir", str(self.profiles)],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            timeout=60,
            check=False,
        )
        os.close(write)
        self.assertEqual((ended.returncode, ended.stderr), (1, ""))
