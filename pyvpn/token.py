"""What a person passes on so that a machine can join: the network token, the join link, a password.

The token is the network's shared secret (docs/protocol.rst, "Network token"). Everything here
raises :class:`~pyvpn.errors.ConfigError` with one line and never repeats secret text in it.
"""

from __future__ import annotations

import base64
import binascii

# Found by its name at first use, which can be after the process has given up root.
import encodings.idna  # noqa: F401
import hashlib
import hmac
import ipaddress
import re
import unicodedata
from collections.abc import Callable
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from attrs import field, frozen

from pyvpn.core.names import USER_SIZE, printable
from pyvpn.errors import ConfigError

MAGIC = b"PVN1"
TOKEN_SIZE = 92  #: bytes
CHECK_SIZE = 4  #: bytes of BLAKE2s over the rest, against typing errors (not against forgery)

#: scrypt's cost as log2: below it guessing is cheap, above it a link is a memory bomb
#: (128 * r * 2**log_n bytes: 1 GiB at 20).
LOG_N_RANGE = range(15, 21)
LOG_N_DEFAULT = 17
SCRYPT_R = 8
SCRYPT_P = 1

DEFAULT_PORT = 5050
MAX_LINK_CHARACTERS = 4096  #: keeps a hostile link from costing anything; a real one has about 200
MAX_LINK_ADDRESSES = 8
MIN_PASSWORD_CHARACTERS = 10

#: Crockford's base 32: no i, l, o, u, so that it survives being read aloud or written down.
PASSWORD_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PASSWORD_BYTES = 10  #: 80 bits
PASSWORD_GROUP = 4  #: characters between two hyphens

_P = 2**255 - 19
#: The u coordinates of small order on Curve25519 (RFC 7748, section 6.1: their shared secret is
#: zero). No honest hub has one as its key, and a client could never log in with it.
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def user_name(text: str) -> str:
    """The user name in NFC.

    :raises ConfigError: unless it has 1 to 32 bytes of UTF-8 and no control character or line break
        (docs/protocol.rst, "Login v1").
    """
    name = unicodedata.normalize("NFC", text)
    if not printable(name):
        raise ConfigError(
            "user name: control characters, line breaks and text that is not UTF-8 are refused"
        )
    size = len(name.encode())
    if not 1 <= size <= USER_SIZE:
        raise ConfigError(f"user name: {size} bytes of UTF-8, 1 to {USER_SIZE} are allowed")
    return name


def host_and_port(text: str, default_port: int = DEFAULT_PORT) -> str:
    """``text`` as ``host:port``, ``a.b.c.d:port`` or ``[v6]:port``; without a port the default one.

    :raises ConfigError: if it is no address that a client could ask for.
    """
    bare_v6 = text.count(":") > 1 and not text.startswith("[")
    match = re.fullmatch(
        r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", f"[{text}]" if bare_v6 else text
    )
    if match is None:
        raise ConfigError(f"address {text!r}: expected HOST, HOST:PORT or [IPV6]:PORT")
    host = _host(match[1], text)
    port = int(match[2]) if match[2] is not None else default_port
    if not 1 <= port <= 65535:
        raise ConfigError(f"address {text!r}: the port must be 1 to 65535")
    return f"{host}:{port}"


def _host(host: str, text: str) -> str:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ConfigError(f"address {text!r}: no IPv6 address in the brackets") from None
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ConfigError(f"address {text!r}: not a valid host name") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError(f"address {text!r}: not a valid host name")
    if labels[-1].isdigit():  # RFC 3696: no top-level domain is a number, so it means IPv4
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ConfigError(f"address {text!r}: not a valid IPv4 address") from None
    return name


def _sized(size: int) -> Callable[[object, object, bytes], None]:
    def check(token: object, attribute: object, value: bytes) -> None:
        if not isinstance(value, bytes) or len(value) != size:
            name = getattr(attribute, "name", "value")
            raise ConfigError(f"network token: its {name} must have {size} bytes")

    return check


@frozen
class NetworkToken:
    """The shared secret of one network: 92 bytes, for people base64url without ``=``.

    :ivar log_n: log2 of scrypt's N, 15 to 20.
    :ivar r: scrypt's block size, always 8.
    :ivar p: scrypt's parallelism, always 1.
    :ivar login_public: the hub's X25519 public key for logins, 32 bytes.
    :ivar network_secret: 32 random bytes; without them the hub's port is silent.
    :ivar password_salt: 16 random bytes, made once per network and kept for ever.
    :raises ConfigError: for any value outside these bounds.
    """

    log_n: int = field()
    r: int = field()
    p: int = field()
    login_public: bytes = field(validator=_sized(32))
    network_secret: bytes = field(validator=_sized(32), repr=False)
    password_salt: bytes = field(validator=_sized(16), repr=False)

    def __attrs_post_init__(self) -> None:
        if self.log_n not in LOG_N_RANGE or self.r != SCRYPT_R or self.p != SCRYPT_P:
            raise ConfigError(
                f"network token: scrypt with logN {self.log_n}, r {self.r}, p {self.p} refused; "
                f"allowed: logN {LOG_N_RANGE[0]} to {LOG_N_RANGE[-1]}, r {SCRYPT_R}, p {SCRYPT_P}"
            )
        # RFC 7748, section 5: the top bit of a u coordinate is ignored.
        u = int.from_bytes(self.login_public, "little") & (2**255 - 1)
        if u % _P in _SMALL_ORDER:
            raise ConfigError("network token: its login key is not a usable X25519 key")

    def to_bytes(self) -> bytes:
        """The 92 bytes that travel."""
        body = (
            MAGIC
            + bytes((self.log_n, self.r, self.p, 0))
            + self.login_public
            + self.network_secret
            + self.password_salt
        )
        return body + _check(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The token in ``data``.

        :raises ConfigError: wrong length, magic, check sum, flags or parameters.
        """
        if len(data) != TOKEN_SIZE:
            raise ConfigError(
                f"network token: {len(data)} bytes, it must have {TOKEN_SIZE}; copy all of it again"
            )
        body, check = data[:-CHECK_SIZE], data[-CHECK_SIZE:]
        if body[:4] != MAGIC:
            raise ConfigError("network token: this is no token of PyVPN, version 1")
        if not hmac.compare_digest(check, _check(body)):
            raise ConfigError("network token: wrong check sum; copy all of it again")
        if body[7] != 0:
            raise ConfigError("network token: unknown flags; it needs a newer PyVPN")
        return cls(body[4], body[5], body[6], body[8:40], body[40:72], body[72:88])

    def to_text(self) -> str:
        """The token for people: 123 characters of base64url."""
        return base64.urlsafe_b64encode(self.to_bytes()).rstrip(b"=").decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The token in ``text``; white space (a wrapped line) does not matter.

        :raises ConfigError: bad base64url, or anything :meth:`from_bytes` refuses.
        """
        compact = "".join(text[:MAX_LINK_CHARACTERS].split())
        malformed = "network token: not base64url text without '='; copy all of it again"
        if re.fullmatch(r"[A-Za-z0-9_-]+", compact) is None:
            raise ConfigError(malformed)
        try:
            data = base64.urlsafe_b64decode(compact + "=" * (-len(compact) % 4))
        except binascii.Error:
            raise ConfigError(malformed) from None
        token = cls.from_bytes(data)
        if token.to_text() != compact:  # the unused low bits of the last character must be zero
            raise ConfigError(malformed)
        return token


def _check(body: bytes) -> bytes:
    return hashlib.blake2s(body, digest_size=CHECK_SIZE).digest()


def _addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(host_and_port(address) for address in addresses)


@frozen
class JoinLink:
    """``pyvpn://user@host:port/#t=TOKEN[&a=host:port…]``: all that a client needs but the password.

    The token stands in the fragment, which a browser never sends to anybody.

    :ivar user: the user name.
    :ivar addresses: one to eight addresses of the hub as ``host:port``, in the order to try them.
    :ivar token: the network token; hence a link is a secret.
    """

    user: str = field(converter=user_name)
    addresses: tuple[str, ...] = field(converter=_addresses)
    token: NetworkToken

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= MAX_LINK_ADDRESSES:
            raise ConfigError(
                f"join link: {len(self.addresses)} addresses, 1 to {MAX_LINK_ADDRESSES} are allowed"
            )

    def to_text(self) -> str:
        """The link for people."""
        others = "".join(f"&a={address}" for address in self.addresses[1:])
        user = quote(self.user, safe="")
        return f"pyvpn://{user}@{self.addresses[0]}/#t={self.token.to_text()}{others}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The link in ``text``; white space does not matter, unknown fragment keys are ignored.

        :raises ConfigError: anything missing or malformed.
        """
        shape = "expected pyvpn://USER@HOST:PORT/#t=TOKEN; put it in single quotes in a shell"
        if len(text) > MAX_LINK_CHARACTERS:
            raise ConfigError(f"join link: longer than {MAX_LINK_CHARACTERS} characters; {shape}")
        try:
            parts = urlsplit("".join(text.split()))
        except ValueError:
            raise ConfigError(f"join link: malformed address; {shape}") from None
        user, at, address = parts.netloc.rpartition("@")
        if parts.scheme != "pyvpn" or not at or parts.path not in ("", "/") or parts.query:
            raise ConfigError(f"join link: {shape}")
        tokens, others = [], []
        for key, _, value in (pair.partition("=") for pair in parts.fragment.split("&")):
            if key == "t":
                tokens.append(value)
            elif key == "a":
                others.append(unquote(value))
        if len(tokens) != 1:
            raise ConfigError(f"join link: it must hold one token after '#t='; {shape}")
        try:
            name = unquote(user, errors="strict")
        except UnicodeDecodeError:
            raise ConfigError("join link: its user name is not UTF-8") from None
        return cls(name, (address, *others), NetworkToken.from_text(tokens[0]))


def password_problem(password: str, user: str) -> str | None:
    """What speaks against this password, as the end of the sentence "the password …"; else None."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8 text"
    plain = unicodedata.normalize("NFC", password)
    if plain.casefold() == unicodedata.normalize("NFC", user).casefold():
        return "is the same as the user name"
    if len(plain) < MIN_PASSWORD_CHARACTERS:
        return f"has fewer than {MIN_PASSWORD_CHARACTERS} characters"
    return None


def make_password(random_bytes: Callable[[int], bytes]) -> str:
    """A new password of 80 random bits, such as ``k3vd-9q0m-xt7p-2hwa``.

    With scrypt before every guess that is out of reach, and still short enough to type.
    """
    number = int.from_bytes(random_bytes(PASSWORD_BYTES), "big")
    count = PASSWORD_BYTES * 8 // 5
    letters = "".join(PASSWORD_ALPHABET[number >> 5 * i & 31] for i in range(count))
    groups = (letters[i : i + PASSWORD_GROUP] for i in range(0, count, PASSWORD_GROUP))
    return "-".join(groups)
