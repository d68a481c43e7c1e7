"""What is asked of PyVPN beside the others, and what a run has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from figures import ROW, heading, show

OWN, OPENVPN, NEWEST = "pyvpn-aes", "openvpn", "wireguard-go-newest"
OWN_WIREGUARD, DEBIANS = "pyvpn-wg", "wireguard-go"
#: (system, scenario) -> the median
Medians = Mapping[tuple[str, str], float]


class Gate(NamedTuple):
    """A figure of one system, at least (or at most) so many times that of another; without
    another, an absolute bound."""

    what: str
    system: str
    scenario: str
    factor: float
    rival: str | None = None
    at_most: bool = False


def _gates() -> tuple[Gate, ...]:
    gates = []
    names = {"tcp-1": "TCP, 1 flow", "tcp-4": "TCP, 4 flows", "udp-64": "64-byte UDP"}
    for cipher in ("aes", "chacha"):
        for scenario, name in names.items():
            what = f"{name}, {cipher}, beside the prototype"
            gates.append(Gate(what, f"pyvpn-{cipher}", scenario, 0.9, f"prototype-{cipher}"))
    for what, scenario, factor, rival in (
        ("TCP, 1 flow, beside OpenVPN", "tcp-1", 3.5, OPENVPN),
        ("TCP, 4 flows, beside OpenVPN", "tcp-4", 3.5, OPENVPN),
        ("64-byte UDP, beside OpenVPN", "udp-64", 1.3, OPENVPN),
        ("64-byte UDP, beside wireguard-go", "udp-64", 1.8, NEWEST),
        ("goodput at 1 % loss, beside OpenVPN", "loss-1", 1.0, OPENVPN),
    ):
        gates.append(Gate(what, OWN, scenario, factor, rival))
    for scenario in ("tcp-1", "tcp-4", "udp-64"):
        what = f"{names[scenario]}, as WireGuard, beside Debian's"
        gates.append(Gate(what, OWN_WIREGUARD, scenario, 1.5, DEBIANS))
    what = "processor time per GiB, beside OpenVPN"
    gates.append(Gate(what, OWN, "cpu-per-gib", 0.5, OPENVPN, at_most=True))
    what = "second client's p99 while one sends"
    gates.append(Gate(what, OWN, "rtt-second-p99", 5000, at_most=True))
    return tuple(gates)


def _aims() -> tuple[Gate, ...]:
    aims = []
    for what, scenario, factor, rival in (
        ("TCP, 1 flow, beside wireguard-go", "tcp-1", 1.25, NEWEST),
        ("TCP, 4 flows, beside wireguard-go", "tcp-4", 1.25, NEWEST),
        ("goodput at 0.1 % loss, beside OpenVPN", "loss-0.1", 1.0, OPENVPN),
        ("goodput at 5 % loss, beside OpenVPN", "loss-5", 1.0, OPENVPN),
        ("goodput at 1 % loss with CUBIC, beside OpenVPN", "loss-1-cubic", 1.0, OPENVPN),
    ):
        aims.append(Gate(what, OWN, scenario, factor, rival))
    for scenario, name in (("tcp-1", "TCP, 1 flow"), ("tcp-4", "TCP, 4 flows")):
        what = f"{name}, as WireGuard, beside Debian's"
        aims.append(Gate(what, OWN_WIREGUARD, scenario, 2.0, DEBIANS))
    for rival, name in ((NEWEST, "wireguard-go"), (OPENVPN, "OpenVPN")):
        for scenario, what in (("rtt-idle-p50", "idle"), ("rtt-flood", "flood")):
            what = f"round trip, {what}, beside {name}"
            aims.append(Gate(what, OWN, scenario, 1.0, rival, at_most=True))
    for cipher in ("aes", "chacha"):
        what = f"TCP, 1 flow, {cipher}, beside the prototype"
        aims.append(Gate(what, f"pyvpn-{cipher}", "tcp-1", 1.0, f"prototype-{cipher}"))
    return tuple(aims)


GATES = _gates()
AIMS = _aims()
# Where there is no newer wireguard-go at hand, Debian's stands in for it.
STANDS_IN = DEBIANS


class Verdict(NamedTuple):
    """A gate as it is shown; `met` is None where it could not be measured."""

    what: str
    asked: str
    measured: str
    met: bool | None


def verdict(gate: Gate, medians: Medians) -> Verdict:
    """Hold a gate against the medians of a run."""
    rival = gate.rival
    measured = {system for system, scenario in medians if scenario == gate.scenario}
    if rival == NEWEST and NEWEST not in measured and STANDS_IN in measured:
        rival = STANDS_IN
    what = gate.what if rival == gate.rival else f"{gate.what} (Debian's)"
    asked = f"{'≤' if gate.at_most else '≥'} {gate.factor:g} {'µs' if rival is None else '×'}"
    own = medians.get((gate.system, gate.scenario))
    other = 1.0 if rival is None else medians.get((rival, gate.scenario))
    if own is None or not other:
        missing = gate.system if own is None else rival
        return Verdict(what, asked, f"no figure of {missing}", None)
    factor = own / other
    shown = f"{own:.0f} µs" if rival is None else f"{factor:.2f} × ({own:.4g} : {other:.4g})"
    met = factor <= gate.factor if gate.at_most else factor >= gate.factor
    return Verdict(what, asked, shown, met)


def show_verdicts(title: str, verdicts: list[Verdict]) -> None:
    """Print them as a table."""
    print(f"\n{title}")
    heading()
    for each in verdicts:
        if each.met is None:
            print(ROW.format(each.what, each.asked, each.measured, "not measured"))
        else:
            show(*each)
