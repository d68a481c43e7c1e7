"""Login v1: messages 0x50 and 0x51, the keys of a network token, and the key of a password.

Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s between a user's password key and the hub's login key.
docs/protocol.rst, "Login", is the specification. No MAC is keyed by anything that a candidate
password lets one compute, and nothing guessable enters a psk: so a capture holds no oracle.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from collections.abc import Callable
from enum import IntFlag
from hashlib import blake2s

from attrs import frozen

from pyvpn.core.cookies import MAC_SIZE, mac1_valid, with_macs
from pyvpn.core.names import USER_SIZE, user_name_valid
from pyvpn.core.noise import IK_PSK0_PSK2, HandshakeState, KeyPair
from pyvpn.errors import RemoteProtocolError

INITIATION, RESPONSE = 0x50, 0x51
INITIATION_SIZE, RESPONSE_SIZE = 208, 116
VERSION = 1
DEVICE_ID_SIZE = 16

_NAME = b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s"
_PREFIX = struct.Struct("<BBHI")  # type, version, zero, sender
_RESPONSE_PREFIX = struct.Struct("<BBHII")  # type, version, zero, sender, receiver
_PAYLOAD1 = struct.Struct("<BBHI12s16sB32s3s")
_PAYLOAD2 = struct.Struct("<BBHII12s")
_MACS = 32

#: scrypt 2^17, 8, 1 needs 128 MiB and a little; OpenSSL refuses above its default of 32 MiB.
_SCRYPT_OVERHEAD = 64 << 20

RandomBytes = Callable[[int], bytes]


class LoginFlags(IntFlag):
    """What the client offers in 0x50; the hub's choice in 0x51 is a subset."""

    DELIVER_ON_POLL = 1
    AES_256_GCM = 2
    SEGMENT_FRAMES = 4
    CODE_PRESENT = 8


ALL_FLAGS = LoginFlags(15)


@frozen
class NetworkKeys:
    """What both sides derive from the network's secret and the hub's public login key.

    :ivar login_public: 32 bytes, S_login.
    """

    login_public: bytes
    prologue: bytes
    psk0: bytes
    psk2: bytes
    mac1_to_server: bytes
    mac1_to_client: bytes
    cookie: bytes

    @classmethod
    def derive(cls, login_public: bytes, network_secret: bytes) -> NetworkKeys:
        """Derive all keys; both arguments are 32 bytes."""

        def key(label: bytes, size: int = 32) -> bytes:
            return blake2s(label, digest_size=size, key=network_secret).digest()

        return cls(
            login_public,
            b"pyvpn1 login" + key(b"pyvpn1 net-tag" + login_public, 16),
            key(b"pyvpn1 psk0"),
            key(b"pyvpn1 psk2"),
            key(b"pyvpn1 mac1 c2s" + login_public),
            key(b"pyvpn1 mac1 s2c" + login_public),
            key(b"pyvpn1 cookie" + login_public),
        )


def password_key(password: str, user: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    """Return the user's 32-byte X25519 private key: scrypt of the password, salted per user.

    Takes 0.4 s and 128 MiB with the usual parameters (17, 8, 1). Both texts are normalised to NFC,
    so that the same password typed on another system is the same key.
    """
    name = unicodedata.normalize("NFC", user).encode()
    salted = blake2s(b"pyvpn1 pw-salt" + salt + bytes([len(name)]) + name).digest()
    return hashlib.scrypt(
        unicodedata.normalize("NFC", password).encode(),
        salt=salted,
        n=1 << log_n,
        r=r,
        p=p,
        maxmem=(128 * r << log_n) + _SCRYPT_OVERHEAD,
        dklen=32,
    )


def public_key(private: bytes) -> bytes:
    """Return the 32-byte X25519 public key of a 32-byte private key."""
    return KeyPair.of(private).public


@frozen
class TransportKeys:
    """What a handshake gives one side: two 32-byte keys and what was agreed.

    :ivar remote_index: the other side's receiver index for this session.
    :ivar flags: the hub's choice.
    :ivar inner_mtu: the largest inner packet in bytes.
    """

    send: bytes
    receive: bytes
    remote_index: int
    flags: LoginFlags
    inner_mtu: int


def _handshake(
    keys: NetworkKeys, static: KeyPair, random_bytes: RandomBytes, *, initiator: bool
) -> HandshakeState:
    """Begin a handshake with one side's own key pair."""
    return HandshakeState(
        _NAME,
        IK_PSK0_PSK2,
        initiator=initiator,
        prologue=keys.prologue,
        static=static,
        remote_static=keys.login_public if initiator else b"",
        psks=(keys.psk0, keys.psk2),
        random_bytes=random_bytes,
    )


class LoginAttempt:
    """The client's side of one handshake: writes one 0x50 and reads the 0x51 that answers it."""

    __slots__ = ("_keys", "_offered", "_state", "index", "message")

    def __init__(
        self,
        keys: NetworkKeys,
        static: KeyPair,
        *,
        index: int,
        stamp: bytes,
        device: bytes,
        user: str,
        flags: LoginFlags,
        random_bytes: RandomBytes,
        cookie: bytes = b"",
    ) -> None:
        self._keys = keys
        self._offered = flags
        self.index = index
        self._state = _handshake(keys, static, random_bytes, initiator=True)
        name = user.encode()
        payload = _PAYLOAD1.pack(VERSION, flags, 0, index, stamp, device, len(name), name, bytes(3))
        prefix = _PREFIX.pack(INITIATION, VERSION, 0, index)
        #: The 208 bytes to send.
        self.message = with_macs(
            prefix + self._state.write_message(payload), keys.mac1_to_server, cookie
        )

    def answered(self, message: bytes) -> TransportKeys:
        """Read a 0x51 of 116 bytes; a wrong one leaves this attempt as it was.

        :raises RemoteProtocolError: the reason for which it is not the answer to our 0x50.
        """
        _, version, zero, sender, receiver = _RESPONSE_PREFIX.unpack_from(message)
        if version != VERSION or zero or any(message[-MAC_SIZE:]):  # 0x51 has no mac2
            raise RemoteProtocolError("handshake_version")
        if receiver != self.index:
            raise RemoteProtocolError("response_unexpected")
        if not mac1_valid(message, self._keys.mac1_to_client):
            raise RemoteProtocolError("mac1_invalid")
        state = self._state.copy()
        payload = state.read_message(message[_RESPONSE_PREFIX.size : -_MACS])
        if len(payload) != _PAYLOAD2.size:
            raise RemoteProtocolError("handshake_payload")
        version, flags, mtu, echoed_sender, echoed_receiver, _ = _PAYLOAD2.unpack(payload)
        # Integers: an IntFlag's ~ knows the named bits only.
        if version != VERSION or flags & ~int(self._offered):
            raise RemoteProtocolError("handshake_payload")
        if echoed_sender != sender or echoed_receiver != self.index:
            raise RemoteProtocolError("handshake_index_echo")
        send, receive = state.split()
        return TransportKeys(send, receive, sender, LoginFlags(flags), mtu)


def sender_index(message: bytes) -> int:
    """Return the index that a 0x50 of 208 bytes gives.

    :raises RemoteProtocolError: ``handshake_version``.
    """
    _, version, zero, sender = _PREFIX.unpack_from(message)
    if version != VERSION or zero:
        raise RemoteProtocolError("handshake_version")
    return int(sender)


class LoginRequest:
    """The hub's side of one handshake: an opened 0x50, still to be judged, and its answer.

    :ivar public_key: the 32-byte key that the client has proved to own; whether it is the user's is
        for the caller to compare, in constant time.
    :ivar stamp: 12 bytes TAI64N.
    """

    __slots__ = (
        "_keys",
        "_state",
        "device",
        "flags",
        "public_key",
        "remote_index",
        "stamp",
        "user",
    )

    def __init__(
        self, keys: NetworkKeys, login_key: KeyPair, message: bytes, random_bytes: RandomBytes
    ) -> None:
        """Open a 0x50 of 208 bytes whose mac1 is right (PROTOCOL 3, steps 1 to 6).

        :raises RemoteProtocolError: the counter's reason.
        """
        self.remote_index = sender_index(message)
        self._keys = keys
        self._state = _handshake(keys, login_key, random_bytes, initiator=False)
        payload = self._state.read_message(message[_PREFIX.size : -_MACS])
        self.public_key = self._state.rs
        if len(payload) != _PAYLOAD1.size:
            raise RemoteProtocolError("handshake_payload")
        version, flags, zero, sender, self.stamp, self.device, length, name, code = (
            _PAYLOAD1.unpack(payload)
        )
        if version != VERSION or zero or flags & ~int(ALL_FLAGS):
            raise RemoteProtocolError("handshake_payload")
        if sender != self.remote_index:
            raise RemoteProtocolError("handshake_index_echo")
        self.flags = LoginFlags(flags)
        if code != bytes(3) and LoginFlags.CODE_PRESENT not in self.flags:
            raise RemoteProtocolError("handshake_payload")
        self.user = _user_name(name, length)

    def answer(
        self, *, index: int, flags: LoginFlags, inner_mtu: int, stamp: bytes
    ) -> tuple[bytes, TransportKeys]:
        """Return the 0x51 to send (116 bytes) and the keys of the new session."""
        payload = _PAYLOAD2.pack(VERSION, flags, inner_mtu, index, self.remote_index, stamp)
        prefix = _RESPONSE_PREFIX.pack(RESPONSE, VERSION, 0, index, self.remote_index)
        message = with_macs(prefix + self._state.write_message(payload), self._keys.mac1_to_client)
        receive, send = self._state.split()
        return message, TransportKeys(send, receive, self.remote_index, flags, inner_mtu)


def _user_name(field: bytes, length: int) -> str:
    """Return the name in a zero-padded field of 32 bytes; other spellings of it are refused."""
    if not 1 <= length <= USER_SIZE or any(field[length:]):
        raise RemoteProtocolError("handshake_user")
    try:
        name = field[:length].decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("handshake_user") from None
    if not user_name_valid(name):
        raise RemoteProtocolError("handshake_user")
    return name
