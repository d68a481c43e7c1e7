"""The control socket: whatever comes in is answered with one line, or hung up on."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import fail
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import ConfigError, StoreError
from pyvpn.service.controlsocket import _Conversation

NO_REQUEST = {"ok": False, "error": "not a request", "kind": "other"}


class ConversationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Any = {"done": 1}
        self.transport = StringTransport()
        self.conversation = _Conversation(self.run_command)
        self.conversation.makeConnection(self.transport)

    def run_command(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def say(self, data: bytes) -> list[Any]:
        """What is answered, line by line."""
        self.transport.clear()
        self.conversation.dataReceived(data)
        return [json.loads(line) for line in self.transport.value().splitlines()]

    def test_bad_requests(self) -> None:
        """A line that is no request is answered as such, runs nothing, and the next one works."""
        table = [
            b"",
            b"status",
            b"{",
            b"null",
            b"7",
            b'"status"',
            b"[]",
            b"{}",
            b'{"command": 7}',
            b'{"command": null, "arguments": {}}',
            b'{"command": "status", "arguments": []}',
            b'{"command": "status", "arguments": "x"}',
            b'{"command": ["status"]}',
            b"\xff\xfe",
            b"\0" * 100,
            b"[" * 60_000,  # regression: a RecursionError, which ended the connection unanswered
        ]
        for line in table:
            self.assertEqual(self.say(line + b"\n"), [NO_REQUEST], line[:40])
        self.assertEqual(self.asked, [])
        self.assertEqual(
            self.say(b'{"command": "status"}\n'), [{"ok": True, "result": {"done": 1}}]
        )
        self.assertEqual(self.asked, [("status", {})])

    def test_endless_line(self) -> None:
        """A line that does not end is not collected for ever: at 64 KiB the connection goes."""
        self.assertEqual(self.say(b"x" * 65_536), [])
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(self.say(b"x" * 2), [])
        self.assertTrue(self.transport.disconnecting)

    def test_failures(self) -> None:
        """What a command raises, at once or later, is one answer of its kind."""
        table: list[tuple[Exception, str, str]] = [
            (ConfigError("no user 'pa'"), "no user 'pa'", "config"),
            (StoreError("disk full"), "disk full", "store"),
            (ValueError("oops"), "oops", "other"),
            (ValueError(), "ValueError()", "other"),
        ]
        for error, text, kind in table:
            for answer in (error, fail(error)):
                self.answer = answer
                expected = {"ok": False, "error": text, "kind": kind}
                self.assertEqual(self.say(b'{"command": "x"}\n'), [expected])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 4)
