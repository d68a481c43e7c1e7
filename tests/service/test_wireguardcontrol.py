"""What wg may change of a running interface: all of a request or nothing, and who is told."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.errors import LocalProtocolError
from pyvpn.service.wireguardcontrol import WireGuardControl, keep_device, key_text
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.uapi import Changes, UAPIError, format_get, parse_set
from tests.tx.worlds import MemoryWorld, Receiver

SO_MARK = 36
PRIVATE = bytes([8] * 31 + [72])  # clamped already
OWN = KeyPair.of(PRIVATE).public
A, B, C = (KeyPair.of(bytes([n] * 32)).public for n in (1, 2, 3))
TEN = ip_network("10.0.0.0/24")


def request(*lines: str) -> Changes:
    return parse_set(lines)


def peer(public_key: bytes, *lines: str) -> list[str]:
    return [f"public_key={public_key.hex()}", *lines]


class ControlTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = MemoryWorld(self)
        self.udp = self.world.port(self, Receiver(), "hub", port=51820)
        self.device = WireGuardDevice(
            wall_clock=lambda: 1_700_000_000_000_000_000, random_bytes=bytes
        )
        self.wireguard = self.device.wireguard
        self.calls: list[Any] = []
        self.durable: Deferred[None] | None = None
        self.control = self.controlled()
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: LogEvent) -> None:
        if event["log_level"].name == "warn":
            self.logged.append(formatEvent(event))

    def controlled(self, **more: Any) -> WireGuardControl:
        def changed(public_keys: set[bytes]) -> Deferred[None] | None:
            self.calls.append(public_keys)
            return self.durable

        return WireGuardControl(
            self.wireguard,
            self.udp,
            changed=changed,
            settle=lambda: self.calls.append("settle"),
            clock=lambda: 1000.0,
            **more,
        )

    def set(self, *lines: str) -> set[bytes]:
        """Carry out; whose peers were reported as changed."""
        self.calls.clear()
        self.assertIsNone(self.control.set(request(*lines)))
        self.assertEqual(self.calls[0], "settle")
        self.assertLessEqual(len(self.calls), 2)
        return self.calls[1] if len(self.calls) == 2 else set()

    def refused(self, code: int, *lines: str) -> UAPIError:
        """That a request is refused with this errno and nothing whatever has changed."""
        self.calls.clear()
        before = self.text()
        error = self.assertRaises(UAPIError, self.control.set, request(*lines))
        self.assertEqual(error.code, code)
        self.assertEqual(self.text(), before)
        self.assertEqual(self.calls, [])
        return error

    def text(self) -> str:
        return "".join(format_get(self.control.get()))

    def endpoint(self, public_key: bytes) -> Any:
        return self.wireguard.peers[public_key].endpoint

    def networks(self, public_key: bytes) -> list[Any]:
        return self.wireguard.networks(self.wireguard.peers[public_key])

    def test_whole_interface(self) -> None:
        """What was set is what get tells, key, port, mark and peers."""
        told = self.set(
            f"private_key={PRIVATE.hex()}",
            "listen_port=51821",
            "fwmark=2147483649",
            *peer(
                A,
                f"preshared_key={'5a' * 32}",
                "endpoint=198.51.100.7:9",
                "persistent_keepalive_interval=25",
                "allowed_ip=10.0.0.0/24",
                "allowed_ip=fd00::7/128",
            ),
        )
        self.assertEqual(told, {A})
        self.assertEqual(
            self.text().splitlines(),
            [
                f"private_key={PRIVATE.hex()}",
                "listen_port=51821",
                "fwmark=2147483649",
                f"public_key={A.hex()}",
                f"preshared_key={'5a' * 32}",
                "protocol_version=1",
                "endpoint=198.51.100.7:9",
                "last_handshake_time_sec=0",
                "last_handshake_time_nsec=0",
                "tx_bytes=0",
                "rx_bytes=0",
                "persistent_keepalive_interval=25",
                "allowed_ip=10.0.0.0/24",
                "allowed_ip=fd00::7/128",
            ],
        )
        mine = self.world.hosts["hub"].sockets[-1]
        self.assertEqual(mine.port, 51821)
        # What the kernel takes is signed.
        self.assertEqual(mine.options[socket.SOL_SOCKET, SO_MARK], 2147483649 - 2**32)

    def test_again(self) -> None:
        """What is so already touches no peer, moves no endpoint and keeps the socket."""
        lines = (
            f"private_key={PRIVATE.hex()}",
            "listen_port=51820",
            "fwmark=7",
            *peer(
                A,
                f"preshared_key={'5a' * 32}",
                "endpoint=198.51.100.7:9",
                "persistent_keepalive_interval=25",
                "replace_allowed_ips=true",
                "allowed_ip=10.0.0.0/24",
            ),
        )
        self.assertEqual(self.set(*lines), {A})
        [sock] = self.world.hosts["hub"].sockets
        # As it is once the peer has spoken to one of our addresses.
        learnt = UDPEndpoint(self.endpoint(A).remote, bytes(range(20)))
        self.wireguard.peers[A].endpoint = learnt
        self.assertEqual(self.set(*lines), set())
        self.assertIs(self.endpoint(A), learnt)
        self.assertEqual(self.world.hosts["hub"].sockets, [sock])
        # The control: another one of each is a change.
        for line in (
            f"preshared_key={'5b' * 32}",
            "endpoint=198.51.100.7:10",
            "persistent_keepalive_interval=26",
            "allowed_ip=10.0.1.0/24",
            "allowed_ip=-10.0.1.0/24",
            "replace_allowed_ips=true",
        ):
            self.assertEqual(self.set(*peer(A, line)), {A}, line)
        self.assertEqual(self.endpoint(A).port, 10)

    def test_peers_come_and_go(self) -> None:
        """Peers are added and removed, replaced all together, and told with those that were."""
        self.assertEqual(self.set(*peer(A), *peer(B)), {A, B})
        self.assertEqual(self.set(*peer(A, "remove=true"), *peer(C, "remove=true")), {A})
        self.assertEqual(set(self.wireguard.peers), {B})
        self.assertEqual(self.set("replace_peers=true", *peer(C)), {B, C})
        self.assertEqual(set(self.wireguard.peers), {C})
        self.assertEqual(self.set("replace_peers=true"), {C})
        self.assertEqual(dict(self.wireguard.peers), {})

    def test_update_only(self) -> None:
        """With update_only an unknown peer is not made, and a known one is changed."""
        self.assertEqual(self.set(*peer(A, "update_only=true", "allowed_ip=10.0.0.0/24")), set())
        self.assertEqual(dict(self.wireguard.peers), {})
        self.set(*peer(A))
        self.assertEqual(self.set(*peer(A, "update_only=true", "allowed_ip=10.0.0.0/24")), {A})
        self.assertEqual(self.networks(A), [TEN])

    def test_allowed_ips(self) -> None:
        """They are added, removed from who has them only, and replaced."""
        self.set(*peer(A, "allowed_ip=10.0.0.0/24"), *peer(B, "allowed_ip=10.0.1.0/24"))
        self.assertEqual(self.set(*peer(B, "allowed_ip=-10.0.0.0/24")), set())
        self.assertEqual(self.networks(A), [TEN])
        self.assertEqual(self.set(*peer(A, "allowed_ip=-10.0.0.0/24")), {A})
        self.assertEqual(self.networks(A), [])
        self.set(*peer(B, "replace_allowed_ips=true", "allowed_ip=fd00::/8"))
        self.assertEqual(self.networks(B), [ip_network("fd00::/8")])
        self.assertEqual(self.logged, [])

    def test_the_later_wins(self) -> None:
        """An allowed IP goes to who is given it last; one line names both, and both are told."""
        many = [f"allowed_ip=10.1.{n}.0/24" for n in range(7)]
        self.set(*peer(A, *many))
        self.assertEqual(self.logged, [])
        self.assertEqual(self.set(*peer(B, *many)), {A, B})
        self.assertEqual(self.networks(A), [])
        [line] = self.logged
        for word in (key_text(A), key_text(B), "10.1.0.0/24", "10.1.4.0/24 and 2 more"):
            self.assertIn(word, line)
        self.assertLess(line.index(key_text(A)), line.index(key_text(B)))

    def test_the_later_wins_in_one_request(self) -> None:
        """The same within one request, as when a conf gives a network twice; with their names."""
        self.control = self.controlled(name_of=lambda key: {A: "anna", B: "bert"}[key])
        self.set("replace_peers=true", *peer(A, "allowed_ip=::/0"), *peer(B, "allowed_ip=::/0"))
        self.assertEqual(self.networks(B), [ip_network("::/0")])
        [line] = self.logged
        self.assertIn("::/0 of anna are now those of bert", line)

    def test_our_own_key(self) -> None:
        """Our own key is never a peer, but a conf that lists it does no harm."""
        self.set(f"private_key={PRIVATE.hex()}")
        self.assertEqual(self.set(*peer(OWN, "allowed_ip=10.0.0.0/24"), *peer(A)), {A})
        self.assertEqual(set(self.wireguard.peers), {A})
        self.assertIn(key_text(OWN), self.logged[0])

    def test_our_key_was_a_peer(self) -> None:
        """Who takes a peer's key as its own has that peer no more, and it is told."""
        self.set(*peer(OWN), *peer(A))
        self.assertEqual(set(self.wireguard.peers), {OWN, A})
        self.assertEqual(self.set(f"private_key={PRIVATE.hex()}"), {OWN})
        self.assertEqual(set(self.wireguard.peers), {A})

    def test_key_is_removed(self) -> None:
        """A private key of zeros is none."""
        self.set(f"private_key={PRIVATE.hex()}")
        self.assertIsNotNone(self.wireguard.identity)
        self.set(f"private_key={'00' * 32}")
        self.assertIsNone(self.wireguard.identity)
        self.assertNotIn("private_key", self.text())

    def test_another_port(self) -> None:
        """Peers that can be reached hear from a new port; a taken one is refused."""
        self.set(
            f"private_key={PRIVATE.hex()}",
            *peer(A, "endpoint=198.51.100.7:9", "persistent_keepalive_interval=25"),
        )
        self.device.datagrams_to_send(1000.0)
        told: list[float] = []
        self.patch(self.wireguard, "rebound", told.append)
        self.world.port(self, Receiver(), "hub", port=51830)
        error = self.refused(errno.EADDRINUSE, "listen_port=51830", "fwmark=5", *peer(B))
        self.assertIn("51830", str(error))
        self.assertEqual((self.udp.mark, told), (0, []))
        self.set("listen_port=51831")
        self.assertEqual((self.udp.localPort, told), (51831, [1000.0]))
        self.set("listen_port=51831")
        self.assertEqual(told, [1000.0])

    def test_any_port(self) -> None:
        """Port 0 is another one each time, as in the kernel."""
        self.set("listen_port=0")
        first = self.udp.localPort
        self.assertNotIn(first, (0, 51820))
        self.set("listen_port=0")
        self.assertNotIn(self.udp.localPort, (0, first))

    def test_no_privilege(self) -> None:
        """A mark that the kernel refuses is an error, and nothing else is done either."""
        sock = self.world.hosts["hub"].sockets[0]
        sock.option_errors[socket.SOL_SOCKET, SO_MARK] = errno.EPERM
        self.refused(errno.EPERM, "fwmark=5", "listen_port=51831", *peer(A))

    def test_bad_endpoint(self) -> None:
        """An endpoint on a link that is not there refuses the whole request."""
        self.set(*peer(A))
        error = self.refused(
            errno.EINVAL,
            "replace_peers=true",
            *peer(B, "endpoint=198.51.100.7:9"),
            *peer(C, "endpoint=[fe80::1%nowhere0]:9"),
        )
        self.assertIn("nowhere0", str(error))

    def test_guard(self) -> None:
        """The guard sees what would change, before anything does, and can refuse it."""
        self.set(f"private_key={PRIVATE.hex()}", "fwmark=7")
        seen: list[Changes] = []

        def guard(changes: Changes) -> None:
            seen.append(changes)
            if C in {each.public_key for each in changes.peers}:
                raise UAPIError(errno.EEXIST, "this is the key of a user")

        self.control = self.controlled(guard=guard)
        so = [f"private_key={PRIVATE.hex()}", "listen_port=51820", "fwmark=7"]
        self.refused(errno.EEXIST, *so, "replace_peers=true", *peer(A), *peer(C))
        asked = request(*so, *peer(A))
        self.control.set(asked)
        self.assertEqual(seen[1], evolve(asked, private_key=None, listen_port=None, fwmark=None))

    def test_hub_keeps_its_device(self) -> None:
        """A hub's key, port and mark cannot be changed; saying them again is fine."""
        self.set(f"private_key={PRIVATE.hex()}")
        self.control = self.controlled(guard=keep_device)
        for line, word in (
            (f"private_key={'00' * 32}", "private key"),
            (f"private_key={'48' * 32}", "private key"),
            ("listen_port=0", "listen port"),
            ("listen_port=51821", "listen port"),
            ("fwmark=1", "fwmark"),
        ):
            self.assertIn(word, str(self.refused(errno.EPERM, line, *peer(A))))
        so = (f"private_key={PRIVATE.hex()}", "listen_port=51820", "fwmark=0")
        self.assertEqual(self.set(*so, "replace_peers=true", *peer(A)), {A})

    def test_durable(self) -> None:
        """The answer waits until the change is kept, and failing to keep it is a failure."""
        self.durable = Deferred()
        answer = self.control.set(request(*peer(A)))
        self.assertIs(answer, self.durable)
        self.durable = Deferred()
        answer = self.control.set(request(*peer(B)))
        self.durable.errback(UAPIError(errno.EIO, "the disk is full"))
        self.assertEqual(self.failureResultOf(answer, UAPIError).value.code, errno.EIO)

    def test_somebody_elses_address(self) -> None:
        """An allowed IP that the core does not give is an error; the rest is done and told."""
        allow: Callable[..., Any] = self.wireguard.allow

        def guarded(who: Any, network: Any) -> Any:
            if network == TEN:
                raise LocalProtocolError("it is a user's")
            return allow(who, network)

        self.patch(self.wireguard, "allow", guarded)
        asked = request(*peer(A, "allowed_ip=10.0.0.0/24", "allowed_ip=10.0.1.0/24"), *peer(B))
        error = self.assertRaises(UAPIError, self.control.set, asked)
        self.assertEqual(error.code, errno.EADDRINUSE)
        self.assertEqual(self.calls, ["settle", {A, B}])
        self.assertEqual(self.networks(A), [ip_network("10.0.1.0/24")])
        self.assertIn("10.0.0.0/24", self.logged[0])
        # Where it takes a while to keep the rest, the refusal comes after that.
        self.durable = Deferred()
        answer = self.control.set(request(*peer(C, "allowed_ip=10.0.0.0/24")))
        self.assertNoResult(answer)
        self.durable.callback(None)
        self.assertEqual(self.failureResultOf(answer, UAPIError).value.code, errno.EADDRINUSE)

    def test_removed_while_get_is_read(self) -> None:
        """A peer that goes while its interface is being told of is left out."""
        self.set(*peer(A), *peer(B), *peer(C))
        pieces = format_get(self.control.get())
        next(pieces)
        next(pieces)
        self.set(*peer(B, "remove=true"))
        self.assertEqual([piece[11:75] for piece in pieces], [C.hex()])
