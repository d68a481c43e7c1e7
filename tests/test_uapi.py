"""The text that wg talks: what is read, what is refused and with which errno, what is written."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.uapi import (
    AllowedIPChange,
    Changes,
    DeviceStatus,
    PeerChange,
    PeerStatus,
    UAPIError,
    clamped,
    format_errno,
    format_get,
    parse_set,
)

KEY_A, KEY_B = "aa" * 32, "0b" * 32
PEER_A = f"public_key={KEY_A}"
A, B = bytes.fromhex(KEY_A), bytes.fromhex(KEY_B)

# Whole requests, as wg sends them, without set=1 and the empty line.
GOOD: list[tuple[str, Changes]] = [
    ("", Changes()),
    (
        f"private_key={'00' * 32}|listen_port=0|fwmark=0|replace_peers=true",
        Changes(bytes(32), 0, 0, True),
    ),
    ("listen_port=65535|fwmark=4294967295", Changes(None, 65535, 4294967295)),
    ("listen_port=0051820", Changes(listen_port=51820)),
    (
        f"{PEER_A}|preshared_key={KEY_B}|endpoint=192.0.2.1:51820|persistent_keepalive_interval=25"
        "|replace_allowed_ips=true|allowed_ip=10.0.0.1/24|allowed_ip=fd00::1/64",
        Changes(
            peers=(
                PeerChange(
                    A,
                    preshared_key=B,
                    endpoint=("192.0.2.1", 51820),
                    keepalive=25,
                    replace_allowed_ips=True,
                    allowed_ips=(
                        AllowedIPChange(ip_network("10.0.0.0/24")),
                        AllowedIPChange(ip_network("fd00::/64")),
                    ),
                ),
            )
        ),
    ),
    (f"{PEER_A}|update_only=true", Changes(peers=(PeerChange(A, update_only=True),))),
    (f"public_key={KEY_A.upper()}|protocol_version=1", Changes(peers=(PeerChange(A),))),
    (
        f"{PEER_A}|endpoint=[2001:db8::1]:1|persistent_keepalive_interval=65535",
        Changes(peers=(PeerChange(A, endpoint=("2001:db8::1", 1), keepalive=65535),)),
    ),
    (
        f"{PEER_A}|endpoint=[fe80::1%2]:9|persistent_keepalive_interval=0",
        Changes(peers=(PeerChange(A, endpoint=("fe80::1%2", 9), keepalive=0),)),
    ),
    (
        f"{PEER_A}|allowed_ip=0.0.0.0/0|allowed_ip=-0.0.0.0/0|allowed_ip=::/0",
        Changes(
            peers=(
                PeerChange(
                    A,
                    allowed_ips=(
                        AllowedIPChange(ip_network("0.0.0.0/0")),
                        AllowedIPChange(ip_network("0.0.0.0/0"), remove=True),
                        AllowedIPChange(ip_network("::/0")),
                    ),
                ),
            )
        ),
    ),
    # In the order of the lines: what comes before "replace" is replaced, too.
    (
        f"{PEER_A}|allowed_ip=10.0.0.1/32|replace_allowed_ips=true|allowed_ip=10.0.0.2/32",
        Changes(
            peers=(
                PeerChange(
                    A,
                    replace_allowed_ips=True,
                    allowed_ips=(AllowedIPChange(ip_network("10.0.0.2/32")),),
                ),
            )
        ),
    ),
    # A removed peer is gone, whatever else is said of it; twice named is twice done.
    (
        f"{PEER_A}|allowed_ip=10.0.0.1/32|remove=true|preshared_key={KEY_B}|public_key={KEY_B}"
        f"|{PEER_A}",
        Changes(peers=(PeerChange(A, remove=True), PeerChange(B), PeerChange(A))),
    ),
]

INVALID, PROTOCOL = errno.EINVAL, errno.EPROTO
BAD: list[tuple[str, int]] = [
    ("listen_port", PROTOCOL),
    ("get", PROTOCOL),
    (" ", PROTOCOL),
    (f"{PEER_A}|nonsense", PROTOCOL),
    ("=", INVALID),
    ("nonsense=1", INVALID),
    ("Listen_port=1", INVALID),
    ("listen_port =1", INVALID),
    ("listen_port=", INVALID),
    ("listen_port=-1", INVALID),
    ("listen_port=+1", INVALID),
    ("listen_port= 1", INVALID),
    ("listen_port=65536", INVALID),
    ("listen_port=1_0", INVALID),
    ("listen_port=0x10", INVALID),
    ("listen_port=٣", INVALID),
    ("listen_port=" + "0" * 20 + "1", INVALID),
    ("fwmark=4294967296", INVALID),
    ("fwmark=off", INVALID),
    ("replace_peers=false", INVALID),
    ("replace_peers=True", INVALID),
    ("replace_peers=", INVALID),
    ("private_key=", INVALID),
    (f"private_key={KEY_A}00", INVALID),
    (f"private_key={KEY_A[:-1]}g", INVALID),
    (f"private_key={KEY_A[:-2]}", INVALID),
    (f"private_key= {KEY_A[:-1]}", INVALID),
    (f"private_key={KEY_A[:31]}  {KEY_A[33:]}", INVALID),
    # Of a peer before any peer, and of the interface after one.
    (f"preshared_key={KEY_A}", INVALID),
    ("allowed_ip=10.0.0.0/8", INVALID),
    ("protocol_version=1", INVALID),
    ("remove=true", INVALID),
    (f"{PEER_A}|listen_port=1", INVALID),
    (f"{PEER_A}|private_key={KEY_A}", INVALID),
    (f"{PEER_A}|replace_peers=true", INVALID),
    (f"{PEER_A}|errno=0", INVALID),
    ("public_key=", INVALID),
    (f"public_key={KEY_A[:-1]}", INVALID),
    (f"{PEER_A}|preshared_key=", INVALID),
    (f"{PEER_A}|preshared_key={KEY_A}0", INVALID),
    (f"{PEER_A}|remove=1", INVALID),
    (f"{PEER_A}|update_only=yes", INVALID),
    (f"{PEER_A}|replace_allowed_ips=false", INVALID),
    (f"{PEER_A}|protocol_version=2", INVALID),
    (f"{PEER_A}|protocol_version=", INVALID),
    (f"{PEER_A}|persistent_keepalive_interval=65536", INVALID),
    (f"{PEER_A}|persistent_keepalive_interval=off", INVALID),
    (f"{PEER_A}|endpoint=", INVALID),
    (f"{PEER_A}|endpoint=192.0.2.1", INVALID),
    (f"{PEER_A}|endpoint=192.0.2.1:", INVALID),
    (f"{PEER_A}|endpoint=192.0.2.1:0", INVALID),
    (f"{PEER_A}|endpoint=192.0.2.1:65536", INVALID),
    (f"{PEER_A}|endpoint=192.0.2.256:1", INVALID),
    (f"{PEER_A}|endpoint=hub.example.com:51820", INVALID),
    (f"{PEER_A}|endpoint=2001:db8::1:51820", INVALID),
    (f"{PEER_A}|endpoint=[192.0.2.1]:51820", INVALID),
    (f"{PEER_A}|endpoint=[2001:db8::1:51820", INVALID),
    (f"{PEER_A}|allowed_ip=", INVALID),
    (f"{PEER_A}|allowed_ip=-", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/33", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/08", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/+8", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/255.0.0.0", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.1/24/24", INVALID),
    (f"{PEER_A}|allowed_ip=10.0.0.01/24", INVALID),
    (f"{PEER_A}|allowed_ip=167772161/24", INVALID),
    (f"{PEER_A}|allowed_ip=--10.0.0.1/24", INVALID),
    (f"{PEER_A}|allowed_ip=+10.0.0.1/24", INVALID),
    (f"{PEER_A}|allowed_ip=fd00::/129", INVALID),
    (f"{PEER_A}|allowed_ip=fe80::1%eth0/64", INVALID),
]

STATUS = DeviceStatus(
    private_key=B,
    listen_port=51820,
    fwmark=77,
    peers=(
        PeerStatus(
            A,
            B,
            "[2001:db8::1]:9",
            last_handshake=1_700_000_001_000_000_007,
            rx_bytes=5,
            tx_bytes=6,
            keepalive=25,
            allowed_ips=(ip_network("10.0.0.0/24"), ip_network("fd00::7/128")),
        ),
        PeerStatus(B),
    ),
)
STATUS_TEXT = f"""\
private_key={KEY_B}
listen_port=51820
fwmark=77
public_key={KEY_A}
preshared_key={KEY_B}
protocol_version=1
endpoint=[2001:db8::1]:9
last_handshake_time_sec=1700000001
last_handshake_time_nsec=7
tx_bytes=6
rx_bytes=5
persistent_keepalive_interval=25
allowed_ip=10.0.0.0/24
allowed_ip=fd00::7/128
public_key={KEY_B}
preshared_key={"00" * 32}
protocol_version=1
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
"""

keys = st.binary(min_size=32, max_size=32)
networks = st.builds(
    lambda address, prefix: ip_network(
        (address, prefix % (address.max_prefixlen + 1)), strict=False
    ),
    st.one_of(st.builds(IPv4Address, st.binary(min_size=4, max_size=4)), st.ip_addresses(v=6)),
    st.integers(0, 128),
)
peer_changes = st.builds(
    PeerChange,
    keys,
    st.just(False),
    st.booleans(),
    st.none() | keys,
    st.none() | st.tuples(st.ip_addresses().map(str), st.integers(1, 65535)),
    st.none() | st.integers(0, 65535),
    st.booleans(),
    st.lists(st.builds(AllowedIPChange, networks, st.booleans()), max_size=5).map(tuple),
)
changes = st.builds(
    Changes,
    st.none() | keys.map(lambda key: key if not any(key) else clamped(key)),
    st.none() | st.integers(0, 65535),
    st.none() | st.integers(0, 0xFFFFFFFF),
    st.booleans(),
    st.lists(peer_changes, max_size=4).map(tuple),
)


def text_of(wanted: Changes) -> list[str]:
    """The lines that ask for all of it."""
    lines = []
    if wanted.private_key is not None:
        lines.append(f"private_key={wanted.private_key.hex()}")
    if wanted.listen_port is not None:
        lines.append(f"listen_port={wanted.listen_port}")
    if wanted.fwmark is not None:
        lines.append(f"fwmark={wanted.fwmark}")
    if wanted.replace_peers:
        lines.append("replace_peers=true")
    for peer in wanted.peers:
        lines.append(f"public_key={peer.public_key.hex()}")
        if peer.update_only:
            lines.append("update_only=true")
        if peer.preshared_key is not None:
            lines.append(f"preshared_key={peer.preshared_key.hex()}")
        if peer.endpoint is not None:
            host, port = peer.endpoint
            lines.append(f"endpoint=[{host}]:{port}" if ":" in host else f"endpoint={host}:{port}")
        if peer.keepalive is not None:
            lines.append(f"persistent_keepalive_interval={peer.keepalive}")
        if peer.replace_allowed_ips:
            lines.append("replace_allowed_ips=true")
        for network, remove in peer.allowed_ips:
            lines.append(f"allowed_ip={'-' if remove else ''}{network}")
    return lines


class ReadingTests(SynchronousTestCase):
    def test_good_requests(self) -> None:
        """Every line that wg can send is read as what it means."""
        for text, expected in GOOD:
            with self.subTest(text):
                self.assertEqual(parse_set(text.split("|") if text else []), expected)

    def test_bad_lines(self) -> None:
        """Each bad line is refused with its errno, also after and before good ones."""
        for text, code in BAD:
            for lines in (text.split("|"), ["fwmark=1", *text.split("|"), "x"]):
                with self.subTest(text):
                    error = self.assertRaises(UAPIError, parse_set, lines)
                    self.assertEqual(error.code, code)
                    self.assertTrue(error.what.isprintable())
                    self.assertLess(len(error.what), 200)

    def test_secrets_are_not_quoted(self) -> None:
        """What looks like a key with a fault in it does not get into the log."""
        secret = "5ec2e7" * 11
        for line in (f"private_key={secret}", f"{PEER_A}|preshared_key={secret}"):
            error = self.assertRaises(UAPIError, parse_set, line.split("|"))
            self.assertNotIn(secret[:12], str(error))
        # The control: of other values it says what they were.
        error = self.assertRaises(UAPIError, parse_set, ["listen_port=70000"])
        self.assertIn("70000", str(error))

    @given(changes)
    @settings(deadline=None)
    def test_all_that_can_be_asked(self, wanted: Changes) -> None:
        """Whatever is asked for is read back as it was meant."""
        self.assertEqual(parse_set(text_of(wanted)), wanted)

    @given(st.lists(st.text(max_size=80) | st.sampled_from([bad for bad, _ in BAD]), max_size=5))
    @settings(deadline=None)
    def test_nonsense(self, lines: list[str]) -> None:
        """Nonsense raises UAPIError with one of its two errnos, nothing else."""
        try:
            parse_set(lines)
        except UAPIError as error:
            self.assertIn(error.code, (errno.EINVAL, errno.EPROTO))

    @given(keys)
    @settings(deadline=None)
    def test_clamping(self, key: bytes) -> None:
        """A clamped private key is the same key, with the bits of RFC 7748 as they have to be."""

        def public(private: bytes) -> bytes:
            return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

        made = clamped(key)
        self.assertEqual(public(made), public(key))
        self.assertEqual((made[0] & 0b111, made[31] >> 6), (0, 0b01))
        self.assertEqual(parse_set([f"private_key={made.hex()}"]).private_key, made)


class WritingTests(SynchronousTestCase):
    def test_get(self) -> None:
        """The answer to get: the interface, then each peer, times split, what is zero as is."""
        self.assertEqual("".join(format_get(STATUS)), STATUS_TEXT)

    def test_nothing_is_set(self) -> None:
        """An interface that nobody has set up says nothing: wg knows what that means."""
        self.assertEqual("".join(format_get(DeviceStatus())), "")

    def test_errno(self) -> None:
        """Success is errno=0, and a failure negated, as wg negates what it reads."""
        self.assertEqual(format_errno(0), "errno=0\n\n")
        self.assertEqual(format_errno(errno.EINVAL), "errno=-22\n\n")

    def test_pieces(self) -> None:
        """Peers are looked at one by one, so that thousands of them hold nobody up."""
        seen = []

        def peers():
            for number in range(3):
                seen.append(number)
                yield PeerStatus(bytes([number]) * 32)

        pieces = format_get(DeviceStatus(peers=peers()))
        next(pieces)
        self.assertEqual(seen, [])
        next(pieces)
        self.assertEqual(seen, [0])
        self.assertEqual(len(list(pieces)), 2)

    def test_networks_as_others_write_them(self) -> None:
        """Networks are written as wg reads them: compressed, always with a prefix."""
        networks = (IPv6Network("2001:db8:0:0:1::/80"), ip_network("0.0.0.0/0"))
        status = DeviceStatus(peers=[PeerStatus(A, allowed_ips=networks)])
        text = "".join(format_get(status))
        self.assertIn("allowed_ip=2001:db8:0:0:1::/80\nallowed_ip=0.0.0.0/0\n", text)
        self.assertEqual(IPv6Address("2001:db8:0:0:1::"), networks[0].network_address)
