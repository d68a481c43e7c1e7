"""A flood on the hub from spoofed addresses, and what is left for others under it.

::

      kiwi ── established, sends by TCP ──┐
                                          ├── inet ── hub
      pa ──── logs in for the first time ─┤
                                          │
      inet itself: the flood, from addresses of 100.64.0.0/10, which nobody has

Run as a program it is the flood: ``attack.py HUB PORT STATE_DIR SECONDS STRANGERS LOGINS``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pyvpn.core.cookies import with_macs
from pyvpn.core.login import NetworkKeys
from pyvpn.token import NetworkToken
from tests.netns.lab import INET, PORT, Lab, Process

# Datagrams a second (PROTOCOL 8's worst day): without a right mac1, and with one.
STRANGERS, LOGINS = 5_000, 2_000
PASSWORDS = {"kiwi": "correct horse kiwi", "pa": "correct horse pa"}
INNER_PORT = 7000

_SINK = """
import socket, sys, time
server = socket.create_server(("10.10.0.1", {port}))
print("listens", flush=True)
connection, _ = server.accept()
buffer, count, told = bytearray(1 << 18), 0, 0.0
while got := connection.recv_into(buffer):
    count += got
    if time.monotonic() - told >= 0.02:
        told = time.monotonic()
        print(told, count, flush=True)
"""
_SOURCE = """
import socket, time
connection = socket.create_connection(("10.10.0.1", {port}))
began, sent, pace = time.monotonic(), 0, {megabits} * 125000
while True:
    connection.sendall(bytes(1 << 15))
    sent += 1 << 15
    if pace:
        time.sleep(max(0, began + sent / pace - time.monotonic()))
"""


@frozen
class Found:
    """What was measured: medians in Mbit/s, seconds, and the flood's datagrams a second as counted
    by the hub: those of strangers, and those that it asked for a cookie."""

    quiet: float
    flooded: float
    login: float
    strangers: float
    logins: float

    @property
    def share(self) -> float:
        """What is left of the goodput, in per cent."""
        return 100 * self.flooded / self.quiet


def measure(
    lab: Lab, *, rounds: int, seconds: float, megabits: int = 0, favoured: bool = False
) -> Found:
    """Have Kiwi send, measure ``rounds`` times without and with the flood, let Pa log in under it.

    :param seconds: the length of each measurement.
    :param megabits: how much Kiwi sends in a second, 0: as much as it can.
    :param favoured: whether all of this goes before whatever else the machine has to do.
    """
    hub = lab.start_hub(PASSWORDS)
    for host in PASSWORDS:
        lab.join(host)
    lab.start_client("kiwi", PASSWORDS["kiwi"])
    # The internet swallows what goes to an address that nobody has; a lab's router would complain.
    lab.run(INET, ["ip", "route", "add", "blackhole", "100.64.0.0/10"], check=True)
    sink = lab.spawn("hub", [sys.executable, "-c", _SINK.format(port=INNER_PORT)], "sink")
    sink.wait_for_text("listens")
    source = _SOURCE.format(port=INNER_PORT, megabits=megabits)
    lab.spawn("kiwi", [sys.executable, "-c", source], "source")
    sink.wait_for_text(r"\d\n")
    if favoured:
        for pid in (os.getpid(), *(process.pid for process in lab.processes)):
            favour(pid)
    quiet, flooded, logins = [], [], []
    login = 0.0
    for number in range(rounds):
        quiet.append(_goodput(sink, seconds))
        with _flood(lab, hub.state_dir, favoured) as rates:
            flooded.append(_goodput(sink, seconds))
            if number == 0:
                client = lab.start_client("pa", PASSWORDS["pa"], seconds=None)
                if favoured:
                    favour(client.pid)
                login = lab.wait_answer("pa", lab.hosts["hub"].inner4, 30, client)
        logins.append(rates)
    strangers, cookies = (statistics.median(rate) for rate in zip(*logins, strict=True))
    return Found(statistics.median(quiet), statistics.median(flooded), login, strangers, cookies)


@contextlib.contextmanager
def _flood(lab: Lab, state_dir: Path, favoured: bool) -> Iterator[list[float]]:
    """Flood the hub; the list holds the rates that it counted when the flood is over."""
    before, rates = _counters(lab), list[float]()
    hub, port = lab.hosts["hub"].ipv4, str(PORT)
    argv = [sys.executable, Path(__file__).resolve(), hub, port, state_dir, "100"]
    process = lab.spawn(INET, [*argv, str(STRANGERS), str(LOGINS)], "flood")
    if favoured:
        favour(process.pid)
    under = "under_load"
    process.wait_until(lambda: _counters(lab)[under] > before[under], "load at the hub", 15)
    before, began = _counters(lab), time.monotonic()
    yield rates
    after, ended = _counters(lab), time.monotonic()
    process.stop()
    for name in ("mac1_invalid", "cookie_demanded"):
        rates.append((after[name] - before[name]) / (ended - began))


def favour(pid: int) -> None:
    """Have a process go before those of other sessions, whose nice values do not compare."""
    os.setpriority(os.PRIO_PROCESS, pid, -19)
    with contextlib.suppress(OSError):  # a kernel without autogroups: nice values do compare
        Path(f"/proc/{pid}/autogroup").write_text("-19")


def _goodput(sink: Process, seconds: float) -> float:
    """Mbit/s that the sink gets over some seconds."""
    begin = _progress(sink.text())

    def enough() -> tuple[float, int] | None:
        end = _progress(sink.text())
        return end if end[0] - begin[0] >= seconds else None

    end = sink.wait_until(enough, "traffic", 4 * seconds + 10)
    return (end[1] - begin[1]) * 8e-6 / (end[0] - begin[0])


def _progress(text: str) -> tuple[float, int]:
    """The sink's last whole line: when, and how many bytes by then."""
    when, count = text[: text.rindex("\n")].splitlines()[-1].split()
    return float(when), int(count)


def _counters(lab: Lab) -> dict[str, int]:
    names = ("mac1_invalid", "cookie_demanded", "under_load")
    status = json.loads(lab.pyvpn("hub", "status", "--json").stdout)
    counters = status["server"]["counters"]
    return {name: counters.get(name, 0) for name in names}


def flood(hub: str, port: int, state_dir: Path, seconds: float, rates: tuple[int, int]) -> None:
    """Send both kinds at their rates, evenly spread, each from another address."""
    token = NetworkToken.from_text((state_dir / "network.token").read_text().strip())
    keys = NetworkKeys.derive(token.login_public, token.network_secret)
    strangers = [b"\x50\1\0\0" + os.urandom(204) for _ in range(256)]
    logins = [with_macs(b"\x50\1\0\0" + os.urandom(172), keys.mac1_to_server) for _ in range(256)]
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    target, sent = socket.inet_aton(hub), 0
    kinds = [strangers, logins]
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        for _ in range(int(elapsed * sum(rates)) - sent):
            messages = random.choices(kinds, rates)[0]
            datagram = messages[sent & 255]
            source = struct.pack("!I", 100 << 24 | 64 << 16 | random.getrandbits(22))
            ip = struct.pack("!BBHHHBBH4s4s", 69, 0, 236, 0, 0, 64, 17, 0, source, target)
            udp = struct.pack("!HHHH", 1024 + (sent & 0x7FFF), port, 216, 0)
            raw.sendto(ip + udp + datagram, (hub, 0))
            sent += 1
        time.sleep(0.001)


if __name__ == "__main__":
    flood(
        *(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])),
        (int(sys.argv[5]), int(sys.argv[6])),
    )
