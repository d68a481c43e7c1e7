"""The handshake against vectors that others published, and what it does with bad messages."""

from __future__ import annotations

import struct
from hashlib import blake2s
from random import Random
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.noise import IK_PSK0_PSK2, IK_PSK2, HandshakeState, KeyPair, Pattern, hkdf
from pyvpn.errors import LocalProtocolError, RemoteProtocolError


class Vector(NamedTuple):
    """One published vector: hexadecimal text throughout."""

    name: bytes
    pattern: Pattern
    prologue: str
    psks: list[str]
    init_static: str
    init_ephemeral: str
    remote_static: str
    resp_static: str
    resp_ephemeral: str
    messages: list[tuple[str, str]]  # payload, ciphertext; the first two are the handshake


# From snow.txt in the repository mcginty/snow, tests/vectors.
SNOW = Vector(
    name=b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s",
    pattern=IK_PSK0_PSK2,
    prologue="5468657265206973206e6f20726967687420616e642077726f6e672e"
    "2054686572652773206f6e6c792066756e20616e6420626f72696e672e",
    psks=[
        "b0fb36f1a6d2ca17268cd21a728ec791023a3dd9546a47c3935517155fb953bb",
        "021dd3492a7c5820467f11c01346799080a17a189664d4d88087756e98413df4",
    ],
    init_static="f8b2d72c03e6514eedf055be4565011d3304545afea1752a3004ba6e353ca72b",
    init_ephemeral="1e685f2e744eb5daf0f293ad941b2819d111982e0318aa96d451239f122e5273",
    remote_static="25c2d29fb8ccbbd216d69b9668b40ea40bf6d68b0a8b1e277cdf39839cb2276f",
    resp_static="08ef3f1895d98839906e47d5928e1f5318ef4dcc65250e02f88fcf78d9bf7e25",
    resp_ephemeral="b0b7bd86e71356b32ce471a5b113230671a02d0a19153c02caa4da4a60722b2e",
    messages=[
        (
            "4f736b598e1ea2c24b7d06d1f0b98bca3a0c2d2a534b1c8995c97873110f02ce",
            "644ff1807e33acf04a8abc19c77cbfe0a947cf578b8c1a0002b177ef60e7eb07"
            "1132ba99401631a715a6a0130df12789cb78d42610b6d7bd9f07991e9e083b8f"
            "f2073492d7bcd349b34ceaf58c7b603f7a309aa17de059af7caaf864863b799e"
            "fc99efc067d294c4428967bbef41bbc24d749a5926ffa146ee5cba66d5f85ceb",
        ),
        (
            "6f7ec9a225767b7bf09eb310d64f8d876a56f82148d3e172c21f39027f4e90a0",
            "af5a23e54ee59187fdfa01b2e9e4b858ca8052cca57c369393f7a2ac5e5e2427"
            "536a8a65bedf9cc1722f36f82c0f02957ba277019c8783c0c0d76c23e34d986a"
            "64681627bb51312ef7da6eb0d4330541",
        ),
        (
            "9450f91e54ded71ec5b216de089b2c3528601557912d446549e5c5b0ad964c06",
            "09ccc5bd2c256575372770f625e78bb391eab26a0d942d1da5438e0b0b570a3a"
            "c662df12013389d037061ea1a64a03a9",
        ),
        (
            "5cc4fa7c406c31cae21ce736f0181c1fc2dd0d0d9e63694ae88555504793b79d",
            "5a1e2b9c3c6870c9207e2cdfeb9a0b9fc337bf849c5f7821f0e7aaf2d4631fe9"
            "5f50f1b2143e26d631f5f0102e172459",
        ),
    ],
)

# From cacophony.txt in the same place.
CACOPHONY = Vector(
    name=b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
    pattern=IK_PSK2,
    prologue="4a6f686e2047616c74",
    psks=["54686973206973206d7920417573747269616e20706572737065637469766521"],
    init_static="e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
    init_ephemeral="893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
    remote_static="31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62",
    resp_static="4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
    resp_ephemeral="bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
    messages=[
        (
            "4c756477696720766f6e204d69736573",
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
            "001e21de9f98ddd8e2ad57527207feb56253c9c94a9e496782ecfcb2a75fbcaf"
            "1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985"
            "464cf17e51ee93109008399a21f7e13f",
        ),
        (
            "4d757272617920526f746862617264",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
            "cb765f2caef0751b8f007572dab0322217755c0632f365717edbf34d33e87a",
        ),
        ("462e20412e20486179656b", "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7"),
        ("4361726c204d656e676572", "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef"),
        (
            "4a65616e2d426170746973746520536179",
            "6ab1467c0448cc78394494abaaf23afce0e234315d6e2624dcbfa8a21c1c4d073d",
        ),
        (
            "457567656e2042f6686d20766f6e2042617765726b",
            "dfc346c0d2296ae6cf1acf6f12b8456a1dba228cf8d8b774aacf1c47fc53aa80ebc7a4c292",
        ),
    ],
)


def key_pair(text: str) -> KeyPair:
    return KeyPair.of(bytes.fromhex(text))


def both_sides(vector: Vector) -> tuple[HandshakeState, HandshakeState]:
    """Initiator and responder of a vector, their ephemeral keys as published."""
    sides = []
    for initiator in (True, False):
        static = vector.init_static if initiator else vector.resp_static
        ephemeral = vector.init_ephemeral if initiator else vector.resp_ephemeral
        sides.append(
            HandshakeState(
                vector.name,
                vector.pattern,
                initiator=initiator,
                prologue=bytes.fromhex(vector.prologue),
                static=key_pair(static),
                remote_static=bytes.fromhex(vector.remote_static) if initiator else b"",
                psks=[bytes.fromhex(psk) for psk in vector.psks],
                random_bytes=lambda _, key=ephemeral: bytes.fromhex(key),
            )
        )
    return sides[0], sides[1]


class PublishedVectors(SynchronousTestCase):
    """Two independent implementations wrote these; we must agree with them to the byte."""

    def check(self, vector: Vector) -> None:
        initiator, responder = both_sides(vector)
        for number, (payload, ciphertext) in enumerate(vector.messages[:2]):
            writer, reader = (initiator, responder) if number == 0 else (responder, initiator)
            written = writer.write_message(bytes.fromhex(payload))
            self.assertEqual(written.hex(), ciphertext)
            self.assertEqual(reader.read_message(written).hex(), payload)
        self.assertEqual(responder.rs, key_pair(vector.init_static).public)
        keys = initiator.split()
        self.assertEqual(responder.split(), keys)
        for number, (payload, ciphertext) in enumerate(vector.messages[2:]):
            # Initiator and responder take turns, each with its own key and nonce counter.
            nonce = bytes(4) + struct.pack("<Q", number // 2)
            sealed = ChaCha20Poly1305(keys[number % 2]).encrypt(nonce, bytes.fromhex(payload), b"")
            self.assertEqual(sealed.hex(), ciphertext)

    def test_ik_psk0_psk2(self) -> None:
        """Login's pattern produces and reads what snow published, transport messages included."""
        self.check(SNOW)

    def test_ik_psk2(self) -> None:
        """WireGuard's pattern produces and reads what cacophony published."""
        self.check(CACOPHONY)

    def test_in_two_steps(self) -> None:
        """A responder may read as far as the static key first, and add the psk after message 1."""
        initiator, _ = both_sides(CACOPHONY)
        _, responder = both_sides(CACOPHONY._replace(psks=[]))
        (payload, first), (answer, second) = CACOPHONY.messages[:2]
        rest = responder.read_static(bytes.fromhex(first))
        self.assertEqual(rest.hex(), first[2 * (32 + 48) :])
        self.assertEqual(responder.rs, key_pair(CACOPHONY.init_static).public)
        self.assertEqual(responder.read_message(rest).hex(), payload)
        responder.add_psk(bytes.fromhex(CACOPHONY.psks[0]))
        self.assertEqual(responder.write_message(bytes.fromhex(answer)).hex(), second)
        initiator.write_message(bytes.fromhex(payload))
        initiator.read_message(bytes.fromhex(second))
        self.assertEqual(responder.split(), initiator.split())

    def test_the_comparison_can_fail(self) -> None:
        """Control: with one bit of one psk changed the vectors do not fit."""
        psk = bytearray.fromhex(SNOW.psks[1])
        psk[0] ^= 1
        with self.assertRaises((self.failureException, RemoteProtocolError, InvalidTag)):
            self.check(SNOW._replace(psks=[SNOW.psks[0], psk.hex()]))


class HKDF(SynchronousTestCase):
    def test_is_made_of_hmac(self) -> None:
        """HKDF is HMAC-BLAKE2s (RFC 2104 written out here), not keyed BLAKE2s."""

        def hmac(key: bytes, data: bytes) -> bytes:
            block = key.ljust(64, b"\0")
            inner = blake2s(bytes(b ^ 0x36 for b in block) + data).digest()
            return blake2s(bytes(b ^ 0x5C for b in block) + inner).digest()

        secret = hmac(b"k" * 32, b"material")
        first = hmac(secret, b"\1")
        second = hmac(secret, first + b"\2")
        third = hmac(secret, second + b"\3")
        self.assertEqual(hkdf(b"k" * 32, b"material", 3), [first, second, third])
        self.assertEqual(hkdf(b"k" * 32, b"material", 2), [first, second])
        self.assertNotEqual(first, blake2s(b"\1", key=secret).digest())


class BadMessages(SynchronousTestCase):
    def refused(self, state: HandshakeState, message: bytes) -> str:
        return self.assertRaises(RemoteProtocolError, state.read_message, message).reason

    def test_every_truncation_is_refused_by_name(self) -> None:
        """A message cut anywhere raises a named reason and never an IndexError."""
        initiator, responder = both_sides(SNOW)
        whole = initiator.write_message(b"payload")
        reasons = {self.refused(responder.copy(), whole[:length]) for length in range(len(whole))}
        self.assertEqual(reasons, {"handshake_short", "handshake_decrypt"})
        self.assertEqual(responder.read_message(whole), b"payload")

    def test_every_flipped_bit_is_refused(self) -> None:
        """No bit of either message can be changed unnoticed."""
        initiator, responder = both_sides(SNOW)
        first = initiator.write_message(b"one")
        for reader, message in ((responder, first), (initiator, None)):
            if message is None:
                responder.read_message(first)
                message = responder.write_message(b"two")
            for place in range(len(message)):
                damaged = bytearray(message)
                damaged[place] ^= 1 << place % 8
                # X25519 ignores the top bit of a public key, yet the transcript covers it.
                self.assertEqual(self.refused(reader.copy(), bytes(damaged)), "handshake_decrypt")

    def test_low_order_points(self) -> None:
        """An ephemeral key of low order is refused by name instead of giving a known secret."""
        p = 2**255 - 19
        points = (0, 1, p - 1, p, p + 1)
        _, responder = both_sides(SNOW)
        for point in points:
            message = point.to_bytes(32, "little") + bytes(48 + 16)
            self.assertEqual(self.refused(responder.copy(), message), "handshake_low_order")

    def test_a_copy_is_independent(self) -> None:
        """A bad message tried on a copy leaves the original able to read the good one."""
        initiator, responder = both_sides(SNOW)
        responder.read_message(initiator.write_message(b""))
        good = responder.write_message(b"good")
        for _ in range(3):
            self.refused(initiator.copy(), bytes(len(good)))
        twin = initiator.copy()
        self.assertEqual(twin.read_message(good), b"good")
        self.assertEqual(initiator.read_message(good), b"good")
        self.assertEqual(twin.split(), initiator.split())

    def test_different_prologues_do_not_meet(self) -> None:
        """Whoever assumes another network (prologue) cannot read the first message."""
        initiator, _ = both_sides(SNOW)
        _, responder = both_sides(SNOW._replace(prologue="00"))
        message = initiator.write_message(b"")
        self.assertEqual(self.refused(responder, message), "handshake_decrypt")

    def test_a_static_key_is_a_claim(self) -> None:
        """The rest tells whether the sender owns the key; spoilt anywhere, it does not open."""
        initiator, responder = both_sides(CACOPHONY)
        message = initiator.write_message(b"rest")
        reasons = set()
        for length in range(32 + 48):
            wrong = responder.copy()
            error = self.assertRaises(RemoteProtocolError, wrong.read_static, message[:length])
            reasons.add(error.reason)
        self.assertEqual(reasons, {"handshake_short"})
        rest = responder.read_static(message)
        for place in range(len(rest)):
            damaged = bytearray(rest)
            damaged[place] ^= 1
            self.assertEqual(self.refused(responder.copy(), bytes(damaged)), "handshake_decrypt")
        self.assertEqual(responder.read_message(rest), b"rest")


class Misuse(SynchronousTestCase):
    def test_a_psk_is_needed(self) -> None:
        """A psk that never came is our bug and says so, instead of counting as zeros."""
        initiator, responder = both_sides(CACOPHONY._replace(psks=[]))
        responder.read_message(initiator.write_message(b""))
        self.assertRaises(LocalProtocolError, responder.write_message, b"")

    def test_a_third_message(self) -> None:
        """A message more than the pattern has is our bug and says so."""
        initiator, responder = both_sides(CACOPHONY)
        responder.read_message(initiator.write_message(b""))
        initiator.read_message(responder.write_message(b""))
        for call in (initiator.write_message, initiator.read_message, initiator.read_static):
            self.assertRaises(LocalProtocolError, call, b"")

    def test_split_comes_last(self) -> None:
        """Asking for transport keys too early is our bug and says so."""
        initiator, _ = both_sides(SNOW)
        self.assertRaises(LocalProtocolError, initiator.split)

    def test_an_initiator_knows_whom_it_calls(self) -> None:
        """IK without the responder's key is our bug and says so."""
        with self.assertRaises(LocalProtocolError):
            HandshakeState(
                SNOW.name,
                IK_PSK2,
                initiator=True,
                prologue=b"",
                static=key_pair(SNOW.init_static),
                psks=[bytes(32)],
                random_bytes=Random(0).randbytes,
            )

    def test_a_token_out_of_place(self) -> None:
        """A pattern that mixes an ephemeral key before it exists is our bug and says so."""
        state = HandshakeState(
            SNOW.name,
            (("ee",), ()),
            initiator=True,
            prologue=b"",
            static=key_pair(SNOW.init_static),
            remote_static=bytes.fromhex(SNOW.remote_static),
            psks=[],
            random_bytes=Random(0).randbytes,
        )
        self.assertRaises(LocalProtocolError, state.write_message, b"")
