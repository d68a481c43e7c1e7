"""Who may import whom: the direction of imports in the package, read from its source.

Every import counts: inside a function, in ``if TYPE_CHECKING:`` (a module that cannot be read or
type-checked without another one depends on it, so none of these is exempt), and a literal name
given to ``import_module`` or ``__import__``. A unit is a module or package directly under
``pyvpn``.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import pyvpn

# Left to right: a unit imports its own layer and those before it, never one after it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "files"}),
    frozenset({"core"}),
    frozenset({"token", "values", "routes", "config", "uapi", "wgconf", "state"}),
    frozenset({"linux", "tx", "admin", "network_admin", "peers", "control_client"}),
    frozenset({"service", "testing"}),
    frozenset({"server_tap", "client_tap", "cli", "accounts", "instance", "status", "terminal"})
    | frozenset({"peers_cli", "network_cli", "qrcode", "wireguard_program"}),
)

# What each unit must not know besides (docs/architecture.rst); a name stands for all below it.
MUST_NOT_KNOW: dict[str, frozenset[str]] = {
    # Time, randomness and the system come as arguments. The second line only closes side doors.
    "core": frozenset({"twisted", "socket", "os", "time", "random", "subprocess"})
    | frozenset({"asyncio", "ctypes", "datetime", "fcntl", "importlib", "io", "logging", "pathlib"})
    | frozenset({"posix", "secrets", "select", "selectors", "shutil", "signal", "tempfile"})
    | frozenset({"threading", "uuid", "_socket", "_random"}),
    "errors": frozenset({"twisted"}),
    "token": frozenset({"twisted"}),
    "values": frozenset({"twisted"}),
    "config": frozenset({"twisted"}),
    "routes": frozenset({"twisted"}),
    "uapi": frozenset({"twisted"}),
    "wgconf": frozenset({"twisted"}),
    "tx": frozenset({"cryptography", "Crypto", "subprocess"}),
    "linux": frozenset({"pyvpn.core"}),
}

# Runs as root from its path, with ``-I -S``: it and all it reaches see the standard library alone.
PRIVILEGED = "pyvpn.linux.privileged"


def read_modules(root: Path) -> dict[str, str]:
    """The source of each module below the package directory ``root``; packages end in __init__."""
    return {
        ".".join((root.name, *path.relative_to(root).with_suffix("").parts)): path.read_text()
        for path in sorted(root.rglob("*.py"))
    }


def imported_names(name: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) for each import; ``from a import b`` gives ``a.b``."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def unit_of(name: str) -> str:
    """``core`` of ``pyvpn.core.replay``; empty for what the package itself defines."""
    unit = name.split(".")[1] if "." in name else ""
    return "" if unit.startswith("__") else unit


def layer_of(unit: str) -> int:
    return next((place for place, units in enumerate(LAYERS) if unit in units), -1)


def below(name: str, roots: frozenset[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def forbidden_arrow(unit: str, target: str) -> str | None:
    """Why ``unit`` must not import ``target``, or None where it may."""
    if below(target, MUST_NOT_KNOW.get(unit, frozenset())):
        return f"{unit} must not know it"
    if below(target, frozenset({"twisted.plugins"})):
        return "nothing imports the plugin"
    other = unit_of(target) if below(target, frozenset({"pyvpn"})) else ""
    if not other or other == unit:
        return None
    if not unit:
        return "the package itself imports none of its modules"
    if layer_of(other) < 0:
        return f"{other} has no place in LAYERS"
    if layer_of(other) > layer_of(unit):
        return f"{other} is to the right of {unit}"
    if other == "testing":
        return "the product does not need its fakes"
    return None


def cycles(arrows: set[tuple[str, str]]) -> list[str]:
    """The units of one layer that import each other, directly or by way of others."""
    reach = set(arrows)
    while more := {(a, d) for a, b in reach for c, d in arrows if b == c} - reach:
        reach |= more
    return sorted(a for a, b in reach if a == b)


def not_standard(modules: Mapping[str, str], start: str) -> list[str]:
    """What ``start`` and the modules it reaches import that is not in the standard library."""
    found = []
    waiting, known = [start], {start}
    while waiting:
        name = waiting.pop()
        for line, target in imported_names(name, modules[name]):
            if not below(target, frozenset({"pyvpn"})):
                if target.split(".")[0] not in sys.stdlib_module_names:
                    found.append(f"{name}:{line} imports {target}: {start} has no such package")
                continue
            # a.b.c runs a/__init__, a/b/__init__ and a/b/c (which may be a name in a/b instead).
            parts = target.split(".")
            for end in range(1, len(parts) + 1):
                prefix = ".".join(parts[:end])
                for candidate in (prefix, prefix + ".__init__"):
                    if candidate in modules and candidate not in known:
                        known.add(candidate)
                        waiting.append(candidate)
    return found


def problems(modules: Mapping[str, str]) -> list[str]:
    """Every import that the rules above forbid, as ``module:line imports name: reason``."""
    found = []
    siblings = set()
    for name, source in modules.items():
        unit = unit_of(name)
        if unit and layer_of(unit) < 0:
            found.append(f"{name}: {unit} has no place in LAYERS")
            continue
        for line, target in imported_names(name, source):
            reason = forbidden_arrow(unit, target)
            if reason is not None:
                found.append(f"{name}:{line} imports {target}: {reason}")
            elif below(target, frozenset({"pyvpn"})) and unit_of(target) not in ("", unit):
                siblings.add((unit, unit_of(target)))
    found.extend(f"{unit} imports itself by way of its siblings" for unit in cycles(siblings))
    if PRIVILEGED in modules:
        found.extend(not_standard(modules, PRIVILEGED))
    return found


# A module's name, its text, and the words that its one problem must hold.
PLANTED: tuple[tuple[str, str, str], ...] = (
    ("pyvpn.core.planted", "import twisted.internet", ":1 imports twisted.internet: core must not"),
    ("pyvpn.core.planted", "from socket import AF_INET", "imports socket.AF_INET: core must not"),
    ("pyvpn.core.planted", "import attrs\nimport os.path", ":2 imports os.path: core must not"),
    ("pyvpn.core.planted", "import time as clock", "core must not know it"),
    ("pyvpn.core.planted", "from random import choice", "core must not know it"),
    ("pyvpn.core.planted", "def f():\n    import subprocess", ":2 imports subprocess"),
    (
        "pyvpn.core.planted",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyvpn.tx import udp",
        ":3 imports pyvpn.tx.udp: tx is to the right of core",
    ),
    ("pyvpn.core.planted", "__import__('pyvpn.cli')", "cli is to the right of core"),
    ("pyvpn.core.planted", "from .. import state", "imports pyvpn.state: state is to the right"),
    ("pyvpn.core.planted", "from ..linux.tun import x", "linux is to the right of core"),
    ("pyvpn.core.__init__", "from ..token import x", "token is to the right of core"),
    ("pyvpn.errors", "from pyvpn.core import replay", "core is to the right of errors"),
    ("pyvpn.state.planted", "import pyvpn.tx.udp", "tx is to the right of state"),
    ("pyvpn.tx.planted", "from pyvpn import service", "service is to the right of tx"),
    ("pyvpn.tx.planted", "from cryptography import x509", "tx must not know it"),
    ("pyvpn.linux.planted", "from pyvpn.core import replay", "linux must not know it"),
    ("pyvpn.service.planted", "from pyvpn.cli import main", "cli is to the right of service"),
    ("pyvpn.service.planted", "import pyvpn.testing.clock", "does not need its fakes"),
    ("pyvpn.cli", "import twisted.plugins.pyvpn_plugin", "nothing imports the plugin"),
    ("pyvpn.__init__", "from pyvpn.core import replay", "imports none of its modules"),
    ("pyvpn.surprise", "", "pyvpn.surprise: surprise has no place in LAYERS"),
    ("pyvpn.core.planted", "import pyvpn.surprise", "surprise has no place in LAYERS"),
    (PRIVILEGED, "import attrs", "imports attrs: pyvpn.linux.privileged has no such package"),
)


class LayeringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(pyvpn.__file__).parent
        self.modules = read_modules(self.root)

    def test_imports_point_left(self) -> None:
        """No module of the package imports one to its right, nor what its unit must not know."""
        self.assertIn("pyvpn.core.replay", self.modules)
        self.assertIn("pyvpn.core.__init__", self.modules)
        self.assertEqual(problems(self.modules), [])

    def test_core_is_really_read(self) -> None:
        """The check above saw imports: core reaches errors, as the arrows allow."""
        targets = {
            target
            for name, source in self.modules.items()
            if unit_of(name) == "core"
            for _, target in imported_names(name, source)
        }
        self.assertIn("pyvpn.errors.RemoteProtocolError", targets)


class PlantedFaultTests(SynchronousTestCase):
    def test_planted_faults_are_found(self) -> None:
        """Each kind of forbidden import, planted alone, is the one problem that is found."""
        for name, text, words in PLANTED:
            with self.subTest(words):
                found = problems({name: text})
                self.assertEqual(len(found), 1, found)
                self.assertIn(words, found[0])

    def test_sibling_cycle_is_found(self) -> None:
        """Units of one layer may import each other in one direction only."""
        one_way = {
            "pyvpn.config": "from pyvpn.token import NetworkToken",
            "pyvpn.state.planted": "import pyvpn.config",
        }
        self.assertEqual(problems(one_way), [])
        found = problems({**one_way, "pyvpn.token": "from pyvpn import state"})
        self.assertEqual(
            found,
            [
                f"{unit} imports itself by way of its siblings"
                for unit in ("config", "state", "token")
            ],
        )

    def test_privileged_reach_is_followed(self) -> None:
        """A foreign package two imports away from the privileged child is found as well."""
        modules = {
            PRIVILEGED: "from pyvpn.linux.near import x\nimport json",
            "pyvpn.linux.near": "from . import far",
            "pyvpn.linux.far": "import os, attrs",
            "pyvpn.linux.unrelated": "import attrs",
        }
        found = problems(modules)
        self.assertEqual(len(found), 1, found)
        self.assertIn("pyvpn.linux.far:1 imports attrs", found[0])

    def test_allowed_arrows_pass(self) -> None:
        """What the direction allows is not reported: the check can say yes."""
        allowed = {
            "pyvpn.__init__": "__version__ = '1'",
            "pyvpn.core.planted": "import struct, hashlib\nfrom pyvpn.errors import VPNError",
            "pyvpn.tx.planted": "import os, socket\nfrom pyvpn.core.burst import Burst",
            "pyvpn.service.planted": "from pyvpn import __version__, config\nimport twisted",
            "pyvpn.cli": "from pyvpn.service import ClientService\nfrom pyvpn.linux import privsep",
            "pyvpn.testing.planted": "from pyvpn.testing import clock\nfrom pyvpn.tx import udp",
        }
        self.assertEqual(problems(allowed), [])

    def test_planted_file_is_found(self) -> None:
        """A forbidden import in a file of a copy of the package is found by the same reading."""
        copy = Path(self.mktemp()) / "pyvpn"
        shutil.copytree(
            Path(pyvpn.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
        )
        before = problems(read_modules(copy))
        (copy / "core" / "planted.py").write_text("import os\n")
        found = problems(read_modules(copy))
        self.assertEqual(
            [problem for problem in found if problem not in before],
            ["pyvpn.core.planted:1 imports os: core must not know it"],
        )
