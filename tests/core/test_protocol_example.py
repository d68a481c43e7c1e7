"""The worked example of docs/protocol.rst: other implementations are built against these bytes.

Every value is typed here as it stands in the document. A change that makes one of these tests fail
changes the wire, and needs a new protocol version rather than a new example.
"""

from __future__ import annotations

from hashlib import blake2s
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.cookies import CookieChecker, open_cookie_reply
from pyvpn.core.login import (
    LoginAttempt,
    LoginFlags,
    LoginRequest,
    NetworkKeys,
    password_key,
    public_key,
)
from pyvpn.core.noise import KeyPair
from pyvpn.core.transport import Session
from pyvpn.token import NetworkToken

# What is given.
LOGIN_PRIVATE = bytes.fromhex("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
NETWORK_SECRET = bytes.fromhex("2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40")
PASSWORD_SALT = bytes.fromhex("4142434445464748494a4b4c4d4e4f50")
CLIENT_EPHEMERAL = bytes.fromhex("5152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f70")
HUB_EPHEMERAL = bytes.fromhex("7172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f90")
DEVICE = bytes.fromhex("9192939495969798999a9b9c9d9e9fa0")
USER, PASSWORD = "kiwi", "seven green apples"
CLIENT_INDEX, HUB_INDEX = 0x11223344, 0x55667788
CLIENT_STAMP = bytes.fromhex("400000006955b90a05000000")
HUB_STAMP = bytes.fromhex("400000006955b90b1dcd6500")
COOKIE_SECRET = bytes.fromhex("a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0")
COOKIE_NONCE = bytes.fromhex("c1c2c3c4c5c6c7c8c9cacbcccdcecfd00100000000000000")
CLIENT_ADDRESS = bytes.fromhex("00000000000000000000ffffcb007105e02e")
POLL_STAMP = bytes.fromhex("400000006955b90b2cb41780")

# What follows from it.
LOGIN_PUBLIC = bytes.fromhex("07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c")
TOKEN = bytes.fromhex(
    "50564e311108010007a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed"
    "0bdfc0b2b86d1c7c2122232425262728292a2b2c2d2e2f303132333435363738"
    "393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f5029b00788"
)
TOKEN_TEXT = (
    "UFZOMREIAQAHo3y8FCCTyLdV3BsQ6Gy0JjdK0WqoU-0L38CyuG0cfCEiIyQlJico"
    "KSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj9AQUJDREVGR0hJSktMTU5PUCmwB4g"
)
PROLOGUE = bytes.fromhex("707976706e31206c6f67696efb5cd3af1b1b562e8ad0457eba11349a")
PSK0 = bytes.fromhex("466407f9233fc2911d4ac4633f16bda252a74f30db495c869b260a04c3a1034a")
PSK2 = bytes.fromhex("372411efdb5e583b27ff76d6d009f1e9eea6f16073095a8b32abd67ca69498a3")
MAC1_TO_SERVER = bytes.fromhex("326d91900a429fbef5cdd4043d3b52ad60dbd04d5ce5d1c6c0bb9c2ad1568eef")
MAC1_TO_CLIENT = bytes.fromhex("9d01e4b6037866326fc1f8c27d6caac95c78686b516d7e93dfc8dbfde6e3e78a")
COOKIE = bytes.fromhex("bfef584e5bfd503dcbd7cfa09091ba8383a924d6832b68c3baaa7ea9111ff882")
SCRYPT_SALT = bytes.fromhex("1ec1442a081f0fcc7fe056e903fb6c3708fbac3ccc0de2e6cd243918de589549")
PASSWORD_PRIVATE = bytes.fromhex("2e04b8462fe397a76c67a75b77a96db5c82fd1924dc65e5efe5203b326d9324f")
PASSWORD_PUBLIC = bytes.fromhex("43847c0f48804421004c7f931eb1eebbd063a3a84e6529feb2edf86dcd1ae24c")
INITIATION = bytes.fromhex(
    "50010000443322110233f006ef4bed144ea0a5bb46c7067c7c2acec5f8cc811f"
    "3df59fdcd5ac7614de8b9fb594595d528bc987737e058397e4855210fbcce8c7"
    "15a535c1516e8360e2c89b1c2e94f25a1695b4b76d495a8a9432be5a79eb340a"
    "0c1d1f2967d29a131dd9455ddbe3434d641f90357dc1051d7557fc6f957c111a"
    "e491f307ac94110d5e5b8ce75edf3a95cb8bf8ce2cf12c852fdfe1929e6eab57"
    "b57aedbc8dc23084a50177bdb0893e990d64ebd686b49c13b0196271eeac2f95"
    "00000000000000000000000000000000"
)
COOKIE_REPLY = bytes.fromhex(
    "5201000044332211c1c2c3c4c5c6c7c8c9cacbcccdcecfd00100000000000000"
    "9a6c28fb62ddd98fe33143f56b4aa56245554775d4c0da5b3992507da86b6d5c"
)
COOKIE_VALUE = bytes.fromhex("fcce79b12542840a8870c5534afa5a01")
MAC2 = bytes.fromhex("d655850601f143b2f4b51d144365ac00")
RESPONSE = bytes.fromhex(
    "510100008877665544332211d214723afdfe2cddbdc929b18a5e43017e44445f"
    "c5d6c8fcf88b1868c53f395c06621fd9906c514b7ce64f3df804557f6fff6695"
    "352d8b05f5e732c45f5858539dad75b243a7b7c5d708a58a128592f88b5862e8"
    "2b86724300000000000000000000000000000000"
)
CLIENT_TO_HUB = bytes.fromhex("59531184d8e375844d4931bee70caf7f76090db4b82e32fe2e4ecd1cd12cc1d0")
HUB_TO_CLIENT = bytes.fromhex("342a42fc172880a8b5c55320a0db3667e668605ff3050acbf20908068851f9e0")
POLL = bytes.fromhex("01001600400000006955b90b2cb4178001000000000000000000000000000000")
DATAGRAM = bytes.fromhex(
    "04000000887766550000000000000000999292d43b62fd6993d27593633a70c8"
    "2b4c5fe0cb6816be84b61a0f57b8043df45de7f731ddc228ae7190fc5ee06368"
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.rst"


def in_document(text: str, value: bytes | str) -> bool:
    """Whether the document has this value, broken into lines or not."""
    wanted = value.hex() if isinstance(value, bytes) else value
    return wanted in "".join(text.split())


class ProtocolExampleTests(SynchronousTestCase):
    """The code makes and reads exactly what the document shows."""

    def attempt(self, keys: NetworkKeys, cookie: bytes = b"") -> LoginAttempt:
        return LoginAttempt(
            keys,
            KeyPair.of(PASSWORD_PRIVATE),
            index=CLIENT_INDEX,
            stamp=CLIENT_STAMP,
            device=DEVICE,
            user=USER,
            flags=LoginFlags.DELIVER_ON_POLL | LoginFlags.AES_256_GCM,
            random_bytes=lambda size: CLIENT_EPHEMERAL,
            cookie=cookie,
        )

    def test_token(self) -> None:
        """The token's bytes and its text are the document's, both ways."""
        token = NetworkToken(17, 8, 1, LOGIN_PUBLIC, NETWORK_SECRET, PASSWORD_SALT)
        self.assertEqual(public_key(LOGIN_PRIVATE), LOGIN_PUBLIC)
        self.assertEqual(token.to_bytes(), TOKEN)
        self.assertEqual(token.to_text(), TOKEN_TEXT)
        self.assertEqual(NetworkToken.from_text(TOKEN_TEXT), token)

    def test_network_keys(self) -> None:
        """All keys that follow from the token are the document's."""
        keys = NetworkKeys.derive(LOGIN_PUBLIC, NETWORK_SECRET)
        self.assertEqual(
            keys,
            NetworkKeys(LOGIN_PUBLIC, PROLOGUE, PSK0, PSK2, MAC1_TO_SERVER, MAC1_TO_CLIENT, COOKIE),
        )

    def test_password_key(self) -> None:
        """User and password make the document's key pair, by way of its scrypt salt."""
        salted = b"pyvpn1 pw-salt" + PASSWORD_SALT + b"\x04kiwi"
        self.assertEqual(blake2s(salted).digest(), SCRYPT_SALT)
        private = password_key(PASSWORD, USER, PASSWORD_SALT, 17, 8, 1)
        self.assertEqual(private, PASSWORD_PRIVATE)
        self.assertEqual(public_key(private), PASSWORD_PUBLIC)

    def test_login(self) -> None:
        """The 0x50 and its answer, a 0x51, are the document's, and both sides get its keys."""
        keys = NetworkKeys.derive(LOGIN_PUBLIC, NETWORK_SECRET)
        attempt = self.attempt(keys)
        self.assertEqual(attempt.message, INITIATION)
        request = LoginRequest(
            keys, KeyPair.of(LOGIN_PRIVATE), INITIATION, lambda size: HUB_EPHEMERAL
        )
        self.assertEqual(
            (request.user, request.device, request.stamp, request.public_key, request.flags),
            (USER, DEVICE, CLIENT_STAMP, PASSWORD_PUBLIC, 3),
        )
        response, hub = request.answer(
            index=HUB_INDEX, flags=LoginFlags.AES_256_GCM, inner_mtu=1416, stamp=HUB_STAMP
        )
        self.assertEqual(response, RESPONSE)
        self.assertEqual((hub.receive, hub.send), (CLIENT_TO_HUB, HUB_TO_CLIENT))
        client = attempt.answered(RESPONSE)
        self.assertEqual((client.send, client.receive), (CLIENT_TO_HUB, HUB_TO_CLIENT))
        self.assertEqual((client.remote_index, client.inner_mtu), (HUB_INDEX, 1416))

    def test_cookie(self) -> None:
        """The 0x52, its cookie and the mac2 made with that are the document's, both ways."""
        keys = NetworkKeys.derive(LOGIN_PUBLIC, NETWORK_SECRET)
        random_bytes = iter((COOKIE_SECRET, COOKIE_NONCE[:16]))
        hub = CookieChecker(keys.cookie, lambda size: next(random_bytes))
        reply = hub.reply(INITIATION, CLIENT_INDEX, CLIENT_ADDRESS, 0.0)
        self.assertEqual(reply, COOKIE_REPLY)
        self.assertEqual(reply[8:32], COOKIE_NONCE)
        cookie = open_cookie_reply(reply, keys.cookie, CLIENT_INDEX, INITIATION)
        self.assertEqual(cookie, COOKIE_VALUE)
        message = self.attempt(keys, cookie).message
        self.assertEqual(message, INITIATION[:-16] + MAC2)
        self.assertTrue(hub.mac2_valid(message, CLIENT_ADDRESS, 0.0))

    def test_transport(self) -> None:
        """The client's first datagram, a POLL under AES-256-GCM, is the document's, both ways."""
        poll = control.Poll(POLL_STAMP, seq=1, credit_bytes=0, credit_datagrams=0)
        self.assertEqual(poll.pack(), POLL)
        client = self.session(CLIENT_TO_HUB, HUB_TO_CLIENT, CLIENT_INDEX, HUB_INDEX)
        self.assertEqual(b"".join(client.seal_burst([POLL])), DATAGRAM)
        hub = self.session(HUB_TO_CLIENT, CLIENT_TO_HUB, HUB_INDEX, CLIENT_INDEX)
        counter = int.from_bytes(DATAGRAM[8:16], "little")
        self.assertEqual(hub.open_burst((counter,), (DATAGRAM[16:],)), [POLL])

    def session(self, send: bytes, receive: bytes, local: int, remote: int) -> Session:
        return Session(
            send_key=send,
            receive_key=receive,
            aes=True,
            local_index=local,
            remote_index=remote,
            inner_mtu=1416,
            created=0.0,
        )

    def test_document_says_the_same(self) -> None:
        """Each value stands in docs/protocol.rst; one with a flipped bit does not."""
        text = DOCUMENT.read_text(encoding="utf-8")
        values = {
            name: value
            for name, value in globals().items()
            if name.isupper() and isinstance(value, bytes | str)
        }
        self.assertEqual(len(values), 35)
        for name, value in values.items():
            self.assertTrue(in_document(text, value) or value == PASSWORD, name)
        self.assertIn(PASSWORD, text)
        self.assertFalse(in_document(text, bytes([INITIATION[0] ^ 1]) + INITIATION[1:]))
