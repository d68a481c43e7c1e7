"""An nft(8) of text: tables by name, whole scripts in one transaction, no packets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from pyvpn.linux.system import Completed

_NO_SUCH = "/dev/stdin:{}: Error: Could not process rule: No such file or directory\n{}\n^^^^\n"


class FakeNFT:
    """The tables of one network namespace.

    :param changed: told of each table that a script has changed, and how.
    :ivar tables: ``inet NAME`` → what stands between its braces.
    :ivar installed: False for a system without nft.
    :ivar refuse: a script with this text in it fails, as one that the kernel refuses.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self.tables: dict[str, str] = {}
        self.installed = True
        self.refuse: str | None = None
        self._changed = changed

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        """``nft ARGV``, of what the privileged child and :func:`render` give."""
        if not self.installed:
            return Completed(127, "", "nft is not installed (package iproute2)")
        words = [word for word in argv[1:] if word not in ("-json", "--stateless")]
        if words == ["-f", "-"]:
            return self._load(stdin)
        if words == ["list", "tables"]:
            return Completed(0, "".join(f"table {name}\n" for name in self.tables), "")
        if words == ["list", "ruleset"]:
            shown = (f"table {name} {{\n{body}\n}}\n" for name, body in self.tables.items())
            return Completed(0, "".join(shown), "")
        if words[:2] == ["list", "table"]:
            return self._list(" ".join(words[2:]))
        return Completed(127, "", f"the fake knows no command {' '.join(argv)}")

    def _list(self, name: str) -> Completed:
        """In JSON, the rules that have a comment alone."""
        if name not in self.tables:
            return Completed(1, "", f"Error: No such file or directory\nlist table {name}\n^^^^\n")
        chain, shown = "", []
        for line in self.tables[name].splitlines():
            words = line.split()
            if words[0] == "chain":
                chain = words[1]
            comment = re.search(r'comment "([^"]*)"', line)
            if comment is not None:
                shown.append({"rule": {"chain": chain, "comment": comment[1]}})
        return Completed(0, json.dumps({"nftables": shown}), "")

    def _load(self, script: str) -> Completed:
        tables = dict(self.tables)
        lines = iter(enumerate(script.splitlines(), 1))
        for number, line in lines:
            verb, _, rest = line.partition(" ")
            name = rest.removeprefix("table ").removesuffix(" {")
            if self.refuse is not None and self.refuse in line:
                return Completed(1, "", _NO_SUCH.format(number, line))
            if verb == "add":
                tables.setdefault(name, "")
            elif verb == "delete":
                if name not in tables:
                    return Completed(1, "", _NO_SUCH.format(number, line))
                del tables[name]
            else:
                body = []
                for inner_number, inner in lines:
                    if self.refuse is not None and self.refuse in inner:
                        return Completed(1, "", _NO_SUCH.format(inner_number, inner))
                    if inner == "}":
                        break
                    body.append(inner)
                tables[name] = "\n".join(body)
        before, self.tables = self.tables, tables
        for name in sorted({*before, *tables}):
            if before.get(name) != tables.get(name):
                self._changed(f"nft: {name} {'set' if name in tables else 'removed'}")
        return Completed(0, "", "")
