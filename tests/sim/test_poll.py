"""Delivery on poll: what waits, for how long, and who gets it where (PROTOCOL 6 and 8)."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.control import Frame, Poll, Reply
from pyvpn.core.events import Connected, Disconnected
from pyvpn.core.login import LoginFlags
from pyvpn.core.mailbox import Mailbox
from pyvpn.testing.simulation import (
    VIRTIO,
    Client,
    Datagram,
    Simulation,
    Weather,
    numbered_packet,
)
from tests.sim.rules import (
    DATA,
    HUB4,
    LOGIN,
    POLL_SIZE,
    REKEY_AFTER_TIME,
    ROUND_TRIP,
    ask_no_mtu,
    connected,
    cut,
    heal,
    times,
    with_client,
)

# PROTOCOL 6 and 8, in seconds, packets and bytes.
POLL_INTERVAL_OF_POLL = 1.0
MOST_POLLS = 20
AGE = 10
MAILBOX_PACKETS, MAILBOX_BYTES = 256, 512 << 10
HELD_BACK = 30
LONGEST_INTERVAL = 60
#: The hub does not know a client's interval before this, and waits for the slowest.
LEARNING_TIME = 75

SEGMENTS = LoginFlags.SEGMENT_FRAMES
POLLING = LoginFlags.DELIVER_ON_POLL


def polling(seed: int = 0, **options: Any) -> tuple[Simulation, Client]:
    """A hub and a client that polls each second, if nothing else is said, and is known to."""
    simulation, client = connected(seed, flags=POLLING, **options)
    simulation.advance(LEARNING_TIME + 1)
    ask_no_mtu(simulation)
    return simulation, client


def mailbox_of(simulation: Simulation, client: Client) -> Mailbox:
    peer = simulation.hub.core.peer(client.user, client.device)
    assert peer is not None
    assert peer.mailbox is not None
    return peer.mailbox


def mail(simulation: Simulation, client: Client, *numbers: int) -> list[bytes]:
    """Let the hub's machine send numbered packets to a client; those packets."""
    packets = [numbered_packet(number, HUB4, client.lease.ipv4) for number in numbers]
    simulation.hub.send(*packets)
    return packets


def polls(simulation: Simulation, client: Client, start: float) -> list[float]:
    """When the client sent what is as long as a poll."""
    return [
        datagram.time - start
        for datagram in simulation.network.captured
        if datagram.source == client.endpoint
        and datagram.time >= start
        and (datagram.kind, len(datagram.payload)) == (DATA, POLL_SIZE)
    ]


class ForgetfulLink:
    """A NAT in front of a client: it forgets a mapping ``memory`` seconds after the last datagram
    from inside, and gives the next one another port.
    """

    def __init__(self, simulation: Simulation, client: Client, memory: float = 20) -> None:
        self.simulation = simulation
        self.client = client
        self.memory = memory
        self.used = simulation.now
        self.forgotten = 0
        self._transmit = client._transmit
        client._transmit = self.transmit  # type: ignore[method-assign]
        simulation.network.passes.append(self.passes)

    def transmit(self, bursts: list[Any]) -> None:
        if bursts:
            now = self.simulation.now
            if now - self.used > self.memory:
                self.forgotten += 1
                self.client.move(self.simulation.new_endpoint())
            self.used = now
        self._transmit(bursts)

    def passes(self, datagram: Datagram) -> bool:
        inward = datagram.destination == self.client.endpoint
        return not inward or self.simulation.now - self.used <= self.memory


class Waiting(SynchronousTestCase):
    def test_for_the_poll(self) -> None:
        """What comes for a client that polls leaves the hub with its next poll, not before."""
        simulation, client = polling()
        simulation.advance_to(client.core._poll_due - 0.5)
        before = len(simulation.network.captured)
        packets = mail(simulation, client, 1)
        simulation.advance(0.49)
        self.assertEqual(simulation.network.captured[before:], [])
        simulation.advance(0.01 + ROUND_TRIP)
        self.assertEqual(client.received, packets)

    def test_side_by_side(self) -> None:
        """On one hub one client polls and another does not: that one has its packet at once."""
        simulation, client = polling()
        other = with_client(simulation, "bob", "pw")
        other.start()
        simulation.advance_to(client.core._poll_due + 0.5)
        packets, others = mail(simulation, client, 1), mail(simulation, other, 2)
        simulation.advance(ROUND_TRIP)
        self.assertEqual((client.received, other.received), ([], others))
        simulation.advance(POLL_INTERVAL_OF_POLL)
        self.assertEqual((client.received, other.received), (packets, others))

    def test_what_the_client_sends_does_not(self) -> None:
        """The other way nothing waits."""
        simulation, client = polling()
        packet = numbered_packet(1, client.lease.ipv4, HUB4)
        client.send(packet)
        simulation.advance(ROUND_TRIP)
        self.assertEqual(simulation.hub.received, [packet])

    def test_while_the_cable_is_cut(self) -> None:
        """A message sent while the client is away arrives with its next poll; the same to a client
        with delivery at once is lost.
        """
        for flags in (POLLING, LoginFlags(0)):
            simulation, client = connected(flags=flags, poll_interval=1.0)
            simulation.advance(LEARNING_TIME)
            cut(simulation)
            simulation.advance(2)
            packets = mail(simulation, client, 1)
            simulation.advance(3)
            heal(simulation)
            simulation.advance(POLL_INTERVAL_OF_POLL + ROUND_TRIP)
            self.assertEqual(client.received, packets if flags else [])
            self.assertEqual(client.told(Disconnected), [])

    def test_in_order_and_whole(self) -> None:
        """Packets of any length, over minutes and rekeys, arrive all, in order, once."""
        simulation, client = polling()
        sent, random = [], Random(1)
        for number in range(0, 3000, 5):
            sent += mail(simulation, client, *range(number, number + 5))
            simulation.advance(random.random())
        simulation.advance(POLL_INTERVAL_OF_POLL)
        self.assertEqual(client.received, sent)
        self.assertGreaterEqual(len(times(simulation.network.captured, 0)), 3)  # rekeys

    def test_age(self) -> None:
        """Longer than 10 s nothing waits: what is older goes, counted, and its memory with it."""
        simulation, client = polling()
        cut(simulation)
        start = simulation.now
        sent = []
        for number in range(25):
            sent += mail(simulation, client, number)
            simulation.advance(1)
        self.assertEqual(len(mailbox_of(simulation, client).frames), AGE - 1)
        heal(simulation)
        simulation.advance(POLL_INTERVAL_OF_POLL + ROUND_TRIP)
        self.assertEqual(client.received, sent[-len(client.received) :])
        self.assertTrue(AGE - 2 <= len(client.received) <= AGE, len(client.received))
        expired = simulation.hub.core.counters["mailbox_expired"]
        self.assertEqual(expired, 25 - len(client.received))
        self.assertLess(simulation.now - start, 27)

    def test_of_one_that_never_comes_back(self) -> None:
        """What waits for a client that said BYE, or just vanished, is gone after its age."""
        for leave in (Client.stop, lambda client: setattr(client, "asleep", True)):
            simulation, client = polling()
            leave(client)
            simulation.advance(1)
            mail(simulation, client, *range(100))
            self.assertGreater(simulation.hub.core._mail.octets, 0)
            simulation.advance(AGE)
            self.assertEqual(simulation.hub.core._mail.octets, 0)

    def test_bounds(self) -> None:
        """256 packets and 512 KiB wait; the oldest go first."""
        simulation, client = polling()
        cut(simulation)
        sent = mail(simulation, client, *range(MAILBOX_PACKETS + 44))
        heal(simulation)
        simulation.advance(3)
        self.assertEqual(client.received, sent[44:])
        self.assertEqual(simulation.hub.core.counters["mailbox_full"], 44)
        big = numbered_packet(1, HUB4, client.lease.ipv4) + bytes(8000)
        simulation.hub.send(*[big] * 100)
        box = mailbox_of(simulation, client)
        self.assertEqual(len(box.frames), MAILBOX_BYTES // len(big))


class Fetching(SynchronousTestCase):
    def test_interval(self) -> None:
        """Once a second when the hub grants delivery on poll, else as with push; or as asked."""
        for options, granted, interval in (
            ({"flags": POLLING}, True, 1.0),
            ({"flags": POLLING}, False, 25.0),
            ({}, True, 25.0),
            ({"flags": POLLING, "poll_interval": 0.05}, True, 0.05),
            ({"flags": POLLING, "poll_interval": 60.0}, True, 60.0),
            ({"poll_interval": 60.0}, True, 60.0),
        ):
            simulation = Simulation()
            if not granted:
                simulation.hub.core._offers = LoginFlags(0)
            client = with_client(simulation, **options)
            client.start()
            simulation.advance(0.5)
            flags = options.get("flags", SEGMENTS) if granted else 0
            self.assertEqual(client.told(Connected)[0].flags, flags)
            start = client.core._poll_due
            simulation.advance_to(start + interval + 0.01)
            for at, expected in zip(polls(simulation, client, start), (0, interval), strict=True):
                self.assertAlmostEqual(at, expected, places=6)

    def test_20_a_second(self) -> None:
        """At 0.05 s no poll is lost to the hub's limit, though the network jitters."""
        simulation, client = connected(flags=POLLING, poll_interval=0.05)
        simulation.network.weather = Weather(delay=0.02, jitter=0.04)
        start = simulation.now
        simulation.advance(100)
        self.assertAlmostEqual(len(polls(simulation, client, start)), 2000, delta=20)
        self.assertEqual(simulation.hub.core.counters["poll_too_often"], 0)
        self.assertEqual(times(simulation.network.captured, start, LOGIN), [])

    def test_the_rest_at_once(self) -> None:
        """When the credit was not enough, the client fetches the rest at once, not a second later,
        but no more than 20 times a second.
        """
        simulation, client = polling()
        simulation.advance_to(client.core._poll_due - 0.1)
        sent = mail(simulation, client, *range(MAILBOX_PACKETS))
        start = simulation.now
        simulation.advance(0.1 + 4 / MOST_POLLS)
        self.assertEqual(client.received, sent)
        asked = polls(simulation, client, start)
        self.assertGreater(len(asked), 1)
        for before, after in pairwise(asked):
            self.assertGreaterEqual(after - before, 1 / MOST_POLLS - 1e-9)
        # Then it is quiet again.
        simulation.advance(1.5)
        start = simulation.now
        simulation.advance(10)
        self.assertAlmostEqual(len(polls(simulation, client, start)), 10, delta=1)

    def test_a_hub_that_always_has_more(self) -> None:
        """However often a hub says that more waits, there are 20 polls a second."""
        simulation, client = polling()
        reply = simulation.hub.core._reply

        def greedy(*arguments: Any) -> None:
            mailbox_of(simulation, client).octets += 1
            reply(*arguments)
            mailbox_of(simulation, client).octets -= 1

        simulation.hub.core._reply = greedy  # type: ignore[method-assign]
        start = simulation.now
        simulation.advance(10)
        asked = len(polls(simulation, client, start))
        self.assertTrue(9 * MOST_POLLS < asked <= 10 * MOST_POLLS + 1, asked)
        self.assertEqual(simulation.hub.core.counters["poll_too_often"], 0)

    def test_reply_tells_what_waits(self) -> None:
        """REPLY's queued bytes are those that the poll's credit did not cover."""
        simulation, client = polling()
        replies: list[Reply] = []
        take = client.core._control_received

        def control_received(peer: Any, session: Any, frame: Frame, *rest: Any) -> None:
            if isinstance(frame, Reply):
                replies.append(frame)
            take(peer, session, frame, *rest)

        client.core._control_received = control_received  # type: ignore[method-assign]
        simulation.advance_to(client.core._poll_due - 0.1)
        sent = mail(simulation, client, *range(200))
        simulation.advance(1)
        left = sum(len(VIRTIO + packet) for packet in sent[128:])
        self.assertEqual([reply.queued for reply in replies[:2]], [left, 0])

    def test_not_before_it_is_set_up(self) -> None:
        """A client gives no credit before its TUN has the hub's addresses: it is kept for it. So
        after a start, and after an outage in which its session ended.
        """
        for outage in (False, True):
            simulation, client = polling()
            act, configured = client._event, []

            def slowly(event: object, act: Any = act, configured: Any = configured) -> None:
                (configured.append if hasattr(event, "config") else act)(event)

            client._event = slowly  # type: ignore[method-assign]
            if outage:
                cut(simulation)
                simulation.advance(190)
                heal(simulation)
                simulation.advance_until(lambda c=client: c.core.hub.current, 310)
            else:
                client.restart()
                client.start()
            sent = mail(simulation, client, *range(3))
            simulation.advance(5)
            self.assertEqual(client.core.state, State.UP)
            self.assertEqual(client.received, [])
            act(configured[0])
            client.drain()
            simulation.advance(1 / MOST_POLLS + ROUND_TRIP)
            self.assertEqual(client.received, sent)

    def test_credit(self) -> None:
        """Only who was granted delivery on poll gives credit."""
        for flags in (POLLING, LoginFlags(0)):
            simulation, _ = connected(flags=flags, poll_interval=1.0)
            found: list[Poll] = []
            take = simulation.hub.core._control_received

            def control_received(
                peer: Any, session: Any, frame: Frame, *rest: Any, take: Any = take, to: Any = found
            ) -> None:
                if isinstance(frame, Poll):
                    to.append(frame)
                take(peer, session, frame, *rest)

            simulation.hub.core._control_received = control_received  # type: ignore[method-assign]
            simulation.advance(3)
            credit = {(poll.credit_bytes, poll.credit_datagrams) for poll in found}
            self.assertEqual(credit, {(256 << 10, 128)} if flags else {(0, 0)})

    def test_an_old_reply(self) -> None:
        """A REPLY that comes after the next poll was sent causes no further one."""
        simulation, client = polling()
        simulation.network.weather.delay = 1.25
        simulation.advance(3)
        mail(simulation, client, *range(MAILBOX_PACKETS))
        start = simulation.now
        simulation.advance(20)
        asked = polls(simulation, client, start)
        gaps = [after - before for before, after in pairwise(asked)]
        self.assertGreater(min(gaps), 0.99)
        self.assertEqual(len(client.received), MAILBOX_PACKETS)

    def test_first_on_a_session(self) -> None:
        """The first datagram on each session is a poll, however short ago the last one was."""
        simulation, client = connected(flags=POLLING, poll_interval=0.05)
        simulation.network.weather.delay = 0.001
        session = client.core.hub.current
        simulation.advance_until(lambda: client.core.hub.current is not session, 130)
        (last,) = simulation.network.captured[-1:]
        self.assertEqual((last.time, len(last.payload)), (simulation.now, POLL_SIZE))
        self.assertEqual(
            last.payload[4:8], client.core.hub.current.remote_index.to_bytes(4, "little")
        )


class Sessions(SynchronousTestCase):
    def test_a_rekey(self) -> None:
        """The mailbox outlives the session that it filled in."""
        simulation, client = polling(poll_interval=4.0)
        session = client.core.hub.current
        simulation.advance_to(session.created + REKEY_AFTER_TIME)
        simulation.advance_to(client.core._poll_due - 3)
        sent = mail(simulation, client, *range(20))
        client.core._begin(simulation.now, rekey=True)
        client.drain()
        simulation.advance(ROUND_TRIP * 2)
        self.assertIsNot(client.core.hub.current, session)
        self.assertEqual(client.received, sent)

    def test_a_restart(self) -> None:
        """A client that is killed and started again gets what came meanwhile."""
        simulation, client = polling()
        simulation.advance_to(client.core._poll_due + 0.5)
        sent = mail(simulation, client, *range(20))
        client.restart()
        simulation.advance(5)
        sent += mail(simulation, client, *range(20, 40))
        client.start()
        simulation.advance(1)
        self.assertEqual(client.received, sent)

    def test_a_clock_set_back(self) -> None:
        """Each session has stamps of its own: a wall clock that was set back disturbs no poll."""
        simulation, client = polling()
        client.wall_step = -3600 * 10**9
        session = client.core.hub.current
        simulation.advance_until(lambda: client.core.hub.current is not session, 130)
        sent = mail(simulation, client, *range(3))
        simulation.advance(POLL_INTERVAL_OF_POLL + ROUND_TRIP)
        self.assertEqual(client.received, sent)
        self.assertEqual(simulation.hub.core.counters["poll_out_of_order"], 0)

    def test_of_a_device_that_is_forgotten(self) -> None:
        """The mail of a device that was removed is gone with it."""
        simulation, client = polling()
        mail(simulation, client, *range(10))
        self.assertGreater(simulation.hub.core._mail.octets, 0)
        simulation.hub.core.forget_device(client.user, client.device, simulation.now)
        self.assertEqual(simulation.hub.core._mail.octets, 0)

    def test_to_push(self) -> None:
        """A client that comes back without the flag gets at once what waits, in order, and then
        what comes; and the other way round.
        """
        simulation, client = polling()
        simulation.advance_to(client.core._poll_due + 0.5)
        sent = mail(simulation, client, *range(20))
        client._options["flags"] = LoginFlags(0)
        client.restart()
        client.start()
        simulation.advance(0.3)
        self.assertEqual(client.received, sent)
        self.assertEqual(simulation.hub.core._mail.octets, 0)
        sent += mail(simulation, client, 21)
        simulation.advance(ROUND_TRIP)
        self.assertEqual(client.received, sent)
        client._options["flags"] = POLLING
        client.restart()
        client.start()
        simulation.advance(0.3)
        simulation.advance_to(client.core._poll_due + 0.5)
        sent += mail(simulation, client, 22)
        simulation.advance(ROUND_TRIP)
        self.assertEqual(client.received, sent[:-1])
        simulation.advance(POLL_INTERVAL_OF_POLL)
        self.assertEqual(client.received, sent)

    def test_staged_before_the_first_session(self) -> None:
        """What waits for the first session of a device after the hub's restart is not lost."""
        simulation, client = polling()
        client.stop()
        simulation.advance(1)
        simulation.hub.restart()
        sent = mail(simulation, client, *range(10))
        simulation.advance(5)
        client.start()
        simulation.advance(1)
        self.assertEqual(client.received, sent)

    @given(
        st.integers(0, 2**32),
        st.builds(
            Weather,
            loss=st.floats(0, 0.5),
            duplicate=st.floats(0, 0.5),
            corrupt=st.floats(0, 0.2),
            delay=st.floats(0, 2),
            jitter=st.floats(0, 3),
        ),
        st.sampled_from((0.05, 0.5, 1.0, 8.0)),
    )
    @settings(deadline=None, max_examples=25)
    def test_any_weather(self, seed: int, weather: Weather, interval: float) -> None:
        """In any weather each packet arrives at most once; when it clears, all is as it was."""
        simulation, client = connected(seed, flags=POLLING, poll_interval=interval)
        sent: list[bytes] = []
        simulation.network.weather = weather
        for number in range(0, 300, 3):
            sent += mail(simulation, client, *range(number, number + 3))
            simulation.advance(0.7)
        self.assertEqual(len(set(client.received)), len(client.received))
        self.assertLessEqual(set(client.received), set(sent))
        simulation.network.weather = Weather()
        simulation.advance(320)
        client.received.clear()
        sent = mail(simulation, client, *range(1000, 1010))
        simulation.advance(interval + 1)
        self.assertEqual(client.received, sent)


class ForgetfulLinks(SynchronousTestCase):
    """A client that polls once a minute over a link that forgets it after 20 s."""

    def minutes(self, count: int, **options: Any) -> tuple[ForgetfulLink, list[bytes]]:
        """Let the hub send two packets between two polls, an early and a late one; the packets."""
        simulation, client = connected(poll_interval=60.0, **options)
        link = ForgetfulLink(simulation, client)
        sent = []
        for number in range(count):
            start = client.core._polled
            simulation.advance_to(start + 5)
            sent += mail(simulation, client, 2 * number)
            simulation.advance_to(start + 50)
            sent += mail(simulation, client, 2 * number + 1)
            simulation.advance_to(start + 61)
        self.assertEqual(client.told(Disconnected), [])
        self.assertEqual(len(client.told(Connected)), 1)
        return link, sent

    def test_on_poll(self) -> None:
        """Everything arrives, in order, though the link forgets the client between two polls; and
        it never has to log in anew.
        """
        link, sent = self.minutes(30, flags=POLLING)
        self.assertEqual(link.client.received, sent)
        self.assertGreater(link.forgotten, 25)
        self.assertEqual(link.simulation.hub.core.counters["mailbox_expired"], 0)
        self.assertGreater(link.simulation.hub.core.counters["path_moved"], 10)

    def test_at_once(self) -> None:
        """With push it stays connected and what it asks is answered; but what comes when the link
        has forgotten it is lost. That is what the mailbox, or a shorter interval, is for.
        """
        link, sent = self.minutes(30)
        self.assertGreater(link.forgotten, 25)
        self.assertEqual(link.client.received, sent[::2])
        simulation, client = link.simulation, link.client
        simulation.advance(30)
        client.send(numbered_packet(10**6, client.lease.ipv4, HUB4))
        simulation.advance(2 * ROUND_TRIP)  # the way back is validated
        (answer,) = mail(simulation, client, 10**6)
        simulation.advance(ROUND_TRIP)
        self.assertEqual(client.received[-1], answer)

    def test_at_once_with_a_shorter_interval(self) -> None:
        """Control: with polls every 15 s the link forgets nothing, and nothing is lost."""
        simulation, client = connected(poll_interval=15.0)
        link = ForgetfulLink(simulation, client)
        sent = []
        for number in range(100):
            sent += mail(simulation, client, number)
            simulation.advance(7)
        self.assertEqual((link.forgotten, client.received), (0, sent))

    def test_any_long_interval_keeps_its_session(self) -> None:
        """However the interval falls into a session's life, the rekey comes before its end."""
        for interval in (45.0, 59.0, 59.999999, 60.0):
            for flags in (POLLING, LoginFlags(0)):
                simulation, client = connected(flags=flags, poll_interval=interval)
                simulation.advance(3600)
                self.assertEqual(client.told(Disconnected), [], interval)
                simulation.network.weather = Weather(loss=0.1)
                simulation.advance(3600)
                self.assertLess(len(client.told(Disconnected)), 3, interval)


class Attacks(SynchronousTestCase):
    """Somebody on the way who cannot read, but copies, holds back and sends on."""

    def test_polls_held_back(self) -> None:
        """A poll that was held back for over 30 s fetches nothing, and whoever sends it on from
        elsewhere is not even asked whether the client is there; one that was 29 s late is.
        """
        for late, counted in ((HELD_BACK + 1, 1), (HELD_BACK - 1, 0)):
            simulation, client = polling()
            stolen: list[Datagram] = []
            simulation.network.passes.append(lambda d, s=stolen: s.append(d) is not None)
            simulation.advance_until(lambda s=stolen: s, 2)
            client.asleep = True  # nothing newer is on its way
            simulation.network.passes.clear()
            simulation.advance(late - simulation.now + stolen[0].time)
            mail(simulation, client, 1)
            start = len(simulation.network.captured)
            elsewhere = simulation.new_endpoint()
            simulation.network.inject(stolen[0]._replace(source=elsewhere), simulation.now)
            simulation.advance(0)
            answers = simulation.network.captured[start:]
            there = [d for d in answers if d.destination == elsewhere]
            self.assertEqual(simulation.hub.core.counters["poll_held_back"], counted)
            self.assertEqual(len(there), 1 - counted)
            self.assertEqual(len(answers), 0 if counted else 2)
            self.assertEqual(len(mailbox_of(simulation, client).frames), 1)

    def test_copies_from_elsewhere(self) -> None:
        """Somebody whose copy of each poll is faster than the poll gets no more than challenges;
        the client gets its mail all the same, at where it is known to be.
        """
        simulation, client = polling()
        elsewhere = simulation.new_endpoint()

        def copied(datagram: Datagram) -> bool:
            if datagram.source == client.endpoint and datagram.kind == DATA:
                copy = datagram._replace(source=elsewhere)
                simulation.network.inject(copy, datagram.time + 0.001)
            return True

        simulation.network.passes.append(copied)
        sent = []
        for number in range(60):
            sent += mail(simulation, client, number)
            simulation.advance(1)
        simulation.advance(5)
        self.assertEqual(client.received, sent)
        caught = [d for d in simulation.network.captured if d.destination == elsewhere]
        self.assertEqual({len(datagram.payload) for datagram in caught}, {POLL_SIZE})

    def test_mail_goes_where_the_client_is(self) -> None:
        """After a NAT has given the client another port, the mail goes there, and none to the old
        one, where somebody else may be now.
        """
        simulation, client = polling()
        old = client.endpoint
        client.move(simulation.new_endpoint())
        sent = mail(simulation, client, *range(20))
        start = simulation.now
        simulation.advance(POLL_INTERVAL_OF_POLL + 3 * ROUND_TRIP)
        self.assertEqual(client.received, sent)
        lost = [d for d in simulation.network.captured if d.destination == old and d.time > start]
        self.assertLessEqual({len(datagram.payload) for datagram in lost}, {96})  # its REPLY alone
