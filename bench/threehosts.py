"""The laboratory of the comparison: a hub and two clients, each on a cable of its own.

::

      a                        hub                        c
      | eth0             to-a |   | to-c             eth0 |
      | 192.0.2.2     192.0.2.1   198.51.100.1  198.51.100.2
      | 2001:db8:1::2      ::1 |   | 2001:db8:2::1     ::2 |
      +=======================+   +======================+

Nothing stands between a client and the hub: one veth, MTU 1500, with the kernel's defaults. No host
has a default route: what is sent to an address inside goes through the VPN or nowhere. Every system
gets such a laboratory of its own, so that none finds what another has left.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from tests.netns.lab import Host, Lab, LabError, Process

A, HUB, C = "a", "hub", "c"
HOSTS = (
    Host(HUB, "192.0.2.1", "", "2001:db8:1::1", "", "10.10.0.1"),
    Host(A, "192.0.2.2", "192.0.2.1", "2001:db8:1::2", "2001:db8:1::1", "10.10.0.2"),
    Host(C, "198.51.100.2", "198.51.100.1", "2001:db8:2::2", "2001:db8:2::1", "10.10.0.3"),
)


class Loss(NamedTuple):
    """What the lossy cable counted in one direction."""

    seen: int
    dropped: int
    oversized: int


class ThreeHosts(Lab):
    """The picture above, built on entry and removed on exit."""

    def __init__(self, echo: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(echo=echo)
        self.hosts = {host.name: host for host in HOSTS}

    def hub_from(self, client: str, version: int = 4) -> str:
        """The hub's outer address on the client's cable."""
        host = self.hosts[client]
        return host.gateway4 if version == 4 else host.gateway6

    def inner(self, host: str, interface: str, version: int = 4) -> str:
        """The host's address inside the VPN."""
        kind = IPv4Address if version == 4 else IPv6Address
        for address in self.addresses(host, interface):
            if isinstance(address, kind):
                return str(address)
        raise LabError(f"{host}'s {interface} has no IPv{version} address")

    @contextmanager
    def losing(self, per_mille: int) -> Iterator[None]:
        """Drop so many of 1,000 datagrams at random on the cable between a and the hub, both
        ways. A :class:`LabError` at the end if that is not what was done.

        A veth passes UDP super-packets on whole, and a rule would drop all their datagrams at
        once: while this lasts, both ends cut them first. The counters tell whether they did.
        """
        ends = ((A, "eth0"), (HUB, cable(A)))
        for host, interface in ends:
            self._inside(host, ["ethtool", "-K", interface, "tx-udp-segmentation", "off"])
            rules = (
                "table inet loss {\n"
                "  counter seen {}\n  counter oversized {}\n  counter dropped {}\n"
                "  chain wire {\n    type filter hook prerouting priority -300;\n"
                f'    iifname != "{interface}" return\n    meta l4proto != udp return\n'
                "    counter name seen\n    meta length > 1500 counter name oversized\n"
                f"    numgen random mod 1000 < {per_mille} counter name dropped drop\n  }}\n}}\n"
            )
            self._inside(host, ["nft", "-f", "-"], stdin=rules)
        try:
            yield
            for host, _ in ends:
                self._check_loss(host, per_mille)
        finally:
            for host, interface in ends:
                self.run(host, ["nft", "delete", "table", "inet", "loss"])
                self.run(host, ["ethtool", "-K", interface, "tx-udp-segmentation", "on"])

    def _check_loss(self, host: str, per_mille: int) -> None:
        counts = self.loss_counted(host)
        if not counts.seen:
            raise LabError(f"no datagram came by the rules on {host}")
        if counts.oversized:
            raise LabError(f"{counts.oversized} super-packets came by the rules on {host}, uncut")
        expected = counts.seen * per_mille / 1000
        # Six standard deviations of a binomial count, and some for the very small ones.
        if abs(counts.dropped - expected) > 6 * expected**0.5 + 3:
            raise LabError(f"{counts.dropped} of {counts.seen} datagrams were dropped on {host}")

    def loss_counted(self, host: str) -> Loss:
        """What :meth:`losing` has counted on the host so far."""
        listed = self._inside(host, ["nft", "-j", "list", "counters", "table", "inet", "loss"])
        found = {}
        for entry in json.loads(listed.stdout)["nftables"]:
            if "counter" in entry:
                found[entry["counter"]["name"]] = entry["counter"]["packets"]
        return Loss(found["seen"], found["dropped"], found["oversized"])

    def listening(self, host: str, argv: list[str], port: int) -> Process:
        """Start a program and wait until it listens on the TCP port."""
        return self._listening(self.spawn(host, argv), port, 10.0)

    def _build(self) -> None:
        self._undo.callback(self._end_watcher)
        self._start_watcher()
        directory = tempfile.mkdtemp(prefix=f"{self._prefix}-")
        self._undo.callback(shutil.rmtree, directory, ignore_errors=True)
        self._directory = Path(directory)
        for name in self.hosts:
            self._make_host(name)
        for index, name in enumerate((A, C), start=101):
            self._join_hub(self.hosts[name], index)

    def _join_hub(self, host: Host, index: int) -> None:
        """Lay the cable between a client and the hub.

        :param index: of the hub's end, other than the client's: ends of one number look like no
            pair to the kernel, which then takes a second to call the link ready for IPv6.
        """
        hub, own = self.namespace(HUB), self.namespace(host.name)
        self._ip(
            *("-n", hub, "link", "add", cable(host.name), "index", str(index), "type", "veth"),
            *("peer", "name", "eth0", "netns", own),
        )
        for namespace, interface, ipv4, ipv6 in (
            (hub, cable(host.name), host.gateway4, host.gateway6),
            (own, "eth0", host.ipv4, host.ipv6),
        ):
            self._ip("-n", namespace, "address", "add", f"{ipv4}/24", "dev", interface)
            self._ip("-n", namespace, "address", "add", f"{ipv6}/64", "dev", interface)
            self._ip("-n", namespace, "link", "set", interface, "up")


def cable(client: str) -> str:
    """The hub's interface towards a client."""
    return f"to-{client}"
