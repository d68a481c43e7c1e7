"""What is measured: each measurement takes a running system and seconds, and gives figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from iperf import Flow, Received, arrivals, datagrams
from pings import Pings, flood, percentile
from systems import System
from threehosts import HUB, A, C
from usage import cpu_seconds, resident

from tests.netns.lab import LabError

GIB = 2**30

#: unit of each figure, in the order in which tables show them, and what it is
UNITS: dict[str, tuple[str, str]] = {
    "tcp-1": ("Gbit/s", "TCP, 1 flow"),
    "tcp-4": ("Gbit/s", "TCP, 4 flows"),
    "tcp-reverse": ("Gbit/s", "TCP, 1 flow, from the far end"),
    "tcp-ipv6": ("Gbit/s", "TCP over IPv6, 1 flow"),
    "udp-64": ("kpps", "64-byte UDP packets that the far program read"),
    "udp-64-arrived": ("kpps", "the same, arrived at the far kernel"),
    "udp-1200": ("kpps", "1200-byte UDP packets that the far program read"),
    "udp-1200-arrived": ("kpps", "the same, arrived at the far kernel"),
    "rtt-idle-p50": ("µs", "round trip, idle, median"),
    "rtt-idle-p99": ("µs", "round trip, idle, 99th percentile"),
    "rtt-flood": ("µs", "round trip, flood of pings, mean"),
    "rtt-load-p50": ("µs", "a client's round trip beside its own TCP to the hub, median"),
    "rtt-load-p99": ("µs", "the same, 99th percentile"),
    "rtt-second-p50": ("µs", "a second client's round trip meanwhile, median"),
    "rtt-second-p99": ("µs", "the same, 99th percentile"),
    "rtt-load-down-p50": ("µs", "a client's round trip beside its own TCP from the hub, median"),
    "rtt-load-down-p99": ("µs", "the same, 99th percentile"),
    "rtt-second-down-p50": ("µs", "a second client's round trip meanwhile, median"),
    "rtt-second-down-p99": ("µs", "the same, 99th percentile"),
    "cpu-per-gib": ("s/GiB", "processor time of both ends, TCP, 1 flow"),
    "rss": ("MiB", "resident memory of all its processes, after the flows"),
    "rss-hub": ("MiB", "the same of the hub alone"),
    "loss-0": ("Mbit/s", "TCP, 1 flow, datagrams cut on the wire, no loss"),
    "loss-0.1": ("Mbit/s", "the same, 0.1 % of datagrams lost each way"),
    "loss-1": ("Mbit/s", "the same, 1 % lost"),
    "loss-5": ("Mbit/s", "the same, 5 % lost"),
    "loss-1-cubic": ("Mbit/s", "1 % lost, with the congestion control of most machines"),
    "fair-tcp": ("Gbit/s", "TCP of a second client while the first floods UDP"),
    "fair-rtt-p50": ("µs", "its round trip meanwhile, median"),
    "fair-rtt-p99": ("µs", "its round trip meanwhile, 99th percentile"),
}

Figures = Iterator[tuple[str, float]]


def tcp(figure: str, *options: str, version: int = 4) -> Callable[[System, float], Figures]:
    """TCP from the near to the far end."""

    def measure(system: System, seconds: float) -> Figures:
        yield figure, flow(system, seconds, *options, version=version).gigabits

    return measure


def tcp_with_cpu(system: System, seconds: float) -> Figures:
    """TCP, one flow, and the processor time that it cost."""
    pids = system.processes()
    before = cpu_seconds(pids)
    received = flow(system, seconds)
    yield "tcp-1", received.gigabits
    if pids:
        yield "cpu-per-gib", (cpu_seconds(pids) - before) / (received.bytes / GIB)


def udp(length: int) -> Callable[[System, float], Figures]:
    """UDP as fast as the near end can send it; most of it is lost, before or behind the VPN."""

    def measure(system: System, seconds: float) -> Figures:
        lab, far = system.lab, system.far
        options = ("--udp", "--length", str(length), "--bitrate", "0")
        with arrivals(lab, far, system.interface(far)) as counted:
            received = flow(system, seconds, *options)
        came = datagrams(counted, length)
        # The two counts know nothing of each other (1: iperf3's greeting, and rounding).
        if received.packets > came + 1:
            raise LabError(f"{received.packets} packets were read, of {came:.0f} that arrived")
        yield f"udp-{length}", received.kilopackets
        yield f"udp-{length}-arrived", came / received.seconds / 1e3

    return measure


def idle(system: System, seconds: float) -> Figures:
    """Pings with nothing else."""
    address = system.address(system.far, system.near)
    times = Pings(system.lab, system.near, address, seconds).round_trips()
    yield "rtt-idle-p50", percentile(times, 50)
    yield "rtt-idle-p99", percentile(times, 99)


def flood_of_pings(system: System, seconds: float) -> Figures:
    """Pings, one as soon as the other is answered."""
    address = system.address(system.far, system.near)
    yield "rtt-flood", flood(system.lab, system.near, address, seconds)


def beside_bulk(direction: str, *options: str) -> Callable[[System, float], Figures]:
    """Pings of both clients to the hub, at once, while the first is busy with TCP."""

    def measure(system: System, seconds: float) -> Figures:
        # Longer than the pings, which begin when it flows.
        kinds = {A: "load", C: "second"}
        with between(system, A, HUB, seconds + 2, *options) as bulk:
            bulk.flowing(system.interface(HUB))
            pings = {
                kinds[client]: Pings(system.lab, client, system.address(HUB, client), seconds)
                for client in system.clients
            }
            found = {kind: each.round_trips() for kind, each in pings.items()}
            bulk.result()
        for kind, times in found.items():
            yield f"rtt-{kind}{direction}-p50", percentile(times, 50)
            yield f"rtt-{kind}{direction}-p99", percentile(times, 99)

    return measure


def fairness(system: System, seconds: float) -> Figures:
    """The first client floods the hub with UDP; what does the second get?"""
    options = ("--udp", "--length", "1200", "--bitrate", "0")
    with between(system, A, HUB, seconds + 3, *options) as greedy:
        greedy.flowing(system.interface(HUB))
        with between(system, C, HUB, seconds) as modest:
            times = Pings(system.lab, C, system.address(HUB, C), seconds).round_trips()
            received = modest.result()
        greedy.result()
    yield "fair-tcp", received.gigabits
    yield "fair-rtt-p50", percentile(times, 50)
    yield "fair-rtt-p99", percentile(times, 99)


def goodput(percent: str, congestion: str = "") -> Callable[[System, float], Figures]:
    """TCP over a cable that loses so many per cent of the datagrams, each way.

    :param congestion: the congestion control to use; the kernel's own choice by default, which
        decides a lot here: BBR takes little notice of losses, CUBIC halves its pace for each.
    """
    name = f"loss-{percent}" + (f"-{congestion}" if congestion else "")
    options = ("--congestion", congestion) if congestion else ()

    def measure(system: System, seconds: float) -> Figures:
        with system.lab.losing(round(float(percent) * 10)):
            received = flow(system, seconds, *options)
        yield name, received.gigabits * 1e3

    return measure


def memory(system: System, seconds: float) -> Figures:
    """Memory, last of all."""
    yield "rss", resident(system.processes())
    yield "rss-hub", resident(system.processes(HUB))


def flow(system: System, seconds: float, *options: str, version: int = 4) -> Received:
    """What came over by iperf3 from the near to the far end."""
    with between(system, system.near, system.far, seconds, *options, version=version) as running:
        return running.result()


def between(
    system: System, near: str, far: str, seconds: float, *options: str, version: int = 4
) -> Flow:
    """iperf3 from one host to another, inside the VPN; to be ended by its block."""
    address = system.address(far, near, version)
    return Flow(system.lab, near, far, address, seconds, *options)


def always(system: System) -> bool:
    return True


def to_hub_with_two(system: System) -> bool:
    """Two clients, and it is not measured between them."""
    return system.far == HUB and C in system.clients


def to_hub(system: System) -> bool:
    """Between two clients the rest says nothing new, and would take minutes."""
    return system.far == HUB


def to_hub_with_ipv6(system: System) -> bool:
    return system.ipv6 and system.far == HUB


def can_lose(system: System) -> bool:
    """A whole VPN, with datagrams to lose, from client to hub."""
    return system.wire and to_hub_with_two(system)


def has_processes(system: System) -> bool:
    return bool(system.processes())


class Scenario(NamedTuple):
    """One measurement, and which systems it fits."""

    name: str
    measure: Callable[[System, float], Figures]
    fits: Callable[[System], bool] = always


SCENARIOS = (
    Scenario("tcp-1", tcp_with_cpu),
    Scenario("tcp-4", tcp("tcp-4", "--parallel", "4"), to_hub),
    Scenario("tcp-reverse", tcp("tcp-reverse", "--reverse"), to_hub),
    Scenario("tcp-ipv6", tcp("tcp-ipv6", version=6), to_hub_with_ipv6),
    Scenario("udp-64", udp(64)),
    Scenario("udp-1200", udp(1200), to_hub),
    Scenario("rtt-idle", idle),
    Scenario("rtt-flood", flood_of_pings),
    Scenario("rtt-load", beside_bulk(""), to_hub),
    Scenario("rtt-load-down", beside_bulk("-down", "--reverse"), to_hub),
    Scenario("loss-0", goodput("0"), can_lose),
    Scenario("loss-0.1", goodput("0.1"), can_lose),
    Scenario("loss-1", goodput("1"), can_lose),
    Scenario("loss-5", goodput("5"), can_lose),
    Scenario("loss-1-cubic", goodput("1", "cubic"), can_lose),
    Scenario("fairness", fairness, to_hub_with_two),
    Scenario("rss", memory, has_processes),
)
