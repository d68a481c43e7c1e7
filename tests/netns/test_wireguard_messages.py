"""WireGuard's messages 1 to 4, ours against those of a real wireguard-go, in either role.

::

    this test ---- UDP over loopback ---- wireguard-go ---- wg0 10.9.9.1
    (no device; inside it is 10.9.9.2)

Debian's wireguard-go, and the one that WIREGUARD_GO names, if it does. What follows message 2 is
written out here once more, so that nothing of ours agrees with itself.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import tai64n
from pyvpn.core.cookies import CookieChecker, mac1_valid, open_cookie_reply, with_macs
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguard import (
    COOKIE_FIRST_BYTES,
    COOKIE_REPLY,
    INITIATION,
    NO_PSK,
    RESPONSE,
    InitiationReceived,
    InitiationSent,
    SessionKeys,
    cookie_key,
    kind_of,
    mac1_key,
)
from pyvpn.errors import RemoteProtocolError
from tests.netns.namespaces import why_not
from tests.netns.processes import Process, search_path, wait_until
from tests.tx.namespace import Namespace

PSK = bytes(range(32))
ADDRESS = b"where it comes from: ours to say"
# With its mount namespace its control socket is nobody else's; it dies with this process.
OWN_RUN = (
    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
    *("sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"),
)


def internet_checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def echo_request(source: str, destination: str) -> bytes:
    """A ping of 32 bytes, padded as WireGuard pads by itself: not at all."""
    icmp = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"ping"
    icmp = icmp[:2] + internet_checksum(icmp).to_bytes(2, "big") + icmp[4:]
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + len(icmp), 1, 0, 64, 1, 0, ends)
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + icmp


class WireGuardGo:
    """wireguard-go in a namespace of its own, one peer configured: us."""

    port = 51820

    def __init__(self, case: SynchronousTestCase, program: str) -> None:
        self.ours, self.theirs = KeyPair.of(os.urandom(32)), KeyPair.of(os.urandom(32))
        self._namespace = Namespace()
        case.addCleanup(self._namespace.close)
        directory = Path(case.mktemp())
        directory.mkdir()
        log, argv = directory / "log", [*OWN_RUN, program, "-f", "wg0"]
        with self._namespace.inside(), log.open("wb") as stream:
            started = time.monotonic()
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={"PATH": search_path(), "LOG_LEVEL": "verbose"},
            )
        self._process = Process("", argv, popen, log, started)
        case.addCleanup(self._process.stop)
        # Seen through the process, whose /run is another.
        self._control = Path(f"/proc/{popen.pid}/root/run/wireguard/wg0.sock")
        self._process.wait_until(self._control.exists, "its control socket", 10)
        self._namespace.ip("address add 10.9.9.1/24 dev wg0")
        self._namespace.ip("link set wg0 up")
        self.set(f"private_key={self.theirs.private.hex()}", f"listen_port={self.port}")
        self.latest = b""
        self.socket, self.flood = self.open_socket(case), self.open_socket(case)

    def open_socket(self, case: SynchronousTestCase) -> socket.socket:
        with self._namespace.inside():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        case.addCleanup(made.close)
        made.bind(("127.0.0.1", 0))
        made.connect(("127.0.0.1", self.port))
        made.settimeout(10)
        return made

    def ask(self, text: str) -> str:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(10)
            control.connect(str(self._control))
            control.sendall(text.encode() + b"\n\n")
            answer = b""
            while not answer.endswith(b"\n\n"):
                answer += control.recv(65536) or b"\n\n"
        return answer.decode()

    def set(self, *lines: str) -> None:
        answer = self.ask("\n".join(("set=1", *lines)))
        assert answer == "errno=0\n\n", answer

    def set_peer(self, psk: bytes, *lines: str) -> None:
        peer = f"public_key={self.ours.public.hex()}"
        self.set(peer, f"preshared_key={psk.hex()}", "allowed_ip=10.9.9.2/32", *lines)

    def call(self) -> None:
        """Have it begin a handshake with us."""
        port = self.socket.getsockname()[1]
        endpoint = f"endpoint=127.0.0.1:{port}"
        self.set(
            f"public_key={self.ours.public.hex()}", endpoint, "persistent_keepalive_interval=1"
        )

    def handshakes(self) -> bool:
        """Whether it says that a handshake has been completed."""
        return "last_handshake_time_sec=0\n" not in self.ask("get=1")

    def receive(self, kind: int) -> bytes:
        """The next datagram, of that type."""
        message = self.socket.recv(2048)
        assert kind_of(message) == kind, message.hex()
        return message

    def initiation(self, psk: bytes, index: int, cookie: bytes = b"") -> InitiationSent:
        return InitiationSent(
            self.ours,
            self.theirs.public,
            psk,
            index=index,
            stamp=tai64n.pack(time.time_ns()),
            mac1_key=mac1_key(self.theirs.public),
            random_bytes=os.urandom,
            cookie=cookie,
        )

    def responded(self, psk: bytes, index: int) -> tuple[InitiationSent, bytes]:
        """Initiate until it responds: it takes one initiation in 20 ms from a peer."""
        self.socket.settimeout(0.1)
        for _ in range(100):
            sent = self.initiation(psk, index)
            self.socket.send(sent.message)
            try:
                while kind_of(message := self.socket.recv(2048)) != RESPONSE:
                    pass  # of a session before
            except TimeoutError:
                continue
            self.socket.settimeout(10)
            return sent, message
        raise AssertionError("no response")

    def answer(
        self, initiation: bytes, psk: bytes, index: int, cookie: bytes = b""
    ) -> tuple[bytes, SessionKeys]:
        received = InitiationReceived(self.ours, initiation, os.urandom)
        received.open()
        key = mac1_key(self.theirs.public)
        return received.answer(psk, index=index, mac1_key=key, cookie=cookie)

    def under_load(self, send: Callable[[], None], kind: int) -> bytes:
        """Give it more initiations at once than it keeps up with, right macs and nothing in them,
        and `send` ours behind them; until a datagram of that type comes (a full queue drops)."""
        junk = struct.pack("<I", INITIATION) + os.urandom(112)
        datagram = with_macs(junk, mac1_key(self.theirs.public))
        deadline = time.monotonic() + 20
        self.socket.settimeout(0.3)
        while time.monotonic() < deadline:
            for _ in range(400):
                self.flood.send(datagram)
            send()
            try:
                while kind_of(message := self.socket.recv(2048)) != kind:
                    if kind_of(message) == INITIATION:
                        self.latest = message  # it has given the one before up
            except TimeoutError:
                continue
            self.socket.settimeout(10)
            return message
        raise AssertionError(f"no message {kind} under load")


def seal(keys: SessionKeys, counter: int, plaintext: bytes) -> bytes:
    """Message 4, as the paper has it (5.4.6)."""
    nonce = bytes(4) + struct.pack("<Q", counter)
    sealed = ChaCha20Poly1305(keys.send).encrypt(nonce, plaintext, b"")
    return struct.pack("<BxxxIQ", 4, keys.remote_index, counter) + sealed


def opened(keys: SessionKeys, datagram: bytes, index: int) -> bytes:
    kind, receiver, counter = struct.unpack_from("<IIQ", datagram)
    assert (kind, receiver) == (4, index), datagram.hex()
    nonce = bytes(4) + struct.pack("<Q", counter)
    return ChaCha20Poly1305(keys.receive).decrypt(nonce, datagram[16:], b"")


class Messages:
    """What each wireguard-go is put through."""

    program: str
    path: str
    far: WireGuardGo

    def setUp(self) -> None:
        reason = why_not()
        path = shutil.which(self.program, path=search_path())
        if reason is None and path is None:
            reason = f"{self.program} is missing (make deps installs Debian's)"
        if reason is not None:
            required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
            raise (self.failureException if required else SkipTest)(reason)
        assert path is not None
        self.path = path
        self.far = WireGuardGo(self, path)

    def test_we_initiate(self) -> None:
        """It answers us, with and without a psk; a ping passes; a wrong psk gives no keys."""
        far = self.far
        for index, psk in enumerate((PSK, NO_PSK), 0x80000001):
            far.set_peer(psk)
            sent, answer = far.responded(psk, index)
            keys = sent.answered(answer)
            far.socket.send(seal(keys, 0, b""))
            far.socket.send(seal(keys, 1, echo_request("10.9.9.2", "10.9.9.1")))
            reply = b""
            while not reply:  # its keepalives
                reply = opened(keys, far.receive(4), index)
            self.assertEqual((reply[20], reply[12:20]), (0, bytes([10, 9, 9, 1, 10, 9, 9, 2])))
            self.assertEqual(reply[28:32], b"ping")
            self.assertTrue(far.handshakes())
        wrong, answer = far.responded(PSK, 9)
        error = self.assertRaises(RemoteProtocolError, wrong.answered, answer)
        self.assertEqual(error.reason, "handshake_decrypt")

    def test_it_initiates(self) -> None:
        """We read its initiation; it takes our answer under the right psk, and no other."""
        for far, psk, other in (
            (self.far, PSK, NO_PSK),
            (WireGuardGo(self, self.path), NO_PSK, PSK),
        ):
            far.set_peer(psk)
            before = time.time_ns()
            far.call()
            initiation = far.receive(INITIATION)
            self.assertTrue(mac1_valid(initiation, mac1_key(far.ours.public)))
            received = InitiationReceived(far.ours, initiation, os.urandom)
            self.assertEqual(received.public_key, far.theirs.public)
            received.open()
            stamp = tai64n.unpack(received.stamp)
            self.assertTrue(before - tai64n.WHITENING <= stamp <= time.time_ns(), stamp)
            # The second answer is the positive control of the first.
            far.socket.send(far.answer(initiation, other, 1)[0])
            message, keys = far.answer(initiation, psk, 2)
            far.socket.send(message)
            self.assertEqual(opened(keys, far.receive(4), 2), b"")
            self.assertTrue(far.handshakes())

    def test_our_cookie(self) -> None:
        """It takes the cookie that we give it: its next initiation has the mac2 for it."""
        far = self.far
        far.set_peer(PSK)
        far.call()
        first = far.receive(INITIATION)
        checker = CookieChecker(cookie_key(far.ours.public), os.urandom, COOKIE_FIRST_BYTES)
        self.assertFalse(checker.mac2_valid(first, ADDRESS, 0.0))
        index = struct.unpack_from("<I", first, 4)[0]
        far.socket.send(checker.reply(first, index, ADDRESS, 0.0))
        second = far.receive(INITIATION)  # after its 5 s
        self.assertTrue(checker.mac2_valid(second, ADDRESS, 5.0))
        self.assertFalse(checker.mac2_valid(second, ADDRESS[::-1], 5.0))
        message, keys = far.answer(second, PSK, 3)
        far.socket.send(message)
        self.assertEqual(opened(keys, far.receive(4), 3), b"")

    def test_its_cookie(self) -> None:
        """Under load it demands a cookie; we open it, and are answered with its mac2."""
        far = self.far
        far.set_peer(PSK)
        sent: list[InitiationSent] = []

        def initiate(cookie: bytes) -> None:
            sent.append(far.initiation(PSK, len(sent), cookie))
            far.socket.send(sent[-1].message)

        reply = far.under_load(lambda: initiate(b""), COOKIE_REPLY)
        index = struct.unpack_from("<I", reply, 4)[0]
        key, message = cookie_key(far.theirs.public), sent[index].message
        cookie = open_cookie_reply(reply, key, index, message, COOKIE_FIRST_BYTES)
        answer = far.under_load(lambda: initiate(cookie), RESPONSE)
        index = struct.unpack_from("<I", answer, 8)[0]
        keys = sent[index].answered(answer)
        # It is under load still: without the cookie it asks for it, as before.
        far.under_load(lambda: initiate(b""), COOKIE_REPLY)
        far.socket.send(seal(keys, 0, b""))
        wait_until(far.handshakes, "its end of the session", 5)

    def test_its_cookie_for_an_answer(self) -> None:
        """Under load it demands a cookie for our answer, too, and takes the one with its mac2."""
        far = self.far
        far.set_peer(PSK)
        far.call()
        far.latest = far.receive(INITIATION)
        given: list[tuple[bytes, SessionKeys]] = []

        def answer(psk: bytes, cookie: bytes) -> None:
            given.append(far.answer(far.latest, psk, len(given), cookie))
            far.socket.send(given[-1][0])

        # Under the wrong psk: it is not to take one before it is under load.
        reply = far.under_load(lambda: answer(NO_PSK, b""), COOKIE_REPLY)
        index = struct.unpack_from("<I", reply, 4)[0]
        key = cookie_key(far.theirs.public)
        cookie = open_cookie_reply(reply, key, index, given[index][0], COOKIE_FIRST_BYTES)
        keepalive = far.under_load(lambda: answer(PSK, cookie), 4)
        index = struct.unpack_from("<I", keepalive, 4)[0]
        self.assertEqual(opened(given[index][1], keepalive, index), b"")


class DebiansMessages(Messages, SynchronousTestCase):
    program = "wireguard-go"


if os.environ.get("WIREGUARD_GO"):

    class NamedMessages(Messages, SynchronousTestCase):
        program = os.environ["WIREGUARD_GO"]
