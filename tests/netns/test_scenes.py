"""The quick scenes of tests/scenes, with real programs all around, and their runner."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import why_not
from tests.netns.processes import search_path
from tests.scenes.__main__ import main, play, play_all
from tests.scenes.ends import parse_dump
from tests.scenes.scenes import LIST, NETWORKS, QUICK, QUICK_NETWORKS, Scene, scenes
from tests.scenes.tunnel import shown_endpoint
from tests.scenes.wire import COOKIE_REPLY, DATA, INITIATION, datagrams

PROGRAMS = ("wireguard-go", "wg", "wg-quick", "tcpdump", "ethtool", "dnsmasq", "udhcpc", "curl")


class QuickScenes(SynchronousTestCase):
    """One test a scene; their sentences are the scenes' own."""

    def setUp(self) -> None:
        reason = why_not()
        missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
        if reason is None and missing:
            reason = f"missing commands: {', '.join(missing)} (make deps installs them)"
        if reason is not None:
            required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
            raise (self.failureException if required else SkipTest)(reason)


def _test_of(scene: Scene) -> Callable[[QuickScenes], None]:
    def test(self: QuickScenes) -> None:
        wrong = play(scene)
        if wrong is not None:
            self.fail(f"{scene.name}: {wrong}")

    test.__doc__ = scene.act.__doc__
    return test


for _scene in scenes({}):
    if _scene.quick:
        _name = f"test_{_scene.act.__name__}_{_scene.client}_to_{_scene.server}"
        _name = re.sub(r"\W", "_", _name)
        _test = _test_of(_scene)
        _test.__name__ = _name
        setattr(QuickScenes, _name, _test)


def nobody(lab: object, client: str, server: str) -> None:
    """Stands for a scene whose process is another."""


def fake(name: str, seconds: int = 10) -> Scene:
    return Scene(name, nobody, "a", "b", False, seconds)


class RunnerTests(SynchronousTestCase):
    """What counts as passed."""

    def played(self, programs: dict[str, str]) -> tuple[int, list[str]]:
        """The exit status and the lines for scenes that are these Python programs."""
        printed = io.StringIO()
        chosen = [fake(name, 0 if name == "hangs" else 10) for name in programs]
        with contextlib.redirect_stdout(printed):
            status = play_all(chosen, 2, lambda scene: [sys.executable, "-c", programs[scene.name]])
        return status, printed.getvalue().splitlines()

    def test_all_passed(self) -> None:
        """Scenes that end with 0 and say so have passed, and so has the whole."""
        status, lines = self.played({name: f"print('passed: {name}')" for name in ("x", "y", "z")})
        self.assertEqual((status, lines[-1]), (0, "3 passed, 0 failed"))

    def test_what_has_failed(self) -> None:
        """A scene that fails, ends by a signal, takes too long, ends without a verdict or says
        that another has passed, has failed, each with its reason; the others are played."""
        status, lines = self.played(
            {
                "good": "print('passed: good')",
                "bad": "print('the reason'); raise SystemExit(1)",
                "killed": "import os; os.kill(os.getpid(), 9)",
                "hangs": "import time; print('passed: hangs', flush=True); time.sleep(60)",
                "mute": "",
                "other": "print('passed: good')",
                "lies": "print('passed: lies'); raise SystemExit(1)",
            }
        )
        self.assertEqual((status, lines[-1]), (1, "1 passed, 6 failed"))
        text = "\n".join(lines)
        for reason in ("the reason", "status -9", "more than 0 s", "status 0"):
            self.assertIn(f"\n    {reason}" if reason == "the reason" else reason, text)

    def test_cannot_be_played(self) -> None:
        """A scene whose process cannot even be started has failed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = play_all([fake("x")], 1, lambda scene: ["/nonexistent/program"])
        self.assertEqual(status, 1)
        self.assertEqual(printed.getvalue().splitlines()[-1], "0 passed, 1 failed")

    def test_nothing_chosen(self) -> None:
        """No scene at all is no success: a word that names none must not look like one."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = play_all([], 1)
        self.assertEqual((status, printed.getvalue()), (1, "0 passed, 0 failed\n"))

    def test_list(self) -> None:
        """Scenes have names of their own, every one of the list is there, and ``--list`` shows
        them; those with a newer wireguard-go are there where one is named."""
        here, both = scenes({}), scenes({"WIREGUARD_GO": "/somewhere"})
        names = [scene.name for scene in both]
        self.assertEqual(len(set(names)), len(names))
        known = {act for _, act, _, _ in (*LIST, *NETWORKS)}
        self.assertEqual({scene.act for scene in here}, known)
        self.assertTrue(set(here) < set(both))
        quick = {(each.act, each.client, each.server) for each in here if each.quick}
        of_networks = {(act, options, "quick") for act, options in QUICK_NETWORKS}
        self.assertEqual(quick, QUICK | of_networks)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.assertEqual(main(["--list", "--only", "rekey is not what it is called"]), 0)
            self.assertEqual(main(["--list", "--only", "new keys", "--only", "to hub"]), 0)
        self.assertIn("new keys across 120 s: wireguard-go to hub\n", printed.getvalue())


class ReadingTests(SynchronousTestCase):
    """What the scenes read."""

    def recording(self, *frames: bytes) -> bytes:
        head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        packets = [struct.pack("<IIII", 7, 500_000, len(f), len(f)) + f for f in frames]
        return head + b"".join(packets)

    def ipv4(self, payload: bytes, fragment: int = 0) -> bytes:
        udp = struct.pack("!HHHH", 51820, 5050, 8 + len(payload), 0) + payload
        addresses = bytes((203, 0, 113, 2, 198, 51, 100, 2))
        total = 20 + len(udp)
        head = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, fragment, 64, 17, 0) + addresses
        return bytes(12) + b"\x08\x00" + head + udp

    def ipv6(self, payload: bytes) -> bytes:
        udp = struct.pack("!HHHH", 51820, 5050, 8 + len(payload), 0) + payload
        return (
            bytes(12)
            + b"\x86\xdd"
            + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64)
            + (bytes(15) + b"\1" + bytes(15) + b"\2" + udp)
        )

    def test_datagrams(self) -> None:
        """Datagrams of both families are found with their ends, time and kind, and nothing else:
        no ARP, no fragment, no message of a wrong length or with reserved bytes set."""
        initiation = b"\1\0\0\0" + bytes(128) + bytes(15) + b"\1"
        frames = [
            self.ipv4(initiation),
            self.ipv6(b"\4\0\0\0" + bytes(28)),
            bytes(12) + b"\x08\x06" + bytes(40),
            self.ipv4(initiation, fragment=0x2000),
            self.ipv4(b"\3\0\0\0" + bytes(60)),
            self.ipv4(initiation[:-1]),
            self.ipv4(b"\4\1\0\0" + bytes(28)),
        ]
        found = list(datagrams(self.recording(*frames)))
        self.assertEqual([each.kind for each in found], [INITIATION, DATA, COOKIE_REPLY, 0, 0])
        self.assertEqual([each.has_cookie for each in found], [True, *[False] * 4])
        first = found[0]
        self.assertEqual((str(first.source), first.source_port), ("203.0.113.2", 51820))
        self.assertEqual((str(first.target), first.target_port), ("198.51.100.2", 5050))
        self.assertEqual((first.at, first.data), (7.5, initiation))
        self.assertEqual((str(found[1].source), str(found[1].target)), ("::1", "::2"))

    def test_dump(self) -> None:
        """What ``wg show IFACE dump`` prints, with and without what a peer may lack."""
        text = (
            "private\tpublic\t51820\toff\n"
            "one\tpsk\t192.0.2.1:7\t10.0.0.2/32,fd00::2/128\t12\t34\t56\t25\n"
            "two\t(none)\t(none)\t(none)\t0\t0\t0\toff\n"
        )
        shown = parse_dump(text)
        self.assertEqual((shown.private_key, shown.public_key), ("private", "public"))
        self.assertEqual((shown.port, shown.mark), (51820, "off"))
        self.assertEqual(shown.peers["one"].allowed_ips, {"10.0.0.2/32", "fd00::2/128"})
        self.assertEqual(shown.peers["one"][4:], (12, 34, 56, "25"))
        self.assertEqual(shown.peers["two"].allowed_ips, frozenset())
        self.assertEqual(shown_endpoint("[2001:db8::1]:9"), ("2001:db8::1", 9))
        self.assertEqual(shown_endpoint("192.0.2.1:7"), ("192.0.2.1", 7))
