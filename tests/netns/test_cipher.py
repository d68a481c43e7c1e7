"""Which cipher real hubs and clients agree on, and what they tell of it."""

from __future__ import annotations

import json
import signal
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.netns.lab import built_for
from tests.netns.test_life import PASSWORDS, restart

AES, CHACHA = "AES-256-GCM", "ChaCha20-Poly1305"


class CipherTests(SynchronousTestCase):
    """Kiwi pins AES-256-GCM, Pa ChaCha20-Poly1305."""

    def setUp(self) -> None:
        self.lab = built_for(self)

    def status(self, host: str) -> Any:
        (answer,) = json.loads(self.lab.pyvpn(host, "status", "--json").stdout).values()
        return answer

    def ciphers(self) -> dict[str, str]:
        return {one["user"]: one["cipher"] for one in self.status("hub")["sessions"]}

    def test_pinned(self) -> None:
        """Each gets what it pins from a hub that grants AES, and both ends tell the same; when the
        hub grants it no more, Kiwi ends with a line that says so, and Pa goes on."""
        hub = self.lab.start_hub(PASSWORDS, "--cipher", "aes-256-gcm", "--relay")
        wanted = {"kiwi": AES, "pa": CHACHA}
        clients = {}
        for host, cipher in wanted.items():
            self.lab.join(host)
            pin = ("--cipher", cipher.lower())
            clients[host] = self.lab.start_client(host, PASSWORDS[host], *pin)
        self.assertEqual(self.ciphers(), wanted)
        for host, cipher in wanted.items():
            answer = self.status(host)
            self.assertEqual(answer["cipher"], cipher)
            self.assertGreater(answer["rx_packets"], 0)
            self.assertGreaterEqual(answer["path_mtu"], 1280)
        told = self.status("hub")
        for ports, names in (("tun", {"csum", "tso", "uso"}), ("udp", {"gso", "gro"})):
            self.assertEqual(set(told[f"{ports}_offloads"]), names)
        self.assertEqual(self.lab.ping("kiwi", "10.10.0.3").returncode, 0)

        hub.process.stop()
        restart(self.lab, hub, service_options=("--cipher", "chacha20-poly1305"))
        self.assertEqual(clients["kiwi"].wait(20), 1)
        self.assertIn("the hub does not grant AES-256-GCM, which", clients["kiwi"].text())
        self.lab.wait_answer("pa", "10.10.0.1", 12)
        self.assertEqual(self.ciphers(), {"pa": CHACHA})
        # The control: without the pin Kiwi takes what there is.
        self.lab.start_client("kiwi", PASSWORDS["kiwi"])
        self.assertEqual(self.ciphers(), {"kiwi": CHACHA, "pa": CHACHA})
        self.assertEqual(clients["pa"].stop(), -signal.SIGTERM)
