"""The UNIX socket at which ``wg`` finds a WireGuard interface that lives in a process."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet import inotify
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPullProducer, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from zope.interface import implementer

from pyvpn.errors import StartError
from pyvpn.uapi import Changes, DeviceStatus, SetReader, UAPIError, format_errno, format_get

#: Where ``wg`` looks, and nowhere else.
UAPI_DIRECTORY: Final = Path("/var/run/wireguard")

#: The longest line that makes sense has 110 bytes.
MOST_LINE: Final = 4096
#: One request, in bytes: 2^16 IPv6 networks, or 10,000 peers, are a quarter of it.
MOST_REQUEST: Final = 16 << 20
#: At the same time; ``wg`` makes one for each thing it does.
MOST_CONNECTIONS: Final = 16
#: Seconds in which a line has to come, or a part of an answer has to be read.
PATIENCE: Final = 30.0
#: Peers in one piece of an answer: less than a millisecond.
PEERS_AT_ONCE: Final = 50
#: Seconds of rest after a connection could not be taken (no descriptor is left).
REST: Final = 1.0


class Control(Protocol):
    """A :class:`.wireguardcontrol.WireGuardControl`."""

    def get(self) -> DeviceStatus: ...

    def set(self, changes: Changes) -> Deferred[Any] | None: ...


class UAPISocket:
    """Listens at ``DIRECTORY/INTERFACE.sock``, for root and who made it.

    :meth:`open` and :meth:`serve` are two steps, so that a program can fork, or give up its
    privileges, between them: who connects meanwhile waits.

    :param interface: the TUN's name.
    :param control: carries out the requests.
    :param reactor: the global one, at :meth:`serve`, if None.
    :param on_removed: called once when somebody else removes the socket, which is how some ask an
        interface to end.
    """

    _log = Logger()

    def __init__(
        self,
        interface: str,
        control: Control,
        reactor: Any = None,
        directory: Path = UAPI_DIRECTORY,
        on_removed: Callable[[], None] | None = None,
    ) -> None:
        self.path = directory / f"{interface}.sock"
        self._control = control
        self._reactor = reactor
        self._on_removed = on_removed
        self._socket: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._acceptor: _Acceptor | None = None
        self._watch: inotify.INotify | None = None

    def open(self) -> None:
        """Make the socket; a stale one is replaced. Needs no reactor.

        :raises StartError: somebody answers there already, or it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(self.path)
            # The mode has to be right before anybody can connect.
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(self.path))
            finally:
                os.umask(before)
            self._inode = _inode(self.path)
            listener.listen(MOST_CONNECTIONS)
            listener.setblocking(False)
        except (OSError, ValueError) as error:
            listener.close()
            self._unlink()
            raise StartError(
                f"{self.path}, where wg would look, cannot be made:"
                f" {getattr(error, 'strerror', None) or error}"
            ) from error
        except BaseException:
            listener.close()
            raise
        self._socket = listener

    def serve(self) -> None:
        """Take requests from now on.

        :raises StartError: :meth:`open` was not called.
        """
        if self._socket is None:
            raise StartError(f"{self.path} is not open")
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self._acceptor = _Acceptor(self._socket, self._control, self._reactor)
        self._acceptor.start()
        if self._on_removed is not None:
            self._begin_watch()

    def close(self) -> None:
        """Hang up on all, close, and remove the socket if it is still ours; harmless twice."""
        self._end_watch()
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._unlink()

    def _unlink(self) -> None:
        """Remove the socket, but never another one that took its place."""
        ours, self._inode = self._inode, None
        if ours is None or _inode(self.path) != ours:
            return
        try:
            self.path.unlink()
        except OSError as error:
            # Without privilege (any more); wg and the next start remove what nobody listens on.
            self._log.info("{path} stays: {reason}", path=self.path, reason=error.strerror)

    # Whether it is still there

    def _begin_watch(self) -> None:
        # ATTRIB: the number of names changes, as long as the socket itself is open.
        what = inotify.IN_ATTRIB | inotify.IN_MOVE_SELF
        try:
            self._watch = inotify.INotify(self._reactor)
            self._watch.startReading()
            self._watch.watch(
                FilePath(os.fspath(self.path)), what, callbacks=[lambda *_: self._look()]
            )
        except (OSError, inotify.INotifyError) as error:
            self._log.warn("{path} is not watched: {error}", path=self.path, error=error)
        self._look()  # it may have gone before we watched

    def _look(self) -> None:
        if self._inode is None or _inode(self.path) == self._inode:
            return
        self._inode = None
        self._end_watch()
        if self._on_removed is not None:
            self._on_removed()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            # Not loseConnection: it closes in the reactor's next turn, which may never come.
            watch.stopReading()
            watch.connectionLost(Failure(CONNECTION_DONE))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody listens.

    :raises StartError: somebody does, or it is something else.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path} is in the way, and it is no socket; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)  # where the backlog is full, somebody is alive
        try:
            asking.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
    raise StartError(
        f"another program is this WireGuard interface already (it listens on {path}); stop it, or"
        " take another name"
    )


@implementer(IReadDescriptor)
class _Acceptor:
    """Takes connections. Twisted's own port would remove the socket's name, whoever's it is."""

    _log = Logger()

    def __init__(self, listener: socket.socket, control: Control, reactor: Any) -> None:
        self._listener = listener
        self._reactor = reactor
        self._resting: Any = None
        self.open: set[_Conversation] = set()
        self._factory = Factory.forProtocol(lambda: _Conversation(control, reactor, self.open))
        self._factory.noisy = False

    def start(self) -> None:
        self._resting = None
        self._reactor.addReader(self)

    def stop(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        else:
            self._reactor.removeReader(self)
        for conversation in list(self.open):
            conversation.hang_up()

    def doRead(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._log.warn("a connection cannot be taken: {error}", error=error)
            self._reactor.removeReader(self)
            self._resting = self._reactor.callLater(REST, self.start)
            return
        with connection:
            if len(self.open) >= MOST_CONNECTIONS:
                self._log.warn("{count} connections are open already", count=len(self.open))
                return
            connection.setblocking(False)
            self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)

    def fileno(self) -> int:
        return self._listener.fileno()

    def logPrefix(self) -> str:
        return "UAPI"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops; :meth:`UAPISocket.close` does the rest."""


@implementer(IPullProducer)
class _Conversation(StreamProtocol, TimeoutMixin):
    """One connection: requests one after the other, each answered before the next is read."""

    _log = Logger()
    transport: Any

    def __init__(self, control: Control, reactor: Any, others: set[_Conversation]) -> None:
        self._control = control
        self._reactor = reactor
        self._others = others
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._busy = self._going = self._lost = False
        #: What takes the next line; and the bytes of this request so far.
        self._take: Callable[[bytes], None] = self._take_operation
        self._size = 0
        self._reader = SetReader()
        self._refusal: UAPIError | None = None
        self._pieces: Iterator[str] = iter(())

    def callLater(self, period: float, call: Callable[[], None]) -> Any:  # TimeoutMixin's
        return self._reactor.callLater(period, call)

    def connectionMade(self) -> None:
        self._others.add(self)
        self.setTimeout(PATIENCE)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._lost = True
        self._others.discard(self)
        self.setTimeout(None)
        self._lines.clear()
        self._pieces = iter(())

    def timeoutConnection(self) -> None:
        self._log.warn("wg is silent for {seconds:g} s: hung up", seconds=PATIENCE)
        self.hang_up()

    def hang_up(self) -> None:
        self._lines.clear()
        self.transport.abortConnection()

    # Requests

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.resetTimeout()
            self._lines.extend(lines)
        if len(self._rest) > MOST_LINE:
            self._lines.append(self._rest)  # too long already: refused at its turn
            self._rest = b""
        self._go_on()

    def _go_on(self) -> None:
        if self._going:
            return
        self._going = True
        try:
            while self._lines and not self._busy:
                self._take_line(self._lines.popleft())
        finally:
            self._going = False

    def _take_line(self, line: bytes) -> None:
        self._size += len(line) + 1
        if len(line) > MOST_LINE or self._size > MOST_REQUEST:
            self._finish(UAPIError(errno.E2BIG, "this is too long for a request"))
            self._lose()
        else:
            self._take(line)

    def _take_operation(self, line: bytes) -> None:
        if line == b"set=1":
            self._reader, self._refusal = SetReader(), None
            self._take = self._take_change
        elif line == b"get=1":
            self._take = self._take_end_of_get
        else:
            self._log.warn("neither get=1 nor set=1: hung up")
            self._lose()

    def _take_end_of_get(self, line: bytes) -> None:
        if line:
            self._finish(UAPIError(errno.EINVAL, "get=1 is followed by an empty line alone"))
            return
        self._begin()
        self._pieces = format_get(self._control.get())
        self.transport.registerProducer(self, False)

    def _take_change(self, line: bytes) -> None:
        if line:
            # After a fault the rest is read as well: who is hung up on while it still writes may
            # die of that and never see the answer.
            if self._refusal is None:
                try:
                    self._reader.line(line.decode("ascii", "backslashreplace"))
                except UAPIError as error:
                    self._refusal = error
            return
        if self._refusal is not None:
            self._finish(self._refusal)
            return
        self._begin()
        done = maybeDeferred(self._set)
        done.addCallbacks(lambda _: self._finish(None), self._failed)

    def _set(self) -> Deferred[Any] | None:
        return self._control.set(self._reader.changes())

    # Answers

    def _begin(self) -> None:
        """What follows waits for the answer, and so does its sender."""
        self._busy = True
        self.setTimeout(None)
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport has sent the last piece of an answer to ``get``."""
        self.setTimeout(PATIENCE)
        try:
            text = "".join(islice(self._pieces, PEERS_AT_ONCE))
        except Exception:
            self.transport.unregisterProducer()
            self._failed(Failure())
            return
        if text:
            self.transport.write(text.encode())
        else:
            self.transport.unregisterProducer()
            self._finish(None)

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._pieces = iter(())

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, UAPIError):
            self._log.failure("a request of wg failed", failure=failure)
            error = UAPIError(errno.EIO, str(error))
        self._finish(error)

    def _finish(self, error: UAPIError | None) -> None:
        """Answer, and be ready for the next request."""
        if error is not None:
            self._log.warn("a request of wg is refused: {reason}", reason=error)
        self._reader, self._refusal = SetReader(), None
        self._take, self._size = self._take_operation, 0
        if self._lost:
            return
        self.transport.write(format_errno(error.code if error is not None else 0).encode())
        if self._busy:
            self._busy = False
            self.setTimeout(PATIENCE)
            self.transport.resumeProducing()
            self._go_on()

    def _lose(self) -> None:
        self._lines.clear()
        self._busy = True
        self.transport.loseConnection()
