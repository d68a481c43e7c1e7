"""WireGuard's messages 1 and 2, and the keys of its MACs and cookies: byte-exact, both roles.

Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s between two random keys (docs/protocol.rst, "WireGuard
peers"; the WireGuard paper, 5.4). Message 3, the cookie reply, is :mod:`.cookies` with
:data:`COOKIE_FIRST_BYTES`; message 4 is :mod:`.transport`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2s

from attrs import frozen

from pyvpn.core.cookies import mac1_valid, with_macs
from pyvpn.core.noise import IK_PSK2, KEY_SIZE, HandshakeState, KeyPair
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

INITIATION, RESPONSE, COOKIE_REPLY = 1, 2, 3
INITIATION_SIZE, RESPONSE_SIZE, COOKIE_REPLY_SIZE = 148, 92, 64
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
#: What :mod:`.cookies` wants to know of a cookie reply: type 3 and three zeros.
COOKIE_FIRST_BYTES = bytes([COOKIE_REPLY, 0, 0, 0])
#: A peer without a pre-shared key has this one.
NO_PSK = bytes(KEY_SIZE)

_NAME = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_INITIATION_PREFIX = struct.Struct("<II")  # type with its three zeros, sender
_RESPONSE_PREFIX = struct.Struct("<III")  # the same, receiver
_MACS = 32

RandomBytes = Callable[[int], bytes]


def mac1_key(public: bytes) -> bytes:
    """Return the 32-byte key of mac1 in messages to the owner of this public key."""
    return blake2s(b"mac1----" + public).digest()


def cookie_key(public: bytes) -> bytes:
    """Return the 32-byte key of the cookie replies that the owner of this public key sends."""
    return blake2s(b"cookie--" + public).digest()


def kind_of(message: bytes) -> int:
    """Return a message's type, its first byte.

    :raises RemoteProtocolError: ``datagram_length`` below 4 bytes; ``handshake_version`` if one of
        the three reserved bytes is not zero.
    """
    if len(message) < 4:
        raise RemoteProtocolError("datagram_length")
    if any(message[1:4]):
        raise RemoteProtocolError("handshake_version")
    return message[0]


@frozen
class SessionKeys:
    """What a handshake gives one side.

    :ivar send: 32 bytes.
    :ivar receive: 32 bytes.
    :ivar remote_index: the other side's receiver index for this session.
    """

    send: bytes
    receive: bytes
    remote_index: int


class InitiationSent:
    """The initiator's side of one handshake: writes message 1 and reads the 2 that answers it.

    :param psk: 32 bytes; :data:`NO_PSK` if there is none.
    :param index: u32 that the answer is to name.
    :param stamp: 12 bytes TAI64N, later than any this peer was sent.
    :param mac1_key: :func:`mac1_key` of ``remote_public``.
    :param cookie: 16 bytes, if the other side gave one in the last 120 s.
    :raises RemoteProtocolError: ``handshake_low_order`` for a remote key that is none.

    :ivar message: the 148 bytes to send.
    """

    __slots__ = ("_public", "_state", "index", "message")

    def __init__(
        self,
        static: KeyPair,
        remote_public: bytes,
        psk: bytes,
        *,
        index: int,
        stamp: bytes,
        mac1_key: bytes,
        random_bytes: RandomBytes,
        cookie: bytes = b"",
    ) -> None:
        self._public = static.public
        self.index = index
        self._state = HandshakeState(
            _NAME,
            IK_PSK2,
            initiator=True,
            prologue=IDENTIFIER,
            static=static,
            remote_static=remote_public,
            psks=(_checked(psk),),
            random_bytes=random_bytes,
        )
        prefix = _INITIATION_PREFIX.pack(INITIATION, index)
        self.message = with_macs(prefix + self._state.write_message(stamp), mac1_key, cookie)

    def answered(self, message: bytes) -> SessionKeys:
        """Read a message 2; a wrong one leaves this handshake as it was.

        :raises RemoteProtocolError: the reason for which it is not the answer to our message 1.
        """
        if len(message) != RESPONSE_SIZE:
            raise RemoteProtocolError("datagram_length")
        kind, sender, receiver = _RESPONSE_PREFIX.unpack_from(message)
        if kind != RESPONSE:
            raise RemoteProtocolError("handshake_version")
        if receiver != self.index:
            raise RemoteProtocolError("response_unexpected")
        if not mac1_valid(message, mac1_key(self._public)):
            raise RemoteProtocolError("mac1_invalid")
        state = self._state.copy()
        state.read_message(message[_RESPONSE_PREFIX.size : -_MACS])
        send, receive = state.split()
        return SessionKeys(send, receive, sender)


class InitiationReceived:
    """The responder's side: who says to have sent a message 1, then its stamp, then the answer.

    :ivar public_key: the 32-byte key that the sender names; proved only by :meth:`open`.
    :ivar stamp: 12 bytes TAI64N, after :meth:`open`; whether it is new is for the caller to judge.
    :ivar remote_index: u32.
    """

    __slots__ = ("_rest", "_state", "public_key", "remote_index", "stamp")

    def __init__(self, static: KeyPair, message: bytes, random_bytes: RandomBytes) -> None:
        """Read as far as the sender's key, so that a stranger costs one exchange and not two.

        :param message: its length and mac1 were checked by the caller.
        :raises RemoteProtocolError: the counter's reason.
        """
        if len(message) != INITIATION_SIZE:
            raise RemoteProtocolError("datagram_length")
        kind, self.remote_index = _INITIATION_PREFIX.unpack_from(message)
        if kind != INITIATION:
            raise RemoteProtocolError("handshake_version")
        self._state = HandshakeState(
            _NAME,
            IK_PSK2,
            initiator=False,
            prologue=IDENTIFIER,
            static=static,
            psks=(),
            random_bytes=random_bytes,
        )
        self._rest = self._state.read_static(message[_INITIATION_PREFIX.size : -_MACS])
        self.public_key = self._state.rs
        self.stamp = b""

    def open(self) -> None:
        """Read the rest: the sender owns its key, and :attr:`stamp` is known. Once.

        :raises RemoteProtocolError: ``handshake_low_order``, ``handshake_decrypt``.
        """
        rest, self._rest = self._rest, b""
        if not rest:
            raise LocalProtocolError("an initiation is opened once")
        self.stamp = self._state.read_message(rest)

    def answer(
        self, psk: bytes, *, index: int, mac1_key: bytes, cookie: bytes = b""
    ) -> tuple[bytes, SessionKeys]:
        """Return the message 2 to send (92 bytes) and the keys of the new session. Once.

        :param psk: 32 bytes; :data:`NO_PSK` if there is none.
        :param index: u32 that the sender is to put into its datagrams.
        :param mac1_key: :func:`mac1_key` of :attr:`public_key`.
        :param cookie: 16 bytes, if the sender gave one in the last 120 s.
        """
        if not self.stamp:
            raise LocalProtocolError("an initiation is opened before it is answered")
        self._state.add_psk(_checked(psk))
        prefix = _RESPONSE_PREFIX.pack(RESPONSE, index, self.remote_index)
        message = with_macs(prefix + self._state.write_message(b""), mac1_key, cookie)
        receive, send = self._state.split()
        return message, SessionKeys(send, receive, self.remote_index)


def _checked(psk: bytes) -> bytes:
    if len(psk) != KEY_SIZE:
        raise LocalProtocolError("a pre-shared key has 32 bytes; none is 32 zeros")
    return psk
