"""The kill switch on the kernel: what leaves a machine with it, what does not, whose it is."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.firewall import ClientFirewall, KillSwitch, kill_switch_script, script
from pyvpn.linux.killswitch import blocked, lift, standing
from pyvpn.linux.system import ChangeFailed, Completed, LinuxSystem
from tests.linux.cables import (
    ICMP6,
    TCP,
    UDP,
    KernelTest,
    add_addresses,
    echo,
    ends,
    forward,
    nft,
    received,
    udp,
)
from tests.tx.namespace import Namespace

MARK = 0x2056
PORT = 5050
WORLD = ("198.51.100.1", "2001:db8:f::1")
RESOLVERS = ("198.51.100.53", "2001:db8:f::53")
LAN = ("192.168.7.0/24", "fd00:7::/64")
IN_LAN = ("192.168.7.1", "fd00:7::1")
GATEWAYS = ("192.0.2.1", "2001:db8::1")

SWITCH = KillSwitch("client-home", "tun0", (PORT,), RESOLVERS)

Probe = Callable[[], None]


class Answers:
    """A system on which nft gives these answers, one after the other."""

    def __init__(self, *answers: Completed) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[list[str], str]] = []

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        self.asked.append((list(argv), stdin))
        return self._answers.pop(0)


class Inside:
    """The real nft, in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        with self._namespace.inside():
            return LinuxSystem().run(argv, stdin)


class Asked(SynchronousTestCase):
    """What is made of the answers of nft."""

    GONE = Completed(1, "", "Error: No such file or directory\nlist table inet pyvpn-kill-switch")
    REFUSED = Completed(1, "", "Operation not permitted (you must be root)")
    OURS = Completed(0, '{"nftables": [{"rule": {"chain": "owner", "comment": "client-a"}}]}', "")
    STRANGE = Completed(0, '{"nftables": [{"rule": {"chain": "output", "comment": "x"}}]}', "")

    def test_none(self) -> None:
        """Without the table, without nftables in the kernel or without nft there is none."""
        without = Completed(1, "", "netlink: Error: cache initialization failed: not supported")
        missing = Completed(127, "", "nft is not installed")
        for answer in (self.GONE, without, missing):
            self.assertIsNone(standing(Answers(answer)))
            self.assertIsNone(blocked(Answers(answer)))
            self.assertEqual(lift(Answers(answer)), [])

    def test_cannot_tell(self) -> None:
        """Where nft cannot look, or says what nobody understands, nobody says there is none."""
        garbage = Completed(0, "table inet pyvpn-kill-switch {", "")
        for answer in (self.REFUSED, garbage, Completed(0, "[]", ""), Completed(124, "", "")):
            for ask in (standing, blocked, lift):
                with self.assertRaises(ChangeFailed):
                    ask(Answers(answer))

    def test_unknown_owner(self) -> None:
        """A table that does not name its owner stands, and is lifted by who asks for any."""
        self.assertEqual(standing(Answers(self.STRANGE)), "unknown")
        self.assertEqual(lift(Answers(self.STRANGE), "client-a"), [])
        self.assertEqual(len(lift(Answers(self.STRANGE, Completed(0, "", "")))), 1)

    def test_not_lifted(self) -> None:
        """A removal that fails is an error, unless the table is gone as somebody was faster."""
        with self.assertRaises(ChangeFailed) as caught:
            lift(Answers(self.OURS, self.REFUSED, self.OURS))
        self.assertIn("not permitted", caught.exception.stderr)
        self.assertEqual(len(lift(Answers(self.OURS, self.GONE, self.GONE))), 1)

    def test_lifted(self) -> None:
        """The removal names this one table, and the line for people its owner."""
        system = Answers(self.OURS, Completed(0, "", ""))
        (line,) = lift(system, "client-a")
        self.assertIn("client-a", line)
        argv, text = system.asked[-1]
        self.assertEqual(argv, ["nft", "-f", "-"])
        self.assertEqual(text.strip(), "delete table inet pyvpn-kill-switch")


class Standing(KernelTest):
    """The owner, on the kernel."""

    def setUp(self) -> None:
        self.machine = self.namespace()
        self.system = Inside(self.machine)

    def test_owner(self) -> None:
        """Who set it last owns it; only that one, or who names none, lifts it; others' stay."""
        nft(self.machine, script(ClientFirewall("tun0", ("10.10.0.2",))))
        before = self.machine.run("nft list ruleset")
        self.assertIsNone(standing(self.system))
        for owner in ("client-home", "client-home", "client-A.b_c-" + "x" * 26):
            nft(self.machine, kill_switch_script(KillSwitch(owner, "t+=@-_.0")))
            self.assertEqual(standing(self.system), owner)
        self.assertEqual(lift(self.system, "client-home"), [])
        self.assertEqual(standing(self.system), owner)
        self.assertEqual(len(lift(self.system, owner)), 1)
        self.assertIsNone(standing(self.system))
        self.assertIsNone(blocked(self.system))
        self.assertEqual(self.machine.run("nft list ruleset"), before)
        nft(self.machine, kill_switch_script(SWITCH))
        self.assertEqual(len(lift(self.system)), 1)
        self.assertEqual(lift(self.system), [])

    def test_idempotent(self) -> None:
        """Set twice it is as set once; without ports, servers and LANs nft takes it too."""
        for switch in (
            SWITCH,
            KillSwitch("client-home", "tun0"),
            KillSwitch("client-home", "tun0", (1, 2), ("fe80::1%eth0", "9.9.9.9"), LAN + LAN),
        ):
            nft(self.machine, kill_switch_script(switch))
            once = self.machine.run("nft -s list ruleset")
            nft(self.machine, kill_switch_script(switch))
            self.assertEqual(self.machine.run("nft -s list ruleset"), once)
        self.assertEqual(once.count("table "), 1)


class Leaving(KernelTest):
    """A machine with an uplink, a tunnel, and a container; the far end of the uplink counts."""

    def setUp(self) -> None:
        self.machine, self.world, self.container = (self.namespace() for _ in range(3))
        self.system = Inside(self.machine)
        self.uplink = self.cable(self.machine, "up0", self.world, "down0")
        self.bridge = self.cable(self.machine, "docker0", self.container, "eth0")
        self.tun = self.tunnel(self.machine, "10.10.0.2/24", "fd00:10::2/64")
        add_addresses(self.machine, "up0", "192.0.2.2/24", "2001:db8::2/64")
        add_addresses(self.machine, "up0", "fe80::2/64")
        add_addresses(self.machine, "docker0", "172.17.0.1/24", "fd00:17::1/64")
        add_addresses(self.container, "eth0", "172.17.0.2/24", "fd00:17::2/64")
        add_addresses(self.world, "down0", "192.0.2.1/24", "2001:db8::1/64")
        for where, via4, via6 in (
            (self.machine, *GATEWAYS),
            (self.container, "172.17.0.1", "fd00:17::1"),
            (self.world, "192.0.2.2", "2001:db8::2"),
        ):
            where.ip(f"route add default via {via4}")
            where.ip(f"route add default via {via6}")
        add_addresses(self.world, "lo", *WORLD, *RESOLVERS, *IN_LAN)

    def set(self, switch: KillSwitch = SWITCH) -> None:
        nft(self.machine, kill_switch_script(switch))
        self.uplink.crossed()

    def made(self, six: bool, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of the machine that never waits."""
        with self.machine.inside():
            made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind, protocol)
        self.addCleanup(made.close)
        made.setblocking(False)
        return made

    def datagram(
        self, destination: str, port: int = 9, mark: int = 0, sport: int = 0, device: str = ""
    ) -> None:
        """Send one, from ``sport`` if that is not 0, bound to ``device`` if that is named."""
        sender = self.made(":" in destination, socket.SOCK_DGRAM)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if sport:
            sender.bind(("", sport))
        self.attempt(lambda: sender.sendto(b"secret", (destination, port)))
        sender.close()

    def connection(
        self, destination: str, port: int = 80, mark: int = 0, sport: int = 0, device: str = ""
    ) -> None:
        """Begin one over TCP."""
        caller = self.made(":" in destination, socket.SOCK_STREAM)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if mark:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if device:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if sport:
            caller.bind(("", sport))
        self.attempt(lambda: caller.connect((destination, port)))
        caller.close()

    def raw(self, packet: bytes, destination: str, device: str = "") -> None:
        """A whole IP packet, as a program with privileges makes it."""
        sender = self.made(":" in destination, socket.SOCK_RAW, socket.IPPROTO_RAW)
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        self.attempt(lambda: sender.sendto(packet, (destination, 0)))

    def ping(self, destination: str, mark: int = 0) -> None:
        six = ":" in destination
        sender = self.made(six, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if six else 1)
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        body = echo(*(("::", "::") if six else ("0.0.0.0", "0.0.0.0")))[40 if six else 20 :]
        self.attempt(lambda: sender.sendto(body, (destination, 0)))

    def discovery(self, kind: int, destination: str) -> None:
        """A packet of neighbour discovery or of a multicast listener, by its type."""
        sender = self.made(True, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
            sender.setsockopt(socket.IPPROTO_IPV6, option, 255)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"up0")
        body = struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, "fe80::9")
        self.attempt(lambda: sender.sendto(body, (destination, 0, 0, 0)))

    def attempt(self, send: Callable[[], object]) -> None:
        """A refusal may come back as any of these; it is the cable that tells."""
        try:
            send()
        except OSError as error:
            refusals = (errno.EPERM, errno.EACCES, errno.ECONNREFUSED, errno.EHOSTUNREACH)
            if error.errno not in (errno.EINPROGRESS, *refusals):
                raise

    def left(self, probes: dict[str, Probe]) -> dict[str, int]:
        """Which packets crossed the uplink for each, without what the kernel sends by itself."""
        self.uplink.crossed()
        found = {}
        for name, probe in probes.items():
            probe()
            # A connection that was refused far away, or a neighbour that was looked for first.
            found[name] = min(1, len(self.uplink.ours()))
        return found

    def forbidden(self) -> dict[str, Probe]:
        """All that must not leave, by name."""
        probes: dict[str, Probe] = {}
        for here, world, resolver, lan in zip(
            ("192.0.2.2", "2001:db8::2"), WORLD, RESOLVERS, IN_LAN, strict=True
        ):
            where = {"destination": world}
            to_resolver = {"destination": resolver, "port": 53}
            datagrams = {
                "udp": where,
                "udp from our port without the mark": {**where, "sport": PORT},
                "udp with the mark from another port": {**where, "mark": MARK},
                "udp with another mark": {**where, "mark": MARK + 1, "sport": PORT},
                "udp bound to the uplink": {**where, "device": "up0"},
                "question": to_resolver,
                "question bound to the uplink": {**to_resolver, "device": "up0"},
                "marked question to another": {**where, "port": 53, "mark": MARK},
                "marked udp to a resolver": {**where, "port": 54, "mark": MARK},
                "udp to the lan": {"destination": lan},
                "udp to dhcp's port": {**where, "port": 547 if ":" in world else 67},
            }
            connections = {
                "tcp": where,
                "tcp bound to the uplink": {**where, "device": "up0"},
                "tcp with the mark from our port": {**where, "mark": MARK, "sport": PORT},
                "marked question over tcp": {**to_resolver, "mark": MARK},
            }
            for name, options in datagrams.items():
                probes[f"{name} {world}"] = _later(self.datagram, **options)
            for name, options in connections.items():
                probes[f"{name} {world}"] = _later(self.connection, **options)
            probes[f"ping {world}"] = _later(self.ping, destination=world)
            probes[f"marked ping {world}"] = _later(self.ping, destination=world, mark=MARK)
            packet = udp(here, world, 9, b"secret", PORT)
            for device in ("", "up0"):
                probes[f"raw {device} {world}"] = _later(
                    self.raw, packet=packet, destination=world, device=device
                )
        probes["broadcast"] = _later(self.datagram, destination="192.0.2.255")
        probes["multicast"] = _later(
            self.datagram, destination="224.0.0.251", port=5353, device="up0"
        )
        probes["multicast 6"] = _later(
            self.datagram, destination="ff02::fb", port=5353, device="up0"
        )
        probes["udp to dhcp's group"] = _later(
            self.datagram, destination="ff02::1:2", port=547, device="up0"
        )
        return probes

    def test_forbidden(self) -> None:
        """Nothing of all this leaves, all of which left before; all of it is counted."""
        probes = self.forbidden()
        self.assertEqual(self.left(probes), dict.fromkeys(probes, 1))
        self.set()
        self.assertEqual(self.left(probes), dict.fromkeys(probes, 0))
        counted = blocked(self.system)
        assert counted is not None
        self.assertGreaterEqual(counted["blocked"], len(probes))
        self.assertEqual((counted["tunnel"], counted["resolver"], counted["dhcp"]), (0, 0, 0))
        lift(self.system)
        self.assertEqual(self.left(probes), dict.fromkeys(probes, 1))

    def test_allowed(self) -> None:
        """Our own datagrams, our questions, DHCP and discovery leave, and are counted apart."""
        self.set()
        four, six = WORLD
        probes = {
            "tunnel": _later(self.datagram, destination=four, mark=MARK, sport=PORT),
            "tunnel 6": _later(self.datagram, destination=six, mark=MARK, sport=PORT),
            "resolver": _later(self.datagram, destination=RESOLVERS[0], port=53, mark=MARK),
            "resolver 6": _later(self.datagram, destination=RESOLVERS[1], port=53, mark=MARK),
            "dhcp": _later(
                self.datagram, destination="255.255.255.255", port=67, sport=68, device="up0"
            ),
            "dhcp renewed": _later(self.datagram, destination=GATEWAYS[0], port=67, sport=68),
            "dhcp 6": _later(
                self.datagram, destination="ff02::1:2", port=547, sport=546, device="up0"
            ),
        }
        self.assertEqual(self.left(probes), dict.fromkeys(probes, 1))
        counted = blocked(self.system)
        assert counted is not None
        expected = {"tunnel": 2, "resolver": 2, "dhcp": 3, "lan": 0}
        self.assertEqual({name: counted[name] for name in expected}, expected)

    def test_discovery(self) -> None:
        """Routers and neighbours are found, in both families; multicast listeners keep quiet."""
        listener = _later(self.discovery, kind=143, destination="ff02::16")
        self.uplink.crossed()
        listener()
        self.assertIn((ICMP6, 143), [(one.protocol, one.port) for one in self.uplink.crossed()])
        self.set()
        self.machine.ip("neighbour flush dev up0")
        for destination in WORLD:
            self.datagram(destination, mark=MARK, sport=PORT)
        seen = [(packet.protocol, packet.port) for packet in self.uplink.crossed()]
        self.assertIn((0, 0), seen)
        self.assertIn((ICMP6, 135), seen)
        for kind in (133, 134, 135, 136):
            before = (blocked(self.system) or {})["neighbours"]
            self.discovery(kind, "ff02::1")
            seen = [(packet.protocol, packet.port) for packet in self.uplink.crossed()]
            self.assertIn((ICMP6, kind), seen)
            self.assertGreater((blocked(self.system) or {})["neighbours"], before)
        listener()
        seen = [(packet.protocol, packet.port) for packet in self.uplink.crossed()]
        self.assertNotIn((ICMP6, 143), seen)

    def test_lan(self) -> None:
        """Networks that stay reachable are, but no questions for names go there."""
        probes: dict[str, Probe] = {}
        questions: dict[str, Probe] = {}
        for address in IN_LAN:
            probes[f"udp {address}"] = _later(self.datagram, destination=address)
            probes[f"tcp {address}"] = _later(self.connection, destination=address)
            probes[f"ping {address}"] = _later(self.ping, destination=address)
            questions[f"udp {address}"] = _later(self.datagram, destination=address, port=53)
            questions[f"tcp {address}"] = _later(self.connection, destination=address, port=53)
        self.assertEqual(self.left(questions), dict.fromkeys(questions, 1))
        self.set(KillSwitch("client-home", "tun0", (PORT,), (*RESOLVERS, IN_LAN[0]), LAN))
        self.assertEqual(self.left(probes), dict.fromkeys(probes, 1))
        self.assertEqual(self.left(questions), dict.fromkeys(questions, 0))
        self.assertEqual(
            self.left({"world": _later(self.ping, destination=WORLD[0])}), {"world": 0}
        )
        self.assertEqual((blocked(self.system) or {})["lan"], 6)
        ours = _later(self.datagram, destination=IN_LAN[0], port=53, mark=MARK)
        self.assertEqual(self.left({"our own question": ours}), {"our own question": 1})

    def test_through_the_tunnel(self) -> None:
        """What goes into the tunnel and what stays on the machine passes."""
        self.set()
        for destination in ("10.10.0.1", "fd00:10::1"):
            self.datagram(destination)
            self.connection(destination)
        kinds = [(packet.protocol, packet.destination) for packet in self.tun.taken()]
        expected = [(kind, to) for to in ("10.10.0.1", "fd00:10::1") for kind in (UDP, TCP)]
        self.assertEqual(kinds, expected)
        for address in ("127.0.0.1", "192.0.2.2", "::1", "2001:db8::2"):
            listener = self.listener(self.machine, address, 9)
            self.datagram(address)
            self.assertEqual(received(listener), b"secret")

    def test_refused_at_once(self) -> None:
        """A program is told at once that it gets nowhere."""
        self.set()
        for destination in WORLD:
            caller = self.made(":" in destination, socket.SOCK_STREAM)
            caller.settimeout(5)
            began = time.monotonic()
            with self.assertRaises(ConnectionRefusedError):
                caller.connect((destination, 80))
            self.assertLess(time.monotonic() - began, 1)
            sender = self.made(":" in destination, socket.SOCK_DGRAM)
            sender.connect((destination, 9))
            with self.assertRaises(OSError):
                sender.send(b"secret")
                sender.send(b"secret")

    def container_sends(self) -> list[tuple[int, str, str]]:
        """A container's datagrams to the world: what crossed the uplink."""
        self.uplink.crossed()
        for source, destination in zip(("172.17.0.2", "fd00:17::2"), WORLD, strict=True):
            # With our mark and port, which say nothing about what others send.
            sender = self.listener(self.container, source, PORT)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            sender.sendto(b"", (destination, 9))
            sender.close()
        return ends(self.uplink.ours())

    def test_forwarded(self) -> None:
        """What a container sends leaves without the kill switch and not with it."""
        forward(self.machine)
        self.assertEqual(len(self.container_sends()), 2)
        self.set()
        self.assertEqual(self.container_sends(), [])
        self.assertGreaterEqual((blocked(self.system) or {})["blocked"], 2)
        self.set(KillSwitch("client-home", "tun0", lan=(f"{WORLD[0]}/32",)))
        self.assertEqual(len(self.container_sends()), 1)

    def test_forwarded_with_a_mark(self) -> None:
        """A mark that another table gives to a container's packets is no way out."""
        forward(self.machine)
        hook = "type filter hook forward priority mangle;"
        nft(self.machine, f"table inet m {{ chain c {{ {hook} meta mark set {MARK}; }}; }}")
        self.assertEqual(len(self.container_sends()), 2)
        self.set()
        self.assertEqual(self.container_sends(), [])

    def test_container_in_the_tunnel(self) -> None:
        """A container's packets go into the tunnel, and only the answers come back to it."""
        forward(self.machine)
        self.set()
        self.bridge.crossed()
        asker = self.listener(self.container, "172.17.0.2", 7)
        asker.sendto(b"question", ("10.10.0.1", 9))
        self.assertEqual(ends(self.tun.taken()), [(UDP, "172.17.0.2", "10.10.0.1")])
        self.tun.deliver(udp("10.10.0.1", "172.17.0.2", 7, b"answer", 9))
        self.assertEqual(received(asker), b"answer")
        self.tun.deliver(udp("10.10.0.1", "172.17.0.2", 7, b"unasked", 10))
        self.assertIsNone(received(asker))
        lift(self.system)
        self.tun.deliver(udp("10.10.0.1", "172.17.0.2", 7, b"unasked", 10))
        self.assertEqual(received(asker), b"unasked")

    def test_sent_elsewhere(self) -> None:
        """What another table turns from the tunnel to the uplink does not leave either."""
        self.machine.ip("route add default via 192.0.2.1 table 77")
        self.machine.ip("rule add fwmark 0x77 lookup 77")
        turned = (
            "table inet elsewhere {"
            " chain r { type route hook output priority mangle;"
            " ip daddr 10.10.0.1 meta mark set 0x77; };"
            " chain n { type nat hook output priority -100;"
            f" ip daddr 10.10.0.9 dnat ip to {WORLD[0]}; }}; }}"
        )
        nft(self.machine, turned)
        probes = {
            "by mark": _later(self.datagram, destination="10.10.0.1"),
            "by address": _later(self.datagram, destination="10.10.0.9"),
        }
        self.assertEqual(self.left(probes), {"by mark": 1, "by address": 1})
        self.set()
        self.assertEqual(self.left(probes), {"by mark": 0, "by address": 0})
        self.assertGreaterEqual((blocked(self.system) or {})["blocked"], 2)

    def test_replaced(self) -> None:
        """Replaced again and again under a stream of packets, nothing slips through."""
        flood = self.made(False, socket.SOCK_DGRAM)
        sent, done = 0, threading.Event()

        def send() -> None:
            nonlocal sent
            # At the same time as the replacing, if there is another processor.
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
            while not done.is_set():
                self.attempt(lambda: flood.sendto(b"secret", (WORLD[0], 9)))
                sent += 1

        self.set()
        thread = threading.Thread(target=send)
        thread.start()
        try:
            for port in range(1, 21):
                nft(self.machine, kill_switch_script(KillSwitch("client-home", "tun0", (port,))))
        finally:
            done.set()
            thread.join()
        self.assertEqual(self.uplink.ours(), [])
        self.assertGreater(sent, 20)
        lift(self.system)
        flood.sendto(b"seen", (WORLD[0], 9))
        self.assertEqual([packet.data[8:] for packet in self.uplink.ours()], [b"seen"])


def _later(call: Callable[..., None], **options: object) -> Probe:
    return lambda: call(**options)
