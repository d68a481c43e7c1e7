"""The two MACs at the end of every handshake message, and the cookie that the second is keyed by.

All of them are *keyed* BLAKE2s (docs/protocol.rst, "Login"), not HMAC. mac1 shows that the sender
knows the network's secret before the receiver spends a key exchange on it; mac2 shows that it can
receive at the address it sends from.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s

MAC_SIZE = 16


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
