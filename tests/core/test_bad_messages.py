"""Every message of the wire, spoilt in every way: one named count, silence, and nothing moves."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.events import Configured
from pyvpn.core.peer import Peer, ServerPeer
from pyvpn.core.transport import Session
from pyvpn.testing.simulation import NETWORK4, NETWORK6
from tests.core import badhandshakes, badsegments, badtransport, segmentmodel
from tests.core.badhandshakes import DAY
from tests.core.badrows import Case, Make, Row, cut, longer, remade, whole
from tests.core.badtransport import ADDRESS, TO_CLIENTS, TO_HUB, WINDOW
from tests.core.test_control import GOOD_ITEMS, frame
from tests.sim.rules import works_both_ways


def _session(session: Session | None) -> object:
    if session is None:
        return None
    return (id(session), session.local_index, session.remote_index, session.send_counter)


def _peer(peer: Peer) -> list[object]:
    held: list[object] = [peer.endpoint, list(peer.staged), peer.rx_packets, peer.tx_packets]
    held += map(_session, (peer.previous, peer.current, peer.next))
    if isinstance(peer, ServerPeer):
        held += [peer.lease, peer.stamp_seen, peer.next_endpoint, peer.name, peer.pending_hello]
        held += [peer.config_revision, peer.config_due]
    return held


def holdings(case: Case) -> list[object]:
    """All that the node holds, tells, sends and writes, but for its counters.

    And but for what any authentic datagram moves: its replay window, and when it came.
    """
    node = case.node
    held: list[object] = [len(case.sent()), list(node.events), list(node.received)]
    held.append({index: _session(session) for index, (_, session) in node.core._sessions.items()})
    if case.for_hub:
        hub = case.hub.core
        held.append({holder: _peer(peer) for holder, peer in hub._peers.items()})
        held += [
            dict(hub._stamps),
            dict(hub._logins.users),
            dict(case.hub.disk),
            len(hub._undecided),
        ]
    else:
        client = case.client.core
        held += [client.state, client._attempt, client._pending, _peer(client.hub)]
        held += [client._acknowledged, client._allowed.networks(client.hub), case.client.last_stamp]
    return held


class Walk(SynchronousTestCase):
    def walk(self, rows: Iterable[Row], *, for_hub: bool, least: int) -> None:
        """Give each row to a fresh node; ``least`` is how many rows there are at the least."""
        count = 0
        for row in rows:
            count += 1
            case = Case(for_hub=for_hub)
            payload = row.make(case)
            case.mark()
            before, counters = holdings(case), dict(case.node.core.counters)
            case.give(payload)
            self.assertEqual(
                {
                    reason: number - counters.get(reason, 0)
                    for reason, number in case.node.core.counters.items()
                    if number != counters.get(reason, 0)
                },
                {row.reason: 1},
                row.fault,
            )
            self.assertEqual(holdings(case), before, row.fault)
            self.assertEqual(case.sent(), [], row.fault)
            self.assertTrue(works_both_ways(case.simulation, case.client), row.fault)
        self.assertGreaterEqual(count, least)

    def taken(self, make: Make, *, for_hub: bool) -> Case:
        """The control: this one is dropped for no reason at all."""
        case = Case(for_hub=for_hub)
        payload = make(case)
        case.mark()
        before = dict(case.node.core.counters)
        case.give(payload)
        self.assertEqual(dict(case.node.core.counters), before)
        return case


class Handshakes(Walk):
    """0x50 at the hub, 0x51 at a client that waits for one."""

    def test_initiation(self) -> None:
        """A 0x50 of a wrong length, type, version, MAC or key is dropped unread."""
        self.walk(badhandshakes.initiations(), for_hub=True, least=50)

    def test_initiation_payload(self) -> None:
        """So is one whose payload breaks a rule, made by somebody who holds token and password."""
        self.walk(badhandshakes.initiation_payloads(), for_hub=True, least=30)

    def test_initiation_claims(self) -> None:
        """And one with an old stamp, one of the future, a wrong user or a wrong key."""
        self.walk(badhandshakes.initiation_claims(), for_hub=True, least=15)

    def test_good_initiations(self) -> None:
        """The control: what is not spoilt, to the very bounds, draws one answer of 116 bytes."""
        for make in (
            badhandshakes.login,
            badhandshakes.crafted_login(),
            badhandshakes.crafted_login(flags=15),
            badhandshakes.crafted_login(flags=8, code=b"\xff\xff\xff"),
            badhandshakes.crafted_login(stamp=badhandshakes.from_last(1)),
            badhandshakes.crafted_login(stamp=badhandshakes.from_now(DAY)),
            remade(badhandshakes.login, 0, b"\x50"),
        ):
            case = self.taken(make, for_hub=True)
            self.assertEqual([len(datagram.payload) for datagram in case.sent()], [116])

    def test_response(self) -> None:
        """A spoilt 0x51 is dropped, and the client waits on for the right one."""
        self.walk(badhandshakes.responses(), for_hub=False, least=60)

    def test_good_responses(self) -> None:
        """The control: the right 0x51 makes a session, which the client uses at once."""
        for make in (badhandshakes.answer, remade(badhandshakes.answer, 0, b"\x51")):
            case = self.taken(make, for_hub=False)
            self.assertEqual([datagram.kind for datagram in case.sent()], [4])

    def test_cookie(self) -> None:
        """A spoilt 0x52 is dropped, and its cookie is not used."""
        self.walk(badhandshakes.cookies(), for_hub=False, least=25)

    def test_good_cookie(self) -> None:
        """The control: the right one draws a new 0x50 at once, with a mac2."""
        case = self.taken(badhandshakes.cookie, for_hub=False)
        (datagram,) = case.sent()
        self.assertEqual(datagram.kind, 0x50)
        self.assertNotEqual(datagram.payload[-16:], bytes(16))

    def test_the_right_one_after_a_spoilt_one(self) -> None:
        """A spoilt 0x51 spoils nothing: the right answer to the same 0x50 still works."""
        for place in (4, 12, 44, 83):
            case = Case(for_hub=False)
            right = badhandshakes.answer(case)
            case.give(remade(whole(right), place)(case))
            case.mark()
            case.give(right)
            self.assertEqual([datagram.kind for datagram in case.sent()], [4], place)


class Data(Walk):
    """Type 4, at both ends."""

    def test_transport(self) -> None:
        """Forged, replayed, misdirected and malformed datagrams end before their content counts."""
        for for_hub in (True, False):
            self.walk(badtransport.transport(), for_hub=for_hub, least=30)

    def test_good_transport(self) -> None:
        """The control: the same at the last value that is allowed."""
        for for_hub in (True, False):
            self.taken(badtransport.data, for_hub=for_hub)
            self.taken(badtransport.behind(WINDOW - 1), for_hub=for_hub)
            self.taken(
                badtransport.counted(badtransport.REJECT_AFTER_MESSAGES - 1), for_hub=for_hub
            )

    def test_packets(self) -> None:
        """What is no IP packet never reaches the TUN, whoever sent it."""
        for for_hub in (True, False):
            self.walk(badtransport.packets(), for_hub=for_hub, least=25)

    def test_sources(self) -> None:
        """Nor does a packet from an address that is not the sender's."""
        foreign = (NETWORK4[0], NETWORK4[1], NETWORK4[200], NETWORK4[255], NETWORK6[1])
        self.walk(badtransport.sources(*foreign), for_hub=True, least=15)
        self.walk(badtransport.sources(), for_hub=False, least=10)

    def test_good_packets(self) -> None:
        """The control: a packet of each family is written, without its padding."""
        for for_hub in (True, False):
            for version in (4, 6):
                make = badtransport.packet(version)
                padded = badtransport.inside(longer(make, 4))
                case = self.taken(padded, for_hub=for_hub)
                self.assertEqual(case.node.received, [make(case)])


class Segments(Walk):
    """Segment frames from a peer that has agreed on them."""

    def test_rules(self) -> None:
        """One that breaks any rule of PROTOCOL 5 never reaches the TUN, whoever sent it."""
        for for_hub in (True, False):
            self.walk(badsegments.rows(), for_hub=for_hub, least=300)

    def test_sources(self) -> None:
        """Nor does one from an address that is not the sender's."""
        foreign = (NETWORK4[0], NETWORK4[1], NETWORK4[200], NETWORK6[1], NETWORK6[200])
        self.walk(badsegments.sources(*foreign), for_hub=True, least=90)
        self.walk(badsegments.sources(), for_hub=False, least=60)

    def test_good(self) -> None:
        """The control: at the very bounds it is written, with its own length and nothing more."""
        for for_hub in (True, False):
            for name, make, payload in badsegments.good():
                case = self.taken(make, for_hub=for_hub)
                (packet,) = case.node.received
                place = segmentmodel.place_of(packet)
                self.assertEqual(len(packet) - place.payload, payload, name)


class ControlFrames(Walk):
    """Control frames and CONFIGs on an authentic session."""

    def test_frames(self) -> None:
        """A malformed or unknown frame, or one in the wrong direction, gets no answer."""
        self.walk(badtransport.frames(TO_CLIENTS), for_hub=True, least=45)
        self.walk(badtransport.frames(TO_HUB), for_hub=False, least=45)

    def test_polls(self) -> None:
        """A POLL that is late, repeated or out of order gets no REPLY."""
        self.walk(badtransport.polls(), for_hub=True, least=7)

    def test_responses(self) -> None:
        """A PATH_RESPONSE that nobody asked for moves no endpoint."""
        for for_hub in (True, False):
            self.walk(badtransport.responses(), for_hub=for_hub, least=3)

    def test_good_polls(self) -> None:
        """The control: a POLL in order draws a REPLY, a challenge its response."""
        challenge = whole(frame(3, bytes(16)))
        for make, for_hub in (
            (badtransport.poll(0.0), True),
            (challenge, True),
            (challenge, False),
        ):
            case = self.taken(badtransport.inside(make), for_hub=for_hub)
            self.assertEqual([datagram.kind for datagram in case.sent()], [4])

    def test_configs(self) -> None:
        """An invalid CONFIG changes no address and is not acknowledged."""
        self.walk(badtransport.configs(), for_hub=False, least=50)

    def test_good_configs(self) -> None:
        """The control: one at the bounds is applied and acknowledged."""
        for fault, items in GOOD_ITEMS.items():
            plaintext = whole(badtransport.config(ADDRESS + items))
            case = self.taken(badtransport.inside(plaintext), for_hub=False)
            self.assertEqual([datagram.kind for datagram in case.sent()], [4], fault)
            self.assertEqual(len(case.client.told(Configured)), 2, fault)


class Planted(Walk):
    """The walk finds what it is for."""

    def test_wrong_reason(self) -> None:
        """A message that is counted under another name, or not at all, fails the walk."""
        for make in (badhandshakes.login, cut(badhandshakes.login, 9)):
            row = Row("planted", make, "mac1_invalid")
            self.assertRaises(AssertionError, self.walk, [row], for_hub=True, least=1)

    def test_something_moves(self) -> None:
        """A drop that has changed what the node holds fails it too."""

        def meddle(case: Case) -> bytes:
            core = case.hub.core
            drop = core._handshake_received

            def dropping(*arguments: object) -> None:
                case.peer.endpoint = None
                drop(*arguments)  # type: ignore[arg-type]

            core._handshake_received = dropping  # type: ignore[method-assign]
            return b"\xff"

        row = Row("planted", meddle, "datagram_unknown")
        self.assertRaises(AssertionError, self.walk, [row], for_hub=True, least=1)
