"""The whole of PyVPN on one machine: ``sudo make demo``.

Builds the picture (a hub, Kiwi with a web server, Pa with an SSH server, an internet between them)
from network namespaces, runs the real programs in it, and shows in a table what works, how long it
took and how much went through. Afterwards everything is gone.

KEEP=1 in the environment leaves the picture up and says how to enter it. ``--verbose`` shows every
command. ``--remove NAME`` removes a picture that was kept.

Exit status: 0 every scene succeeded, 1 one failed or did not run, 2 none can run on this machine,
130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.netns.lab import HOSTS, INET, Lab, LabError, Process, remove, why_not

PASSED, FAILED, IMPOSSIBLE, INTERRUPTED = 0, 1, 2, 130

PASSWORDS = {"kiwi": "seven green apples", "pa": "a bridge of stones"}
WRONG_PASSWORD = "seven green pears!"
PAGE_SIZE = 8 << 20
# What must be found in the tunnels and nowhere outside. ping repeats 16 bytes of a pattern.
PING_MARKER = b"plain ping bytes"
PAGE_MARKER = b"this page of Kiwi's is plaintext"
SSH_MARKER = b"SSH-2.0-OpenSSH"

PICTURE = """\
                     hub 10.10.0.1, the VPN server
                               |
     198.51.100.2 ------ the internet ------ 2001:db8:1::2
                          |         |
       203.0.113.2 -------'         '------- 2001:db8:3::2
   kiwi 10.10.0.2, a web server         pa 10.10.0.3, an SSH server
"""


@dataclass
class Seen:
    """What a scene has to show: how many bytes it moved (None: no such thing), and a remark."""

    size: int | None
    remark: str


class Demo:
    """The scenes, in their order, over one laboratory."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.captures: dict[str, Process] = {}

    # -- the scenes ---------------------------------------------------------------------------

    def hub_starts(self) -> Seen:
        self.captures[INET] = self.lab.capture(INET, "any", "wire.pcap")
        server = self.lab.start_hub(PASSWORDS)
        return Seen(None, f"two users; resident memory {resident(server.process.pid)}")

    def kiwi_joins(self) -> Seen:
        self.lab.join("kiwi")
        inside = ["--tun-adr", "10.10.0.2", "--tun-dstaddr", "10.10.0.1"]
        client = self.lab.start_client("kiwi", PASSWORDS["kiwi"], *inside, seconds=None)
        first = self.lab.wait_answer("kiwi", "10.10.0.1", 15, client)
        self.captures["kiwi"] = self.lab.capture("kiwi", "leamit0", "tun.pcap")
        return Seen(None, f"client start to first ping answered: {first:.2f} s")

    def wrong_password(self) -> Seen:
        self.lab.join("pa")
        client = self.lab.start_client("pa", WRONG_PASSWORD, seconds=None)
        client.wait_for_text("no answer", 30)
        client.stop()
        asked, answered = self.lab.count_to_hub()["pa"], self.lab.count_from_hub()["pa"]
        expect(asked.packets >= 2, f"pa asked only {asked.packets} times")
        expect(answered == (0, 0), f"the hub sent {answered.bytes} bytes to a wrong password")
        return Seen(0, f"{asked.packets} datagrams to the hub, 0 bytes back")

    def right_password(self) -> Seen:
        hub = f"[{self.lab.hosts['hub'].ipv6}]:5050"
        self.lab.start_client("pa", PASSWORDS["pa"], "--server", hub)
        self.captures["pa"] = self.lab.capture("pa", "leamit0", "tun.pcap")
        answered = self.lab.count_from_hub()["pa"]
        expect(answered.packets > 0, "the counter of the scene before did not move")
        return Seen(answered.bytes, f"the same counter: {answered.packets} datagrams")

    def ping(self, host: str, other: str, version: int) -> Seen:
        address = self.inner(other, version)
        count, size = 20, 1000
        options = ["-s", str(size), "-p", PING_MARKER.hex(), "-i", "0.02"]
        done = self.lab.ping(host, address, *options, count=count)
        lost = re.search(r"([\d.]+)% packet loss", done.stdout)
        times = re.search(r"= [\d.]+/([\d.]+)/", done.stdout)
        expect(done.returncode == 0 and lost and times, done.stdout + done.stderr)
        assert lost is not None and times is not None
        expect(float(lost[1]) == 0, f"{lost[1]} % lost")
        return Seen(2 * count * (size + 8), f"{count} answered, {float(times[1]):.2f} ms each")

    def http(self, version: int) -> Seen:
        pages = self.lab.directory / "kiwi" / "pages"
        if not pages.exists():
            pages.mkdir()
            (pages / "page.txt").write_bytes(page())
            self.lab.start_web("kiwi", pages)
        got = self.lab.directory / "pa" / f"page{version}.txt"
        address = self.inner("kiwi", version)
        url = f"http://{f'[{address}]' if version == 6 else address}/page.txt"
        figures = ["-w", "%{speed_download}"]
        done = self.lab.run("pa", ["curl", "-sS", "-o", got, *figures, url], check=True)
        asked, found = digest(pages / "page.txt"), digest(got)
        expect(asked == found, f"SHA-256 {found} came, {asked} was sent")
        speed = float(done.stdout) * 8 / 1e6
        return Seen(got.stat().st_size, f"SHA-256 {found[:12]}… is the same; {speed:.0f} Mbit/s")

    def ssh(self, version: int) -> Seen:
        if not (self.lab.directory / "pa" / "sshd_config").exists():
            self.lab.start_ssh("pa")
        command = ["ip", "-brief", "address", "show", "leamit0"]
        argv = self.lab.ssh("kiwi", "pa", self.inner("pa", version), *command)
        said = self.lab.run("kiwi", argv, check=True).stdout
        expect("10.10.0.3" in said, f"the command said {said!r}")
        return Seen(len(said), f"'{' '.join(command)}' ran on 10.10.0.3")

    def secrecy(self) -> Seen:
        inside = {name: self.lab.captured(self.captures[name]) for name in ("kiwi", "pa")}
        wire = self.lab.captured(self.captures[INET])
        for marker in (PING_MARKER, PAGE_MARKER, SSH_MARKER):
            for name, recorded in inside.items():
                expect(marker in recorded, f"{marker!r} is not in the capture of {name}'s tunnel")
            expect(marker not in wire, f"{marker!r} is on the wire in plain text")
        hub = self.lab.hosts["hub"]
        for address in (hub.ipv4, hub.ipv6):
            expect(
                ip_address(address).packed in wire,
                f"{address} was not captured",
            )
        return Seen(len(wire), "no plaintext outside; all three kinds in both tunnels")

    # -- what they share ----------------------------------------------------------------------

    def inner(self, host: str, version: int) -> str:
        return self.lab.hosts[host].inner4 if version == 4 else self.lab.inner6(host)

    def scenes(self) -> Iterator[tuple[str, bool, Callable[[], Seen]]]:
        """Every scene: its name, whether the ones after it make no sense without it, itself."""
        yield "hub starts", True, self.hub_starts
        yield "kiwi joins, with the 2017 command line", True, self.kiwi_joins
        yield "pa with a wrong password: silence", False, self.wrong_password
        yield "pa with the right one, over IPv6 outside", True, self.right_password
        for version in (4, 6):
            for one, other in (("hub", "kiwi"), ("pa", "hub"), ("kiwi", "pa"), ("pa", "kiwi")):
                name = f"ping {one} → {other}, IPv{version}"
                yield name, False, partial(self.ping, one, other, version)
        for version in (4, 6):
            yield f"HTTP pa ← kiwi, IPv{version}", False, partial(self.http, version)
        for version in (4, 6):
            yield f"SSH kiwi → pa, IPv{version}", False, partial(self.ssh, version)
        yield "the internet sees no plaintext", False, self.secrecy


def expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise LabError(otherwise)


def page() -> bytes:
    line = b"%08d " + PAGE_MARKER + b"\n"
    return b"".join(line % number for number in range(PAGE_SIZE // len(line % 0)))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resident(pid: int) -> str:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return f"{int(found[1]) / 1024:.0f} MiB" if found else "unknown"


def amount(size: int | None) -> str:
    if size is None:
        return "–"
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


ROW = "{:<42} {:<8} {:>7} {:>10}  {}"


def play(demo: Demo) -> int:
    """Run every scene and print its row; how many failed or did not run."""
    print(ROW.format("scene", "result", "time", "size", "seen"))
    bad = 0
    pointless = False
    for name, needed, scene in demo.scenes():
        if pointless:
            bad += 1
            print(ROW.format(name, "NOT RUN", "–", "–", "a scene that it needs has failed"))
            continue
        start = time.monotonic()
        try:
            seen = scene()
            result, size, remark = "ok", amount(seen.size), seen.remark
        except LabError as failure:
            result, size, remark = "FAILED", "–", str(failure)
            bad += 1
            pointless = needed
        took = f"{time.monotonic() - start:.2f} s"
        print(ROW.format(name, result, took, size, remark), flush=True)
    return bad


def say_how_to_enter(lab: Lab) -> None:
    print("\nKEEP=1: the picture stays up. To enter a host:")
    for name in (INET, *(host.name for host in HOSTS)):
        print(f"  {name:5} sudo ip netns exec {lab.namespace(name)} bash")
    print(f"Logs and state are in {lab.directory}. To remove all of it:")
    print(f"  sudo {sys.executable} {Path(__file__).resolve()} --remove {lab.keep()}")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt(number: int, frame: object) -> NoReturn:
    ignore_signals()
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """What follows is the clean-up: it must come to its end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--verbose", action="store_true", help="show every command")
    parser.add_argument("--remove", metavar="NAME", help="remove a picture that KEEP=1 left")
    options = parser.parse_args()
    if options.remove:
        remove(options.remove)
        return PASSED
    reason = why_not()
    if reason is not None:
        print(f"the demo cannot run here: {reason}", file=sys.stderr)
        return IMPOSSIBLE
    echo = print if options.verbose else lambda line: None
    start = time.monotonic()
    print(PICTURE)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        with Lab(echo=echo) as lab:
            bad = play(Demo(lab))
            ignore_signals()
            if os.environ.get("KEEP", "0") not in ("", "0"):
                say_how_to_enter(lab)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is removed", file=sys.stderr)
        return INTERRUPTED
    except LabError as error:
        print(f"the picture could not be built: {error}", file=sys.stderr)
        return FAILED
    print(f"\n{'all scenes succeeded' if not bad else f'{bad} scenes failed'}", end="")
    print(f" in {time.monotonic() - start:.1f} s")
    return FAILED if bad else PASSED


if __name__ == "__main__":
    sys.exit(main())
