"""Every reason for which a core drops something can be provoked, and is counted under its name."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.testing.simulation import Node
from tests.core.provocations import CLIENT, SERVER, SPECIAL
from tests.core.scene import Provocation, Scene, core_sources, reasons_in
from tests.core.stockprovocations import STOCK

#: The counts that come with an answer: its size in bytes. Of a new path the MTU is asked.
ANSWERED = {"cookie_demanded": [64], "path_moved": [1416 + 4 + 32]}


class EveryReason(SynchronousTestCase):
    def provoke(self, reason: str, provocation: Provocation, *, hub: bool) -> None:
        scene = Scene()
        node: Node = scene.hub if hub else scene.client
        counters = node.core.counters
        before = counters[reason]
        provocation(scene)
        self.assertEqual(counters[reason], before + 1, f"{reason}: {dict(counters)}")
        answers = [datagram for datagram in scene.sent() if datagram.source == node.endpoint]
        sizes = [len(datagram.payload) for datagram in answers]
        self.assertEqual(sizes, ANSWERED.get(reason, []), reason)

    def test_hub(self) -> None:
        """The hub counts each of its reasons, once, and answers none but those in ANSWERED."""
        for reason, provocation in SERVER.items():
            self.provoke(reason, provocation, hub=True)

    def test_stock_peers(self) -> None:
        """So it does with what has to do with stock WireGuard peers."""
        for reason, provocation in STOCK.items():
            self.provoke(reason, provocation, hub=True)

    def test_client(self) -> None:
        """The client counts each of its reasons, once, and answers none of them."""
        for reason, provocation in CLIENT.items():
            self.provoke(reason, provocation, hub=False)

    def test_others(self) -> None:
        """So do those that no single datagram provokes."""
        for reason, provocation in SPECIAL.items():
            self.provoke(reason, provocation, hub=True)

    def test_none_is_missing(self) -> None:
        """Every reason that stands in the source is provoked above, and no other."""
        self.assertEqual(set(reasons_in(core_sources())), {*SERVER, *STOCK, *CLIENT, *SPECIAL})

    def test_a_new_one_is_noticed(self) -> None:
        """Control: a reason planted in a source is found, however it is written."""
        planted = {
            "new": 'NAME: Final = "by_constant"\n'
            'def f(self, error):\n    raise RemoteProtocolError("by_text")\n'
            "    raise errors.RemoteProtocolError(NAME)\n"
            '    self.counters["by_index"] += 1\n'
            "    self.counters[error.reason] += 1\n"
            '    raise RemoteProtocolError(f"by_{error}")\n'
        }
        found = set(reasons_in(planted))
        self.assertEqual(found, {"by_constant", "by_text", "by_index", "f'by_{error}'"})
