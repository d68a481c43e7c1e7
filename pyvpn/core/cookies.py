"""The two MACs at the end of every handshake message, and the cookie that the second is keyed by.

All of them are *keyed* BLAKE2s (docs/protocol.rst, "Login"), not HMAC. mac1 shows that the sender
knows the network's secret before the receiver spends a key exchange on it; mac2 shows that it can
receive at the address it sends from.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from hashlib import blake2s

from Crypto.Cipher import ChaCha20_Poly1305
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from pyvpn.errors import RemoteProtocolError

MAC_SIZE = 16

COOKIE_REPLY = 0x52
COOKIE_REPLY_SIZE = 64
COOKIE_SIZE = 16
#: Seconds that a client uses a cookie, and that a secret of the hub lives at most (PROTOCOL 3).
COOKIE_LIFETIME = 120.0

#: How a login's cookie reply begins: type, version 1, zeros. WireGuard's begins otherwise.
LOGIN_REPLY = bytes([COOKIE_REPLY, 1, 0, 0])

_REPLY_PREFIX = struct.Struct("<4sI")  # first bytes, receiver
_REPLY = struct.Struct("<4sI24s16s16s")  # the same, nonce, cookie, tag
_WORDS = struct.Struct("<16I")
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_NO_MAC = bytes(MAC_SIZE)


def mac(key: bytes, data: bytes) -> bytes:
    """Return the 16-byte keyed BLAKE2s of ``data``."""
    return blake2s(data, digest_size=MAC_SIZE, key=key).digest()


def with_macs(message: bytes, mac1_key: bytes, cookie: bytes = b"") -> bytes:
    """Return the message with mac1 and mac2 appended; mac2 is zero without a cookie."""
    message += mac(mac1_key, message)
    return message + (mac(cookie, message) if cookie else bytes(MAC_SIZE))


def mac1_valid(message: bytes, mac1_key: bytes) -> bool:
    """Tell in constant time whether the first of the two MACs at the message's end is right."""
    return hmac.compare_digest(mac(mac1_key, message[:-32]), message[-32:-16])


class CookieChecker:
    """The hub's cookies: made from the sender's address and a secret, so that none is kept.

    The secret changes every half lifetime and the one before it is still good: a cookie works for
    60 s at least, a secret for 120 s at most.

    :param key: 32 bytes, the network's cookie key, or that of a WireGuard public key.
    :param first_bytes: the 4 bytes that a reply begins with.
    """

    def __init__(
        self, key: bytes, random_bytes: Callable[[int], bytes], first_bytes: bytes = LOGIN_REPLY
    ) -> None:
        self._key = key
        self._first_bytes = first_bytes
        self._random_bytes = random_bytes
        self._secret = self._old_secret = b""
        self._made = -COOKIE_LIFETIME
        self._prefix = b""
        self._serial = 0
        self._aead = ChaCha20Poly1305(bytes(32))

    def reply(self, message: bytes, receiver: int, address: bytes, now: float) -> bytes:
        """Return the 64 bytes that tell the sender of a handshake message its cookie.

        :param message: the message; its mac1 is bound to the reply.
        :param receiver: the index that the message gave.
        :param address: 16 bytes of address and 2 of port, where the message came from.
        """
        self._renew(now)
        # Under a flood of forged addresses this is most of the work. XChaCha20's first half depends
        # on 16 bytes of the nonce; these stay for as long as the secret and the rest counts, so it
        # is done once: 4 µs in place of 29.
        self._serial += 1
        rest = self._serial.to_bytes(8, "little")
        cookie = mac(self._secret, address)
        sealed = self._aead.encrypt(bytes(4) + rest, cookie, message[-32:-16])
        return _REPLY_PREFIX.pack(self._first_bytes, receiver) + self._prefix + rest + sealed

    def mac2_valid(self, message: bytes, address: bytes, now: float) -> bool:
        """Tell in constant time whether mac2 is keyed by a cookie of ours for this address."""
        given = message[-16:]
        if given == _NO_MAC:
            return False
        self._renew(now)
        return any(
            hmac.compare_digest(mac(mac(secret, address), message[:-16]), given)
            for secret in (self._secret, self._old_secret)
            if secret
        )

    def _renew(self, now: float) -> None:
        age = now - self._made
        if age < COOKIE_LIFETIME / 2:
            return
        self._old_secret = self._secret if age < COOKIE_LIFETIME else b""
        self._secret = self._random_bytes(32)
        self._prefix = self._random_bytes(16)
        self._serial = 0
        self._aead = ChaCha20Poly1305(hchacha20(self._key, self._prefix))
        # Half a lifetime after its successor is due, the old one is too old, whenever this runs.
        self._made = self._made + COOKIE_LIFETIME / 2 if self._old_secret else now


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte key that XChaCha20 makes of its own and 16 bytes of its nonce.

    ChaCha20's block without the final addition of its input (draft-irtf-cfrg-xchacha-03, 2.2): so
    the input is subtracted again.
    """
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    words = _WORDS.unpack(block)
    given = _CONSTANTS + struct.unpack("<4I", nonce)
    mixed = [a - b & 0xFFFFFFFF for a, b in zip(words[:4] + words[12:], given, strict=True)]
    return struct.pack("<8I", *mixed)


def open_cookie_reply(
    reply: bytes, key: bytes, index: int, message: bytes, first_bytes: bytes = LOGIN_REPLY
) -> bytes:
    """Return the 16-byte cookie in a reply of 64 bytes that answers our handshake message.

    :param key: 32 bytes, the network's cookie key, or that of the other side's WireGuard key.
    :param index: the index that the message gave.
    :param first_bytes: the 4 bytes that a reply begins with.
    :raises RemoteProtocolError: ``handshake_version``, ``response_unexpected`` for another index,
        ``cookie_invalid``.
    """
    begins, receiver, nonce, sealed, tag = _REPLY.unpack(reply)
    if begins != first_bytes:
        raise RemoteProtocolError("handshake_version")
    if receiver != index:
        raise RemoteProtocolError("response_unexpected")
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(message[-32:-16])
    try:
        return bytes(cipher.decrypt_and_verify(sealed, tag))
    except ValueError:
        raise RemoteProtocolError("cookie_invalid") from None
