"""What the cores tell their owners, and ask them; taken with ``next_event()``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from pyvpn.core.burst import Endpoint
from pyvpn.core.control import Config
from pyvpn.core.login import LoginFlags

# -- from the hub ----------------------------------------------------------------------------------


@frozen
class LoginRequested:
    """A login passed every check of the core; answer with :meth:`VPNServer.login_decided`."""

    id: int
    user: str
    device: bytes


@frozen
class LeaseRequested:
    """A device says hello; answer with :meth:`VPNServer.lease_decided`."""

    id: int
    user: str
    device: bytes
    wanted4: IPv4Address | None
    wanted6: IPv6Address | None
    name: str


@frozen
class SessionConfirmed:
    """The first valid datagram on a new session: ``stamp`` (TAI64N) is now to be persisted."""

    user: str
    device: bytes
    stamp: bytes
    endpoint: Endpoint
    #: False for the rekey of a session that was alive.
    new: bool


@frozen
class SessionEnded:
    """A device's session is over; ``reason`` is a counter-like word."""

    user: str
    device: bytes
    reason: str


@frozen
class LeaseLost:
    """A device's addresses went to another one; it gets new ones when it asks."""

    user: str
    device: bytes


@frozen
class ConfigRefused:
    """A client could not apply what the hub has told it; ``status`` is the client's word for why.

    Its addresses and routes are what they were before.
    """

    user: str
    device: bytes
    status: int


# -- of stock WireGuard peers ----------------------------------------------------------------------


@frozen
class WireGuardConnected:
    """A handshake with a stock peer came to keys; ``new`` is False for a rekey of live ones."""

    public_key: bytes
    endpoint: Endpoint
    new: bool


@frozen
class WireGuardDisconnected:
    """There are no keys any more for a stock peer; ``reason`` is a counter-like word."""

    public_key: bytes
    reason: str


# -- from a client ---------------------------------------------------------------------------------


@frozen
class ResolveServer:
    """The server's name is to be resolved; answer with :meth:`VPNClient.server_resolved`."""


@frozen
class StampUsed:
    """A login was sent; this is the highest stamp used so far (Unix ns), to be persisted."""

    nanoseconds: int


@frozen
class Connected:
    """The hub answered a login; ``endpoint`` is where it is, ``flags`` its choice."""

    endpoint: Endpoint
    flags: LoginFlags


@frozen
class NotGranted:
    """The hub answered a login, but lacks what the client must have; the answer is not used.

    Said with each such answer: the client goes on trying unless it is stopped.
    """

    missing: LoginFlags


@frozen
class Configured:
    """The hub told addresses and more, checked; they are to be applied.

    Answer with :meth:`VPNClient.config_applied` when packets can be taken.
    """

    config: Config
    revision: int


@frozen
class MTUFound:
    """How large a packet the path takes: the TUN's MTU should be this, if no option says less.

    At least 1280; said when it is found and whenever it is found to be another.
    """

    mtu: int


@frozen
class NoAnswer:
    """Nobody has answered for 15 s; said once an outage."""


@frozen
class Disconnected:
    """There is no session any more; the client goes on trying unless it was stopped."""

    reason: str


@frozen
class Refused:
    """The hub let us in and then said why not; the next try is in 300 s.

    ``reason`` is a :class:`control.ByeReason`, or the number of one that a later hub knows.
    """

    reason: int
    text: str
