"""Our reading of WireGuard's files against that of the real ``wg-quick`` and ``wg``.

Each file goes through ``wg-quick strip`` and ``wg setconf`` to a wireguard-go, and comes back by
``wg showconf``.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from unittest import SkipTest

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import ConfigError
from pyvpn.wgconf import NO_PSK, PeerConf, WireGuardConf, format_conf, format_key, parse_conf
from tests.netns.namespaces import why_not
from tests.netns.processes import search_path

PATIENCE = 60  # seconds for all files of a test
# Everything in it dies with the first process, which dies with this one.
OWN_WORLD = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
)
# For each file of the directory $1 in $1/*.answer: nothing if it was refused, else what is shown.
SCRIPT = """
set -u
mount -t proc none /proc && mount -t tmpfs none /run || exit 70
wireguard-go -f wg0 </dev/null >"$1/log" 2>&1 &
for wait in $(seq 100); do [ -S /run/wireguard/wg0.sock ] && break; sleep 0.1; done
for file in "$1"/*.conf; do
    wg-quick strip "$file" >"$1/stripped" && wg setconf wg0 "$1/stripped" || continue
    wg showconf wg0 >"$file.answer" || exit 71
done
"""
PRIVATE, ONE, TWO = (format_key(bytes([8]) * 31 + bytes([byte])) for byte in (64, 1, 2))
PEER = f"[Peer]\nPublicKey = {ONE}\n"

# Whether wg takes it is found out, not written here: we do the same.
SAME = [
    "",
    "# nothing\n\n",
    "[Interface]\n",
    f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 51820\n",
    f" [interface] # here\r\nPRIVATEKEY={PRIVATE}\r\nlistenport\t=\t51820 # there\r\n",
    f"[Interface]\nPrivateKey = {PRIVATE}\n[Interface]\nListenPort = 5\n",
    f"[ Peer ]\nPublic Key = {ONE}\n",
    f"PrivateKey = {PRIVATE}\n",
    f"[Interface]\nPrivateKey = {PRIVATE[:-2]}B=\n",
    f"[Interface]\nPrivateKey = {PRIVATE[:-1]}\n",
    "[Interface]\nPrivateKey = \n",
    f"[Interface]\nPrivateKey = {PRIVATE[:20]} {PRIVATE[20:]}\n",
    "[Interface]\nListenPort = -1\n",
    "[Interface]\nListenPort = nonsense\n",
    "[Interface]\nListenPort =\n",
    "[Interface]\nFwMark = off\n",
    "[Interface]\nFwMark = 0x1F\n",
    "[Interface]\nFwMark = 31\n",
    "[Interface]\nFwMark = 0x\n",
    "[Interface]\nFwMark = 0x100000000\n",
    "[Interface]\nFwMark = 4294967296\n",
    "[Interface]\nNonsense = 1\n",
    "[Interface]\nnonsense\n",
    "[Nonsense]\n",
    f"[Interface]\nPublicKey = {ONE}\n",
    "[Interface]\nAddress = 10.0.0.1/24\nDNS = 1.1.1.1, lan\nMTU = 1400\nTable = off\n"
    "PostUp = true; true\nSaveConfig = true\n",
    "[Interface]\nSaveConfig = perhaps\n",
    "[Peer]\n",
    PEER,
    PEER + "AllowedIPs = 10.0.0.1, ::1, 10.1.2.3/16,fd00::5/64\n",
    PEER + "AllowedIPs = 10.0.0.1\nAllowedIPs = 10.0.0.2\n",
    PEER + "AllowedIPs = 0.0.0.0/0, ::/0\n",
    PEER + "AllowedIPs = 10.0.0.0/33\n",
    PEER + "AllowedIPs = 10.0.0/24\n",
    PEER + "AllowedIPs = 10.0.0.0/255.0.0.0\n",
    PEER + "AllowedIPs = 10.0.0.0/\n",
    PEER + "AllowedIPs = 10.0.0.0/-1\n",
    PEER + "AllowedIPs = 10.0.0.1,,10.0.0.2\n",
    PEER + "AllowedIPs = 010.0.0.1\n",
    PEER + "AllowedIPs = fe80::1%lo\n",
    PEER + "AllowedIPs = ::ffff:10.0.0.1\n",
    PEER + "Endpoint = 192.0.2.1:5\n",
    PEER + "Endpoint = [2001:db8::1]:5\n",
    PEER + "Endpoint = 2001:db8::1:5\n",
    PEER + "Endpoint = 192.0.2.1\n",
    PEER + "Endpoint = 192.0.2.1:\n",
    PEER + "Endpoint = [2001:db8::1]\n",
    PEER + "Endpoint = [2001:db8::1\n",
    PEER + "Endpoint = \n",
    PEER + "PersistentKeepalive = 25\n",
    PEER + "PersistentKeepalive = OFF\n",
    PEER + "PersistentKeepalive = 65535\n",
    PEER + "PersistentKeepalive = 65536\n",
    PEER + "PersistentKeepalive = 25s\n",
    PEER + "PersistentKeepalive = -1\n",
    PEER + f"PresharedKey = {TWO}\n",
    PEER + f"PresharedKey = {format_key(NO_PSK)}\n",
    PEER + "PresharedKey = (none)\n",
    PEER + "Address = 10.0.0.1\n",
    PEER + "[Interface]\nListenPort = 7\n",
    PEER + f"[Peer]\nPublicKey = {TWO}\nAllowedIPs = 10.0.0.1\n",
]
# What wg takes and we refuse: it is a mistake, and it would be found later, or never.
STRICTER = [
    PEER + PEER,
    "[Interface]\nMTU = big\n",
    "[Interface]\nAddress = nonsense\n",
]


def plain(conf: WireGuardConf) -> WireGuardConf:
    """What wg knows of a file, in an order that does not depend on its."""
    peers = [
        evolve(peer, name="", allowed_ips=tuple(sorted(peer.allowed_ips, key=str)))
        for peer in conf.peers
    ]
    return WireGuardConf(
        private_key=conf.private_key,
        listen_port=conf.listen_port or None,
        fwmark=conf.fwmark,
        peers=tuple(sorted(peers, key=lambda peer: peer.public_key)),
    )


def made_up(source: random.Random) -> WireGuardConf:
    """A configuration with something of everything; no network at two peers."""
    peers = []
    for number in range(source.randrange(5)):
        nets = {
            ip_network(f"10.{number}.{source.randrange(256)}.0/{source.randrange(24, 33)}"),
            ip_network((source.getrandbits(128), source.randrange(100, 129)), strict=False),
        }
        peers.append(
            PeerConf(
                source.randbytes(32),
                psk=source.choice([NO_PSK, source.randbytes(32)]),
                allowed_ips=tuple(nets),
                endpoint=source.choice([None, "192.0.2.7:65535", "[2001:db8::7]:1"]),
                keepalive=source.choice([0, 1, 65535]),
                name=source.choice(["", "laptop"]),
            )
        )
    key = source.randbytes(32)  # wireguard-go shows it as its cryptography uses it
    return WireGuardConf(
        private_key=bytes((key[0] & 248, *key[1:31], key[31] & 127 | 64)),
        addresses=(IPv4Interface("10.0.0.1/24"), IPv6Interface("fd00::1/64")),
        listen_port=source.randrange(20000, 30000),
        search=("lan",),
        mtu=1400,
        table="off",
        fwmark=source.choice([0, 7, 2**32 - 1]),
        commands=(("PostUp", "echo %i = up"), ("PreDown", "true")),
        peers=tuple(peers),
    )


class RealWgTests(SynchronousTestCase):
    def setUp(self) -> None:
        reason = why_not()
        missing = [
            name
            for name in ("wg", "wg-quick", "wireguard-go", "unshare", "setpriv")
            if shutil.which(name, path=search_path()) is None
        ]
        if reason is None and missing:
            reason = f"missing commands: {', '.join(missing)}"
        if reason is not None:
            required = os.environ.get("PYVPN_REQUIRE_NETNS") == "1"
            raise (self.failureException if required else SkipTest)(reason)

    def shown(self, texts: list[str]) -> list[str | None]:
        """What ``wg showconf`` says after each file; None where it was refused."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(mode=0o700)
        files = [directory / f"{number:05}.conf" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, newline="")
            file.chmod(0o600)
        done = subprocess.run(
            [*OWN_WORLD, "sh", "-c", SCRIPT, "sh", str(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": search_path(), "WG_ENDPOINT_RESOLUTION_RETRIES": "0"},
            timeout=PATIENCE,
            check=False,
        )
        answers = [file.with_name(file.name + ".answer") for file in files]
        self.assertIn(done.returncode, (0, 1), done.stderr)
        self.assertTrue(any(answer.exists() for answer in answers), done.stderr)
        return [answer.read_text() if answer.exists() else None for answer in answers]

    def test_same_verdict(self) -> None:
        """What wg takes we take, with the same meaning; what it refuses we refuse."""
        verdicts = []
        for text, shown in zip(SAME, self.shown(SAME), strict=True):
            with self.subTest(text):
                if shown is None:
                    self.assertRaises(ConfigError, parse_conf, text, "x")
                else:
                    theirs = plain(parse_conf(shown, "shown"))
                    ours = plain(parse_conf(text, "x"))
                    if ours.listen_port is None:  # then any
                        theirs = evolve(theirs, listen_port=None)
                    self.assertEqual(ours, theirs)
                verdicts.append(shown is not None)
        self.assertGreater(verdicts.count(True), 20)
        self.assertGreater(verdicts.count(False), 20)

    def test_stricter(self) -> None:
        """What we refuse though wg takes it, so that the list above is known to be whole."""
        for text, shown in zip(STRICTER, self.shown(STRICTER), strict=True):
            with self.subTest(text):
                self.assertIsNotNone(shown)
                self.assertRaises(ConfigError, parse_conf, text, "x")

    def test_what_we_write(self) -> None:
        """wg-quick and wg read each file of ours as we mean it."""
        source = random.Random(5)
        confs = [made_up(source) for _ in range(40)]
        for conf, shown in zip(confs, self.shown([format_conf(c) for c in confs]), strict=True):
            assert shown is not None, format_conf(conf)
            self.assertEqual(plain(parse_conf(shown, "shown")), plain(conf))
