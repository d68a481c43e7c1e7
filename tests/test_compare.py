"""The comparison of ``make bench-compare``: how it counts and judges, without a VPN."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import compare
import gates
import iperf
import pings
import scenarios
from systems import all_systems

from tests.netns.lab import LabError


def told(**end: object) -> SimpleNamespace:
    """An iperf3 client that has printed such a report."""
    report = {"start": {"test_start": {"blksize": 64}}, "end": end}
    return SimpleNamespace(text=lambda: json.dumps(report))


class IperfTests(SynchronousTestCase):
    """What iperf3 reports, and what the kernel counts."""

    def test_tcp_is_what_was_received(self) -> None:
        """What the sender has sent and nobody got is no throughput."""
        sums = {"sum_sent": {"seconds": 2.0, "bytes": 900}, "sum_received": {}}
        sums["sum_received"] = {"seconds": 2.0, "bytes": 500_000_000}
        self.assertEqual(iperf.received(told(**sums)).gigabits, 2.0)

    def test_udp_is_what_was_read(self) -> None:
        """iperf3's client shows the lost, which the receiver knows of, beside the packets sent,
        some of which the receiver never heard of: 500 too many counted as delivered once."""
        total = {"seconds": 2.0, "packets": 10_000, "lost_packets": 4_000, "bytes": 0}
        client = told(sum=total | {"packets": 10_500})
        got = iperf.delivered(client, told(sum=total))
        self.assertEqual((got.packets, got.bytes, got.kilopackets), (6_000, 384_000, 3.0))

    def test_an_error_is_no_figure(self) -> None:
        """A run that iperf3 calls failed raises with its words."""
        client = SimpleNamespace(text=lambda: '{"error": "unable to connect"}')
        error = self.assertRaises(LabError, iperf.received, client)
        self.assertIn("unable to connect", str(error))

    def test_super_packets_count_as_their_datagrams(self) -> None:
        """Ten datagrams of 64 bytes and a super-packet of 40 are 50, with 11 pairs of headers."""
        size = 10 * (28 + 64) + 28 + 40 * 64
        self.assertEqual(iperf.datagrams([11, size], 64), 50)


class PercentileTests(SynchronousTestCase):
    """Percentiles by nearest rank, as the textbook's."""

    def test_known(self) -> None:
        """The values of a list of 1 to 200."""
        values = [float(number) for number in range(1, 201)]
        found = [pings.percentile(values, percent) for percent in (50, 99, 100)]
        self.assertEqual(found, [100, 198, 200])

    def test_few(self) -> None:
        """Of fewer than 100 values the 99th percentile is the largest."""
        self.assertEqual(pings.percentile([1.0, 2.0, 9.0], 99), 9.0)


class GateTests(SynchronousTestCase):
    """How the figures are held against what is asked."""

    def judge(self, factor: float, own: float, other: float, at_most: bool = False) -> bool | None:
        gate = gates.Gate("TCP", "pyvpn-aes", "tcp-1", factor, "openvpn", at_most)
        medians = {("pyvpn-aes", "tcp-1"): own, ("openvpn", "tcp-1"): other}
        return gates.verdict(gate, medians).met

    def test_at_least(self) -> None:
        """Exactly the factor meets a gate, a little less does not."""
        self.assertEqual([self.judge(3.5, own, 1.0) for own in (3.5, 3.49)], [True, False])

    def test_at_most(self) -> None:
        """Exactly the factor meets a bound, a little more does not."""
        self.assertEqual([self.judge(0.5, own, 2.0, True) for own in (1.0, 1.01)], [True, False])

    def test_absolute(self) -> None:
        """Without a rival it is the figure itself that is bounded."""
        gate = gates.Gate("p99", "pyvpn-aes", "rtt-second-p99", 5000, at_most=True)
        for value, met in ((5000.0, True), (5001.0, False)):
            medians = {("pyvpn-aes", "rtt-second-p99"): value}
            self.assertIs(gates.verdict(gate, medians).met, met)

    def test_not_measured(self) -> None:
        """A gate without a figure is neither met nor missed, and says whose figure it lacks."""
        gate = gates.Gate("TCP", "pyvpn-aes", "tcp-1", 3.5, "openvpn")
        judged = gates.verdict(gate, {("pyvpn-aes", "tcp-1"): 1.0})
        self.assertEqual((judged.met, judged.measured), (None, "no figure of openvpn"))

    def test_debian_stands_in(self) -> None:
        """Without a newer wireguard-go Debian's is measured against, and that is said."""
        gate = gates.Gate("UDP", "pyvpn-aes", "udp-64", 1.8, "wireguard-go-newest")
        medians = {("pyvpn-aes", "udp-64"): 90.0, ("wireguard-go", "udp-64"): 45.0}
        self.assertEqual(gates.verdict(gate, medians)[0], "UDP (Debian's)")
        medians["wireguard-go-newest", "udp-64"] = 60.0
        judged = gates.verdict(gate, medians)
        self.assertEqual((judged.what, judged.met), ("UDP", False))

    def test_every_gate_can_be_measured(self) -> None:
        """Gates and aims name systems and scenarios that there are."""
        systems = {system.name for system in all_systems({})}
        for gate in (*gates.GATES, *gates.AIMS):
            self.assertIn(gate.scenario, scenarios.UNITS)
            self.assertLessEqual({gate.system, gate.rival} - {None}, systems)


class FakeSystem:
    """A system that runs without a laboratory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def negotiated(self) -> compare.Negotiated:
        return compare.Negotiated("none", 1500, "none", self.name)


class RunTests(SynchronousTestCase):
    """The rounds, with systems that cost nothing."""

    def run_with(self, measure: object, rounds: int = 3) -> tuple[compare.Run, list[str]]:
        order: list[str] = []

        def measured(system: FakeSystem, seconds: float) -> object:
            order.append(system.name)
            return measure(system)  # type: ignore[operator]

        with mock.patch.object(compare, "all_systems", lambda environment: list(fakes)):
            fakes = [FakeSystem(name) for name in "xyz"]
            run = compare.Run({"PYVPN_BENCH_ROUNDS": str(rounds)})
        run.scenarios = [scenarios.Scenario("tcp-1", measured)]
        with mock.patch("builtins.print"):
            run.measure()
        return run, order

    def test_interleaved(self) -> None:
        """Every round measures each system once, and none is always the first."""
        run, order = self.run_with(lambda system: [("tcp-1", 1.0)])
        self.assertEqual("".join(order), "xyzyzxzxy")
        self.assertFalse(any(system.running for system in run.systems))

    def test_median(self) -> None:
        """One bad round does not move the result."""
        values = iter([10.0, 1, 1, 1, 1, 12, 1, 11, 1])
        run, _ = self.run_with(lambda system: [("tcp-1", next(values))])
        self.assertEqual(run.medians()["x", "tcp-1"], 11.0)

    def test_failure(self) -> None:
        """A measurement that fails is named, has no figure, and the others go on."""

        def measure(system: FakeSystem) -> list[tuple[str, float]]:
            if system.name == "y":
                raise LabError("no answer")
            return [("tcp-1", 1.0)]

        run, order = self.run_with(measure, rounds=1)
        self.assertEqual(order, ["x", "y", "z"])
        self.assertEqual(run.failed, ["tcp-1 of y, round 1: no answer"])
        self.assertEqual(set(run.medians()), {("x", "tcp-1"), ("z", "tcp-1")})

    def test_unknown_name(self) -> None:
        """A misspelled system ends the run before it begins, and what there is is told."""
        with mock.patch("sys.stderr") as stderr:
            status = compare.main({"PYVPN_BENCH_SYSTEMS": "openvnp"})
        said = "".join(call.args[0] for call in stderr.write.call_args_list)
        self.assertEqual(status, 2)
        self.assertIn("there is no openvnp; there are pyvpn-aes, ", said)
