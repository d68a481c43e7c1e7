"""iperf3 between two hosts of a laboratory: a server for one flow, a client, and what came over."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from threehosts import ThreeHosts

from tests.netns.lab import LabError, Process, wait_until

FIRST_PORT = 5201
PORTS = itertools.count(FIRST_PORT)
# iperf3 gives its own end of a test a few seconds more; a VPN that is flooded delays that too.
PATIENCE = 20.0


@dataclass
class Received:
    """What the receiver counted."""

    seconds: float
    bytes: int
    packets: int

    @property
    def gigabits(self) -> float:
        """Gbit/s."""
        return self.bytes * 8 / self.seconds / 1e9

    @property
    def kilopackets(self) -> float:
        """Thousands of datagrams a second."""
        return self.packets / self.seconds / 1e3


class Flow:
    """One run of iperf3, under way from its making on; at the block's end nothing of it is left,
    which would be in the next measurement's way."""

    def __init__(
        self, lab: ThreeHosts, near: str, far: str, address: str, seconds: float, *options: str
    ) -> None:
        port = next(PORTS)
        self._lab = lab
        self._udp = "--udp" in options
        self._seconds = seconds
        # A server of its own for each: one that was left in the middle refuses the next.
        self._server = lab.listening(far, ["iperf3", "-J", "-s", "-1", "-p", str(port)], port)
        words = ["iperf3", "-J", "-c", address, "-p", str(port), "-t", f"{seconds:g}", *options]
        self._client = lab.spawn(near, words, "iperf3")
        self._far = far

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *failure: object) -> None:
        self._client.stop()
        self._server.stop()

    def flowing(self, interface: str, host: str | None = None) -> None:
        """Wait until a megabyte has come (or gone) over the host's interface (the far end's)."""
        where = host or self._far
        start = moved(self._lab, where, interface)
        wait_until(
            lambda: moved(self._lab, where, interface) > start + 1_000_000, "a flow under way", 10
        )

    def result(self) -> Received:
        """Wait for the end; what was received."""
        self._client.wait(self._seconds + PATIENCE)
        if not self._udp:
            return received(self._client)
        report(self._client)  # if that has an error the server may never end
        self._server.wait(PATIENCE)
        return delivered(self._client, self._server)


def received(client: Process) -> Received:
    """Read from the client's report of a TCP flow what the receiver has got."""
    total = report(client)["end"]["sum_received"]
    return Received(total["seconds"], total["bytes"], 0)


def delivered(client: Process, server: Process) -> Received:
    """Read from the reports of a UDP flow what the receiver's process has read.

    The receiver knows of packets by the highest number that it has seen, and says how many of
    these it missed. The client's report has the receiver's missed beside the packets that were
    *sent*: those lost after the last that came would count as delivered there.

    More may have arrived, see :func:`arrivals`: on a machine with few processors the reader is the
    first to fall behind.
    """
    length = report(client)["start"]["test_start"]["blksize"]
    total = report(server)["end"]["sum"]
    packets = total["packets"] - total["lost_packets"]
    return Received(total["seconds"], packets * length, packets)


def report(program: Process) -> dict[str, Any]:
    """What an iperf3 has reported; an error in it is a :class:`LabError`."""
    try:
        told: dict[str, Any] = json.loads(program.text())
    except ValueError:
        raise LabError(f"{program} made no report: {program.text()[-200:]!r}") from None
    if "error" in told:
        raise LabError(f"{program}: {told['error']}")
    return told


def moved(lab: ThreeHosts, host: str, interface: str) -> int:
    """Bytes that the host's interface has received and sent so far."""
    shown = lab.run(host, ["cat", "/proc/net/dev"], check=True).stdout
    for line in shown.splitlines():
        name, _, numbers = line.strip().partition(":")
        if name == interface:
            counts = numbers.split()
            return int(counts[0]) + int(counts[8])
    raise LabError(f"{host} has no interface {interface}")


@contextmanager
def arrivals(lab: ThreeHosts, host: str, interface: str) -> Iterator[list[int]]:
    """Count the iperf3 datagrams that the host's kernel takes in from the interface, whether or not
    a program gets to read them. The list has [packets, bytes] when the block ends; see
    :func:`datagrams`."""
    ports = f"{FIRST_PORT}-65535"
    rules = (
        "table inet arrivals {\n  counter seen {}\n"
        "  chain inside {\n    type filter hook prerouting priority -300;\n"
        f'    iifname "{interface}" udp dport {ports} counter name seen\n  }}\n}}\n'
    )
    lab.run(host, ["nft", "-f", "-"], stdin=rules, check=True)
    counted: list[int] = []
    try:
        yield counted
        shown = lab.run(host, ["nft", "-j", "list", "table", "inet", "arrivals"], check=True)
        for entry in json.loads(shown.stdout)["nftables"]:
            if "counter" in entry:
                counted += [entry["counter"]["packets"], entry["counter"]["bytes"]]
    finally:
        lab.run(host, ["nft", "delete", "table", "inet", "arrivals"])


def datagrams(counted: list[int], length: int) -> float:
    """How many datagrams of `length` bytes that were. A super-packet counts as one packet, with
    one pair of headers (28 bytes: IPv4 and UDP), and with all its datagrams' bytes."""
    packets, size = counted
    return (size - 28 * packets) / length
