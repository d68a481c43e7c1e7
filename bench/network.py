"""How fast a network changes under its users, asked and measured: ``sudo make bench``.

* all traffic of a machine goes through the hub, or does not any more: from the request on the
  client's control socket to its answer, which comes when Linux has it;
* a route is added on the hub while 1,000 clients are connected: from the start of the command
  ``pyvpn route add`` until the last of them has it. The clients are cores of one process with a
  UDP socket each; what each then does with its own Linux is the first figure's.

Real processes in network namespaces on this machine. Exit status: 0 every figure is met, 1 one is
not, 2 nothing can be measured here.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import heading, show
from swarm import key_of

from pyvpn.control_client import ask
from tests.netns.lab import Lab, LabError, why_not
from tests.scenes.networks.client import Client, Hub
from tests.scenes.networks.lab import HOME, NetworksLab

ASKED_SWITCH, ASKED_PUSH = 0.3, 2.0  # seconds
SWITCHES, PUSHES = 20, 5
CLIENTS, DEVICES = 1000, 16


def switches() -> bool:
    """All traffic on and off, in a home with a router."""
    took: dict[str, list[float]] = {"all": [], "vpn": []}
    with NetworksLab() as lab:
        lab.serve(HOME)
        lab.lease("laptop")
        client = Client(Hub(lab, "--internet").start(), "laptop", "alice")
        client.up()
        socket = lab.home("laptop") / "run" / "client-alice.sock"
        for _ in range(SWITCHES):
            for what, times in took.items():
                begun = time.monotonic()
                ask(socket, "traffic", {"what": what})
                times.append(time.monotonic() - begun)
    met = True
    for what, times in (("on", took["all"]), ("off", took["vpn"])):
        worst, median = max(times), statistics.median(times)
        shown = f"{worst * 1000:.0f} ms (median {median * 1000:.0f})"
        met &= show(
            f"full tunnel {what}, the slowest of {SWITCHES}",
            f"≤ {ASKED_SWITCH * 1000:.0f} ms",
            shown,
            worst <= ASKED_SWITCH,
        )
    return met


def pushes() -> bool:
    """A route for 1,000 live clients."""
    times = []
    with Lab() as lab:
        hub = lab.start_hub({"anna": "seven green apples"}, "--subnet", "10.10.0.0/16")
        socket = hub.run_dir / "server.sock"
        for number in range(-(-CLIENTS // DEVICES)):
            user = f"swarm-{number}"
            ask(socket, "user_add", {"name": user, "public_key": key_of(user).public.hex()})
        link = lab.pyvpn("hub", "invite", "anna").stdout
        token = re.search(r"#t=([\w-]+)", link)
        if token is None:
            raise LabError("the invitation has no token")
        swarm = lab.spawn(
            "kiwi",
            [
                *(sys.executable, str(Path(__file__).with_name("swarm.py"))),
                *(lab.hosts["hub"].ipv4, token[1], str(CLIENTS), str(DEVICES)),
            ],
            "swarm",
        )
        swarm.wait_for_text(rf"connected {CLIENTS}\b", 120)
        for number in range(PUSHES):
            begun = time.monotonic()
            lab.pyvpn("hub", "route", "add", f"192.168.{number}.0/24")
            told = swarm.wait_for_text(rf"told {number + 2} ([\d.]+)", 30)
            times.append(float(told[1]) - begun)
        swarm.stop()
    return show(
        f"a route for {CLIENTS:,} live clients, the slowest of {PUSHES}",
        f"≤ {ASKED_PUSH:g} s",
        f"{max(times):.2f} s (median {statistics.median(times):.2f})",
        max(times) <= ASKED_PUSH,
    )


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(f"nothing can be measured here: {reason}", file=sys.stderr)
        return 2
    heading()
    met = switches()
    return 0 if pushes() and met else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"the measurement failed: {error}", file=sys.stderr)
        sys.exit(1)
