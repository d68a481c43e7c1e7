"""Options, configuration files and profiles."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn import config, values
from pyvpn.config import ClientConfig, Profile, ServerConfig
from pyvpn.errors import ConfigError
from pyvpn.token import NetworkToken

TOKEN = NetworkToken(17, 8, 1, bytes([9]) * 32, bytes(range(32)), bytes(range(16)))
Parser = Callable[[str], Any]


def endpoints(text: str) -> tuple[str, ...]:
    return config.endpoints(text, 5050)


class ValueTests(SynchronousTestCase):
    """Single values."""

    ACCEPTED: list[tuple[Parser, str, object]] = [
        (config.port, "1", 1),
        (config.port, "65535", 65535),
        (config.local_port, "0", 0),
        (config.mtu, "1280", 1280),
        (config.mtu, "65535", 65535),
        (config.interval, "0.05", 0.05),
        (config.interval, "25", 25.0),
        (config.deliver, "poll", "poll"),
        (config.cipher, "auto", "auto"),
        (config.cipher, "aes-256-gcm", "aes-256-gcm"),
        (config.cipher, "chacha20-poly1305", "chacha20-poly1305"),
        (values.switch, "true", True),
        (values.switch, "false", False),
        (config.netmask, "255.255.255.0", 24),
        (config.netmask, "255.255.255.255", 32),
        (config.netmask, "24", 24),
        (config.tun_name, "leamit0", "leamit0"),
        (config.tun_name, "a" * 15, "a" * 15),
        (config.profile_name, "vpn.example.org", "vpn.example.org"),
        (config.user_name, "Jose\u0301", "Jos\u00e9"),
        (config.user_name, "é" * 16, "é" * 16),
        (config.subnet4, "10.10.0.0/24", IPv4Network("10.10.0.0/24")),
        (config.subnet4, "192.168.7.0/30", IPv4Network("192.168.7.0/30")),
        (config.subnet6, "auto", "auto"),
        (config.subnet6, "none", None),
        (config.subnet6, "fd12::/64", IPv6Network("fd12::/64")),
        (config.subnet6, "fd12::4/126", IPv6Network("fd12::4/126")),
        (config.interface_address, "2001:DB8:0::1", "2001:db8::1"),
        (endpoints, "vpn.example.org", ("vpn.example.org:5050",)),
        (
            endpoints,
            "Vpn.Example.org:99, [2001:db8::1]",
            ("vpn.example.org:99", "[2001:db8::1]:5050"),
        ),
        (endpoints, "a,a:5050", ("a:5050",)),
    ]

    REFUSED: list[tuple[Parser, str, str]] = [
        (config.port, "0", "'0' is not a port; give a number from 1 to 65535"),
        (config.port, "65536", "'65536' is not a port; give a number from 1 to 65535"),
        (config.port, "http", "'http' is not a port; give a number from 1 to 65535"),
        (config.port, "١٢", "'١٢' is not a port; give a number from 1 to 65535"),
        (config.port, "9" * 5000, f"'{'9' * 5000}' is not a port; give a number from 1 to 65535"),
        (config.local_port, "-1", "'-1' is not a port; give a number from 0 to 65535"),
        (config.mtu, "1279", "'1279' is not an MTU; give a number from 1280 to 65535"),
        (config.interval, "0", "'0' is not a poll interval; give seconds from 0.05 to 60"),
        (config.interval, "nan", "'nan' is not a poll interval; give seconds from 0.05 to 60"),
        (config.deliver, "pull", "'pull' is not a way of delivery; choose push or poll"),
        (
            config.cipher,
            "AES",
            "'AES' is not a cipher; choose auto, aes-256-gcm or chacha20-poly1305",
        ),
        (values.switch, "True", "'True' is neither true nor false"),
        (config.address, "10.10.0", "'10.10.0' is not an IPv4 or IPv6 address"),
        (
            config.netmask,
            "255.0.255.0",
            "'255.0.255.0' is not a netmask; write it like 255.255.255.0",
        ),
        (config.netmask, "0.0.0.255", "'0.0.0.255' is not a netmask; write it like 255.255.255.0"),
        (
            config.tun_name,
            "a" * 16,
            f"'{'a' * 16}' cannot name a TUN device; use at most 15 letters, digits, _ . -,"
            " beginning with a letter or digit",
        ),
        (
            config.tun_name,
            "../etc",
            "'../etc' cannot name a TUN device; use at most 15 letters, digits, _ . -,"
            " beginning with a letter or digit",
        ),
        (
            config.profile_name,
            "a/b",
            "'a/b' cannot name a profile; use at most 32 letters, digits, . _ -,"
            " beginning with a letter or digit",
        ),
        (
            config.profile_name,
            "server",
            "a profile cannot be called 'server': that name means the hub",
        ),
        (config.user_name, "", "user name: 0 bytes of UTF-8, 1 to 32 are allowed"),
        (config.user_name, "é" * 17, "user name: 34 bytes of UTF-8, 1 to 32 are allowed"),
        (
            config.user_name,
            "a\x1b[2J",
            "user name: control characters, line breaks and text that is not UTF-8 are refused",
        ),
        (config.subnet4, "10.10.0.0/31", "10.10.0.0/31 is too small; the smallest subnet is a /30"),
        (config.subnet4, "8.0.0.0/7", "8.0.0.0/7 is too large; the largest subnet is a /8"),
        (config.subnet4, "10.10.0.0", "'10.10.0.0' is not a subnet; write 10.10.0.0/24"),
        (config.subnet4, "fd12::/64", "'fd12::/64' is not a subnet; write 10.10.0.0/24"),
        (
            config.subnet4,
            "10.10.0.1/24",
            "'10.10.0.1/24' has bits set beyond its prefix; write 10.10.0.0/24",
        ),
        (
            config.subnet4,
            "127.0.0.0/24",
            "127.0.0.0/24 cannot be given to hosts; take a private subnet",
        ),
        (
            config.subnet6,
            "fd12::/127",
            "fd12::/127 is too small; the smallest IPv6 subnet is a /126",
        ),
        (config.subnet6, "fd12::/48", "fd12::/48 is too large; the largest IPv6 subnet is a /64"),
        (
            config.subnet6,
            "no",
            "'no' is not a subnet; write auto, none or a prefix like fd12:3456:789a::/64",
        ),
        (endpoints, "a,", "address '': not a valid host name"),
        (endpoints, "1.2.3.400", "address '1.2.3.400': not a valid IPv4 address"),
        (endpoints, "host:0", "address 'host:0': the port must be 1 to 65535"),
    ]

    def test_accepted(self) -> None:
        """Every good value is taken, in its canonical form."""
        for parse, text, value in self.ACCEPTED:
            self.assertEqual(parse(text), value, text)

    def test_refused(self) -> None:
        """Every bad value is refused with exactly one line that says what would be right."""
        for parse, text, message in self.REFUSED:
            error = self.assertRaises(ConfigError, parse, text)
            self.assertEqual(str(error), message)
            self.assertNotIn("\n", str(error))

    @settings(deadline=None)
    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Whatever people type is a value or a ConfigError, nothing else escapes."""
        parsers: list[Parser] = [
            *(config.port, config.mtu, config.interval, config.deliver, config.address),
            *(config.netmask, config.tun_name, config.profile_name, config.user_name),
            *(config.subnet4, config.subnet6, config.directory, endpoints),
            *(config.cipher, values.switch),
        ]
        for parse in parsers:
            try:
                parse(text)
            except ConfigError:
                pass

    def test_directory_of_nobody(self) -> None:
        """A home directory of an unknown user is no traceback but a plain name."""
        self.assertEqual(config.directory("~no-such-user/x"), Path("~no-such-user/x").absolute())

    def test_host_port(self) -> None:
        """A host with its port comes apart, an IPv6 address without its brackets."""
        self.assertEqual(config.host_port("vpn.example.org", 7), ("vpn.example.org", 7))
        self.assertEqual(config.host_port("[2001:db8::1]:99", 7), ("2001:db8::1", 99))


class ServerConfigTests(SynchronousTestCase):
    """The hub's configuration."""

    def written(self, text: str | bytes) -> str:
        path = self.mktemp()
        Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def test_defaults(self) -> None:
        """Without a file and options everything has the documented default."""
        found = ServerConfig.load(None, {})
        self.assertEqual(
            (found.port, found.interface, str(found.subnet), found.subnet6, found.tun, found.mtu),
            (5050, None, "10.10.0.0/24", "auto", "leamit0", 8916),
        )
        self.assertEqual((found.endpoint, str(found.state_dir)), (None, "/var/lib/pyvpn"))
        self.assertEqual((found.cipher, found.relay), ("auto", False))
        self.assertEqual(str(found.files.socket), "/run/pyvpn/server.sock")
        self.assertEqual(str(found.files.pid_file), "/run/pyvpn/server.pid")
        self.assertEqual(str(found.files.journal), "/run/pyvpn/server.journal")
        self.assertEqual(str(found.files.log), "/var/lib/pyvpn/log/server.log")

    def test_options_win_over_file(self) -> None:
        """An option given wins over the file, one not given (None) does not."""
        path = self.written('port = 6000\nsubnet6 = "none"\ntun = "hub0"\n')
        found = ServerConfig.load(path, {"tun": "vpn0", "port": None, "state-dir": "/tmp/s"})
        self.assertEqual((found.port, found.subnet6, found.tun), (6000, None, "vpn0"))
        self.assertEqual(found.state_dir, Path("/tmp/s"))

    def test_endpoint_takes_the_hubs_port(self) -> None:
        """An endpoint without a port means the port that this hub listens on."""
        found = ServerConfig.load(self.written("port = 6000\n"), {"endpoint": "vpn.example.org"})
        self.assertEqual(found.endpoint, "vpn.example.org:6000")

    def test_network(self) -> None:
        """What clients are offered can be given as options and in the file; else it is open."""
        found = ServerConfig.load(None, {})
        self.assertEqual(
            (found.internet, found.no_client_to_client, found.dns, found.search, found.exclude),
            (None,) * 5,
        )
        self.assertEqual(found.route, ())
        text = 'internet = false\ndns = ["9.9.9.9", "2620:fe::fe"]\nsearch = "Corp.Example."\n'
        text += 'route = ["10.20.0.0/16"]\nexclude = "none"\n'
        path = self.written(text)
        found = ServerConfig.load(
            path, {"no-client-to-client": 1, "route": "10.30.0.0/16,fd77::/64"}
        )
        self.assertEqual((found.internet, found.no_client_to_client), (False, True))
        self.assertEqual(found.dns, (ip_address("9.9.9.9"), ip_address("2620:fe::fe")))
        self.assertEqual((found.search, found.exclude), (("corp.example",), ()))
        self.assertEqual(found.route, (ip_network("10.30.0.0/16"), ip_network("fd77::/64")))

    def test_bad_network(self) -> None:
        """What clients cannot be offered is refused with the option's name."""
        table: list[tuple[dict[str, object], str]] = [
            ({"dns": "ns"}, "--dns: 'ns' is no name server; give hub, none, or addresses with"
             " commas"),
            ({"dns": "127.0.0.53"}, "--dns: clients cannot ask 127.0.0.53; give an address they"
             " can reach"),
            ({"search": "a_b"}, "--search: 'a_b' is no domain; write letters, digits, hyphens and"
             " dots, and other letters as xn--…"),
            ({"search": ",".join(f"d{n}" for n in range(16))},
             "--search: 16 domains are too many; the most are 15"),
            ({"route": "::/0"}, "--route: ::/0 is everything; to offer clients the internet take"
             " --internet, or run: pyvpn network set --internet on"),
            ({"route": "128.0.0.0/1"}, "--route: 128.0.0.0/1 is too wide for a route; the widest"
             " are /8 and, of IPv6, /7"),
            ({"route": "10.20.0.1/16"}, "--route: '10.20.0.1/16' has bits set beyond its prefix;"
             " write 10.20.0.0/16"),
            ({"route": "fe80::/64"}, "--route: fe80::/64 is never routed: it is of one link alone"),
            ({"route": "10.0.0.0/8"}, "--route: 10.0.0.0/8 overlaps the VPN's own network"
             " 10.10.0.0/24"),
            ({"route": "fd77::/64", "subnet6": "none"}, "--route: fd77::/64 is IPv6, which this VPN"
             " has not"),
            ({"exclude": "10.10.0.128/25"}, "--exclude: 10.10.0.128/25 is part of the VPN's own"
             " network 10.10.0.0/24"),
            ({"route": "10.20.0.0/16", "exclude": "10.20.0.0/16"},
             "--exclude: 10.20.0.0/16 is a --route, too"),
            ({"relay": 1, "no-client-to-client": 1}, "--no-client-to-client: clients reach each"
             " other all the same with --relay, which goes past the kernel and its rules; leave one"
             " of the two out"),
        ]  # fmt: skip
        for overrides, message in table:
            error = self.assertRaises(ConfigError, ServerConfig.load, None, overrides)
            self.assertEqual(str(error), message)
        ServerConfig.load(None, {"relay": 1})
        ServerConfig.load(None, {"exclude": "10.0.0.0/8", "search": "d1,d2"})

    def test_bad_files(self) -> None:
        """A bad file is refused with one line naming file, line and key."""
        known = (
            "cipher, dns, endpoint, exclude, interface, internet, mtu, no_client_to_client, port"
        )
        known += ", relay, route, run_dir, search, state_dir, subnet, subnet6, tun"
        table: list[tuple[str | bytes, str]] = [
            ("\n\nport = 70000\n", ", line 3, port: '70000' is not a port; give a number from"
             " 1 to 65535"),
            ('port = "5050"\n', ", line 1, port: must be a whole number"),
            ("port = true\n", ", line 1, port: must be a whole number"),
            ("tun = 1\n", ", line 1, tun: must be text in quotes"),
            ("# x\nprot = 1\n", ", line 2, prot: unknown key; did you mean 'port'?"),
            ("[hub]\nport = 1\n", f", line 1, hub: unknown key; there are: {known}"),
            ("endpoint = [[1]]\n", ', line 1, endpoint: must be a list like ["a", "b"]'),
            ("a = \n", ", line 1: not valid TOML: Invalid value"),
            (b"\xff", ": this configuration file is not UTF-8 text"),
        ]  # fmt: skip
        for text, message in table:
            path = self.written(text)
            error = self.assertRaises(ConfigError, ServerConfig.load, path, {})
            self.assertEqual(str(error), path + message)

    def test_missing_file(self) -> None:
        """A configuration file that is not there is an error, not the defaults."""
        error = self.assertRaises(ConfigError, ServerConfig.load, "/nonexistent/x.toml", {})
        self.assertEqual(str(error), "/nonexistent/x.toml: there is no such configuration file")

    def test_bad_option(self) -> None:
        """A bad option is named as people typed it."""
        error = self.assertRaises(ConfigError, ServerConfig.load, None, {"state_dir": ""})
        self.assertEqual(str(error), "--state-dir: give the name of a directory")

    def test_run_dir_too_long(self) -> None:
        """A run directory that no UNIX socket fits in is refused before anything starts."""
        long = "/tmp/" + "d" * 91  # with /server.sock 108 bytes: one too many
        error = self.assertRaises(ConfigError, ServerConfig.load, None, {"run_dir": long})
        self.assertEqual(
            str(error), f"--run-dir: '{long}' is too long for a socket; choose a shorter directory"
        )
        ServerConfig.load(None, {"run_dir": long[:-1]})


class ProfileTests(SynchronousTestCase):
    """Profiles and the choice between them."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()

    def profile(self, name: str, **settings: Any) -> Profile:
        made = Profile(
            name=name, servers=("vpn.example.org:5050",), user="kiwi", token=TOKEN, **settings
        )
        made.save(config.profile_path(self.directory, name))
        return made

    def test_round_trip(self) -> None:
        """What is saved is loaded again, every setting of it."""
        made = self.profile(
            "home",
            password_file='/a "b"\\c\x7f',
            tun_addr=IPv4Address("10.10.0.9"),
            tun="vpn1",
            port=0,
            deliver="poll",
            poll_interval=0.5,
            mtu=1300,
            cipher="aes-256-gcm",
        )
        self.assertEqual(Profile.load(self.directory / "home.toml"), made)

    def test_private(self) -> None:
        """A profile holds the network's secret, so only its owner can read it or list others."""
        self.profile("home")
        for path, mode in ((self.directory, 0o700), (self.directory / "home.toml", 0o600)):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_string_survives_toml(self, text: str) -> None:
        """Any text written into a profile is read back as it was."""
        self.assertEqual(tomllib.loads(f"key = {config._quote(text)}"), {"key": text})

    def test_failed_save_leaves_nothing(self) -> None:
        """A save that fails leaves no temporary file, and the old profile as it was."""
        self.profile("home")
        (self.directory / "home.password").mkdir()
        self.assertRaises(
            ConfigError, config.write_private_file, self.directory / "home.password", "x"
        )
        self.assertEqual(sorted(os.listdir(self.directory)), ["home.password", "home.toml"])

    def test_missing_key(self) -> None:
        """A profile without a token says which key and how to join again."""
        self.directory.mkdir()
        path = self.directory / "home.toml"
        path.write_text('servers = ["a"]\nuser = "kiwi"\n')
        error = self.assertRaises(ConfigError, Profile.load, path)
        self.assertEqual(
            str(error),
            f"{path}, token: the key is missing; join again with: pyvpn join 'pyvpn://…'",
        )

    def test_damaged_token(self) -> None:
        """A token with a letter changed is refused by its check sum, at its line."""
        path = config.profile_path(self.directory, "home")
        self.profile("home")
        text = TOKEN.to_text()
        path.write_text(
            path.read_text().replace(
                text, ("Q" if text[9] != "Q" else "R").join((text[:9], text[10:]))
            )
        )
        error = self.assertRaises(ConfigError, Profile.load, path)
        self.assertEqual(
            str(error),
            f"{path}, line 3, token: network token: wrong check sum; copy all of it again",
        )

    def test_choice(self) -> None:
        """The name wins, then ``default``, then the only profile."""
        self.profile("home")
        self.assertEqual(config.choose_profile(self.directory, None).name, "home")
        self.profile("work")
        self.assertEqual(config.choose_profile(self.directory, "work").name, "work")
        self.profile("default")
        self.assertEqual(config.choose_profile(self.directory, None).name, "default")

    def test_no_choice(self) -> None:
        """Without a profile to choose, the error names what exists and shows the join line."""

        def refused(name: str | None) -> str:
            error = self.assertRaises(ConfigError, config.choose_profile, self.directory, name)
            return str(error).replace(str(self.directory), "DIR")

        join = "join a network with: pyvpn join 'pyvpn://…'"
        self.assertEqual(
            refused(None), f"DIR holds no profile 'default' (there is none yet); {join}"
        )
        self.profile("home")
        self.assertEqual(refused("hme"), f"DIR holds no profile 'hme' (there are: home); {join}")
        self.profile("work")
        self.assertEqual(
            refused(None),
            "DIR holds several profiles (home, work) and none is called 'default'; give --profile"
            " NAME, or join another network with: pyvpn join 'pyvpn://…'",
        )


class ClientConfigTests(SynchronousTestCase):
    """The client's configuration."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.token_file = Path(self.mktemp()).absolute()
        self.token_file.write_text(TOKEN.to_text() + "\n")

    def test_profile(self) -> None:
        """The settings come from the only profile; its port counts as asked for."""
        Profile(
            "home", ("a:1", "[::1]:2"), "kiwi", TOKEN, port=7000, password_file="home.password"
        ).save(self.directory / "home.toml")
        found = ClientConfig.load({"profile-dir": str(self.directory), "pw": "x"})
        self.assertEqual((found.servers, found.user), (("a:1", "[::1]:2"), "kiwi"))
        self.assertEqual((found.port, found.port_explicit, found.profile), (7000, True, "home"))
        self.assertEqual(found.password_file, self.directory / "home.password")
        self.assertEqual(found.files.socket, Path("/run/pyvpn/client-home.sock"))

    def test_seed_line(self) -> None:
        """The seed's options work from a profile."""
        Profile("default", ("a:1",), "kiwi", TOKEN).save(self.directory / "default.toml")
        found = ClientConfig.load(
            {
                "tun_addr": "10.10.0.2",
                "tun_dstaddr": "10.10.0.1",
                "tun_netmask": "255.255.255.0",
                "profile_dir": str(self.directory),
            }
        )
        self.assertEqual(str(found.tun_addr), "10.10.0.2")
        self.assertEqual((str(found.tun_dstaddr), found.tun_netmask), ("10.10.0.1", 24))
        self.assertEqual((found.port, found.port_explicit), (12000, False))

    def test_without_profile(self) -> None:
        """With --server, --user and --token-file no profile is needed."""
        found = ClientConfig.load(
            {"server": "a,b:7", "user": "pa", "token_file": str(self.token_file), "port": "12000",
             "profile_dir": "/nonexistent"}
        )  # fmt: skip
        self.assertEqual((found.servers, found.user), (("a:5050", "b:7"), "pa"))
        self.assertEqual((found.token, found.profile), (TOKEN, "default"))
        self.assertTrue(found.port_explicit)

    def test_refused(self) -> None:
        """What is missing or contradictory is named as an option."""
        given = {"server": "a", "user": "pa", "token_file": str(self.token_file)}
        table: list[tuple[dict[str, object], str]] = [
            ({"user": None}, "--user: --server without a profile needs this option too"),
            ({"token_file": None},
             "--token-file: --server without a profile needs this option too"),
            ({"token_file": "/nonexistent"},
             "--token-file: /nonexistent: there is no such token file"),
            ({"port": "x"}, "--port: 'x' is not a port; give a number from 0 to 65535"),
            ({"deliver": "poll", "poll_interval": "61"},
             "--poll-interval: '61' is not a poll interval; give seconds from 0.05 to 60"),
            ({"tun_addr": "x"}, "--tun-addr: 'x' is not an IPv4 or IPv6 address"),
        ]  # fmt: skip
        for change, message in table:
            error = self.assertRaises(ConfigError, ClientConfig.load, {**given, **change})
            self.assertEqual(str(error), message)


class PasswordFileTests(SynchronousTestCase):
    """Password files."""

    def test_first_line(self) -> None:
        """The password is the first line, spaces at its ends included, without the line's end."""
        path = self.mktemp()
        Path(path).write_bytes(b" a b \r\nsecond\n")
        self.assertEqual(config.read_password_file(path), " a b ")

    def test_refused(self) -> None:
        """No file, an empty file and one far too long are refused by name."""
        empty, long = self.mktemp(), self.mktemp()
        Path(empty).write_text("\n")
        Path(long).write_text("x" * 5000)
        table = [
            ("/nonexistent", "/nonexistent: there is no such password file"),
            (empty, f"{empty}: the password is empty; write it on the first line"),
            (long, f"{long}: too long for a password file; write one line"),
        ]
        for path, message in table:
            error = self.assertRaises(ConfigError, config.read_password_file, path)
            self.assertEqual(str(error), message)
