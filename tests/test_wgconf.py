"""WireGuard's configuration files: what is read, what is refused and how, what is written."""

from __future__ import annotations

import time
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import ConfigError
from pyvpn.token import user_name
from pyvpn.wgconf import (
    COMMANDS,
    NO_PSK,
    SPACES,
    PeerConf,
    WireGuardConf,
    format_conf,
    format_key,
    load_conf,
    parse_conf,
    parse_endpoint,
    parse_key,
)

# Those of the example in wg(8).
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
ONE = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
TWO = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="

EXAMPLE = f"""\
[Interface]
PrivateKey = {PRIVATE}
ListenPort = 51820

[Peer]
PublicKey = {ONE}
Endpoint = 192.95.5.67:1234
AllowedIPs = 10.192.122.3/32, 10.192.124.1/24

[Peer]
PublicKey = {TWO}
Endpoint = [2607:5300:60:6b0::c05f:543]:2468
AllowedIPs = 10.192.122.4/32, 192.168.0.0/16
"""


def keys() -> st.SearchStrategy[bytes]:
    return st.binary(min_size=32, max_size=32)


def is_name(text: str) -> bool:
    try:
        return user_name(text) == text == text.strip(SPACES) and "#" not in text
    except ConfigError:
        return False


def networks() -> st.SearchStrategy[IPv4Network | IPv6Network]:
    v4 = st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
    v6 = st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
    return st.one_of(v4, v6).map(lambda pair: ip_network(f"{pair[0]}/{pair[1]}", strict=False))


HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.sampled_from(["vpn.example.org", "a_b.example", "localhost"]),
)
PEERS = st.builds(
    PeerConf,
    public_key=keys(),
    psk=keys() | st.just(NO_PSK),
    allowed_ips=st.lists(networks(), unique=True, max_size=5).map(tuple),
    endpoint=st.none()
    | st.tuples(HOSTS, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    keepalive=st.integers(0, 65535),
    name=st.just("") | st.text(min_size=1, max_size=12).filter(is_name),
)
COMMAND_TEXTS = (
    st.text(st.characters(exclude_characters="#\n", exclude_categories=["Cs"]), max_size=20)
    .map(lambda text: text.strip(SPACES))
    .filter(bool)
)
CONFS = st.builds(
    WireGuardConf,
    private_key=st.none() | keys().filter(any),
    addresses=st.lists(
        st.builds(lambda a, p: IPv4Interface((a, p)), st.ip_addresses(v=4), st.integers(0, 32))
        | st.builds(lambda a, p: IPv6Interface((a, p)), st.ip_addresses(v=6), st.integers(0, 128)),
        max_size=3,
    ).map(tuple),
    listen_port=st.none() | st.integers(0, 65535),
    dns=st.lists(st.ip_addresses(), max_size=2).map(tuple),
    search=st.lists(st.sampled_from(["example.org", "lan", "~corp.example"]), max_size=2).map(
        tuple
    ),
    mtu=st.none() | st.integers(68, 65535),
    table=st.none() | st.sampled_from(["off", "auto", "main", "1234"]),
    fwmark=st.integers(0, 2**32 - 1),
    commands=st.lists(st.tuples(st.sampled_from(COMMANDS), COMMAND_TEXTS), max_size=3).map(tuple),
    save_config=st.booleans(),
    peers=st.lists(PEERS, max_size=4, unique_by=lambda peer: peer.public_key).map(tuple),
)


class RoundTripTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(CONFS)
    def test_what_is_written_is_read(self, conf: WireGuardConf) -> None:
        """Each configuration is read from its own text as it was."""
        self.assertEqual(parse_conf(format_conf(conf), "x.conf"), conf)

    @settings(deadline=None)
    @given(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
        | st.lists(st.sampled_from([*EXAMPLE.splitlines(), "Endpoint", "=", "# Name = x"])).map(
            "\n".join
        )
    )
    def test_anything_is_read_or_refused(self, text: str) -> None:
        """Any text makes a configuration or a ConfigError of one line, nothing else."""
        try:
            conf = parse_conf(text, "x.conf")
        except ConfigError as error:
            self.assertEqual(len(str(error).split("\n")), 1)
            return
        self.assertEqual(parse_conf(format_conf(conf), "x.conf"), conf)

    def test_no_secret_is_shown(self) -> None:
        """The text of an object for programmers holds neither private nor pre-shared key."""
        conf = WireGuardConf(bytes([7]) * 32, peers=(PeerConf(bytes(32), bytes([8]) * 32),))
        self.assertNotIn("\\x07", repr(conf))
        self.assertNotIn("\\x08", repr(conf))
        self.assertIn("\\x00", repr(conf))

    def test_many_networks(self) -> None:
        """2^16 allowed IPs, in one line or each in its own, are read within seconds."""
        nets = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(2**16)]
        began = time.monotonic()
        for body in (
            f"AllowedIPs = {', '.join(nets)}",
            "\n".join(f"AllowedIPs = {net}" for net in nets),
        ):
            conf = parse_conf(f"[Peer]\nPublicKey = {ONE}\n{body}\n", "x.conf")
            self.assertEqual(len(conf.peers[0].allowed_ips), 2**16)
        self.assertLess(time.monotonic() - began, 20)


class ReadingTests(SynchronousTestCase):
    def only_peer(self, body: str) -> PeerConf:
        [peer] = parse_conf(f"[Peer]\nPublicKey={ONE}\n{body}\n", "x.conf").peers
        return peer

    def interface(self, body: str) -> WireGuardConf:
        return parse_conf(f"[Interface]\n{body}\n", "x.conf")

    def test_example(self) -> None:
        """The example of wg(8), and what becomes of its host bits."""
        self.assertEqual(
            parse_conf(EXAMPLE, "x.conf"),
            WireGuardConf(
                private_key=parse_key(PRIVATE),
                listen_port=51820,
                peers=(
                    PeerConf(
                        parse_key(ONE),
                        allowed_ips=(
                            IPv4Network("10.192.122.3/32"),
                            IPv4Network("10.192.124.0/24"),
                        ),
                        endpoint="192.95.5.67:1234",
                    ),
                    PeerConf(
                        parse_key(TWO),
                        allowed_ips=(IPv4Network("10.192.122.4/32"), IPv4Network("192.168.0.0/16")),
                        endpoint="[2607:5300:60:6b0::c05f:543]:2468",
                    ),
                ),
            ),
        )

    def test_spelling(self) -> None:
        """Case of keys, spaces, Windows' line ends, its byte order mark, comments: all the same."""
        text = EXAMPLE.replace(" = ", "=").upper().lower()
        text = text.replace(PRIVATE.lower(), PRIVATE).replace(ONE.lower(), ONE)
        text = text.replace(TWO.lower(), TWO).replace("[peer]", " [ PEER ] # here")
        text = "\ufeff" + text.replace("\n", " # comment = 1 \r\n")
        self.assertEqual(parse_conf(text, "x"), parse_conf(EXAMPLE, "x"))

    def test_interface_values(self) -> None:
        """What wg-quick adds: lists over several lines, search domains, commands as they stand."""
        conf = self.interface(
            "Address = 10.0.0.2/24, fd00::2\nAddress=10.1.0.2\nDNS = 1.1.1.1 lan,2606:4700::1111\n"
            "MTU = 1380\ntable = off\nFwMark = 0xCa6C\nSAVECONFIG = True\n"
            "postup = ip rule add x = y, z; echo  '%i' # gone\nPreDown = true\nPostUp = second"
        )
        self.assertEqual(
            conf,
            WireGuardConf(
                addresses=(
                    IPv4Interface("10.0.0.2/24"),
                    IPv6Interface("fd00::2/128"),
                    IPv4Interface("10.1.0.2/32"),
                ),
                dns=(IPv4Address("1.1.1.1"), IPv6Address("2606:4700::1111")),
                search=("lan",),
                mtu=1380,
                table="off",
                fwmark=0xCA6C,
                commands=(
                    ("PostUp", "ip rule add x = y, z; echo  '%i'"),
                    ("PreDown", "true"),
                    ("PostUp", "second"),
                ),
                save_config=True,
            ),
        )

    def test_off(self) -> None:
        """'off' and 0 are the same for mark and keepalive, and so is saying nothing."""
        for value in ("off", "OFF", "0"):
            self.assertEqual(self.only_peer(f"PersistentKeepalive = {value}").keepalive, 0)
            self.assertEqual(self.interface(f"FwMark = {value}").fwmark, 0)
        self.assertEqual(self.only_peer("PersistentKeepalive = 25").keepalive, 25)
        self.assertEqual((self.only_peer("").keepalive, self.interface("").fwmark), (0, 0))

    def test_zero_keys_are_none(self) -> None:
        """All zeros mean no key, as in WireGuard: of the interface, and as pre-shared key."""
        zero = format_key(bytes(32))
        self.assertIsNone(self.interface(f"PrivateKey = {zero}").private_key)
        self.assertEqual(self.only_peer(f"PresharedKey = {zero}").psk, NO_PSK)
        self.assertEqual(self.only_peer(f"PresharedKey = {TWO}").psk, parse_key(TWO))

    def test_repetition(self) -> None:
        """Of a value that is given twice the later one counts, of lists all, each network once."""
        conf = self.interface("ListenPort = 1\nListenPort = 2\n[Interface]\nMTU = 1400\nMTU = 1500")
        self.assertEqual((conf.listen_port, conf.mtu), (2, 1500))
        peer = self.only_peer("AllowedIPs = 10.0.0.1, ::1\nAllowedIPs=10.0.0.1/32,+10.0.0.3")
        self.assertEqual(
            list(map(str, peer.allowed_ips)), ["10.0.0.1/32", "::1/128", "10.0.0.3/32"]
        )
        peer = self.only_peer("AllowedIPs = 10.0.0.1, ::1\nAllowedIPs = -10.0.0.1")
        self.assertEqual(list(map(str, peer.allowed_ips)), ["::1/128"])

    def test_endpoints(self) -> None:
        """Each spelling of an endpoint ends as host:port that can be asked for."""
        for text, expected in [
            ("vpn.Example.org:51820", "vpn.example.org:51820"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[2001:DB8::0001]:65535", "[2001:db8::1]:65535"),
            ("2001:db8::1:51820", "[2001:db8::1]:51820"),
            ("[fe80::1%eth0]:51820", "[fe80::1%eth0]:51820"),
        ]:
            self.assertEqual(parse_endpoint(text), expected)
            self.assertEqual(parse_endpoint(expected), expected)

    def test_names(self) -> None:
        """A comment names a peer where people and scripts put such comments, and nowhere else."""
        for before, inside, expected in [
            ("# laptop\n", "", "laptop"),
            ("### Client laptop\n", "", "Client laptop"),
            ("# BEGIN_PEER laptop\n", "", "laptop"),
            ("# Name = laptop\n", "", "laptop"),
            ("", "# laptop\n", "laptop"),
            ("# section of peers\n", "# laptop\n", "laptop"),
            ("# other\n", "# friendly_name=laptop\n", "laptop"),
            ("# laptop\n\n", "", ""),
            ("", "", ""),
            ("# laptop\n", "# AllowedIPs = 10.0.0.0/8\n", "laptop"),
            ("# " + "x" * 33 + "\n", "", ""),
        ]:
            text = f"[Interface]\n\n{before}[Peer]\n{inside}PublicKey={ONE} # no\n# no\n"
            with self.subTest(text):
                self.assertEqual(parse_conf(text, "x").peers[0].name, expected)
        later = f"[Peer]\nPublicKey={ONE}\n# Name: laptop\n# phone\n[Peer]\nPublicKey={TWO}"
        names = [peer.name for peer in parse_conf(later, "x").peers]
        self.assertEqual(names, ["laptop", "phone"])


class RefusalTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Each bad line is refused with file, line, key and what would be right."""
        peer = f"[Peer]\nPublicKey = {ONE}\n"
        key = "not a key; a key is 44 characters of base64, as 'wg genkey' prints it"
        cases = [
            ("PrivateKey = x", "line 1, PrivateKey: it must stand below [Interface] or [Peer]"),
            ("[Interface]\nPrivateKey = abc", f"line 2, PrivateKey: {key}"),
            (f"[Interface]\nPrivateKey = {PRIVATE[:-2]}l=", f"line 2, PrivateKey: {key}"),
            (f"[Interface]\nprivatekey = {PRIVATE[:-1]}", f"line 2, PrivateKey: {key}"),
            ("[Interface]\nPublicKey = x",
             "line 2, PublicKey: unknown key in [Interface]; there are: Address, DNS, MTU, Table,"
             " SaveConfig, PreUp, PostUp, PreDown, PostDown, PrivateKey, ListenPort, FwMark"),
            ("[Interface]\nAdress = 10.0.0.1",
             "line 2, Adress: unknown key in [Interface]; did you mean Address?"),
            (peer + "AllowedIP = 10.0.0.1",
             "line 3, AllowedIP: unknown key in [Peer]; did you mean AllowedIPs?"),
            (peer + "Address = 10.0.0.1",
             "line 3, Address: unknown key in [Peer]; there are: PublicKey, PresharedKey,"
             " AllowedIPs, Endpoint, PersistentKeepalive"),
            ("[Interface]\nListenPort = 65536",
             "line 2, ListenPort: '65536' is not a port; give a number from 0 to 65535"),
            ("[Interface]\nListenPort = ٣",
             "line 2, ListenPort: '٣' is not a port; give a number from 0 to 65535"),
            ("[Interface]\nFwMark = 0x1ffffffff",
             "line 2, FwMark: '0x1ffffffff' is not off or a mark; give a number from 0 to"
             " 4294967295"),
            ("[Interface]\nMTU = 20", "line 2, MTU: '20' is not an MTU; give a number from 68 to"
             " 65535"),
            ("[Interface]\nAddress = 10.0.0.300/24",
             "line 2, Address: '10.0.0.300/24' is not an address; write it like 10.10.0.2/24 or"
             " fd00::2/64"),
            ("[Interface]\nDNS = 1.1.1", "line 2, DNS: '1.1.1' is not an address"),
            ("[Interface]\nDNS = a;b", "line 2, DNS: 'a;b' is neither an address nor a search"
             " domain"),
            ("[Interface]\nTable = a b",
             "line 2, Table: 'a b' is not a routing table; give auto, off, a number or a name"),
            ("[Interface]\nSaveConfig = yes",
             "line 2, SaveConfig: 'yes' is neither true nor false"),
            ("[Interface]\n\nhello",
             "line 3: 'hello' is no line of the form Key = value"),
            ("[Interfaces]", "line 1: unknown section [Interfaces]"),
            ("[Peer]\n\n[Peer]\n", "line 1, PublicKey: this [Peer] has none"),
            (peer + peer, "line 3, PublicKey: the peer in line 1 has the same key"),
            (peer + "PresharedKey = (none)", f"line 3, PresharedKey: {key}"),
            (peer + "AllowedIPs = 10.0.0.0/33",
             "line 3, AllowedIPs: '10.0.0.0/33' is not a network; write it like 10.10.0.0/24 or"
             " fd00::/64"),
            (peer + "AllowedIPs = 10.0.0.0/255.0.0.0",
             "line 3, AllowedIPs: '10.0.0.0/255.0.0.0' is not a network; write it like"
             " 10.10.0.0/24 or fd00::/64"),
            (peer + "AllowedIPs = 10.0.0.1,,10.0.0.2",
             "line 3, AllowedIPs: '' is not a network; write it like 10.10.0.0/24 or fd00::/64"),
            (peer + "Endpoint = vpn.example.org",
             "line 3, Endpoint: 'vpn.example.org' is not an endpoint; write HOST:PORT or"
             " [IPV6]:PORT"),
            (peer + "Endpoint = [::1]",
             "line 3, Endpoint: '[::1]' is not an endpoint; write HOST:PORT or [IPV6]:PORT"),
            (peer + "Endpoint = [::g]:1",
             "line 3, Endpoint: address '[::g]:1': no IPv6 address in the brackets"),
            (peer + "Endpoint = vpn.example.org:0",
             "line 3, Endpoint: address 'vpn.example.org:0': the port must be 1 to 65535"),
            (peer + "PersistentKeepalive = 65536",
             "line 3, PersistentKeepalive: '65536' is not off or seconds; give a number from 0 to"
             " 65535"),
        ]  # fmt: skip
        for text, message in cases:
            with self.subTest(text):
                error = self.assertRaises(ConfigError, parse_conf, text, "wg0.conf")
                self.assertEqual(str(error), f"wg0.conf, {message}")
                self.assertNotIn(PRIVATE[:20], str(error))

    def test_file(self) -> None:
        """A file is named as it was given; one that is not there, or no text, is said to be so."""
        path = Path(self.mktemp())
        error = self.assertRaises(ConfigError, load_conf, path)
        self.assertEqual(str(error), f"{path}: there is no such WireGuard configuration file")
        path.write_bytes(b"[Interface]\nMTU = 1\xff")
        error = self.assertRaises(ConfigError, load_conf, str(path))
        self.assertEqual(str(error), f"{path}: this WireGuard configuration file is not UTF-8 text")
        path.write_text(EXAMPLE)
        self.assertEqual(load_conf(path), parse_conf(EXAMPLE, "x"))

    def test_keys(self) -> None:
        """One spelling stands for a key: no unused bits, no spaces, no base64url, no Unicode."""
        self.assertEqual(format_key(parse_key(ONE)), ONE)
        for text in ("", ONE[:-1], ONE + "\n", " " + ONE, ONE[:-2] + "h=", "-" + ONE[1:], "é" * 44):
            with self.subTest(text):
                self.assertRaises(ConfigError, parse_key, text)
