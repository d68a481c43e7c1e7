"""The Noise Protocol Framework (revision 34), as far as PyVPN and WireGuard need it.

Curve25519, ChaCha20-Poly1305, BLAKE2s; the IK pattern with pre-shared keys. HKDF uses HMAC-BLAKE2s;
keyed BLAKE2s, which the MACs of the datagrams use, is another construction (see :mod:`.cookies`).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from hashlib import blake2s
from typing import TypeAlias

from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pyvpn.errors import LocalProtocolError, RemoteProtocolError

KEY_SIZE = 32
TAG_SIZE = 16

Pattern: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]

#: Noise_IKpsk0+psk2: the pattern of login v1.
IK_PSK0_PSK2: Pattern = (("psk", "e", "es", "s", "ss"), ("e", "ee", "se", "psk"))
#: Noise_IKpsk2: WireGuard's pattern.
IK_PSK2: Pattern = (("e", "es", "s", "ss"), ("e", "ee", "se", "psk"))


@frozen
class KeyPair:
    """An X25519 key pair as raw bytes, with the private key ready for use.

    :ivar private: 32 bytes.
    :ivar public: 32 bytes.
    """

    private: bytes
    public: bytes
    _key: X25519PrivateKey

    @classmethod
    def of(cls, private: bytes) -> KeyPair:
        """Return the pair of a 32-byte private key."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(private, key.public_key().public_bytes_raw(), key)

    def exchange(self, public: bytes) -> bytes:
        """Return the 32-byte shared secret with a public key.

        :raises RemoteProtocolError: ``handshake_low_order`` for a point of low order.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise RemoteProtocolError("handshake_low_order") from None


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, blake2s)


def hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """Return 1 to 3 keys of 32 bytes (Noise 4.3, HKDF)."""
    secret = _hmac(chaining_key, material)
    keys = [_hmac(secret, b"\x01")]
    for number in range(2, outputs + 1):
        keys.append(_hmac(secret, keys[-1] + bytes([number])))
    return keys


class HandshakeState:
    """One side of one handshake (Noise 5.3); messages are written and read in the pattern's order.

    :param name: the full protocol name, e.g. ``b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"``.
    :param prologue: what both sides must agree on beforehand.
    :param remote_static: the responder's public key; given for the initiator only.
    :param psks: the pattern's pre-shared keys in the order of their tokens; what is not known yet
        comes by :meth:`add_psk`.
    :param random_bytes: the source of ephemeral private keys.
    """

    __slots__ = (
        "_ck",
        "_e",
        "_h",
        "_initiator",
        "_key",
        "_messages",
        "_nonce",
        "_psks",
        "_random_bytes",
        "_re",
        "_s",
        "rs",
    )

    def __init__(
        self,
        name: bytes,
        pattern: Pattern,
        *,
        initiator: bool,
        prologue: bytes,
        static: KeyPair,
        remote_static: bytes = b"",
        psks: Sequence[bytes],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        if initiator and len(remote_static) != KEY_SIZE:
            raise LocalProtocolError("an initiator of IK needs the responder's public key")
        self._h = name.ljust(32, b"\0") if len(name) <= 32 else blake2s(name).digest()
        self._ck = self._h
        self._key = b""
        self._nonce = 0
        self._initiator = initiator
        self._messages = list(pattern)
        self._psks = list(psks)
        self._s = static
        self._e: KeyPair | None = None
        self.rs = remote_static
        self._re = b""
        self._random_bytes = random_bytes
        self._mix_hash(prologue)
        self._mix_hash(remote_static if initiator else static.public)

    def copy(self) -> HandshakeState:
        """Return an independent copy, so that an invalid message can be tried without harm."""
        twin: HandshakeState = object.__new__(HandshakeState)
        for slot in self.__slots__:
            setattr(twin, slot, getattr(self, slot))
        twin._messages = list(self._messages)
        twin._psks = list(self._psks)
        return twin

    def add_psk(self, psk: bytes) -> None:
        """Append a pre-shared key: a responder may learn from message 1 which one it is."""
        self._psks.append(psk)

    def write_message(self, payload: bytes) -> bytes:
        """Return the next message of this side, with the payload encrypted at its end."""
        parts = []
        for token in self._next_tokens():
            if token == "e":
                self._e = KeyPair.of(self._random_bytes(KEY_SIZE))
                parts.append(self._e.public)
                self._mix_ephemeral(self._e.public)
            elif token == "s":
                parts.append(self._encrypt_and_hash(self._s.public))
            else:
                self._mix(token)
        parts.append(self._encrypt_and_hash(payload))
        return b"".join(parts)

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the other side's next message.

        :raises RemoteProtocolError: ``handshake_short``, ``handshake_low_order`` or
            ``handshake_decrypt``. The state is spoilt then: read on a :meth:`copy`.
        """
        message = self._read_tokens(self._next_tokens(), message)
        return self._decrypt_and_hash(message)

    def read_static(self, message: bytes) -> bytes:
        """Read the other side's next message only as far as its static key, now in ``rs``.

        The key is a claim until the rest, which is returned, has passed :meth:`read_message`.
        Raises as that does.
        """
        tokens = self._next_tokens()
        place = tokens.index("s") + 1
        self._messages.insert(0, tokens[place:])
        return self._read_tokens(tokens[:place], message)

    def split(self) -> tuple[bytes, bytes]:
        """Return the initiator-to-responder and the responder-to-initiator transport key."""
        if self._messages:
            raise LocalProtocolError("split() before the handshake is complete")
        first, second = hkdf(self._ck, b"", 2)
        return first, second

    def _next_tokens(self) -> tuple[str, ...]:
        if not self._messages:
            raise LocalProtocolError("this handshake has no further message")
        return self._messages.pop(0)

    def _read_tokens(self, tokens: Sequence[str], message: bytes) -> bytes:
        """Do as the tokens say; return what they left of the message."""
        for token in tokens:
            if token == "e":
                self._re, message = self._take(message, KEY_SIZE)
                self._mix_ephemeral(self._re)
            elif token == "s":
                encrypted, message = self._take(message, KEY_SIZE + TAG_SIZE)
                self.rs = self._decrypt_and_hash(encrypted)
            else:
                self._mix(token)
        return message

    @staticmethod
    def _take(message: bytes, size: int) -> tuple[bytes, bytes]:
        if len(message) < size:
            raise RemoteProtocolError("handshake_short")
        return message[:size], message[size:]

    def _mix(self, token: str) -> None:
        if token == "psk":
            if not self._psks:
                raise LocalProtocolError("the pattern needs a pre-shared key that was not given")
            self._ck, hashed, self._key = hkdf(self._ck, self._psks.pop(0), 3)
            self._mix_hash(hashed)
            self._nonce = 0
            return
        # "es" is the initiator's ephemeral with the responder's static key, and so on: the first
        # letter belongs to the initiator, the second to the responder.
        mine, theirs = tuple(token if self._initiator else reversed(token))
        key = self._e if mine == "e" else self._s
        if key is None:
            raise LocalProtocolError(f"the pattern uses {token} before e")
        self._mix_key(key.exchange(self._re if theirs == "e" else self.rs))

    def _mix_ephemeral(self, public: bytes) -> None:
        # In patterns with a psk each e is mixed into the key as well (Noise 9.2).
        self._mix_hash(public)
        self._mix_key(public)

    def _mix_hash(self, data: bytes) -> None:
        self._h = blake2s(self._h + data).digest()

    def _mix_key(self, material: bytes) -> None:
        self._ck, self._key = hkdf(self._ck, material, 2)
        self._nonce = 0

    def _encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self._key).encrypt(self._next_nonce(), plaintext, self._h)
        self._mix_hash(sealed)
        return sealed

    def _decrypt_and_hash(self, sealed: bytes) -> bytes:
        try:
            plaintext = ChaCha20Poly1305(self._key).decrypt(self._next_nonce(), sealed, self._h)
        except InvalidTag:
            raise RemoteProtocolError("handshake_decrypt") from None
        self._mix_hash(sealed)
        return plaintext

    def _next_nonce(self) -> bytes:
        nonce = bytes(4) + self._nonce.to_bytes(8, "little")
        self._nonce += 1
        return nonce
