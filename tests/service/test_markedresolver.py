"""The hub's address, asked of name servers with our mark: in turn, in time, whatever they say."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.names import common, dns, error, server
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from pyvpn.errors import StartError
from pyvpn.service.lookup import Questions
from pyvpn.service.markedresolver import (
    MarkedResolver,
    in_hosts,
    in_order,
    open_marked_socket,
    routed,
)
from pyvpn.service.resolver import Resolved
from pyvpn.testing.clock import ClockTimer, VirtualClock
from tests.tx.namespace import Namespace

MARK = 0x2056
SO_MARK = 36  # asm-generic/socket.h

V4, OTHER, V6 = "192.0.2.53", "198.51.100.53", "2001:db8::53"
SILENT = "did not answer"
NO_NAME, NO_ADDRESS = "knows no such name", "knows no address of it"


class Sent(NamedTuple):
    """A question on its way."""

    message: dns.Message
    server: tuple[Any, ...]
    questions: Questions

    @property
    def host(self) -> str:
        return str(self.server[0])

    @property
    def kind(self) -> str:
        return dns.QUERY_TYPES[self.message.queries[0].type]

    def reply(self, *records: dns.RRHeader, **fields: Any) -> dns.Message:
        """An answer to it, with these fields changed."""
        answer = dns.Message(self.message.id, answer=1, recDes=1, recAv=1)
        answer.queries = list(self.message.queries)
        answer.answers = list(records)
        for field, value in fields.items():
            setattr(answer, field, value)
        return answer

    def arrive(self, answer: dns.Message | bytes, addr: tuple[str, int] | None = None) -> None:
        datagram = answer if isinstance(answer, bytes) else answer.toStr()
        self.questions.datagramReceived(datagram, addr or (self.host, self.server[1]))

    def answer(self, *addresses: str, **fields: Any) -> None:
        """Answer as the server that was asked."""
        name = self.message.queries[0].name.name
        self.arrive(self.reply(*[record(name, address) for address in addresses], **fields))


def record(name: str | bytes, data: str, **fields: Any) -> dns.RRHeader:
    """An address, or the alias of another name."""
    payload: Any = dns.Record_CNAME(data)
    if ":" in data:
        payload = dns.Record_AAAA(data)
    elif data.replace(".", "").isdigit():
        payload = dns.Record_A(data)
    return dns.RRHeader(name, payload.TYPE, payload=payload, **fields)


class FakeSocket:
    """One of the two of a family; ``routes`` are the addresses to which there is a way."""

    def __init__(self, family: int, port: int, routes: set[str]) -> None:
        self.family, self.port, self.routes = family, port, routes
        self.closed = False

    def fileno(self) -> int:
        return -1

    def getsockname(self) -> tuple[str, int]:
        return ("", self.port)

    def connect(self, address: tuple[Any, ...]) -> None:
        if address[0] not in self.routes:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    def close(self) -> None:
        self.closed = True


class FakePort:
    """An adopted port; ``refusal`` is what the kernel says of the next datagrams."""

    def __init__(self, world: ResolverCase, protocol: Questions) -> None:
        self.world, self.protocol = world, protocol
        self.open = True
        protocol.makeConnection(self)  # type: ignore[arg-type]

    def write(self, datagram: bytes, address: tuple[Any, ...]) -> None:
        refusal = self.world.refusals.get(address[0])
        if refusal is not None:
            raise OSError(refusal, os.strerror(refusal))
        message = dns.Message()
        message.fromStr(datagram)
        self.world.sent.append(Sent(message, address, self.protocol))

    def stopListening(self) -> Deferred[None]:
        self.open = False
        self.world.stopped = Deferred()
        return self.world.stopped


class ResolverCase(SynchronousTestCase):
    """A resolver among fakes.

    :ivar sent: the questions since they were looked at last.
    """

    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.name_servers: Callable[[], Sequence[str]] = lambda: [V4]
        self.families: dict[int, list[int]] = {
            socket.AF_INET: [7001, 7002],
            socket.AF_INET6: [7003, 7004],
        }
        self.routes: set[str] = set()
        self.sockets: list[FakeSocket] = []
        self.ports: list[FakePort] = []
        self.sent: list[Sent] = []
        self.refusals: dict[str, int] = {}
        self.stopped: Deferred[None] = Deferred()
        self.hosts = Path(self.mktemp())
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resolver = MarkedResolver(
            self,
            self.list_name_servers,
            self.open_socket,
            hosts=str(self.hosts),
            clock=self.clock.boottime,
            timer_factory=lambda callback: ClockTimer(callback, self.clock),
        )
        self.resolver.open()
        self.resolver.start()

    def list_name_servers(self) -> Sequence[str]:
        return self.name_servers()

    def open_socket(self, family: int) -> FakeSocket:
        if not self.families.get(family):
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        opened = FakeSocket(family, self.families[family].pop(0), self.routes)
        self.sockets.append(opened)
        return opened

    def adoptDatagramPort(
        self, fd: int, family: int, protocol: Questions, maxPacketSize: int
    ) -> FakePort:
        self.assertEqual(maxPacketSize, 512)
        self.ports.append(FakePort(self, protocol))
        return self.ports[-1]

    def asked(self) -> list[Sent]:
        """The questions since the last call, ordered as they were sent."""
        sent, self.sent[:] = list(self.sent), []
        return sent

    def hosts_asked(self, kind: str = "A") -> list[str]:
        return [question.host for question in self.asked() if question.kind == kind]

    def assertIdle(self) -> None:
        """Nothing is waited for any more: no timer, and no answer could come."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for port in self.ports:
            self.assertEqual(port.protocol._asked, {})

    def problem(self, done: Deferred[Resolved]) -> str:
        places, problems = self.successResultOf(done)
        self.assertEqual((places, len(problems)), ([], 1))
        self.assertIdle()
        before, _, why = problems[0].partition(": ")
        self.assertEqual(before, "cannot resolve hub.example")
        return why


class ResolveTests(ResolverCase):
    def resolve(self, *hosts: str) -> Deferred[Resolved]:
        return self.resolver.resolve([(host, 5) for host in hosts or ("hub.example",)])

    def test_both_kinds(self) -> None:
        """A and AAAA are asked for at the same time, as recursive questions with unlike numbers."""
        done = self.resolve()
        first, second = self.asked()
        self.assertEqual({first.kind, second.kind}, {"A", "AAAA"})
        self.assertNotEqual(first.message.id, second.message.id)
        for question in (first, second):
            self.assertEqual((question.message.recDes, question.message.answer), (1, 0))
            self.assertEqual(question.message.queries[0].name.name, b"hub.example")
            self.assertEqual(question.server, (V4, 53))
        v4, v6 = sorted((first, second), key=lambda question: question.kind)
        v4.answer("192.0.2.7", "192.0.2.8")
        self.assertNoResult(done)
        v6.answer("2001:db8::7")
        places = [("2001:db8::7", 5), ("192.0.2.7", 5), ("192.0.2.8", 5)]
        self.assertEqual(self.successResultOf(done), Resolved(places, []))
        self.assertIdle()

    def test_numeric(self) -> None:
        """Numeric addresses are their own answer at once; those without a route come last."""
        self.routes.update({"fe80::1", "192.0.2.1", "192.0.2.2"})
        servers = [("2001:db8::1", 2), ("192.0.2.1", 1), ("192.0.2.2", 3), ("192.0.2.1", 1)]
        found = self.successResultOf(self.resolver.resolve(servers))
        self.assertEqual(found, Resolved([*servers[1:3], servers[0]], []))
        self.assertEqual(self.asked(), [])
        self.assertIdle()

    def test_several_hosts(self) -> None:
        """All hosts are asked for at once, each once; the order is that of servers and routes."""
        self.routes.update({"192.0.2.1", "192.0.2.9", "192.0.2.7"})
        servers = [("b.example", 5), ("192.0.2.1", 6), ("a.example", 7), ("a.example", 8)]
        done = self.resolver.resolve([*servers, ("none.example", 9)])
        addresses = {b"a.example": "192.0.2.9", b"b.example": "192.0.2.7", b"none.example": ""}
        questions = self.asked()
        self.assertEqual(len(questions), 6)
        for question in reversed(questions):
            address = addresses[question.message.queries[0].name.name]
            if not address:
                question.answer(rCode=dns.ENAME)
            elif question.kind == "A":
                question.answer(address)
            else:
                question.answer("2001:db8::b")
        places = [("192.0.2.7", 5), ("192.0.2.1", 6), ("192.0.2.9", 7), ("192.0.2.9", 8)]
        places += [("2001:db8::b", 5), ("2001:db8::b", 7), ("2001:db8::b", 8)]
        found = self.successResultOf(done)
        self.assertEqual(found.places, places)
        self.assertEqual(found.problems, [f"cannot resolve none.example: {V4} {NO_NAME}"])
        self.assertIdle()

    def test_silence(self) -> None:
        """Servers are asked in turn, 1.5 s each, three times; at most four of them: 18 s."""
        servers = [V4, OTHER, V6, "2001:db8::54", "192.0.2.55"]
        self.name_servers = lambda: servers
        done = self.resolve()
        for count in range(3 * 4):
            self.assertNoResult(done)
            questions = self.asked()
            self.assertEqual({question.kind for question in questions}, {"A", "AAAA"})
            self.assertEqual([question.host for question in questions], [servers[count % 4]] * 2)
            self.clock.advance(1.4375)
            self.assertEqual(self.asked(), [])
            self.clock.advance(0.0625)
        self.assertEqual(self.problem(done), ", ".join(f"{host} {SILENT}" for host in servers[:4]))
        self.assertEqual(self.clock.boottime() - 1000, 18)

    def test_late_answer(self) -> None:
        """An answer counts for as long as the name is looked up, whoever was asked after."""
        self.name_servers = lambda: [V4, OTHER]
        done = self.resolve()
        late = self.asked()
        self.clock.advance(4)
        for question in late:
            question.answer(*["192.0.2.7"] if question.kind == "A" else [])
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])
        self.assertIdle()

    def test_late_failure(self) -> None:
        """A failure that comes late makes nobody else be asked sooner."""
        self.name_servers = lambda: [V4, OTHER, V6]
        self.resolve()
        late = self.asked()
        self.clock.advance(1.5)
        self.assertEqual(self.hosts_asked(), [OTHER])
        for question in late:
            question.answer(rCode=dns.ESERVER)
        self.clock.advance(1.4375)
        self.assertEqual(self.asked(), [])
        self.clock.advance(0.0625)
        self.assertEqual(self.hosts_asked(), [V6])

    def test_failing_server(self) -> None:
        """Who fails or refuses is passed over at once, and asked again 1.5 s later, not before."""
        self.name_servers = lambda: [V4, OTHER]
        done = self.resolve()
        self.asked()[0].answer(rCode=dns.ESERVER)
        (question,) = self.asked()
        self.assertEqual((question.host, question.kind), (OTHER, "A"))
        question.answer(rCode=dns.EREFUSED)
        self.clock.advance(1.49)
        self.assertEqual(self.hosts_asked("A"), [])
        self.clock.advance(0.02)
        (again,) = [question for question in self.asked() if question.kind == "A"]
        self.assertEqual(again.host, V4)
        again.answer("192.0.2.7")
        self.clock.advance(1.1)
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])
        self.assertIdle()

    def test_failing_servers(self) -> None:
        """Servers that only ever fail are named with what they answered, after three rounds."""
        self.name_servers = lambda: [V4, OTHER]
        done = self.resolve()
        rcodes = {V4: 2, OTHER: 9}
        for count in range(3):
            questions = self.asked()
            self.assertEqual(len(questions), 2, count)
            while questions:
                questions.pop(0).answer(rCode=rcodes[V4 if len(questions) > 1 else OTHER])
                questions += self.asked()
            self.clock.advance(1.5)
        self.assertIn("answered", self.problem(done))
        self.assertLess(self.clock.boottime() - 1000, 5)

    def test_words(self) -> None:
        """Each way of not knowing has its words after the server's address."""
        table: list[tuple[dict[str, Any], str]] = [
            ({"rCode": 1}, "answered FORMERR"),
            ({"rCode": 2}, "answered SERVFAIL"),
            ({"rCode": 3}, NO_NAME),
            ({"rCode": 4}, "answered NOTIMP"),
            ({"rCode": 5}, "answered REFUSED"),
            ({"rCode": 11}, "answered 11"),
            ({}, NO_ADDRESS),
            ({"trunc": 1}, "answered more than fits"),
        ]
        for fields, words in table:
            done = self.resolve()
            for _ in range(3):
                for question in self.asked():
                    question.answer(**fields)
                self.clock.advance(1.5)
            self.assertEqual(self.problem(done), f"{V4} {words}")

    def test_unknown_name(self) -> None:
        """That there is no such name is believed at once of the only server, and of one among
        several after the others had their time once."""
        done = self.resolve()
        for question in self.asked():
            question.answer(rCode=dns.ENAME)
        self.assertEqual(self.problem(done), f"{V4} {NO_NAME}")

        self.name_servers = lambda: [V4, OTHER]
        done = self.resolve()
        for question in self.asked():
            question.answer(rCode=dns.ENAME)
        self.assertEqual(self.hosts_asked(), [OTHER])
        self.clock.advance(1.4)
        self.assertNoResult(done)
        self.clock.advance(0.2)
        self.assertEqual(self.problem(done), f"{V4} {NO_NAME}, {OTHER} {SILENT}")

    def test_other_server_knows(self) -> None:
        """A name that the first server denies is found at the second."""
        self.name_servers = lambda: [V4, OTHER]
        done = self.resolve()
        for question in self.asked():
            question.answer(rCode=dns.ENAME)
        for question in self.asked():
            question.answer("192.0.2.7" if question.kind == "A" else "2001:db8::7")
        self.assertEqual(self.successResultOf(done).places, [("2001:db8::7", 5), ("192.0.2.7", 5)])
        self.assertIdle()

    def test_one_kind_unanswered(self) -> None:
        """With IPv4 addresses at hand, silence about IPv6 is waited for 1 s, and no longer."""
        done = self.resolve()
        next(question for question in self.asked() if question.kind == "A").answer("192.0.2.7")
        self.clock.advance(0.99)
        self.assertNoResult(done)
        self.clock.advance(0.02)
        self.assertEqual(self.successResultOf(done), Resolved([("192.0.2.7", 5)], []))
        self.assertIdle()

    def test_one_kind_denied(self) -> None:
        """That there is no IPv6 address does not end the wait for an IPv4 one."""
        done = self.resolve()
        v4, v6 = sorted(self.asked(), key=lambda question: question.kind)
        v6.answer()
        self.clock.advance(1.4)
        self.assertNoResult(done)
        v4.answer("192.0.2.7")
        self.assertEqual(self.successResultOf(done), Resolved([("192.0.2.7", 5)], []))

    def test_cannot_send(self) -> None:
        """A server to which nothing can be sent is no answer; the next is asked at once."""
        for code in (errno.ENETUNREACH, errno.EPERM, errno.EAGAIN, errno.EINVAL):
            self.refusals[V4] = code
            self.name_servers = lambda: [V4, OTHER]
            done = self.resolve()
            for question in self.asked():
                self.assertEqual(question.host, OTHER)
                question.answer("192.0.2.7" if question.kind == "A" else "2001:db8::7")
            self.assertEqual(len(self.successResultOf(done).places), 2)

            self.name_servers = lambda: [V4]
            done = self.resolve()
            self.clock.advance(2.9)
            self.assertNoResult(done)
            self.clock.advance(0.2)
            self.assertEqual(self.problem(done), f"{V4} cannot be asked ({os.strerror(code)})")

    def test_sends_again(self) -> None:
        """Where nothing could be sent a moment ago, it is tried again: a link may come up."""
        self.refusals[V4] = errno.ENETUNREACH
        done = self.resolve()
        self.assertEqual(self.asked(), [])
        self.refusals.clear()
        self.clock.advance(1.6)
        for question in self.asked():
            question.answer(*["192.0.2.7"] if question.kind == "A" else [])
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])

    def test_name_servers(self) -> None:
        """What is no address is left out; none at all, and a list that cannot be had, are lines."""
        self.name_servers = lambda: ["dns.example", V4, V4, ""]
        done = self.resolve()
        self.assertEqual(self.hosts_asked(), [V4])
        self.clock.advance(5)
        self.assertEqual(self.problem(done), f"{V4} {SILENT}")
        self.name_servers = list
        self.assertEqual(self.problem(self.resolve()), "no name server is known")
        self.name_servers = mock.Mock(side_effect=OSError(errno.EACCES, "Permission denied"))
        why = "the name servers are not known: [Errno 13] Permission denied"
        self.assertEqual(self.problem(self.resolve()), why)

    def test_name_servers_now(self) -> None:
        """The name servers are those of this moment, as the network may be another."""
        for host in (V4, V6):
            self.name_servers = lambda host=host: [host]  # type: ignore[misc]
            done = self.resolve()
            questions = self.asked()
            self.assertEqual({question.host for question in questions}, {host})
            for question in questions:
                question.answer(rCode=dns.ENAME)
            self.assertEqual(self.problem(done), f"{host} {NO_NAME}")

    def test_scoped_server(self) -> None:
        """A link-local server is asked over its interface, and known without it in the answer; one
        without an interface of this machine cannot be asked."""
        self.name_servers = lambda: ["fe80::1%lo"]
        done = self.resolve()
        for question in self.asked():
            self.assertEqual(question.server, ("fe80::1", 53, 0, socket.if_nametoindex("lo")))
            question.answer(*["192.0.2.7"] if question.kind == "A" else [])
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])
        self.name_servers = lambda: ["fe80::1%nowhere0"]
        done = self.resolve()
        self.clock.advance(5)
        why = "fe80::1%nowhere0 cannot be asked (there is no interface nowhere0)"
        self.assertEqual(self.problem(done), why)

    def test_mapped_server(self) -> None:
        """An IPv4 server in IPv6's spelling is asked by IPv4."""
        self.name_servers = lambda: ["::ffff:192.0.2.53"]
        self.resolve()
        self.assertEqual({question.server for question in self.asked()}, {("192.0.2.53", 53)})

    def test_names(self) -> None:
        """Names are asked for in lower case, without the last dot, in IDNA; single labels, too."""
        table = {
            "Hub.Example.": b"hub.example",
            "_vpn.hub_1.example": b"_vpn.hub_1.example",
            "bücher.example": b"xn--bcher-kva.example",
            "hub": b"hub",
            "a" * 63 + ".example": b"a" * 63 + b".example",
        }
        for host, name in table.items():
            done = self.resolve(host)
            for question in self.asked():
                self.assertEqual(question.message.queries[0].name.name, name)
                question.answer(rCode=dns.ENAME)
            problems = self.successResultOf(done).problems
            self.assertEqual(problems, [f"cannot resolve {host}: {V4} {NO_NAME}"])
        for host in ("", ".", "a..b", "a" * 64, ".".join(["a" * 49] * 6)):
            line = f"cannot resolve {host}: that is no host name"
            self.assertEqual(self.successResultOf(self.resolve(host)), Resolved([], [line]))
        self.assertEqual(self.asked(), [])

    def test_hosts_file(self) -> None:
        """What /etc/hosts says is the answer, without asking anyone; it is read each time."""
        self.hosts.write_text("192.0.2.7 other Hub.Example\n2001:db8::7 hub.example # x\n")
        places = [("2001:db8::7", 5), ("192.0.2.7", 5)]
        self.assertEqual(self.successResultOf(self.resolve("HUB.example.")).places, places)
        self.assertEqual(self.asked(), [])
        self.hosts.unlink()
        self.assertNoResult(self.resolve())
        self.assertEqual(self.hosts_asked(), [V4])

    def test_close(self) -> None:
        """Closing answers who waits, and fires when the ports are closed; then nothing is asked."""
        done, both = self.resolve(), self.resolve("a.example", "192.0.2.1")
        self.assertEqual(len(self.asked()), 4)
        closed = self.resolver.close()
        self.assertEqual(self.problem(done), f"{V4} {SILENT}")
        self.assertEqual(self.successResultOf(both).places, [("192.0.2.1", 5)])
        self.assertNoResult(closed)
        self.assertEqual([port.open for port in self.ports], [False, False])
        self.assertTrue(all(opened.closed for opened in self.sockets))
        self.successResultOf(self.resolver.close())
        self.assertEqual(self.problem(self.resolve()), "no socket is open to ask with")

    def test_close_on_answer(self) -> None:
        """Who is told that there is no answer may close the resolver; others are told then, too,
        though their time ends at the same moment."""
        first, second = self.resolve(), self.resolve("a.example")
        first.addCallback(lambda found: [self.resolver.close(), found][1])
        self.clock.advance(5)
        self.assertEqual(self.problem(first), f"{V4} {SILENT}")
        problems = self.successResultOf(second).problems
        self.assertEqual(problems, [f"cannot resolve a.example: {V4} {SILENT}"])


class OpenTests(ResolverCase):
    def test_ports(self) -> None:
        """The ports are those of the sockets that ask; our own descriptors are closed once the
        reactor has its duplicates, the ones for routes stay."""
        self.assertEqual(self.resolver.ports, (7001, 7003))
        self.assertEqual([opened.closed for opened in self.sockets], [True, False] * 2)

    def test_without_ipv6(self) -> None:
        """A kernel without IPv6 asks by IPv4, and a server that has IPv6 alone is told so."""
        self.families = {socket.AF_INET: [7005, 7006], socket.AF_INET6: []}
        self.resolver.close()
        self.resolver.open()
        self.resolver.start()
        self.assertEqual(self.resolver.ports, (7005,))
        self.routes.add("192.0.2.1")
        self.name_servers = lambda: [V6, V4]
        done = self.resolver.resolve([("2001:db8::1", 5), ("hub.example", 5), ("192.0.2.1", 5)])
        for question in self.asked():
            self.assertEqual(question.host, V4)
            question.answer()
        found = self.successResultOf(done)
        self.assertEqual(found.places, [("192.0.2.1", 5), ("2001:db8::1", 5)])
        why = f"{V6} cannot be asked (there is no IPv6 here), {V4} {NO_ADDRESS}"
        self.assertEqual(found.problems, [f"cannot resolve hub.example: {why}"])

    def test_refused(self) -> None:
        """Without the right to mark, opening is one line, and leaves nothing open."""
        for count in range(4):
            opened: list[FakeSocket] = []

            def open_socket(
                family: int, count: int = count, opened: list[FakeSocket] = opened
            ) -> FakeSocket:
                if len(opened) == count:
                    raise OSError(errno.EPERM, "Operation not permitted")
                opened.append(FakeSocket(family, 7, set()))
                return opened[-1]

            resolver = MarkedResolver(self, list, open_socket)
            line = "^cannot open a marked socket to ask name servers with: Operation not permitted;"
            with self.assertRaisesRegex(StartError, line):
                resolver.open()
            self.assertEqual([one.closed for one in opened], [True] * count)
            self.successResultOf(resolver.close())

    def test_not_allowed_to_mark(self) -> None:
        """A socket that cannot be marked is closed again, and never used without."""
        before = descriptors()
        refusal = PermissionError(errno.EPERM, "Operation not permitted")
        place = "pyvpn.service.markedresolver.mark_socket"
        with (
            mock.patch(place, side_effect=refusal) as marking,
            self.assertRaises(PermissionError),
        ):
            open_marked_socket(socket.AF_INET)
        self.assertEqual(marking.call_args[0][1], MARK)
        self.assertEqual(descriptors(), before)


class LieTests(ResolverCase):
    """What comes must answer what was asked; each lie is followed by the truth."""

    def lie(self, tell: Callable[[Sent], None]) -> None:
        done = self.resolver.resolve([("hub.example", 5)])
        v4, v6 = sorted(self.asked(), key=lambda question: question.kind)
        v6.answer()
        tell(v4)
        self.assertNoResult(done)
        self.assertEqual(self.asked(), [])  # nor was it taken for a failure
        v4.answer("192.0.2.7")
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])
        self.assertIdle()

    def test_wrong_place(self) -> None:
        """What another address or port sends is no answer."""
        for addr in (("192.0.2.54", 53), (V4, 5353), ("::ffff:192.0.2.53", 53)):
            self.lie(lambda asked, addr=addr: asked.arrive(evil(asked), addr))  # type: ignore[misc]

    def test_wrong_number(self) -> None:
        """No other number will do."""
        for other in (1, 0x100, 0xFFFF):
            self.lie(
                lambda asked, other=other: asked.arrive(  # type: ignore[misc]
                    evil(asked, id=asked.message.id ^ other)
                )
            )

    def test_wrong_question(self) -> None:
        """The question must be the one that was asked: name, type, class, and one alone."""
        right = dns.Query(b"hub.example", dns.A)
        table: list[list[dns.Query]] = [
            [],
            [dns.Query(b"hub.example.org", dns.A)],
            [dns.Query(b"hub.example", dns.AAAA)],
            [dns.Query(b"hub.example", dns.A, dns.CH)],
            [dns.Query(b"h\xfcb.example", dns.A)],
            [right, right],
        ]
        for queries in table:
            self.lie(
                lambda asked, queries=queries: asked.arrive(  # type: ignore[misc]
                    evil(asked, queries=queries)
                )
            )

    def test_no_answer(self) -> None:
        """A question, another operation, and what cannot be parsed are no answers."""
        self.lie(lambda asked: asked.arrive(evil(asked, answer=0)))
        self.lie(lambda asked: asked.arrive(evil(asked, opCode=dns.OP_STATUS)))
        for cut in range(29):
            self.lie(
                lambda asked, cut=cut: asked.arrive(  # type: ignore[misc]
                    evil(asked).toStr()[:cut]
                )
            )
        loop = b"\xc0\x0c"
        self.lie(
            lambda asked: asked.arrive(asked.reply().toStr()[:12] + loop + b"\x00\x01\x00\x01")
        )

    def test_other_case(self) -> None:
        """Upper case in an answer is the same name."""
        done = self.resolver.resolve([("hub.example", 5)])
        for question in self.asked():
            answer = question.reply(record("HUB.example", "192.0.2.7"))
            answer.queries = [dns.Query(b"Hub.Example", question.message.queries[0].type)]
            question.arrive(answer)
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])

    def test_twice(self) -> None:
        """The second answer to a question is none."""
        done = self.resolver.resolve([("hub.example", 5)])
        v4, v6 = sorted(self.asked(), key=lambda question: question.kind)
        v4.answer("192.0.2.7")
        v4.answer("192.0.2.66")
        v6.answer()
        self.assertEqual(self.successResultOf(done).places, [("192.0.2.7", 5)])


def evil(asked: Sent, **fields: Any) -> dns.Message:
    return asked.reply(record("hub.example", "192.0.2.66"), **fields)


class NumberTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        """Numbers come from the source of randomness, 16 bits, and none is open twice."""
        draws = iter([b"\x12\x34", b"\x12\x34", b"\xff\xfe", b"\x12\x34"])

        def draw(size: int) -> bytes:
            self.assertEqual(size, 2)
            return next(draws)

        questions, written = Questions(draw), list[bytes]()
        questions.makeConnection(mock.Mock(write=lambda data, address: written.append(data)))
        forget = []
        for _ in range(2):
            forget.append(questions.ask(dns.Query(b"a", dns.A), (V4, 53), lambda message: None))
        forget[0]()
        questions.ask(dns.Query(b"a", dns.A), (V4, 53), lambda message: None)
        self.assertEqual([data[:2] for data in written], [b"\x12\x34", b"\xff\xfe", b"\x12\x34"])

    def test_port_lost(self) -> None:
        """A port that the reactor gave up is an error, and never a new one without our mark."""
        questions = Questions(os.urandom)
        questions.makeConnection(mock.Mock())
        questions.doStop()
        with mock.patch.object(reactor, "listenUDP") as listen:
            with self.assertRaisesRegex(OSError, "our socket is closed"):
                questions.ask(dns.Query(b"a", dns.A), (V4, 53), lambda message: None)
            listen.assert_not_called()


class OrderTests(SynchronousTestCase):
    def test_in_turn(self) -> None:
        """IPv6 and IPv4 take turns, IPv6 first, and what is left of one kind follows."""
        host = [("192.0.2.1", 1), ("192.0.2.2", 1), ("192.0.2.3", 1), ("::1", 1), ("::2", 1)]
        order = in_order([host], lambda address: True)
        addresses = [address for address, _ in order]
        self.assertEqual(addresses, ["::1", "192.0.2.1", "::2", "192.0.2.2", "192.0.2.3"])

    def test_routes(self) -> None:
        """What has no route comes last, in the same order; none comes twice or is lost."""
        hosts = [
            [("192.0.2.1", 1), ("::1", 1)],
            [("192.0.2.2", 2), ("192.0.2.1", 1), ("::2", 2)],
        ]
        order = in_order(hosts, lambda address: ":" not in address)
        self.assertEqual(order, [("192.0.2.1", 1), ("192.0.2.2", 2), ("::1", 1), ("::2", 2)])
        for routes in itertools.product((True, False), repeat=5):
            answers = iter(routes)
            order = in_order(hosts, lambda address, answers=answers: next(answers))  # type: ignore[misc]
            self.assertEqual(sorted(order), sorted({place for host in hosts for place in host}))


class HostsTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """Comments, aliases, case, nonsense and names that are parts of others are told apart."""
        text = (
            "# 192.0.2.1 hub\n192.0.2.2\thub.example HUB\n192.0.2.3 hub2 # hub\nhub hub\n\n"
            "192.0.2.2 hub\n  FE80::1%Eth0 hub\n999.0.2.1 hub\n192.0.2.4 #hub\n"
        )
        self.assertEqual(in_hosts(text, "hub"), ["192.0.2.2", "FE80::1%Eth0"])
        self.assertEqual(in_hosts(text, "hub2"), ["192.0.2.3"])
        self.assertEqual(in_hosts(text, "192.0.2.2"), [])
        many = "".join(f"192.0.2.{number} hub\n" for number in range(100))
        self.assertEqual(len(in_hosts(many, "hub")), 64)


# -- on the kernel --------------------------------------------------------------------------------


class Zone(common.ResolverBase):
    """What the real server knows: an alias with both kinds of addresses, and a long list."""

    def _lookup(self, name: bytes, cls: int, type: int, timeout: Any) -> Deferred[Any]:
        name = name.lower()
        records = {
            (b"hub.example", dns.A): [
                record(name, "gate.example"),
                record("gate.example", "192.0.2.7"),
            ],
            (b"hub.example", dns.AAAA): [record(name, "2001:db8::7", ttl=0x7FFFFFFF)],
            (b"long.example", dns.A): [record(name, f"192.0.2.{last}") for last in range(1, 101)],
            (b"long.example", dns.AAAA): [],
        }
        if (name, type) in records:
            return succeed((records[name, type], [], []))
        return fail(error.DomainError(name))


def open_unmarked(family: int) -> socket.socket:
    """For tests of all but the mark, which takes privilege."""
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    return opened


class RealServerTests(TestCase):
    """With the reactor and a server of twisted.names on loopback."""

    def listen(self, interface: str = "127.0.0.1") -> int:
        factory = server.DNSServerFactory(clients=[Zone()])
        port = reactor.listenUDP(0, dns.DNSDatagramProtocol(factory), interface=interface)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def resolver(self, servers: Sequence[str], port: int) -> MarkedResolver:
        resolver = MarkedResolver(
            reactor, lambda: servers, open_unmarked, hosts=os.devnull, port=port
        )
        self.addCleanup(resolver.close)
        resolver.open()
        resolver.start()
        return resolver

    def test_answers(self) -> Deferred[None]:
        """Aliases, both kinds, an answer cut at 512 bytes, and a name that there is not."""

        async def ask() -> None:
            resolver = self.resolver(["127.0.0.1"], self.listen())
            found = await resolver.resolve([("Hub.Example.", 5), ("none.example", 5)])
            self.assertEqual(set(found.places), {("2001:db8::7", 5), ("192.0.2.7", 5)})
            line = f"cannot resolve none.example: 127.0.0.1 {NO_NAME}"
            self.assertEqual(found.problems, [line])
            found = await resolver.resolve([("long.example", 5)])
            # 12 bytes of header, 18 of question, 16 for each address.
            self.assertEqual((len(found.places), found.problems), (30, []))
            self.assertLess(set(found.places), {(f"192.0.2.{last}", 5) for last in range(1, 101)})

        return Deferred.fromCoroutine(ask())

    def test_by_ipv6(self) -> Deferred[None]:
        """A server that is asked by IPv6 answers as well."""
        if not Path("/proc/net/if_inet6").exists():
            raise SkipTest("there is no IPv6 here")

        async def ask() -> None:
            resolver = self.resolver(["::1"], self.listen("::1"))
            found = await resolver.resolve([("hub.example", 5)])
            self.assertEqual(len(found.places), 2)

        return Deferred.fromCoroutine(ask())

    def test_dead_server(self) -> Deferred[None]:
        """Behind a server that does not run, the next one answers after its time."""

        async def ask() -> None:
            resolver = self.resolver(["127.0.0.2", "127.0.0.1"], self.listen())
            found = await resolver.resolve([("hub.example", 5)])
            self.assertEqual(len(found.places), 2)

        return Deferred.fromCoroutine(ask())

    def test_close(self) -> Deferred[None]:
        """Closing while a question is open leaves no descriptor behind."""

        async def ask() -> None:
            before = descriptors()
            resolver = self.resolver(["127.0.0.1"], 9)
            done = resolver.resolve([("hub.example", 5)])
            self.assertGreater(descriptors(), before)
            await resolver.close()
            self.assertEqual((await done).places, [])
            self.assertEqual(descriptors(), before)

        return Deferred.fromCoroutine(ask())


class NamespaceTests(TestCase):
    """In a namespace of our own, as root."""

    def setUp(self) -> None:
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)

    def test_mark(self) -> Deferred[None]:
        """The sockets carry the mark, those that the reactor reads from as well, and the ports
        told are theirs; one that we did not mark has none."""

        async def look() -> None:
            listening: list[Any] = []

            class Noting:
                def adoptDatagramPort(self, *args: Any, **kwargs: Any) -> Any:
                    listening.append(reactor.adoptDatagramPort(*args, **kwargs))  # type: ignore[attr-defined]
                    return listening[-1]

            opened: list[socket.socket] = []

            def noting(family: int) -> socket.socket:
                opened.append(open_marked_socket(family))
                return opened[-1]

            resolver = MarkedResolver(Noting(), list, noting)
            self.addCleanup(resolver.close)
            with self.namespace.inside():
                resolver.open()
                self.assertEqual([mark(one) for one in opened], [MARK] * 4)
                resolver.start()
            self.assertEqual([mark(port.socket) for port in listening], [MARK] * 2)
            ports = tuple(port.getHost().port for port in listening)
            self.assertEqual(resolver.ports, ports)
            with open_unmarked(socket.AF_INET) as plain:
                self.assertEqual(mark(plain), 0)
            await resolver.close()

        return Deferred.fromCoroutine(look())

    def test_routes(self) -> None:
        """An address has a route if what is marked has one, whatever was asked for before, and
        also when an address of this machine has gone."""
        self.namespace.ip("link add name one type veth peer name two")
        self.namespace.ip("address add 192.0.2.1/24 dev one")
        self.namespace.ip("link set one up")
        self.namespace.ip("link set two up")
        self.namespace.ip(f"rule add not fwmark {MARK} lookup 77 priority 100")
        self.namespace.ip("route add unreachable default table 77")
        with self.namespace.inside():
            probes: dict[int, socket.socket] = {socket.AF_INET: open_marked_socket(socket.AF_INET)}
            plain: dict[int, socket.socket] = {socket.AF_INET: open_unmarked(socket.AF_INET)}
        for probe in (*probes.values(), *plain.values()):
            self.addCleanup(probe.close)

        def look(address: str) -> bool:
            with self.namespace.inside():
                return routed(probes, address)

        self.assertTrue(look("192.0.2.9"))
        self.assertFalse(routed(plain, "192.0.2.9"))
        self.assertFalse(look("198.51.100.9"))
        self.assertFalse(look("2001:db8::9"))  # no socket of that kind
        self.assertFalse(look("fe80::1%nowhere0"))
        self.namespace.ip("address add 198.51.100.1/24 dev one")
        self.namespace.ip("address del 192.0.2.1/24 dev one")
        self.assertTrue(look("198.51.100.9"))
        self.assertFalse(look("192.0.2.9"))


def descriptors() -> set[str]:
    """The sockets and timers that this process has open."""
    paths = (Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    kinds = ((path.name, os.readlink(path)) for path in paths if path.is_symlink())
    return {f"{number} {kind}" for number, kind in kinds if "socket" in kind or "timer" in kind}


def mark(opened: socket.socket) -> int:
    return opened.getsockopt(socket.SOL_SOCKET, SO_MARK)
