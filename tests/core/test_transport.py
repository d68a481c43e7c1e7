"""Transport data against its layout and limits (PROTOCOL 1, 7), retyped here."""

from __future__ import annotations

import struct
from random import Random

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.burst import Buffer
from pyvpn.core.transport import Session

KEY1, KEY2 = bytes(range(32)), bytes(range(32, 64))
CLIENT_INDEX, SERVER_INDEX = 0x01020304, 0xA0B0C0D0
WINDOW = 8192
REJECT_AFTER_TIME = 180.0
LIMITS = {
    # cipher: (rekey after, reject after) so many messages
    False: (2**60, 2**64 - 2**13 - 1),
    True: (2**27, 2**30),
}


def session(*, client: bool = True, aes: bool = False, created: float = 0.0) -> Session:
    ours, theirs = (CLIENT_INDEX, SERVER_INDEX) if client else (SERVER_INDEX, CLIENT_INDEX)
    return Session(
        send_key=KEY1 if client else KEY2,
        receive_key=KEY2 if client else KEY1,
        aes=aes,
        local_index=ours,
        remote_index=theirs,
        inner_mtu=1416,
        created=created,
    )


def joined(buffers: list[Buffer]) -> list[bytes]:
    """The datagrams of a burst, each whole."""
    return [
        bytes(head) + bytes(body) for head, body in zip(buffers[::2], buffers[1::2], strict=True)
    ]


def seal(sender: Session, counter: int, plaintext: bytes) -> bytes:
    """One datagram with any counter."""
    sender.send_counter = counter
    return joined(sender.seal_burst([plaintext]))[0]


def receive(receiver: Session, datagrams: list[bytes]) -> list[bytes]:
    """Hand over datagrams in one call."""
    counters = [int.from_bytes(datagram[8:16], "little") for datagram in datagrams]
    return receiver.open_burst(tuple(counters), [datagram[16:] for datagram in datagrams])


class Layout(SynchronousTestCase):
    def test_datagram(self) -> None:
        """0x04, three zeros, the receiver's index, the counter, the sealed packet: 32 + n bytes,
        little-endian; the nonce is four zeros and the counter, for both ciphers.
        """
        for aes, cipher in ((False, ChaCha20Poly1305), (True, AESGCM)):
            sender = session(aes=aes)
            sender.send_counter = 0x0102030405
            (datagram,) = joined(sender.seal_burst([b"E" * 48]))
            self.assertEqual(len(datagram), 32 + 48)
            self.assertEqual(datagram[:4], b"\4\0\0\0")
            self.assertEqual(datagram[4:8], b"\xd0\xc0\xb0\xa0")
            self.assertEqual(datagram[8:16], b"\5\4\3\2\1\0\0\0")
            nonce = bytes(4) + datagram[8:16]
            self.assertEqual(cipher(KEY1).decrypt(nonce, datagram[16:], b""), b"E" * 48)

    def test_counters_rise(self) -> None:
        """Each datagram has the next counter, from 0 on, over bursts of any length."""
        sender = session()
        datagrams = [d for n in (1, 3, 2) for d in joined(sender.seal_burst([b"x"] * n))]
        counters = [struct.unpack_from("<Q", datagram, 8)[0] for datagram in datagrams]
        self.assertEqual(counters, [0, 1, 2, 3, 4, 5])
        self.assertEqual(sender.send_counter, 6)

    def test_two_buffers_a_datagram(self) -> None:
        """A keepalive, too, is a header of 16 bytes and a body."""
        buffers = session().seal_burst([b"", b"abc"])
        self.assertEqual([len(buffer) for buffer in buffers], [16, 16, 16, 19])


class BothWays(SynchronousTestCase):
    def test_seal_and_open(self) -> None:
        """What one side seals the other opens, in both directions and with both ciphers."""
        for aes in (False, True):
            client, server = session(aes=aes), session(client=False, aes=aes)
            packets = [bytes([n]) * 1400 for n in range(5)] + [b"short"]
            for sender, receiver in ((client, server), (server, client)):
                sealed = joined(sender.seal_burst(list(packets)))
                self.assertEqual(receive(receiver, sealed), packets)
                self.assertEqual((receiver.forged, receiver.replayed), (0, 0))

    def test_the_ciphers_differ(self) -> None:
        """A datagram of one cipher is a forgery to the other: control of the choice."""
        server = session(client=False, aes=True)
        self.assertEqual(receive(server, joined(session().seal_burst([b"x"]))), [])
        self.assertEqual(server.forged, 1)

    def test_reflection(self) -> None:
        """What a side sent is a forgery when it comes back: each direction has its key."""
        client = session()
        self.assertEqual(receive(client, joined(client.seal_burst([b"x"]))), [])
        self.assertEqual(client.forged, 1)


class Forgeries(SynchronousTestCase):
    def test_every_byte_is_covered(self) -> None:
        """A change of the counter or of any sealed byte makes a forgery and marks nothing."""
        good = joined(session().seal_burst([b"E" * 20]))[0]
        for aes in (False, True):
            good = joined(session(aes=aes).seal_burst([b"E" * 20]))[0]
            server = session(client=False, aes=aes)
            for place in range(8, len(good)):
                damaged = bytearray(good)
                damaged[place] ^= 1 << place % 8
                self.assertEqual(receive(server, [bytes(damaged)]), [])
            self.assertEqual(server.forged, len(good) - 8)
            self.assertEqual(server.window.highest, -1)
            self.assertEqual(receive(server, [good]), [b"E" * 20])

    def test_a_forgery_never_moves_the_window(self) -> None:
        """A forged counter far ahead leaves what is under way acceptable (PROTOCOL 7)."""
        client, server = session(), session(client=False)
        forged = struct.pack("<IIQ", 4, SERVER_INDEX, 10**6) + bytes(40)
        self.assertEqual(receive(server, [forged]), [])
        self.assertEqual(receive(server, joined(client.seal_burst([b"x"]))), [b"x"])
        self.assertEqual((server.forged, server.replayed), (1, 0))
        # Control: an authentic one that far ahead does move it.
        self.assertEqual(receive(server, [seal(client, 10**6, b"y")]), [b"y"])
        self.assertEqual(receive(server, [seal(client, 5, b"z")]), [])
        self.assertEqual(server.replayed, 1)

    def test_a_forgery_within_a_run(self) -> None:
        """In one read, the good datagrams around a forged one are accepted, each once."""
        client, server = session(), session(client=False)
        datagrams = joined(client.seal_burst([bytes([n]) for n in range(5)]))
        forged = datagrams[2][:-1] + bytes([datagrams[2][-1] ^ 1])
        run = [datagrams[0], datagrams[1], forged, datagrams[2], datagrams[3]]
        self.assertEqual(receive(server, run), [b"\0", b"\1", b"\2", b"\3"])
        self.assertEqual((server.forged, server.replayed), (1, 0))
        self.assertEqual(receive(server, [forged, datagrams[4]]), [b"\4"])


class Replays(SynchronousTestCase):
    def test_each_datagram_counts_once(self) -> None:
        """A repeated datagram is a replay, at once or later, alone or in a run."""
        client, server = session(), session(client=False)
        datagrams = joined(client.seal_burst([bytes([n]) for n in range(4)]))
        self.assertEqual(receive(server, [datagrams[0], datagrams[0]]), [b"\0"])
        self.assertEqual(receive(server, datagrams), [b"\1", b"\2", b"\3"])
        self.assertEqual(receive(server, datagrams), [])
        self.assertEqual((server.forged, server.replayed), (0, 2 + 4))

    def test_the_edge_of_the_window(self) -> None:
        """8,192 counters are remembered, the highest included; the next older one is too old."""
        for late, expected in ((WINDOW - 1, [b"late"]), (WINDOW, [])):
            client, server = session(), session(client=False)
            receive(server, [seal(client, 20_000, b"high")])
            self.assertEqual(receive(server, [seal(client, 20_000 - late, b"late")]), expected)

    def test_a_run_that_is_partly_old(self) -> None:
        """Of a run that does not start above the highest each counter is judged by itself."""
        client, server = session(), session(client=False)
        datagrams = joined(client.seal_burst([bytes([n]) for n in range(6)]))
        self.assertEqual(receive(server, [datagrams[1], datagrams[2]]), [b"\1", b"\2"])
        self.assertEqual(receive(server, datagrams), [b"\0", b"\3", b"\4", b"\5"])
        self.assertEqual(server.replayed, 2)

    @given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), max_size=12))
    @settings(deadline=None, max_examples=80)
    def test_any_order_is_a_set(self, reads: list[list[int]]) -> None:
        """However reads are cut, repeated and reordered, each counter is delivered exactly once."""
        client, server = session(), session(client=False)
        known: set[int] = set()
        for read in reads:
            expected = []
            for counter in read:
                if counter not in known:
                    known.add(counter)
                    expected.append(bytes([counter]))
            sealed = [seal(client, counter, bytes([counter])) for counter in read]
            self.assertEqual(receive(server, sealed), expected)
        self.assertEqual(server.forged, 0)
        self.assertEqual(server.replayed, sum(map(len, reads)) - len(known))


class Limits(SynchronousTestCase):
    def test_time(self) -> None:
        """A session serves for 180 s, not a moment longer."""
        one = session(created=50.0)
        self.assertFalse(one.expired(50.0 + REJECT_AFTER_TIME - 0.001))
        self.assertTrue(one.expired(50.0 + REJECT_AFTER_TIME))
        self.assertEqual(one.expires, 230.0)

    def test_messages_sent(self) -> None:
        """A rekey is due, and later the session is at its end, after so many messages."""
        for aes, (rekey, reject) in LIMITS.items():
            one = session(aes=aes)
            one.send_counter = rekey - 1
            self.assertFalse(one.worn())
            one.seal_burst([b""])
            self.assertTrue(one.worn())
            one.send_counter = reject - 1
            self.assertFalse(one.expired(0.0))
            one.seal_burst([b""])
            self.assertTrue(one.expired(0.0))

    def test_messages_received(self) -> None:
        """What the other side has sent wears a session out as well: the client alone can rekey."""
        for aes, (rekey, _) in LIMITS.items():
            client, server = session(aes=aes), session(client=False, aes=aes)
            receive(client, [seal(server, rekey - 1, b"x")])
            self.assertFalse(client.worn())
            receive(client, [seal(server, rekey, b"x")])
            self.assertTrue(client.worn())

    def test_counters_beyond_the_limit(self) -> None:
        """A counter at or above the limit is refused, however authentic; below it, taken."""
        for aes, (_, reject) in LIMITS.items():
            client, server = session(aes=aes), session(client=False, aes=aes)
            self.assertEqual(receive(server, [seal(client, reject, b"x")]), [])
            self.assertEqual(server.forged, 1)
            self.assertEqual(receive(server, [seal(client, reject - 1, b"x")]), [b"x"])


class AnyBytes(SynchronousTestCase):
    def test_rubbish(self) -> None:
        """Random datagrams of any length from 32 bytes on are forgeries and raise nothing."""
        random = Random(1)
        server = session(client=False)
        for count in range(200):
            size = random.randrange(32, 200)
            self.assertEqual(receive(server, [random.randbytes(size)]), [])
            self.assertEqual(server.forged, count + 1)
        self.assertEqual(server.window.highest, -1)
