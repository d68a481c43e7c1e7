"""How to make a hub count each reason about stock WireGuard peers; see provocations."""

from __future__ import annotations

from ipaddress import ip_network

from pyvpn.core import tai64n, wireguard
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.testing.simulation import NETWORK4
from tests.core.provocations import HUB4, packet_from
from tests.core.scene import Provocation, Scene

STOCK4 = NETWORK4[200]


def peer_of(scene: Scene) -> tuple[WireGuardPeer, KeyPair]:
    """Give the hub a key and a stock peer."""
    core = scene.hub.core
    core.wireguard.set_private_key(scene.simulation.random_bytes(32), scene.now)
    pair = KeyPair.of(scene.simulation.random_bytes(32))
    peer = core.wireguard.add(pair.public, scene.now)
    core.wireguard.allow(peer, ip_network(STOCK4))
    return peer, pair


def initiation(scene: Scene, pair: KeyPair, *, after: float = 0.0) -> bytes:
    """A message 1 to the hub, its stamp that many seconds from now."""
    identity = scene.hub.core.wireguard.identity
    assert identity is not None
    return wireguard.InitiationSent(
        pair,
        identity.public,
        wireguard.NO_PSK,
        index=77,
        stamp=tai64n.pack(scene.simulation.wall_clock() + round(after * 1e9)),
        mac1_key=wireguard.mac1_key(identity.public),
        random_bytes=scene.simulation.random_bytes,
    ).message


def unknown_peer(scene: Scene) -> None:
    peer_of(scene)
    scene.to_hub(initiation(scene, KeyPair.of(scene.simulation.random_bytes(32))))


def stamp_replayed(scene: Scene) -> None:
    _, pair = peer_of(scene)
    message = initiation(scene, pair)
    scene.to_hub(message)
    scene.mark()
    scene.to_hub(message)


def too_often(scene: Scene) -> None:
    _, pair = peer_of(scene)
    scene.to_hub(initiation(scene, pair))
    scene.mark()
    scene.to_hub(initiation(scene, pair, after=1))


def no_answer(scene: Scene) -> None:
    scene.client.asleep = True
    peer, _ = peer_of(scene)
    core = scene.hub.core
    core.wireguard.set_endpoint(peer, scene.simulation.new_endpoint(), scene.now)
    core.wireguard.connect(peer, scene.now)
    scene.hub.drain()
    scene.simulation.advance(90)
    scene.mark()
    scene.simulation.advance(6)


def no_endpoint(scene: Scene) -> None:
    peer_of(scene)
    scene.hub.send(packet_from(HUB4, STOCK4))


STOCK: dict[str, Provocation] = {
    "wireguard_no_peers": lambda s: s.to_hub(b"\1" + bytes(147)),
    "wireguard_unknown_peer": unknown_peer,
    "wireguard_stamp_replayed": stamp_replayed,
    "wireguard_too_often": too_often,
    "wireguard_no_answer": no_answer,
    "wireguard_no_endpoint": no_endpoint,
}
