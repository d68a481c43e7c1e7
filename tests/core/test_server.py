"""The hub's facade, call by call; what takes time is in tests/sim."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control, server
from pyvpn.core.events import (
    Configured,
    LeaseLost,
    LeaseRequested,
    LoginRequested,
    SessionConfirmed,
    SessionEnded,
)
from pyvpn.core.leases import Lease
from pyvpn.core.login import LoginFlags
from pyvpn.errors import LocalProtocolError
from pyvpn.testing.simulation import NETWORK4, VIRTIO, Endpoint, ip_packet
from tests.core.scene import USER, Scene

HUB4 = NETWORK4[1]
DAY = 86_400


class Logins(SynchronousTestCase):
    def counted(self, scene: Scene, reason: str) -> int:
        return scene.hub.core.counters[reason]

    def test_no_answer_before_the_decision(self) -> None:
        """Between the right 0x50 and the owner's word the hub sends nothing (PROTOCOL 9)."""
        scene = Scene()
        scene.hub.decides = False
        scene.to_hub(scene.attempt().message)
        self.assertEqual(scene.sent(), [])
        (request,) = scene.hub.undecided
        self.assertEqual((request.user, request.device), (USER, scene.client.device))
        scene.hub.decide(True)
        self.assertEqual([len(datagram.payload) for datagram in scene.sent()], [116])

    def test_a_refusal_is_silent(self) -> None:
        """A login that the owner refuses gets no byte, and its stamp stays unused."""
        scene = Scene()
        scene.hub.decides = False
        message = scene.attempt().message
        scene.to_hub(message)
        scene.hub.decide(False)
        self.assertEqual(scene.sent(), [])
        scene.to_hub(message)
        scene.hub.decide(True)
        self.assertEqual(len(scene.sent()), 1)

    def test_a_user_who_goes_while_it_is_decided(self) -> None:
        """A login granted after its user was disabled, or got another key, gets silence."""
        for change in ("disable", "key"):
            scene = Scene(connect=False)
            scene.hub.decides = False
            scene.client.start()
            scene.simulation.advance(1)
            if change == "disable":
                scene.hub.disable(USER)
            else:
                scene.hub.enable(USER, scene.simulation.key_of("another", USER).public)
            scene.mark()
            scene.hub.decide(True)
            self.assertEqual(scene.sent(), [])
            self.assertEqual(self.counted(scene, "login_refused"), 1)

    def test_only_the_newer_of_two_logins(self) -> None:
        """Of two logins under decision the one granted later must be newer, else it is a replay."""
        scene = Scene()
        scene.hub.decides = False
        older, newer = scene.attempt(after=1), scene.attempt(after=2)
        scene.to_hub(older.message)
        scene.to_hub(newer.message)
        scene.hub.undecided.reverse()
        scene.hub.decide(True)
        scene.mark()
        scene.hub.decide(True)
        self.assertEqual(scene.sent(), [])
        self.assertEqual(self.counted(scene, "login_stamp_replayed"), 1)

    def test_the_same_login_twice_under_decision(self) -> None:
        """A 0x50 replayed while it is being decided is answered once."""
        scene = Scene()
        scene.hub.decides = False
        message = scene.attempt().message
        scene.to_hub(message)
        scene.to_hub(message)
        scene.hub.decide(True)
        scene.mark()
        scene.hub.decide(True)
        self.assertEqual(scene.sent(), [])
        self.assertEqual(self.counted(scene, "login_stamp_replayed"), 1)

    def test_a_replay_asks_nobody(self) -> None:
        """A stamp seen before is refused before the owner, who may have to ask others, is asked."""
        scene = Scene()
        message = scene.attempt().message
        scene.to_hub(message)
        asked = len(scene.hub.told(LoginRequested))
        scene.to_hub(message)
        self.assertEqual(len(scene.hub.told(LoginRequested)), asked)

    def test_unknown_decisions_are_our_bug(self) -> None:
        """Deciding twice, or what was never asked, raises."""
        core = Scene().hub.core
        self.assertRaises(LocalProtocolError, core.login_decided, 99, True, 0.0)
        self.assertRaises(
            LocalProtocolError, core.lease_decided, 99, control.ByeReason.POOL_FULL, 0.0
        )

    def test_stamps_only_rise(self) -> None:
        """Equal or older stamps of the same device are replays; another device has its own."""
        scene = Scene(connect=False)
        for after, answered in ((10, 1), (10, 0), (9, 0), (11, 1)):
            scene.mark()
            scene.to_hub(scene.attempt(after=after).message)
            self.assertEqual(len(scene.sent()), answered, after)
        scene.mark()
        scene.to_hub(scene.attempt(after=9, device=bytes(16)).message)
        self.assertEqual(len(scene.sent()), 1)

    def test_future_stamps(self) -> None:
        """A stamp up to a day ahead is taken, a later one would brick the key."""
        scene = Scene(connect=False)
        scene.mark()
        scene.to_hub(scene.attempt(after=DAY + 1).message)
        self.assertEqual(scene.sent(), [])
        scene.to_hub(scene.attempt(after=DAY - 1).message)
        self.assertEqual(len(scene.sent()), 1)

    def test_a_hub_whose_clock_is_behind(self) -> None:
        """More than a day behind its newest stamp, the bound is off and the status says so."""
        scene = Scene()
        self.assertFalse(scene.hub.core.clock_behind())
        scene.hub.wall_step = -2 * DAY * 10**9
        self.assertTrue(scene.hub.core.clock_behind())
        scene.to_hub(scene.attempt().message)
        self.assertEqual(len(scene.sent()), 1)

    def test_a_new_login_replaces_the_pending_one(self) -> None:
        """One pending handshake a device: the older one's index is deleted (PROTOCOL 3, step 9)."""
        scene = Scene()
        first = scene.attempt(after=1)
        keys = first.answered(scene.response_to(first.message))
        index = keys.remote_index
        self.assertIn(index, scene.hub.core._sessions)
        self.assertEqual(len(scene.hub.core._sessions), 2)
        scene.to_hub(scene.attempt(after=2).message)
        self.assertNotIn(index, scene.hub.core._sessions)
        self.assertEqual(len(scene.hub.core._sessions), 2)

    def test_the_choice(self) -> None:
        """AES is used when the hub has it and the client offers it, and nothing else is granted."""
        for aes in (False, True):
            for offered in (LoginFlags(0), LoginFlags.AES_256_GCM, LoginFlags(7)):
                scene = Scene(aes=aes, flags=offered)
                expected = offered & LoginFlags.AES_256_GCM if aes else LoginFlags(0)
                limit = 2**30 if expected else 2**64 - 2**13 - 1
                for peer in (scene.peer, scene.client.core.hub):
                    self.assertEqual(peer.current.reject_after_messages, limit)

    def test_unknown_users_and_wrong_keys_look_alike(self) -> None:
        """An unknown user and a wrong password are the same counter and the same silence."""
        scene = Scene()
        scene.to_hub(scene.attempt(user="nobody").message)
        scene.to_hub(scene.attempt(password="wrong").message)
        self.assertEqual(self.counted(scene, "login_wrong"), 2)
        self.assertEqual(scene.sent(), [])
        scene.to_hub(scene.attempt().message)  # control
        self.assertEqual(len(scene.sent()), 1)


class StampMemory(SynchronousTestCase):
    """Regression: a device of which nothing was kept let its recorded 0x50 draw an answer again."""

    def replay_is_silent(self, scene: Scene, message: bytes) -> None:
        scene.mark()
        scene.to_hub(message)
        self.assertEqual(scene.sent(), [])
        self.assertEqual(scene.hub.core.counters["login_stamp_replayed"], 1)
        scene.to_hub(scene.attempt(after=10).message)  # control: a newer one is answered
        self.assertEqual(len(scene.sent()), 1)

    def test_of_a_login_that_was_never_confirmed(self) -> None:
        """A 0x50 whose answer got lost draws nothing when it is replayed after 180 s."""
        scene = Scene(connect=False)
        message = scene.attempt().message
        scene.mark()
        scene.to_hub(message)
        self.assertEqual(len(scene.sent()), 1)
        scene.simulation.advance(200)
        self.assertIsNone(scene.hub.core.peer(USER, scene.client.device))
        self.replay_is_silent_later(scene, message)

    def replay_is_silent_later(self, scene: Scene, message: bytes) -> None:
        scene.simulation.wall_clock = lambda: 1_704_067_200 * 10**9  # type: ignore[method-assign]
        self.replay_is_silent(scene, message)

    def test_of_a_device_that_was_forgotten(self) -> None:
        """Nor does the 0x50 of a device that was removed."""
        scene = Scene()
        message = next(d.payload for d in scene.simulation.network.captured if d.kind == 0x50)
        scene.hub.core.forget_device(USER, scene.client.device, scene.now)
        scene.hub.drain()
        self.assertIsNone(scene.hub.core.peer(USER, scene.client.device))
        self.replay_is_silent(scene, message)

    def test_of_a_device_that_got_no_address(self) -> None:
        """Nor that of a device that was refused after it had logged in."""
        scene = Scene(connect=False, wanted4=IPv4Address("10.99.0.1"))
        scene.client.start()
        scene.simulation.advance(1)
        message = next(d.payload for d in scene.simulation.network.captured if d.kind == 0x50)
        self.assertIsNone(scene.hub.core.peer(USER, scene.client.device))
        self.replay_is_silent(scene, message)

    def test_is_bounded(self) -> None:
        """The oldest stamps go first when a user makes up device after device."""
        self.patch(server, "STAMPS_KEPT", 5)
        scene = Scene(connect=False)
        for number in range(8):
            scene.to_hub(scene.attempt(device=bytes([number]) * 16).message)
            scene.simulation.advance(200)
        self.assertEqual([device[0] for _, device in scene.hub.core._stamps], [3, 4, 5, 6, 7])


class Sessions(SynchronousTestCase):
    def waiting(self, scene: Scene) -> tuple[object, object]:
        """A second login, answered and not yet confirmed: its keys and the hub's session."""
        attempt = scene.attempt()
        keys = attempt.answered(scene.response_to(attempt.message))
        peer = scene.peer
        assert peer.next is not None
        return keys, peer.next

    def test_silent_until_the_first_packet(self) -> None:
        """On a new session the hub sends nothing before the client has, then what was staged."""
        scene = Scene()
        scene.client.asleep = True
        scene.simulation.advance(200)
        packet = ip_packet(HUB4, scene.client.lease.ipv4, b"staged")
        scene.mark()
        attempt = scene.attempt(after=0)
        scene.to_hub(attempt.message)
        scene.hub.send(packet)
        scene.simulation.advance(10)
        self.assertEqual([d.kind for d in scene.sent()], [0x51])
        scene.client.asleep = False
        scene.simulation.advance(1)
        self.assertEqual(scene.client.received, [packet])

    def test_a_login_that_waits_does_not_disturb(self) -> None:
        """The session in use goes on while a new one waits for its first packet."""
        scene = Scene()
        before = scene.peer.current
        self.waiting(scene)
        scene.client.send(ip_packet(scene.client.lease.ipv4, HUB4, b"still the old one"))
        scene.simulation.advance(1)
        self.assertIs(scene.peer.current, before)
        self.assertEqual(len(scene.hub.received), 1)

    def test_bye_ends_its_own_session_only(self) -> None:
        """A client that restarts: BYE of the old session spares the one that waits (regression)."""
        scene = Scene()
        _, waiting = self.waiting(scene)
        scene.sealed_to_hub(control.Bye(0, "").pack())
        self.assertEqual(scene.peer.sessions(), [waiting])
        self.assertEqual([e.reason for e in scene.hub.told(SessionEnded)], ["client_stopped"])

    def test_expiry_ends_its_own_session_only(self) -> None:
        """A session that expires spares the one that waits to follow it (regression)."""
        scene = Scene()
        scene.client.asleep = True
        scene.simulation.advance(170)
        _, waiting = self.waiting(scene)
        scene.simulation.advance(15)
        self.assertEqual(scene.peer.sessions(), [waiting])
        self.assertEqual([e.reason for e in scene.hub.told(SessionEnded)], ["expired"])

    def test_bye_of_the_previous_session(self) -> None:
        """A late BYE of the session before the current one ends that alone."""
        scene = Scene()
        scene.simulation.advance(126)
        previous = scene.client.core.hub.previous
        datagram = scene.sealed(scene.client.core.hub, control.Bye(0, "").pack(), previous)
        current = scene.peer.current
        scene.to_hub(datagram)
        self.assertEqual(scene.peer.sessions(), [current])
        self.assertEqual(scene.hub.told(SessionEnded), [])

    def test_events(self) -> None:
        """A login, a rekey and an end are told with the stamp to persist."""
        scene = Scene()
        scene.simulation.advance(130)
        scene.client.stop()
        scene.simulation.advance(1)
        confirmed = scene.hub.told(SessionConfirmed)
        self.assertEqual([event.new for event in confirmed], [True, False])
        self.assertLess(confirmed[0].stamp, confirmed[1].stamp)
        self.assertEqual(confirmed[0].endpoint, scene.client.endpoint)
        self.assertEqual([e.reason for e in scene.hub.told(SessionEnded)], ["client_stopped"])
        self.assertEqual(len(scene.hub.told(LoginRequested)), 2)
        self.assertEqual(len(scene.hub.told(LeaseRequested)), 1)


class Users(SynchronousTestCase):
    def test_another_key_ends_the_sessions(self) -> None:
        """A new password ends what was opened with the old one; the same key again does not."""
        scene = Scene()
        scene.hub.enable(USER, scene.client.static.public)
        self.assertEqual(scene.hub.told(SessionEnded), [])
        scene.hub.enable(USER, scene.simulation.key_of("another", USER).public)
        self.assertEqual(len(scene.hub.told(SessionEnded)), 1)

    def test_only_that_user(self) -> None:
        """Disabling one user leaves the others alone."""
        scene = Scene()
        scene.simulation.add_user("bob", "another")
        bob = scene.simulation.add_client("bob", "another")
        bob.start()
        scene.simulation.advance(1)
        scene.hub.disable(USER)
        self.assertEqual([peer.user for peer in scene.hub.core.connected_peers()], ["bob"])


class Control(SynchronousTestCase):
    def test_reply(self) -> None:
        """REPLY echoes stamp and number and says where the poll came from (PROTOCOL 6)."""
        scene = Scene(connect=False)
        scene.client.start()
        scene.simulation.advance_until(scene.peer_or_none, 1)
        replies: list[control.Reply] = []
        take = scene.client.core._control_received

        def control_received(peer, session, frame, endpoint, now):  # type: ignore[no-untyped-def]
            if isinstance(frame, control.Reply):
                replies.append(frame)
            take(peer, session, frame, endpoint, now)

        scene.client.core._control_received = control_received  # type: ignore[method-assign]
        scene.simulation.advance(1)
        (reply,) = replies
        self.assertEqual(reply.seq, 1)
        self.assertEqual(reply.queued, 0)
        address = scene.client.endpoint.address
        self.assertEqual(reply.address, bytes(10) + b"\xff\xff" + address.packed)
        self.assertEqual(reply.port, scene.client.endpoint.port)
        self.assertLess(reply.echoed, reply.stamp)

    def test_twenty_polls_a_second(self) -> None:
        """20 polls a second are answered, 5 of them may come at once; the others are not."""
        scene = Scene()
        scene.simulation.advance(1)
        scene.mark()
        for _ in range(400):
            scene.simulation.advance(0.005)  # 200 a second, for 2 s
            scene.sealed_to_hub(scene.poll())
        replies = [d for d in scene.sent() if d.source == scene.hub.endpoint]
        self.assertTrue(2 * 20 <= len(replies) <= 2 * 20 + 5, len(replies))
        refused = scene.hub.core.counters["poll_too_often"]
        self.assertEqual(refused, 400 - len(replies))

    def test_hello_again_while_it_is_decided(self) -> None:
        """A repeated HELLO asks the owner once."""
        scene = Scene()
        scene.simulation.advance(1)
        asked: list[object] = []
        scene.hub._event = asked.append  # type: ignore[method-assign]
        hello = control.Hello(None, None, "kiwi").pack()
        scene.sealed_to_hub(hello)
        scene.sealed_to_hub(hello)
        self.assertEqual([event.name for event in asked], ["kiwi"])  # type: ignore[attr-defined]
        self.assertEqual(asked[0].wanted4, None)  # type: ignore[attr-defined]

    def test_a_session_that_ended_while_its_lease_was_decided(self) -> None:
        """The decision comes too late and does nothing: no bytes, no lease routed."""
        scene = Scene()
        scene.simulation.advance(1)
        asked: list[LeaseRequested] = []
        scene.hub._event = asked.append  # type: ignore[method-assign,assignment]
        scene.sealed_to_hub(control.Hello(None, None, "").pack())
        scene.sealed_to_hub(control.Bye(0, "").pack())
        scene.mark()
        lease = Lease(IPv4Address("10.10.0.77"), None)
        scene.hub.core.lease_decided(asked[0].id, lease, scene.now)
        scene.hub.drain()
        self.assertEqual(scene.sent(), [])
        self.assertEqual(scene.hub.core._allowed.lookup(lease.ipv4.packed), None)


class Leases(SynchronousTestCase):
    def test_an_address_that_moves(self) -> None:
        """Whoever had the address is told of as having lost it, and can send from it no more."""
        scene = Scene()
        lease = scene.client.lease
        scene.hub.core.restore_device(USER, bytes(16), "new", b"", lease)
        scene.hub.drain()
        (lost,) = scene.hub.told(LeaseLost)
        self.assertEqual((lost.user, lost.device), (USER, scene.client.device))
        self.assertIsNone(scene.peer.lease)
        for source in (lease.ipv4, lease.ipv6):
            destination = HUB4 if source.version == 4 else IPv6Address("fd6e:a1::1")
            scene.sealed_to_hub(ip_packet(source, destination, b""))
        self.assertEqual(scene.hub.core.counters["inner_source_not_allowed"], 2)
        self.assertEqual(scene.hub.received, [])

    def test_forgotten_devices_leave_no_staged_bytes(self) -> None:
        """What waited for a device goes with it, from the total too (regression: it leaked)."""
        scene = Scene()
        scene.client.asleep = True
        scene.simulation.advance(200)
        scene.hub.send(ip_packet(HUB4, scene.client.lease.ipv4, bytes(1000)))
        self.assertEqual(scene.hub.core._staged_bytes, len(VIRTIO) + 1020)
        scene.hub.core.forget_device(USER, scene.client.device, scene.now)
        self.assertEqual(scene.hub.core._staged_bytes, 0)
        self.assertIsNone(scene.hub.core.next_timer())

    def test_an_ipv6_address_that_moves(self) -> None:
        """Nor does an IPv6 address alone have two owners."""
        scene = Scene()
        lease = Lease(IPv4Address("10.10.0.200"), scene.client.lease.ipv6)
        scene.hub.core.restore_device(USER, bytes(16), "new", b"", lease)
        scene.hub.drain()
        self.assertEqual([e.device for e in scene.hub.told(LeaseLost)], [scene.client.device])
        other = scene.hub.core.peer(USER, bytes(16))
        self.assertIs(scene.hub.core._allowed.lookup(lease.ipv6.packed), other)

    def test_without_ipv6(self) -> None:
        """A lease without an IPv6 address is told as such."""
        scene = Scene()
        scene.simulation.advance(1)
        asked: list[LeaseRequested] = []
        scene.hub._event = asked.append  # type: ignore[method-assign,assignment]
        scene.sealed_to_hub(control.Hello(None, None, "").pack())
        lease = Lease(IPv4Address("10.10.0.77"), None)
        scene.hub.core.lease_decided(asked[0].id, lease, scene.now)
        scene.hub.drain()
        scene.simulation.advance(1)
        config = scene.client.told(Configured)[-1].config
        self.assertEqual([str(address) for address in config.addresses], ["10.10.0.77/24"])


class Frames(SynchronousTestCase):
    def test_to_the_tun(self) -> None:
        """A packet reaches the TUN without its padding, behind ten zero bytes of virtio."""
        scene = Scene()
        packet = ip_packet(scene.client.lease.ipv4, HUB4, b"seventeen bytes!!")
        datagram = scene.sealed(scene.client.core.hub, packet + bytes(-len(packet) % 16))
        frames = scene.hub.core.datagrams_received(
            datagram, len(datagram), scene.client.endpoint, scene.now
        )
        self.assertEqual([b"".join(frame) for frame in frames], [bytes(10) + packet])

    def test_padding(self) -> None:
        """Inner packets are padded to 16, but never above the MTU (PROTOCOL 5)."""
        scene = Scene()
        lease = scene.client.lease
        for length, padded in ((21, 32), (32, 32), (33, 48), (1401, 1408), (1410, 1416)):
            scene.mark()
            scene.hub.send(ip_packet(HUB4, lease.ipv4, bytes(length - 20)))
            (datagram,) = scene.sent()
            self.assertEqual(len(datagram.payload), 32 + padded, length)

    def test_runs(self) -> None:
        """Packets of one turn leave in order, in bursts that one UDP_SEGMENT send takes."""
        scene = Scene()
        packets = [
            ip_packet(HUB4, scene.client.lease.ipv4, bytes([number]) + bytes(size))
            for number, size in enumerate([1300] * 100 + [5, 1300, 600, 600, 1, 2])
        ]
        scene.hub.send(*packets)  # its bursts are checked on the way
        scene.simulation.advance(1)
        self.assertEqual(scene.client.received, packets)

    def test_as_few_bursts_as_can_be(self) -> None:
        """Equal sizes leave together, one shorter may end them: at most 64 datagrams and 65,000
        bytes, what one UDP_SEGMENT send takes.
        """
        scene = Scene()
        lease = scene.client.lease
        table = [
            ([1396] * 44, [44]),
            ([1396] * 46, [44, 2]),
            ([60] * 130, [64, 64, 2]),
            ([1396, 1396, 60, 1396], [3, 1]),
            ([60, 1396, 1396], [1, 2]),
            ([1396, 60, 60], [2, 1]),
        ]
        for payloads, expected in table:
            frames = [bytes(10) + ip_packet(HUB4, lease.ipv4, bytes(n)) for n in payloads]
            bursts = scene.hub.core.packets_from_tun(frames, scene.now)
            counts = [len(burst.buffers) // 2 for burst in bursts]
            self.assertEqual(counts, expected, payloads)
            for burst in bursts:
                self.assertLess(len(b"".join(burst.buffers)), 65_000)

    def test_the_shortest_packets(self) -> None:
        """A packet that is its header alone is sent; one byte less is no packet."""
        scene = Scene()
        lease = scene.client.lease
        for packet in (
            ip_packet(HUB4, lease.ipv4, b""),
            ip_packet(IPv6Address("fd6e:a1::1"), lease.ipv6, b""),
        ):
            scene.hub.send(packet)
            scene.simulation.advance(0.1)
            self.assertEqual(scene.client.received[-1:], [packet])
            count = scene.hub.core.counters["tun_not_ip"]
            scene.hub.send(packet[:-1])
            self.assertEqual(scene.hub.core.counters["tun_not_ip"], count + 1)

    def test_other_sources(self) -> None:
        """Authentic datagrams are taken from another source, but nothing is sent there, except a
        challenge as long as the datagram.
        """
        scene = Scene()
        elsewhere = Endpoint(IPv4Address("203.0.113.200"), 9)
        scene.simulation.advance(1)
        scene.mark()
        scene.to_hub(scene.sealed(scene.client.core.hub, scene.poll()), elsewhere)
        there = [len(d.payload) for d in scene.sent() if d.destination == elsewhere]
        self.assertEqual(there, [64])
        replies = [d for d in scene.sent() if d.destination == scene.client.endpoint]
        self.assertEqual(len(replies), 1)
        self.assertEqual(len(scene.sent()), 2)

    def test_mixed_datagrams_in_one_read(self) -> None:
        """A read that holds a good datagram between rubbish yields that one."""
        scene = Scene()
        packet = ip_packet(scene.client.lease.ipv4, HUB4, bytes(12))
        good = scene.sealed(scene.client.core.hub, packet)
        unknown = b"\4\0\0\0" + bytes(len(good) - 4)
        junk = b"\xff" * len(good)
        buffer = junk + good + unknown + unknown + junk[:20]
        scene.hub.hear(buffer, len(good), scene.client.endpoint)
        self.assertEqual(scene.hub.received, [packet])
        self.assertEqual(scene.hub.core.counters["datagram_unknown"], 2)
        self.assertEqual(scene.hub.core.counters["session_unknown"], 2)
