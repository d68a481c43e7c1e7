"""Path validation by itself: what was asked, what is taken for an answer, and the bounds."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.clientstate import State
from pyvpn.core.paths import PathValidation
from pyvpn.core.transport import Session
from pyvpn.errors import RemoteProtocolError
from pyvpn.testing.simulation import Endpoint, ip_packet
from tests.core.scene import Scene

# PROTOCOL 6, "Paths", retyped: 3 challenges in 5 s, 5 answers a second, 64 bytes each.
CHALLENGES, CHALLENGE_TIME, RESPONSES, FRAME = 3, 5.0, 5, 64
SPACING = 0.5


def place(number: int) -> Endpoint:
    return Endpoint(IPv4Address("192.0.2.1") + number, 1000 + number)


def token(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Answers(SynchronousTestCase):
    def setUp(self) -> None:
        self.paths = PathValidation()
        self.paths.ask(place(1), token(1), 100.0)

    def refused(self, where: Endpoint, data: bytes, now: float) -> None:
        error = self.assertRaises(RemoteProtocolError, self.paths.answered, where, data, now)
        self.assertEqual(error.reason, "path_response_unexpected")

    def test_from_where_it_was_asked(self) -> None:
        """The right data from the challenged address is an answer, once."""
        self.paths.answered(place(1), token(1), 100.1)
        self.refused(place(1), token(1), 100.2)

    def test_wrong_ones(self) -> None:
        """Other data, another address or port, another of our own addresses: no answer, and the
        right one still is.
        """
        self.refused(place(1), token(2), 100.1)
        self.refused(place(2), token(1), 100.1)
        self.refused(place(1)._replace(port=1), token(1), 100.1)
        self.refused(place(1)._replace(local=place(9)), token(1), 100.1)
        self.paths.answered(place(1), token(1), 100.1)

    def test_crossed(self) -> None:
        """Of two addresses asked at the same time each must send back what it was sent."""
        self.paths.ask(place(2), token(2), 100.1)
        self.refused(place(1), token(2), 100.2)
        self.refused(place(2), token(1), 100.2)
        self.paths.answered(place(2), token(2), 100.2)

    def test_late(self) -> None:
        """A challenge can be answered for 5 s."""
        self.refused(place(1), token(1), 100.0 + CHALLENGE_TIME)
        self.paths.answered(place(1), token(1), 100.0 + CHALLENGE_TIME - 0.001)

    def test_each_of_three(self) -> None:
        """Three challenges to one address are under way at most; any of them may be answered."""
        for number in (2, 3):
            self.paths.ask(place(1), token(number), 100.0 + number)
        self.assertEqual(len(self.paths.open), CHALLENGES)
        self.paths.answered(place(1), token(1), 103.5)

    def test_heard_where_it_is_known_to_be(self) -> None:
        """A peer heard at its endpoint has not moved: what was asked elsewhere is void."""
        self.paths.cancel()
        self.refused(place(1), token(1), 100.1)


class Bounds(SynchronousTestCase):
    @given(
        st.lists(st.tuples(st.floats(0, 0.9), st.integers(0, 4), st.integers(0, 200)), max_size=80)
    )
    @settings(deadline=None, max_examples=200)
    def test_any_schedule(self, steps: list[tuple[float, int, int]]) -> None:
        """Whatever comes from where and when: never more than 3 challenges within 5 s, none twice
        to one address within 0.5 s, 5 answers a second, and no address gets more than it sent.
        """
        paths = PathValidation()
        now = 10.0
        asked: list[tuple[float, Endpoint]] = []
        responded: list[float] = []
        received: dict[Endpoint, int] = {}
        sent: dict[Endpoint, int] = {}
        for wait, number, octets in steps:
            now += wait
            where = place(number)
            paths.arrived(where, octets)
            received[where] = received.get(where, 0) + octets
            try:
                if octets % 2:
                    paths.spend(where)
                    sent[where] = sent.get(where, 0) + FRAME
                    paths.respond(now)
                    responded.append(now)
                elif paths.due(where, now):
                    paths.spend(where)
                    sent[where] = sent.get(where, 0) + FRAME
                    paths.ask(where, token(len(asked)), now)
                    asked.append((now, where))
            except RemoteProtocolError:
                pass
            self.assertLessEqual(sent.get(where, 0), received[where])
        times = [time for time, _ in asked]
        for index, first in enumerate(times):
            self.assertLessEqual(
                sum(1 for time in times[index:] if time - first < CHALLENGE_TIME), CHALLENGES
            )
        for where in {where for _, where in asked}:
            own = [time for time, other in asked if other == where]
            self.assertTrue(all(b - a >= SPACING for a, b in pairwise(own)), own)
        for index, first in enumerate(responded):
            self.assertLessEqual(
                sum(1 for time in responded[index:] if time - first < 1.0), RESPONSES
            )

    def test_positive_control(self) -> None:
        """Within the bounds all is allowed: three challenges, five answers, and again later."""
        paths = PathValidation()
        for start in (0.0, CHALLENGE_TIME):
            for number in range(CHALLENGES):
                now = start + number * SPACING
                paths.arrived(place(1), FRAME)
                self.assertTrue(paths.due(place(1), now))
                paths.spend(place(1))
                paths.ask(place(1), token(number), now)
                self.assertFalse(paths.due(place(1), now + SPACING - 0.001))
        for start in (0.0, 1.0):
            for _ in range(RESPONSES):
                paths.respond(start)
            self.assertRaises(RemoteProtocolError, paths.respond, start + 0.999)

    def test_short_datagrams_add_up(self) -> None:
        """Two keepalives of 32 bytes make room for one challenge, one does not, and what another
        address sent does not count.
        """
        paths = PathValidation()
        paths.arrived(place(1), 32)
        error = self.assertRaises(RemoteProtocolError, paths.spend, place(1))
        self.assertEqual(error.reason, "path_amplification")
        paths.arrived(place(1), 32)
        self.assertRaises(RemoteProtocolError, paths.spend, place(2))
        paths.spend(place(1))
        self.assertRaises(RemoteProtocolError, paths.spend, place(1))


class InTheCore(SynchronousTestCase):
    """What draws a challenge and what does not, on the hub and on the client."""

    elsewhere = place(1)

    def setUp(self) -> None:
        self.scene = Scene()
        lease = self.scene.client.lease
        self.to_hub = ip_packet(lease.ipv4, IPv4Address("10.10.0.1"), bytes(12))
        self.to_client = ip_packet(IPv4Address("10.10.0.1"), lease.ipv4, bytes(12))

    def sent_there(self) -> list[int]:
        return [len(d.payload) for d in self.scene.sent() if d.destination == self.elsewhere]

    def test_the_newest_alone(self) -> None:
        """A datagram that was overtaken by one from the endpoint is taken, and draws nothing; the
        same one, newest, draws a challenge (control).
        """
        scene, hub = self.scene, self.scene.client.core.hub
        held_back = scene.sealed(hub, self.to_hub)
        scene.sealed_to_hub(self.to_hub)
        scene.to_hub(held_back, self.elsewhere)
        self.assertEqual(len(scene.hub.received), 2)
        self.assertEqual(self.sent_there(), [])
        scene.to_hub(scene.sealed(hub, self.to_hub), self.elsewhere)
        self.assertEqual(self.sent_there(), [FRAME])

    def test_replays_and_forgeries(self) -> None:
        """Neither a replay nor a forgery from elsewhere draws anything."""
        scene = self.scene
        datagram = scene.sealed(scene.client.core.hub, self.to_hub)
        scene.to_hub(datagram)
        scene.to_hub(datagram, self.elsewhere)
        scene.to_hub(datagram[:-1] + bytes([datagram[-1] ^ 1]), self.elsewhere)
        self.assertEqual(self.sent_there(), [])
        self.assertEqual(scene.hub.core.counters["transport_replayed"], 1)
        self.assertEqual(scene.hub.core.counters["transport_forged"], 1)

    def test_an_older_session(self) -> None:
        """The session before proves no new place: it is what delayed datagrams come on."""
        scene = self.scene
        old = scene.client.core.hub.current
        scene.simulation.advance(126)
        self.assertIs(old, scene.client.core.hub.previous)
        scene.mark()
        scene.to_hub(scene.sealed(scene.client.core.hub, self.to_hub, old), self.elsewhere)
        self.assertEqual(len(scene.hub.received), 1)
        self.assertEqual(self.sent_there(), [])

    def test_late_ones_from_the_endpoint(self) -> None:
        """What comes late from the endpoint, overtaken or on the session before, does not void the
        challenges; what is newer does (control).
        """
        scene, hub = self.scene, self.scene.client.core.hub
        old = hub.current
        scene.simulation.advance(126)
        overtaken = scene.sealed(hub, self.to_hub)
        scene.to_hub(scene.sealed(hub, self.to_hub), self.elsewhere)
        scene.to_hub(overtaken)
        scene.to_hub(scene.sealed(hub, self.to_hub, old))
        self.assertEqual(len(scene.peer.paths.open), 1)
        scene.sealed_to_hub(self.to_hub)
        self.assertEqual(scene.peer.paths.open, ())

    def test_the_last_word(self) -> None:
        """A BYE from elsewhere ends the session and draws nothing, on either side; nor does a
        challenge behind it in the same read leave a timer that nobody serves.
        """
        scene, client = self.scene, self.scene.client
        hub = client.core.hub
        bye = control.Bye(0, "x" * 40).pack()
        ask = control.PathChallenge(bytes(16)).pack(len(bye))
        both = scene.sealed(scene.peer, bye) + scene.sealed(scene.peer, ask)
        last = scene.sealed(hub, bye)
        client.hear(both, len(both) // 2, scene.hub.endpoint)
        scene.mark()
        scene.to_hub(last, self.elsewhere)
        self.assertEqual(scene.sent(), [])
        scene.simulation.advance(5)
        self.assertIs(client.core.state, State.UP)

    def test_the_client_asks_too(self) -> None:
        """What the hub sends from another address is taken and asked about; the endpoint stays
        until the answer comes from there.
        """
        scene, client = self.scene, self.scene.client
        scene.to_client(scene.sealed(scene.peer, self.to_client), self.elsewhere)
        self.assertEqual(client.received, [self.to_client])
        self.assertEqual(self.sent_there(), [FRAME])
        self.assertEqual(client.core.hub.endpoint, scene.hub.endpoint)
        (challenge,) = client.core.hub.paths.open
        response = control.PathResponse(challenge.data).pack()
        scene.to_client(scene.sealed(scene.peer, response), self.elsewhere)
        self.assertEqual(client.core.hub.endpoint, self.elsewhere)

    def test_challenges_are_answered_where_they_came_from(self) -> None:
        """From the endpoint or elsewhere, with the data it had; a padded one is answered unpadded,
        and a short one from elsewhere not at all.
        """
        scene = self.scene
        hub = scene.client.core.hub
        for size, source, answer in (
            (0, scene.client.endpoint, [FRAME]),
            (1024, scene.client.endpoint, [FRAME]),
            (96, self.elsewhere, [FRAME, FRAME]),
            (0, self.elsewhere._replace(port=9), [FRAME]),
        ):
            scene.simulation.advance(10)
            scene.mark()
            frame = control.PathChallenge(bytes(range(16))).pack(size)
            scene.to_hub(scene.sealed(hub, frame), source)
            sent = [len(d.payload) for d in scene.sent() if d.destination == source]
            self.assertEqual(sent, answer, (size, source))
        scene.simulation.advance(10)
        scene.mark()
        bare = control.PathChallenge(bytes(16)).pack()[:20]  # without its padding: 52 bytes
        scene.to_hub(scene.sealed(hub, bare), self.elsewhere._replace(port=10))
        self.assertEqual(scene.sent(), [])

    def test_a_rekey_passed_on_from_elsewhere(self) -> None:
        """A 0x50 that somebody passes on from his address moves no session that is alive: the first
        datagram comes from the proven endpoint, which stays.
        """
        scene = self.scene
        client = scene.client

        def diverted(datagram):  # type: ignore[no-untyped-def]
            if datagram.kind == 0x50:
                passed_on = datagram._replace(source=self.elsewhere)
                scene.simulation.network.inject(passed_on, scene.now + 0.001)
            elif datagram.destination == self.elsewhere:
                passed_on = datagram._replace(
                    source=scene.hub.endpoint, destination=client.endpoint
                )
                scene.simulation.network.inject(passed_on, scene.now + 0.001)
            return datagram.kind != 0x50

        scene.simulation.network.passes.append(diverted)
        old = client.core.hub.current
        scene.simulation.advance(130)
        self.assertIs(old, client.core.hub.previous)
        there = [d.kind for d in scene.sent() if d.destination == self.elsewhere]
        self.assertEqual(there, [0x51])
        self.assertEqual(scene.peer.endpoint, client.endpoint)
        self.assertEqual(scene.hub.core.counters["path_moved"], 0)

    def answered_login(self, source: Endpoint) -> bytes:
        """Let the hub answer a login from ``source``; the first datagram on that session."""
        scene = self.scene
        attempt = scene.attempt()
        scene.to_hub(attempt.message, source)
        (answer,) = [d.payload for d in scene.sent() if d.kind == 0x51]
        keys = attempt.answered(answer)
        assert scene.peer.next is not None
        session = Session(
            send_key=keys.send,
            receive_key=keys.receive,
            aes=False,
            local_index=77,
            remote_index=scene.peer.next.local_index,
            inner_mtu=1416,
            created=scene.now,
        )
        head, body = session.seal_burst([control.Poll(bytes(12), 1, 0, 0).pack()])
        return bytes(head) + bytes(body)

    def test_first_datagrams(self) -> None:
        """The first datagram on a session does not bring the endpoint along: it is where the 0x51
        went, or stays where a session that lives has it. Where a session that is over had it does
        not count.
        """
        login, own = place(2), self.scene.client.endpoint
        for source, over, endpoint in (
            (place(1), False, login),
            (login, False, login),
            (own, False, own),
            (own, True, login),
        ):
            self.setUp()
            self.scene.client.asleep = True
            if over:
                self.scene.sealed_to_hub(control.Bye(0, "").pack())
            first = self.answered_login(login)
            self.scene.mark()
            self.scene.to_hub(first, source)
            self.assertEqual(self.scene.peer.endpoint, endpoint, (source, over))
            there = [len(d.payload) for d in self.scene.sent() if d.destination == source]
            self.assertEqual(there == [FRAME], source != endpoint, (source, over))
