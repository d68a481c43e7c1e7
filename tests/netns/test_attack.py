"""A flood of strangers and forged logins on a real hub: who is served stays served."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.netns import attack
from tests.netns.lab import built_for


class AttackTests(SynchronousTestCase):
    def test_flood(self) -> None:
        """Under 5,000 strangers and 2,000 forged logins a second an established client keeps 80 %
        of its goodput, and a new one is in within 10 s; the hub shows what it did against it."""
        lab = built_for(self)
        found = attack.measure(lab, rounds=1, seconds=2.0, megabits=20)
        self.assertGreater(found.quiet, 10)
        self.assertGreaterEqual(found.share, 80, found)
        self.assertLessEqual(found.login, 10, found)
        # The control: there was a flood.
        self.assertGreater(found.strangers, 0.5 * attack.STRANGERS, found)
        self.assertGreater(found.logins, 0.5 * attack.LOGINS, found)
        counters = json.loads(lab.pyvpn("hub", "status", "--json").stdout)["server"]["counters"]
        for name in ("under_load", "cookie_demanded", "mac1_invalid", "handshake_decrypt"):
            self.assertGreater(counters[name], 0, name)
