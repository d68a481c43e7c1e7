"""How to make a core count each of the reasons it knows: what the tests of both facades walk.

Each provocation gets a fresh scene and makes the hub (or the client) count its reason once. If
something has to be sent before, it calls ``scene.mark()`` after that: nothing may be sent from then
on, since no drop is ever answered.
"""

from __future__ import annotations

import struct
from hashlib import blake2s
from ipaddress import IPv4Address
from typing import Any

from pyvpn.core import control, login, mailbox, ratelimit, server, vpncore
from pyvpn.core.admission import UNDECIDED_BOUND
from pyvpn.core.cookies import open_cookie_reply
from pyvpn.core.login import LoginFlags, LoginRequest, NetworkKeys
from pyvpn.core.mailbox import Mailbox
from pyvpn.core.noise import HandshakeState
from pyvpn.errors import RemoteProtocolError
from pyvpn.testing.simulation import NETWORK4, VIRTIO, Endpoint, ip_packet
from tests.core.scene import USER, Provocation, Scene

HUB4 = NETWORK4[1]
STRANGER4 = IPv4Address("192.0.2.99")
STAMP = bytes(12)
#: A device id that the hub has never heard.
OTHER = bytes(16)


def with_mac1(message: bytes, key: bytes) -> bytes:
    return message + blake2s(message, digest_size=16, key=key).digest() + bytes(16)


def remade(scene: Scene, message: bytes, place: int, *, to_hub: bool) -> bytes:
    """The handshake message with one byte changed and its mac1 made anew."""
    keys = scene.simulation.keys
    damaged = bytearray(message[:-32])
    damaged[place] ^= 1
    return with_mac1(bytes(damaged), keys.mac1_to_server if to_hub else keys.mac1_to_client)


def crafted_initiation(
    scene: Scene, *, user: bytes = USER.encode(), flags: int = 0, low_order: bool = False
) -> bytes:
    """A 0x50 with fields of its payload as no client of ours would send them."""
    simulation = scene.simulation
    keys = simulation.keys
    if low_order:
        return with_mac1(b"\x50\1\0\0" + bytes(4) + bytes(168), keys.mac1_to_server)
    state = HandshakeState(
        b"Noise_IKpsk0+psk2_25519_ChaChaPoly_BLAKE2s",
        (("psk", "e", "es", "s", "ss"), ("e", "ee", "se", "psk")),
        initiator=True,
        prologue=keys.prologue,
        static=scene.client.static,
        remote_static=keys.login_public,
        psks=(keys.psk0, keys.psk2),
        random_bytes=simulation.random_bytes,
    )
    payload = struct.pack(
        "<BBHI12s16sB32s3s",
        *(1, flags, 0, 77, b"\x40" + bytes(11), scene.client.device),
        *(len(user), user, bytes(3)),
    )
    prefix = b"\x50\1\0\0" + (77).to_bytes(4, "little")
    return with_mac1(prefix + state.write_message(payload), keys.mac1_to_server)


def packet_from(source: object, destination: object) -> bytes:
    return ip_packet(source, destination, b"payload")  # type: ignore[arg-type]


# -- the hub ---------------------------------------------------------------------------------------


def login_refused(scene: Scene) -> None:
    scene.hub.decides = False
    scene.to_hub(scene.attempt().message)
    scene.hub.decide(False)


def stamp_replayed(scene: Scene) -> None:
    message = scene.attempt().message
    scene.to_hub(message)
    scene.mark()
    scene.to_hub(message)


def hello_too_often(scene: Scene) -> None:
    scene.simulation.advance(1)
    hello = control.Hello(None, None, "").pack()
    scene.sealed_to_hub(hello)
    scene.mark()
    scene.sealed_to_hub(hello)


def poll_too_often(scene: Scene) -> None:
    scene.simulation.advance(1)
    for _ in range(5):
        scene.sealed_to_hub(scene.poll())
    scene.mark()
    scene.sealed_to_hub(scene.poll())


def poll_out_of_order(scene: Scene) -> None:
    early, late = scene.poll(), scene.poll()
    scene.sealed_to_hub(late)
    scene.mark()
    scene.sealed_to_hub(early)


def poll_held_back(scene: Scene) -> None:
    """Held back by an attacker who lets nothing else through meanwhile."""
    scene.client.asleep = True
    poll = scene.poll()
    scene.simulation.advance(30.1)
    scene.mark()
    scene.sealed_to_hub(poll)


def poll_old_session(scene: Scene) -> None:
    old = scene.client.core.hub.current
    scene.simulation.advance(126)  # the poll at 125 s brings a rekey
    scene.mark()
    scene.to_hub(Scene.sealed(scene.client.core.hub, scene.poll(), old))


def mail(scene: Scene, count: int, size: int = 0) -> None:
    """Have the client poll for its packets, and put some into its mailbox."""
    scene.peer.mailbox = Mailbox()
    packet = ip_packet(HUB4, scene.client.lease.ipv4, bytes(size))
    scene.hub.send(*[packet] * count)


def mailbox_expired(scene: Scene) -> None:
    scene.client.asleep = True
    mail(scene, 1)
    scene.simulation.advance(75)


def staged_expired(scene: Scene) -> None:
    scene.client.asleep = True
    scene.simulation.advance(200)  # the session is gone
    scene.mark()
    scene.hub.send(packet_from(HUB4, scene.client.lease.ipv4))
    scene.simulation.advance(181)


def hub_staged_dropped(scene: Scene) -> None:
    scene.client.asleep = True
    scene.simulation.advance(200)
    scene.mark()
    scene.hub.send(*[packet_from(HUB4, scene.client.lease.ipv4)] * 129)


def hub_session_expired(scene: Scene) -> None:
    datagram = Scene.sealed(scene.client.core.hub, b"")
    scene.hub.asleep = True  # its timer has not cleaned up
    scene.client.asleep = True
    scene.simulation.advance(180)
    scene.to_hub(datagram)


def hub_unsendable(scene: Scene) -> None:
    scene.hub.asleep = scene.client.asleep = True
    scene.simulation.advance(180)
    scene.hub.stop()


def hub_replayed(scene: Scene) -> None:
    datagram = Scene.sealed(scene.client.core.hub, b"")
    scene.to_hub(datagram)
    scene.to_hub(datagram)


def from_elsewhere(scene: Scene) -> None:
    datagram = Scene.sealed(scene.client.core.hub, b"")
    scene.to_hub(datagram, scene.simulation.new_endpoint())


def packet_from_elsewhere(scene: Scene, number: int = 0) -> Endpoint:
    """Bring a packet of the client, long enough to be challenged for, from a place not known."""
    place = Endpoint(STRANGER4, 1024 + number)
    packet = packet_from(scene.client.lease.ipv4, HUB4).ljust(32, b"\0")
    scene.to_hub(Scene.sealed(scene.client.core.hub, packet), place)
    return place


def path_challenges_limited(scene: Scene) -> None:
    for number in range(3):
        packet_from_elsewhere(scene, number)
    scene.mark()
    packet_from_elsewhere(scene, 3)


def path_responses_limited(scene: Scene) -> None:
    scene.simulation.advance(2)  # It has answered questions about the MTU.
    for number in range(5):
        scene.sealed_to_hub(control.PathChallenge(bytes([number] * 16)).pack())
    scene.mark()
    scene.sealed_to_hub(control.PathChallenge(bytes(16)).pack())


def path_moved(scene: Scene) -> None:
    place = packet_from_elsewhere(scene)
    (challenge,) = scene.peer.paths.open
    scene.mark()
    response = control.PathResponse(challenge.data).pack()
    scene.to_hub(Scene.sealed(scene.client.core.hub, response), place)


def client_hears_from_elsewhere(scene: Scene) -> None:
    scene.to_client(Scene.sealed(scene.peer, b""), Endpoint(STRANGER4, 5050))


def wrong_network(scene: Scene) -> None:
    """A 0x50 whose mac1 is right and whose psk0 is not: made with two secrets."""
    keys = scene.simulation.keys
    other = NetworkKeys.derive(keys.login_public, bytes(32))
    scene.simulation.keys = other
    try:
        message = scene.attempt().message
    finally:
        scene.simulation.keys = keys
    scene.to_hub(with_mac1(message[:-32], keys.mac1_to_server))


def guess(scene: Scene, count: int, **changes: Any) -> None:
    """As many wrong passwords at once, each from an address of its own."""
    for number in range(count):
        message = scene.attempt(password="wrong", **changes).message
        scene.to_hub(message, Endpoint(IPv4Address("192.0.2.0") + number, 7))


def login_repeated(scene: Scene) -> None:
    message = scene.attempt(password="wrong").message
    scene.to_hub(message)
    scene.to_hub(message)


def guess_for_hours(scene: Scene, count: int) -> None:
    """As many wrong passwords, each as soon as one is looked at."""
    scene.client.stop()
    for _ in range(count):
        scene.to_hub(scene.attempt(password="wrong", device=OTHER).message)
        scene.simulation.advance(60.1)
    scene.mark()


def cookie_of(scene: Scene) -> bytes:
    """The cookie that a hub under load gives to the client's address."""
    attempt = scene.attempt(password="wrong")
    scene.hub.core._admission.overloaded(scene.now)
    scene.to_hub(attempt.message)
    key = scene.simulation.keys.cookie
    return open_cookie_reply(scene.sent()[-1].payload, key, 77, attempt.message)


def guess_with_cookie(scene: Scene, count: int, *, loaded: bool) -> None:
    """As many wrong passwords from the client's address, which it has shown to be its own."""
    cookie = cookie_of(scene)
    if not loaded:
        scene.simulation.advance(2)
    scene.mark()
    for _ in range(count):
        scene.to_hub(scene.attempt(password="wrong", cookie=cookie).message)


def hub_late(scene: Scene) -> None:
    """The hub's process does something else for a second while a login comes."""
    scene.to_hub(scene.attempt(password="wrong").message)
    scene.hub.asleep = True
    scene.simulation.advance(1)
    scene.hub.asleep = False
    scene.simulation.advance(0)


def cookie_demanded(scene: Scene) -> None:
    scene.hub.core._admission.overloaded(scene.now)
    scene.to_hub(scene.attempt().message)


SERVER: dict[str, Provocation] = {
    "datagram_unknown": lambda s: s.to_hub(b"\x05" + bytes(147)),
    "datagram_length": lambda s: s.to_hub(s.attempt().message[:-1]),
    "datagram_source_port": lambda s: s.to_hub(
        s.attempt().message, Endpoint(s.client.endpoint.address, 0)
    ),
    "datagram_reserved_bits": lambda s: s.to_hub(b"\4\0\1\0" + bytes(60)),
    "mac1_invalid": lambda s: s.to_hub(s.attempt().message[:-32] + bytes(32)),
    "handshake_version": lambda s: s.to_hub(remade(s, s.attempt().message, 1, to_hub=True)),
    "handshake_low_order": lambda s: s.to_hub(crafted_initiation(s, low_order=True)),
    "handshake_decrypt": wrong_network,
    "handshake_payload": lambda s: s.to_hub(crafted_initiation(s, flags=16)),
    "handshake_index_echo": lambda s: s.to_hub(remade(s, s.attempt().message, 4, to_hub=True)),
    "handshake_user": lambda s: s.to_hub(crafted_initiation(s, user=b"ali\nce")),
    "login_stamp_replayed": stamp_replayed,
    "login_stamp_future": lambda s: s.to_hub(s.attempt(after=86_401).message),
    "login_wrong": lambda s: s.to_hub(s.attempt(password="wrong").message),
    "login_refused": login_refused,
    "login_repeated": login_repeated,
    "login_stamp_old": lambda s: s.to_hub(s.attempt(after=-86_401, device=OTHER).message),
    "login_user_limited": lambda s: guess(s, 11, device=OTHER),
    "login_device_limited": lambda s: guess(s, 21),
    "user_frozen": lambda s: guess_for_hours(s, 100),
    "login_frozen": lambda s: guess_for_hours(s, 101),
    "source_too_many": lambda s: guess_with_cookie(s, 6, loaded=True),
    "source_failing": lambda s: guess_with_cookie(s, 6, loaded=False),
    "cookies_for_all": lambda s: guess(s, 21, device=OTHER),
    "under_load": hub_late,
    "cookie_demanded": cookie_demanded,
    "session_unknown": lambda s: s.to_hub(b"\4\0\0\0" + bytes(60)),
    "session_expired": hub_session_expired,
    "transport_forged": lambda s: s.to_hub(Scene.sealed(s.client.core.hub, b"")[:-1] + b"\0\0"),
    "transport_replayed": hub_replayed,
    "path_not_validated": from_elsewhere,
    "path_amplification": from_elsewhere,
    "path_challenges_limited": path_challenges_limited,
    "path_responses_limited": path_responses_limited,
    "path_response_unexpected": lambda s: s.sealed_to_hub(control.PathResponse(bytes(16)).pack()),
    "path_moved": path_moved,
    "inner_unknown": lambda s: s.sealed_to_hub(b"\x21" + bytes(31)),
    "segment_malformed": lambda s: s.sealed_to_hub(b"\x11" + bytes(31)),
    "tun_bad_offload": lambda s: s.hub.send_frames(
        b"\0\1" + bytes(8) + packet_from(HUB4, s.client.lease.ipv4)
    ),
    "inner_malformed": lambda s: s.sealed_to_hub(b"\x45" + bytes(31)),
    "inner_source_not_allowed": lambda s: s.sealed_to_hub(packet_from(STRANGER4, HUB4)),
    "control_malformed": lambda s: s.sealed_to_hub(b"\1\0\0\0" + bytes(12)),
    "control_unknown": lambda s: s.sealed_to_hub(b"\x0f" + bytes(15)),
    "control_wrong_direction": lambda s: s.sealed_to_hub(
        control.Reply(STAMP, STAMP, 1, 0, bytes(16), 0).pack()
    ),
    "control_unsendable": hub_unsendable,
    "poll_too_often": poll_too_often,
    "hello_too_often": hello_too_often,
    "poll_out_of_order": poll_out_of_order,
    "poll_held_back": poll_held_back,
    "poll_old_session": poll_old_session,
    "mailbox_full": lambda s: mail(s, 257),
    "mailbox_expired": mailbox_expired,
    "tun_not_ip": lambda s: s.hub.send(b"\x15" + bytes(40)),
    "tun_no_peer": lambda s: s.hub.send(packet_from(HUB4, STRANGER4)),
    "staged_dropped": hub_staged_dropped,
    "staged_expired": staged_expired,
}


# -- the client ------------------------------------------------------------------------------------


def pending(scene: Scene) -> bytes:
    """Have the client log in again while it is up; the answer to that, which it has not got."""
    scene.simulation.network.passes.append(lambda datagram: False)
    scene.simulation.advance(8 + 26)  # the poll at 25 s and the three steps of liveness
    message = next(d.payload for d in reversed(scene.sent()) if d.kind == 0x50)
    response = scene.response_to(message)
    scene.mark()
    return response


def to_pending(place: int | None, *, mac: bool = True) -> Provocation:
    """An answer with one byte changed, its mac1 made anew."""

    def provoke(scene: Scene) -> None:
        response = pending(scene)
        if place is not None:
            response = remade(scene, response, place, to_hub=False)
        if not mac:
            response = response[:-32] + bytes(32)
        scene.to_client(response)

    return provoke


def low_order_answer(scene: Scene) -> None:
    response = bytearray(pending(scene)[:-32])
    response[12:44] = bytes(32)
    scene.to_client(with_mac1(bytes(response), scene.simulation.keys.mac1_to_client))


def greedy_answer(scene: Scene) -> None:
    """The hub grants what was not offered."""
    pending(scene)
    captured = scene.simulation.network.captured
    message = next(d.payload for d in reversed(captured) if d.kind == login.INITIATION)
    simulation = scene.simulation
    request = LoginRequest(simulation.keys, simulation.login_key, message, simulation.random_bytes)
    flags = LoginFlags.AES_256_GCM
    answer, _ = request.answer(index=5, flags=flags, inner_mtu=1416, stamp=STAMP)
    scene.to_client(answer)


def client_session_expired(scene: Scene) -> None:
    datagram = Scene.sealed(scene.peer, b"")
    scene.hub.asleep = scene.client.asleep = True
    scene.simulation.advance(180)
    scene.to_client(datagram)


def client_unsendable(scene: Scene) -> None:
    scene.client.asleep = scene.hub.asleep = True
    scene.simulation.advance(180)
    scene.client.stop()


def client_replayed(scene: Scene) -> None:
    datagram = Scene.sealed(scene.peer, b"")
    scene.to_client(datagram)
    scene.to_client(datagram)


def config_old_session(scene: Scene) -> None:
    old = scene.peer.current
    scene.simulation.advance(126)  # the poll at 125 s brings a rekey
    assert old is scene.peer.previous
    scene.mark()
    frame = control.ConfigPart(9, 0, 1, b"").pack()
    scene.to_client(Scene.sealed(scene.peer, frame, old))


def client_staged_dropped(scene: Scene) -> None:
    scene.simulation.network.passes.append(lambda datagram: False)
    scene.simulation.advance(190)
    scene.mark()
    # At once: what is staged hurries the next login.
    scene.client.core.packets_from_tun(
        [VIRTIO + packet_from(STRANGER4, HUB4)] * 129, scene.simulation.now
    )


def server_unresolved(scene: Scene) -> None:
    scene.client.stop()
    scene.client.servers = []
    scene.mark()
    scene.client.start()


def not_granted(scene: Scene) -> None:
    response = pending(scene)
    scene.client.core._required = LoginFlags.AES_256_GCM
    scene.to_client(response)


def cookie_invalid(scene: Scene) -> None:
    pending(scene)
    captured = scene.simulation.network.captured
    message = next(d.payload for d in reversed(captured) if d.kind == login.INITIATION)
    scene.to_client(b"\x52\1\0\0" + message[4:8] + bytes(56))


CLIENT: dict[str, Provocation] = {
    "datagram_unknown": lambda s: s.to_client(b"\x53" + bytes(63)),
    "datagram_length": lambda s: s.to_client(b"\x51" + bytes(116)),
    "datagram_reserved_bits": lambda s: s.to_client(b"\4\0\1\0" + bytes(60)),
    "response_unexpected": lambda s: s.to_client(b"\x51" + bytes(115)),
    "cookie_invalid": cookie_invalid,
    "login_not_granted": not_granted,
    "mac1_invalid": to_pending(None, mac=False),
    "handshake_version": to_pending(1),
    "handshake_index_echo": to_pending(4),
    "handshake_decrypt": to_pending(50),
    "handshake_low_order": low_order_answer,
    "handshake_payload": greedy_answer,
    "session_unknown": lambda s: s.to_client(b"\4\0\0\0" + bytes(60)),
    "session_expired": client_session_expired,
    "transport_forged": lambda s: s.to_client(Scene.sealed(s.peer, b"")[:-1] + b"\0\0"),
    "transport_replayed": client_replayed,
    "path_not_validated": client_hears_from_elsewhere,
    "path_amplification": client_hears_from_elsewhere,
    "path_response_unexpected": lambda s: s.sealed_to_client(
        control.PathResponse(bytes(16)).pack()
    ),
    "inner_unknown": lambda s: s.sealed_to_client(b"\x21" + bytes(31)),
    "segment_malformed": lambda s: s.sealed_to_client(b"\x11" + bytes(31)),
    "inner_malformed": lambda s: s.sealed_to_client(b"\x45" + bytes(31)),
    "inner_source_not_allowed": lambda s: s.sealed_to_client(
        packet_from(STRANGER4, s.client.lease.ipv4)
    ),
    "control_malformed": lambda s: s.sealed_to_client(b"\2\0\0\0" + bytes(12)),
    "control_unknown": lambda s: s.sealed_to_client(b"\x0f" + bytes(15)),
    "control_wrong_direction": lambda s: s.sealed_to_client(control.Poll(STAMP, 1, 0, 0).pack()),
    "control_unsendable": client_unsendable,
    "config_old_session": config_old_session,
    "config_invalid": lambda s: s.sealed_to_client(control.ConfigPart(9, 0, 1, b"\1").pack()),
    "tun_not_ip": lambda s: s.client.send(b""),
    "tun_no_peer": lambda s: s.client.send(packet_from(s.client.lease.ipv4, STRANGER4)),
    "tun_bad_offload": lambda s: s.client.send_frames(
        b"\0\1" + bytes(8) + packet_from(s.client.lease.ipv4, HUB4)
    ),
    "staged_dropped": client_staged_dropped,
    "server_unresolved": server_unresolved,
}


# -- what no datagram can provoke ------------------------------------------------------------------


def handshake_short(scene: Scene) -> None:
    """The facades check the length before; the handshake by itself does, too."""
    state = HandshakeState(
        b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        (("e",), ()),
        initiator=False,
        prologue=b"",
        static=scene.client.static,
        psks=(),
        random_bytes=scene.simulation.random_bytes,
    )
    try:
        state.read_message(bytes(31))
    except RemoteProtocolError as error:
        scene.hub.core.counters[error.reason] += 1


def staged_total_full(scene: Scene) -> None:
    """The real limit takes 257 devices that are away."""
    scene.client.asleep = True
    scene.simulation.advance(200)
    scene.mark()
    limit = vpncore.STAGED_BYTES_TOTAL
    packet = packet_from(HUB4, scene.client.lease.ipv4)
    vpncore.STAGED_BYTES_TOTAL = 3 * len(VIRTIO + packet)
    try:
        scene.hub.send(*[packet] * 4)
    finally:
        vpncore.STAGED_BYTES_TOTAL = limit


def mailbox_total_full(scene: Scene) -> None:
    """The real limit takes 128 clients that are away."""
    limit, mailbox.MAILBOX_BYTES_TOTAL = mailbox.MAILBOX_BYTES_TOTAL, 3 * 1010
    try:
        mail(scene, 4, 980)  # frames of 1,010 bytes
    finally:
        mailbox.MAILBOX_BYTES_TOTAL = limit


def large(scene: Scene, protocol: int = 253) -> bytes:
    """A packet from the hub's machine that fits no datagram to the client, and must not be cut."""
    packet = bytearray(ip_packet(HUB4, scene.client.lease.ipv4, bytes(1500)))
    packet[6] = 0x40
    packet[9] = protocol
    return bytes(packet)


def too_big_untold(scene: Scene) -> None:
    """One about ICMP that is itself an error: its type is 0, so make that 3."""
    packet = bytearray(large(scene, 1))
    packet[20] = 3
    scene.hub.send(bytes(packet))


def login_queue_full(scene: Scene) -> None:
    """The real limit takes 128 logins of more than 12 users."""
    scene.hub.decides = False
    server.UNDECIDED_BOUND = 2
    try:
        for after in (1, 2, 3):
            scene.to_hub(scene.attempt(after=after).message)
    finally:
        server.UNDECIDED_BOUND = UNDECIDED_BOUND


def limiter_evicted(scene: Scene) -> None:
    """The real limit takes 65,537 sources."""
    bound, ratelimit.TABLE_BOUND = ratelimit.TABLE_BOUND, 1
    try:
        guess(scene, 2)
    finally:
        ratelimit.TABLE_BOUND = bound


def relay_session_ended(scene: Scene) -> None:
    """It takes a session that ends between a packet for it and the end of the turn."""
    scene.hub.core._relayed[scene.peer] = [b""]
    scene.peer.current = None
    scene.hub.drain()


SPECIAL: dict[str, Provocation] = {
    "relay_session_ended": relay_session_ended,
    "handshake_short": handshake_short,
    "staged_total_full": staged_total_full,
    "mailbox_total_full": mailbox_total_full,
    "login_queue_full": login_queue_full,
    "too_big": lambda s: s.hub.send(large(s)),
    "too_big_untold": too_big_untold,
    "too_big_limited": lambda s: s.hub.send(*[large(s)] * 51),
    "limiter_evicted": limiter_evicted,
}
