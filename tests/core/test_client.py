"""The client's facade, call by call; what takes time is in tests/sim."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.clientstate import (
    TRANSITIONS,
    Input,
    State,
)
from pyvpn.core.events import (
    Configured,
    Connected,
    Disconnected,
    NoAnswer,
    NotGranted,
    Refused,
    ResolveServer,
    StampUsed,
)
from pyvpn.core.login import LoginFlags
from pyvpn.errors import LocalProtocolError
from pyvpn.testing.simulation import FIRST_WALL_TIME, NETWORK4, Endpoint, ip_packet
from tests.core.scene import PASSWORD, USER, Scene

HUB4 = NETWORK4[1]
WHITENING = 1 << 24  # ns


class Machine(SynchronousTestCase):
    def test_table(self) -> None:
        """What moves the client from state to state, as the diagram in the documentation has it."""
        S, I = State, Input  # noqa: E741
        expected = {
            (S.STOPPED, I.START, S.CONNECTING),
            (S.REFUSED, I.START, S.CONNECTING),
            (S.CONNECTING, I.ANSWERED, S.CONFIGURING),
            (S.CONFIGURING, I.ANSWERED, S.CONFIGURING),
            (S.CONFIGURING, I.CONFIGURED, S.UP),
            (S.UP, I.ANSWERED, S.UP),
            (S.UP, I.CONFIGURED, S.UP),
            *((state, I.LOST, S.CONNECTING) for state in (S.CONFIGURING, S.UP)),
            *((state, I.REFUSED, S.REFUSED) for state in (S.CONFIGURING, S.UP)),
            *((state, I.STOP, S.STOPPED) for state in set(S) - {S.STOPPED}),
        }
        self.assertEqual({(*key, to) for key, to in TRANSITIONS.items()}, expected)

    def test_what_is_not_in_the_table_raises(self) -> None:
        """Any other input is our bug and says so, the state unchanged."""
        core = Scene(connect=False).client.core
        for state, input in product(State, Input):
            if (state, input) not in TRANSITIONS:
                core.state = state
                self.assertRaises(LocalProtocolError, core._move, input)
                self.assertIs(core.state, state)

    def test_a_life(self) -> None:
        """Start, up, lost, up, stop: each told once."""
        scene = Scene(connect=False)
        client = scene.client
        self.assertFalse(client.core.running)
        client.start()
        self.assertIs(client.core.state, State.CONNECTING)
        scene.simulation.advance(1)
        self.assertIs(client.core.state, State.UP)
        scene.hub.stop(control.ByeReason.RESTARTING)
        scene.simulation.advance(0.02)
        self.assertIs(client.core.state, State.CONNECTING)
        scene.simulation.advance(3)
        self.assertIs(client.core.state, State.UP)
        client.stop()
        self.assertIs(client.core.state, State.STOPPED)
        self.assertEqual(len(client.told(Connected)), 2)
        self.assertEqual(len(client.told(Configured)), 2)
        self.assertEqual([e.reason for e in client.told(Disconnected)], ["hub restarting"])

    def test_start_twice(self) -> None:
        """Starting what is started, or stopping what is stopped, is our bug."""
        scene = Scene()
        self.assertRaises(LocalProtocolError, scene.client.start)
        scene.client.stop()
        self.assertRaises(LocalProtocolError, scene.client.stop)


class Required(SynchronousTestCase):
    """Flags without which the client begins no session (``--cipher aes-256-gcm``)."""

    def test_not_granted(self) -> None:
        """A hub that does not grant them is told nothing but logins; one that does is used."""
        aes = LoginFlags.AES_256_GCM
        for grants in (False, True):
            scene = Scene(connect=False, aes=grants, flags=aes, required=aes)
            scene.mark()
            scene.client.start()
            scene.simulation.advance(6)
            kinds = {d.kind for d in scene.sent() if d.source == scene.client.endpoint}
            self.assertEqual(kinds, {0x50, 0x04} if grants else {0x50})
            self.assertEqual(
                scene.client.core.state, State.UP if grants else State.CONNECTING, grants
            )
            said = [event for event in scene.client.events if isinstance(event, NotGranted)]
            self.assertEqual(said[:1], [] if grants else [NotGranted(aes)])

    def test_not_granted_any_more(self) -> None:
        """A hub that was started anew without them is not talked to either, rekey or login."""
        aes = LoginFlags.AES_256_GCM
        scene = Scene(aes=True, flags=aes, required=aes)
        self.assertIs(scene.client.core.state, State.UP)
        scene.hub._aes = False
        scene.hub.restart()
        scene.mark()
        scene.simulation.advance(60)
        self.assertIn(NotGranted(aes), scene.client.events)
        self.assertEqual(list(scene.hub.core.connected_peers()), [])


class Stopping(SynchronousTestCase):
    def test_nothing_is_left(self) -> None:
        """After stop there is no key, no timer and no packet, in whatever state it came."""
        for seconds in (0, 0.03, 0.05, 1, 124, 126):
            scene = Scene(connect=False)
            scene.client.start()
            scene.simulation.advance(seconds)
            scene.client.core.packets_from_tun([], scene.now)
            scene.client.stop()
            core = scene.client.core
            self.assertIsNone(core.next_timer(), seconds)
            self.assertEqual(core.hub.sessions(), [])
            self.assertEqual(core._sessions, {})
            self.assertEqual(core._staged_bytes, 0)

    def test_silence_is_not_told_after_stop(self) -> None:
        """Regression: a client stopped within its first 15 s said later that nobody answers."""
        scene = Scene(connect=False)
        scene.hub.asleep = True
        scene.client.start()
        scene.simulation.advance(3)
        scene.client.stop()
        scene.simulation.advance(60)
        self.assertEqual(scene.client.told(NoAnswer), [])
        scene.client.start()
        scene.simulation.advance(60)  # control: started anew it does say so
        self.assertEqual(len(scene.client.told(NoAnswer)), 1)

    def test_bye_alone(self) -> None:
        """Stopping sends BYE and nothing else, also when a rekey is due (regression)."""
        scene = Scene(poll_interval=170.0)
        scene.simulation.advance(130)
        scene.mark()
        scene.client.stop()
        self.assertEqual([d.kind for d in scene.sent()], [4])

    def test_staged_packets_are_not_kept(self) -> None:
        """What waited for a session is not sent by a later start."""
        scene = Scene()
        scene.client.core.link_changed(scene.now)
        scene.hub.asleep = True
        scene.simulation.advance(200)
        scene.client.send(ip_packet(scene.client.lease.ipv4, HUB4, b"stale"))
        self.assertGreater(scene.client.core._staged_bytes, 0)
        scene.client.stop()
        self.assertEqual(scene.client.core._staged_bytes, 0)


class Stamps(SynchronousTestCase):
    def used(self, scene: Scene) -> list[int]:
        return [event.nanoseconds for event in scene.client.told(StampUsed)]

    def test_each_login_has_a_later_one(self) -> None:
        """Stamps rise with every 0x50 and are told to be persisted, even when the clock stands."""
        scene = Scene(connect=False)
        scene.hub.asleep = True
        scene.simulation.wall_clock = lambda: FIRST_WALL_TIME  # type: ignore[method-assign]
        scene.client.start()
        scene.simulation.advance(400)
        used = self.used(scene)
        self.assertGreater(len(used), 18)
        self.assertEqual(used, sorted(set(used)))
        self.assertLess(used[-1] - used[0], 10**9)

    def test_a_clock_that_is_set_back(self) -> None:
        """After a step back the stamp goes on from the last one used, also over a restart."""
        scene = Scene()
        (before,) = self.used(scene)
        scene.client.stop()
        scene.client.wall_step = -3600 * 10**9
        scene.client.restart()
        scene.client.start()
        scene.simulation.advance(1)
        self.assertGreater(self.used(scene)[1], before)
        self.assertIs(scene.client.core.state, State.UP)

    @given(
        st.integers(0, 2 * 10**9 - 1),
        st.integers(-(10**9), 2 * 10**9),
        st.lists(st.integers(0, 10**7), max_size=70),
    )
    @settings(deadline=None, max_examples=25)
    def test_whitened(self, last: int, clock: int, steps: list[int]) -> None:
        """Every stamp's nanoseconds are a multiple of 2^24, and each is above the last (regression:
        the first one after a whole second was not).
        """
        scene = Scene(connect=False)
        core = scene.client.core
        core._stamps.last = last = FIRST_WALL_TIME + last
        core._static = scene.client.static
        for step in [0, *steps]:
            clock += step
            scene.client.wall_clock = lambda: FIRST_WALL_TIME + clock  # type: ignore[method-assign]  # noqa: B023
            core._wall_clock = scene.client.wall_clock
            core._send_initiation(scene.hub.endpoint, 0.0)
            self.assertGreater(core._stamps.last, last)
            self.assertEqual(core._stamps.last % 10**9 % WHITENING, 0)
            last = core._stamps.last


class Servers(SynchronousTestCase):
    def test_asked_for_every_try(self) -> None:
        """The hub's name is resolved again for each try of a login, each address has its turn."""
        scene = Scene(connect=False)
        others = [Endpoint(ip_address(f"198.51.100.{n}"), 5050) for n in (7, 8)]
        scene.client.servers = others
        scene.client.start()
        scene.simulation.advance(21)
        tried = [d.destination for d in scene.simulation.network.captured]
        self.assertEqual(len(tried), len(scene.client.told(ResolveServer)))
        self.assertEqual(len(tried), 5)  # every 5 s and a little
        self.assertEqual(tried[:3], tried[2:])
        self.assertEqual(set(tried), set(others))

    def test_a_name_that_comes_back(self) -> None:
        """While the name does not resolve it asks again; then it connects."""
        scene = Scene(connect=False)
        servers, scene.client.servers = scene.client.servers, []
        scene.client.start()
        scene.simulation.advance(12)
        self.assertEqual(scene.client.core.counters["server_unresolved"], 3)
        scene.client.servers = servers
        scene.simulation.advance(6)
        self.assertIs(scene.client.core.state, State.UP)

    def test_a_late_answer(self) -> None:
        """Addresses that nobody waits for are ignored."""
        scene = Scene()
        scene.mark()
        scene.client.core.server_resolved([scene.hub.endpoint], scene.now)
        scene.client.drain()
        self.assertEqual(scene.sent(), [])

    def test_a_rekey_asks_nobody(self) -> None:
        """A rekey goes to where the session is."""
        scene = Scene()
        asked = len(scene.client.told(ResolveServer))
        scene.simulation.advance(130)
        self.assertEqual(len(scene.client.told(StampUsed)), 2)
        self.assertEqual(len(scene.client.told(ResolveServer)), asked)


class Config(SynchronousTestCase):
    def part(self, revision: int, config: control.Config) -> bytes:
        (part,) = control.config_parts(revision, config)
        return part.pack()

    def test_applied(self) -> None:
        """Addresses of both families arrive with the network's prefix length, and are routed."""
        scene = Scene(wanted4=IPv4Address("10.10.0.50"), wanted6=IPv6Address("fd6e:a1::77"))
        (event,) = scene.client.told(Configured)
        self.assertEqual(
            [str(address) for address in event.config.addresses],
            ["10.10.0.50/24", "fd6e:a1::77/64"],
        )
        self.assertEqual(event.config.mtu, 1416)

    def test_not_acknowledged_before_it_is_applied(self) -> None:
        """CONFIG_ACK says that packets may come, so it waits for the owner, who says it once; of an
        older revision or without a session it says nothing.
        """
        scene = Scene()
        scene.client._event = lambda event: None  # type: ignore[method-assign]
        revision = scene.peer.config_revision + 1
        part = self.part(revision, control.Config(addresses=(IPv4Interface("10.10.0.2/24"),)))
        scene.mark()
        for _ in range(2):
            scene.sealed_to_client(part)
        self.assertEqual(scene.sent(), [])
        self.assertEqual(len(scene.client.told(Configured)), 2)
        for number, sent in ((revision - 1, 0), (revision, 1), (revision, 1)):
            scene.client.core.config_applied(number, scene.now)
            scene.client.drain()
            self.assertEqual(len(scene.sent()), sent, number)
        scene.client.stop()
        scene.mark()
        scene.client.core.config_applied(revision, scene.now)
        scene.client.drain()
        self.assertEqual(scene.sent(), [])

    def test_again(self) -> None:
        """A repetition is acknowledged again and not told again; a new revision is told."""
        scene = Scene()
        lease = scene.client.lease
        config = control.Config(addresses=(IPv4Interface((lease.ipv4, 24)),))
        revision = scene.peer.config_revision
        for number, (sent, told) in {revision + 1: (1, 2), revision: (0, 2)}.items():
            scene.mark()
            scene.sealed_to_client(self.part(number, config))
            self.assertEqual(len(scene.sent()), sent, number)
            self.assertEqual(len(scene.client.told(Configured)), told, number)
        scene.mark()
        scene.sealed_to_client(self.part(revision + 1, config))
        self.assertEqual(len(scene.sent()), 1)
        self.assertEqual(len(scene.client.told(Configured)), 2)

    def test_without_an_address(self) -> None:
        """A configuration without any address is refused and not acknowledged."""
        scene = Scene()
        scene.mark()
        scene.sealed_to_client(self.part(9, control.Config(mtu=1400)))
        self.assertEqual(scene.client.core.counters["config_invalid"], 1)
        self.assertEqual(scene.sent(), [])


class Byes(SynchronousTestCase):
    def test_each_reason(self) -> None:
        """0 and 1 send the client back to logging in, 2 to 7 are told and retried in 300 s."""
        for reason in control.ByeReason:
            scene = Scene()
            scene.sealed_to_client(control.Bye(reason, "why").pack())
            if reason < 2:
                self.assertIs(scene.client.core.state, State.CONNECTING)
                self.assertEqual(len(scene.client.told(Disconnected)), 1)
                continue
            self.assertEqual(scene.client.told(Refused), [Refused(reason, "why")])
            self.assertIs(scene.client.core.state, State.REFUSED)
            self.assertEqual(scene.client.core.next_timer(), (scene.now + 300, "refused_retry"))

    def test_reasons_of_a_later_version(self) -> None:
        """A reason that this version does not know is a refusal (regression: it raised)."""
        for reason in (8, 200, 255):
            scene = Scene()
            scene.sealed_to_client(control.Bye(reason, "news").pack())
            self.assertEqual(scene.client.told(Refused), [Refused(reason, "news")])

    def test_of_the_previous_session(self) -> None:
        """A BYE that comes late, in the session before, ends that one alone."""
        scene = Scene()
        scene.simulation.advance(126)
        previous = scene.peer.previous
        scene.to_client(scene.sealed(scene.peer, control.Bye(2, "").pack(), previous))
        self.assertIs(scene.client.core.state, State.UP)
        self.assertIsNone(scene.client.core.hub.previous)
        self.assertEqual(scene.client.told(Refused), [])

    def test_no_word_about_silence_while_refused(self) -> None:
        """Regression: refused while a login was under way, it later said that nobody answers."""
        scene = Scene()
        scene.hub.decides = False
        scene.simulation.advance(126)  # a rekey waits for its answer
        scene.sealed_to_client(control.Bye(2, "").pack())
        scene.simulation.advance(60)
        self.assertEqual(scene.client.told(NoAnswer), [])

    def test_wrong_direction(self) -> None:
        """What only a client may say is refused from a hub: HELLO, CONFIG_ACK, POLL."""
        scene = Scene()
        frames = (
            control.Hello(None, None, ""),
            control.ConfigAck(1, 0),
            control.Poll(bytes(12), 1, 0, 0),
        )
        for frame in frames:
            scene.sealed_to_client(frame.pack())
        self.assertEqual(scene.client.core.counters["control_wrong_direction"], len(frames))


class AnyBytes(SynchronousTestCase):
    """Whatever arrives, nothing raises and nothing but a counter changes."""

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=240),
                st.builds(
                    lambda kind, rest, size: (bytes([kind, 1, 0, 0]) + rest).ljust(size, b"\7"),
                    st.sampled_from([0x50, 0x51, 0x52, 4, 1, 2, 3]),
                    st.binary(max_size=64),
                    st.sampled_from([208, 116, 64, 148, 92, 32, 48]),
                ),
            ),
            max_size=20,
        )
    )
    @settings(deadline=None, max_examples=60)
    def test_from_strangers(self, datagrams: list[bytes]) -> None:
        """Strangers get no byte and move neither core, whatever they send."""
        scene = Scene()
        before = (scene.hub.core.next_timer(), scene.client.core.next_timer())
        for datagram in datagrams:
            scene.to_hub(datagram)
            scene.to_client(datagram)
        self.assertEqual(scene.sent(), [])
        self.assertEqual((scene.hub.core.next_timer(), scene.client.core.next_timer()), before)
        drops = sum(1 for datagram in datagrams if datagram)
        for core in (scene.hub.core, scene.client.core):
            self.assertEqual(sum(core.counters.values()), drops)

    @given(st.lists(st.binary(max_size=100), max_size=10), st.booleans())
    @settings(deadline=None, max_examples=100)
    def test_from_the_other_end(self, plaintexts: list[bytes], to_hub: bool) -> None:
        """Not even the other end, authenticated, makes a core raise, whatever it says."""
        scene = Scene()
        for plaintext in plaintexts:
            end = scene.client.core.hub if to_hub else scene.peer_or_none()
            if end is None or end.current is None:
                break
            (scene.sealed_to_hub if to_hub else scene.sealed_to_client)(plaintext)

    @given(
        st.lists(st.tuples(st.integers(1, 8), st.binary(max_size=60), st.booleans()), max_size=10),
        st.booleans(),
    )
    @settings(deadline=None, max_examples=150)
    def test_control_frames_from_the_other_end(
        self, frames: list[tuple[int, bytes, bool]], to_hub: bool
    ) -> None:
        """The same with bodies behind a right header of each kind of control frame."""
        scene = Scene()
        for kind, body, _ in frames:
            end = scene.client.core.hub if to_hub else scene.peer_or_none()
            if end is None or end.current is None:
                break
            frame = bytes([kind, 0]) + len(body).to_bytes(2, "little") + body
            (scene.sealed_to_hub if to_hub else scene.sealed_to_client)(frame)
        scene.simulation.advance(5)


class Passwords(SynchronousTestCase):
    def test_the_key_comes_at_start(self) -> None:
        """The same core logs in with whatever key start() is given: the service makes it late."""
        scene = Scene(connect=False)
        scene.client.core.start(scene.simulation.key_of(PASSWORD, USER), scene.now)
        scene.client.drain()
        scene.simulation.advance(1)
        self.assertIs(scene.client.core.state, State.UP)
