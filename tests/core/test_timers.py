"""Deadlines against PROTOCOL 7, its numbers retyped here."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import timers, transport
from pyvpn.core.timers import NEVER, KeepaliveTimer, LivenessTimer, TimerQueue


class Constants(SynchronousTestCase):
    def test_numbers(self) -> None:
        """The code has the specification's numbers."""
        table = {
            "REKEY_AFTER_TIME": 120,
            "REKEY_ON_RECEIVE_TIME": 165,
            "REKEY_ATTEMPT_TIME": 90,
            "REKEY_TIMEOUT": 5,
            "REKEY_JITTER": 0.334,
            "KEEPALIVE_TIMEOUT": 10,
            "BACKOFF_MAXIMUM": 300,
            "SILENCE_TIME": 15,
            "REFUSED_RETRY_TIME": 300,
            "LIVENESS_STEPS": (4, 6, 8),
            "HELLO_INTERVAL": 1,
            "CONFIG_INTERVAL": 1,
            "CONFIG_TRIES": 5,
        }
        self.assertEqual({name: getattr(timers, name) for name in table}, table)
        self.assertEqual(transport.REJECT_AFTER_TIME, 180)


class Keepalive(SynchronousTestCase):
    def test_due_10_s_after_the_first_data(self) -> None:
        """Later data do not put it off: the sender waits since the first."""
        timer = KeepaliveTimer()
        self.assertEqual(timer.due, NEVER)
        timer.data_received(100.0)
        timer.data_received(105.0)
        self.assertEqual(timer.due, 110.0)

    def test_anything_sent_will_do(self) -> None:
        """Whatever is sent makes it unnecessary until data come again."""
        timer = KeepaliveTimer()
        timer.data_received(100.0)
        timer.any_authenticated_packet_sent()
        self.assertEqual(timer.due, NEVER)
        timer.data_received(200.0)
        self.assertEqual(timer.due, 210.0)


class Liveness(SynchronousTestCase):
    def test_steps(self) -> None:
        """4, 6 and 8 s after the first unanswered packet; the last step is death."""
        timer = LivenessTimer()
        self.assertEqual(timer.due, NEVER)
        timer.answer_expected(100.0)
        timer.answer_expected(103.0)
        for due, dead in ((104.0, False), (106.0, False), (108.0, True)):
            self.assertEqual(timer.due, due)
            self.assertEqual(timer.step(), dead)
        self.assertEqual(timer.due, NEVER)

    def test_an_answer_resets(self) -> None:
        """Anything heard ends the count, whatever step it had reached."""
        timer = LivenessTimer()
        timer.answer_expected(100.0)
        timer.step()
        timer.any_authenticated_packet_received()
        self.assertEqual(timer.due, NEVER)
        timer.answer_expected(200.0)
        self.assertEqual(timer.due, 204.0)


class Queue(SynchronousTestCase):
    def test_earliest_first(self) -> None:
        """Each key wakes once, at its earliest time, in order of time."""
        queue: TimerQueue[str] = TimerQueue()
        self.assertEqual(queue.next(), NEVER)
        queue.arm("b", 20.0)
        queue.arm("a", 10.0)
        queue.arm("b", 5.0)
        queue.arm("b", 30.0)
        self.assertEqual(queue.next(), 5.0)
        self.assertEqual(queue.pop_due(4.9), [])
        self.assertEqual(queue.pop_due(10.0), ["b", "a"])
        self.assertEqual(queue.next(), NEVER)
        self.assertEqual(queue.pop_due(100.0), [])

    def test_cancel(self) -> None:
        """A cancelled key does not wake and may be armed anew, also for later."""
        queue: TimerQueue[str] = TimerQueue()
        queue.arm("a", 10.0)
        queue.cancel("a")
        queue.cancel("stranger")
        self.assertEqual(queue.next(), NEVER)
        queue.arm("a", 15.0)
        self.assertEqual(queue.pop_due(12.0), [])
        self.assertEqual(queue.pop_due(15.0), ["a"])

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("arm"), st.integers(0, 4), st.integers(0, 50)),
                st.tuples(st.just("cancel"), st.integers(0, 4), st.just(0)),
                st.tuples(st.just("pop"), st.just(0), st.integers(0, 50)),
            ),
            max_size=60,
        )
    )
    @settings(deadline=None)
    def test_like_a_dict(self, steps: list[tuple[str, int, int]]) -> None:
        """It behaves as a dict from key to earliest time, whatever is done in which order."""
        queue: TimerQueue[int] = TimerQueue()
        model: dict[int, int] = {}
        for step, key, when in steps:
            if step == "arm":
                queue.arm(key, when)
                model[key] = min(when, model.get(key, when))
            elif step == "cancel":
                queue.cancel(key)
                model.pop(key, None)
            else:
                due = sorted(key for key, time in model.items() if time <= when)
                self.assertEqual(sorted(queue.pop_due(when)), due)
                for key in due:
                    del model[key]
            self.assertEqual(queue.next(), min(model.values(), default=NEVER))
