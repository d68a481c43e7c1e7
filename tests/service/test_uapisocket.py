"""The socket that wg talks to: requests are answered in turn; nobody holds it up or fills it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StartError
from pyvpn.service.uapisocket import UAPISocket, _Conversation
from pyvpn.uapi import Changes, DeviceStatus, PeerChange, PeerStatus, UAPIError
from tests.tx.worlds import reactor_for, run_until

KEY = "aa" * 32
ANSWER = f"listen_port=7\npublic_key={KEY}\n"
OK, EINVAL, EIO, EPROTO, E2BIG = (
    b"errno=0\n\n",
    b"errno=-22\n\n",
    b"errno=-5\n\n",
    b"errno=-71\n\n",
    b"errno=-7\n\n",
)


class FakeControl:
    """Notes what it is to do; answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Changes | str] = []
        self.answer: Any = None
        self.peers = 1
        self.given = 0

    def get(self) -> DeviceStatus:
        self.asked.append("get")
        return DeviceStatus(listen_port=7, peers=self._peers())

    def _peers(self) -> Iterator[PeerStatus]:
        for number in range(self.peers):
            self.given += 1
            yield PeerStatus(number.to_bytes(32, "big"), allowed_ips=[ip_network("10.0.0.0/8")])

    def set(self, changes: Changes) -> Deferred[Any] | None:
        self.asked.append(changes)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class ConversationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.control = FakeControl()
        self.clock = Clock()
        self.others: set[Any] = set()
        self.transport = StringTransport()
        self.conversation = _Conversation(self.control, self.clock, self.others)
        self.conversation.makeConnection(self.transport)
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: LogEvent) -> None:
        if event["log_level"].name == "warn":
            self.logged.append(formatEvent(event))

    def say(self, data: bytes) -> bytes:
        """What is answered at once, while the transport takes all there is to send."""
        self.transport.clear()
        self.conversation.dataReceived(data)
        self.drain()
        return self.transport.value()

    def drain(self) -> None:
        while self.transport.producer is not None:
            self.transport.producer.resumeProducing()

    def test_set(self) -> None:
        """A request to change something is carried out whole, then answered."""
        answer = self.say(f"set=1\nlisten_port=1\npublic_key={KEY}\nremove=true\n\n".encode())
        self.assertEqual(answer, OK)
        removed = PeerChange(bytes.fromhex(KEY), remove=True)
        self.assertEqual(self.control.asked, [Changes(listen_port=1, peers=(removed,))])

    def test_get(self) -> None:
        """What the interface is comes with errno and an empty line at the end."""
        answer = self.say(b"get=1\n\n")
        self.assertTrue(answer.startswith(b"listen_port=7\npublic_key=00"))
        self.assertTrue(answer.endswith(b"allowed_ip=10.0.0.0/8\nerrno=0\n\n"))
        self.assertEqual(answer.count(b"\n\n"), 1)

    def test_byte_by_byte(self) -> None:
        """However the bytes arrive, the answers are the same."""
        data = b"set=1\nfwmark=7\n\nget=1\n\nset=1\n\n"
        whole = self.say(data)
        self.assertEqual(b"".join(self.say(bytes([byte])) for byte in data), whole)
        self.assertEqual(whole.count(b"errno=0\n\n"), 3)
        self.assertEqual(self.control.asked[:3], self.control.asked[3:])

    def test_refusals(self) -> None:
        """A bad line anywhere is answered after the whole request, nothing is done, one log line;
        the next request is served.
        """
        table = [
            (b"set=1\nlisten_port=x\nlisten_port=1\n\n", EINVAL),
            (b"set=1\nlisten_port=1\nnonsense\nlisten_port=x\n\n", EPROTO),
            (b"set=1\nlisten_port=\xff\xfe\n\n", EINVAL),
            (b"set=1\nget=1\n\n", EINVAL),
            (b"get=1\nx\n", EINVAL),
        ]
        for data, expected in table:
            self.logged.clear()
            self.assertEqual(self.say(data), expected, data)
            self.assertEqual(len(self.logged), 1, self.logged)
            self.assertEqual(self.control.asked, [])
        self.assertEqual(self.say(b"set=1\n\n"), OK)
        self.assertEqual(self.control.asked, [Changes()])

    def test_control_refuses(self) -> None:
        """What the interface refuses, at once or later, is its errno; a bug is EIO and logged."""
        late: Deferred[None]
        for error, expected in (
            (UAPIError(errno.EPERM, "not on a hub"), b"errno=-1\n\n"),
            (ValueError("oops"), EIO),
        ):
            self.control.answer = error
            self.assertEqual(self.say(b"set=1\n\n"), expected)
            self.control.answer = late = Deferred()
            self.assertEqual(self.say(b"set=1\n\n"), b"")
            late.errback(error)
            self.assertEqual(self.transport.value(), expected)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.assertIn("not on a hub", self.logged[0])

    def test_one_after_the_other(self) -> None:
        """While one request waits to be durable nothing more is read, and nothing is lost."""
        self.control.answer = first = Deferred()
        self.assertEqual(self.say(b"set=1\nfwmark=1\n\nset=1\nfwmark=2\n\nget=1\n\n"), b"")
        self.assertEqual(self.control.asked, [Changes(fwmark=1)])
        self.assertEqual(self.transport.producerState, "paused")
        self.control.answer = None
        first.callback(None)
        self.drain()
        self.assertEqual(self.control.asked, [Changes(fwmark=1), Changes(fwmark=2), "get"])
        self.assertEqual(self.transport.value().count(OK), 3)
        self.assertEqual(self.transport.producerState, "producing")

    def test_many_requests_at_once(self) -> None:
        """Thousands of requests in one read are answered one by one (no recursion)."""
        self.assertEqual(self.say(b"set=1\n\n" * 5000), OK * 5000)

    def test_other_operations(self) -> None:
        """Anything but get and set ends the connection without a word, as wireguard-go does."""
        self.assertEqual(self.say(b"set=2\nset=1\n\n"), b"")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.control.asked, [])

    def test_endless_line(self) -> None:
        """A line that does not end is not collected for ever."""
        self.say(b"set=1\n")
        self.assertEqual(self.say(b"x" * 4096), b"")
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(self.say(b"x"), E2BIG)
        self.assertTrue(self.transport.disconnecting)

    def test_endless_request(self) -> None:
        """A request that does not end is given up at 16 MiB; 2^16 networks are far below."""
        block = f"public_key={KEY}\n".encode()
        block += b"allowed_ip=2001:db8:1234:5678:9abc:def0:1234:5678/128\n" * 60
        self.say(b"set=1\n")
        sent = 6
        while sent + len(block) <= 16 << 20:
            self.conversation.dataReceived(block)
            sent += len(block)
        self.assertGreater(sent, (1 << 16) * 60)
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(self.say(block), E2BIG)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.control.asked, [])

    def test_silence(self) -> None:
        """Who says nothing for 30 s is hung up on; every line is a sign of life."""
        for _ in range(3):
            self.clock.advance(29)
            self.say(b"set=1\n\n")
        self.clock.advance(29)
        self.assertFalse(self.transport.disconnected)
        self.conversation.dataReceived(b"set=")  # no line
        self.clock.advance(2)
        self.assertTrue(self.transport.disconnected)

    def test_slow_reader(self) -> None:
        """An answer is made as fast as it is read, and who reads nothing for 30 s is hung up on."""
        self.control.peers = 1000
        self.conversation.dataReceived(b"get=1\n\n")
        producer = self.transport.producer
        for _ in range(5):
            self.clock.advance(29)
            producer.resumeProducing()
        self.assertLess(self.control.given, 300)
        self.assertGreater(self.control.given, 100)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(31)
        self.assertTrue(self.transport.disconnected)

    def test_slow_disk(self) -> None:
        """Who waits for us is not called silent."""
        self.control.answer = late = Deferred()
        self.say(b"set=1\n\n")
        self.clock.advance(100)
        self.assertFalse(self.transport.disconnected)
        late.callback(None)
        self.assertEqual(self.transport.value(), OK)

    def test_gone_before_the_answer(self) -> None:
        """Who hangs up while we work gets no answer, and nothing breaks."""
        self.control.answer = late = Deferred()
        self.say(b"set=1\n\nset=1\n\n")
        self.assertEqual(self.others, {self.conversation})
        self.conversation.connectionLost(Failure(CONNECTION_DONE))
        late.callback(None)
        self.assertEqual(self.transport.value(), b"")
        self.assertEqual(len(self.control.asked), 1)
        self.assertEqual(self.others, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_fault_in_the_middle_of_get(self) -> None:
        """When telling fails halfway the answer ends with EIO."""
        self.control._peers = lambda: (1 // 0 for _ in range(1))  # type: ignore[method-assign]
        self.assertEqual(self.say(b"get=1\n\n"), EIO)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.say(b"set=1\n\n"), OK)


class SocketTests(SynchronousTestCase):
    """Real sockets in a directory of the test's own."""

    def setUp(self) -> None:
        self.control = FakeControl()
        self.reactor = reactor_for(self)
        self.parent = Path(tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-"))
        self.addCleanup(shutil.rmtree, self.parent)
        self.directory = self.parent / "wireguard"
        self.removed = 0

    def make(self, **more: Any) -> UAPISocket:
        made = UAPISocket("wg7", self.control, self.reactor, self.directory, **more)
        self.addCleanup(made.close)
        return made

    def serving(self, **more: Any) -> UAPISocket:
        made = self.make(**more)
        made.open()
        made.serve()
        return made

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.connect(str(self.directory / "wg7.sock"))
        made.setblocking(False)
        return made

    def talk(self, asking: socket.socket, data: bytes, end: bytes = b"\n\n") -> bytes:
        """Say something; what comes back up to `end`, or until the other side hangs up."""
        answer = bytearray()

        def answered() -> bool:
            try:
                part = asking.recv(1 << 16)
            except BlockingIOError:
                return False
            answer.extend(part)
            return not part or answer.endswith(end)

        asking.sendall(data)
        run_until(self.reactor, answered)
        return bytes(answer)

    def note_removed(self) -> None:
        self.removed += 1

    def test_served(self) -> None:
        """It is made with its directory, for its owner only, answers several, and is removed."""
        made = self.serving()
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(made.path.stat().st_mode), 0o600)
        self.assertEqual(made.path, self.directory / "wg7.sock")
        first, second = self.connect(), self.connect()
        for asking in (first, second, first):
            self.assertEqual(self.talk(asking, b"set=1\nfwmark=1\n\n"), OK)
        self.assertTrue(self.talk(second, b"get=1\n\n").endswith(b"/8\nerrno=0\n\n"))
        made.close()
        self.assertFalse(made.path.exists())
        self.assertEqual(self.talk(first, b""), b"")
        made.close()

    def test_umask_is_kept(self) -> None:
        """Making the socket leaves the process's umask as it was."""
        before = os.umask(0o027)
        self.addCleanup(os.umask, before)
        self.serving()
        self.assertEqual(os.umask(0o027), 0o027)

    def test_who_comes_early_waits(self) -> None:
        """Who connects between open and serve is answered after it."""
        made = self.make()
        made.open()
        asking = self.connect()
        asking.sendall(b"set=1\n\n")
        made.serve()
        self.assertEqual(self.talk(asking, b""), OK)

    def test_a_large_answer(self) -> None:
        """What is more than the kernel takes at once arrives whole."""
        self.control.peers = 10_000
        self.serving()
        answer = self.talk(self.connect(), b"get=1\n\n")
        self.assertEqual(answer.count(b"public_key="), 10_000)
        self.assertTrue(answer.endswith(b"\nerrno=0\n\n"))

    def test_stale_socket(self) -> None:
        """What a killed process left behind is replaced."""
        self.directory.mkdir()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(self.directory / "wg7.sock"))
        self.serving()
        self.assertEqual(self.talk(self.connect(), b"set=1\n\n"), OK)

    def test_somebody_is_there(self) -> None:
        """An interface of that name that lives is left alone, however busy."""
        self.directory.mkdir()
        path = self.directory / "wg7.sock"
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(str(path))
            alive.listen(0)
            inode = path.stat().st_ino
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            for each in waiting:
                self.addCleanup(each.close)
                self.assertIn(str(path), str(self.assertRaises(StartError, self.make().open)))
                each.setblocking(False)
                each.connect_ex(str(path))
        self.assertEqual(path.stat().st_ino, inode)

    def test_something_else_is_there(self) -> None:
        """A file in its place is not removed."""
        self.directory.mkdir()
        path = self.directory / "wg7.sock"
        path.write_text("mine")
        self.assertIn("no socket", str(self.assertRaises(StartError, self.make().open)))
        self.assertEqual(path.read_text(), "mine")

    def test_no_directory(self) -> None:
        """Where it cannot be made the reason is said in one line, and a long path is no bug."""
        self.directory.write_text("a file")
        self.assertIn(str(self.directory), str(self.assertRaises(StartError, self.make().open)))
        self.directory = self.parent / ("x" * 100)
        self.assertIn("too long", str(self.assertRaises(StartError, self.make().open)))
        self.assertRaises(StartError, self.make().serve)

    def test_another_took_its_place(self) -> None:
        """At the end only our own socket is removed, not one that replaced it."""
        made = self.serving()
        made.path.unlink()
        made.path.write_text("another's")
        made.close()
        self.assertEqual(made.path.read_text(), "another's")

    def test_removed(self) -> None:
        """When somebody removes the socket we are told, once; that we close it is no news."""
        made = self.serving(on_removed=self.note_removed)
        self.assertEqual(self.talk(self.connect(), b"set=1\n\n"), OK)
        os.chmod(made.path, 0o600)  # an event, but nothing that matters
        self.assertEqual(self.talk(self.connect(), b"set=1\n\n"), OK)
        self.assertEqual(self.removed, 0)
        made.path.unlink()
        run_until(self.reactor, lambda: self.removed > 0)
        made.close()
        self.assertEqual(self.removed, 1)
        self.serving(on_removed=self.note_removed).close()
        self.reactor.doIteration(0)
        self.assertEqual(self.removed, 1)

    def test_moved_away(self) -> None:
        """Moving the socket is removing it, and so is replacing it."""
        made = self.serving(on_removed=self.note_removed)
        made.path.rename(self.parent / "elsewhere")
        run_until(self.reactor, lambda: self.removed > 0)
        self.assertEqual(self.removed, 1)

    def test_removed_before_it_is_served(self) -> None:
        """A socket that is gone before anybody watches is noticed as well."""
        made = self.make(on_removed=self.note_removed)
        made.open()
        made.path.unlink()
        made.serve()
        self.assertEqual(self.removed, 1)

    def test_too_many(self) -> None:
        """Of many connections at once those above the bound are hung up on; later ones are not."""
        self.serving()
        good = [self.connect() for _ in range(16)]
        for each in good:
            self.assertEqual(self.talk(each, b"set=1\n\n"), OK)
        self.assertEqual(self.talk(self.connect(), b""), b"")
        self.assertEqual(self.talk(good[0], b"set=1\n\n"), OK)
        good[1].close()
        again = self.connect()
        self.assertEqual(self.talk(again, b"set=1\n\n"), OK)

    def test_no_descriptor_left(self) -> None:
        """When a connection cannot be taken the reactor rests from it and goes on later."""
        made = self.serving()
        acceptor = made._acceptor
        assert acceptor is not None
        real = acceptor._listener

        class Full:
            def accept(self) -> Any:
                raise OSError(errno.EMFILE, "too many open files")

            def fileno(self) -> int:
                return real.fileno()

        self.patch(acceptor, "_listener", Full())
        asking = self.connect()
        run_until(self.reactor, lambda: acceptor._resting is not None)
        self.assertNotIn(acceptor, self.reactor.getReaders())
        self.patch(acceptor, "_listener", real)
        acceptor._resting.reset(0)
        self.assertEqual(self.talk(asking, b"set=1\n\n"), OK)
