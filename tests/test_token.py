"""The network token, the join link and passwords (PROTOCOL 2), from the specification's side."""

from __future__ import annotations

import base64
import hashlib
import os
import string
import unicodedata

from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.names import user_name_valid
from pyvpn.errors import ConfigError
from pyvpn.token import (
    JoinLink,
    NetworkToken,
    host_and_port,
    make_password,
    password_problem,
    user_name,
)

S_LOGIN = bytes(range(32))
SECRET = bytes(range(100, 132))
SALT = bytes(range(200, 216))
TOKEN = NetworkToken(17, 8, 1, S_LOGIN, SECRET, SALT)

#: RFC 7748 names X25519's points of small order by their zero result; the published lists of them
#: agree on these encodings (0, 1, two of order 8, p - 1, p, p + 1) and on those with the top bit.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def packed(
    magic: bytes = b"PVN1",
    parameters: bytes = b"\x11\x08\x01",
    flags: int = 0,
    login_public: bytes = S_LOGIN,
) -> bytes:
    """A token put together by hand as PROTOCOL 2 says, with a right check sum."""
    body = magic + parameters + bytes([flags]) + login_public + SECRET + SALT
    return body + hashlib.blake2s(body, digest_size=4).digest()


def text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


tokens = st.builds(
    NetworkToken,
    st.integers(15, 20),
    st.just(8),
    st.just(1),
    # A set bit in the middle: none of the points of small order is close.
    st.binary(min_size=32, max_size=32).map(lambda key: key[:12] + b"\x77\x66" + key[14:]),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
)

user_names = (
    st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=32)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: 1 <= len(text.encode()) <= 32)
)


class RefusalCase(SynchronousTestCase):
    """A table of bad inputs, each with its whole message."""

    def refused(self, parse: object, value: object, message: str) -> None:
        assert callable(parse)
        with self.assertRaises(ConfigError, msg=repr(value)) as caught:
            parse(value)
        self.assertEqual(message, str(caught.exception))
        self.assertNotIn("\n", message)


class TokenTests(RefusalCase):
    """92 bytes, and their text."""

    def test_layout(self) -> None:
        """The bytes are those of PROTOCOL 2."""
        self.assertEqual(packed(), TOKEN.to_bytes())
        self.assertEqual(92, len(packed()))

    @settings(deadline=None)
    @given(tokens)
    def test_round_trip(self, token: NetworkToken) -> None:
        """What was written is read again, as bytes and as text."""
        self.assertEqual(token, NetworkToken.from_bytes(token.to_bytes()))
        text = token.to_text()
        self.assertEqual(123, len(text))
        self.assertEqual(set(), set(text) - set(string.ascii_letters + string.digits + "-_"))
        self.assertEqual(token, NetworkToken.from_text(text))

    def test_wrapped(self) -> None:
        """Line breaks and spaces from a mail or a terminal do not matter."""
        text = TOKEN.to_text()
        self.assertEqual(TOKEN, NetworkToken.from_text(f"  {text[:70]}\r\n  {text[70:]}\n"))

    def test_every_bit_counts(self) -> None:
        """A token with any one bit turned over is refused."""
        data = TOKEN.to_bytes()
        for bit in range(92 * 8):
            spoilt = bytearray(data)
            spoilt[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(ConfigError, msg=str(bit)):
                NetworkToken.from_bytes(bytes(spoilt))

    def test_bad_bytes(self) -> None:
        """Each rule has its own line: length, magic, check sum, flags."""
        again = "copy all of it again"
        data = packed()
        table = [
            (b"", f"network token: 0 bytes, it must have 92; {again}"),
            (data[:-1], f"network token: 91 bytes, it must have 92; {again}"),
            (data + b"\0", f"network token: 93 bytes, it must have 92; {again}"),
            (packed(b"PVN2"), "network token: this is no token of PyVPN, version 1"),
            (data[:-1] + bytes([data[-1] ^ 1]), f"network token: wrong check sum; {again}"),
            (packed(flags=1), "network token: unknown flags; it needs a newer PyVPN"),
        ]
        for value, message in table:
            self.refused(NetworkToken.from_bytes, value, message)

    def test_parameters(self) -> None:
        """Only logN 15 to 20 with r 8 and p 1 are taken: a link must not be a memory bomb."""
        for log_n in range(256):
            for r, p in ((8, 1), (9, 1), (8, 2), (0, 1), (8, 0), (255, 255)):
                data = packed(parameters=bytes([log_n, r, p]))
                if 15 <= log_n <= 20 and (r, p) == (8, 1):
                    self.assertEqual(log_n, NetworkToken.from_bytes(data).log_n)
                else:
                    message = (
                        f"network token: scrypt with logN {log_n}, r {r}, p {p} refused; allowed: "
                        "logN 15 to 20, r 8, p 1"
                    )
                    self.refused(NetworkToken.from_bytes, data, message)

    def test_bad_text(self) -> None:
        """Anything but the one spelling in base64url is refused."""
        text = TOKEN.to_text()
        last = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
        other_low_bits = text[:-1] + last[last.index(text[-1]) ^ 1]
        malformed = "network token: not base64url text without '='; copy all of it again"
        plus = text[:40] + "+" + text[41:]
        for value in ("", " ", text + "=", text[:-2], plus, "\u00e4" * 123):
            self.refused(NetworkToken.from_text, value, malformed)
        self.refused(NetworkToken.from_text, other_low_bits, malformed)

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.binary(max_size=120).map(text_of)))
    def test_any_text(self, text: str) -> None:
        """Any text is a token or a ConfigError of one line, nothing else."""
        try:
            NetworkToken.from_text(text)
        except ConfigError as error:
            self.assertNotIn("\n", str(error))

    def test_small_order(self) -> None:
        """A login key with which X25519 cannot work is refused; the control shows it cannot."""
        message = "network token: its login key is not a usable X25519 key"
        private = X25519PrivateKey.generate()
        for text in SMALL_ORDER:
            for top in (0, 0x80):
                key = bytes.fromhex(text)
                key = key[:31] + bytes([key[31] | top])
                with self.assertRaises(ValueError):
                    private.exchange(X25519PublicKey.from_public_bytes(key))
                self.refused(NetworkToken.from_bytes, packed(login_public=key), message)

    def test_wrong_sizes(self) -> None:
        """A token cannot be made with parts of another size."""
        with self.assertRaisesRegex(ConfigError, "password_salt must have 16 bytes"):
            evolve(TOKEN, password_salt=bytes(15))

    def test_repr(self) -> None:
        """A token in a log or a traceback does not show its secrets; the control shows its key."""
        shown = repr(JoinLink("alice", ("h:1",), TOKEN))
        self.assertIn(repr(S_LOGIN), shown)
        self.assertNotIn(repr(SECRET), shown)
        self.assertNotIn(repr(SALT), shown)


class AddressTests(RefusalCase):
    """HOST[:PORT] as people write it."""

    def test_good(self) -> None:
        """Names, IPv4 and IPv6 with and without a port end in one spelling."""
        table = {
            "vpn.example.org": "vpn.example.org:5050",
            "VPN.Example.ORG:443": "vpn.example.org:443",
            "vpn.example.org.": "vpn.example.org.:5050",
            "localhost:1": "localhost:1",
            "a_b.example": "a_b.example:5050",
            "192.0.2.1:65535": "192.0.2.1:65535",
            "[2001:DB8:0::1]": "[2001:db8::1]:5050",
            "[2001:db8::1]:9": "[2001:db8::1]:9",
            "2001:db8::1": "[2001:db8::1]:5050",
            "b\u00fccher.example": "xn--bcher-kva.example:5050",
        }
        for text, expected in table.items():
            self.assertEqual(expected, host_and_port(text))
            self.assertEqual(expected, host_and_port(expected))

    def test_bad(self) -> None:
        """Anything else is refused with a line that repeats it."""
        shape = "expected HOST, HOST:PORT or [IPV6]:PORT"
        name = "not a valid host name"
        table = {
            "": name,
            ":5050": name,
            "host:": shape,
            "host:x": shape,
            "host:123456": shape,
            "host:0": "the port must be 1 to 65535",
            "host:65536": "the port must be 1 to 65535",
            "ho st": name,
            "-a.example": name,
            "a..b": name,
            "a" * 64: name,
            "a/b": name,
            "user@host": name,
            "192.0.2.256": "not a valid IPv4 address",
            "192.0.2": "not a valid IPv4 address",
            "[192.0.2.1]": "no IPv6 address in the brackets",
            "[]": "no IPv6 address in the brackets",
            "[fe80::1": shape,
            "1:2:3": "no IPv6 address in the brackets",
        }
        for text, message in table.items():
            self.refused(host_and_port, text, f"address {text!r}: {message}")


class UserNameTests(RefusalCase):
    """Names as the login message can carry them."""

    @settings(deadline=None)
    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text is refused, or becomes a name that the core accepts from the wire."""
        try:
            name = user_name(text)
        except ConfigError as error:
            self.assertNotIn("\n", str(error))
        else:
            self.assertTrue(user_name_valid(name))

    @settings(deadline=None)
    @given(user_names)
    def test_good(self, name: str) -> None:
        """Every name of 1 to 32 bytes in NFC without control characters is taken as it is."""
        self.assertEqual(name, user_name(name))

    def test_normalised(self) -> None:
        """A name typed in the other normal form is the same name."""
        self.assertEqual("j\u00f6rg", user_name("jo\u0308rg"))

    def test_bad(self) -> None:
        """Empty, long and unprintable names are refused."""
        unprintable = (
            "user name: control characters, line breaks and text that is not UTF-8 are refused"
        )
        table = {
            "": "user name: 0 bytes of UTF-8, 1 to 32 are allowed",
            "x" * 33: "user name: 33 bytes of UTF-8, 1 to 32 are allowed",
            "\u00e4" * 17: "user name: 34 bytes of UTF-8, 1 to 32 are allowed",
            "a\nb": unprintable,
            "a\0": unprintable,
            "a\u2028b": unprintable,
            "a\u202eb": unprintable,
            "a\udc80": unprintable,
        }
        for text, message in table.items():
            self.refused(user_name, text, message)


class JoinLinkTests(RefusalCase):
    """pyvpn://user@host:port/#t=…"""

    def test_one_address(self) -> None:
        """The link is spelled as PROTOCOL 2 shows it."""
        link = JoinLink("alice", ("vpn.example.org:5050",), TOKEN)
        expected = f"pyvpn://alice@vpn.example.org:5050/#t={text_of(packed())}"
        self.assertEqual(expected, link.to_text())
        self.assertEqual(link, JoinLink.from_text(expected))

    def test_several_addresses(self) -> None:
        """Further addresses stand in the fragment, in order, IPv6 in brackets."""
        link = JoinLink("alice", ("192.0.2.1:1", "2001:db8::1", "vpn.example.org"), TOKEN)
        text = link.to_text()
        self.assertTrue(text.startswith("pyvpn://alice@192.0.2.1:1/#t="))
        self.assertTrue(text.endswith("&a=[2001:db8::1]:5050&a=vpn.example.org:5050"))
        self.assertEqual(link, JoinLink.from_text(text))
        first = JoinLink("alice", ("[2001:db8::1]:7",), TOKEN)
        self.assertEqual(first, JoinLink.from_text(first.to_text()))

    @settings(deadline=None)
    @given(user_names, tokens, st.lists(st.integers(1, 65535), min_size=1, max_size=8))
    def test_round_trip(self, user: str, token: NetworkToken, ports: list[int]) -> None:
        """What was written is read again, whatever signs the user name has."""
        addresses = tuple(f"h{n}.example:{port}" for n, port in enumerate(ports))
        link = JoinLink(user, addresses, token)
        text = link.to_text()
        self.assertTrue(text.isascii())
        self.assertEqual(link, JoinLink.from_text(text))

    def test_tolerance(self) -> None:
        """Wrapped lines, a missing port, no slash, percent signs, unknown keys: still the link."""
        t = TOKEN.to_text()
        link = JoinLink("alice", ("h.example:5050", "[::1]:5050"), TOKEN)
        for text in (
            f" pyvpn://alice@h.example:5050/#t={t[:9]}\n  {t[9:]}&a=[::1]:5050\n",
            f"PYVPN://alice@H.example#a=[::1]&t={t}",
            f"pyvpn://%61lice@h.example/#x=1&t={t}&a=%5B::1%5D:5050&later",
        ):
            self.assertEqual(link, JoinLink.from_text(text))

    def test_bad(self) -> None:
        """Each way to spoil a link has its line."""
        t = TOKEN.to_text()
        shape = "expected pyvpn://USER@HOST:PORT/#t=TOKEN; put it in single quotes in a shell"
        one = f"join link: it must hold one token after '#t='; {shape}"
        table = {
            "": f"join link: {shape}",
            "alice": f"join link: {shape}",
            f"https://alice@h/#t={t}": f"join link: {shape}",
            f"pyvpn://h:5050/#t={t}": f"join link: {shape}",
            f"pyvpn://alice@h/x#t={t}": f"join link: {shape}",
            f"pyvpn://alice@h/?t={t}": f"join link: {shape}",
            f"pyvpn://alice@[::1/#t={t}": f"join link: malformed address; {shape}",
            "pyvpn://alice@h/": one,
            f"pyvpn://alice@h/#t={t}&t={t}": one,
            f"pyvpn://alice@h:0/#t={t}": "address 'h:0': the port must be 1 to 65535",
            f"pyvpn://alice@/#t={t}": "address '': not a valid host name",
            f"pyvpn://@h/#t={t}": "user name: 0 bytes of UTF-8, 1 to 32 are allowed",
            f"pyvpn://%ff@h/#t={t}": "join link: its user name is not UTF-8",
            "pyvpn://alice@h/#t=AAAA": (
                "network token: 3 bytes, it must have 92; copy all of it again"
            ),
            f"pyvpn://alice@h/#t={t}{'&a=h' * 8}": ("join link: 9 addresses, 1 to 8 are allowed"),
            "x" * 5000: f"join link: longer than 4096 characters; {shape}",
        }
        for text, message in table.items():
            self.refused(JoinLink.from_text, text, message)

    def test_no_address(self) -> None:
        """A link that leads nowhere cannot be made."""
        with self.assertRaisesRegex(ConfigError, "0 addresses"):
            JoinLink("alice", (), TOKEN)

    @settings(deadline=None)
    @given(st.text(), st.text())
    def test_any_text(self, authority: str, fragment: str) -> None:
        """Any text is a link or a ConfigError of one line, nothing else."""
        for text in (authority, f"pyvpn://{authority}/#{fragment}", f"pyvpn://a@{authority}/#t="):
            try:
                JoinLink.from_text(text)
            except ConfigError as error:
                self.assertNotIn("\n", str(error))


class PasswordTests(SynchronousTestCase):
    """Which passwords are refused, and what a made one looks like."""

    def test_problems(self) -> None:
        """Under ten characters, the user's own name, and text that is not UTF-8 are refused."""
        short = "has fewer than 10 characters"
        same = "is the same as the user name"
        table: list[tuple[str, str, str | None]] = [
            ("", "alice", short),
            ("123456789", "alice", short),
            ("1234567890", "alice", None),
            ("\u00e4" * 9, "alice", short),
            ("a\u0308" * 9, "alice", short),
            ("a\u0308" * 10, "alice", None),
            ("alexandrina", "alexandrina", same),
            ("Alexandrina", "alexandrina", same),
            ("alice", "alice", same),
            ("jo\u0308rg-joergsen", "j\u00f6rg-joergsen", same),
            ("alexandrina1", "alexandrina", None),
            ("long enough \udc80", "alice", "is not valid UTF-8 text"),
        ]
        for password, user, expected in table:
            self.assertEqual(expected, password_problem(password, user), (password, user))

    def test_made(self) -> None:
        """A made password uses all of 80 bits, four groups of four easy signs, and is accepted."""
        self.assertEqual("0000-0000-0000-0000", make_password(bytes))
        self.assertEqual("zzzz-zzzz-zzzz-zzzz", make_password(lambda count: b"\xff" * count))
        seen = set()
        for bit in range(80):
            seen.add(make_password(lambda count, bit=bit: (1 << bit).to_bytes(count, "big")))
        self.assertEqual(80, len(seen))
        password = make_password(os.urandom)
        self.assertRegex(password, r"\A([0-9abcdefghjkmnpqrstvwxyz]{4}-){3}[0-9a-hjkmnp-tv-z]{4}\Z")
        self.assertIsNone(password_problem(password, "alice"))
