"""A Linux of text: interfaces, addresses, routes, rules, nftables and sysctls, without a kernel.

:class:`FakeLinux` is a :class:`pyvpn.linux.system.System` that knows the commands which the
privileged child gives, and those habits of the kernel that its logic must live with: what goes
together with an address, a link or an MTU, and which sysctls follow another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from typing import Any

from attrs import Factory, define

from pyvpn.linux.ledger import PROC_SYS
from pyvpn.linux.system import Completed, System
from pyvpn.testing.nft import FakeNFT
from pyvpn.testing.routing import FakeRoute, FakeRouting, FakeRule, KernelSaysNo

GSO_MAX_SIZE = 65536
"""linux/netdevice.h: what an interface has of itself."""

_SHOWN = {
    "ipv4": ("accept_redirects", "forwarding", "send_redirects", "src_valid_mark"),
    "ipv6": ("accept_ra", "forwarding", "addr_gen_mode"),
}


def render(system: System) -> str:
    """The network settings of a :class:`System` as text, a line each: to compare, and to read.

    Link-local addresses are left out, since the kernel makes them at times of its own.
    """
    lines = []
    for link in json.loads(system.run(["ip", "-json", "-details", "address", "show"], "").stdout):
        name = link["ifname"]
        state = "up" if "UP" in link["flags"] else "down"
        lines.append(f"link {name} {state} mtu {link['mtu']}")
        if link.get("gso_max_size", GSO_MAX_SIZE) != GSO_MAX_SIZE:
            lines.append(f"gso_max_size {link['gso_max_size']} on {name}")
        for entry in link["addr_info"]:
            if "local" in entry and entry.get("scope") != "link":
                peer = f" peer {entry['address']}" if "address" in entry else ""
                lines.append(f"address {entry['local']}/{entry['prefixlen']}{peer} on {name}")
    for family in ("-4", "-6"):
        shown = system.run(["ip", "-json", family, "route", "show"], "").stdout
        lines += sorted(
            f"route {route['dst']} on {route['dev']}"
            for route in json.loads(shown or "[]")
            if not route["dst"].startswith("fe80:")
        )
    lines += _render_tables(system)
    ruleset = system.run(["nft", "--stateless", "list", "ruleset"], "").stdout
    lines += [f"nft {line}" for line in ruleset.splitlines()]
    for family, leaves in _SHOWN.items():
        for name in system.names(f"{PROC_SYS}/net/{family}/conf"):
            for leaf in leaves:
                key = f"net/{family}/conf/{name}/{leaf}"
                try:
                    lines.append(f"{key} = {system.read(f'{PROC_SYS}/{key}')}")
                except OSError:
                    continue
    return "\n".join(lines)


def _render_tables(system: System) -> list[str]:
    """All rules, and the routes in tables that are neither main nor local."""
    lines = []
    for family, everywhere in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        shown = system.run(["ip", "-json", family, "rule", "show"], "").stdout
        for rule in json.loads(shown or "[]"):
            words = (key if value is None else f"{key} {value}" for key, value in rule.items())
            lines.append(f"rule {family} {' '.join(words)}")
        shown = system.run(["ip", "-json", family, "route", "show", "table", "all"], "").stdout
        routes = []
        for route in json.loads(shown or "[]"):
            table = route.get("table", "main")
            if table not in ("main", "local"):
                to = everywhere if route["dst"] == "default" else route["dst"]
                way = route["type"] if "type" in route else f"on {route['dev']}"
                routes.append(f"route {to} {way} table {table}")
        lines += sorted(routes)
    return lines


@define
class FakeLink:
    """One interface; ``addresses`` are (local/prefix, peer or None), oldest first."""

    ifindex: int
    kind: str
    mtu: int = 1500
    up: bool = False
    addresses: list[tuple[str, str | None]] = Factory(list)
    gso_max_size: int = GSO_MAX_SIZE


class FakeLinux:
    """One network namespace, made of values.

    :ivar commands: each line that changed something, in order; a test reads it.
    :ivar living: the claims of the processes that run; a test takes out whom it kills.
    :ivar refuse: a line that contains this text fails, as one that the kernel refuses.
    :ivar nft: its nftables.
    :ivar routing: its routes and rules.
    """

    def __init__(self, claim: str = "boot:1:1", ipv6: bool = True) -> None:
        self.links: dict[str, FakeLink] = {}
        self.routing = FakeRouting()
        self.sysctls: dict[str, str] = {"net/ipv4/ip_forward": "0"}
        self.commands: list[str] = []
        self.living = {claim}
        self.refuse: str | None = None
        self.nft = FakeNFT(self.commands.append)
        self._claim = claim
        self._ipv6 = ipv6
        self._last_index = 0
        for name in ("all", "default"):
            self._add_sysctls(name)
        self.add_link("lo", "", mtu=65536)
        self.links["lo"].up = True
        self.links["lo"].addresses = [("127.0.0.1/8", None)]

    # What a test does to the machine.

    def add_link(self, name: str, kind: str = "tun", mtu: int = 1500) -> None:
        """A new interface appears, down and without an address."""
        self._last_index += 1
        self.links[name] = FakeLink(self._last_index, kind, mtu)
        self._add_sysctls(name)

    def remove_link(self, name: str) -> None:
        """An interface disappears with all that hangs on it."""
        del self.links[name]
        self.routing.lose(name)
        self.sysctls = {
            key: value for key, value in self.sysctls.items() if f"/conf/{name}/" not in key
        }

    # pyvpn.linux.system.System

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        words = [word for word in argv if word not in ("-json", "-details")]
        if words == ["ip", "address", "show"]:
            return Completed(0, json.dumps([self._show(name) for name in self.links]), "")
        if words[0] == "nft":
            return self.nft.run(argv, stdin)
        version = 6 if "-6" in words else 4
        if words[0] == "ip" and "route" in words and "show" in words:
            table = words[words.index("table") + 1] if "table" in words else "main"
            shown = self.routing.show_routes(version, table, self._connected())
            return Completed(0, json.dumps(shown), "")
        if words[0] == "ip" and "rule" in words and "show" in words:
            return Completed(0, json.dumps(self.routing.show_rules(version)), "")
        if words[0] == "ip" and words[-2:] == ["-batch", "-"]:
            return self._batch(stdin.splitlines(), "-force" in words, version)
        return Completed(127, "", f"the fake knows no command {' '.join(argv)}")

    def read(self, path: str) -> str:
        key = path.removeprefix(PROC_SYS + "/")
        if key not in self.sysctls:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.sysctls[key]

    def write(self, path: str, text: str) -> None:
        self.read(path)
        key = path.removeprefix(PROC_SYS + "/")
        if self.refuse is not None and self.refuse in key:
            raise PermissionError(1, "Operation not permitted", path)
        self.commands.append(f"{key}={text}")
        changed = self.sysctls[key] != text
        self.sysctls[key] = text
        if changed:
            self._follow(key, text)

    def names(self, path: str) -> list[str]:
        start = path.removeprefix(PROC_SYS + "/") + "/"
        below = (key.removeprefix(start) for key in self.sysctls if key.startswith(start))
        return sorted({rest.split("/")[0] for rest in below})

    def claim(self) -> str:
        return self._claim

    def alive(self, claim: str) -> bool:
        return claim in self.living

    def namespace(self) -> str:
        return "boot:namespace:1"

    def namespace_exists(self, namespace: str) -> bool:
        return namespace == self.namespace()

    # The kernel's side.

    def _add_sysctls(self, name: str) -> None:
        forward = {family: f"net/{family}/conf/default/forwarding" for family in ("ipv4", "ipv6")}
        ipv4 = {"accept_redirects": "1", "send_redirects": "1", "src_valid_mark": "0"}
        ipv4["forwarding"] = self.sysctls.get(forward["ipv4"], "0")
        ipv6 = {"accept_ra": "1", "addr_gen_mode": "0", "disable_ipv6": "0"}
        ipv6["forwarding"] = self.sysctls.get(forward["ipv6"], "0")
        ipv6["disable_ipv6"] = self.sysctls.get("net/ipv6/conf/default/disable_ipv6", "0")
        for leaf, value in ipv4.items():
            self.sysctls[f"net/ipv4/conf/{name}/{leaf}"] = value
        for leaf, value in ipv6.items() if self._ipv6 else ():
            self.sysctls[f"net/ipv6/conf/{name}/{leaf}"] = value

    def _follow(self, key: str, text: str) -> None:
        """Documentation/networking/ip-sysctl: which values the kernel sets along with ``key``."""
        if key in ("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"):
            self.sysctls["net/ipv4/ip_forward"] = text
            self.sysctls["net/ipv4/conf/all/accept_redirects"] = "0" if text == "1" else "1"
            self._set_everywhere("ipv4", "forwarding", text)
        elif key in ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/disable_ipv6"):
            self._set_everywhere("ipv6", key.rpartition("/")[2], text)

    def _set_everywhere(self, family: str, leaf: str, text: str) -> None:
        for name in ("all", "default", *self.links):
            self.sysctls[f"net/{family}/conf/{name}/{leaf}"] = text

    def _show(self, name: str) -> dict[str, Any]:
        link = self.links[name]
        shown = []
        for interface, peer in link.addresses:
            local = ip_interface(interface)
            entry: dict[str, Any] = {
                "local": str(local.ip),
                "prefixlen": local.network.prefixlen,
                "scope": "host" if local.ip.is_loopback else "global",
            }
            shown.append(entry if peer is None else {**entry, "address": peer})
        return {
            "ifindex": link.ifindex,
            "ifname": name,
            "flags": ["UP"] if link.up else [],
            "mtu": link.mtu,
            "gso_max_size": link.gso_max_size,
            "linkinfo": {"info_kind": link.kind},
            "addr_info": shown,
        }

    def _connected(self) -> list[FakeRoute]:
        """The routes that come with addresses."""
        connected = [
            FakeRoute(str(_subnet(address)), name)
            for name, link in self.links.items()
            if link.up and name != "lo"
            for address in link.addresses
        ]
        return list(dict.fromkeys(connected))

    def _batch(self, lines: Sequence[str], force: bool, version: int) -> Completed:
        said, code = "", 0
        for number, line in enumerate(lines, 1):
            try:
                if self.refuse is not None and self.refuse in line:
                    raise KernelSaysNo("RTNETLINK answers: Operation not permitted")
                self._carry_out(line.split(), version)
                self.commands.append(f"ip -6 {line}" if version == 6 else f"ip {line}")
            except KernelSaysNo as error:
                said += f"{error}\nCommand failed -:{number}\n"
                code = 1
                if not force:
                    break
        return Completed(code, "", said)

    def _carry_out(self, words: list[str], version: int) -> None:
        if words[0] == "rule":
            self.routing.rule(words[1], FakeRule(version, " ".join(words[2:])))
            return
        if words[0] == "route":
            self._route(words[1], FakeRoute.of(words[2:]))
            return
        device = words[words.index("dev") + 1]
        self._must_exist(device)
        verbs: dict[tuple[str, str], Callable[[str, list[str]], None]] = {
            ("link", "set"): self._link_set,
            ("address", "add"): self._address_add,
            ("address", "delete"): self._address_delete,
        }
        verbs[words[0], words[1]](device, words[2:])

    def _must_exist(self, device: str) -> None:
        if device not in self.links:
            raise KernelSaysNo(f'Cannot find device "{device}"')

    def _link_set(self, device: str, words: list[str]) -> None:
        link = self.links[device]
        if "addrgenmode" in words:
            modes = ("eui64", "none", "stable_secret", "random")
            mode = modes.index(words[words.index("addrgenmode") + 1])
            self.sysctls[f"net/ipv6/conf/{device}/addr_gen_mode"] = str(mode)
        if "mtu" in words:
            link.mtu = int(words[words.index("mtu") + 1])
            if link.mtu < 1280:
                link.addresses = [one for one in link.addresses if _subnet(one).version == 4]
        if "gso_max_size" in words:
            link.gso_max_size = int(words[words.index("gso_max_size") + 1])
        if "up" in words:
            link.up = True
        if "down" in words:
            link.up = False
            link.addresses = [one for one in link.addresses if _subnet(one).version == 4]
            self.routing.lose(device)

    def _address_add(self, device: str, words: list[str]) -> None:
        address = _address(words)
        link = self.links[device]
        if _subnet(address).version == 6 and self._without_ipv6(device):
            raise KernelSaysNo("Error: ipv6: IPv6 is disabled on this device.")
        if address in link.addresses:
            raise KernelSaysNo("Error: ipv4: Address already assigned.")
        link.addresses.append(address)

    def _address_delete(self, device: str, words: list[str]) -> None:
        address = _address(words)
        link = self.links[device]
        if address not in link.addresses:
            raise KernelSaysNo("Error: ipv4: Address not found.")
        family = _subnet(address).version
        same = [one for one in link.addresses if _subnet(one) == _subnet(address)]
        # With the first IPv4 address of a subnet its later ones go (promote_secondaries is off).
        gone = same if family == 4 and same[0] == address else [address]
        link.addresses = [one for one in link.addresses if one not in gone]
        if family == 4 and not any(_subnet(one).version == 4 for one in link.addresses):
            self.routing.lose(device, 4)

    def _route(self, verb: str, route: FakeRoute) -> None:
        if verb == "add" and route.route_type == "unicast":
            self._must_exist(route.device)
            if not self.links[route.device].up:
                raise KernelSaysNo("Error: Device for nexthop is not up.")
            if route.version == 6 and self._without_ipv6(route.device):
                raise KernelSaysNo("Error: IPv6 is disabled on nexthop device.")
        self.routing.route(verb, route, self._connected())

    def _without_ipv6(self, device: str) -> bool:
        return self.sysctls.get(f"net/ipv6/conf/{device}/disable_ipv6") != "0"


def _address(words: list[str]) -> tuple[str, str | None]:
    """``10.0.0.1/24`` or ``10.0.0.2 peer 10.0.0.1/24`` as (local/prefix, peer)."""
    if words[1] == "peer":
        peer, _, prefix = words[2].partition("/")
        return f"{words[0]}/{prefix}", peer
    return words[0], None


def _subnet(address: tuple[str, str | None]) -> Any:
    local, peer = address
    prefix = local.partition("/")[2]
    return ip_interface(local if peer is None else f"{peer}/{prefix}").network
