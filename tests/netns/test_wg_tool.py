"""The real ``wg`` on an interface of ours, and beside it on a wireguard-go's, told the same things.

::

    wg7: our core, port and socket, in this process     wg8: wireguard-go
                    \\                                    /
                     DIRECTORY, as everybody's /var/run/wireguard
                                        |
                                       wg

All of it in a network namespace of its own. What ``wg`` shows of both has to be the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.service.uapisocket import UAPISocket
from pyvpn.service.wireguardcontrol import WireGuardControl, keep_device
from pyvpn.tx.udp import UDPPort
from tests.netns.namespaces import why_not
from tests.netns.processes import search_path, wait_until
from tests.tx.namespace import Namespace
from tests.tx.worlds import Receiver, reactor_for, run_until

PATH = search_path()
OURS, THEIRS = "wg7", "wg8"
# In a mount namespace of its own, which ends with it, DIRECTORY is where wg looks.
INSIDE = """
mount -t tmpfs none /run && mkdir /run/wireguard && mount --bind "$0" /run/wireguard && exec "$@"
"""
KEYS = [KeyPair.of(bytes([n] * 31 + [64])) for n in range(8, 80, 8)]
PRIVATE, *PEERS = KEYS


def text(key: bytes) -> str:
    return b64encode(key).decode()


class WGTests(SynchronousTestCase):
    def setUp(self) -> None:
        reason = why_not()
        missing = [name for name in ("wg", "wireguard-go") if not shutil.which(name, path=PATH)]
        if reason is None and missing:
            reason = f"missing commands: {', '.join(missing)} (make deps installs them)"
        if reason is not None:
            if os.environ.get("PYVPN_REQUIRE_NETNS") == "1":
                raise AssertionError(reason)
            raise SkipTest(reason)
        self.reactor = reactor_for(self)
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)
        # Not below the directory of trial: a socket's path is short.
        self.directory = Path(tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.changed: list[set[bytes]] = []
        self.durable: Callable[[set[bytes]], Deferred[Any] | None] = lambda keys: None
        self.wireguard = self.device().wireguard
        self.serve()

    def device(self) -> WireGuardDevice:
        return WireGuardDevice(wall_clock=lambda: 1, random_bytes=os.urandom)

    def serve(self, **more: Any) -> WireGuardControl:
        """Our side of it, as it is before anybody has set it up."""
        self.udp = UDPPort(0, Receiver(), "", self.reactor)
        with self.namespace.inside():
            self.udp.bind()
        self.addCleanup(self.udp.close)
        made = WireGuardControl(
            self.wireguard, self.udp, changed=self.note, settle=lambda: None, **more
        )
        self.socket = UAPISocket(OURS, made, self.reactor, self.directory)
        self.addCleanup(self.socket.close)
        self.socket.open()
        self.socket.serve()
        return made

    def note(self, public_keys: set[bytes]) -> Deferred[Any] | None:
        self.changed.append(public_keys)
        return self.durable(public_keys)

    def start_theirs(self) -> None:
        """A wireguard-go, which ends with the test."""
        program = os.environ.get("WIREGUARD_GO") or "wireguard-go"
        with self.namespace.inside(), (self.directory / "log").open("w") as log:
            theirs = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.inside(program, "-f", THEIRS)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.addCleanup(theirs.wait)
        self.addCleanup(theirs.kill)
        wait_until((self.directory / f"{THEIRS}.sock").exists, "wireguard-go's socket", 10)
        # It opens its port when the link is up.
        self.namespace.ip(f"link set {THEIRS} up")

    def inside(self, *command: str) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", INSIDE, str(self.directory), *command]

    def wg(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """Run wg while our reactor runs; what it wrote to its output, or, if it fails, said."""
        with self.namespace.inside():
            running = subprocess.Popen(
                self.inside("wg", *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PATH": PATH, "WG_HIDE_KEYS": "never"},
            )
        # Small enough for the pipes, or in a file.
        running.stdin.write(stdin)
        running.stdin.close()
        try:
            with self.namespace.inside():  # where a new port is opened, too
                run_until(self.reactor, lambda: running.poll() is not None)
        finally:
            running.kill()
            said = running.stdout.read(), running.stderr.read()
            running.stdout.close()
            running.stderr.close()
            running.wait()
        self.assertEqual(running.returncode, status, said)
        return said[1] if status else said[0]

    def file(self, name: str, content: str) -> str:
        path = self.directory / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    def shown(self, interface: str) -> list[str]:
        """The dump of an interface, in an order of its own."""
        first, *peers = self.wg("show", interface, "dump").splitlines()
        rows = []
        for peer in peers:
            columns = peer.split("\t")
            columns[3] = ",".join(sorted(columns[3].split(",")))
            # Ours sends nothing in this test; a wireguard-go may have begun a handshake.
            columns[5:7] = ["", ""]
            rows.append("\t".join(columns))
        return [first, *sorted(rows)]

    def both(self, *words: str, stdin: str = "", status: int = 0) -> tuple[str, str]:
        """The same command on both, INTERFACE being which; what each said."""
        answers = []
        for interface in (OURS, THEIRS):
            line = [interface if word == "INTERFACE" else word for word in words]
            said = self.wg(*line, stdin=stdin, status=status)
            answers.append(said.replace(interface, "INTERFACE"))
        return answers[0], answers[1]

    def test_the_same_as_wireguard_go(self) -> None:
        """After each command wg shows of ours what it shows of a wireguard-go told the same."""
        self.start_theirs()
        private = self.file("private", text(PRIVATE.private))
        psk = self.file("psk", text(bytes(range(32))))
        nothing = self.file("nothing", "")
        a, b, c = (text(pair.public) for pair in PEERS[:3])
        networks = "10.0.0.0/24,10.1.2.3/32,fd00::/64,::/0,0.0.0.0/0"
        commands = [
            f"private-key {private} listen-port 51900",
            "fwmark 0x80000001",
            f"peer {a}",
            f"peer {a} preshared-key {psk} endpoint 192.0.2.1:7 persistent-keepalive 0",
            f"peer {a} allowed-ips {networks}",
            f"peer {b} allowed-ips 10.0.0.0/24 endpoint [2001:db8::1]:51820",
            f"peer {b} preshared-key {psk} peer {c} allowed-ips 10.0.0.0/25,::/0",
            f"peer {a} preshared-key {nothing} allowed-ips 10.1.2.3/32",
            f"peer {c} endpoint [2001:db8::2]:9 persistent-keepalive 65535",
            f"peer {c} persistent-keepalive off",
            f"peer {b} remove peer {text(PEERS[7].public)} remove",
            f"peer {text(PRIVATE.public)} allowed-ips 10.1.2.3/32",
            "fwmark off",
            "peer " + a + " allowed-ips " + networks,
            f"private-key {nothing}",
            f"private-key {private}",
        ]
        for number, command in enumerate(commands):
            if "listen-port" not in command:
                self.both("set", "INTERFACE", *command.split())
            else:  # both cannot have the same
                self.wg("set", OURS, *command.split())
                self.wg("set", THEIRS, *command.replace("51900", "51901").split())
            ours, theirs = self.shown(OURS), self.shown(THEIRS)
            self.assertEqual(
                ours, [line.replace("51901", "51900") for line in theirs], f"{number}: {command}"
            )
        self.assertEqual(len(ours), 3)
        # Here wireguard-go forgets the link.
        self.wg("set", OURS, "peer", c, "endpoint", "[fe80::1%lo]:9")
        self.assertIn("[fe80::1%lo]:9", self.wg("show", OURS, "endpoints"))
        ours = self.shown(OURS)
        for command in ("listen-port 51901", "listen-port 51900"):
            # Each would take the other's.
            interface = OURS if "51901" in command else THEIRS
            said = self.wg("set", interface, *command.split(), status=1)
            self.assertIn("Address already in use", said)
        self.assertEqual(self.shown(OURS), ours)

    def test_configuration_goes_round(self) -> None:
        """showconf, setconf, syncconf and addconf on both: the same confs and the same result."""
        self.start_theirs()
        a, b, c = (text(pair.public) for pair in PEERS[:3])
        conf = (
            f"[Interface]\nPrivateKey = {text(PRIVATE.private)}\nListenPort = PORT\nFwMark = 0x2a\n"
            f"\n[Peer]\nPublicKey = {a}\nPresharedKey = {text(bytes(range(32)))}\n"
            "AllowedIPs = 10.0.0.1/32, fd00::1/128\nEndpoint = 192.0.2.1:51820\n"
            f"\n[Peer]\nPublicKey = {b}\nAllowedIPs = 10.0.0.0/8\nAllowedIPs = ::/0\n"
        )
        more = f"[Peer]\nPublicKey = {c}\nAllowedIPs = 10.0.0.0/8, 192.168.0.0/16\n"
        less = f"[Interface]\nPrivateKey = {text(PRIVATE.private)}\nListenPort = PORT\n{more}"

        def give(what: str, content: str) -> None:
            for interface, port in ((OURS, "51900"), (THEIRS, "51901")):
                self.wg(what, interface, self.file("conf", content.replace("PORT", port)))

        for what, content, peers in (
            ("setconf", conf, 2),
            ("addconf", more, 3),
            ("syncconf", conf, 2),
            ("syncconf", conf, 2),
            ("setconf", conf, 2),
            ("syncconf", less, 1),
            ("setconf", less, 1),
        ):
            self.changed.clear()
            give(what, content)
            ours, theirs = self.shown(OURS), self.shown(THEIRS)
            self.assertEqual(ours, [line.replace("51901", "51900") for line in theirs], what)
            self.assertEqual(len(ours), 1 + peers)
            confs = self.both("showconf", "INTERFACE")
            self.assertEqual(
                sorted(confs[0].splitlines()),
                sorted(confs[1].replace("51901", "51900").splitlines()),
            )
            # What was shown is what can be given back, and it changes nothing.
            told = list(self.changed)
            self.wg("syncconf", OURS, self.file("conf", confs[0]))
            self.assertEqual(self.shown(OURS), ours)
            self.assertEqual(self.changed, told)
        every = self.wg("show", "all", "dump")
        self.assertEqual(
            sorted({line.split("\t")[0] for line in every.splitlines()}), [OURS, THEIRS]
        )
        self.assertEqual(set(self.wg("show", "interfaces").split()), {OURS, THEIRS})

    def test_thousands(self) -> None:
        """2^16 networks and 1,000 peers in one conf are taken and shown."""
        peers = []
        for number in range(1000):
            public = number.to_bytes(2, "big") + PEERS[0].public[2:]
            peers.append(f"[Peer]\nPublicKey = {text(public)}\nAllowedIPs = fd00::{number:x}/128\n")
        many = ", ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(1 << 16))
        peers.append(f"[Peer]\nPublicKey = {text(PEERS[1].public)}\nAllowedIPs = {many}\n")
        self.wg("setconf", OURS, self.file("conf", "".join(peers)))
        output = self.directory / "output"
        with self.namespace.inside(), output.open("w") as file:
            showing = subprocess.Popen(self.inside("wg", "showconf", OURS), stdout=file)
        run_until(self.reactor, lambda: showing.poll() is not None)
        self.assertEqual(showing.returncode, 0)
        shown = output.read_text()
        self.assertEqual(shown.count("PublicKey = "), 1001)
        self.assertEqual(shown.count(".0/24"), 1 << 16)

    def test_refusals_reach_the_user(self) -> None:
        """What we refuse wg says in words, and nothing has changed."""
        a = text(PEERS[0].public)
        self.wg("set", OURS, "private-key", self.file("private", text(PRIVATE.private)))
        self.socket.close()
        self.udp.close()
        self.serve(guard=keep_device)
        before = self.shown(OURS)
        said = self.wg("set", OURS, "listen-port", "51999", "peer", a, status=1)
        self.assertIn("Operation not permitted", said)
        self.assertEqual(self.shown(OURS), before)
        self.wg("set", OURS, "listen-port", str(self.udp.localPort), "peer", a)
        self.durable = lambda keys: fail(OSError("the disk is full"))
        said = self.wg("set", OURS, "peer", a, "remove", status=1)
        self.assertIn("Input/output error", said)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
