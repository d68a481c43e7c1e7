"""Can somebody who recorded a login test guesses of the password at home? (PROTOCOL 3)

The eavesdropper below has every datagram of a login and of the session after it, the whole network
token (a former member has it) and the user's name. For each guess it computes all that a guess lets
one compute, and looks for any place in the recording that fits this guess alone: a MAC, something
that decrypts, or a value standing there. The same eavesdropper cracks designs that are deliberately
weak, first of all mac1 of stock WireGuard; in ours it must find nothing.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2s
from itertools import chain, combinations, product

from attrs import field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.login import LoginFlags, password_key
from pyvpn.core.noise import HandshakeState, KeyPair
from pyvpn.errors import RemoteProtocolError
from pyvpn.testing.simulation import PASSWORD_SALT, Simulation, numbered_packet

PASSWORD = "correct horse battery"
GUESSES = ("password", "letmein", PASSWORD, "hunter2")
CONTROL_GUESSES = ("hunter2", PASSWORD)
USER = "alice"
NOISE_NAME = b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s"

# Labels that a designer might put before a key: ours, WireGuard's, none.
LABELS = (
    b"",
    b"mac1----",
    b"cookie--",
    b"pyvpn1 mac1 c2s",
    b"pyvpn1 mac1 s2c",
    b"pyvpn1 cookie",
    b"pyvpn1 net-tag",
    b"pyvpn1 psk0",
    b"pyvpn1 psk2",
)
# Where encrypted fields of a 0x50 and of a 0x51 begin and end, or might.
CUTS = {208: (8, 40, 88, 176, 192, 208), 116: (12, 44, 84, 100, 116)}


def hash_of(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def keyed(key: bytes, data: bytes, size: int = 32) -> bytes:
    return blake2s(data, digest_size=size, key=key).digest()


def hkdf(key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    """HKDF with HMAC-BLAKE2s, all three outputs (Noise 4.3), not the code under test."""

    def mac(secret: bytes, data: bytes) -> bytes:
        return hmac.new(secret, data, blake2s).digest()

    secret = mac(key, material)
    first = mac(secret, b"\1")
    second = mac(secret, first + b"\2")
    return first, second, mac(secret, second + b"\3")


def exchange(private: KeyPair, public: bytes) -> bytes:
    """X25519; nothing for a point of low order."""
    try:
        return private.exchange(public)
    except RemoteProtocolError:
        return bytes(32)


@frozen
class Capture:
    """A recorded login (208 and 116 bytes, laid out as ours) and the type 4 datagrams after it."""

    initiation: bytes
    response: bytes
    transport: tuple[bytes, ...] = ()

    @property
    def messages(self) -> tuple[bytes, ...]:
        return (self.initiation, self.response, *self.transport)


@frozen
class Eavesdropper:
    """What the attacker knows besides the recording.

    :ivar stolen: secrets that it ought not to have; each is one more token for its chains.
    """

    login_public: bytes
    network_secret: bytes
    salt: bytes
    stolen: dict[str, bytes] = field(factory=dict)

    def crack(self, capture: Capture, guesses: Iterable[str] = GUESSES) -> dict[str, set[str]]:
        """The guesses that the recording confirms, each with the places where it does."""
        # What fits without any guess fits every guess: it tells nothing.
        found = {guess: self.places(capture, self.key_of(guess)) for guess in guesses}
        return {guess: places for guess, places in found.items() if places}

    def key_of(self, guess: str) -> KeyPair:
        return KeyPair.of(password_key(guess, USER, self.salt, 1, 8, 1))

    def places(self, capture: Capture, static: KeyPair) -> set[str]:
        """Everything in the recording that only a holder of this key could have made."""
        secrets = self.secrets(capture, static)
        keys = list(self.keys(secrets))
        places = set(self.fitting_macs(capture, keys))
        plaintexts: list[bytes] = []
        places |= set(self.fitting_ciphers(capture, keys, plaintexts))
        places |= set(self.fitting_chains(capture, static, plaintexts))
        places |= set(self.standing_values(capture, plaintexts, [*secrets, *keys]))
        return places

    # -- what a guess lets one compute ---------------------------------------------------------

    def secrets(self, capture: Capture, static: KeyPair) -> list[bytes]:
        """The guessed key pair and its shared secrets with every public key that may be about."""
        publics = [self.login_public]
        for message in (capture.initiation, capture.response):
            publics += [message[at : at + 32] for at in CUTS[len(message)][:-2]]
        return [static.private, static.public, *(exchange(static, public) for public in publics)]

    def keys(self, secrets: list[bytes]) -> Iterator[bytes]:
        """Keys that a design could make of one secret, the labels and the network's token."""
        yield from secrets
        for secret, label in product(secrets, LABELS):
            yield hash_of(label, secret)
            yield hash_of(label, self.login_public, secret)
            yield keyed(self.network_secret, label + secret)
            yield keyed(secret, label)
            yield keyed(secret, label + self.login_public)
            yield hkdf(secret, label)[0]

    # -- where it may show -----------------------------------------------------------------------

    def fitting_macs(self, capture: Capture, keys: Iterable[bytes]) -> Iterator[str]:
        """A MAC over all that stands before it in its message, or over all after the header."""
        places = [
            (message, at)
            for message in (capture.initiation, capture.response)
            for at in range(16, len(message) - 15, 4)
        ]
        # WireGuard's mac1 and most others are 16 bytes; 32 would contain a window of HMAC's.
        for key in keys:
            short = blake2s(digest_size=16, key=key)
            for message, at in places:
                mac = short.copy()
                mac.update(message[:at])
                if mac.digest() == message[at : at + 16]:
                    yield f"mac at {at} of {len(message)}"
            for message in (capture.initiation, capture.response):
                for at in CUTS[len(message)][1:-1]:
                    tag = message[at : at + 16]
                    long = (keyed(key, message[:at]), hmac.digest(key, message[:at], "blake2s"))
                    if any(mac.startswith(tag) for mac in long):
                        yield f"long mac at {at} of {len(message)}"

    def fitting_ciphers(
        self, capture: Capture, keys: Iterable[bytes], plaintexts: list[bytes]
    ) -> Iterator[str]:
        """Something that a key made of the guess decrypts, with whatever associated data."""
        for key in keys:
            for cipher in (ChaCha20Poly1305(key), AESGCM(key)):
                for message, start, end in self.fields(capture):
                    for associated in (b"", message[:start]):
                        if self.opens(cipher, bytes(12), message[start:end], associated):
                            yield f"cipher at {start}:{end} of {len(message)}"
                yield from self.fitting_transport(capture, cipher, plaintexts)

    def fitting_transport(
        self, capture: Capture, cipher: ChaCha20Poly1305 | AESGCM, plaintexts: list[bytes]
    ) -> Iterator[str]:
        for datagram in capture.transport:
            nonce = bytes(4) + datagram[8:16]
            plaintext = self.opens(cipher, nonce, datagram[16:], b"")
            if plaintext is not None:
                plaintexts.append(plaintext)
                yield "transport"

    def fields(self, capture: Capture) -> Iterator[tuple[bytes, int, int]]:
        """The stretches of the two messages that may be one encrypted field."""
        for message in (capture.initiation, capture.response):
            for start, end in combinations(CUTS[len(message)], 2):
                if end - start > 16:
                    yield message, start, end

    def fitting_chains(
        self, capture: Capture, static: KeyPair, plaintexts: list[bytes]
    ) -> Iterator[str]:
        """Noise with every selection of the tokens that can be computed, in the order of use.

        The transcript hash needs no secret but psks, so it is known wherever a psk is.
        """
        tokens = self.tokens(capture, static)
        names = list(tokens)
        for count in range(len(names) + 1):
            for chosen in combinations(names, count):
                guessed = bool({"ss", "se", "se'"} & set(chosen))
                for place in self.run_chain(capture, [tokens[n] for n in chosen], plaintexts):
                    # Without a token of the guess it opens for anybody with the secrets.
                    if guessed:
                        yield f"{place} by {'+'.join(chosen)}"

    def tokens(self, capture: Capture, static: KeyPair) -> dict[str, tuple[str, bytes]]:
        """Tokens in the order of the pattern: what kind of mixing, and the value."""
        client_e, hub_e = capture.initiation[8:40], capture.response[12:44]
        tokens = {
            "psk0": ("psk", keyed(self.network_secret, b"pyvpn1 psk0")),
            "e": ("e", client_e),
        }
        if "es" in self.stolen:
            tokens["es"] = ("dh", self.stolen["es"])
        tokens["ss"] = ("dh", exchange(static, self.login_public))
        tokens["e2"] = ("e", hub_e)
        if "ee" in self.stolen:
            tokens["ee"] = ("dh", self.stolen["ee"])
        tokens["se"] = ("dh", exchange(static, hub_e))
        tokens["se'"] = ("dh", exchange(static, client_e))
        tokens["psk2"] = ("psk", keyed(self.network_secret, b"pyvpn1 psk2"))
        return tokens

    def run_chain(
        self, capture: Capture, tokens: list[tuple[str, bytes]], plaintexts: list[bytes]
    ) -> Iterator[str]:
        """Mix the tokens and try the last key, and the transport keys, on what was recorded."""
        tag = keyed(self.network_secret, b"pyvpn1 net-tag" + self.login_public, 16)
        ck = h = hash_of(NOISE_NAME)
        h = hash_of(hash_of(h, b"pyvpn1 login" + tag), self.login_public)
        key = b""
        ephemerals = 0
        for kind, value in tokens:
            if kind == "psk":
                ck, mixed, key = hkdf(ck, value)
                h = hash_of(h, mixed)
            elif kind == "e":
                ephemerals += 1
                if ephemerals == 2:  # message 1's two ciphertexts stand before
                    h = self.hash_fields(h, capture.initiation)
                h = hash_of(h, value)
                ck, key, _ = hkdf(ck, value)
            else:
                ck, key, _ = hkdf(ck, value)
        if not key:
            return
        cipher = ChaCha20Poly1305(key)
        after_s = hash_of(h, capture.initiation[40:88])
        for message, start, end in self.fields(capture):
            for associated in (h, after_s, b""):
                plaintext = self.opens(cipher, bytes(12), message[start:end], associated)
                if plaintext is not None:
                    plaintexts.append(plaintext)
                    yield f"chain at {start}:{end} of {len(message)}"
        for transport_key in (key, ck, *hkdf(ck, b"")[:2]):
            for transport in (ChaCha20Poly1305(transport_key), AESGCM(transport_key)):
                yield from self.fitting_transport(capture, transport, plaintexts)

    @staticmethod
    def hash_fields(h: bytes, message: bytes) -> bytes:
        return hash_of(hash_of(h, message[40:88]), message[88:176])

    @staticmethod
    def opens(
        cipher: ChaCha20Poly1305 | AESGCM, nonce: bytes, sealed: bytes, associated: bytes
    ) -> bytes | None:
        try:
            return cipher.decrypt(nonce, sealed, associated)
        except InvalidTag:
            return None

    def standing_values(
        self, capture: Capture, plaintexts: list[bytes], values: Iterable[bytes]
    ) -> Iterator[str]:
        """A computed value, or its first half, standing in the clear or in what was decrypted."""
        windows = {
            text[at : at + 16]: f"value at {at} of {len(text)}"
            for text in chain(capture.messages, plaintexts)
            for at in range(len(text) - 15)
            if any(text[at : at + 16])
        }
        for value in values:
            if value[:16] in windows:
                yield windows[value[:16]]


def recorded_login(seed: int = 1, *, aes: bool = False) -> tuple[Simulation, Capture]:
    """A login of ours and a little traffic, as an eavesdropper records it."""
    simulation = Simulation(seed, aes=aes)
    simulation.add_user(USER, PASSWORD)
    flags = LoginFlags.AES_256_GCM if aes else LoginFlags(0)
    client = simulation.add_client(USER, PASSWORD, flags=flags)
    client.start()
    simulation.advance(1)
    client.send(numbered_packet(1, client.lease.ipv4, simulation.hub.pool.hub4))
    simulation.hub.send(numbered_packet(2, simulation.hub.pool.hub4, client.lease.ipv4))
    simulation.advance(1)
    payloads = [datagram.payload for datagram in simulation.network.captured]
    initiation, response = payloads[:2]
    return simulation, Capture(initiation, response, tuple(payloads[2:]))


def eavesdropper_of(simulation: Simulation, **stolen: bytes) -> Eavesdropper:
    return Eavesdropper(
        simulation.login_key.public, simulation.network_secret, PASSWORD_SALT, dict(stolen)
    )


class PassiveOracle(SynchronousTestCase):
    def setUp(self) -> None:
        self.simulation, self.capture = recorded_login()
        self.attacker = eavesdropper_of(self.simulation)
        self.user_key = self.attacker.key_of(PASSWORD)

    def assert_cracked(self, capture: Capture, attacker: Eavesdropper | None = None) -> set[str]:
        """The right guess, it alone, is confirmed; returns where."""
        found = (attacker or self.attacker).crack(capture, CONTROL_GUESSES)
        self.assertEqual(set(found), {PASSWORD})
        return found[PASSWORD]

    # -- ours ----------------------------------------------------------------------------------

    def test_nothing_in_ours(self) -> None:
        """A recorded login of ours and its session confirm no guess, ChaCha20 and AES alike."""
        self.assertEqual(len(self.capture.initiation), 208)
        self.assertEqual(len(self.capture.response), 116)
        self.assertGreaterEqual(len(self.capture.transport), 6)
        self.assertEqual(self.attacker.crack(self.capture), {})
        simulation, capture = recorded_login(2, aes=True)
        self.assertEqual(eavesdropper_of(simulation).crack(capture), {})

    def test_nothing_in_a_wrong_login(self) -> None:
        """A 0x50 made with a mistyped password confirms neither that nor the right one."""
        simulation = Simulation(3)
        simulation.add_user(USER, PASSWORD)
        client = simulation.add_client(USER, "hunter2")
        client.start()
        simulation.advance(1)
        (initiation,) = [d.payload for d in simulation.network.captured]
        capture = Capture(initiation, self.capture.response)
        self.assertEqual(eavesdropper_of(simulation).crack(capture), {})

    # -- controls on our own recording ---------------------------------------------------------

    def test_control_the_hubs_key(self) -> None:
        """Control: who has stolen the hub's private key as well does crack this very recording.

        So the eavesdropper's arithmetic fits ours, and what protects the password is es.
        """
        es = self.simulation.login_key.exchange(self.capture.initiation[8:40])
        attacker = eavesdropper_of(self.simulation, es=es)
        places = self.assert_cracked(self.capture, attacker)
        self.assertIn("chain at 88:176 of 208 by psk0+e+es+ss", places)
        self.assertTrue(any(place.startswith("value at 0 of 32") for place in places), places)

    def test_control_our_macs(self) -> None:
        """Control: with the token's own mac1 keys it finds both of our mac1s, where they stand."""
        keys = [
            keyed(self.simulation.network_secret, label + self.simulation.login_key.public)
            for label in (b"pyvpn1 mac1 c2s", b"pyvpn1 mac1 s2c")
        ]
        found = set(self.attacker.fitting_macs(self.capture, keys))
        self.assertEqual(found, {"mac at 176 of 208", "mac at 84 of 116"})

    # -- controls: weak designs --------------------------------------------------------------------

    def with_response_mac(self, key: bytes) -> Capture:
        body = self.capture.response[:84]
        weak = body + keyed(key, body, 16) + bytes(16)
        return Capture(self.capture.initiation, weak, self.capture.transport)

    def test_control_stock_wireguard(self) -> None:
        """Control: message 2's mac1 as in stock WireGuard, keyed by HASH(label ‖ client's public
        key), gives the password away from one datagram.
        """
        places = self.assert_cracked(
            self.with_response_mac(hash_of(b"mac1----", self.user_key.public))
        )
        self.assertEqual(places, {"mac at 84 of 116"})

    def test_control_mac_with_the_secret_mixed_in(self) -> None:
        """Control: the network's secret in that key does not help against who has the token."""
        secret = self.simulation.network_secret
        self.assert_cracked(
            self.with_response_mac(keyed(secret, b"pyvpn1 mac1 s2c" + self.user_key.public))
        )

    def test_control_mac_by_a_shared_secret(self) -> None:
        """Control: nor does static-static Diffie-Hellman: one half of it is public."""
        shared = self.user_key.exchange(self.simulation.login_key.public)
        self.assert_cracked(self.with_response_mac(keyed(shared, b"pyvpn1 mac1 s2c")))

    def test_control_mac_by_the_other_ephemeral(self) -> None:
        """Control: nor a shared secret of the user's key and the hub's ephemeral key."""
        shared = self.user_key.exchange(self.capture.response[12:44])
        self.assert_cracked(self.with_response_mac(hash_of(b"cookie--", shared)))

    def weak_handshake(self, first: tuple[str, ...], second: tuple[str, ...]) -> Capture:
        """A login by another pattern, laid out as ours."""
        keys = self.simulation.keys
        sides = [
            HandshakeState(
                NOISE_NAME,
                (first, second),
                initiator=initiator,
                prologue=keys.prologue,
                static=self.user_key if initiator else self.simulation.login_key,
                remote_static=keys.login_public if initiator else b"",
                psks=(keys.psk0, keys.psk2),
                random_bytes=self.simulation.random_bytes,
            )
            for initiator in (True, False)
        ]
        sides[1].rs = self.user_key.public  # for patterns that never send it
        message = sides[0].write_message(bytes(72))
        sides[1].read_message(message)
        if "s" not in first:
            message = message[:32] + bytes(48) + message[32:]
        answer = sides[1].write_message(bytes(24))
        sides[0].read_message(answer)
        sealed = ChaCha20Poly1305(sides[0].split()[0]).encrypt(bytes(12), b"\x45" * 20, None)
        return Capture(
            b"\x50\1\0\0" + bytes(4) + message + bytes(32),
            b"\x51\1\0\0" + bytes(8) + answer + bytes(32),
            (struct.pack("<IIQ", 4, 1, 0) + sealed,),
        )

    def test_control_no_es(self) -> None:
        """Control: without es the static key in message 1 is legible to who has the token."""
        capture = self.weak_handshake(("psk", "e", "s", "ss"), ("e", "ee", "se", "psk"))
        places = self.assert_cracked(capture)
        self.assertIn("chain at 88:176 of 208 by psk0+e+ss", places)
        self.assertTrue(any(place.startswith("value at 0 of 32") for place in places), places)

    def test_control_no_ee(self) -> None:
        """Control: with se alone in message 2 its payload and the session tell, too."""
        capture = self.weak_handshake(("psk", "e", "s"), ("e", "se", "psk"))
        places = self.assert_cracked(capture)
        self.assertTrue(any("of 116" in place and "se" in place for place in places), places)
        self.assertTrue(any(place.startswith("transport by") for place in places), places)

    def test_control_transport_by_statics(self) -> None:
        """Control: a session key made of the two static keys alone tells by any data packet."""
        key = hkdf(self.user_key.exchange(self.simulation.login_key.public), b"")[0]
        sealed = AESGCM(key).encrypt(bytes(4) + struct.pack("<Q", 9), b"\x45" * 20, None)
        datagram = struct.pack("<IIQ", 4, 77, 9) + sealed
        capture = Capture(self.capture.initiation, self.capture.response, (datagram,))
        self.assertEqual(self.assert_cracked(capture), {"transport"})

    def test_control_a_value_in_the_clear(self) -> None:
        """Control: so does an identifier that is half a hash of the public key."""
        token = hash_of(self.user_key.public)[:16]
        weak = self.capture.initiation[:192] + token
        self.assertEqual(
            self.assert_cracked(Capture(weak, self.capture.response)), {"value at 192 of 208"}
        )
