"""Senders take turns: the queue by itself, and what it does for a port with a greedy sender."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.tx import fairqueue, udp
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.fairqueue import FairQueue
from pyvpn.tx.udp import ALONE_READS
from tests.tx.worlds import MemoryWorld, Ports, Receiver, burst_of

FULL = 1452
#: What one send takes of a super-packet.
SEND = 44 * FULL


def sender(number: int) -> UDPEndpoint:
    return UDPEndpoint((f"::ffff:192.0.2.{number % 250}", 1024 + number, 0, 0))


def drained(queue: FairQueue) -> list[tuple[bytes, int, UDPEndpoint]]:
    taken = []
    while (burst := queue.take()) is not None:
        taken.append(burst)
    return taken


class Turns(SynchronousTestCase):
    def test_a_little_amid_much(self) -> None:
        """Behind a hundred bursts of one sender another's datagram waits for two at most."""
        queue = FairQueue()
        for _ in range(100):
            queue.put(bytes(SEND), FULL, sender(1))
        queue.put(b"ping", 4, sender(2))
        order = [endpoint for _, _, endpoint in drained(queue)]
        self.assertEqual(len(order), 101)
        self.assertLessEqual(order.index(sender(2)), 2)

    def test_equal_shares_in_bytes(self) -> None:
        """Two who always have something get as much, whatever the length of their bursts."""
        queue = FairQueue()
        for _ in range(60):
            queue.put(bytes(SEND), FULL, sender(1))
            for _ in range(64):
                queue.put(bytes(1000), 1000, sender(2))
        got: Counter[UDPEndpoint] = Counter()
        for _ in range(40):
            burst = queue.take()
            assert burst is not None
            got[burst[2]] += len(burst[0])
        self.assertLess(0.8, got[sender(1)] / got[sender(2)])
        self.assertLess(got[sender(1)] / got[sender(2)], 1.25)

    def test_the_longest_loses(self) -> None:
        """Above the bound the greedy one's newest goes, and the other's nothing."""
        queue = FairQueue()
        bound = fairqueue.MOST_BYTES
        queue.put(bytes(FULL), FULL, sender(2))
        lost = sum(queue.put(bytes(SEND), FULL, sender(1)) for _ in range(bound // SEND + 10))
        self.assertEqual(lost, 10 * 44)
        self.assertLessEqual(queue.octets, bound)
        self.assertIn(sender(2), [endpoint for _, _, endpoint in drained(queue)])
        self.assertEqual((queue.octets, bool(queue)), (0, False))

    def test_many_senders(self) -> None:
        """Above the bound of senders the rest share one turn, and nothing gets lost or mixed up."""
        queue = FairQueue()
        most = fairqueue.MOST_SENDERS
        for number in range(most + 50):
            queue.put(b"%04d" % number, 4, sender(number))
        self.assertLessEqual(len(queue._senders), most + 1)
        taken = drained(queue)
        self.assertEqual(
            sorted((data, endpoint) for data, _, endpoint in taken),
            sorted((b"%04d" % number, sender(number)) for number in range(most + 50)),
        )

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from([1, 7, 700, FULL]),
                st.integers(1, 5),
                st.booleans(),
            ),
            max_size=40,
        )
    )
    @settings(deadline=None)
    def test_nothing_changes(self, reads: list[tuple[int, int, int, bool]]) -> None:
        """What comes out is, sender by sender, what went in: every datagram, whole, in order."""
        queue = FairQueue()
        expected: dict[UDPEndpoint, list[bytes]] = {}
        for number, (who, size, count, short) in enumerate(reads):
            datagrams = [bytes([number]) * size] * count
            if short and size > 1:
                datagrams[-1] = datagrams[-1][:-1]
            shown = size if count > 1 else len(datagrams[0])
            self.assertEqual(queue.put(b"".join(datagrams), shown, sender(who)), 0)
            expected.setdefault(sender(who), []).extend(datagrams)
        seen: dict[UDPEndpoint, list[bytes]] = {}
        for data, size, endpoint in drained(queue):
            parts = [data[start : start + size] for start in range(0, len(data), size)]
            seen.setdefault(endpoint, []).extend(parts)
        self.assertEqual(seen, expected)


class GreedyTests(Ports):
    """One sender fills the socket of the port, another asks something."""

    make_world = MemoryWorld

    def test_a_little_amid_much(self) -> None:
        """It goes up after a burst or two, and is answered before the rest of the bulk."""
        self.make_ports()
        self.hub.echo = False
        self.hub_port.stopReading()
        other = self.world.port(self, Receiver(), "client", pin_source=False)
        for _ in range(30):
            run = [bytes(FULL)] * 40
            self.client_port.writeBursts([burst_of(self.to_hub(), run)])
        other.writeBursts([burst_of(self.to_hub(), [b"ping"])])
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == 30 * 40 + 1)
        order = [endpoint.port for _, _, endpoint in self.hub.bursts]
        place = order.index(other.localPort)
        self.assertLessEqual(place, 2)
        self.assertLessEqual(self.hub.calls.index("turn"), place + 2)

    def test_the_processor_is_shared(self) -> None:
        """After a turn others may run first, unless the port has one sender alone."""
        self.make_ports()
        yields: list[None] = []
        self.patch(udp, "sched_yield", lambda: yields.append(None))
        self.exchange([b"ping"])
        self.assertTrue(yields)
        for _ in range(ALONE_READS):
            self.exchange([b"ping"])
        yields.clear()
        self.exchange([b"ping"])
        self.assertFalse(yields)
