"""Cookies: 0x52 byte for byte, mac2, and how long a secret lives."""

from __future__ import annotations

import hashlib

from Crypto.Cipher import ChaCha20_Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.cookies import CookieChecker, hchacha20, open_cookie_reply, with_macs
from pyvpn.errors import RemoteProtocolError
from pyvpn.testing.simulation import Endpoint
from tests.core.scene import Scene

KEY, MAC1_KEY = bytes(range(32)), bytes(32)
ADDRESS = bytes(10) + b"\xff\xff\xcb\x00\x71\x05" + (12000).to_bytes(2, "little")
# PROTOCOL 3: a secret lives for 120 s at most. Half of that a cookie is good at least.
LIFETIME = 120


def checker() -> CookieChecker:
    numbers = iter(range(256))
    return CookieChecker(KEY, lambda count: bytes([next(numbers)]) * count)


def initiation(cookie: bytes = b"") -> bytes:
    return with_macs(b"\x50\1\0\0" + bytes(172), MAC1_KEY, cookie)


def cookie_from(made: CookieChecker, now: float, address: bytes = ADDRESS) -> bytes:
    message = initiation()
    return open_cookie_reply(made.reply(message, 77, address, now), KEY, 77, message)


class Reply(SynchronousTestCase):
    def test_published_vector(self) -> None:
        """The XChaCha20-Poly1305 in use is that of draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
        cipher = ChaCha20_Poly1305.new(key=bytes(range(0x80, 0xA0)), nonce=bytes(range(0x40, 0x58)))
        cipher.update(bytes.fromhex("50515253c0c1c2c3c4c5c6c7"))
        sealed, tag = cipher.encrypt_and_digest(
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
            b"the future, sunscreen would be it."
        )
        self.assertEqual(sealed[:16].hex(), "bd6d179d3e83d43b9576579493c0e939")
        self.assertEqual(tag.hex(), "c0875924c1c7987947deafd8780acf49")

    def test_bytes(self) -> None:
        """0x52 is 64 bytes, laid out as PROTOCOL 3 says, and shorter than what it answers."""
        message = initiation()
        reply = checker().reply(message, 0x11223344, ADDRESS, 5.0)
        self.assertEqual(reply[:8].hex(), "5201000044332211")
        self.assertEqual(len(reply), 64)
        # A naive maker: secret 00…, nonce 01… and a 1 from the checker's random bytes.
        cookie = hashlib.blake2s(ADDRESS, key=bytes(32), digest_size=16).digest()
        nonce = b"\1" * 16 + (1).to_bytes(8, "little")
        cipher = ChaCha20_Poly1305.new(key=KEY, nonce=nonce)
        cipher.update(message[176:192])
        sealed, tag = cipher.encrypt_and_digest(cookie)
        self.assertEqual(reply[8:], nonce + sealed + tag)
        self.assertEqual(open_cookie_reply(reply, KEY, 0x11223344, message), cookie)

    def test_first_bytes(self) -> None:
        """A reply begins as its maker was told, and opens only where that is expected."""
        first_bytes = bytes([3, 0, 0, 0])
        numbers = iter(range(2))
        made = CookieChecker(KEY, lambda count: bytes([next(numbers)]) * count, first_bytes)
        reply, login = (maker.reply(initiation(), 77, ADDRESS, 0.0) for maker in (made, checker()))
        self.assertEqual(reply[:8].hex(), "030000004d000000")
        self.assertEqual(reply[8:], login[8:])
        cookie = open_cookie_reply(reply, KEY, 77, initiation(), first_bytes)
        self.assertEqual(cookie, open_cookie_reply(login, KEY, 77, initiation()))
        self.refused("handshake_version", reply)
        error = self.assertRaises(
            RemoteProtocolError, open_cookie_reply, login, KEY, 77, initiation(), first_bytes
        )
        self.assertEqual(error.reason, "handshake_version")

    def test_published_vector_of_the_first_half(self) -> None:
        """HChaCha20 is that of draft-irtf-cfrg-xchacha-03, section 2.2.1."""
        nonce = bytes.fromhex("000000090000004a0000000031415927")
        self.assertEqual(
            hchacha20(bytes(range(32)), nonce).hex(),
            "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc",
        )

    def test_no_nonce_twice(self) -> None:
        """Each 0x52 has a nonce of its own, over the lives of several secrets."""
        made, numbers = checker(), range(600)
        nonces = {made.reply(initiation(), 1, ADDRESS, number)[8:32] for number in numbers}
        self.assertEqual(len(nonces), len(numbers))

    def refused(self, reason: str, reply: bytes, index: int = 77, message: bytes = b"") -> None:
        error = self.assertRaises(
            RemoteProtocolError, open_cookie_reply, reply, KEY, index, message or initiation()
        )
        self.assertEqual(error.reason, reason)

    def test_spoilt(self) -> None:
        """Each byte counts, the index is ours, and it answers that very 0x50."""
        reply = checker().reply(initiation(), 77, ADDRESS, 0.0)
        for place in range(64):
            bad = bytearray(reply)
            bad[place] ^= 1
            reason = (
                "handshake_version"
                if place < 4
                else "response_unexpected"
                if place < 8
                else "cookie_invalid"
            )
            self.refused(reason, bytes(bad))
        self.refused("response_unexpected", reply, 78)
        self.refused("cookie_invalid", reply, 77, initiation()[:-32] + bytes(32))
        open_cookie_reply(reply, KEY, 77, initiation())  # control


class Mac2(SynchronousTestCase):
    def test_only_from_that_address(self) -> None:
        """A cookie is good from the address and port that it was sent to, and no other."""
        made = checker()
        message = initiation(cookie_from(made, 0.0))
        self.assertTrue(made.mac2_valid(message, ADDRESS, 0.0))
        for place in range(18):
            other = bytearray(ADDRESS)
            other[place] ^= 1
            self.assertFalse(made.mac2_valid(message, bytes(other), 0.0), place)

    def test_covers_the_message(self) -> None:
        """mac2 belongs to one message: another's is no good, nor is none."""
        made = checker()
        message = initiation(cookie_from(made, 0.0))
        for place in (0, 8, 100, 191, 192, 207):
            bad = bytearray(message)
            bad[place] ^= 1
            self.assertFalse(made.mac2_valid(bytes(bad), ADDRESS, 0.0), place)
        self.assertFalse(made.mac2_valid(initiation(), ADDRESS, 0.0))

    @given(st.floats(0, 1000), st.floats(0, 400))
    @settings(deadline=None)
    def test_lifetime(self, first: float, wait: float) -> None:
        """A cookie is good for 60 s at least and 120 s at most, whenever it was made."""
        made = checker()
        cookie_from(made, 0.0)
        cookie = cookie_from(made, first)
        good = made.mac2_valid(initiation(cookie), ADDRESS, first + wait)
        if wait < LIFETIME / 2 - 0.001:
            self.assertTrue(good)
        if wait > LIFETIME:
            self.assertFalse(good)

    def test_another_hub(self) -> None:
        """After a restart the hub has another secret: cookies of before are no good."""
        message = initiation(cookie_from(checker(), 0.0))
        other = CookieChecker(KEY, lambda count: b"\xee" * count)
        self.assertFalse(other.mac2_valid(message, ADDRESS, 0.0))


class AtTheClient(SynchronousTestCase):
    """The hub is under load; what the client makes of its 0x52."""

    def logging_in(self) -> Scene:
        scene = Scene(connect=False)
        scene.hub.core._admission.overloaded(scene.now)
        scene.mark()
        scene.client.start()
        return scene

    def logins(self, scene: Scene) -> list[bytes]:
        return [d.payload for d in scene.sent() if d.kind == 0x50]

    def test_in_with_the_second(self) -> None:
        """0x50, 0x52, at once a new 0x50 with the right mac2, 0x51: two round trips, not 5 s."""
        scene = self.logging_in()
        scene.simulation.advance(0.2)
        self.assertEqual([d.kind for d in scene.sent()][:5], [0x50, 0x52, 0x50, 0x51, 4])
        first, second = self.logins(scene)
        self.assertEqual(first[-16:], bytes(16))
        self.assertNotEqual(second[-16:], bytes(16))
        self.assertNotEqual(first[8:40], second[8:40])

    def test_at_once_but_every_5_seconds(self) -> None:
        """A hub that asks again and again for a cookie is asked back at once just every 5 s."""
        scene = self.logging_in()
        forget = scene.hub.core._admission._cookies

        def forgetful(datagram) -> bool:  # type: ignore[no-untyped-def]
            scene.hub.core._admission.overloaded(scene.simulation.now)
            forget._made = -1e9  # and its secret is another for each datagram
            return True

        scene.simulation.network.passes.append(forgetful)
        scene.simulation.advance(60)
        # Tries every 5 to 5.334 s: 12; each answered by a cookie, and that followed at once.
        self.assertLessEqual(len(self.logins(scene)), 24)
        self.assertGreaterEqual(len(self.logins(scene)), 20)

    def test_kept_for_120_seconds(self) -> None:
        """The cookie goes with each try for 120 s, and with none after (PROTOCOL 3)."""
        scene = self.logging_in()
        scene.simulation.network.passes.append(lambda d: d.kind in (0x50, 0x52))
        scene.simulation.advance(300)
        marked = [(d.time, d.payload[-16:] != bytes(16)) for d in scene.sent() if d.kind == 0x50]
        start = marked[0][0]
        self.assertFalse(marked[0][1])
        self.assertTrue(all(has for when, has in marked[1:] if when - start < 120))
        late = [has for when, has in marked if when - start > 121]
        self.assertGreater(len(late), 0)
        self.assertFalse(any(late))

    def test_for_that_address_alone(self) -> None:
        """A cookie is about our address as one endpoint of the hub sees it: no other gets it."""
        scene = self.logging_in()
        other = Endpoint(scene.hub.endpoint.address, 5051)
        scene.client.servers = [scene.hub.endpoint, other]
        scene.simulation.network.passes.append(lambda d: d.kind in (0x50, 0x52))
        scene.simulation.advance(16)
        sent = [d for d in scene.sent() if d.kind == 0x50]
        self.assertGreater(len([d for d in sent if d.destination == other]), 0)
        for datagram in sent[1:]:
            has = datagram.payload[-16:] != bytes(16)
            self.assertEqual(has, datagram.destination == scene.hub.endpoint)

    def test_unasked(self) -> None:
        """A client that waits for nothing, or gets the wrong length, drops a 0x52 by name."""
        scene = Scene()
        for reason, reply in (
            ("response_unexpected", b"\x52\1\0\0" + bytes(60)),
            ("datagram_length", b"\x52\1\0\0" + bytes(59)),
            ("datagram_length", b"\x52"),
        ):
            before = scene.client.core.counters[reason]
            scene.to_client(reply)
            self.assertEqual(scene.client.core.counters[reason], before + 1)
        self.assertEqual(scene.sent(), [])
