"""VPNProtocol: feed, send, tell, re-arm, in this order, whatever the core does."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.burst import Burst
from pyvpn.testing.memory import MemoryHost, MemoryNetwork, MemorySocket, MemoryTUN
from pyvpn.testing.reactor import MemoryReactor
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.protocol import AFTER_EXCEPTION, PortLost, VPNProtocol, VPNServerProtocol
from pyvpn.tx.tun import TUNPort
from pyvpn.tx.udp import UDPPort
from tests.tx.packets import VIRTIO_HEADER, udp_packet, udp_payload
from tests.tx.worlds import burst_of

HERE = "192.0.2.1"


class FakeCore:
    """Notes calls; says what the test has queued."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.bursts: list[Burst] = []
        self.frames: list[list[Any]] = []
        self.to_send: deque[list[Burst]] = deque()
        self.events: deque[object] = deque()
        self.timer: float | None = None
        self.to_write: list[list[list[Any]]] = []
        self.rests = False
        self.fail = ""

    def _called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if self.fail == name:
            raise RuntimeError("planted")

    def packets_from_tun(self, frames: list[bytes], now: float) -> list[Burst]:
        self._called("packets", frames, now)
        return self.bursts

    def datagrams_received(
        self, buffer: bytes, size: int, endpoint: UDPEndpoint, now: float
    ) -> list[list[Any]]:
        self._called("datagrams", bytes(buffer), size, endpoint, now)
        return self.frames

    def datagrams_to_send(self, now: float) -> list[Burst]:
        return self.to_send.popleft() if self.to_send else []

    def next_timer(self) -> tuple[float, str] | None:
        return None if self.timer is None else (self.timer, "test")

    def handle_timer(self, now: float) -> None:
        self._called("timer", now)
        self.timer = None

    def frames_to_write(self) -> list[list[Any]]:
        return self.to_write.pop(0) if self.to_write else []

    def settled(self) -> bool:
        return self.rests

    def next_event(self) -> object | None:
        return self.events.popleft() if self.events else None


class ProtocolTests(SynchronousTestCase):
    """A protocol with a fake core between a memory TUN and a memory socket."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.reactor = MemoryReactor(self.network)
        host = MemoryHost(self.network, [HERE])
        self.device = MemoryTUN(self.network)
        self.core = FakeCore()
        self.events: list[object] = []
        self.protocol: VPNProtocol = VPNServerProtocol(
            self.core, self.on_event, self.reactor.boottime, self.reactor.timer
        )
        self.tun = TUNPort(self.device, self.protocol, self.reactor, host)
        self.udp = UDPPort(5050, self.protocol, "", self.reactor, host)
        self.udp.bind()
        self.protocol.attach(self.tun, self.udp)
        self.udp.startReading()
        self.tun.startReading()
        self.far = host.socket(10, 2)
        self.far.bind(("::", 7, 0, 0))
        self.to_far = self.udp.endpoint(HERE, 7)

    def on_event(self, event: object) -> None:
        self.events.append(event)

    def far_received(self) -> list[bytes]:
        """Payloads that reached the far socket, in order."""
        received = []
        while self.far.readable():
            received.append(self.far.recvmsg(65535, 0)[0])
        return received

    def own_socket(self) -> MemorySocket:
        found = self.network.descriptors[self.udp.fileno()]
        assert isinstance(found, MemorySocket)
        return found

    def far_sends(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.far.sendmsg([datagram], [], 0, ("::ffff:" + HERE, 5050, 0, 0))

    def test_frames(self) -> None:
        """One turn's frames are one call; its bursts leave before what the core has queued."""
        self.core.bursts = [burst_of(self.to_far, [b"data"])]
        self.core.to_send.append([burst_of(self.to_far, [b"control"])])
        self.device.inject(b"one" * 300)
        self.device.inject(b"two" * 300)
        self.reactor.settle()
        frames = [VIRTIO_HEADER + b"one" * 300, VIRTIO_HEADER + b"two" * 300]
        self.assertEqual(self.core.calls, [("packets", frames, self.reactor.boottime())])
        self.assertEqual(self.far_received(), [b"data", b"control"])

    def test_the_kernel_answers_in_the_same_turn(self) -> None:
        """What a written frame makes the kernel send is taken before the reactor's next round."""
        self.core.frames = [[VIRTIO_HEADER, b"question"]]
        put = self.device.put

        def answering(frame: bytes) -> int:
            self.device.inject(b"answer")
            return put(frame)

        self.device.put = answering  # type: ignore[method-assign]
        self.far_sends(b"datagram")
        self.udp.doRead()
        self.assertEqual([call[0] for call in self.core.calls], ["datagrams", "packets"])
        self.assertEqual(self.core.calls[1][1], [VIRTIO_HEADER + b"answer"])
        self.core.frames = []
        self.device.inject(b"no answer")
        self.far_sends(b"datagram")
        self.udp.doRead()
        self.assertEqual(len(self.core.calls), 3, "the control: nothing was written")

    def test_a_settled_core(self) -> None:
        """A core that says it has nothing to send or time is not asked for it; otherwise it is."""
        for rests, expected in ((True, []), (False, [b"control"])):
            self.core.rests = rests
            self.core.to_send.append([burst_of(self.to_far, [b"control"])])
            self.device.inject(b"packet")
            self.reactor.settle()
            self.assertEqual(self.far_received(), expected)
            self.core.to_send.clear()

    def test_answers_to_our_own_kernel(self) -> None:
        """What the core has to say to the own TUN is written there."""
        self.core.to_write.append([[VIRTIO_HEADER, b"too big"]])
        self.protocol.transmit()
        self.assertEqual(self.device.written, [VIRTIO_HEADER + b"too big"])

    def test_datagrams(self) -> None:
        """A run of datagrams is one call; its frames go to the TUN, answers back once."""
        self.core.frames = [[VIRTIO_HEADER, b"packet"], [VIRTIO_HEADER, b"an", b"other"]]
        self.core.to_send.append([burst_of(self.to_far, [b"answer"])])
        self.far_sends(b"aaaa", b"bbbb", b"cc")
        self.reactor.settle()
        [(name, buffer, size, endpoint, now)] = self.core.calls
        self.assertEqual((name, buffer, size), ("datagrams", b"aaaabbbbcc", 4))
        self.assertEqual((endpoint.host, endpoint.port), (HERE, 7))
        self.assertEqual(now, self.reactor.boottime())
        self.assertEqual(
            self.device.written, [VIRTIO_HEADER + b"packet", VIRTIO_HEADER + b"another"]
        )
        self.assertEqual(self.far_received(), [b"answer"])

    def test_datagram_received(self) -> None:
        """Twisted's own way to deliver is a burst of one, answered at once."""
        self.core.to_send.append([burst_of(self.to_far, [b"answer"])])
        self.protocol.datagramReceived(b"datagram", self.to_far)
        self.assertEqual(
            self.core.calls,
            [("datagrams", b"datagram", 8, self.to_far, self.reactor.boottime())],
        )
        self.assertEqual(self.far_received(), [b"answer"])

    def test_events_in_order(self) -> None:
        """Events come in order; a handler that raises loses neither the others nor the sending."""
        handled = []

        def handler(event: object) -> None:
            handled.append(event)
            if event == "bad":
                raise ValueError("planted")

        self.protocol._on_event = handler
        self.core.events.extend(["first", "bad", "last"])
        self.core.to_send.append([])
        self.core.to_send.append([burst_of(self.to_far, [b"after the events"])])
        self.protocol.transmit()
        self.assertEqual(handled, ["first", "bad", "last"])
        self.assertEqual(self.far_received(), [b"after the events"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_event_handler_that_calls_back(self) -> None:
        """A handler may call into the core and transmit, as the service does for a login."""

        def handler(event: object) -> None:
            self.events.append(event)
            if event == "login":
                self.core.to_send.append([burst_of(self.to_far, [b"granted"])])
                self.core.events.append("granted")
                self.protocol.transmit()

        self.protocol._on_event = handler
        self.core.events.append("login")
        self.protocol.transmit()
        self.assertEqual(self.events, ["login", "granted"])
        self.assertEqual(self.far_received(), [b"granted"])

    def test_timer(self) -> None:
        """The core's timer is called when due, not before, and what it queues is sent."""
        self.core.timer = self.reactor.boottime() + 5
        self.protocol.transmit()
        self.reactor.advance(4.9)
        self.assertEqual(self.core.calls, [])
        self.core.to_send.append([])
        self.core.to_send.append([burst_of(self.to_far, [b"keepalive"])])
        self.protocol.transmit()
        self.reactor.advance(0.2)
        self.assertEqual(self.core.calls, [("timer", 1005.0)])
        self.assertEqual(self.far_received(), [b"keepalive"])

    def test_timer_that_moved_on(self) -> None:
        """The time of a deadline that moved later passes without a call of the core."""
        self.core.timer = 1005.0
        self.protocol.transmit()
        self.core.timer = 1009.0
        self.protocol.transmit()
        self.reactor.advance(8)
        self.assertEqual(self.core.calls, [])
        self.reactor.advance(2)
        self.assertEqual(self.core.calls, [("timer", 1009.0)])

    def test_timer_that_came_nearer(self) -> None:
        """A nearer deadline is kept."""
        self.core.timer = 1050.0
        self.protocol.transmit()
        self.core.timer = 1002.0
        self.protocol.transmit()
        self.reactor.advance(3)
        self.assertEqual(self.core.calls, [("timer", 1002.0)])

    def test_timer_after_datagrams(self) -> None:
        """Whatever call changed the deadline, the timer is armed for it."""
        self.core.timer = 1003.0
        self.far_sends(b"x")
        self.reactor.settle()
        self.core.calls.clear()
        self.reactor.advance(4)
        self.assertEqual(self.core.calls, [("timer", 1003.0)])

    def test_bug_in_the_timer(self) -> None:
        """A core that raises from its timer is called again a second later, not at once."""
        self.core.timer = 1001.0
        self.core.fail = "timer"
        self.protocol.transmit()
        self.reactor.advance(0.9 + 3 * AFTER_EXCEPTION)
        self.assertEqual(self.core.calls, [("timer", 1001.0), ("timer", 1002.0), ("timer", 1003.0)])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_bug_with_frames(self) -> None:
        """A core that raises for one turn's frames still has its answers sent; both ports live."""
        self.core.fail = "packets"
        self.core.to_send.append([burst_of(self.to_far, [b"control"])])
        self.device.inject(b"x")
        self.reactor.settle()
        self.assertEqual(self.far_received(), [b"control"])
        self.assertEqual(self.tun.counters, {"exception": 1})
        self.core.fail = ""
        self.core.bursts = [burst_of(self.to_far, [b"data"])]
        self.device.inject(b"y")
        self.reactor.settle()
        self.assertEqual(self.far_received(), [b"data"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_bug_with_datagrams(self) -> None:
        """The same for datagrams."""
        self.core.fail = "datagrams"
        self.core.to_send.append([burst_of(self.to_far, [b"control"])])
        self.far_sends(b"x")
        self.reactor.settle()
        self.assertEqual(self.far_received(), [b"control"])
        self.assertEqual(self.udp.counters, {"exception": 1})
        self.core.fail = ""
        self.core.frames = [[VIRTIO_HEADER, b"packet"]]
        self.far_sends(b"y")
        self.reactor.settle()
        self.assertEqual(len(self.device.written), 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_back_pressure_pauses_the_tun(self) -> None:
        """While the socket is full no frame is read; afterwards all leave, none lost, in order."""
        self.own_socket().room = 3
        sent = [b"%04d" % n for n in range(200)]

        def packets(frames: list[bytes], now: float) -> list[Burst]:
            return [burst_of(self.to_far, [frame[10:] for frame in frames])]

        self.core.packets_from_tun = packets  # type: ignore[method-assign]
        for payload in sent:
            self.device.inject(payload)
        self.reactor.settle()
        self.assertFalse(self.tun.reading)
        self.assertTrue(self.device.readable(), "the rest waits in the kernel's queue")
        self.far_sends(b"still heard")
        self.reactor.settle()
        self.assertEqual(self.core.calls[-1][:2], ("datagrams", b"still heard"))
        received = self.far_received()
        for _ in range(len(sent) // 7 + 1):
            self.own_socket().room = 7
            self.reactor.settle()
            received += self.far_received()
        self.assertEqual(received, sent)
        self.own_socket().room = None
        self.reactor.settle()
        self.assertTrue(self.tun.reading)
        self.assertEqual(self.device.dropped, 0)

    def test_ports_lost(self) -> None:
        """The service hears that a device was deleted or a socket lost, in one line."""
        self.device.deleted = True
        self.reactor.settle()
        self.udp.connectionLost(Failure(CONNECTION_LOST))
        lost_tun, lost_udp = self.events
        assert isinstance(lost_tun, PortLost) and isinstance(lost_udp, PortLost)
        self.assertEqual((lost_tun.port, lost_udp.port), ("tun", "udp"))
        self.assertIn("leamit0", lost_tun.reason)
        self.assertIn("5050", lost_udp.reason)

    def test_detached(self) -> None:
        """Detached the timer is silent, also when the core announces more; twice is harmless."""
        self.core.timer = 1001.0
        self.protocol.transmit()
        self.protocol.detach()
        self.protocol.detach()
        self.protocol.transmit()
        self.reactor.advance(5)
        self.assertEqual(self.core.calls, [])

    def test_attach_sends_what_is_queued(self) -> None:
        """A client's first message is queued before the ports exist: attach sends it."""
        self.protocol.detach()
        self.core.to_send.append([burst_of(self.to_far, [b"initiation"])])
        self.protocol.attach(self.tun, self.udp)
        self.assertEqual(self.far_received(), [b"initiation"])


class TunnelCore(FakeCore):
    """The least that is a tunnel: a packet goes to the one peer with 16 bytes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.peer: UDPEndpoint

    def packets_from_tun(self, frames: list[bytes], now: float) -> list[Burst]:
        return [
            Burst(self.peer, [b"sixteen bytes ok", memoryview(frame)[10:]], 16 + len(frame) - 10)
            for frame in frames
        ]

    def datagrams_received(
        self, buffer: bytes, size: int, endpoint: UDPEndpoint, now: float
    ) -> list[list[Any]]:
        self.peer = endpoint
        view = memoryview(buffer)
        return [
            [VIRTIO_HEADER, view[start + 16 : start + size]]
            for start in range(0, len(buffer), size)
        ]


class TunnelTests(SynchronousTestCase):
    """TUN to UDP to TUN in memory, both ways."""

    def end(self, network: MemoryNetwork, address: str, port: int) -> Any:
        """One end of the tunnel: its core, device and UDP port."""
        host = MemoryHost(network, [address, "2001:db8::" + address[-1]])
        device = MemoryTUN(network)
        core = TunnelCore()
        protocol = VPNProtocol(core, self.fail, self.reactor.boottime, self.reactor.timer)
        udp = UDPPort(port, protocol, "", self.reactor, host)
        udp.bind()
        tun = TUNPort(device, protocol, self.reactor, host)
        protocol.attach(tun, udp)
        udp.startReading()
        tun.startReading()
        return core, device, udp

    def test_there_and_back(self) -> None:
        """Packets arrive unchanged and in order at the other TUN, and answers at the first."""
        network = MemoryNetwork()
        self.reactor = MemoryReactor(network)
        _, hub_device, _ = self.end(network, "192.0.2.1", 5050)
        client_core, client_device, client_udp = self.end(network, "192.0.2.2", 12000)
        for hub_address in ("192.0.2.1", "2001:db8::1"):
            hub_device.written.clear()
            client_device.written.clear()
            client_core.peer = client_udp.endpoint(hub_address, 5050)
            there = [
                udp_packet("10.10.0.2", "10.10.0.1", 7, b"%03d" % n * (1 + n % 40))
                for n in range(300)
            ]
            for packet in there:
                client_device.inject(packet)
            self.reactor.settle()
            self.assertEqual(hub_device.written, [VIRTIO_HEADER + packet for packet in there])
            for frame in hub_device.written:
                payload = udp_payload(frame[10:])
                assert payload is not None
                hub_device.inject(udp_packet("10.10.0.1", "10.10.0.2", 7, payload))
            self.reactor.settle()
            self.assertEqual(
                [udp_payload(frame[10:]) for frame in client_device.written],
                [packet[28:] for packet in there],
            )

    def test_loss(self) -> None:
        """A datagram that the network loses is one packet lost, nothing else."""
        network = MemoryNetwork()
        self.reactor = MemoryReactor(network)
        _, hub_device, _ = self.end(network, "192.0.2.1", 5050)
        client_core, client_device, client_udp = self.end(network, "192.0.2.2", 12000)
        client_core.peer = client_udp.endpoint("192.0.2.1", 5050)
        network.passes.append(lambda datagram: datagram.payload[16:] != b"b")
        for packet in (b"a", b"b", b"c"):
            client_device.inject(packet)
        self.reactor.settle()
        self.assertEqual([frame[10:] for frame in hub_device.written], [b"a", b"c"])
        self.assertEqual(
            [datagram.payload[16:] for datagram in network.captured], [b"a", b"b", b"c"]
        )
