"""Paths of many sizes under two whole cores (docs/protocol.rst, "Path MTU")."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.events import MTUFound
from pyvpn.testing import simulation as simulated
from pyvpn.testing.simulation import (
    NETWORK6,
    Client,
    Datagram,
    Endpoint,
    Simulation,
    ip_packet,
)
from tests.core.scene import Scene
from tests.sim.rules import DATA, HUB4, ROUND_TRIP, with_client

#: Outer IPv4 and UDP; and with the transport and the prefix of a segment frame.
OUTER, OVERHEAD = 28, 28 + 32 + 4
JUMBO = 8916
BASE = 1280
#: Seconds: the longest until a path is known, and until a narrow one is noticed.
SEARCH, NOTICE = 6.0, 6.0
DONT_FRAGMENT = 0x40


class Cable:
    """What lies between: it carries packets of ``width`` bytes, longer ones only in pieces."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lost = 0

    def passes(self, datagram: Datagram) -> bool:
        fits = len(datagram.payload) + OUTER <= self.width or datagram.fragment
        self.lost += not fits
        return fits


class OfPaths(SynchronousTestCase):
    simulation: Simulation
    client: Client
    cable: Cable

    def connect(self, width: int, inner: int = JUMBO, seed: int = 0) -> None:
        """A hub that lets packets be ``inner`` long, a client of it, a cable."""
        self.patch(simulated, "INNER_MTU", inner)
        self.simulation = Simulation(seed)
        self.client = with_client(self.simulation)
        self.cable = Cable(width)
        self.simulation.network.passes.append(self.cable.passes)
        self.client.start()

    def settle(self, seconds: float = SEARCH) -> None:
        self.simulation.advance(seconds)

    def mtu(self) -> tuple[int, int]:
        """What client and hub think passes, inside."""
        peer = self.simulation.hub.core.peer(self.client.user, self.client.device)
        assert peer is not None
        return self.client.core.hub.mtu.inner, peer.mtu.inner

    def packet(self, size: int, *, back: bool = False, df: bool = True, v6: bool = False) -> bytes:
        """A packet of so many bytes to the hub, or back."""
        lease = self.client.lease
        if v6:
            assert lease.ipv6 is not None
            ends6 = (lease.ipv6, NETWORK6[1])
            return ip_packet(*ends6[:: -1 if back else 1], bytes(size - 40))
        ends = (lease.ipv4, HUB4)
        packet = bytearray(ip_packet(*ends[:: -1 if back else 1], bytes(size - 20)))
        packet[6] = DONT_FRAGMENT if df else 0
        return bytes(packet)

    def arrives(self, packet: bytes, *, back: bool = False) -> bool:
        """Whether a packet arrives within a round trip."""
        sender, receiver = self.client, self.simulation.hub
        if back:
            sender, receiver = receiver, sender
        receiver.received.clear()
        sender.send(packet)
        self.simulation.advance(ROUND_TRIP)
        return packet in receiver.received

    def test_found(self) -> None:
        """Each end finds what passes, and the client's owner is told, never less than 1280."""
        for width, inner in ((1280, 1216), (1400, 1336), (1500, 1436), (9000, JUMBO)):
            self.connect(width)
            self.settle()
            self.assertEqual(self.mtu(), (inner, inner), width)
            told = [event.mtu for event in self.client.told(MTUFound)]
            self.assertEqual(told, [max(inner, 1280)], width)

    def test_nothing_is_lost_before(self) -> None:
        """While the path is unknown large packets leave without DF: they arrive on a narrow one."""
        self.connect(1280)
        self.simulation.advance_until(lambda: self.client.core.hub.mtu.due < 1e9, 1)
        self.simulation.advance(0.2)
        for size in (1300, 1416, 5000):
            for back in (False, True):
                self.assertTrue(self.arrives(self.packet(size, back=back), back=back), size)
        self.assertEqual(self.simulation.hub.answered + self.client.answered, [])

    def test_too_big(self) -> None:
        """On a known path what fits arrives with DF. Of the rest, what is no longer than 1280 bytes
        or may be cut leaves without DF, and the senders of all else are told, 1280 at least.
        """
        for width, inner in ((1280, 1216), (1500, 1436)):
            self.connect(width)
            self.settle()
            most = max(inner, 1280)
            for back in (False, True):
                node = self.simulation.hub if back else self.client
                for v6 in (False, True):
                    for size in (inner - 1, inner, most):
                        packet = self.packet(size, back=back, v6=v6)
                        self.assertTrue(self.arrives(packet, back=back), size)
                        (last,) = self.sent(node.endpoint)[-1:]
                        self.assertEqual(last.fragment, size > inner)
                    self.assertEqual(node.answered, [])
                    long = self.packet(most + 1, back=back, v6=v6)
                    self.assertFalse(self.arrives(long, back=back))
                    (answer,) = node.answered
                    node.answered.clear()
                    said = answer[44:48] if v6 else answer[26:28]
                    self.assertEqual(int.from_bytes(said, "big"), most)
                self.assertTrue(self.arrives(self.packet(most + 1, df=False, back=back), back=back))

    def sent(self, source: Endpoint) -> list[Datagram]:
        captured = self.simulation.network.captured
        return [one for one in captured if one.source == source and one.kind == DATA]

    def test_agreed(self) -> None:
        """However wide the path, nothing is larger than was agreed."""
        self.connect(9000, inner=1400)
        self.settle()
        self.assertEqual(self.mtu(), (1400, 1400))

    def flow(self, seconds: float, size: int = 1300) -> int:
        """Send a packet each 50 ms both ways; return how many were lost."""
        lost = 0
        for _ in range(round(seconds / 2 / ROUND_TRIP)):
            lost += not self.arrives(self.packet(size, v6=True))
            lost += not self.arrives(self.packet(size, v6=True, back=True), back=True)
        return lost

    def test_shrinks_mid_transfer(self) -> None:
        """A path that becomes narrow is noticed by both ends within 6 s."""
        self.connect(1500)
        self.settle()
        self.assertEqual(self.flow(10), 0)
        self.cable.width = 1400
        self.assertGreater(self.flow(NOTICE, 1420), 0)  # control
        self.assertEqual(self.flow(SEARCH), 0)
        self.assertEqual(self.mtu(), (1336, 1336))
        self.assertEqual(self.client.told(MTUFound)[-1].mtu, 1336)

    def test_grows(self) -> None:
        """One that becomes wide is used within ten minutes, and nothing is lost for it."""
        self.connect(1400)
        self.settle()
        self.cable.width = 9000
        self.assertEqual(self.flow(620), 0)
        self.assertEqual(self.mtu(), (JUMBO, JUMBO))
        self.assertEqual(self.client.told(MTUFound)[-1].mtu, JUMBO)

    def test_roaming(self) -> None:
        """After a change of networks the new path's MTU is found, be it narrower or wider."""
        self.connect(1500)
        self.settle()
        for width, inner in ((1400, 1336), (9000, JUMBO), (1280, 1216)):
            self.client.roam(self.simulation.new_endpoint())
            self.cable.width = width
            self.settle(2 * SEARCH)
            self.assertEqual(self.mtu(), (inner, inner), width)

    def test_rebinding(self) -> None:
        """A NAT that forgot its mapping makes the hub search anew, and the session goes on."""
        self.connect(1500)
        self.settle()
        self.client.move(self.simulation.new_endpoint())
        self.client.send(self.packet(100))
        self.simulation.advance(0.1)
        self.assertTrue(self.arrives(self.packet(1400, back=True), back=True))
        self.settle()
        self.assertEqual(self.mtu(), (1436, 1436))

    def test_a_rekey_changes_nothing(self) -> None:
        """What is known outlives the session's keys: nobody asks again."""
        self.connect(1500)
        self.settle()
        session = self.client.core.hub.current
        count = len(self.probes())
        self.simulation.advance(150)
        self.assertIsNot(self.client.core.hub.current, session)
        self.assertEqual(len(self.probes()), count)
        self.assertEqual(self.mtu(), (1436, 1436))

    def probes(self) -> list[Datagram]:
        return [one for one in self.simulation.network.captured if len(one.payload) > 1200]

    def test_loss(self) -> None:
        """With 5 % loss each way the MTU is found all the same."""
        found = []
        for seed in range(20):
            self.connect(1500, seed=seed)
            self.simulation.network.weather.loss = 0.05
            self.simulation.advance_until(lambda: self.client.told(MTUFound), 30)
            found.append(self.mtu()[0])
        self.assertGreaterEqual(found.count(1436), 18)

    def test_in_poll_mode(self) -> None:
        """Probes do not wait in the mailbox."""
        self.patch(simulated, "INNER_MTU", JUMBO)
        simulation = Simulation()
        client = with_client(simulation, flags=control_flags())
        client.start()
        simulation.advance(SEARCH)
        peer = simulation.hub.core.peer(client.user, client.device)
        self.assertEqual(peer.mtu.inner, JUMBO)

    def test_a_question_from_elsewhere(self) -> None:
        """A probe from where the client is not known to be draws no answer (a client would believe
        that the hub knows where it is); a question whether the hub is there does, and both draw the
        hub's own.
        """
        for size, expected in ((1200, 1), (96, 2)):
            scene = Scene()
            scene.simulation.advance(2)
            scene.mark()
            probe = control.PathChallenge(bytes(16)).pack(size)
            elsewhere = Endpoint(ip_address("192.0.2.9"), 9)
            scene.to_hub(Scene.sealed(scene.client.core.hub, probe), elsewhere)
            answers = [one for one in scene.sent() if one.destination == elsewhere]
            self.assertEqual(len(answers), expected)


def control_flags() -> simulated.LoginFlags:
    return simulated.LoginFlags.DELIVER_ON_POLL | simulated.LoginFlags.SEGMENT_FRAMES
