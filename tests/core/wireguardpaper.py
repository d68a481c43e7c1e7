"""WireGuard's handshake, line by line as the paper has it: what ours is held against.

J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections 5.4 to 5.4.5; the
names are the paper's. Nothing here is shared with the package but the ciphers of other people.
"""

from __future__ import annotations

import struct
from hashlib import blake2s

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def HASH(data: bytes) -> bytes:
    return blake2s(data).digest()


def MAC(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=16).digest()


def HMAC(key: bytes, data: bytes) -> bytes:
    block = key.ljust(64, b"\0")
    inner = HASH(bytes(b ^ 0x36 for b in block) + data)
    return HASH(bytes(b ^ 0x5C for b in block) + inner)


def KDF(number: int, key: bytes, data: bytes) -> list[bytes]:
    first = HMAC(key, data)
    outputs = [b""]
    for place in range(1, number + 1):
        outputs.append(HMAC(first, outputs[-1] + bytes([place])))
    return outputs[1:]


def DH(private: bytes, public: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(private)
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def PUBLIC(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def AEAD(key: bytes, counter: int, plain: bytes, auth: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(struct.pack("<4xQ", counter), plain, auth)


def macs(message: bytes, S_pub: bytes, cookie: bytes = b"") -> bytes:
    """The message with mac1 and mac2 for the owner of S_pub (5.4.4)."""
    message += MAC(HASH(b"mac1----" + S_pub), message)
    return message + (MAC(cookie, message) if cookie else bytes(16))


class Handshake:
    """Both sides at once, since both compute the same.

    :param S_i, E_i, S_r, E_r: private keys.
    :param Q: the pre-shared key.
    :param S_pub_i: what message 1 names as the initiator's key, if not that of S_i.
    :param ss: the shared secret of the static keys, where S_pub_i allows of none.
    """

    def __init__(
        self,
        *,
        S_i: bytes,
        E_i: bytes,
        S_r: bytes,
        E_r: bytes = bytes(32),
        Q: bytes = bytes(32),
        I_i: int = 0,
        I_r: int = 0,
        timestamp: bytes = bytes(12),
        S_pub_i: bytes = b"",
        ss: bytes = b"",
    ) -> None:
        self.S_i_pub, E_i_pub, self.S_r_pub = S_pub_i or PUBLIC(S_i), PUBLIC(E_i), PUBLIC(S_r)
        # 5.4.2, first message: initiator to responder
        C = HASH(CONSTRUCTION)
        H = HASH(C + IDENTIFIER)
        H = HASH(H + self.S_r_pub)
        [C] = KDF(1, C, E_i_pub)
        H = HASH(H + E_i_pub)
        C, k = KDF(2, C, DH(E_i, self.S_r_pub))
        static = AEAD(k, 0, self.S_i_pub, H)
        H = HASH(H + static)
        C, k = KDF(2, C, ss or DH(S_i, self.S_r_pub))
        stamp = AEAD(k, 0, timestamp, H)
        H = HASH(H + stamp)
        #: Without its macs.
        self.first = struct.pack("<BxxxI", 1, I_i) + E_i_pub + static + stamp
        # 5.4.3, second message: responder to initiator
        E_r_pub = PUBLIC(E_r)
        [C] = KDF(1, C, E_r_pub)
        H = HASH(H + E_r_pub)
        [C] = KDF(1, C, DH(E_r, E_i_pub))
        [C] = KDF(1, C, DH(E_r, self.S_i_pub) if not ss else bytes(32))
        C, tau, k = KDF(3, C, Q)
        H = HASH(H + tau)
        #: Without its macs.
        self.second = struct.pack("<BxxxII", 2, I_r, I_i) + E_r_pub + AEAD(k, 0, b"", H)
        # 5.4.5, transport data key derivation
        self.T_send_i, self.T_recv_i = KDF(2, C, b"")
