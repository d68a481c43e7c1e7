"""Path validation: is the peer really where its datagrams come from?

A valid datagram proves who made it, not where that one is: anybody on the way can send it on from
any address. So the endpoint moves only when a challenge that went to the new address comes back
from there, and until then that address gets no more bytes than came from it (docs/protocol.rst,
"Paths").
"""

from __future__ import annotations

from attrs import frozen

from pyvpn.core.burst import Endpoint
from pyvpn.errors import RemoteProtocolError

#: Challenges to a peer, whatever the addresses, within :data:`CHALLENGE_TIME`.
CHALLENGES = 3
#: Seconds for which a challenge can be answered.
CHALLENGE_TIME = 5.0
#: Seconds until the same address is asked again: its answer may be on the way, and if one is lost,
#: the next should not be lost in the same moment.
CHALLENGE_SPACING = 0.5
#: Answers to the challenges of a peer within :data:`RESPONSE_TIME`.
RESPONSES = 5
RESPONSE_TIME = 1.0  # s
#: Bytes of a datagram with a challenge or the answer to one: 32 sealed.
FRAME_DATAGRAM = 64
#: What a client pads a challenge to, with which it looks for the hub at another address: the hub
#: can then answer it and ask back without sending more than it got.
PROBE_FRAME = 96


@frozen
class Challenge:
    """What was asked, of whom, when."""

    endpoint: Endpoint
    data: bytes
    sent: float


class PathValidation:
    """One peer's challenges under way, and what may be sent to an address that is not proven.

    :ivar open: the challenges that an answer may refer to.
    """

    __slots__ = ("_asked", "_responded", "_room", "_source", "open")

    def __init__(self) -> None:
        self.open: tuple[Challenge, ...] = ()
        self._asked: tuple[float, ...] = ()
        self._responded: tuple[float, ...] = ()
        self._source: Endpoint | None = None
        self._room = 0

    def arrived(self, endpoint: Endpoint, octets: int) -> None:
        """Note valid datagrams from an address that is not the peer's endpoint.

        The allowance is kept for the latest such address alone.
        """
        self._room = octets + (self._room if endpoint == self._source else 0)
        self._source = endpoint

    def spend(self, endpoint: Endpoint) -> None:
        """Take one frame's bytes from what an unproven address may be sent.

        :raises RemoteProtocolError: ``path_amplification``: it would get more than came from it.
        """
        if endpoint != self._source or self._room < FRAME_DATAGRAM:
            raise RemoteProtocolError("path_amplification")
        self._room -= FRAME_DATAGRAM

    def due(self, endpoint: Endpoint, now: float) -> bool:
        """Tell whether the address should be asked now; False while an answer may be on the way.

        :raises RemoteProtocolError: ``path_challenges_limited``.
        """
        for challenge in self.open:
            if challenge.endpoint == endpoint and now - challenge.sent < CHALLENGE_SPACING:
                return False
        if len(self._asked) == CHALLENGES and now - self._asked[0] < CHALLENGE_TIME:
            raise RemoteProtocolError("path_challenges_limited")
        return True

    def ask(self, endpoint: Endpoint, data: bytes, now: float) -> None:
        """Note a challenge that is being sent; ``data`` are its 16 random bytes."""
        self._asked = (*self._asked[1 - CHALLENGES :], now)
        self.open = (*self.open[1 - CHALLENGES :], Challenge(endpoint, data, now))

    def answered(self, endpoint: Endpoint, data: bytes, now: float) -> None:
        """Check an answer; when this returns, the peer is at ``endpoint``.

        :raises RemoteProtocolError: ``path_response_unexpected``: nothing was asked, too long ago,
            something else, or at another address.
        """
        for challenge in self.open:
            if (
                challenge.data == data
                and challenge.endpoint == endpoint
                and now - challenge.sent < CHALLENGE_TIME
            ):
                self.cancel()
                return
        raise RemoteProtocolError("path_response_unexpected")

    def cancel(self) -> None:
        """Take no more answers: the peer was heard where it is known to be, or has moved."""
        self.open = ()

    def respond(self, now: float) -> None:
        """Note an answer that is being sent.

        :raises RemoteProtocolError: ``path_responses_limited``.
        """
        if len(self._responded) == RESPONSES and now - self._responded[0] < RESPONSE_TIME:
            raise RemoteProtocolError("path_responses_limited")
        self._responded = (*self._responded[1 - RESPONSES :], now)
