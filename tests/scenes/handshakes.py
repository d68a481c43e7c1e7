"""Handshakes: in time, under load, and with wrong keys."""

from __future__ import annotations

import sys
from ipaddress import ip_address

from tests.netns.lab import PORT
from tests.netns.pings import Pings
from tests.netns.processes import wait_until
from tests.scenes import flood
from tests.scenes.ends import (
    expect,
)
from tests.scenes.hosts import WireGuardLab
from tests.scenes.timers import LATE, REKEY_AFTER, RETRY
from tests.scenes.tunnel import Tunnel
from tests.scenes.wire import COOKIE_REPLY, DATA, INITIATION, RESPONSE, Datagram

MEBIBYTE = 1 << 20


def rekey(lab: WireGuardLab, client: str, server: str) -> None:
    """New keys after 120 s of steady traffic, by one handshake of the initiator's, and no packet
    is lost over it."""
    tunnel = Tunnel(lab, client, server)
    with tunnel.recorded() as wire:
        tunnel.up()
        first = tunnel.peer_of_server().last_handshake
        with Pings(lab, "kiwi", tunnel.server.address()) as pings:
            wait_until(
                lambda: tunnel.peer_of_server().last_handshake != first,
                "another handshake",
                REKEY_AFTER + 10,
            )
            apart = tunnel.peer_of_server().last_handshake - first
            silence = pings.longest_silence()
    expect(abs(apart - REKEY_AFTER) <= 1 + LATE, f"the handshakes were {apart} s apart")
    expect(silence < 1, f"{silence:.2f} s without an answer")
    messages = [each for each in wire if each.kind in (INITIATION, RESPONSE)]
    kinds = [each.kind for each in messages]
    expect(kinds == [INITIATION, RESPONSE] * 2, f"the handshake messages were {kinds}")
    hub = ip_address(lab.hosts["hub"].ipv4)
    askers = {each.source for each in messages if each.kind == INITIATION}
    expect(hub not in askers, "the responder began a handshake while the initiator had traffic")


def rekey_when_idle(lab: WireGuardLab, client: str, server: str) -> None:
    """A client that sends keepalives alone makes new keys after 120 s, too: it is never without."""
    tunnel = Tunnel(lab, client, server, keepalive=25).up()
    first = tunnel.peer_of_server().last_handshake
    longest = REKEY_AFTER + 25 + LATE
    wait_until(
        lambda: tunnel.peer_of_server().last_handshake != first, "another handshake", longest
    )
    apart = tunnel.peer_of_server().last_handshake - first
    expect(apart >= REKEY_AFTER - LATE, f"the handshakes were {apart} s apart")
    tunnel.ping(tunnel.server, tunnel.client, 4)


def cookie(lab: WireGuardLab, client: str, server: str) -> None:
    """A server whose queue of handshakes is flooded asks a newcomer for a cookie; the client comes
    again with it, and is let in while the flood lasts."""
    tunnel = Tunnel(lab, client, server)
    with tunnel.recorded() as wire:
        tunnel.up()
        tunnel.client.crash()
    captured = next(each.data for each in wire if each.kind == INITIATION)
    expect(captured[-16:] == bytes(16), "a first initiation has a cookie")
    argv = [flood.__file__, lab.hosts["hub"].ipv4, str(PORT), captured.hex()]
    flooding = lab.spawn("pa", [sys.executable, *argv], "flood")
    flooding.wait_for_text("begins")
    cookies = tunnel.from_hub("pa")
    wait_until(lambda: tunnel.from_hub("pa") > cookies + 10, "cookies for the flood")
    with tunnel.recorded() as wire:
        tunnel.client.up()
        pinging = tunnel.keep_pinging(tunnel.client, tunnel.server)
        # One that is lost in the flood is tried again.
        pinging.wait_for_text("bytes from", 4 * RETRY + LATE)
        expect(flooding.running, "the flood has ended too early")
        flooding.popen.kill()
        pinging.stop()
    check_cookie(wire)


def check_cookie(wire: list[Datagram]) -> None:
    """An initiation without, a cookie for it, one with, a response to that, data."""
    asked = next((each for each in wire if each.kind == COOKIE_REPLY), None)
    expect(asked, "the server has sent the client no cookie")
    assert asked is not None
    before = [each for each in wire if each.kind == INITIATION and each.at < asked.at]
    expect(before and not before[-1].has_cookie, "the cookie answers no initiation without one")
    expect(asked.data[4:8] == before[-1].data[4:8], "the cookie is for another index")
    again = [each for each in wire if each.kind == INITIATION and each.has_cookie]
    expect(again, "the client has not used the cookie")
    wait = again[0].at - before[-1].at
    expect(wait < RETRY + LATE, f"the client came again after {wait:.1f} s")
    indices = {each.data[4:8] for each in again}
    answers = [each for each in wire if each.kind == RESPONSE and each.data[8:12] in indices]
    expect(answers, "no initiation with a cookie was answered")
    passed = [each for each in wire if each.kind == DATA and each.at > answers[0].at]
    expect(passed, "nothing passed after that")


def wrong_psk(lab: WireGuardLab, client: str, server: str) -> None:
    """With another pre-shared key at either end nothing passes: the server's answers are no longer
    than what asks for them, and no data is sent. With the right one all works."""
    tunnel = Tunnel(lab, client, server)
    near = tunnel.client
    right = near.conf_value("PresharedKey")
    near.edit(PresharedKey=near.wg("genpsk").strip())
    if not tunnel.server.pids():
        tunnel.server.up()
    with tunnel.recorded() as wire:
        near.up()
        in_vain(tunnel, initiations=2)
    kinds = {each.kind for each in wire}
    expect(kinds == {INITIATION, RESPONSE}, f"messages of the kinds {sorted(kinds)} passed")
    near.down()
    near.edit(PresharedKey=right)
    near.up()
    tunnel.answered("kiwi", tunnel.server)


def wrong_key(lab: WireGuardLab, client: str, server: str) -> None:
    """Whoever has a key that the server does not know, or another key for the server than its own,
    hears nothing at all; with the right ones all works."""
    tunnel = Tunnel(lab, client, server)
    near = tunnel.client
    right = {key: near.conf_value(key) for key in ("PrivateKey", "PublicKey")}
    other = near.wg("genkey").strip()
    wrong = {"PrivateKey": other, "PublicKey": near.wg("pubkey", stdin=other).strip()}
    if not tunnel.server.pids():
        tunnel.server.up()
    for key, value in wrong.items():
        near.edit(**{key: value})
        near.up()
        in_vain(tunnel, initiations=2)
        near.down()
        near.edit(**{key: right[key]})
        expect(tunnel.from_hub() == 0, f"the server answers a client with a wrong {key}")
    near.up()
    tunnel.answered("kiwi", tunnel.server)
    expect(tunnel.from_hub() > 0, "nothing was counted: the silence before proves nothing")


def in_vain(tunnel: Tunnel, initiations: int) -> None:
    """Let the client try to reach the server until it has begun so many handshakes."""
    before = tunnel.to_hub()
    pinging = tunnel.keep_pinging(tunnel.client, tunnel.server)
    try:
        wait_until(
            lambda: tunnel.to_hub() >= before + initiations,
            f"{initiations} initiations of {tunnel.client}",
            initiations * RETRY + LATE,
        )
    finally:
        pinging.stop()
    expect("bytes from" not in pinging.text(), "the server answers pings")
