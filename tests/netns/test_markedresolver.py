"""The marked resolver on the kernel, beside a network that takes all that is not marked.

::

    kiwi  192.0.2.1, fe80::1 ── one/two ── 192.0.2.53, fe80::53  the name server
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.names import dns
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from pyvpn.service.markedresolver import MarkedResolver
from pyvpn.service.resolver import Resolved
from tests.tx.namespace import Namespace

MARK = "0x2056"
TABLE = "1347813383"
PRIORITY = "30100"
NAME = "hub.example"
ADDRESS = "203.0.113.7"
FOUND = Resolved([(ADDRESS, 5)], [])
UNREACHABLE = f"cannot resolve {NAME}: 192.0.2.53 cannot be asked (Network is unreachable)"

# getent(1) with a resolv.conf of its own, in a mount namespace that ends with it.
GETENT = 'mount --bind "$0" /etc/resolv.conf && exec getent ahosts hub.example'
FILTER = """table inet pyvpn-test {{
 chain output {{
  type filter hook output priority 0; policy accept;
  meta l4proto udp {which} reject
 }}
}}"""


@implementer(IReadDescriptor)
class NameServer:
    """Knows one address of one name; reads and answers on a socket."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.sources: list[tuple[Any, ...]] = []
        reactor.addReader(self)

    def fileno(self) -> int:
        return self.socket.fileno()

    def logPrefix(self) -> str:
        return "name server"

    def doRead(self) -> None:
        datagram, source = self.socket.recvfrom(512)
        self.sources.append(source)
        message = dns.Message()
        message.fromStr(datagram)
        message.answer = 1
        if message.queries[0].type == dns.A:
            payload = dns.Record_A(ADDRESS)
            message.answers = [dns.RRHeader(NAME, dns.A, payload=payload)]
        self.socket.sendto(message.toStr(), source)

    def connectionLost(self, reason: Any) -> None:
        pass

    def close(self) -> None:
        reactor.removeReader(self)
        self.socket.close()


class MarkedResolverTests(TestCase):
    def setUp(self) -> None:
        self.kiwi, self.other = Namespace(), Namespace()
        self.addCleanup(self.kiwi.close)
        self.addCleanup(self.other.close)
        self.kiwi.ip(f"link add one type veth peer name two netns {self.other.path()}")
        for namespace, device, last in ((self.kiwi, "one", 1), (self.other, "two", 53)):
            namespace.ip(f"link set {device} addrgenmode none up")
            namespace.ip(f"address add fe80::{last}/64 dev {device} nodad")
            namespace.ip(f"address add 192.0.2.{last}/24 dev {device}")
        self.server = self.listen(socket.AF_INET, "192.0.2.53")
        self.servers = ["192.0.2.53"]
        self.resolver = MarkedResolver(reactor, lambda: self.servers, hosts=os.devnull)
        self.addCleanup(self.resolver.close)
        with self.kiwi.inside():
            self.resolver.open()
        self.resolver.start()

    def listen(self, family: int, address: str) -> NameServer:
        with self.other.inside():
            opened = socket.socket(family, socket.SOCK_DGRAM)
            opened.setblocking(False)
            # With the scope of a link-local one.
            opened.bind(socket.getaddrinfo(address, 53, flags=socket.AI_NUMERICHOST)[0][4])
        server = NameServer(opened)
        self.addCleanup(server.close)
        return server

    def ask(self) -> Deferred[Resolved]:
        with self.kiwi.inside():  # for the index of a link-local server's interface
            return self.resolver.resolve([(NAME, 5)])

    def capture(self) -> None:
        """Lead all that is not marked to a table of which nothing leaves, as a tunnel could."""
        self.kiwi.ip(f"route add unreachable default table {TABLE}")
        self.kiwi.ip(f"rule add not fwmark {MARK} lookup {TABLE} priority {PRIORITY}")

    def filter(self, which: str) -> None:
        rules = Path(self.mktemp())
        rules.write_text(FILTER.format(which=which))
        self.kiwi.run(f"nft -f {rules}")

    def getent(self) -> Deferred[tuple[bytes, bytes, int]]:
        """Ask as any program would."""
        if shutil.which("getent") is None:
            raise SkipTest("getent is missing")
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text("nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")
        argv = ["--mount", "sh", "-c", GETENT, str(configuration)]
        with self.kiwi.inside():
            return getProcessOutputAndValue(shutil.which("unshare"), argv, env=os.environ)

    def play(self, scene: Callable[[], Any]) -> Deferred[None]:
        return Deferred.fromCoroutine(scene())

    def test_past_the_tunnel(self) -> Deferred[None]:
        """With all that is not marked in a table without a way out, our questions are answered;
        getent's were before that rule, and are not with it."""

        async def scene() -> None:
            said, _, status = await self.getent()
            self.assertEqual((said.split()[:1], status), ([ADDRESS.encode()], 0))
            self.assertEqual(await self.ask(), FOUND)
            self.capture()
            before = len(self.server.sources)
            said, _, status = await self.getent()
            self.assertEqual((said, status, len(self.server.sources)), (b"", 2, before))
            self.assertEqual(await self.ask(), FOUND)
            ports = {source[1] for source in self.server.sources[before:]}
            self.assertEqual(ports, {self.resolver.ports[0]})

        return self.play(scene)

    def test_past_a_filter(self) -> Deferred[None]:
        """Where a firewall lets nothing pass but what is marked, from our port, our questions are
        answered; without that exception the line says that they cannot be sent."""

        async def scene() -> None:
            port = self.resolver.ports[0]
            self.filter(f"meta mark != {MARK}")
            said, _, status = await self.getent()
            self.assertEqual((said, status), (b"", 2))
            self.assertEqual(await self.ask(), FOUND)
            self.kiwi.run("nft delete table inet pyvpn-test")
            self.filter(f"udp sport {port}")
            found = await self.ask()
            why = f"cannot resolve {NAME}: 192.0.2.53 cannot be asked (Operation not permitted)"
            self.assertEqual(found, Resolved([], [why]))

        return self.play(scene)

    def test_no_way(self) -> Deferred[None]:
        """Without a route to the name server the line says so; with one again, it is asked."""

        async def scene() -> None:
            self.kiwi.ip("address flush dev one scope global")
            self.assertEqual(await self.ask(), Resolved([], [UNREACHABLE]))
            self.kiwi.ip("address add 192.0.2.9/24 dev one")
            self.assertEqual(await self.ask(), FOUND)
            self.assertEqual(self.server.sources[-1][0], "192.0.2.9")

        return self.play(scene)

    def test_link_local_server(self) -> Deferred[None]:
        """A name server with a link-local address is asked over the interface named with it."""

        async def scene() -> None:
            server = self.listen(socket.AF_INET6, "fe80::53%two")
            self.servers = ["fe80::53%one"]
            found = await self.ask()
            self.assertEqual(found, FOUND)
            self.assertEqual({source[0] for source in server.sources}, {"fe80::1"})
            self.assertEqual(self.server.sources, [])

        return self.play(scene)
