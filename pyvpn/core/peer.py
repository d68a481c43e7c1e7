"""One peer: its sessions, endpoint, staged packets and counters. It knows no other peer."""

from __future__ import annotations

from typing import ClassVar

from pyvpn.core import control
from pyvpn.core.admission import Debit
from pyvpn.core.burst import Endpoint
from pyvpn.core.leases import Lease
from pyvpn.core.mailbox import Mailbox
from pyvpn.core.pathmtu import PathMTU
from pyvpn.core.paths import PathValidation
from pyvpn.core.polls import Polls
from pyvpn.core.timers import NEVER, KeepaliveTimer
from pyvpn.core.transport import REJECT_AFTER_TIME, Session

#: Packets that wait for a session, a peer (docs/protocol.rst, "Limits").
STAGED_PACKETS = 128
STAGED_BYTES = 256 << 10


class Peer:
    """The other end of a tunnel.

    A responder keeps a new session as *next* until the first valid datagram on it makes it
    *current*; what was current stays as *previous*, to receive what is still under way.

    :ivar endpoint: where its datagrams go; ``mtu``: how large they may be.
    :ivar last_heard: ``now`` of the last authenticated datagram.
    :ivar rx_bytes: inner bytes received; ``tx_bytes`` sent; the same for packets. Of a stock peer
        the bytes of all its datagrams, as WireGuard counts them.
    """

    __slots__ = (
        "current",
        "endpoint",
        "keepalive",
        "last_heard",
        "mtu",
        "next",
        "paths",
        "previous",
        "rx_bytes",
        "rx_packets",
        "staged",
        "staged_bytes",
        "staged_since",
        "tx_bytes",
        "tx_packets",
    )

    #: Whether it speaks our own protocol: login, control and segment frames.
    native: ClassVar[bool] = True

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self.paths = PathValidation()
        self.mtu = PathMTU()
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None
        self.keepalive = KeepaliveTimer()
        # A list, at most 128 long and mostly empty: an empty deque takes 760 bytes a peer.
        self.staged: list[bytes] = []
        self.staged_bytes = 0
        self.staged_since = 0.0
        self.last_heard: float | None = None
        self.rx_bytes = self.rx_packets = 0
        self.tx_bytes = self.tx_packets = 0

    def sessions(self) -> list[Session]:
        """Return the sessions that exist, previous, current, next."""
        return [s for s in (self.previous, self.current, self.next) if s is not None]

    def stage(self, packet: bytes, now: float) -> list[bytes]:
        """Keep a packet until there is a session; return the oldest ones that had to go for it."""
        if not self.staged:
            self.staged_since = now
        self.staged.append(packet)
        self.staged_bytes += len(packet)
        dropped = []
        while len(self.staged) > STAGED_PACKETS or self.staged_bytes > STAGED_BYTES:
            dropped.append(self.staged.pop(0))
            self.staged_bytes -= len(dropped[-1])
        return dropped

    @property
    def staged_expiry(self) -> float:
        """When the staged packets are too old to be of use, as the session that they would need."""
        return self.staged_since + REJECT_AFTER_TIME if self.staged else NEVER

    def unstage(self) -> list[bytes]:
        """Return all staged packets, oldest first, and forget them."""
        packets, self.staged = self.staged, []
        self.staged_bytes = 0
        return packets

    def drop(self, session: Session) -> None:
        """Forget one session."""
        if session is self.previous:
            self.previous = None
        elif session is self.current:
            self.current = None
        elif session is self.next:
            self.next = None


class ServerPeer(Peer):
    """One device of one user."""

    __slots__ = (
        "config_due",
        "config_frames",
        "config_revision",
        "config_tries",
        "device",
        "hello_after",
        "hold_due",
        "lease",
        "mailbox",
        "name",
        "next_debit",
        "next_endpoint",
        "next_on_poll",
        "next_stamp",
        "pending_hello",
        "polls",
        "stamp_seen",
        "started",
        "user",
    )

    def __init__(self, user: str, device: bytes) -> None:
        super().__init__()
        self.user = user
        self.device = device
        self.name = ""
        self.lease: Lease | None = None
        #: The highest stamp of a right login, persisted or not.
        self.stamp_seen = b""
        self.next_stamp = b""
        self.next_endpoint: Endpoint | None = None
        #: What the login that made *next* took; None once it was refunded.
        self.next_debit: Debit | None = None
        self.config_frames: list[control.ConfigPart] = []
        self.config_revision = 0
        self.config_tries = 0
        self.config_due = NEVER
        self.pending_hello = False
        #: Until then another HELLO is too many.
        self.hello_after = -NEVER
        #: Until then, at most, packets wait for the client's CONFIG_ACK; NEVER: none need to.
        self.hold_due = NEVER
        #: Whether *next* agreed on delivery on poll.
        self.next_on_poll = False
        #: What waits for a poll; None: the last session agreed on delivery at once.
        self.mailbox: Mailbox | None = None
        self.polls = Polls()
        #: ``now`` at which the present connection, rekeys included, began.
        self.started = 0.0
