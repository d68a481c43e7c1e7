"""What join_all makes of whole packets, written to a real TUN: out come the packets that went in.

As ``test_kernel_segments.py``: the kernel forwards to a TUN without offloads, so it has to cut.
"""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import coalesce
from tests.core import segmentmodel as model
from tests.core.test_coalesce import equal, padded
from tests.linux import test_kernel_segments


class Joined(SynchronousTestCase):
    setUp = test_kernel_segments.Kernel.setUp
    write = test_kernel_segments.Kernel.write
    read = test_kernel_segments.Kernel.read
    flows = test_kernel_segments.Kernel.flows

    def test_joined(self) -> None:
        """A bulk goes in as one, and leaves packet by packet as it came, damaged ones as well."""
        for seed in range(15):
            random = Random(seed)
            for flow, payload, size in self.flows(random):
                packets = model.segments_of(flow.packet(payload), size)
                runs, _ = coalesce.join_all(list(map(padded, packets)))
                if not flow.flags & model.CWR:
                    self.assertEqual(len(runs), 1)
                # What is damaged in its payload a router forwards all the same.
                damaged = random.randrange(len(packets))
                packets[damaged] = packets[damaged][:-1] + bytes((packets[damaged][-1] ^ 1,))
                runs, others = coalesce.join_all(list(map(padded, packets)))
                self.assertEqual(others, [])
                got: list[bytes] = []
                for run in runs:
                    self.write(run.frame)
                    got += self.read(run.packets)
                right = list(map(test_kernel_segments.hop, packets))
                self.assertEqual(len(got), len(right), f"{flow}, {size}, seed {seed}")
                self.assertTrue(all(map(equal, got, right)), f"{flow}, {size}, seed {seed}")
