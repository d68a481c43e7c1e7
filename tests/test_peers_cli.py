"""``pyvpn peer …``: what people see, what the hub is told, and where private keys go."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import peers_cli
from pyvpn.core import login
from pyvpn.wgconf import NO_PSK, PeerConf, format_key, load_conf, parse_conf, parse_key
from tests.test_cli import CommandTestCase, FakeHub, Terminal
from tests.test_qrcode import decoded, in_png, in_svg, on_terminal

HUB, ONE, TWO = (format_key(bytes([byte]) * 32) for byte in (1, 2, 3))
ADDED = {
    "name": "phone",
    "addresses": ["10.10.0.7/32", "fd12:3456:789a::7/128"],
    "hub_public_key": HUB,
    "endpoint": "vpn.example.org:5050",
    "networks": ["10.10.0.0/24", "fd12:3456:789a::/64"],
    "mtu": 1416,
    "warnings": [],
}
ROWS: list[dict[str, Any]] = [
    {
        "name": "phone",
        "public_key": ONE,
        "addresses": ["10.10.0.7/32", "fd12:3456:789a::7/128"],
        "allowed_ips": ["192.168.7.0/24"],
        "keepalive": 15,
        "enabled": True,
        "endpoint": "192.0.2.1:51820",
        "last_handshake": 0,
        "rx_bytes": 1_500_000,
        "tx_bytes": 0,
        "psk": HUB,
    },
    {"name": "off\x1b[2J", "public_key": TWO, "addresses": ["10.10.0.8/32"], "enabled": False},
]


class PeerTestCase(CommandTestCase):
    """A hub that answers as one would, unless a test says otherwise."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: dict[str, Any] = {
            "status": {"endpoint": "vpn.example.org:5050"},
            "peer_add": ADDED,
            "peer_list": {"peers": ROWS},
        }
        self.fake: FakeHub = self.hub(self.answer)
        self.out = self.base / "out"
        self.out.mkdir()
        before = os.environ.pop("NO_COLOR", None)
        if before is not None:
            self.addCleanup(os.environ.__setitem__, "NO_COLOR", before)
        self.addCleanup(os.environ.pop, "NO_COLOR", None)

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = self.answers.get(command, {})
        if callable(answer):
            answer = answer(arguments)
        if isinstance(answer, str):
            return {"ok": False, "error": answer, "kind": "config"}
        return {"ok": True, "result": answer}

    def on_terminal(self) -> None:
        self.patch(self, "streams", lambda: (Terminal(), io.StringIO()))

    def asked(self, command: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.fake.asked if name == command]


class AddTests(PeerTestCase):
    def test_pipe(self) -> None:
        """On a pipe the .conf alone; the hub learns the public key that belongs to it, no more."""
        code, out, err = self.pyvpn("peer", "add", "phone")
        self.assertEqual(code, 0)
        conf = parse_conf(out, "out")
        assert conf.private_key is not None
        self.assertEqual((conf.private_key[0] & 7, conf.private_key[31] >> 6), (0, 1))
        [asked] = self.asked("peer_add")
        self.assertEqual(
            asked,
            {
                "name": "phone",
                "public_key": format_key(login.public_key(conf.private_key)),
                "psk": "",
                "allowed_ips": "",
                "keepalive": "0",
            },
        )
        self.assertEqual(list(map(str, conf.addresses)), ADDED["addresses"])
        self.assertEqual((conf.mtu, conf.dns, conf.listen_port), (1416, (), None))
        [hub] = conf.peers
        self.assertEqual(list(map(str, hub.allowed_ips)), ADDED["networks"])
        self.assertEqual(
            (hub.public_key, hub.psk, hub.endpoint, hub.keepalive),
            (parse_key(HUB), NO_PSK, "vpn.example.org:5050", 25),
        )
        private = format_key(conf.private_key)
        self.assertIn(private, out)  # the next line can fail
        self.assertNotIn(private, repr(self.fake.asked) + err)
        self.assertIn("phone added: 10.10.0.7/32, fd12:3456:789a::7/128", err)

    def test_keys_differ(self) -> None:
        """Each peer gets keys of its own."""
        self.pyvpn("peer", "add", "a", "--psk")
        self.pyvpn("peer", "add", "b", "--psk")
        one, two = self.asked("peer_add")
        self.assertNotEqual(one["public_key"], two["public_key"])
        self.assertNotEqual(one["psk"], two["psk"])

    def test_options(self) -> None:
        """Networks and pre-shared key reach the hub; interval and pre-shared key the .conf."""
        code, out, err = self.pyvpn(
            *("peer", "add", "phone", "--psk", "--keepalive", "off"),
            *("--allowed-ips", "192.168.7.1/24, fd00::1"),
        )
        self.assertEqual(code, 0, err)
        [hub] = parse_conf(out, "out").peers
        [asked] = self.asked("peer_add")
        self.assertEqual(asked["allowed_ips"], "192.168.7.0/24,fd00::1/128")
        self.assertEqual(asked["psk"], format_key(hub.psk))
        self.assertNotEqual(hub.psk, NO_PSK)
        self.assertEqual(hub.keepalive, 0)

    def test_terminal(self) -> None:
        """On a terminal the .conf with a QR code of it, and what to do next."""
        self.on_terminal()
        code, out, _ = self.pyvpn("peer", "add", "phone", "--psk")
        self.assertEqual(code, 0)
        text = out[out.index("[Interface]") : out.index("\n\n\x1b") + 1]
        self.assertIsNotNone(parse_conf(text, "out").private_key)
        rows = [line for line in out.splitlines() if line.startswith("\x1b[97;40m")]
        bare = [row.removeprefix("\x1b[97;40m").removesuffix("\x1b[0m") for row in rows]
        self.assertLessEqual(max(map(len, bare)), 80)
        self.assertEqual(decoded(on_terminal(bare)), [text])
        self.assertIn("scan the code with the WireGuard app", out)

    def test_no_colour(self) -> None:
        """NO_COLOR, and a pipe that asks for it, get the QR code in plain characters."""
        self.on_terminal()
        self.assertIn("\x1b", self.pyvpn("peer", "add", "phone")[1])
        os.environ["NO_COLOR"] = "1"
        out = self.pyvpn("peer", "add", "phone")[1]
        self.assertIn("\u2580", out)
        self.assertNotIn("\x1b", out)
        self.assertNotIn("\u2580", self.pyvpn("peer", "add", "phone", "--no-qr")[1])
        del os.environ["NO_COLOR"]
        self.patch(self, "streams", lambda: (io.StringIO(), io.StringIO()))
        out = self.pyvpn("peer", "add", "phone", "--qr")[1]
        self.assertIn("\u2580", out)
        self.assertNotIn("\x1b", out)
        self.assertNotIn("\u2580", self.pyvpn("peer", "add", "phone")[1])

    def test_conf_file(self) -> None:
        """--output FILE.conf: readable by its owner alone, and the key is shown nowhere else."""
        path = self.out / "wg-home.conf"
        code, out, err = self.pyvpn("peer", "add", "phone", "--output", str(path))
        self.assertEqual((code, out), (0, f"written to {path}\n"))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        private = load_conf(path).private_key
        assert private is not None
        self.assertNotIn(format_key(private), out + err)
        self.assertIn("sudo wg-quick up ./wg-home.conf", err)
        long = self.out / "a-name-that-is-long.conf"
        self.assertIn("Rename it", self.pyvpn("peer", "add", "phone", "--output", str(long))[2])

    def test_image_files(self) -> None:
        """--output FILE.png or .svg: a QR code of a whole .conf, readable by its owner alone."""
        for suffix in (".png", ".SVG"):
            path = self.out / f"phone{suffix}"
            code, _, err = self.pyvpn("peer", "add", "phone", "--output", str(path))
            self.assertEqual(code, 0, err)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
            if suffix == ".png":
                [text] = decoded(in_png(path.read_bytes()), 1)
            else:
                [text] = decoded(in_svg(path.read_text()))
            conf = parse_conf(text, "code")
            assert conf.private_key is not None
            asked = self.asked("peer_add")[-1]
            self.assertEqual(asked["public_key"], format_key(login.public_key(conf.private_key)))

    def test_no_file_for_nothing(self) -> None:
        """A peer that the hub refuses leaves no file; an existing file is never touched."""
        self.answers["peer_add"] = "there is a user 'phone'; choose another name for the peer"
        path = self.out / "phone.conf"
        self.assertEqual(
            self.pyvpn("peer", "add", "phone", "--output", str(path)),
            (1, "", "pyvpn: there is a user 'phone'; choose another name for the peer\n"),
        )
        self.assertEqual(self.tree_of(self.out), [])
        self.answers["peer_add"] = ADDED
        path.write_text("mine")
        before = len(self.fake.asked)
        self.assertEqual(
            self.pyvpn("peer", "add", "phone", "--output", str(path)),
            (1, "", f"pyvpn: {path}: it exists already; choose another name\n"),
        )
        self.assertEqual((path.read_text(), len(self.fake.asked)), ("mine", before))

    def test_full_disk(self) -> None:
        """A file that cannot be written after the hub has agreed: said with the way back."""

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(peers_cli.os, "fsync", full)
        path = self.out / "phone.conf"
        code, _, err = self.pyvpn("peer", "add", "phone", "--output", str(path))
        self.assertEqual(code, 1)
        self.assertIn(
            f"pyvpn: {path}: cannot write it: No space left on device; the peer has lost its key:"
            " pyvpn peer remove phone\n",
            err,
        )
        self.assertEqual(self.tree_of(self.out), [])

    def test_key_made_elsewhere(self) -> None:
        """--public-key: the hub gets that key; the .conf has a place for the private one."""
        self.on_terminal()
        code, out, _ = self.pyvpn("peer", "add", "router", "--public-key", ONE)
        self.assertEqual(code, 0)
        text = out[out.index("[Interface]") : out.index("\nNext: save the text")]
        self.assertNotIn("It is shown this once", out)
        self.assertIsNone(parse_conf(text, "out").private_key)
        self.assertIn(f"together with this public key:\n# {ONE}\n", text)
        self.assertNotIn("\u2580", out)
        self.assertEqual(self.asked("peer_add")[0]["public_key"], ONE)

    def test_endpoint(self) -> None:
        """No keys are made for a hub that cannot say where it is; keys from elsewhere may wait."""
        self.answers["status"] = {"endpoint": None}
        self.answers["peer_add"] = {**ADDED, "endpoint": None}
        self.assertEqual(
            self.pyvpn("peer", "add", "phone"),
            (1, "", "pyvpn: no endpoint is set, so the peer could not be told where the hub is; set"
             " its public address: pyvpn init --endpoint HOST[:PORT]\n"),
        )  # fmt: skip
        self.assertEqual(self.asked("peer_add"), [])
        code, out, _ = self.pyvpn("peer", "add", "phone", "--public-key", ONE)
        self.assertEqual(code, 0)
        self.assertIn("# Endpoint = HOST:PORT of the hub", out)

    def test_all_traffic(self) -> None:
        """With --all-traffic everything goes through the hub, names included; without it the .conf
        names networks, and no server for names."""
        offered = {"internet": True, "dns": ["10.10.0.1", "fd12::1"], "search": ["pyvpn"]}
        self.answers["network_show"] = {"internet": True}
        self.answers["peer_add"] = {**ADDED, **offered}
        code, out, err = self.pyvpn("peer", "add", "phone", "--all-traffic")
        self.assertEqual(0, code, err)
        self.assertIn("\nDNS = 10.10.0.1, fd12::1, pyvpn\n", out)
        self.assertIn("\nAllowedIPs = 0.0.0.0/0, ::/0\n", out)
        _, out, _ = self.pyvpn("peer", "add", "phone")
        self.assertNotIn("DNS", out)
        self.assertIn("\nAllowedIPs = 10.10.0.0/24, fd12:3456:789a::/64\n", out)

    def test_no_internet(self) -> None:
        """Where the hub offers no internet, --all-traffic adds nobody and says how to offer it."""
        self.answers["network_show"] = {"internet": False}
        code, out, err = self.pyvpn("peer", "add", "phone", "--all-traffic")
        self.assertEqual((1, ""), (code, out))
        self.assertEqual(
            "pyvpn: --all-traffic: this hub offers no internet, so the peer's traffic would end"
            " there; to offer it: pyvpn network set --internet on\n",
            err,
        )
        self.assertEqual([], self.asked("peer_add"))
        self.answers["network_show"] = {"internet": True}
        self.pyvpn("peer", "add", "phone", "--all-traffic")
        self.assertEqual(1, len(self.asked("peer_add")))

    def test_warnings(self) -> None:
        """What the hub warns of is told beside the .conf."""
        self.answers["peer_add"] = {**ADDED, "warnings": ["10.0.0.0/8 is no more 'x''s"]}
        _, out, err = self.pyvpn("peer", "add", "phone")
        self.assertIn("warning: 10.0.0.0/8 is no more 'x''s\n", err)
        self.assertNotIn("warning", out)

    def test_bad_input(self) -> None:
        """Each bad value is refused with the option it stood in, before the hub is asked."""
        code = "a QR code would lack the private key, which only its device has; take --output" \
            " FILE.conf or nothing"  # fmt: skip
        for arguments, message in [
            (["x" * 33], "peer name: 33 bytes of UTF-8, 1 to 32 are allowed"),
            (["a", "--allowed-ips", "10.0.0.0/33"],
             "--allowed-ips: '10.0.0.0/33' is not a network; write it like 10.10.0.0/24 or"
             " fd00::/64"),
            (["a", "--keepalive", "-1"],
             "--keepalive: '-1' is not off or seconds; give a number from 0 to 65535"),
            (["a", "--public-key", "abc"],
             "--public-key: not a key; a key is 44 characters of base64, as 'wg genkey' prints it"),
            (["a", "--public-key", ONE, "--qr"], f"--public-key: {code}"),
            (["a", "--public-key", ONE, "--output", str(self.out / "x.png")],
             f"--public-key: {code}"),
            (["a", "--output", str(self.out / "x.jpg")],
             "--output: give a name that ends in .conf, .png, .svg"),
            (["a", "--output", "/nonexistent/x.conf"],
             "/nonexistent/x.conf: cannot make it: No such file or directory"),
        ]:  # fmt: skip
            with self.subTest(message):
                self.assertEqual(
                    self.pyvpn("peer", "add", *arguments), (1, "", f"pyvpn: {message}\n")
                )
        self.assertEqual((self.fake.asked, self.tree_of(self.out)), ([], []))

    def tree_of(self, directory: Path) -> list[str]:
        return sorted(path.name for path in directory.iterdir())


class OtherCommandTests(PeerTestCase):
    def test_list(self) -> None:
        """The peers as an aligned table; nothing in it steers the terminal."""
        code, out, _ = self.pyvpn("peer", "list")
        self.assertEqual(code, 0)
        self.assertEqual(
            [line.split("  ") for line in squeezed(out)],
            [
                ["PEER", "STATE", "KEY", "ADDRESSES", "ALLOWED IPS", "ENDPOINT", "HANDSHAKE",
                 "RECEIVED", "SENT"],
                ["phone", "enabled", ONE[:8], "10.10.0.7/32, fd12:3456:789a::7/128",
                 "192.168.7.0/24", "192.0.2.1:51820", "-", "1.5 MB", "0 B"],
                ["off?[2J", "disabled", TWO[:8], "10.10.0.8/32", "-", "-", "-", "-", "-"],
            ],
        )  # fmt: skip
        nets = [f"10.{i}.0.0/16" for i in range(1000)]
        self.answers["peer_list"] = {"peers": [{**ROWS[0], "allowed_ips": nets}]}
        out = self.pyvpn("peer", "list")[1]
        self.assertIn("10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 997 more  192.0.2.1", out)
        self.answers["peer_list"] = {"peers": []}
        self.assertIn("add one with: pyvpn peer add NAME", self.pyvpn("peer", "list")[1])

    def test_changes(self) -> None:
        """disable, enable and remove name the peer to the hub and say what was done."""
        self.answers["peer_enable"] = {"warnings": ["overlap"]}
        for change in ("disable", "enable", "remove"):
            code, out, err = self.pyvpn("peer", change, "phone")
            self.assertEqual((code, out), (0, f"phone {change}d.\n"))
            self.assertEqual(self.asked(f"peer_{change}"), [{"name": "phone"}])
            self.assertEqual(err, "warning: overlap\n" if change == "enable" else "")
        self.answers["peer_remove"] = "there is no WireGuard peer 'x'; to see all: pyvpn peer list"
        self.assertEqual(
            self.pyvpn("peer", "remove", "x"),
            (1, "", "pyvpn: there is no WireGuard peer 'x'; to see all: pyvpn peer list\n"),
        )

    def test_usage(self) -> None:
        """Wrong usage is status 2."""
        for arguments in (["peer"], ["peer", "add"], ["peer", "frobnicate"], ["peer", "import"]):
            self.assertEqual(self.pyvpn(*arguments)[0], 2)


def squeezed(text: str) -> list[str]:
    """Lines with their columns two spaces apart."""
    return ["  ".join(filter(None, map(str.strip, line.split("  ")))) for line in text.splitlines()]


class ImportTests(PeerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.out / "wg0.conf"
        self.answers["peer_list"] = {"peers": []}

    def keys(self, count: int) -> list[str]:
        return [format_key(bytes([10 + number]) * 32) for number in range(count)]

    def imported(self, text: str) -> tuple[int, str, str]:
        self.file.write_text(text)
        return self.pyvpn("peer", "import", str(self.file))

    def test_each_peer(self) -> None:
        """Every [Peer] is added with its key, networks and interval, named as its comment says."""
        a, b, c = self.keys(3)
        code, out, err = self.imported(
            f"[Interface]\nListenPort = 1\n\n# laptop\n[Peer]\nPublicKey = {a}\n"
            f"PresharedKey = {HUB}\nAllowedIPs = 10.10.0.9/32, 192.168.1.5/24\n"
            f"PersistentKeepalive = 20\nEndpoint = [::1]:5\n\n[Peer]\nPublicKey = {b}\n"
            f"AllowedIPs = 10.10.0.10\nEndpoint = vpn.example.org:51820\n\n"
            f"[Peer]\n# Name = laptop\nPublicKey = {c}\n"
        )
        self.assertEqual(code, 0, err)
        self.assertEqual(
            self.asked("peer_add"),
            [
                {"name": "laptop", "public_key": a, "psk": HUB, "keepalive": "20",
                 "allowed_ips": "10.10.0.9/32,192.168.1.0/24", "endpoint": "[::1]:5"},
                {"name": f"wg-{b[:8]}", "public_key": b, "psk": "", "keepalive": "0",
                 "allowed_ips": "10.10.0.10/32"},
                {"name": f"laptop-{c[:8]}", "public_key": c, "psk": "", "keepalive": "0",
                 "allowed_ips": ""},
            ],
        )  # fmt: skip
        self.assertIn("laptop added: 10.10.0.7/32, fd12:3456:789a::7/128\n", out)
        self.assertIn(f"wg-{b[:8]}: waits to be called, vpn.example.org:51820 is no address", out)
        self.assertIn(f"and its public key {HUB}.", err)
        self.assertNotIn("takes over the key", err)

    def test_hub_key(self) -> None:
        """The advice about the hub's key: how to keep the file's; none if the hub has it."""
        [a] = self.keys(1)
        private = os.urandom(32)
        text = f"[Interface]\nPrivateKey = {format_key(private)}\n[Peer]\nPublicKey = {a}\n"
        self.assertIn(f"{self.state}/wireguard.key, start it.", self.imported(text)[2])
        key = format_key(login.public_key(private))
        self.answers["peer_add"] = {**ADDED, "hub_public_key": key}
        self.assertEqual(self.imported(text)[2], "")

    def test_again(self) -> None:
        """A peer whose key the hub has already is left as it is."""
        self.answers["peer_list"] = {"peers": ROWS}
        [a] = self.keys(1)
        code, out, _ = self.imported(f"[Peer]\nPublicKey={ONE}\n# phone\n[Peer]\nPublicKey={a}")
        self.assertEqual(code, 0)
        self.assertIn("phone was there already\n", out)
        [asked] = self.asked("peer_add")
        self.assertEqual((asked["name"], asked["public_key"]), (f"phone-{a[:8]}", a))

    def test_refusals(self) -> None:
        """A peer that is refused is told of and does not keep the others out; the status is 1."""
        a, b, c = self.keys(3)

        def answer(arguments: dict[str, Any]) -> Any:
            return "name taken" if arguments["name"] == "a" else ADDED

        self.answers["peer_add"] = answer
        code, out, err = self.imported(
            f"# a\n[Peer]\nPublicKey={a}\n# b\n[Peer]\nPublicKey={b}\nAllowedIPs=0.0.0.0/0\n"
            f"# c\n[Peer]\nPublicKey={c}\n"
        )
        self.assertEqual(code, 1)
        self.assertIn("pyvpn: a: name taken\n", err)
        self.assertIn("pyvpn: b: all traffic would go to this peer; is this the file of a", err)
        self.assertIn("c added", out)
        self.assertTrue(err.endswith(f"pyvpn: {self.file}: 2 of 3 peers were refused\n"), err)

    def test_bad_file(self) -> None:
        """A bad line anywhere, or no peer, and the hub is not asked for anything."""
        [a] = self.keys(1)
        for text, message in [
            (f"[Peer]\nPublicKey={a}\n[Peer]\nPublicKey=x",
             ", line 4, PublicKey: not a key; a key is 44 characters of base64, as 'wg genkey'"
             " prints it"),
            ("[Interface]\n", ": there is no [Peer] in it"),
        ]:  # fmt: skip
            self.assertEqual(self.imported(text), (1, "", f"pyvpn: {self.file}{message}\n"))
        self.assertEqual(self.fake.asked, [])


class ExportTests(PeerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.private = format_key(bytes([9]) * 32)
        self.answers["peer_export"] = {
            "hub_private_key": self.private,
            "port": 5050,
            "addresses": ["10.10.0.1/24", "fd12:3456:789a::1/64"],
            "peers": ROWS,
        }

    def test_export(self) -> None:
        """The hub as wg-quick would run it: enabled peers with all they have."""
        code, out, err = self.pyvpn("peer", "export", "--private-key")
        self.assertEqual((code, err), (0, "left out because they are disabled: 1\n"))
        conf = parse_conf(out, "out")
        self.assertEqual(
            (conf.private_key, conf.listen_port, list(map(str, conf.addresses))),
            (parse_key(self.private), 5050, ["10.10.0.1/24", "fd12:3456:789a::1/64"]),
        )
        [peer] = conf.peers
        self.assertEqual(
            list(map(str, peer.allowed_ips)),
            ["10.10.0.7/32", "fd12:3456:789a::7/128", "192.168.7.0/24"],
        )
        self.assertEqual(
            (peer.name, peer.public_key, peer.psk, peer.endpoint, peer.keepalive),
            ("phone", parse_key(ONE), parse_key(HUB), "192.0.2.1:51820", 15),
        )

    def test_private_key_only_if_asked(self) -> None:
        """Without --private-key it is not there, but everything else is."""
        whole = self.pyvpn("peer", "export", "--private-key")[1]
        out = self.pyvpn("peer", "export")[1]
        self.assertIn(self.private, whole)
        self.assertNotIn(self.private, out)
        self.assertEqual(parse_conf(out, "out").peers, parse_conf(whole, "whole").peers)


class NameTests(SynchronousTestCase):
    def test_unique(self) -> None:
        """A name is what the comment says, with the key if it is taken, or the key alone."""
        key = parse_key(ONE)
        for name, expected in [
            ("new", "new"),
            ("old", f"old-{ONE[:8]}"),
            ("", f"wg-{ONE[:8]}"),
            ("x" * 32, f"wg-{ONE[:8]}"),
        ]:
            peer = PeerConf(key, name=name)
            self.assertEqual(peers_cli.unique_name(peer, {"old", "x" * 32}), expected)


class WithoutHubTests(CommandTestCase):
    """The same on a state directory, with no fake in between."""

    def test_whole_life(self) -> None:
        """init, add, list, export, import elsewhere, disable, remove: without a running hub."""

        def good(*arguments: str) -> str:
            code, out, err = self.process(*arguments)
            self.assertEqual(code, 0, err)
            return out

        good("init", "--endpoint", "vpn.example.org")
        conf = parse_conf(good("peer", "add", "phone", "--psk"), "out")
        file = self.base / "router.conf"
        good("peer", "add", "router", "--allowed-ips", "192.168.7.0/24", "--output", str(file))
        assert conf.private_key is not None
        public = format_key(login.public_key(conf.private_key))
        listed = good("peer", "list")
        self.assertIn(f"phone   enabled  {public[:8]}  {conf.addresses[0]}", listed)
        exported = good("peer", "export", "--private-key")
        hub = parse_conf(exported, "export")
        self.assertEqual([peer.name for peer in hub.peers], ["phone", "router"])
        assert hub.private_key is not None
        self.assertEqual(login.public_key(hub.private_key), conf.peers[0].public_key)
        self.assertEqual(hub.peers[0].psk, conf.peers[0].psk)
        taken = self.process("peer", "add", "other", "--public-key", public)
        self.assertEqual(taken[0], 1)
        self.assertIn("the WireGuard peer 'phone' has this key", taken[2])

        self.directories[1] = str(self.base / "another")
        good("init", "--endpoint", "vpn2.example.org")
        (self.base / "wg0.conf").write_text(exported)
        good("peer", "import", str(self.base / "wg0.conf"))
        again = parse_conf(good("peer", "export"), "again")
        v4 = [[net for net in peer.allowed_ips if net.version == 4] for peer in hub.peers]
        self.assertEqual(
            [[net for net in peer.allowed_ips if net.version == 4] for peer in again.peers], v4
        )
        self.assertEqual(
            [(peer.name, peer.public_key, peer.psk) for peer in again.peers],
            [(peer.name, peer.public_key, peer.psk) for peer in hub.peers],
        )
        good("peer", "disable", "phone")
        self.assertIn("phone   disabled", good("peer", "list"))
        good("peer", "enable", "phone")
        good("peer", "remove", "phone")
        self.assertNotIn("phone", good("peer", "list"))
