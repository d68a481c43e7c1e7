"""Guessing, spoofing and floods (PROTOCOL 8) against a hub with honest clients, on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import tai64n
from pyvpn.core.clientstate import State
from pyvpn.core.cookies import open_cookie_reply
from pyvpn.core.login import LoginAttempt, LoginFlags
from pyvpn.testing.simulation import Datagram, Endpoint, Simulation
from tests.sim.rules import (
    ANSWER,
    LOGIN,
    PASSWORD,
    USER,
    connected,
    times,
    with_client,
    works_both_ways,
)

# PROTOCOL 8, retyped.
USER_BURST, USER_INTERVAL = 10, 60
FREEZE_AFTER, FREEZE_TIME = 100, 3600
DEVICE_BURST, DEVICE_INTERVAL = 20, 5
LOAD_HOLDS = 1
COOKIE = 0x52
DAY = 86_400


class Guesser:
    """Somebody who holds the token, knows a name, and has a wrong password and any address.

    A guess whose mac2 is asked for is sent again with it where the guesser can receive.
    """

    def __init__(self, simulation: Simulation, user: str = USER, device: bytes = b"") -> None:
        self.simulation = simulation
        self.user = user
        self.device = device
        self.static = simulation.key_of("a wrong guess", user)
        self.sources = self._sources()

    @staticmethod
    def _sources() -> Iterator[Endpoint]:
        number = 0
        while True:
            number += 1
            yield Endpoint(IPv4Address("192.0.2.0") + number % 250, 1024 + number % 60_000)

    def message(self, cookie: bytes = b"") -> LoginAttempt:
        simulation = self.simulation
        return LoginAttempt(
            simulation.keys,
            self.static,
            index=simulation.random.randrange(1 << 32),
            stamp=tai64n.pack(tai64n.whiten(simulation.wall_clock())),
            device=self.device or simulation.random_bytes(16),
            user=self.user,
            flags=LoginFlags(0),
            random_bytes=simulation.random_bytes,
            cookie=cookie,
        )

    def guess(self, source: Endpoint | None = None) -> None:
        """Try once, and once more if the hub wants a cookie."""
        source = source or next(self.sources)
        attempt = self.message()
        for datagram in self.give(attempt.message, source):
            if datagram.kind == COOKIE:
                key = self.simulation.keys.cookie
                cookie = open_cookie_reply(datagram.payload, key, attempt.index, attempt.message)
                self.give(self.message(cookie).message, source)

    def give(self, message: bytes, source: Endpoint) -> list[Datagram]:
        """Bring a datagram to the hub at once; what it sends for it."""
        captured = self.simulation.network.captured
        before = len(captured)
        self.simulation.hub.hear(message, len(message), source)
        return captured[before:]


def every(simulation: Simulation, interval: float, seconds: float, act: Callable[[], Any]) -> None:
    """Let time go on and act at each interval."""
    end = simulation.now + seconds
    while simulation.now < end:
        act()
        simulation.advance(interval)


class Guessing(SynchronousTestCase):
    def bound_of_a_day(self) -> int:
        """What PROTOCOL 8 lets through from unknown devices in a day, freezes included.

        A row of 100 takes ten at once and 90 minutes; the hour after it is frozen, and fills the
        bucket again.
        """
        row = (FREEZE_AFTER - USER_BURST) * USER_INTERVAL
        rows = -(-DAY // (row + FREEZE_TIME))
        return rows * FREEZE_AFTER

    def test_a_day_from_anywhere(self) -> None:
        """From any number of addresses and devices a user's password is compared with at most
        1,000 guesses a day; the simple bound, without the freeze, is 1,450."""
        simulation = Simulation()
        simulation.add_user(USER, PASSWORD)
        guesser = Guesser(simulation)
        every(simulation, 20, DAY, guesser.guess)
        counters = simulation.hub.core.counters
        compared = counters["login_wrong"]
        self.assertLessEqual(compared, self.bound_of_a_day())
        self.assertLess(compared, USER_BURST + DAY / USER_INTERVAL)
        self.assertGreater(compared, 0.9 * self.bound_of_a_day())  # it was a real try
        self.assertEqual(self.bound_of_a_day(), 1000)
        self.assertEqual(counters["user_frozen"], compared // FREEZE_AFTER)
        self.assertGreater(counters["login_user_limited"], 1000)
        self.assertGreater(counters["login_frozen"], 1000)
        self.assertEqual(times(simulation.network.captured, 0, ANSWER), [])

    def test_from_a_stolen_device(self) -> None:
        """Who has a known device's id but no password has its bucket: 20, and one in 5 s."""
        simulation, client = connected()
        client.stop()
        guesser = Guesser(simulation, device=client.device)
        every(simulation, 1, 600, guesser.guess)
        compared = simulation.hub.core.counters["login_wrong"]
        self.assertLessEqual(compared, DEVICE_BURST + 600 / DEVICE_INTERVAL)
        self.assertGreater(compared, DEVICE_BURST + 600 / DEVICE_INTERVAL - 5)

    def test_the_owner_gets_in(self) -> None:
        """While somebody guesses all the time, and while his account is frozen, the owner's known
        device logs in within the time of its first try; the frozen account's new one does not."""
        simulation, client = connected()
        guesser = Guesser(simulation)
        client.stop()
        every(simulation, 1, 2 * 3600, guesser.guess)
        counters = simulation.hub.core.counters
        self.assertEqual(counters["user_frozen"], 1)
        client.start()
        every(simulation, 0.1, 3, guesser.guess)
        self.assertTrue(works_both_ways(simulation, client))
        new = with_client(simulation)
        new.start()
        every(simulation, 1, 60, guesser.guess)
        self.assertEqual(new.core.state, State.CONNECTING)  # a known weakness, and the control
        simulation.advance(2 * FREEZE_TIME)
        self.assertTrue(works_both_ways(simulation, new))

    def test_rekeys_go_on(self) -> None:
        """A session's rekeys are not hindered by an hour of guessing at its user's password."""
        simulation, client = connected()
        every(simulation, 0.5, 3600, Guesser(simulation).guess)
        self.assertEqual(client.core.state, State.UP)
        self.assertTrue(works_both_ways(simulation, client))
        rekeys = times(simulation.network.captured, 0, LOGIN, client.endpoint)
        self.assertLess(len(rekeys), 3600 / 120 + 5)  # none had to be repeated

    def test_a_typing_error(self) -> None:
        """After a wrong password tried for some minutes the right one gets in within 70 s."""
        simulation = Simulation()
        simulation.add_user(USER, PASSWORD)
        wrong = simulation.add_client(USER, "mistyped")
        wrong.start()
        simulation.advance(300)
        wrong.stop()
        right = simulation.add_client(USER, PASSWORD)
        right.start()
        self.assertLess(
            simulation.advance_until(lambda: right.core.state is State.UP, limit=120),
            USER_INTERVAL + 10,
        )

    def test_a_guesser_behind_one_address(self) -> None:
        """Guessing from the address that others share costs those one cookie: two round trips."""
        simulation, client = connected()
        simulation.advance(1)
        client.stop()
        shared = Endpoint(client.endpoint.address, 9)
        every(
            simulation,
            0.3,
            30,
            lambda: Guesser(simulation).give(Guesser(simulation).message().message, shared),
        )
        self.assertGreater(simulation.hub.core.counters["cookie_demanded"], 0)
        start = simulation.now
        client.start()
        simulation.advance(1)
        self.assertEqual(len(times(simulation.network.captured, start, COOKIE)), 1)
        self.assertTrue(works_both_ways(simulation, client))


class Floods(SynchronousTestCase):
    def flood(self, simulation: Simulation, seconds: float, rate: int) -> int:
        """Spoofed 0x50 with a right mac1 and a wrong password of somebody's; how many."""
        guesser = Guesser(simulation, "bob")
        message = bytearray(guesser.message().message)
        count = 0

        def spoofed() -> None:
            nonlocal count
            count += 1
            guesser.give(bytes(message), next(guesser.sources))

        every(simulation, 1 / rate, seconds, spoofed)
        return count

    def test_spoofed_sources(self) -> None:
        """Under 500 spoofed logins a second the hub compares a hundred, a new client is in within
        a second, and the spoofed addresses get no more bytes than were sent in their names."""
        simulation = Simulation()
        client = with_client(simulation)
        before = len(simulation.network.captured)
        sent = self.flood(simulation, 1, 500)
        client.start()
        sent += self.flood(simulation, 1, 500)
        counters = simulation.hub.core.counters
        looked_at = sent - counters["cookie_demanded"] + 1  # the client's own cookie
        self.assertLessEqual(looked_at, 100 * 2)
        self.assertTrue(works_both_ways(simulation, client))
        to_others = [
            len(datagram.payload)
            for datagram in simulation.network.captured[before:]
            if datagram.source == simulation.hub.endpoint
            and datagram.destination != client.endpoint
        ]
        self.assertEqual(set(to_others), {64})
        self.assertLess(sum(to_others), sent * 208)

    def test_spoofing_an_honest_address(self) -> None:
        """A flood in a client's own name, port and all, keeps it out no longer than a cookie."""
        simulation, client = connected()
        client.stop()
        simulation.advance(1)
        guesser = Guesser(simulation)
        every(
            simulation, 0.01, 20, lambda: guesser.give(guesser.message().message, client.endpoint)
        )
        client.start()
        every(simulation, 0.01, 1, lambda: guesser.give(guesser.message().message, client.endpoint))
        self.assertTrue(works_both_ways(simulation, client))

    def test_load_ends(self) -> None:
        """A second after a flood the next login is answered at once, without a cookie."""
        simulation = Simulation()
        client = with_client(simulation)
        self.flood(simulation, 1, 300)
        simulation.advance(LOAD_HOLDS + 0.1)
        start = simulation.now
        client.start()
        simulation.advance(1)
        self.assertEqual(times(simulation.network.captured, start, COOKIE), [])
        self.assertEqual(client.core.state, State.UP)

    def test_a_hub_that_was_late(self) -> None:
        """A hub whose process stood still under logins asks for cookies, and all get in."""
        simulation = Simulation()
        clients = [with_client(simulation, f"user{number}") for number in range(20)]
        clients[0].start()
        simulation.advance(0.03)
        simulation.hub.asleep = True
        simulation.advance(1)
        simulation.hub.asleep = False
        for client in clients[1:]:
            client.start()
        simulation.advance(7)
        self.assertGreater(simulation.hub.core.counters["under_load"], 0)
        self.assertGreater(simulation.hub.core.counters["cookie_demanded"], 0)
        for client in clients:
            self.assertEqual(client.core.state, State.UP)

    def test_everybody_at_once(self) -> None:
        """200 clients that come back in the same instant are all in within ten seconds."""
        simulation = Simulation()
        clients = [with_client(simulation, f"user{number}") for number in range(200)]
        for number, client in enumerate(clients):
            del simulation.nodes[client.endpoint]
            client.endpoint = Endpoint(IPv6Address("2001:db8:9::1") + (number << 64), 5)
            simulation.nodes[client.endpoint] = client
            client.start()
        simulation.advance(10)
        counters = simulation.hub.core.counters
        self.assertGreaterEqual(counters["cookie_demanded"], 100)
        self.assertEqual({client.core.state for client in clients}, {State.UP})


class Replies(SynchronousTestCase):
    def test_never_longer_than_requests(self) -> None:
        """Whatever 0x50 comes, from whom ever, the hub sends one shorter datagram or none to it,
        and to nobody else: answers, cookies, silence, each of which did occur."""
        simulation, client = connected()
        client.stop()
        simulation.advance(1)
        guesser = Guesser(simulation)
        kinds = set()
        for number in range(400):
            source = next(guesser.sources)
            if number % 7 == 0:
                guesser.static = simulation.key_of(PASSWORD, USER)
            elif number % 7 == 1:
                guesser.static = simulation.key_of("wrong", USER)
            message = guesser.message(b"\1" * 16 if number % 3 else b"").message
            if number % 11 == 0:
                message = message[: 150 + number % 60]
            sent = guesser.give(message, source)
            self.assertLessEqual(len(sent), 1)
            for datagram in sent:
                self.assertEqual(datagram.destination, source)
                self.assertLess(len(datagram.payload), len(message))
                kinds.add(datagram.kind)
            kinds.add(None if not sent else sent[0].kind)
            simulation.advance(0.03 if number < 200 else 0.001)
        self.assertEqual(kinds, {ANSWER, COOKIE, None})

    def test_a_stranger_draws_a_cookie_at_most(self) -> None:
        """Without the token all is silence; a replayed 0x50 draws 64 bytes under load."""
        simulation, client = connected()
        recorded = next(d.payload for d in simulation.network.captured if d.kind == LOGIN)
        stranger = Guesser(simulation)
        source = next(stranger.sources)
        for message in (recorded, bytes(208), b"\x50\1\0\0" + bytes(204), recorded[:-1]):
            self.assertEqual(stranger.give(message, source), [])
        simulation.hub.core._admission.overloaded(simulation.now)
        for message in (bytes(208), b"\x50\1\0\0" + bytes(204), recorded[:-1]):
            self.assertEqual(stranger.give(message, source), [])
        self.assertEqual([len(d.payload) for d in stranger.give(recorded, source)], [64])
        self.assertEqual(client.core.state, State.UP)
