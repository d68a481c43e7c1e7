"""The laboratory of these scenes: an internet with names in it, and homes behind routers.

::

      hub 198.51.100.2     www 203.0.113.2      roamer 198.18.0.2     router 192.0.2.2
      2001:db8:1::2        2001:db8:2::2        2001:db8:4::2         2001:db8:3::2
      vpn.example.org      www.example.org           |                   | NAT, DHCP, DNS, RA
         |                 DNS: 203.0.113.53         |                   |
      ===+====================+======================+===================+====  inet
                                                                         |
              192.168.77.1, 2001:db8:77::1                               |
      =====+==========================+================================+==  bridge "lan"
           | laptop                   | neighbour: .66
           | by DHCP and RA           | fixed: 2001:db8:77::66

The router's DNS asks the internet's. Every host has /etc, /run and a name of its own
(machine.py). A host's cable to the LAN ends at the router in an interface that is called as the
host is: that is where what it sends is recorded.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.netns.lab import INET, Host, Lab, LabError, Process
from tests.scenes.hosts import program
from tests.scenes.networks import machine, web

HUB = Host("hub", "198.51.100.2", "198.51.100.1", "2001:db8:1::2", "2001:db8:1::1", "10.10.0.1")
WWW = Host("www", "203.0.113.2", "203.0.113.1", "2001:db8:2::2", "2001:db8:2::1", "")
ROUTER = Host("router", "192.0.2.2", "192.0.2.1", "2001:db8:3::2", "2001:db8:3::1", "")
ROAMER = Host("roamer", "198.18.0.2", "198.18.0.1", "2001:db8:4::2", "2001:db8:4::1", "")
#: The second uplink of a hub that has two; nothing is at it unless a scene puts it there.
SECOND = Host("second", "198.19.0.2", "198.19.0.1", "2001:db8:5::2", "2001:db8:5::1", "")

DNS = "203.0.113.53"
VPN_NAME, WWW_NAME = "vpn.example.org", "www.example.org"
PRINTER_NAME = "printer.example.org"
TWO_NAME = "two.example.org"
HOOK = Path(__file__).with_name("dhcp.sh")


class Subnet(NamedTuple):
    """What a router hands out."""

    ipv4: str
    ipv6: str

    @property
    def gateway4(self) -> str:
        return f"{self.ipv4}.1"

    @property
    def gateway6(self) -> str:
        return f"{self.ipv6}::1"


HOME = Subnet("192.168.77", "2001:db8:77")
ELSEWHERE = Subnet("192.168.88", "2001:db8:88")


class NetworksLab(Lab):
    """The picture above, built on entry and removed on exit.

    :ivar lan: the hosts at the router's bridge.
    """

    def __init__(self, venv: Path | None = None) -> None:
        super().__init__(venv)
        self.hosts: Mapping[str, Host] = {each.name: each for each in (HUB, WWW, ROUTER, ROAMER)}
        self.lan = ("laptop", "neighbour")
        self._holders: dict[str, Process] = {}
        self._indexes = itertools.count(201)
        self._dnsmasq: Process | None = None

    def __enter__(self) -> NetworksLab:
        super().__enter__()
        return self

    # -- what scenes do to it -----------------------------------------------------------------

    def ip(self, host: str, *lines: str) -> None:
        """Change a host's network in one go."""
        self.run(host, ["ip", "-batch", "-"], stdin="\n".join(lines), check=True)

    def home(self, host: str) -> Path:
        """The host's directory."""
        return self._home(host)

    def directories(self, host: str, *options: str) -> list[str]:
        """``--state-dir``, ``--run-dir`` and the like with the host's own directories."""
        return self._directories(host, *options)

    def etc(self, host: str, file: str) -> Path:
        """A file of the host's own /etc, as it is seen from here."""
        return self._home(host) / "etc" / file

    def name_servers(self, host: str, *addresses: str) -> None:
        """Write the host's resolv.conf."""
        lines = "".join(f"nameserver {address}\n" for address in addresses)
        self.etc(host, "resolv.conf").write_text(lines)

    def plug(self, namespace: str, interface: str, other: str, interface_there: str) -> None:
        """A cable between two hosts, up at both ends."""
        one, two = self.namespace(namespace), self.namespace(other)
        self._ip(
            *("-n", one, "link", "add", interface, "index", str(next(self._indexes))),
            *("type", "veth", "peer", "name", interface_there, "netns", two),
        )
        self._ip("-n", one, "link", "set", interface, "up")
        self._ip("-n", two, "link", "set", interface_there, "up")

    def serve(self, subnet: Subnet, *options: str) -> Process:
        """Let the router hand out a subnet by DHCP and RA and answer DNS there, in place of what
        it handed out before; `options` are dnsmasq's."""
        if self._dnsmasq is not None:
            self._dnsmasq.stop()
        router = self.namespace("router")
        # It keeps those of before, as the neighbour does.
        for address in (f"{subnet.gateway4}/24", f"{subnet.gateway6}/64"):
            self._ip("-n", router, "address", "replace", address, "dev", "lan")
        via = ["via", ROUTER.ipv6]
        self._ip(
            *("-n", self.namespace(INET), "-6", "route", "replace"), f"{subnet.ipv6}::/64", *via
        )
        self._dnsmasq = self.dnsmasq(
            "router",
            subnet.gateway4,
            f"--server={DNS}",
            "--interface=lan",
            "--dhcp-authoritative",
            "--no-ping",
            f"--dhcp-leasefile={self._home('router') / 'leases'}",
            f"--dhcp-range={subnet.ipv4}.100,{subnet.ipv4}.150,1h",
            "--enable-ra",
            f"--dhcp-range={subnet.ipv6}::,ra-only,64,2h",
            *options,
        )
        return self._dnsmasq

    def dnsmasq(self, host: str, address: str, *options: str) -> Process:
        """Start a dnsmasq that has read no file of the machine's; it logs questions."""
        argv = [program("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
        argv += ["--user=root", "--group=root", "--log-facility=-", "--log-queries", "--no-hosts"]
        argv += ["--no-resolv", "--bind-interfaces", f"--listen-address={address}"]
        process = self.spawn(host, [*argv, "--except-interface=lo", *options], "dnsmasq")
        process.wait_for_text(r"started, version")
        return process

    def lease(self, host: str) -> Process:
        """Start a DHCP client on a host's eth0; it has a lease when this returns."""
        argv = [
            program("busybox"),
            "udhcpc",
            "-f",
            "-i",
            "eth0",
            "-s",
            str(HOOK),
            "-t",
            "20",
            "-T",
            "1",
        ]
        process = self.spawn(host, [*argv, "-A", "1", "-O", "staticroutes", "-O", "121"], "udhcpc")
        process.wait_for_text("configured")
        self.wait_until(lambda: self.announced(host), f"a router advertisement to {host}")
        return process

    def move(self, host: str, subnet: Subnet, *options: str) -> None:
        """Take a host to another place: its cable is out for a moment, and then the router hands
        out another subnet."""
        for process in self.processes:
            if process.host == host and "udhcpc" in process.argv and process.running:
                process.stop()
        self._ip("-n", self.namespace(host), "link", "set", "eth0", "down")
        self.serve(subnet, *options)
        self._ip("-n", self.namespace(host), "link", "set", "eth0", "up")
        self.lease(host)

    def announced(self, host: str) -> bool:
        """Whether a host has an IPv6 way to the internet that somebody announced."""
        argv = ["ip", "-6", "route", "show", "default", "proto", "ra"]
        return bool(self.run(host, argv, check=True).stdout)

    def web(self, host: str, name: str) -> Process:
        """A web server on port 80, IPv4 and IPv6, that says `name` and whom it sees (web.py)."""
        process = self.spawn(host, [sys.executable, web.__file__, name], "web")
        return self._listening(process, 80, 10)

    def captured(self, process: Process) -> bytes:
        """As the other laboratory's, where something goes on as a recording begins: of that the
        kernel counts frames which no recording has. So all is written when nothing comes any more
        for as long as tcpdump may leave a frame unread, a second."""
        told = r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped"
        since, last = time.monotonic(), ""

        def caught_up() -> bool:
            nonlocal since, last
            process.popen.send_signal(signal.SIGUSR1)
            lines = re.findall(told, process.text())
            captured, received, _ = lines[-1] if lines else ("", "-", "")
            if captured != last:
                since, last = time.monotonic(), captured
            return captured == received or (bool(lines) and time.monotonic() - since > 3)

        process.wait_until(caught_up, "all packets written", 30)
        process.stop(signal.SIGINT)
        dropped = re.search(r"(\d+) packets? dropped by kernel$", process.text().strip())
        if dropped is None or int(dropped[1]):
            raise LabError(f"{process} left packets out: {process.text()[-300:]!r}")
        return Path(process.argv[-1]).read_bytes()

    def mac(self, host: str, interface: str = "eth0") -> str:
        """An interface's link address."""
        shown = self.run(host, ["ip", "-json", "link", "show", "dev", interface], check=True)
        return str(json.loads(shown.stdout)[0]["address"])

    def link_local(self, host: str, interface: str = "eth0") -> str:
        """An interface's link-local address."""
        argv = ["ip", "-json", "-6", "address", "show", "dev", interface, "scope", "link"]
        shown = self.run(host, argv, check=True)
        # Addresses of other scopes are there as well, as empty entries.
        (found,) = filter(None, json.loads(shown.stdout)[0]["addr_info"])
        return str(found["local"])

    def way(self, host: str, address: str) -> str:
        """What ``ip route get`` says."""
        return self.run(host, ["ip", "route", "get", address], check=True).stdout

    # -- inside -------------------------------------------------------------------------------

    def _build(self) -> None:
        super()._build()
        for name in self.lan:
            self._make_host(name)
        for name in (*self.hosts, *self.lan):
            self._hold(name)
        self._ip("-n", self.namespace("www"), "address", "add", f"{DNS}/24", "dev", "eth0")
        for name in ("hub", "roamer", "www"):
            self.name_servers(name, DNS)
        self._build_home()
        records = ((WWW_NAME, WWW), (VPN_NAME, HUB), (TWO_NAME, HUB), (TWO_NAME, SECOND))
        self.dnsmasq(
            "www",
            DNS,
            "--local=/#/",
            *(f"--host-record={name},{at.ipv4},{at.ipv6}" for name, at in records),
            f"--host-record={PRINTER_NAME},{HOME.ipv4}.66",
        )
        self.web("www", WWW_NAME)

    def _build_home(self) -> None:
        router = self.namespace("router")
        self._ip("-n", router, "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
        self._ip("-n", router, "link", "set", "lan", "up")
        for name in self.lan:
            self.plug("router", name, name, "eth0")
            self._ip("-n", router, "link", "set", name, "master", "lan")
        forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        self.run("router", ["sysctl", "-qw", *forward], check=True)
        # What passes the bridge alone is no business of the router's rules, whatever kernel it is.
        bridged = "for rule in /proc/sys/net/bridge/bridge-nf-call-ip*; do echo 0 >$rule; done"
        self.run("router", ["sh", "-c", bridged])
        self.run("router", ["nft", "-f", "-"], stdin=ROUTER_RULES, check=True)
        self.run("neighbour", ["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"], check=True)
        fixed = (f"{HOME.ipv4}.66/24", f"{ELSEWHERE.ipv4}.66/24", f"{HOME.ipv6}::66/64")
        lines = [f"address add {address} dev eth0" for address in fixed]
        lines += [f"route add default via {way}" for way in (HOME.gateway4, HOME.gateway6)]
        self.ip("neighbour", *lines)
        self.name_servers("neighbour", HOME.gateway4)

    def _hold(self, name: str) -> None:
        """Give a host /etc, /run and a name of its own."""
        argv = machine.holder(name, self._home(name), {"resolv.conf": ""})
        holder = self.spawn(name, argv, "holder")
        holder.wait_for_text("ready")
        self._holders[name] = holder

    def _enter(self, host: str, argv: Sequence[str | Path]) -> list[str]:
        holder = self._holders.get(host)
        if holder is None:
            return super()._enter(host, argv)
        words = [str(word) for word in argv]
        self._echo(f"[{host}] {shlex.join(words)}")
        return [*machine.inside(holder.pid, self._home(host)), *words]


#: As a router for the home does it: addresses are translated, and nobody is let in.
ROUTER_RULES = """
table inet home {
    chain out {
        type nat hook postrouting priority srcnat
        oifname eth0 meta nfproto ipv4 masquerade
    }
    chain through {
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        iifname lan accept
        meta l4proto ipv6-icmp accept
    }
}
"""

__all__ = ["ELSEWHERE", "HOME", "LabError", "NetworksLab", "Subnet"]
