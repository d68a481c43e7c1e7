"""What is asked of PyVPN beside the others, and what a run has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from figures import heading, show

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
            own = f"pyvpn-{cipher}"
            gates.append(Gate(what, own, scenario, 0.9, f"prototype-{cipher}"))
    for scenario in ("tcp-1", "tcp-4"):
        what = f"{names[scenario]}, beside OpenVPN"
        gates.append(Gate(what, "pyvpn-aes", scenario, 3.5, "openvpn"))
    return (
        *gates,
        Gate("64-byte UDP, beside OpenVPN", "pyvpn-aes", "udp-64", 1.3, "openvpn"),
        Gate("64-byte UDP, beside wireguard-go", "pyvpn-aes", "udp-64", 1.8, "wireguard-go"),
        Gate(
            "processor time per GiB, beside OpenVPN", "pyvpn-aes", "cpu-gib", 0.5, "openvpn", True
        ),
        Gate(
            "second client's p99 while one sends", "pyvpn-aes", "rtt-upload-p99", 5000, None, True
        ),
        Gate("goodput at 1 % loss, beside OpenVPN", "pyvpn-aes", "goodput-1", 1.0, "openvpn"),
    )


def _aims() -> tuple[Gate, ...]:
    aims = [
        Gate("TCP, 1 flow, beside wireguard-go", "pyvpn-aes", "tcp-1", 1.25, "wireguard-go"),
        Gate("TCP, 4 flows, beside wireguard-go", "pyvpn-aes", "tcp-4", 1.25, "wireguard-go"),
    ]
    for rival, name in (("wireguard-go", "wireguard-go"), ("openvpn", "OpenVPN")):
        for scenario, what in (("rtt-idle-p50", "round trip, idle"), ("rtt-flood", "flood")):
            aims.append(Gate(f"{what}, beside {name}", "pyvpn-aes", scenario, 1.0, rival, True))
    for cipher in ("aes", "chacha"):
        own, rival = f"pyvpn-{cipher}", f"prototype-{cipher}"
        aims.append(Gate(f"TCP, 1 flow, {cipher}, beside the prototype", own, "tcp-1", 1.0, rival))
    aims.append(
        Gate("goodput at 5 % loss, beside OpenVPN", "pyvpn-aes", "goodput-5", 1.0, "openvpn")
    )
    return tuple(aims)


GATES = _gates()
AIMS = _aims()
# Where there is no newer wireguard-go at hand, Debian's stands in for it.
STANDS_IN = {"wireguard-go": "wireguard-go-debian"}


def judge(medians: Medians) -> bool:
    """Print the gates, then the aims; return whether no gate that could be measured is missed."""
    print("\nGates: ratios of medians of this run")
    heading()
    met = True
    for gate in GATES:
        met &= _show(gate, medians)
    print("\nAims: the same, but none of these decides")
    heading()
    for aim in AIMS:
        _show(aim, medians)
    return met


def _show(gate: Gate, medians: Medians) -> bool:
    sign = "≤" if gate.at_most else "≥"
    rival = gate.rival
    if rival is not None and (rival, gate.scenario) not in medians and rival in STANDS_IN:
        rival = STANDS_IN[rival]
    own = medians.get((gate.system, gate.scenario))
    other = 1.0 if rival is None else medians.get((rival, gate.scenario))
    asked = f"{sign} {gate.factor:g}" + (" µs" if rival is None else " ×")
    if own is None or not other:
        missing = gate.system if own is None else rival
        print(f"{gate.what:<54} {asked:>12} {'not measured':>26}  no figure of {missing}")
        return True
    ratio = own / other
    met = ratio <= gate.factor if gate.at_most else ratio >= gate.factor
    if rival is None:
        return show(gate.what, asked, f"{own:.0f} µs", met)
    measured = f"{ratio:.2f} × ({own:.4g} : {other:.4g})"
    note = "" if rival == gate.rival else " (Debian's)"
    return show(gate.what + note, asked, measured, met)
