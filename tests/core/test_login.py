"""Login v1 against its specification (PROTOCOL 2 and 3), retyped here as numbers and offsets."""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from hashlib import blake2s
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.login import (
    LoginAttempt,
    LoginFlags,
    LoginRequest,
    NetworkKeys,
    TransportKeys,
    password_key,
    public_key,
)
from pyvpn.core.names import user_name_valid
from pyvpn.core.noise import IK_PSK0_PSK2, HandshakeState, KeyPair
from pyvpn.errors import RemoteProtocolError

NAME = b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s"
NETWORK_SECRET = bytes(range(100, 132))
LOGIN_KEY = KeyPair.of(bytes(range(32)))
USER_KEY = KeyPair.of(bytes(range(32, 64)))
DEVICE = bytes(range(16))
STAMP = bytes(range(200, 212))
SERVER_STAMP = bytes(range(212, 224))
CLIENT_INDEX, SERVER_INDEX = 0x11223344, 0xAABBCCDD

OFFERED = LoginFlags.AES_256_GCM | LoginFlags.SEGMENT_FRAMES


def keyed(key: bytes, data: bytes, size: int) -> bytes:
    return blake2s(data, digest_size=size, key=key).digest()


# PROTOCOL 3, the table of keys, written out.
S_LOGIN = LOGIN_KEY.public
NET_TAG = keyed(NETWORK_SECRET, b"pyvpn1 net-tag" + S_LOGIN, 16)
PSK0 = keyed(NETWORK_SECRET, b"pyvpn1 psk0", 32)
PSK2 = keyed(NETWORK_SECRET, b"pyvpn1 psk2", 32)
MAC1_C2S = keyed(NETWORK_SECRET, b"pyvpn1 mac1 c2s" + S_LOGIN, 32)
MAC1_S2C = keyed(NETWORK_SECRET, b"pyvpn1 mac1 s2c" + S_LOGIN, 32)
COOKIE = keyed(NETWORK_SECRET, b"pyvpn1 cookie" + S_LOGIN, 32)

KEYS = NetworkKeys.derive(S_LOGIN, NETWORK_SECRET)


def state(*, initiator: bool, static: KeyPair, seed: int = 1) -> HandshakeState:
    """A side made from the specification, not by the code under test."""
    return HandshakeState(
        NAME,
        IK_PSK0_PSK2,
        initiator=initiator,
        prologue=b"pyvpn1 login" + NET_TAG,
        static=static,
        remote_static=S_LOGIN if initiator else b"",
        psks=(PSK0, PSK2),
        random_bytes=Random(seed).randbytes,
    )


def with_mac1(message: bytes, key: bytes) -> bytes:
    return message + keyed(key, message, 16) + bytes(16)


def attempt(**changes: object) -> LoginAttempt:
    arguments: dict[str, object] = {
        "index": CLIENT_INDEX,
        "stamp": STAMP,
        "device": DEVICE,
        "user": "alice",
        "flags": OFFERED,
        "random_bytes": Random(7).randbytes,
    }
    return LoginAttempt(KEYS, USER_KEY, **(arguments | changes))  # type: ignore[arg-type]


def request(message: bytes) -> LoginRequest:
    return LoginRequest(KEYS, LOGIN_KEY, message, Random(8).randbytes)


def answer(message: bytes, flags: LoginFlags = OFFERED) -> tuple[bytes, TransportKeys]:
    return request(message).answer(
        index=SERVER_INDEX, flags=flags, inner_mtu=1416, stamp=SERVER_STAMP
    )


def payload1(
    *,
    version: int = 1,
    flags: int = 0,
    zero: int = 0,
    sender: int = CLIENT_INDEX,
    length: int | None = None,
    user: bytes = b"alice",
    code: bytes = bytes(3),
) -> bytes:
    """The 72 bytes inside a 0x50, field after field."""
    whole = (
        bytes([version, flags])
        + zero.to_bytes(2, "little")
        + sender.to_bytes(4, "little")
        + STAMP
        + DEVICE
        + bytes([len(user) if length is None else length])
        + user.ljust(32, b"\0")
        + code
    )
    assert len(whole) == 72
    return whole


def initiation(payload: bytes, *, static: KeyPair = USER_KEY, head: bytes = b"\x50\1\0\0") -> bytes:
    """A 0x50 with any payload, its MACs right."""
    prefix = head + CLIENT_INDEX.to_bytes(4, "little")
    written = state(initiator=True, static=static).write_message(payload)
    return with_mac1(prefix + written, MAC1_C2S)


def payload2(
    *,
    version: int = 1,
    flags: int = 0,
    mtu: int = 1416,
    sender: int = SERVER_INDEX,
    receiver: int = CLIENT_INDEX,
) -> bytes:
    """The 24 bytes inside a 0x51, field after field."""
    return struct.pack("<BBHII", version, flags, mtu, sender, receiver) + SERVER_STAMP


def response(
    message: bytes,
    payload: bytes,
    *,
    head: bytes = b"\x51\1\0\0",
    receiver: int = CLIENT_INDEX,
) -> bytes:
    """A 0x51 to a 0x50, with any payload, its MACs right."""
    hub = state(initiator=False, static=LOGIN_KEY, seed=2)
    hub.read_message(message[8:176])
    prefix = head + struct.pack("<II", SERVER_INDEX, receiver)
    return with_mac1(prefix + hub.write_message(payload), MAC1_S2C)


def reason_of(call: object, *arguments: object) -> str:
    """The reason with which something is refused, ``accepted`` when it is not."""
    try:
        call(*arguments)  # type: ignore[operator]
    except RemoteProtocolError as error:
        return error.reason
    return "accepted"


class KeysOfANetwork(SynchronousTestCase):
    def test_each_key_is_derived_as_written(self) -> None:
        """Every key is *keyed* BLAKE2s of its label under the network's secret."""
        self.assertEqual(KEYS.login_public, S_LOGIN)
        self.assertEqual(KEYS.prologue, b"pyvpn1 login" + NET_TAG)
        self.assertEqual((KEYS.psk0, KEYS.psk2), (PSK0, PSK2))
        self.assertEqual((KEYS.mac1_to_server, KEYS.mac1_to_client), (MAC1_C2S, MAC1_S2C))
        self.assertEqual(KEYS.cookie, COOKIE)
        self.assertEqual(len({PSK0, PSK2, MAC1_C2S, MAC1_S2C, COOKIE}), 5)

    def test_password_key(self) -> None:
        """The user's key is scrypt of the password, salted with PS, the name's length and name."""
        salt = bytes(range(16))
        name = "zoë".encode()
        salted = blake2s(b"pyvpn1 pw-salt" + salt + bytes([4]) + name).digest()
        expected = hashlib.scrypt(
            "pässword".encode(), salt=salted, n=1 << 4, r=8, p=1, dklen=32, maxmem=1 << 28
        )
        self.assertEqual(password_key("pässword", "zoë", salt, 4, 8, 1), expected)
        self.assertEqual(len(public_key(expected)), 32)

    def test_password_key_of_every_spelling(self) -> None:
        """The same password and name, typed decomposed on another system, are the same key."""
        salt = bytes(16)
        composed = password_key("p\u00e4ss", "zo\u00eb", salt, 1, 8, 1)
        self.assertEqual(password_key("pa\u0308ss", "zoe\u0308", salt, 1, 8, 1), composed)
        self.assertNotEqual(password_key("pass", "zo\u00eb", salt, 1, 8, 1), composed)

    def test_password_key_depends_on_everything(self) -> None:
        """Another password, user, salt or cost gives another key."""
        made = {
            password_key("one", "a", bytes(16), 1, 8, 1),
            password_key("two", "a", bytes(16), 1, 8, 1),
            password_key("one", "b", bytes(16), 1, 8, 1),
            password_key("one", "a", b"\1" * 16, 1, 8, 1),
            password_key("one", "a", bytes(16), 2, 8, 1),
        }
        self.assertEqual(len(made), 5)

    def test_the_largest_cost(self) -> None:
        """The usual parameters (17, 8, 1) pass OpenSSL's memory limit."""
        self.assertEqual(len(password_key("one", "a", bytes(16), 17, 8, 1)), 32)


class Layout(SynchronousTestCase):
    def test_initiation(self) -> None:
        """The 208 bytes of a 0x50 stand where PROTOCOL 3 puts them."""
        message = attempt().message
        self.assertEqual(len(message), 208)
        self.assertEqual(message[0:4], b"\x50\1\0\0")
        self.assertEqual(message[4:8], b"\x44\x33\x22\x11")
        self.assertEqual(message[8:40], KeyPair.of(Random(7).randbytes(32)).public)
        self.assertEqual(message[176:192], keyed(MAC1_C2S, message[:176], 16))
        self.assertEqual(message[192:208], bytes(16))
        hub = state(initiator=False, static=LOGIN_KEY)
        # e 32, encrypted s 48, encrypted payload 72 + 16.
        payload = hub.read_message(message[8:176])
        self.assertEqual(hub.rs, USER_KEY.public)
        self.assertEqual(payload, payload1(flags=2 | 4))
        self.assertEqual(payload[8:20], STAMP)
        self.assertEqual(payload[20:36], DEVICE)
        self.assertEqual(payload[36:42], b"\5alice")

    def test_initiation_with_a_cookie(self) -> None:
        """mac2 is keyed by the cookie over all but itself, mac1 included."""
        cookie = bytes(range(16))
        message = attempt(cookie=cookie).message
        self.assertEqual(message[192:], keyed(cookie, message[:192], 16))
        self.assertEqual(message[176:192], keyed(MAC1_C2S, message[:176], 16))

    def test_response(self) -> None:
        """The 116 bytes of a 0x51 stand where PROTOCOL 3 puts them."""
        client = state(initiator=True, static=USER_KEY)
        written = client.write_message(payload1(flags=2))
        first = with_mac1(b"\x50\1\0\0" + CLIENT_INDEX.to_bytes(4, "little") + written, MAC1_C2S)
        message, keys = answer(first, LoginFlags.AES_256_GCM)
        self.assertEqual(len(message), 116)
        self.assertEqual(message[0:4], b"\x51\1\0\0")
        self.assertEqual(message[4:8], SERVER_INDEX.to_bytes(4, "little"))
        self.assertEqual(message[8:12], CLIENT_INDEX.to_bytes(4, "little"))
        self.assertEqual(message[84:100], keyed(MAC1_S2C, message[:84], 16))
        self.assertEqual(message[100:116], bytes(16))
        # e 32, encrypted payload 24 + 16.
        self.assertEqual(client.read_message(message[12:84]), payload2(flags=2))
        self.assertEqual(client.split(), (keys.receive, keys.send))
        self.assertEqual(keys.remote_index, CLIENT_INDEX)

    def test_a_reply_is_not_longer_than_its_request(self) -> None:
        """A spoofed source cannot use the hub to amplify (PROTOCOL 8)."""
        first = attempt().message
        self.assertLess(len(answer(first)[0]), len(first))


class Agreement(SynchronousTestCase):
    def test_both_sides_agree(self) -> None:
        """A login gives both sides the same two keys, the hub's choice and each other's index."""
        client = attempt()
        hub = request(client.message)
        self.assertEqual(hub.user, "alice")
        self.assertEqual(hub.device, DEVICE)
        self.assertEqual(hub.stamp, STAMP)
        self.assertEqual(hub.flags, OFFERED)
        self.assertEqual(hub.public_key, USER_KEY.public)
        message, theirs = answer(client.message, LoginFlags.AES_256_GCM)
        ours = client.answered(message)
        self.assertEqual((ours.send, ours.receive), (theirs.receive, theirs.send))
        self.assertEqual((ours.remote_index, theirs.remote_index), (SERVER_INDEX, CLIENT_INDEX))
        self.assertEqual((ours.flags, ours.inner_mtu), (LoginFlags.AES_256_GCM, 1416))

    def test_every_login_has_its_own_keys(self) -> None:
        """Fresh ephemeral keys on both sides: no two sessions share a key."""
        made = set()
        for seed in range(4):
            client = attempt(random_bytes=Random(seed).randbytes)
            hub = LoginRequest(KEYS, LOGIN_KEY, client.message, Random(100 + seed).randbytes)
            _, keys = hub.answer(index=1, flags=OFFERED, inner_mtu=1416, stamp=SERVER_STAMP)
            made |= {keys.send, keys.receive}
        self.assertEqual(len(made), 8)


class TamperedInitiation(SynchronousTestCase):
    """What the hub makes of a 0x50 that somebody changed who knows the network's secret."""

    #: First and last byte of a field, and the reasons with which a change in it is refused.
    FIELDS = [
        # The first byte chooses the reader, and the length: the facade's business.
        (1, 3, {"handshake_version"}),
        (4, 7, {"handshake_index_echo"}),
        (8, 39, {"handshake_decrypt", "handshake_low_order"}),
        (40, 87, {"handshake_decrypt"}),
        (88, 175, {"handshake_decrypt"}),
    ]

    def test_every_byte(self) -> None:
        """Each byte is covered: by mac1 for strangers, by the handshake for those with the secret.

        mac2 (192 to 207) is looked at under load only, so a change there changes nothing.
        """
        from pyvpn.core.cookies import mac1_valid

        good = attempt().message
        self.assertTrue(mac1_valid(good, MAC1_C2S))
        self.assertEqual(reason_of(request, good), "accepted")
        for first, last, reasons in self.FIELDS:
            for place in range(first, last + 1):
                damaged = bytearray(good)
                damaged[place] ^= 1 << place % 8
                self.assertFalse(mac1_valid(bytes(damaged), MAC1_C2S), place)
                forged = with_mac1(bytes(damaged[:176]), MAC1_C2S)
                self.assertIn(reason_of(request, forged), reasons, place)
        for place in (0, *range(176, 192)):
            damaged = bytearray(good)
            damaged[place] ^= 1
            self.assertFalse(mac1_valid(bytes(damaged), MAC1_C2S), place)
        for place in range(192, 208):
            damaged = bytearray(good)
            damaged[place] ^= 1
            self.assertEqual(reason_of(request, bytes(damaged)), "accepted")

    def test_the_field_table_is_complete(self) -> None:
        """Control: the table above covers all 208 bytes but the type and the MACs."""
        places = [p for first, last, _ in self.FIELDS for p in range(first, last + 1)]
        self.assertEqual(places, list(range(1, 176)))

    def test_another_network(self) -> None:
        """The right password under another network's secret or login key is not readable."""
        other = NetworkKeys.derive(S_LOGIN, bytes(32))
        hub = lambda m: LoginRequest(other, LOGIN_KEY, m, Random(1).randbytes)  # noqa: E731
        self.assertEqual(reason_of(hub, attempt().message), "handshake_decrypt")

    def test_payload_rules(self) -> None:
        """A field of the payload outside its rule is refused by name; each right one is taken."""
        table = [
            (payload1(), "accepted"),
            (payload1(flags=15), "accepted"),
            (payload1(flags=8, code=b"\1\2\3"), "accepted"),
            (payload1(version=0), "handshake_payload"),
            (payload1(version=2), "handshake_payload"),
            (payload1(zero=1), "handshake_payload"),
            (payload1(zero=0x100), "handshake_payload"),
            (payload1(code=b"\1\0\0"), "handshake_payload"),
            (payload1(flags=7, code=b"\0\0\1"), "handshake_payload"),
            (payload1(sender=CLIENT_INDEX ^ 1), "handshake_index_echo"),
            (payload1(sender=0), "handshake_index_echo"),
            (payload1()[:-1], "handshake_payload"),
            (payload1() + b"\0", "handshake_payload"),
        ]
        for payload, reason in table:
            self.assertEqual(reason_of(request, initiation(payload)), reason, payload.hex())

    def test_reserved_flags(self) -> None:
        """Flag bits 4 to 7 must be zero (regression: ``~`` of an IntFlag let them all pass)."""
        for bit in range(8):
            expected = "accepted" if bit < 4 else "handshake_payload"
            message = initiation(payload1(flags=1 << bit))
            self.assertEqual(reason_of(request, message), expected, bit)

    def test_a_static_key_of_low_order(self) -> None:
        """A client that claims a key of low order is refused by name: ss would prove nothing."""
        client = state(initiator=True, static=USER_KEY)
        nobody = KeyPair(bytes(32), bytes(32), USER_KEY._key)
        client._s = nobody
        message = b"\x50\1\0\0" + CLIENT_INDEX.to_bytes(4, "little")
        message = with_mac1(message + client.write_message(payload1()), MAC1_C2S)
        self.assertEqual(reason_of(request, message), "handshake_low_order")

    def test_the_code_needs_its_flag(self) -> None:
        """A code (second factor) is read only where the client says that there is one."""
        self.assertEqual(
            request(initiation(payload1(flags=8, code=b"\1\2\3"))).flags, LoginFlags.CODE_PRESENT
        )


class UserNames(SynchronousTestCase):
    def refused(self, user: bytes, length: int | None = None) -> str:
        return reason_of(request, initiation(payload1(user=user, length=length)))

    def test_spellings(self) -> None:
        """Only 1 to 32 bytes of NFC without control characters, zero-padded, name a user."""
        long = "ü" * 16
        table = [
            (b"alice", None, "accepted"),
            ("zo\u00eb".encode(), None, "accepted"),
            (long.encode(), None, "accepted"),
            (b"a" * 32, None, "accepted"),
            (b"a b@c.example", None, "accepted"),
            (b"", None, "handshake_user"),
            (b"alice", 0, "handshake_user"),
            (b"alice", 33, "handshake_user"),
            (b"alice", 255, "handshake_user"),
            (b"alice", 4, "handshake_user"),  # the rest is not zero
            (b"alice", 6, "handshake_user"),  # a NUL is a control character
            ("zoe\u0308".encode(), None, "handshake_user"),  # decomposed
            ("\u212bngstrom".encode(), None, "handshake_user"),  # ANGSTROM SIGN is not NFC
            (b"\xff\xfe", None, "handshake_user"),
            (b"al\xc3", None, "handshake_user"),  # cut in a character
            (b"\xc0\xafx", None, "handshake_user"),  # overlong
            (b"\xed\xa0\x80", None, "handshake_user"),  # a surrogate
            (b"ali\nce", None, "handshake_user"),
            (b"ali\x1b[31mce", None, "handshake_user"),
            ("ali\u0085ce".encode(), None, "handshake_user"),
            ("ali\u202ece".encode(), None, "handshake_user"),  # right-to-left override
        ]
        for user, length, reason in table:
            self.assertEqual(self.refused(user, length), reason, (user, length))

    @given(st.text(min_size=1, max_size=32))
    @settings(deadline=None, max_examples=60)
    def test_what_is_valid_arrives(self, text: str) -> None:
        """A name that passes the rule arrives as it was sent, whatever its letters."""
        name = unicodedata.normalize("NFC", "".join(c for c in text if c.isprintable())) or "x"
        if not user_name_valid(name):
            return
        self.assertEqual(request(attempt(user=name).message).user, name)

    @given(st.binary(min_size=32, max_size=32), st.integers(0, 255))
    @settings(deadline=None, max_examples=60)
    def test_any_field_is_a_name_or_refused(self, field: bytes, length: int) -> None:
        """Any 33 bytes are a valid name or a named drop, and one name has one spelling."""
        message = initiation(payload1(user=field, length=length))
        if reason_of(request, message) == "accepted":
            name = request(message).user
            self.assertEqual(name.encode().ljust(32, b"\0"), field)
            self.assertTrue(user_name_valid(name))


class TamperedResponse(SynchronousTestCase):
    """What the client makes of a 0x51 that somebody changed who knows the network's secret."""

    def setUp(self) -> None:
        self.client = attempt()
        self.good = answer(self.client.message)[0]

    def tearDown(self) -> None:
        # Whatever a test tried: what is pending is still there, and the right answer still works.
        self.assertEqual(self.client.answered(self.good).remote_index, SERVER_INDEX)

    FIELDS = [
        (1, 3, {"handshake_version"}),
        (4, 7, {"handshake_index_echo"}),
        (8, 11, {"response_unexpected"}),
        (12, 43, {"handshake_decrypt", "handshake_low_order"}),
        (44, 83, {"handshake_decrypt"}),
    ]

    def test_every_byte(self) -> None:
        """Each byte is covered, also against those who can make a right mac1."""
        for first, last, reasons in self.FIELDS:
            for place in range(first, last + 1):
                damaged = bytearray(self.good)
                damaged[place] ^= 1 << place % 8
                self.assertNotEqual(reason_of(self.client.answered, bytes(damaged)), "accepted")
                forged = with_mac1(bytes(damaged[:84]), MAC1_S2C)
                self.assertIn(reason_of(self.client.answered, forged), reasons, place)
        for place in (0, *range(84, 100)):
            damaged = bytearray(self.good)
            damaged[place] ^= 1
            self.assertEqual(reason_of(self.client.answered, bytes(damaged)), "mac1_invalid")
        for place in range(100, 116):
            damaged = bytearray(self.good)
            damaged[place] ^= 1
            self.assertEqual(reason_of(self.client.answered, bytes(damaged)), "handshake_version")
        places = [p for first, last, _ in self.FIELDS for p in range(first, last + 1)]
        self.assertEqual(places, list(range(1, 84)))

    def test_mac1_of_the_wrong_direction(self) -> None:
        """A mac1 made with the key of the other direction is refused: no reflection."""
        reflected = with_mac1(self.good[:84], MAC1_C2S)
        self.assertEqual(reason_of(self.client.answered, reflected), "mac1_invalid")

    def test_payload_rules(self) -> None:
        """The hub's fields outside their rule are refused by name; each right one is taken."""
        message = self.client.message
        table = [
            (payload2(), "accepted"),
            (payload2(flags=2), "accepted"),
            (payload2(flags=6), "accepted"),
            (payload2(version=2), "handshake_payload"),
            (payload2(sender=SERVER_INDEX ^ 1), "handshake_index_echo"),
            (payload2(receiver=CLIENT_INDEX ^ 1), "handshake_index_echo"),
            (payload2()[:-1], "handshake_payload"),
            (payload2() + b"\0", "handshake_payload"),
        ]
        for payload, reason in table:
            forged = response(message, payload)
            self.assertEqual(reason_of(self.client.answered, forged), reason, payload.hex())

    def test_the_choice_is_a_subset_of_the_offer(self) -> None:
        """The hub grants nothing that was not offered, reserved bits included (regression: ``~``
        of an IntFlag let bits 4 to 7 pass).
        """
        for bit in range(8):
            expected = "accepted" if 1 << bit & OFFERED else "handshake_payload"
            forged = response(self.client.message, payload2(flags=1 << bit))
            self.assertEqual(reason_of(self.client.answered, forged), expected, bit)

    def test_an_answer_to_another_attempt(self) -> None:
        """The answer to one 0x50 is no answer to another, even with the same index."""
        other = attempt(random_bytes=Random(99).randbytes)
        foreign = answer(other.message)[0]
        self.assertEqual(reason_of(self.client.answered, foreign), "handshake_decrypt")
        self.assertEqual(reason_of(other.answered, foreign), "accepted")

    def test_a_hub_without_the_login_key(self) -> None:
        """Whoever has the token but not the hub's private key cannot answer."""
        impostor = KeyPair.of(bytes(range(1, 33)))
        hub = state(initiator=False, static=impostor)
        self.assertEqual(
            reason_of(hub.read_message, self.client.message[8:176]), "handshake_decrypt"
        )
