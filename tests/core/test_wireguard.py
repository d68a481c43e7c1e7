"""WireGuard's messages 1 to 3: against the paper, a recorded wireguard-go, and spoilt ones."""

from __future__ import annotations

import struct
from hashlib import blake2s
from random import Random
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.cookies import open_cookie_reply
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguard import (
    COOKIE_FIRST_BYTES,
    COOKIE_REPLY,
    COOKIE_REPLY_SIZE,
    IDENTIFIER,
    INITIATION,
    INITIATION_SIZE,
    NO_PSK,
    RESPONSE,
    RESPONSE_SIZE,
    InitiationReceived,
    InitiationSent,
    SessionKeys,
    cookie_key,
    kind_of,
    mac1_key,
)
from pyvpn.errors import LocalProtocolError, RemoteProtocolError
from tests.core import wireguardpaper as paper

OURS = KeyPair.of(bytes(range(1, 33)))
THEIRS = KeyPair.of(bytes(range(33, 65)))
EPHEMERAL, OTHER_EPHEMERAL = bytes(range(65, 97)), bytes(range(129, 161))
PSK = bytes(range(97, 129))
STAMP = bytes.fromhex("400000006955b90a004c4b40")
INDEX, REMOTE_INDEX = 0x11223344, 0xFEDCBA98

# Recorded: wireguard-go 0.0.20220316, its private key 33..64, our peer's 1..32, the psk above.
ITS_INITIATION = bytes.fromhex(
    "01000000eda49ba50dd6a42b549338c3229cc9acded14dc5a2ff17ca05124b56d77102999225c705686768772d2b50de"
    "110697217c2dee3c71b08fd7bf62fecc820e48526914d4da622c25347c41b54ba621e570327cd9885ed4d0cbdad7a211"
    "aa4aee6c741ba8991d7bdd50bd6728bf4039dec9b35b1b567ec490a2b3dbdbdf1bb3848f000000000000000000000000"
    "00000000"
)
# It was under load when it got the first and said so; with the cookie it took the second.
OUR_INITIATION = bytes.fromhex(
    "010000004433221164b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466158a0e4ca242d151"
    "ca97ab90159a98b67e616625e68b4065d357376b6598e644ad7d678c0295d22de4cb43d5135581ed36346bfa70f26212"
    "2175b3d32a1d0883cddde462d772c303022369bef5233a18e444a671b9ec2db3912c8a65000000000000000000000000"
    "00000000"
)
ITS_COOKIE_REPLY = bytes.fromhex(
    "03000000443322119d856fdd3a16e490f3b4dc0c05875313ef1fba96f82d15f6a2dae60812b6e82befb0e215ba68553f"
    "32999da3ffa9127e231869f85e19b493"
)
ITS_COOKIE = bytes.fromhex("45ec42be68f394b3cecf5126a0d4da16")
OUR_SECOND_STAMP = bytes.fromhex("400000006955b90a004c4b41")
OUR_SECOND_INITIATION = bytes.fromhex(
    "010000004433221164b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466158a0e4ca242d151"
    "ca97ab90159a98b67e616625e68b4065d357376b6598e644ad7d678c0295d22de4cb43d5135581ed36346bfa70f26212"
    "2175b3d297847237aa2654964861fe55f3597b053ce0a95000f12d8718da3a574e053f9311fb565ea63f8a6264654c62"
    "3e1e8fb6"
)
ITS_RESPONSE = bytes.fromhex(
    "02000000053a12774433221139a772dd1ceb2e2c4fafa3747ac9d6cb2f04795cb93b39c085fba70c7cdc893d8e6ef2db"
    "47ddeaf0bbda22fde15b1d2efb48045a9cace290148281a9d0ee771000000000000000000000000000000000"
)
# Then its answer to a ping that was sealed with the keys of that response.
ITS_DATA = bytes.fromhex(
    "04000000443322110100000000000000384c5f93d5226441b414989d11d51416bff429afd355fa125c3e3d943691ebaa"
    "fef7f8f4041e082b4ca9c50dc966ca68"
)

LOW_ORDER = [
    number.to_bytes(32, "little") for number in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)
]

keys = st.binary(min_size=32, max_size=32)
indices = st.integers(0, 2**32 - 1)


def initiation(**changed: Any) -> InitiationSent:
    """Ours to them."""
    given_ = {
        "static": OURS,
        "remote_public": THEIRS.public,
        "psk": PSK,
        "index": INDEX,
        "stamp": STAMP,
        "mac1_key": mac1_key(changed.get("remote_public", THEIRS.public)),
        "random_bytes": lambda size: EPHEMERAL[:size],
    }
    return InitiationSent(**{**given_, **changed})


def received(message: bytes, static: KeyPair = THEIRS) -> InitiationReceived:
    return InitiationReceived(static, message, lambda size: OTHER_EPHEMERAL[:size])


def answer(message: bytes, psk: bytes = PSK, cookie: bytes = b"") -> tuple[bytes, SessionKeys]:
    request = received(message)
    request.open()
    key = mac1_key(OURS.public)
    return request.answer(psk, index=REMOTE_INDEX, mac1_key=key, cookie=cookie)


def with_mac1(message: bytes, public: bytes) -> bytes:
    """The message under a mac1 that is right for what it now says."""
    return paper.macs(message[:-32], public)[:-16] + message[-16:]


def flipped(message: bytes, place: int) -> bytes:
    damaged = bytearray(message)
    damaged[place] ^= 1 << place % 8
    return bytes(damaged)


class Constants(SynchronousTestCase):
    def test_hashes(self) -> None:
        """The handshake begins with the two hashes that the protocol's description gives."""
        construction = blake2s(paper.CONSTRUCTION).digest()
        self.assertEqual(
            construction.hex(), "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
        )
        self.assertEqual(
            blake2s(construction + IDENTIFIER).hexdigest(),
            "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3",
        )

    def test_of_a_public_key(self) -> None:
        """Both keys are plain hashes of an eight-letter label and the public key."""
        self.assertEqual(mac1_key(OURS.public), paper.HASH(b"mac1----" + OURS.public))
        self.assertEqual(cookie_key(OURS.public), paper.HASH(b"cookie--" + OURS.public))

    def test_sizes(self) -> None:
        """Types and sizes are WireGuard's, and no answer is longer than what it answers."""
        kinds = (INITIATION, RESPONSE, COOKIE_REPLY)
        sizes = (INITIATION_SIZE, RESPONSE_SIZE, COOKIE_REPLY_SIZE)
        self.assertEqual((kinds, sizes), ((1, 2, 3), (148, 92, 64)))
        message = initiation().message
        self.assertEqual((len(message), len(answer(message)[0])), sizes[:2])
        self.assertEqual(COOKIE_FIRST_BYTES.hex(), "03000000")


class Recorded(SynchronousTestCase):
    """What a wireguard-go once said and took."""

    def test_its_initiation(self) -> None:
        """We learn whose it is, when it was made and how to name it."""
        request = received(ITS_INITIATION, OURS)
        self.assertEqual(request.public_key, THEIRS.public)
        self.assertEqual(request.remote_index, 0xA59BA4ED)
        request.open()
        self.assertEqual(request.stamp.hex(), "400000006b0356c032000000")

    def test_our_initiation(self) -> None:
        """Ours is, to the byte, what it took; first without a cookie, then with."""
        first = initiation()
        self.assertEqual(first.message.hex(), OUR_INITIATION.hex())
        key = cookie_key(THEIRS.public)
        cookie = open_cookie_reply(ITS_COOKIE_REPLY, key, INDEX, first.message, COOKIE_FIRST_BYTES)
        self.assertEqual(cookie, ITS_COOKIE)
        second = initiation(stamp=OUR_SECOND_STAMP, cookie=cookie)
        self.assertEqual(second.message.hex(), OUR_SECOND_INITIATION.hex())

    def test_its_response(self) -> None:
        """Its response gives the key that its data open under."""
        sent = initiation(stamp=OUR_SECOND_STAMP, cookie=ITS_COOKIE)
        found = sent.answered(ITS_RESPONSE)
        self.assertEqual(found.remote_index, 0x77123A05)
        self.assertEqual(
            found.receive.hex(), "1db64d0e0f1afef44d339fd566b9ef5cc0be6a8201ee1a5499c5975f89eebdd1"
        )
        nonce = bytes(4) + struct.pack("<Q", 1)
        packet = ChaCha20Poly1305(found.receive).decrypt(nonce, ITS_DATA[16:], b"")
        self.assertEqual(packet[12:20], bytes([10, 9, 9, 1, 10, 9, 9, 2]))

    def test_its_cookie_reply_is_for_one_message(self) -> None:
        """Its cookie opens for the message it answers, and for no other, index, key or kind."""

        def refused(reason: str, reply: bytes, key: bytes, index: int, message: bytes) -> None:
            error = self.assertRaises(
                RemoteProtocolError,
                *(open_cookie_reply, reply, key, index, message, COOKIE_FIRST_BYTES),
            )
            self.assertEqual(error.reason, reason)

        key = cookie_key(THEIRS.public)
        refused("cookie_invalid", ITS_COOKIE_REPLY, key, INDEX, OUR_SECOND_INITIATION)
        refused("cookie_invalid", ITS_COOKIE_REPLY, cookie_key(OURS.public), INDEX, OUR_INITIATION)
        refused("response_unexpected", ITS_COOKIE_REPLY, key, INDEX + 1, OUR_INITIATION)
        for place in range(4):
            refused(
                *("handshake_version", flipped(ITS_COOKIE_REPLY, place)),
                *(key, INDEX, OUR_INITIATION),
            )
        found = open_cookie_reply(ITS_COOKIE_REPLY, key, INDEX, OUR_INITIATION, COOKIE_FIRST_BYTES)
        self.assertEqual(found, ITS_COOKIE)  # control


class Paper(SynchronousTestCase):
    @settings(max_examples=30, deadline=None)
    @given(keys, keys, keys, keys, keys, indices, indices, st.binary(min_size=12, max_size=12))
    def test_to_the_byte(
        self,
        static: bytes,
        remote: bytes,
        ephemeral: bytes,
        remote_ephemeral: bytes,
        psk: bytes,
        index: int,
        remote_index: int,
        stamp: bytes,
    ) -> None:
        """Both messages and all keys, in both roles, are those of the paper's formulas."""
        expected = paper.Handshake(
            S_i=static,
            E_i=ephemeral,
            S_r=remote,
            E_r=remote_ephemeral,
            Q=psk,
            I_i=index,
            I_r=remote_index,
            timestamp=stamp,
        )
        ours, theirs = KeyPair.of(static), KeyPair.of(remote)
        cookie = paper.MAC(psk, stamp)
        sent = initiation(
            static=ours,
            remote_public=theirs.public,
            psk=psk,
            index=index,
            stamp=stamp,
            random_bytes=lambda size: ephemeral[:size],
            cookie=cookie,
        )
        self.assertEqual(sent.message, paper.macs(expected.first, theirs.public, cookie))
        self.assertEqual(sent.index, index)
        request = InitiationReceived(theirs, sent.message, lambda size: remote_ephemeral[:size])
        self.assertEqual((request.public_key, request.remote_index), (ours.public, index))
        self.assertEqual(request.stamp, b"")
        request.open()
        self.assertEqual(request.stamp, stamp)
        message, given_keys = request.answer(
            psk, index=remote_index, mac1_key=mac1_key(ours.public), cookie=cookie
        )
        self.assertEqual(message, paper.macs(expected.second, ours.public, cookie))
        self.assertEqual(
            given_keys, SessionKeys(expected.T_recv_i, expected.T_send_i, remote_index=index)
        )
        self.assertEqual(
            sent.answered(message),
            SessionKeys(expected.T_send_i, expected.T_recv_i, remote_index=remote_index),
        )

    def test_no_psk_is_zeros(self) -> None:
        """A peer without a psk uses 32 zeros, and without a cookie mac2 is 16 zeros."""
        expected = paper.Handshake(
            S_i=OURS.private,
            E_i=EPHEMERAL,
            S_r=THEIRS.private,
            E_r=OTHER_EPHEMERAL,
            I_i=INDEX,
            I_r=REMOTE_INDEX,
            timestamp=STAMP,
        )
        sent = initiation(psk=NO_PSK)
        self.assertEqual(sent.message, paper.macs(expected.first, THEIRS.public))
        message, _ = answer(sent.message, NO_PSK)
        self.assertEqual(message, paper.macs(expected.second, OURS.public))
        self.assertEqual((sent.message[-16:], message[-16:]), (bytes(16), bytes(16)))
        self.assertEqual(sent.answered(message).send, expected.T_send_i)


class Kinds(SynchronousTestCase):
    def test_first_byte(self) -> None:
        """The type is the first byte, whatever it is, when three zeros follow."""
        self.assertEqual([kind_of(bytes([kind, 0, 0, 0])) for kind in range(256)], [*range(256)])
        self.assertEqual(kind_of(b"\2\0\0\0\xff"), 2)

    def test_reserved(self) -> None:
        """None of the three reserved bytes may have any bit set."""
        for place in (1, 2, 3):
            for bit in range(8):
                message = bytearray(initiation().message)
                message[place] = 1 << bit
                error = self.assertRaises(RemoteProtocolError, kind_of, bytes(message))
                self.assertEqual(error.reason, "handshake_version")

    def test_short(self) -> None:
        """Fewer than four bytes have no type."""
        for length in range(4):
            error = self.assertRaises(RemoteProtocolError, kind_of, bytes(length))
            self.assertEqual(error.reason, "datagram_length")


class BadResponses(SynchronousTestCase):
    def setUp(self) -> None:
        self.sent = initiation()
        self.good, _ = answer(self.sent.message)

    def refused(self, message: bytes) -> str:
        return self.assertRaises(RemoteProtocolError, self.sent.answered, message).reason

    def tearDown(self) -> None:
        # None of them clears what is pending: the good one is taken still, and the same again.
        taken = self.sent.answered(self.good)
        self.assertEqual(self.sent.answered(self.good), taken)

    def test_every_byte(self) -> None:
        """A changed byte is refused for what it says; mac2 alone says nothing to us."""
        for place in range(92 - 16):
            reason = (
                "handshake_version"
                if place < 4
                else "response_unexpected"
                if 8 <= place < 12
                else "mac1_invalid"
            )
            self.assertEqual(self.refused(flipped(self.good, place)), reason, place)
        for place in range(92 - 16, 92):
            self.sent.answered(flipped(self.good, place))

    def test_every_byte_under_a_right_mac1(self) -> None:
        """Whoever knows our public key makes a right mac1: the rest is refused all the same."""
        for place in range(12, 92 - 32):
            message = with_mac1(flipped(self.good, place), OURS.public)
            self.assertEqual(self.refused(message), "handshake_decrypt", place)

    def test_type(self) -> None:
        """Another type is refused, the reserved bytes counting as a part of it."""
        for kind in (0, 1, 3, 4, 0x102, 0x2000002):
            message = with_mac1(struct.pack("<I", kind) + self.good[4:], OURS.public)
            self.assertEqual(self.refused(message), "handshake_version")

    def test_index(self) -> None:
        """Another's index is refused, however near."""
        for index in (INDEX - 1, INDEX + 1, 0, 2**32 - 1, REMOTE_INDEX):
            message = self.good[:8] + struct.pack("<I", index) + self.good[12:]
            message = with_mac1(message, OURS.public)
            self.assertEqual(self.refused(message), "response_unexpected")

    def test_mac1_is_keyed_by_our_key(self) -> None:
        """A mac1 for its sender, as in the message it answers, is not one for us."""
        self.assertEqual(self.refused(with_mac1(self.good, THEIRS.public)), "mac1_invalid")
        self.assertEqual(with_mac1(self.good, OURS.public), self.good)  # control

    def test_length(self) -> None:
        """Shorter or longer by any number of bytes, it is refused before it is read."""
        for length in (*range(92), *range(93, 149)):
            message = self.good.ljust(length, b"\0")[:length]
            self.assertEqual(self.refused(message), "datagram_length")

    def test_wrong_psk(self) -> None:
        """An answer under another psk, or none, is refused."""
        for psk in (NO_PSK, flipped(PSK, 31)):
            message, _ = answer(self.sent.message, psk)
            self.assertEqual(self.refused(message), "handshake_decrypt")

    def test_to_another_handshake(self) -> None:
        """An answer to our initiation of before, under the same index, is refused."""
        before = initiation(random_bytes=lambda size: OTHER_EPHEMERAL[:size])
        self.assertEqual(self.refused(answer(before.message)[0]), "handshake_decrypt")

    def test_from_another(self) -> None:
        """Who has not the key that we called cannot answer, even knowing all that was public."""
        third = KeyPair.of(bytes(range(7, 39)))
        called = initiation(remote_public=third.public)
        message, _ = answer(initiation().message)
        error = self.assertRaises(RemoteProtocolError, called.answered, message)
        self.assertEqual(error.reason, "handshake_decrypt")

    def test_low_order(self) -> None:
        """An ephemeral key of low order is refused by name."""
        for point in LOW_ORDER:
            message = with_mac1(self.good[:12] + point + self.good[44:], OURS.public)
            self.assertEqual(self.refused(message), "handshake_low_order")

    @settings(max_examples=50, deadline=None)
    @given(st.binary(min_size=80, max_size=80), st.booleans())
    def test_any_bytes(self, noise: bytes, addressed: bool) -> None:
        """Whatever comes, it is a named reason."""
        if addressed:
            noise = struct.pack("<III", RESPONSE, 1, INDEX) + noise[12:]
        message = with_mac1(noise.ljust(92, b"\0"), OURS.public)
        self.refused(message)


class BadInitiations(SynchronousTestCase):
    def refused(self, message: bytes) -> str:
        return self.assertRaises(RemoteProtocolError, received, message).reason

    def unopened(self, message: bytes) -> str:
        return self.assertRaises(RemoteProtocolError, received(message).open).reason

    def test_every_byte(self) -> None:
        """What is spoilt up to the key shows at once, in the stamp when it is opened."""
        good = initiation().message
        for place in range(148 - 32):
            message = flipped(good, place)
            if place < 4:
                self.assertEqual(self.refused(message), "handshake_version")
            elif place < 8:  # an index is what it says
                self.assertNotEqual(received(message).remote_index, INDEX)
                received(message).open()
            elif place < 88:
                self.assertEqual(self.refused(message), "handshake_decrypt", place)
            else:
                self.assertEqual(self.unopened(message), "handshake_decrypt", place)

    def test_length(self) -> None:
        """Shorter or longer by any number of bytes, it is refused before it is read."""
        good = initiation().message
        for length in (*range(148), *range(149, 209)):
            self.assertEqual(self.refused(good.ljust(length, b"\0")[:length]), "datagram_length")
        received(good).open()  # control

    def test_type(self) -> None:
        """Another type is refused, the reserved bytes counting as a part of it."""
        good = initiation().message
        for kind in (0, 2, 3, 4, 0x101, 0x1000001):
            self.assertEqual(self.refused(struct.pack("<I", kind) + good[4:]), "handshake_version")

    def test_for_another(self) -> None:
        """An initiation for another's key does not open."""
        third = KeyPair.of(bytes(range(7, 39)))
        self.assertEqual(
            self.refused(initiation(remote_public=third.public).message), "handshake_decrypt"
        )

    def test_a_borrowed_key(self) -> None:
        """Naming another's public key is possible, opening the message then is not."""
        third = KeyPair.of(bytes(range(7, 39)))
        borrowed = paper.Handshake(
            S_i=OURS.private,
            E_i=EPHEMERAL,
            S_r=THEIRS.private,
            S_pub_i=third.public,
        )
        message = paper.macs(borrowed.first, THEIRS.public)
        self.assertEqual(received(message).public_key, third.public)
        self.assertEqual(self.unopened(message), "handshake_decrypt")

    def test_low_order(self) -> None:
        """An ephemeral or static key of low order is refused by name."""
        good = initiation().message
        for point in LOW_ORDER:
            self.assertEqual(self.refused(good[:8] + point + good[40:]), "handshake_low_order")
            weak = paper.Handshake(
                S_i=OURS.private,
                E_i=EPHEMERAL,
                S_r=THEIRS.private,
                S_pub_i=point,
                ss=bytes(32),
            )
            message = paper.macs(weak.first, THEIRS.public)
            self.assertEqual(received(message).public_key, point)
            self.assertEqual(self.unopened(message), "handshake_low_order")

    @settings(max_examples=50, deadline=None)
    @given(st.binary(min_size=140, max_size=140))
    def test_any_bytes(self, noise: bytes) -> None:
        """Whatever comes, it is a named reason."""
        self.refused(struct.pack("<II", INITIATION, 1) + noise)


class Misuse(SynchronousTestCase):
    def test_answer_before_open(self) -> None:
        """Answering a sender who has proved nothing is our bug and says so."""
        request = received(initiation().message)
        key = mac1_key(OURS.public)
        self.assertRaises(LocalProtocolError, request.answer, PSK, index=1, mac1_key=key)
        request.open()
        request.answer(PSK, index=1, mac1_key=key)  # control

    def test_answer_after_a_failure(self) -> None:
        """So is answering one whose proof has failed."""
        request = received(flipped(initiation().message, 100))
        self.assertRaises(RemoteProtocolError, request.open)
        self.assertRaises(
            LocalProtocolError, request.answer, PSK, index=1, mac1_key=mac1_key(OURS.public)
        )

    def test_twice(self) -> None:
        """Opening or answering twice is our bug and says so."""
        request = received(initiation().message)
        request.open()
        self.assertRaises(LocalProtocolError, request.open)
        request.answer(PSK, index=1, mac1_key=mac1_key(OURS.public))
        self.assertRaises(
            LocalProtocolError, request.answer, PSK, index=1, mac1_key=mac1_key(OURS.public)
        )

    def test_a_psk_of_another_size(self) -> None:
        """No psk is 32 zeros, not an empty one."""
        request = received(initiation().message)
        request.open()
        key = mac1_key(OURS.public)
        for psk in (b"", PSK[:31], PSK + b"\0"):
            self.assertRaises(LocalProtocolError, initiation, psk=psk)
            self.assertRaises(LocalProtocolError, request.answer, psk, index=1, mac1_key=key)

    def test_a_peer_whose_key_is_none(self) -> None:
        """Whoever configured a key of low order is never called; the error has a name."""
        for point in LOW_ORDER:
            error = self.assertRaises(RemoteProtocolError, initiation, remote_public=point)
            self.assertEqual(error.reason, "handshake_low_order")

    def test_fresh_ephemeral_keys(self) -> None:
        """Each handshake has an ephemeral key of its own from the given source, on both sides."""
        source = Random(1).randbytes
        first, second = (initiation(random_bytes=source).message for _ in range(2))
        self.assertNotEqual(first[8:40], second[8:40])
        answers = set()
        for _ in range(2):
            request = InitiationReceived(THEIRS, first, source)
            request.open()
            message, _ = request.answer(PSK, index=1, mac1_key=mac1_key(OURS.public))
            answers.add(message[12:44])
        self.assertEqual(len(answers), 2)
