"""UDPPort with many datagrams a system call, and on kernels that refuse to do that."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, globalLogPublisher

from pyvpn.testing.memory import MemorySocket
from pyvpn.tx.udp import ALONE_READS, BULK_BYTES, TURN_BYTES
from tests.tx.worlds import (
    LoopbackWorld,
    MemoryWorld,
    NamespaceWorld,
    Ports,
    Receiver,
    burst_of,
)

# linux/udp.h
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
# What a 1500-byte Ethernet carries in IPv6 and UDP, and how many of those one send takes.
FULL, MOST = 1452, 44
GSO_ERRNOS = ("EIO", "EINVAL", "EMSGSIZE", "ENOPROTOOPT", "ENOTSUP")


def numbered(count: int, size: int, first: int = 0) -> list[bytes]:
    """Datagrams that differ."""
    return [b"%08d" % number * (size // 8 + 1) for number in range(first, first + count)]


def run_of(count: int, size: int, last: int = 0) -> list[bytes]:
    """Equal ones, the last `last` bytes long if given."""
    run = [datagram[:size] for datagram in numbered(count, size)]
    return [*run[:-1], run[-1][:last]] if last else run


class BulkMixin:
    """What must hold on every network."""

    def setUp(self) -> None:
        self.make_ports()

    def test_the_kernel_helps(self) -> None:
        """Both ports use GSO, GRO and DF here: what follows is not the way without them."""
        for port in (self.hub_port, self.client_port):
            self.assertEqual((port.gso, port.gro, port.df), (True, True, True))

    def test_full_bursts(self) -> None:
        """A whole super-packet's datagrams arrive in order over both families, and come back."""
        for address in self.world.hub_addresses:
            self.exchange(run_of(MOST, FULL), run_of(MOST, FULL, last=33), address=address)
        for port in (self.hub_port, self.client_port):
            self.assertEqual(port.counters, {})

    def test_many_small_ones(self) -> None:
        """64 datagrams of some bytes are one send as well."""
        self.exchange(run_of(64, 96), run_of(64, 97, last=1), run_of(2, 5), [b"lone"])
        self.assertEqual(self.client_port.counters, {})

    def test_bursts_from_the_pinned_source(self) -> None:
        """A burst leaves from the address asked, as a lone datagram does."""
        self.hub.echo = False
        for address in self.world.hub_addresses:
            self.hub.bursts.clear()
            self.client.bursts.clear()
            self.client_port.writeBursts([burst_of(self.to_hub(address), [b"question"])])
            self.world.until(lambda: bool(self.hub.bursts))
            asked = self.hub.bursts[0][2]
            self.hub_port.writeBursts([burst_of(asked, run_of(10, 500))])
            self.world.until(lambda: len(self.client.datagrams()) == 10)
            self.assertEqual({burst[2] for burst in self.client.bursts}, {self.to_hub(address)})

    def test_few_deliveries(self) -> None:
        """Much in few calls: 200 full datagrams go up in bursts of 64 KiB and more."""
        self.hub.echo = False
        self.hub_port.stopReading()
        runs = [run_of(40, FULL)] * 5
        self.client_port.writeBursts([burst_of(self.to_hub(), run) for run in runs])
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == 200)
        self.assertEqual(self.hub.datagrams(), [datagram for run in runs for datagram in run])
        self.assertLessEqual(len(self.hub.bursts), 200 * FULL // BULK_BYTES + 1)

    def test_a_super_packet_is_one_burst(self) -> None:
        """What one send could not take of a super-packet goes up with the rest of it."""
        self.hub.echo = False
        self.hub_port.stopReading()
        packets = [run_of(47, FULL, last=700), run_of(47, FULL, last=700)]
        for packet in packets:
            self.client_port.writeBursts(
                [burst_of(self.to_hub(), part) for part in (packet[:MOST], packet[MOST:])]
            )
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == 94)
        self.assertEqual(self.hub.datagrams(), packets[0] + packets[1])
        self.assertEqual([len(burst[0]) for burst in self.hub.bursts], [46 * FULL + 700] * 2)

    def test_a_turn_is_bounded_in_bytes(self) -> None:
        """Of full bursts a turn takes 512 KiB and no more than the one read that passes it."""
        self.hub_port.stopReading()
        self.hub.echo = False
        longest = [bytes([number]) * 60_000 for number in range(12)]
        for datagram in longest:
            burst = burst_of(self.to_hub(), [datagram], fragment=True)
            self.client_port.writeBursts([burst])
        self.hub_port.doRead()
        read = self.hub.datagrams()
        self.assertLessEqual(sum(map(len, read[:-1])), TURN_BYTES)
        self.assertLess(len(read), 12)
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == 12)
        self.assertEqual(self.hub.datagrams(), longest)


class MemoryBulkTests(BulkMixin, Ports):
    """In memory, where system calls can be counted."""

    make_world = MemoryWorld

    def test_one_call_a_burst(self) -> None:
        """A burst is one send and one read."""
        sender = socket_of(self.world, self.client_port)
        self.exchange(run_of(MOST, FULL))
        self.assertEqual(sender.sends, 1)
        self.assertEqual(len(self.hub.bursts), 1)


class LoopbackBulkTests(BulkMixin, Ports):
    """On the kernel, without privilege."""

    make_world = LoopbackWorld


class NamespaceBulkTests(BulkMixin, Ports):
    """On the kernel, over a veth of 1500 bytes (root)."""

    make_world = NamespaceWorld

    def test_one_read_a_burst(self) -> None:
        """The kernel hands a burst over as it was sent."""
        self.exchange(run_of(MOST, FULL))
        self.assertEqual([len(burst[0]) for burst in self.hub.bursts], [MOST * FULL])


class JoiningTests(Ports):
    """Runs in the port's memory: whatever comes in whatever order, each datagram stays itself."""

    make_world = MemoryWorld

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from([1, 2, 100, 700, 1452, 30_000]),
                st.integers(1, 64),
            ),
            max_size=25,
        ),
        st.booleans(),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=60)
    def test_any_schedule(
        self, schedule: list[tuple[int, int, int]], gro: bool, alone: bool
    ) -> None:
        """Every datagram goes up once, with its bytes, in the order in which its sender sent it."""
        self.make_world = MemoryWorld
        world = MemoryWorld(self)
        if not gro:
            world.hosts["hub"].unknown.add((SOL_UDP, UDP_GRO))
        hub = Receiver()
        hub_port = world.port(self, hub, "hub", reading=False)
        hub_port._reads_alone = ALONE_READS if alone else 0
        senders = [world.port(self, Receiver(), "client", pin_source=False) for _ in range(3)]
        expected = []
        for number, (who, size, count) in enumerate(schedule):
            sender = senders[who]
            for datagram in numbered(min(count, 65_000 // size), size, 1000 * number):
                burst = burst_of(
                    sender.endpoint("192.0.2.1", hub_port.localPort), [datagram[:size]]
                )
                sender.writeBursts([burst])
                expected.append((sender.localPort, datagram[:size]))
        hub_port.startReading()
        world.reactor.settle()
        self.assertEqual(gro, hub_port.gro)
        seen = [
            (endpoint.port, buffer[start : start + size])
            for buffer, size, endpoint in hub.bursts
            for start in range(0, len(buffer), size)
        ]
        for sender in senders:
            port = sender.localPort
            self.assertEqual(
                [data for who, data in seen if who == port],
                [data for who, data in expected if who == port],
            )
        self.assertEqual(len(seen), len(expected))
        self.assertEqual(hub_port.counters, {})

    def hears(self, change: Callable[[Any], Any], *runs: list[bytes]) -> None:
        """The hub reads what the client sent, each read's answer changed on the way."""
        self.make_ports()
        self.hub.echo = False
        memory_socket = socket_of(self.world, self.hub_port)
        original = memory_socket.recvmsg_into
        memory_socket.recvmsg_into = lambda *arguments: change(original(*arguments))
        self.client_port.writeBursts([burst_of(self.to_hub(), run) for run in runs])
        self.world.reactor.settle()

    def test_sizes_that_cannot_be(self) -> None:
        """A size of no bytes, of less, or of more than was read makes it one datagram."""
        for size in (0, -1, -(2**31), 501, 2**31 - 1):

            def lie(got: Any, size: int = size) -> Any:
                length, ancillary, flags, remote = got
                pktinfo = [message for message in ancillary if message[0] != SOL_UDP]
                return (
                    length,
                    [(SOL_UDP, UDP_GRO, struct.pack("=i", size)), *pktinfo],
                    flags,
                    remote,
                )

            self.hears(lie, run_of(5, 100))
            self.assertEqual([len(datagram) for datagram in self.hub.datagrams()], [500])
            self.assertEqual(self.hub_port.counters, {})
        self.hears(lambda got: got, run_of(5, 100))
        self.assertEqual(len(self.hub.datagrams()), 5, "the control: the right size cuts")

    def test_incomplete_reads(self) -> None:
        """What came in part, data or control messages, is dropped and counted by its kind."""
        for flag, name in (
            (socket.MSG_TRUNC, "truncated"),
            (socket.MSG_CTRUNC, "control_truncated"),
        ):
            self.hears(lambda got, flag=flag: (*got[:2], flag, got[3]), [b"one"], [b"other"] * 3)
            self.assertEqual(self.hub.datagrams(), [])
            self.assertEqual(self.hub_port.counters, {name: 2})


class DegradedTests(Ports):
    """Kernels and devices that refuse."""

    make_world = MemoryWorld

    def setUp(self) -> None:
        self.lines: list[LogEvent] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)

    def make_ports(self, *unknown: tuple[int, int]) -> None:
        self.world = MemoryWorld(self)
        for host in self.world.hosts.values():
            host.unknown.update(unknown)
        self.hub = Receiver(echo=True)
        self.client = Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client", pin_source=False)
        self.sender = socket_of(self.world, self.client_port)

    def said(self, words: str) -> int:
        return sum(words in str(line.get("name", "")) for line in self.lines)

    def test_kernel_without(self) -> None:
        """What a kernel does not know is said once, when the port opens, and done without."""
        for option, name in (
            ((SOL_UDP, UDP_SEGMENT), "UDP_SEGMENT"),
            ((SOL_UDP, UDP_GRO), "UDP_GRO"),
        ):
            self.lines.clear()
            self.make_ports(option)
            self.exchange(run_of(MOST, FULL), run_of(64, 96, last=5), [b"lone"])
            self.exchange(run_of(MOST, FULL))
            self.assertEqual(self.client_port.counters, {})
            self.assertEqual(self.said(name), 2, "one line a port")
            self.assertEqual(
                (self.client_port.gso, self.client_port.gro),
                (
                    name != "UDP_SEGMENT",
                    name != "UDP_GRO",
                ),
            )
            self.assertEqual(self.sender.sends, 153 if name == "UDP_SEGMENT" else 4)
        self.lines.clear()
        self.make_ports()
        self.assertEqual(self.lines, [], "the control: nothing to say")

    def test_device_without(self) -> None:
        """A burst refused as one leaves datagram by datagram; the next one is tried again."""
        for name in GSO_ERRNOS:
            self.make_ports()
            self.sender.refuse_segments = getattr(errno, name)
            self.exchange(run_of(10, 1000), [b"lone"])
            self.assertEqual(self.sender.sends, 11)
            self.assertEqual(self.client_port.counters, {"gso_refused": 1, f"gso_{name}": 1})
            self.sender.refuse_segments = None
            self.exchange(run_of(10, 1000))
            self.assertEqual(self.sender.sends, 12, "nothing is remembered")
            self.assertTrue(self.client_port.gso)

    def test_any_errno_at_any_send(self) -> None:
        """Whatever one send draws, lone or as a burst, is counted; what is behind it leaves."""
        for name in ("EIO", "EINVAL", "ENOBUFS", "EMSGSIZE", "EPERM", "ENETUNREACH", "ENOMEM"):
            for run in ([b"lone"], run_of(5, 100)):
                self.make_ports()
                self.hub.echo = False
                self.sender.send_errors.append(getattr(errno, name))
                to_hub = self.to_hub()
                self.client_port.writeBursts([burst_of(to_hub, run), burst_of(to_hub, [b"behind"])])
                self.world.reactor.settle()
                again = len(run) > 1 and name != "ENOBUFS"
                self.assertEqual(self.hub.datagrams(), [*(run if again else []), b"behind"])
                counters = {name: len(run)}
                if again:
                    counters = {"gso_refused": 1, f"gso_{name}": 1} if name in GSO_ERRNOS else {}
                self.assertEqual(self.client_port.counters, counters)
                self.assertEqual([c for c in self.client.calls if c != "turn"], [])

    def test_socket_full_at_any_send(self) -> None:
        """EAGAIN at any datagram of a burst that goes datagram by datagram: none is lost."""
        for before in range(6):
            self.make_ports((SOL_UDP, UDP_SEGMENT))
            self.hub.echo = False
            self.sender.send_errors.extend([*[0] * before, errno.EAGAIN])
            self.client_port.writeBursts([burst_of(self.to_hub(), run_of(5, 100))])
            self.assertEqual("paused" in self.client.calls, before < 5)
            self.client_port.writeBursts([burst_of(self.to_hub(), [b"behind"])])
            self.world.reactor.settle()
            self.assertEqual(self.hub.datagrams(), [*run_of(5, 100), b"behind"])

    def test_no_buffers_amid_a_burst(self) -> None:
        """ENOBUFS: those behind it in the burst would meet the same; dropped and counted."""
        self.make_ports((SOL_UDP, UDP_SEGMENT))
        self.hub.echo = False
        self.sender.send_errors.extend([0, 0, errno.ENOBUFS])
        to_hub = self.to_hub()
        self.client_port.writeBursts(
            [burst_of(to_hub, run_of(5, 100)), burst_of(to_hub, [b"next"])]
        )
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), [*run_of(2, 100), b"next"])
        self.assertEqual(self.client_port.counters, {"ENOBUFS": 3})

    def test_too_long_for_the_interface(self) -> None:
        """Datagrams above the interface's MTU are counted, not logged: so a path MTU probe ends."""
        self.make_ports()
        self.world.hosts["client"].mtu = 1280
        to_hub = self.to_hub()
        self.lines.clear()
        self.client_port.writeBursts(
            [burst_of(to_hub, run_of(3, 1400)), burst_of(to_hub, [b"next"])]
        )
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), [b"next"])
        counters = {"gso_refused": 1, "gso_EMSGSIZE": 1, "EMSGSIZE": 3}
        self.assertEqual(self.client_port.counters, counters)
        self.assertEqual(self.lines, [])
        self.exchange(run_of(3, 1252))

    def test_source_gone_is_no_refusal(self) -> None:
        """EINVAL for a burst may mean its source: then it leaves from elsewhere, and only that
        is counted."""
        self.make_ports()
        self.client_port.writeBursts([burst_of(self.to_hub("2001:db8::1"), [b"question"])])
        self.world.reactor.settle()
        asked = self.hub.bursts[0][2]
        self.world.hosts["hub"].remove_address("2001:db8::1")
        self.client.bursts.clear()
        self.hub_port.writeBursts([burst_of(asked, run_of(4, 100))])
        self.world.reactor.settle()
        self.assertEqual(self.client.datagrams(), run_of(4, 100))
        self.assertEqual(self.hub_port.counters, {"source_gone": 4})

    def test_any_errno_at_any_read(self) -> None:
        """Whatever a read draws is counted, and what is behind it is read."""
        self.make_ports()
        names = ("EIO", "EINVAL", "ENOBUFS", "EMSGSIZE", "ECONNREFUSED", "EAGAIN")
        receiver = socket_of(self.world, self.hub_port)
        receiver.receive_errors.extend(getattr(errno, name) for name in names)
        self.exchange(run_of(5, 100))
        self.assertEqual(self.hub_port.counters, dict.fromkeys(names[:-1], 1))


def socket_of(world: MemoryWorld, port: Any) -> MemorySocket:
    found = world.network.descriptors[port.fileno()]
    assert isinstance(found, MemorySocket)
    return found
