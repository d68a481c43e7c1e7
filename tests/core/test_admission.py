"""Who is let as far as a comparison of passwords: PROTOCOL 3, steps 3, 6, 7 and 11; PROTOCOL 8."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import admission, server
from pyvpn.core.admission import Admission, Debit, source_of
from pyvpn.core.cookies import CookieChecker, open_cookie_reply, with_macs
from pyvpn.errors import RemoteProtocolError
from pyvpn.testing.simulation import Endpoint
from tests.core.scene import USER, Scene

# PROTOCOL 8, retyped.
LOAD_RATE, LOAD_HOLDS, LATE = 100, 1.0, 0.05
SOURCE_RATE, SOURCE_BURST, SOURCE_FAILURES = 20, 5, 5
USER_BURST, FREEZE_AFTER, FREEZE = 10, 100, 3600
DEVICE_BURST, DEVICE_INTERVAL = 20, 5
ALL_FAILURES = 20
DAY = 86_400

COOKIE_KEY = bytes(32)
ME = "203.0.113.9"
STRANGER = bytes(16)


def address(text: str = ME, port: int = 4000) -> bytes:
    return Endpoint(ip_address(text), port).wire_address()


class Hub:
    """An Admission and those who knock at it."""

    def __init__(self) -> None:
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.admission = Admission(COOKIE_KEY, lambda count: b"\7" * count, self.counters)

    def knock(self, now: float, source: bytes, cookie: bytes = b"") -> str:
        """What comes of a 0x50: ``in``, ``cookie`` or the reason for which it is dropped."""
        message = with_macs(bytes(176), bytes(32), cookie)
        try:
            reply = self.admission.arrived(message, 1, source, now)
        except RemoteProtocolError as error:
            return error.reason
        return "in" if reply is None else "cookie"

    def cookie(self, now: float, source: bytes) -> bytes:
        message = with_macs(bytes(176), bytes(32))
        reply = self.admission._cookies.reply(message, 1, source, now)
        return open_cookie_reply(reply, COOKIE_KEY, 1, message)

    def fail(self, now: float, source: bytes, cookie: bytes = b"") -> None:
        self.admission.failed(with_macs(bytes(176), bytes(32), cookie), source, now)

    def guess(self, now: float, debit: Debit) -> str:
        """What comes of a wrong password: ``compared`` or the reason why it was not."""
        try:
            self.admission.debit(debit, now)
        except RemoteProtocolError as error:
            return error.reason
        self.admission.guessed_wrong(debit, now)
        return "compared"


class StockPeers(SynchronousTestCase):
    def test_not_for_what_others_guess(self) -> None:
        """Behind an address that guesses passwords WireGuard's handshakes go on; logins do not."""
        hub = Hub()
        stock = CookieChecker(bytes(32), lambda count: b"\5" * count)
        cookie = hub.cookie(0.0, address())
        for _ in range(40):
            hub.fail(0.0, address())
            hub.fail(0.0, address(), cookie)
        self.assertEqual(hub.knock(0.0, address()), "cookie")
        self.assertEqual(hub.knock(0.0, address(), cookie), "source_failing")
        message = with_macs(bytes(116), bytes(32))
        self.assertIsNone(hub.admission.arrived(message, 1, address(), 0.0, stock))


class Load(SynchronousTestCase):
    def test_by_rate(self) -> None:
        """Above 100 handshakes a second cookies are asked for, and for 1 s after."""
        hub = Hub()
        for number in range(LOAD_RATE):
            self.assertEqual(hub.knock(0.0, address(port=number + 1)), "in")
        self.assertEqual(hub.knock(0.0, address()), "cookie")
        self.assertEqual(hub.knock(LOAD_HOLDS - 0.01, address()), "cookie")
        self.assertEqual(hub.knock(LOAD_HOLDS + 0.01, address()), "in")
        self.assertEqual(hub.counters["under_load"], 1)
        self.assertEqual(hub.counters["cookie_demanded"], 2)

    def test_not_below(self) -> None:
        """100 a second for ten seconds are no load."""
        hub = Hub()
        for number in range(10 * LOAD_RATE):
            self.assertEqual(hub.knock(number / LOAD_RATE, address(port=number + 1)), "in")

    def test_by_lateness(self) -> None:
        """A reactor that wakes the core more than 50 ms late is load; up to that it is none."""
        for late, expected in ((LATE - 0.01, "in"), (LATE + 0.01, "cookie")):
            hub = Hub()
            hub.knock(0.0, address())
            due = hub.admission.probe_due
            hub.admission.woken(due + late)
            self.assertEqual(hub.knock(due + late, address()), expected)

    def test_asked_only_while_they_come(self) -> None:
        """Without handshakes the core does not want to be woken for this."""
        hub = Hub()
        self.assertEqual(hub.admission.probe_due, float("inf"))
        hub.knock(0.0, address())
        hub.admission.woken(hub.admission.probe_due)
        self.assertEqual(hub.admission.probe_due, float("inf"))

    def test_by_the_queue(self) -> None:
        """The 129th login that waits for a decision is dropped, and there is load (PROTOCOL 8)."""
        self.assertEqual(server.UNDECIDED_BOUND, 128)
        scene = Scene()
        scene.hub.decides = False
        for number in range(13):
            scene.simulation.add_user(f"user{number}", "password")
        for number in range(129):
            if number % 100 == 99:
                scene.simulation.advance(1)  # no load by rate
            client = scene.simulation.add_client(f"user{number % 13}", "password")
            client.endpoint = Endpoint(ip_address("192.0.2.1") + number, 5)
            client.core.start(client.static, scene.now)
            client.core.next_event()
            client.core.server_resolved([scene.hub.endpoint], scene.now)
            (burst,) = client.core.datagrams_to_send(scene.now)
            scene.to_hub(bytes(burst.buffers[0]), client.endpoint)
        counters = scene.hub.core.counters
        self.assertEqual(len(scene.hub.undecided), 128)
        self.assertEqual((counters["login_queue_full"], counters["under_load"]), (1, 1))


class Sources(SynchronousTestCase):
    def test_what_counts_as_one(self) -> None:
        """An IPv4 address is one source, an IPv6 /64 is one; ports make no difference."""
        same = (
            ("203.0.113.9", "203.0.113.9", True),
            ("203.0.113.9", "203.0.113.10", False),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        )
        for one, other, expected in same:
            equal = source_of(address(one, 1)) == source_of(address(other, 2))
            self.assertEqual(equal, expected, (one, other))
        self.assertNotEqual(source_of(address("0.0.0.0")), source_of(address("::1")))

    def test_twenty_a_second_under_load(self) -> None:
        """Under load a source that showed its cookie has 5 at once and 20 a second, then none."""
        hub = Hub()
        cookie, other = hub.cookie(0.0, address()), address("203.0.113.10")
        hub.admission.overloaded(0.0)
        found = [hub.knock(0.0, address(), cookie) for _ in range(6)]
        self.assertEqual(found, ["in"] * SOURCE_BURST + ["source_too_many"])
        self.assertEqual(hub.knock(0.0, other, hub.cookie(0.0, other)), "in")
        found = [hub.knock(number / 1000, address(), cookie) for number in range(1, 1000)]
        self.assertEqual(found.count("in"), SOURCE_RATE - 1)

    def test_not_without_load(self) -> None:
        """Without load a source may come as often as all may."""
        hub = Hub()
        self.assertEqual({hub.knock(0.0, address()) for _ in range(LOAD_RATE)}, {"in"})

    def test_failures_ask_for_a_cookie(self) -> None:
        """After five failures a source is asked for a cookie; one second later it is not."""
        hub = Hub()
        for _ in range(SOURCE_FAILURES):
            self.assertEqual(hub.knock(0.0, address()), "in")
            hub.fail(0.0, address())
        self.assertEqual(hub.knock(0.0, address()), "cookie")
        self.assertEqual(hub.knock(1.01, address()), "in")

    def test_failures_with_a_cookie(self) -> None:
        """Who fails five times with a cookie is dropped, with it, until a second has passed."""
        hub = Hub()
        cookie = hub.cookie(0.0, address())
        for _ in range(SOURCE_FAILURES):
            self.assertEqual(hub.knock(0.0, address(), cookie), "in")
            hub.fail(0.0, address(), cookie)
        self.assertEqual(hub.knock(0.0, address(), cookie), "source_failing")
        self.assertEqual(hub.knock(1.01, address(), cookie), "in")

    def test_spoofing_locks_nobody_out(self) -> None:
        """Any number of failures sent in an address's name cost its owner one cookie, no more."""
        hub = Hub()
        for number in range(10_000):
            hub.fail(number / 100, address())
        cookie = hub.cookie(100.0, address())
        self.assertEqual(hub.knock(100.0, address()), "cookie")
        self.assertEqual(hub.knock(100.0, address(), cookie), "in")

    def test_twenty_failures_of_all(self) -> None:
        """Above 20 failures a second everybody needs a cookie, for 1 s; with one it goes on."""
        hub = Hub()
        for number in range(ALL_FAILURES):
            hub.fail(0.0, address(f"192.0.2.{number}"))
        self.assertEqual(hub.knock(0.0, address()), "in")
        hub.fail(0.0, address("192.0.2.99"))
        self.assertEqual(hub.knock(0.0, address()), "cookie")
        self.assertEqual(hub.knock(0.0, address(), hub.cookie(0.0, address())), "in")
        self.assertEqual(hub.knock(1.01, address()), "in")
        self.assertEqual(hub.counters["cookies_for_all"], 1)


class Users(SynchronousTestCase):
    def test_unknown_devices(self) -> None:
        """An account takes ten guesses from devices it does not know, then one a minute."""
        hub, debit = Hub(), Debit(USER, None)
        found = [hub.guess(0.0, debit) for _ in range(11)]
        self.assertEqual(found, ["compared"] * USER_BURST + ["login_user_limited"])
        self.assertEqual(hub.guess(59.9, debit), "login_user_limited")
        self.assertEqual(hub.guess(60.1, debit), "compared")
        self.assertEqual(hub.guess(60.1, Debit("bob", None)), "compared")

    def test_unknown_names_share_one(self) -> None:
        """All names that are no account have one bucket, which no account's guesses touch."""
        scene = Scene()
        for number in range(12):
            source = Endpoint(ip_address(f"192.0.2.{number}"), 5)
            attempt = scene.attempt(user=f"nobody{number}", device=STRANGER)
            scene.to_hub(attempt.message, source)
        counters = scene.hub.core.counters
        self.assertEqual((counters["login_wrong"], counters["login_user_limited"]), (10, 2))
        scene.to_hub(scene.attempt(device=STRANGER).message, source)
        self.assertEqual([len(d.payload) for d in scene.sent()], [116])

    def test_a_known_device(self) -> None:
        """A known device has 20 of its own and one in 5 s, whatever others have used up."""
        hub, debit = Hub(), Debit(USER, bytes(16))
        for _ in range(11):
            hub.guess(0.0, Debit(USER, None))
        found = [hub.guess(0.0, debit) for _ in range(21)]
        self.assertEqual(found, ["compared"] * DEVICE_BURST + ["login_device_limited"])
        self.assertEqual(hub.guess(DEVICE_INTERVAL - 0.1, debit), "login_device_limited")
        self.assertEqual(hub.guess(DEVICE_INTERVAL + 0.1, debit), "compared")

    def row(self, hub: Hub, count: int, debit: Debit) -> float:
        """Guess wrong ``count`` times, one a minute; return when the last one was."""
        for number in range(count):
            self.assertEqual(hub.guess(number * 60.1, debit), "compared")
        return (count - 1) * 60.1

    def test_freeze(self) -> None:
        """After 100 failures in a row unknown devices rest for an hour; known ones do not."""
        hub, debit = Hub(), Debit(USER, None)
        last = self.row(hub, FREEZE_AFTER, debit)
        self.assertEqual(hub.guess(last + 61, debit), "login_frozen")
        self.assertEqual(hub.guess(last + FREEZE - 1, debit), "login_frozen")
        self.assertEqual(hub.guess(last + 61, Debit(USER, bytes(16))), "compared")
        self.assertEqual(hub.guess(last + FREEZE + 1, debit), "compared")
        self.assertEqual(hub.counters["user_frozen"], 1)

    def test_a_success_ends_the_row(self) -> None:
        """99 failures, a login from a new device, 99 failures: no freeze; and the refund is one."""
        hub, debit = Hub(), Debit(USER, None)
        last = self.row(hub, 99, debit)
        hub.admission.debit(debit, last)
        hub.admission.confirmed(debit)
        for number in range(1, 100):
            self.assertEqual(hub.guess(last + number * 60.1, debit), "compared")
        self.assertEqual(hub.counters["user_frozen"], 0)

    def test_a_known_device_ends_no_row(self) -> None:
        """The owner's rekeys every two minutes must not take the freeze off who guesses."""
        hub, debit, known = Hub(), Debit(USER, None), Debit(USER, bytes(16))
        for number in range(FREEZE_AFTER):
            hub.guess(number * 60.1, debit)
            hub.admission.debit(known, number * 60.1)
            hub.admission.confirmed(known)
        self.assertEqual(hub.counters["user_frozen"], 1)

    def test_a_new_password_begins_anew(self) -> None:
        """An account that was removed, or got another password, has a full bucket and no freeze."""
        hub, debit = Hub(), Debit(USER, None)
        last = self.row(hub, FREEZE_AFTER, debit)
        hub.admission.forget_user(USER)
        self.assertEqual([hub.guess(last, debit) for _ in range(10)], ["compared"] * 10)


class AtTheHub(SynchronousTestCase):
    """The same through the facade."""

    def counted(self, scene: Scene, reason: str) -> int:
        return scene.hub.core.counters[reason]

    def test_refund(self) -> None:
        """A login that becomes a session costs nothing, however many of them there are."""
        scene = Scene(connect=False)
        for _ in range(30):
            scene.client.restart()
            scene.client.device = scene.simulation.random_bytes(16)
            scene.client.restart()
            scene.client.start()
            scene.simulation.advance(1)
            self.assertIsNotNone(scene.peer.current)
            scene.client.stop()
            scene.simulation.advance(1)
        self.assertEqual(self.counted(scene, "login_user_limited"), 0)

    def test_no_refund_without_a_session(self) -> None:
        """Right logins whose answers are not used are debited: ten, then one a minute."""
        scene = Scene(connect=False)
        for number in range(11):
            scene.to_hub(scene.attempt(device=bytes([number]) * 16).message)
        self.assertEqual(self.counted(scene, "login_user_limited"), 1)

    def test_replays_cost_nothing(self) -> None:
        """A replay drains no bucket and blames no source, were there ten thousand (step 6)."""
        scene = Scene()
        message = next(d.payload for d in scene.simulation.network.captured if d.kind == 0x50)
        for number in range(100):
            scene.to_hub(message)
            if number % 50 == 49:
                scene.simulation.advance(2)  # no load
        self.assertEqual(self.counted(scene, "login_stamp_replayed"), 100)
        scene.mark()
        for _ in range(DEVICE_BURST):
            scene.to_hub(scene.attempt(password="wrong").message)
            scene.simulation.advance(1.1)
        self.assertEqual(self.counted(scene, "login_wrong"), DEVICE_BURST)
        self.assertEqual(self.counted(scene, "cookie_demanded"), 0)

    def test_a_typing_error_repeated(self) -> None:
        """Regression: whoever had recorded one wrong password could, without holding any secret,
        use up with it what the owner's device is granted.
        """
        for repeated in (True, False):  # False, the control: each is a guess of its own
            scene = Scene()
            scene.client.asleep = True
            wrong = scene.attempt(password="wrong", after=0.5).message
            for number in range(2 * DEVICE_BURST):
                message = wrong if repeated else scene.attempt(password="wrong").message
                scene.to_hub(message, Endpoint(ip_address(f"192.0.2.{number}"), 5))
            self.assertEqual(self.counted(scene, "login_wrong"), 1 if repeated else DEVICE_BURST)
            scene.simulation.advance(3)  # no cookies for all any more
            scene.mark()
            scene.to_hub(scene.attempt().message)
            self.assertEqual(len(scene.sent()), 1 if repeated else 0)

    def test_wrong_passwords_are_forgotten(self) -> None:
        """The oldest of those that are remembered go first."""
        self.patch(admission, "WRONG_KEPT", 2)
        scene = Scene()
        messages = [scene.attempt(password="wrong").message for _ in range(3)]
        for message in (*messages, *messages[1:], messages[0]):
            scene.to_hub(message)
        self.assertEqual(self.counted(scene, "login_wrong"), 4)
        self.assertEqual(self.counted(scene, "login_repeated"), 2)

    def test_known_for_thirty_days(self) -> None:
        """A device is known for 30 days after its last login, across a restart of the hub too."""
        for days, limited in ((29, "login_device_limited"), (31, "login_user_limited")):
            scene = Scene()
            scene.client.stop()
            scene.hub.wall_step = days * DAY * 10**9
            scene.hub.restart()
            for number in range(30):
                attempt = scene.attempt(password="wrong", after=days * DAY + 1)
                scene.to_hub(attempt.message, Endpoint(ip_address(f"192.0.2.{number}"), 5))
            for reason in ("login_device_limited", "login_user_limited"):
                self.assertEqual(self.counted(scene, reason) > 0, reason == limited)

    def test_old_stamps(self) -> None:
        """A device that the hub has no stamp of must be at most a day behind; others may be more.

        Without it a recorded 0x50 of a device that is forgotten would be answered.
        """
        scene = Scene(connect=False)
        scene.to_hub(scene.attempt(after=-DAY - 1).message)
        self.assertEqual(self.counted(scene, "login_stamp_old"), 1)
        scene.to_hub(scene.attempt(after=-DAY + 1).message)
        self.assertIsNotNone(scene.peer_or_none())
        scene.hub.wall_step = 40 * DAY * 10**9
        scene.mark()
        scene.to_hub(scene.attempt(after=5).message)
        self.assertEqual([len(d.payload) for d in scene.sent()], [116])

    def test_garbage_is_a_failure(self) -> None:
        """Who knows the token and sends a 0x50 that does not open is blamed for it."""
        scene = Scene()
        message = scene.attempt().message
        spoilt = with_macs(message[:100] + bytes(76), scene.simulation.keys.mac1_to_server)
        for _ in range(SOURCE_FAILURES):
            scene.to_hub(spoilt)
        self.assertEqual(self.counted(scene, "handshake_decrypt"), SOURCE_FAILURES)
        scene.to_hub(spoilt)
        self.assertEqual([len(d.payload) for d in scene.sent()], [64])
        self.assertEqual(self.counted(scene, "cookie_demanded"), 1)
