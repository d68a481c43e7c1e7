"""PROTOCOL's numbers, retyped, and what the simulated scenes ask again and again."""

from __future__ import annotations

from typing import Any

from pyvpn.core.client import VPNClient
from pyvpn.core.clientstate import State
from pyvpn.testing.simulation import NETWORK4, Client, Datagram, Simulation, numbered_packet

# PROTOCOL 7, in seconds.
REKEY_AFTER_TIME = 120
REKEY_ON_RECEIVE_TIME = 165
REJECT_AFTER_TIME = 180
REKEY_ATTEMPT_TIME = 90
REKEY_TIMEOUT, REKEY_JITTER = 5.0, 0.334
BACKOFF_MAXIMUM = 300
KEEPALIVE_TIMEOUT = 10
LIVENESS = (4, 6, 8)
# PROTOCOL 3 and 6.
SILENCE_TIME = 15
REFUSED_RETRY_TIME = 300
POLL_INTERVAL = 25
HELLO_INTERVAL = CONFIG_INTERVAL = 1
CONFIG_TRIES = 5
RESTART_SPREAD = 2
# PROTOCOL 6, "Paths": so many challenges in so many seconds, so many answers a second; bytes of a
# datagram with either.
CHALLENGES, CHALLENGE_TIME = 3, 5
CHALLENGE_SPACING = 0.5
RESPONSES = 5
CHALLENGE_SIZE = RESPONSE_SIZE = 32 + 32
#: A datagram of so many bytes that is no data asks for the MTU.
PROBED = 1200

LOGIN, ANSWER, DATA = 0x50, 0x51, 4
KEEPALIVE_SIZE, POLL_SIZE, REPLY_SIZE = 32, 32 + 32, 64 + 32

HUB4 = NETWORK4[1]
USER, PASSWORD = "alice", "correct horse battery"

#: A round trip in fair weather, and a little.
ROUND_TRIP = 0.05


def connected(seed: int = 0, **options: Any) -> tuple[Simulation, Client]:
    """A hub with one client that is up since half a second."""
    simulation = Simulation(seed)
    client = with_client(simulation, **options)
    client.start()
    simulation.advance(0.5)
    assert client.core.state is State.UP
    return simulation, client


def with_client(
    simulation: Simulation, user: str = USER, password: str = PASSWORD, **options: Any
) -> Client:
    """A device of a user, whose account it makes if there is none; not logged in yet."""
    if user not in simulation.hub.users:
        simulation.add_user(user, password)
    return simulation.add_client(user, password, **options)


def ask_no_mtu(simulation: Simulation) -> None:
    """Let nobody ask for the MTU in the sessions that there are: the answers look like polls."""
    for node in set(simulation.nodes.values()):
        core = node.core
        peers = [core.hub] if isinstance(core, VPNClient) else core.connected_peers()
        for peer in peers:
            peer.mtu.stop()


def cut(simulation: Simulation) -> None:
    """From now on nothing arrives."""
    simulation.network.passes.append(lambda datagram: False)


def heal(simulation: Simulation) -> None:
    """Everything arrives again."""
    simulation.network.passes.clear()


def times(
    datagrams: list[Datagram], start: float, kind: int = LOGIN, source: Any = None
) -> list[float]:
    """When datagrams of a kind were sent, in seconds after ``start``."""
    return [
        datagram.time - start
        for datagram in datagrams
        if datagram.kind == kind and datagram.time >= start and source in (None, datagram.source)
    ]


def works_both_ways(simulation: Simulation, client: Client, number: int = 10**6) -> bool:
    """Whether a packet arrives in each direction within a second."""
    there = numbered_packet(number, client.lease.ipv4, HUB4)
    back = numbered_packet(number + 1, HUB4, client.lease.ipv4)
    client.send(there)
    simulation.hub.send(back)
    simulation.advance(1)
    return there in simulation.hub.received and back in client.received
