"""Every option of both plugins and every file that people write, with values that are wrong.

Each row: what is given, the exact line, the exit status. Nothing is made or changed by it: the
files around are compared. What needs a machine to be wrong is in tests/netns.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import client_tap, server_tap
from pyvpn.config import Profile, WireGuardClientConfig
from pyvpn.linux import cpu, firewalls, preflight
from pyvpn.service.options import ServiceOptions
from pyvpn.token import NetworkToken

TOKEN = NetworkToken(17, 8, 1, bytes([9]) * 32, bytes(range(32)), bytes(range(16)))

TUN = (
    " cannot name a TUN device; use at most 15 letters, digits, _ . -, beginning with a letter or"
    " digit"
)
NO_PROFILE = "; join a network with: pyvpn join 'pyvpn://…'"
USAGE = "; see: twistd {} --help"

SLOW = "this processor has no AES instructions: AES-256-GCM is slow, and leaks its timing"
CIPHER = [
    (value, f"'{value}' is not a cipher; choose auto, aes-256-gcm or chacha20-poly1305")
    for value in ("", "aes", "AES-256-GCM", "auto ", "none")
]

#: By option: a value, and what is said of it after the option's name.
NETWORKS = [
    ("office", "'office' is not a network; write it like 192.168.7.0/24"),
    ("192.168.7.1/24", "'192.168.7.1/24' has bits set beyond its prefix; write 192.168.7.0/24"),
    ("fd00::/64,127.0.0.1", "127.0.0.1/32 is never routed: it is for loopback or multicast"),
    ("ff02::/16", "ff02::/16 is never routed: it is for loopback or multicast"),
]

SERVER_OPTIONS: dict[str, list[tuple[str, str]]] = {
    "port": [
        ("", "'' is not a port; give a number from 1 to 65535"),
        ("0", "'0' is not a port; give a number from 1 to 65535"),
        ("65536", "'65536' is not a port; give a number from 1 to 65535"),
        ("5050/udp", "'5050/udp' is not a port; give a number from 1 to 65535"),
        ("-1", "'-1' is not a port; give a number from 1 to 65535"),
    ],
    "interface": [
        ("", "'' is not an IPv4 or IPv6 address"),
        ("eth0", "'eth0' is not an IPv4 or IPv6 address"),
        ("192.0.2.1/24", "'192.0.2.1/24' is not an IPv4 or IPv6 address"),
        ("[::1]", "'[::1]' is not an IPv4 or IPv6 address"),
    ],
    "subnet": [
        ("", "'' is not a subnet; write 10.10.0.0/24"),
        ("10.10.0.0", "'10.10.0.0' is not a subnet; write 10.10.0.0/24"),
        ("10.10.0.0/33", "'10.10.0.0/33' is not a subnet; write 10.10.0.0/24"),
        ("10.10.0.7/24", "'10.10.0.7/24' has bits set beyond its prefix; write 10.10.0.0/24"),
        ("10.10.0.0/31", "10.10.0.0/31 is too small; the smallest subnet is a /30"),
        ("0.0.0.0/0", "0.0.0.0/0 is too large; the largest subnet is a /8"),
        ("224.0.0.0/24", "224.0.0.0/24 cannot be given to hosts; take a private subnet"),
    ],
    "subnet6": [
        ("yes", "'yes' is not a subnet; write auto, none or a prefix like fd12:3456:789a::/64"),
        ("fd12::/48", "fd12::/48 is too large; the largest IPv6 subnet is a /64"),
        ("fd12::/127", "fd12::/127 is too small; the smallest IPv6 subnet is a /126"),
        ("fe80::/64", "fe80::/64 cannot be given to hosts; take a private subnet"),
        ("10.10.0.0/24", "'10.10.0.0/24' is not a subnet; write auto, none or a prefix like"
         " fd12:3456:789a::/64"),
    ],
    "tun": [
        ("", "''" + TUN),
        ("a" * 16, f"'{'a' * 16}'" + TUN),
        ("tun/0", "'tun/0'" + TUN),
        ("tun 0", "'tun 0'" + TUN),
        ("all", "'all'" + TUN),
        ("tun%d", "'tun%d'" + TUN),
    ],
    "mtu": [
        ("1279", "'1279' is not an MTU; give a number from 1280 to 65535"),
        ("65536", "'65536' is not an MTU; give a number from 1280 to 65535"),
        ("1.5e3", "'1.5e3' is not an MTU; give a number from 1280 to 65535"),
    ],
    "cipher": CIPHER,
    "endpoint": [
        ("", "address '': not a valid host name"),
        ("a b", "address 'a b': not a valid host name"),
        ("host:0", "address 'host:0': the port must be 1 to 65535"),
        ("host:x", "address 'host:x': expected HOST, HOST:PORT or [IPV6]:PORT"),
        ("http://host", "address 'http://host': expected HOST, HOST:PORT or [IPV6]:PORT"),
        ("[2001:db8::g]", "address '[2001:db8::g]': no IPv6 address in the brackets"),
    ],
    "dns": [
        ("", "'' is no name server; give hub, none, or addresses with commas"),
        ("9.9.9.9,ns", "'ns' is no name server; give hub, none, or addresses with commas"),
        ("127.0.0.53", "clients cannot ask 127.0.0.53; give an address they can reach"),
    ],
    "search": [
        ("a_b", "'a_b' is no domain; write letters, digits, hyphens and dots, and other letters as"
         " xn--…"),
        ("corp.example,,x", "'' is no domain; write letters, digits, hyphens and dots, and other"
         " letters as xn--…"),
    ],
    "route": [
        *NETWORKS,
        ("0.0.0.0/0", "0.0.0.0/0 is everything; to offer clients the internet take --internet, or"
         " run: pyvpn network set --internet on"),
        ("0.0.0.0/1", "0.0.0.0/1 is too wide for a route; the widest are /8 and, of IPv6, /7"),
        ("10.10.0.128/25", "10.10.0.128/25 overlaps the VPN's own network 10.10.0.0/24"),
        ("10.10.0.0/16", "10.10.0.0/16 overlaps the VPN's own network 10.10.0.0/24"),
        ("169.254.7.0/24", "169.254.7.0/24 is never routed: it is of one link alone"),
    ],
    "exclude": [
        *NETWORKS,
        ("10.10.0.0/24", "10.10.0.0/24 is part of the VPN's own network 10.10.0.0/24"),
    ],
    "state-dir": [("", "give the name of a directory")],
    "run-dir": [
        ("", "give the name of a directory"),
        ("/" + "d" * 97, f"'/{'d' * 97}' is too long for a socket; choose a shorter directory"),
    ],
}  # fmt: skip

CLIENT_OPTIONS: dict[str, list[tuple[str, str]]] = {
    "include": NETWORKS,
    "exclude": NETWORKS,
    "share": NETWORKS,
    "lan-access": [("maybe", "'maybe' is neither yes nor no")],
    "server": [
        ("", "address '': not a valid host name"),
        ("a,,b", "address '': not a valid host name"),
        ("1.2.3.400", "address '1.2.3.400': not a valid IPv4 address"),
        ("host:65536", "address 'host:65536': the port must be 1 to 65535"),
    ],
    "user": [
        ("", "user name: 0 bytes of UTF-8, 1 to 32 are allowed"),
        ("x" * 33, "user name: 33 bytes of UTF-8, 1 to 32 are allowed"),
        ("ki\nwi", "user name: control characters, line breaks and text that is not UTF-8 are"
         " refused"),
    ],
    "profile": [
        ("server", "a profile cannot be called 'server': that name means the hub"),
        ("../x", "'../x' cannot name a profile; use at most 32 letters, digits, . _ -, beginning"
         " with a letter or digit"),
        ("", "'' cannot name a profile; use at most 32 letters, digits, . _ -, beginning with a"
         " letter or digit"),
    ],
    "profile-dir": [("", "give the name of a directory")],
    "tun-addr": [
        ("10.10.0.500", "'10.10.0.500' is not an IPv4 or IPv6 address"),
        ("10.10.0.2/24", "'10.10.0.2/24' is not an IPv4 or IPv6 address"),
    ],
    "tun-dstaddr": [("hub", "'hub' is not an IPv4 or IPv6 address")],
    "tun-netmask": [
        ("255.0.255.0", "'255.0.255.0' is not a netmask; write it like 255.255.255.0"),
        ("33", "'33' is not a netmask; write it like 255.255.255.0"),
        ("/24", "'/24' is not a netmask; write it like 255.255.255.0"),
    ],
    "interface": [("wlan0", "'wlan0' is not an IPv4 or IPv6 address")],
    "port": [
        ("-1", "'-1' is not a port; give a number from 0 to 65535"),
        ("70000", "'70000' is not a port; give a number from 0 to 65535"),
    ],
    "tun": [("-tun", "'-tun'" + TUN)],
    "mtu": [("1000", "'1000' is not an MTU; give a number from 1280 to 65535")],
    "cipher": CIPHER,
    "deliver": [
        ("pull", "'pull' is not a way of delivery; choose push or poll"),
        ("", "'' is not a way of delivery; choose push or poll"),
    ],
    "poll-interval": [
        ("0", "'0' is not a poll interval; give seconds from 0.05 to 60"),
        ("0.049", "'0.049' is not a poll interval; give seconds from 0.05 to 60"),
        ("61", "'61' is not a poll interval; give seconds from 0.05 to 60"),
        ("1s", "'1s' is not a poll interval; give seconds from 0.05 to 60"),
        ("inf", "'inf' is not a poll interval; give seconds from 0.05 to 60"),
    ],
    "state-dir": [("", "give the name of a directory")],
    "run-dir": [("", "give the name of a directory")],
}  # fmt: skip
#: Whose values are files; below they have tables of their own.
SERVER_FILES, CLIENT_FILES = {"config"}, {"token-file", "pw-file", "wireguard"}


class OptionsCase(SynchronousTestCase):
    """Runs the options of a plugin as twistd does, on a machine where all else is well."""

    def setUp(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pv"))
        self.addCleanup(shutil.rmtree, self.home)
        self.patch(ServiceOptions, "check_machine", lambda *arguments: None)
        for check in ("udp_port_free", "subnet_free", "writable"):
            self.patch(preflight, check, lambda *arguments, **named: None)
        self.patch(firewalls, "hub_lines", lambda *arguments, **named: [])
        self.patch(firewalls, "nft_available", lambda system: True)
        self.patch(sys, "stdin", io.StringIO())
        os.environ.pop("PYVPN_PW", None)
        self.directories = ["--state-dir", str(self.home / "s"), "--run-dir", str(self.home / "r")]

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Everything below the home, with modes and contents."""
        return {
            str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in self.home.rglob("*")
            if not path.is_symlink()
        }

    def run_options(self, options: ServiceOptions, argv: list[str]) -> tuple[int | None, str]:
        """Exit status (None: it goes on to start) and standard error."""
        said = io.StringIO()
        before = self.tree()
        status: int | None = None
        with contextlib.redirect_stderr(said):
            try:
                options.parseOptions([*self.directories, *argv])
            except SystemExit as leaving:
                status = int(leaving.code or 0)
        self.assertEqual(self.tree(), before, argv)
        return status, said.getvalue()

    def written(self, name: str, content: str | bytes) -> str:
        path = self.home / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def bad_files(self, what: str) -> Iterator[tuple[str, str]]:
        """Files that nobody can read as text: the path, and what is said after it."""
        (self.home / "directory").mkdir(exist_ok=True)
        yield str(self.home / "none"), f"there is no such {what}"
        yield str(self.home / "directory"), f"cannot read this {what}: Is a directory"
        yield self.written("binary", b"\xff\xfe\0"), f"this {what} is not UTF-8 text"
        loop = self.home / "loop"
        if not loop.is_symlink():
            loop.symlink_to(loop)
        yield str(loop), f"cannot read this {what}: Too many levels of symbolic links"


class ServerTests(OptionsCase):
    """``twistd pyvpn-server``."""

    def refused(self, argv: list[str], line: str) -> None:
        found = self.run_options(server_tap.Options(), argv)
        self.assertEqual(found, (2, f"pyvpn-server: {line}\n"))

    def test_options(self) -> None:
        """Each option is refused with its name, what is wrong with the value, and status 2."""
        for option, rows in SERVER_OPTIONS.items():
            for value, message in rows:
                self.refused([f"--{option}", value], f"--{option}: {message}")

    def test_none_is_left_out(self) -> None:
        """The tables of this file have every option of the hub."""
        has = {str(option[0]) for option in server_tap.Options.optParameters}
        self.assertEqual(has, set(SERVER_OPTIONS) | SERVER_FILES)

    def test_usage(self) -> None:
        """A line that is no sentence of options says where help is."""
        usage = USAGE.format("pyvpn-server")
        self.refused(["--nonsense"], "option --nonsense not recognized" + usage)
        self.refused(["--port"], "option --port requires argument" + usage)
        self.refused(["start"], "Wrong number of arguments." + usage)

    def test_good(self) -> None:
        """The control: with good values it goes on, without a word."""
        good = {
            "port": "5050",
            "interface": "::1",
            "subnet": "10.10.0.0/30",
            "subnet6": "none",
            "tun": "leamit0",
            "mtu": "1280",
            "cipher": "chacha20-poly1305",
            "endpoint": "vpn.example.org",
            "dns": "9.9.9.9,2620:fe::fe",
            "search": "corp.example",
            "exclude": "192.168.0.0/16",
            "config": self.written("hub.toml", "port = 6000\n"),
        }
        argv = [word for name, value in good.items() for word in (f"--{name}", value)]
        self.assertEqual(self.run_options(server_tap.Options(), argv), (None, ""))
        self.assertEqual(self.run_options(server_tap.Options(), [*argv, "--relay"]), (None, ""))

    def test_flags(self) -> None:
        """A flag takes no value, switches on what the file leaves off, and leaves on what it has
        on."""
        usage = USAGE.format("pyvpn-server")
        flags = ["relay", "internet", "no-client-to-client"]
        self.assertEqual([flag[0] for flag in server_tap.Options.optFlags], flags)
        self.refused(["--relay=yes"], "option --relay must not have an argument" + usage)
        for text, argv, relay in (
            ("", [], False),
            ("", ["--relay"], True),
            ("relay = false\n", ["--relay"], True),
            ("relay = true\n", [], True),
            ("relay = false\n", [], False),
        ):
            options = server_tap.Options()
            path = self.written("hub.toml", text)
            self.assertEqual(self.run_options(options, [*argv, "--config", path]), (None, ""))
            self.assertIs(options.config.relay, relay, (text, argv))

    def test_no_nft(self) -> None:
        """Without nft what needs it is refused with a remedy; without these options it starts."""
        self.patch(firewalls, "nft_available", lambda system: False)
        line = (
            "pyvpn-server: nft does not work here, and without it there is no {}; install nftables"
        )
        for argv, what in (
            (["--internet"], "internet for clients (--internet)"),
            (["--no-client-to-client"], "keeping clients apart (--no-client-to-client)"),
            (["--route", "10.20.0.0/16"], "reaching networks on the hub's side (--route)"),
        ):
            found = self.run_options(server_tap.Options(), argv)
            self.assertEqual(found, (1, line.format(what) + "\n"))
        found = self.run_options(server_tap.Options(), ["--dns", "none", "--exclude", "10.0.0.0/8"])
        self.assertEqual(found, (None, ""))

    def test_route_to_ourselves(self) -> None:
        """A route that holds the address where clients reach the hub is refused, naming both."""
        argv = ["--endpoint", "vpn.example.org,203.0.113.7:5050", "--route"]
        self.refused(
            [*argv, "203.0.113.0/24"],
            "--route: 203.0.113.0/24 holds 203.0.113.7, where clients reach this hub",
        )
        self.assertEqual(
            self.run_options(server_tap.Options(), [*argv, "10.20.0.0/16"]), (None, "")
        )

    def test_slow_cipher(self) -> None:
        """AES pinned on a processor without instructions for it starts, with a warning."""
        for there in (False, True):
            self.patch(cpu, "has_aes", lambda cpuinfo, there=there: there)
            for cipher in ("aes-256-gcm", "chacha20-poly1305", "auto"):
                said = "" if there or cipher != "aes-256-gcm" else SLOW
                found = self.run_options(server_tap.Options(), ["--cipher", cipher])
                self.assertEqual(found, (None, said and f"pyvpn-server: {said}\n"))

    def test_unreadable_file(self) -> None:
        """A configuration file that is no text is named with the reason."""
        for path, message in self.bad_files("configuration file"):
            self.refused(["--config", path], f"{path}: {message}")
        self.refused(["--config", ""], "--config: give the name of a file")

    def test_keys(self) -> None:
        """Every key of the file with a value of a wrong type or a wrong value, with its line."""
        wrong: dict[str, list[tuple[str, str]]] = {
            "port": [
                ('"5050"', "must be a whole number"),
                ("5050.0", "must be a whole number"),
                ("true", "must be a whole number"),
                ("[5050]", "must be a whole number"),
                ("0", "'0' is not a port; give a number from 1 to 65535"),
            ],
            "mtu": [
                ('"1416"', "must be a whole number"),
                ("1279", "'1279' is not an MTU; give a number from 1280 to 65535"),
            ],
            **{key: [("1", "must be true or false"), ('"true"', "must be true or false"),
                     ("[true]", "must be true or false")]
               for key in ("relay", "internet", "no_client_to_client")},
            "dns": [
                ("9", 'must be text in quotes or a list like ["a", "b"]'),
                ('["9.9.9.9", "ns"]', "'ns' is no name server; give hub, none, or addresses with"
                 " commas"),
            ],
            "search": [("1", 'must be text in quotes or a list like ["a", "b"]')],
            "route": [
                ("[]", "give a network, like 192.168.7.0/24"),
                ('["10.20.0.0/16", "10.10.0.0/24"]', "10.10.0.0/24 overlaps the VPN's own network"
                 " 10.10.0.0/24"),
            ],
            "exclude": [
                ("[]", "give a network, like 192.168.7.0/24"),
                ('["10.10.0.0/24"]', "10.10.0.0/24 is part of the VPN's own network 10.10.0.0/24"),
            ],
            "endpoint": [
                ("5050", 'must be text in quotes or a list like ["a", "b"]'),
                ('["a", []]', 'must be a list like ["a", "b"]'),
                ('["a", "b:0"]', "address 'b:0': the port must be 1 to 65535"),
                ("[]", "address '': not a valid host name"),
            ],
            **{key: [("1", "must be text in quotes"), ("{ a = 1 }", "must be text in quotes")]
               for key in ("interface", "subnet", "subnet6", "tun", "cipher", "state_dir",
                           "run_dir")},
        }  # fmt: skip
        self.assertEqual(
            set(wrong),
            {
                name.replace("-", "_")
                for name in {*SERVER_OPTIONS, "relay", "internet", "no-client-to-client"}
            },
            "all keys",
        )
        for key, rows in wrong.items():
            for value, message in rows:
                path = self.written("hub.toml", f"# the hub\n{key} = {value}\n")
                self.refused(["--config", path], f"{path}, line 2, {key}: {message}")
        for key, rows in SERVER_OPTIONS.items():
            value, message = rows[-1]
            if key not in ("port", "mtu"):
                key = key.replace("-", "_")
                path = self.written("hub.toml", f'\n{key} = "{value}"\n')
                place = "--run-dir" if key == "run_dir" else f"{path}, line 2, {key}"
                self.refused_alone(["--config", path], f"{place}: {message}")

    def refused_alone(self, argv: list[str], line: str) -> None:
        """The same without the options that would win over the file."""
        self.directories = []
        self.refused(argv, line)

    def test_not_toml(self) -> None:
        """What is not TOML, or not flat, is told with its line."""
        table = {
            "port 5050\n": ", line 1: not valid TOML: Expected '=' after a key in a key/value pair",
            "port = 1\nport = 2\n": ", line 2: not valid TOML: Cannot overwrite a value",
            "\n\nport =\n": ", line 3: not valid TOML: Invalid value",
            'tun = "a\n': ", line 1: not valid TOML: Illegal character '\\n'",
            "Port = 1\n": ", line 1, Port: unknown key; did you mean 'port'?",
            "state-dir = 'x'\n": ", line 1, state-dir: unknown key; did you mean 'state_dir'?",
            "[hub]\nport = 1\n": ", line 1, hub: unknown key; there are: cipher, dns, endpoint,"
            " exclude, interface, internet, mtu, no_client_to_client, port, relay, route, run_dir,"
            " search, state_dir, subnet, subnet6, tun",
        }
        for text, message in table.items():
            path = self.written("hub.toml", text)
            self.refused(["--config", path], path + message)


class WireGuardTests(OptionsCase):
    """``twistd pyvpn-client --wireguard``."""

    GOOD = (
        "[Interface]\nPrivateKey = EAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=\n"
        "Address = 10.9.0.2/24\n[Peer]\n"
        "PublicKey = AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nAllowedIPs = 10.9.0.0/24\n"
    )

    def setUp(self) -> None:
        super().setUp()
        self.file = self.written("office.conf", self.GOOD)
        os.chmod(self.file, 0o600)

    def refused(self, argv: list[str], line: str) -> None:
        found = self.run_options(client_tap.Options(), argv)
        self.assertEqual(found, (2, f"pyvpn-client: {line}\n"))

    def test_good(self) -> None:
        """The control: with a good file it goes on, without a word and without a password, under
        the file's name."""
        options = client_tap.Options()
        argv = ["--wireguard", self.file, "--interface", "192.0.2.1", "--port", "0"]
        self.assertEqual(self.run_options(options, [*argv, "--mtu", "1280"]), (None, ""))
        config = options.config
        assert isinstance(config, WireGuardClientConfig)
        self.assertEqual((config.tun, config.profile, config.port), ("office", "office", 0))
        self.assertEqual(config.files.socket, self.home / "r" / "client-office.sock")
        options = client_tap.Options()
        argv = ["--wireguard", self.file, "--tun", "wg7"]
        self.assertEqual(self.run_options(options, argv), (None, ""))
        self.assertEqual(options.config.files.socket, self.home / "r" / "client-wg7.sock")

    def test_other_options(self) -> None:
        """Every option that the file takes the place of is refused by its name."""
        theirs = {"wireguard", "interface", "port", "tun", "mtu", "lan-access", "exclude"}
        theirs |= {"state-dir", "run-dir"}
        others = set(CLIENT_OPTIONS) | CLIENT_FILES | {"pw"}
        values = {"tun-addr": "10.9.0.2", "server": "vpn.example.org"}
        for option in sorted(others - theirs):
            line = (
                f"--{option}: does not go with --wireguard, whose file says who we are and where"
                " the server is"
            )
            argv = ["--wireguard", self.file, f"--{option}", values.get(option, "x")]
            status, said = self.run_options(client_tap.Options(), argv)
            self.assertEqual((status, said.splitlines()[-1]), (2, f"pyvpn-client: {line}"))
        flags = {name for name, *_ in client_tap.Options.optFlags}
        for flag in flags - {"kill-switch", "no-dns"}:
            argv = ["--wireguard", self.file, f"--{flag}"]
            status, said = self.run_options(client_tap.Options(), argv)
            self.assertEqual(status, 2)
            self.assertIn(f"--{flag}: does not go with --wireguard", said)

    def test_options_of_the_network(self) -> None:
        """The options that say how much of the network is changed go with it."""
        options = client_tap.Options()
        argv = ["--wireguard", self.file, "--kill-switch", "--no-dns", "--lan-access", "yes"]
        self.assertEqual(self.run_options(options, argv), (None, ""))
        config = options.config
        assert isinstance(config, WireGuardClientConfig)
        self.assertEqual((config.kill_switch, config.no_dns, config.lan_access), (True, True, True))
        options = client_tap.Options()
        self.assertEqual(self.run_options(options, argv[:2]), (None, ""))
        config = options.config
        assert isinstance(config, WireGuardClientConfig)
        self.assertEqual(
            (config.kill_switch, config.no_dns, config.lan_access), (False, False, None)
        )

    def test_values(self) -> None:
        """The options that do go with it are checked as ever."""
        for option in (
            *("interface", "port", "tun", "mtu", "lan-access", "exclude", "run-dir", "state-dir"),
        ):
            value, message = CLIENT_OPTIONS[option][-1]
            argv = ["--wireguard", self.file, f"--{option}", value]
            self.refused(argv, f"--{option}: {message}")

    def test_names(self) -> None:
        """A file whose name no interface can have wants --tun; and 'server' is the hub's."""
        for name in ("an office.conf", f"{'x' * 16}.conf", ".conf"):
            path = self.written(name, self.GOOD)
            os.chmod(path, 0o600)
            stem = name.removesuffix(".conf")
            self.refused(["--wireguard", path], f"--wireguard: '{stem}'{TUN}; name it with --tun")
            argv = ["--wireguard", path, "--tun", "wg7"]
            self.assertEqual(self.run_options(client_tap.Options(), argv), (None, ""))
        line = (
            "--wireguard: a profile cannot be called 'server': that name means the hub; name it"
            " with --tun"
        )
        self.refused(["--wireguard", self.written("server.conf", self.GOOD)], line)
        self.refused(["--wireguard", ""], "--wireguard: give the name of a file")

    def test_files(self) -> None:
        """A file that is none, a wrong line in it, and what is missing in it are named."""
        for path, message in self.bad_files("WireGuard configuration file"):
            argv = ["--wireguard", path, "--tun", "wg7"]
            self.refused(argv, f"{path}: {message}")
        for text, message in (
            (self.GOOD + "MTU = x\n", ", line 7, MTU: unknown key in [Peer]; there are: PublicKey,"
             " PresharedKey, AllowedIPs, Endpoint, PersistentKeepalive"),
            (self.GOOD.replace("/24\n[", "/33\n["), ", line 3, Address: '10.9.0.2/33' is not an"
             " address; write it like 10.10.0.2/24 or fd00::2/64"),
            ("", ", PrivateKey: it is missing in [Interface]; 'wg genkey' makes one"),
        ):  # fmt: skip
            path = self.written("wrong.conf", text)
            self.refused(["--wireguard", path], path + message)

    def test_warnings(self) -> None:
        """What the file asks for in vain is said, and it goes on."""
        path = self.written("loud.conf", self.GOOD.replace("[Peer]", "PostUp = true\n[Peer]"))
        os.chmod(path, 0o600)
        status, said = self.run_options(client_tap.Options(), ["--wireguard", path])
        self.assertEqual(status, None)
        self.assertTrue(
            said.startswith(f"pyvpn-client: {path}: not done by --wireguard: PostUp; "), said
        )


class ClientTests(OptionsCase):
    """``twistd pyvpn-client``."""

    def setUp(self) -> None:
        super().setUp()
        self.profiles = self.home / "profiles"
        Profile("home", ("vpn.example.org:5050",), "kiwi", TOKEN).save(self.profiles / "home.toml")
        self.directories += ["--profile-dir", str(self.profiles)]
        self.password = self.written("password", "correct horse\n")

    def refused(self, argv: list[str], line: str, status: int = 2) -> None:
        found = self.run_options(client_tap.Options(), ["--pw-file", self.password, *argv])
        self.assertEqual(found, (status, f"pyvpn-client: {line}\n"))

    def test_options(self) -> None:
        """Each option is refused with its name, what is wrong with the value, and status 2."""
        for option, rows in CLIENT_OPTIONS.items():
            for value, message in rows:
                self.refused([f"--{option}", value], f"--{option}: {message}")

    def test_none_is_left_out(self) -> None:
        """The tables of this file have every option of the client."""
        has = {str(option[0]) for option in client_tap.Options.optParameters}
        self.assertEqual(has, set(CLIENT_OPTIONS) | CLIENT_FILES)
        spelled = {name.rstrip("=") for name in client_tap.Options().longOpt}
        flags = {str(flag[0]) for flag in client_tap.Options.optFlags}
        self.assertEqual(spelled - has - flags, {"help", "version", "pw", "tun-adr"})

    def test_other_spelling(self) -> None:
        """--tun-adr is --tun-addr, and is told of by that name."""
        self.refused(["--tun-adr", "x"], "--tun-addr: 'x' is not an IPv4 or IPv6 address")

    def test_usage(self) -> None:
        """A line that is no sentence of options says where help is."""
        usage = USAGE.format("pyvpn-client")
        self.refused(["--nonsense"], "option --nonsense not recognized" + usage)
        self.refused(["--user"], "option --user requires argument" + usage)
        self.refused(["home"], "Wrong number of arguments." + usage)

    def test_together(self) -> None:
        """Options that are right alone and wrong together."""
        need = "--server without a profile needs this option too"
        token = self.written("token", TOKEN.to_text())
        self.refused(["--server", "h"], f"--user: {need}")
        self.refused(["--server", "h", "--user", "kiwi"], f"--token-file: {need}")
        self.refused(["--server", "h", "--token-file", token], f"--user: {need}")
        there = f"{self.profiles} holds no profile 'away' (there are: home)"
        self.refused(["--profile", "away"], there + NO_PROFILE)
        self.refused(["--server", "h", "--profile", "away"], there + NO_PROFILE)

    def test_good(self) -> None:
        """The control: with good values it goes on, without a word."""
        good = {
            "server": "[2001:db8::1]:5050,vpn.example.org",
            "user": "kiwi",
            "token-file": self.written("token", f" {TOKEN.to_text()[:60]}\n{TOKEN.to_text()[60:]}"),
            "tun-addr": "10.10.0.2",
            "tun-dstaddr": "10.10.0.1",
            "tun-netmask": "255.255.255.0",
            "interface": "127.0.0.1",
            "port": "0",
            "tun": "leamit0",
            "mtu": "65535",
            "deliver": "push",
            "poll-interval": "60",
        }
        argv = [word for name, value in good.items() for word in (f"--{name}", value)]
        argv += ["--pw-file", self.password]
        self.assertEqual(self.run_options(client_tap.Options(), argv), (None, ""))

    def test_token_file(self) -> None:
        """A token file that holds no token of PyVPN is named; nothing of it is shown."""
        again = "; copy all of it again"
        text, raw = TOKEN.to_text(), TOKEN.to_bytes()
        no_base64 = "network token: not base64url text without '='" + again
        for path, message in self.bad_files("token file"):
            self.refused(["--token-file", path], f"--token-file: {path}: {message}")
        self.refused(["--token-file", ""], "--token-file: give the name of a file")
        table: list[tuple[str, str]] = [
            ("", no_base64),
            (text + "=", no_base64),
            (text[:-1], "network token: 91 bytes, it must have 92" + again),
            (text[:-2] + "!!", no_base64),
            (text[:9] + ("Q" if text[9] != "Q" else "R") + text[10:],
             "network token: wrong check sum" + again),
            ("A" + text[1:], "network token: this is no token of PyVPN, version 1"),
            (raw.hex(), "network token: 138 bytes, it must have 92" + again),
            ("x" * 10_000, "network token: 3072 bytes, it must have 92" + again),
        ]  # fmt: skip
        for content, message in table:
            path = self.written("token", content)
            self.refused(["--token-file", path], f"--token-file: {path}: {message}")

    def test_password(self) -> None:
        """A password that is nowhere, empty or no text is refused; no part of it is shown."""
        empty = "the password is empty; write it on the first line"

        def given(argv: list[str], line: str) -> None:
            found = self.run_options(client_tap.Options(), argv)
            self.assertEqual(found, (2, f"pyvpn-client: {line}\n"))

        for path, message in self.bad_files("password file"):
            given(["--pw-file", path], f"{path}: {message}")
        contents: list[tuple[bytes, str]] = [
            (b"", empty),
            (b"\nsecond line\n", empty),
            (b"\r\n", empty),
            (b"caf\xe9\n", "this password file is not UTF-8 text"),
            (b"x" * 4097, "too long for a password file; write one line"),
        ]
        for content, message in contents:
            path = self.written("bad", content)
            given(["--pw-file", path], f"{path}: {message}")
        given(["--pw-file", "-"], f"-: {empty}")
        given([], "no password: give --pw-file FILE, or start it on a terminal to be asked")
        os.environ["PYVPN_PW"] = ""
        given([], "the password is empty")
        warning = (
            "--pw leaves the password in the shell's history; safer: --pw-file, or the question on"
            " the terminal\npyvpn-client: "
        )
        given(["--pw", ""], warning + "the password is empty")
        given(["--pw-file", ""], "--pw-file: give the name of a file")

    def test_profile_keys(self) -> None:
        """Every key of a profile with a value of a wrong type or a wrong value, with its line."""
        number = "must be a whole number or a number"
        wrong: dict[str, list[tuple[str, str]]] = {
            "servers": [
                ("1", 'must be text in quotes or a list like ["a", "b"]'),
                ("[[]]", 'must be a list like ["a", "b"]'),
                ("[]", "address '': not a valid host name"),
                ('["a:b"]', "address 'a:b': expected HOST, HOST:PORT or [IPV6]:PORT"),
            ],
            "user": [
                ("1", "must be text in quotes"),
                ('""', "user name: 0 bytes of UTF-8, 1 to 32 are allowed"),
            ],
            "token": [
                ("1", "must be text in quotes"),
                ('"A"', "network token: not base64url text without '='; copy all of it again"),
                ('"AAAA"', "network token: 3 bytes, it must have 92; copy all of it again"),
            ],
            "password_file": [
                ("1", "must be text in quotes"),
                ('""', "give the name of a file"),
                ('"a\\u0000b"', "give the name of a file"),  # regression: a traceback
            ],
            "tun_addr": [
                ("1", "must be text in quotes"),
                ('"x"', "'x' is not an IPv4 or IPv6 address"),
            ],
            "tun": [("1", "must be text in quotes"), ('""', "''" + TUN)],
            "port": [
                ('"1"', "must be a whole number"),
                ("65536", "'65536' is not a port; give a number from 0 to 65535"),
            ],
            "deliver": [
                ("true", "must be text in quotes"),
                ('"Push"', "'Push' is not a way of delivery; choose push or poll"),
            ],
            "poll_interval": [
                ('"1"', number),
                ("false", number),
                ("nan", "'nan' is not a poll interval; give seconds from 0.05 to 60"),
                ("0.01", "'0.01' is not a poll interval; give seconds from 0.05 to 60"),
            ],
            "mtu": [
                ("1416.0", "must be a whole number"),
                ("9", "'9' is not an MTU; give a number from 1280 to 65535"),
            ],
            "cipher": [
                ("1", "must be text in quotes"),
                ('"aes"', "'aes' is not a cipher; choose auto, aes-256-gcm or chacha20-poly1305"),
            ],
            "lan_access": [
                ("1", "must be text in quotes or true or false"),
                ('"maybe"', "'maybe' is neither yes nor no"),
            ],
            **{
                key: [("1", "must be true or false"), ('"yes"', "must be true or false")]
                for key in ("all_traffic", "kill_switch", "no_routes", "no_dns")
            },
            **{
                key: [
                    ("1", 'must be text in quotes or a list like ["a", "b"]'),
                    ('["10.0.0.0/8", "x"]', "'x' is not a network; write it like 192.168.7.0/24"),
                ]
                for key in ("include", "exclude", "share")
            },
        }
        good = {
            "servers": '["h"]',
            "user": '"kiwi"',
            "token": f'"{TOKEN.to_text()}"',
        }
        path = self.profiles / "bad.toml"
        fields = {field.name for field in Profile.__attrs_attrs__} - {"name"}  # type: ignore[attr-defined]
        self.assertEqual(set(wrong), fields)
        for key, rows in wrong.items():
            for value, message in rows:
                lines = [f"{name} = {text}\n" for name, text in good.items() if name != key]
                path.write_text("".join([*lines, f"{key} = {value}\n"]))
                place = f"{path}, line {len(lines) + 1}, {key}"
                self.refused(["--profile", "bad"], f"{place}: {message}")
        for key in good:
            path.write_text("".join(f"{k} = {v}\n" for k, v in good.items() if k != key))
            join = "the key is missing; join again with: pyvpn join 'pyvpn://…'"
            self.refused(["--profile", "bad"], f"{path}, {key}: {join}")
        path.write_text("".join(f"{k} = {v}\n" for k, v in good.items()))
        argv = ["--profile", "bad", "--pw-file", self.password]
        self.assertEqual(self.run_options(client_tap.Options(), argv), (None, ""))

    def test_unreadable_profile(self) -> None:
        """A profile that is no text, or a directory that is none, is named with the reason."""
        path = self.profiles / "bad.toml"
        makers: list[tuple[Callable[[], Any], str]] = [
            (lambda: path.write_bytes(b"\xff"), "this profile is not UTF-8 text"),
            (path.mkdir, "cannot read this profile: Is a directory"),
            (lambda: path.symlink_to(path),
             "cannot read this profile: Too many levels of symbolic links"),
        ]  # fmt: skip
        for make, message in makers:
            make()
            self.refused(["--profile", "bad"], f"{path}: {message}")
            path.rmdir() if path.is_dir() else path.unlink()
        self.refused(
            ["--profile-dir", self.password],
            f"{self.password}: cannot read the profiles: Not a directory; run it as root",
        )

    def test_modes_are_left_alone(self) -> None:
        """Reading changes no mode: the secrets are as private as they were."""
        self.run_options(client_tap.Options(), ["--pw-file", self.password])
        mode = stat.S_IMODE((self.profiles / "home.toml").stat().st_mode)
        self.assertEqual(mode, 0o600)
