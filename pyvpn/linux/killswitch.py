"""The kill switch that stands on this machine: whose it is, what it blocked, and its end.

It is set by :func:`pyvpn.linux.firewall.kill_switch_script` and stays when all of us are gone, so
whoever asks looks at the kernel. Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import json
from typing import Any

from pyvpn.linux.firewall import COUNTERS, KILL_SWITCH_TABLE, OWNER_CHAIN
from pyvpn.linux.system import NOT_INSTALLED, ChangeFailed, System

UNKNOWN = "unknown"
"""The owner of a table that has our name and does not say whose it is."""

_LIST = ("nft", "-json", "list", "table", "inet", KILL_SWITCH_TABLE)

# What nft says where there is no such table, and where the kernel has no nftables at all.
_NOT_THERE = ("No such file or directory", "not supported")


def standing(system: System) -> str | None:
    """The owner of the kill switch in this network namespace, None if there is none.

    :raises ChangeFailed: nft could not look (no privilege, for instance).
    """
    objects = _objects(system)
    if objects is None:
        return None
    for entry in objects:
        rule = entry.get("rule", {})
        if rule.get("chain") == OWNER_CHAIN and "comment" in rule:
            return str(rule["comment"])
    return UNKNOWN


def lift(system: System, owner: str | None = None) -> list[str]:
    """Remove the kill switch, if there is one and, with ``owner``, if it is that one's.

    :returns: what was done, for people; [] for nothing.
    :raises ChangeFailed: nft could not look, or could not remove it.
    """
    found = standing(system)
    if found is None or owner not in (None, found):
        return []
    argv = ["nft", "-f", "-"]
    done = system.run(argv, f"delete table inet {KILL_SWITCH_TABLE}\n")
    # Somebody may have been faster, which is as good.
    if done.code and standing(system) is not None:
        raise ChangeFailed(argv, done.code, done.stderr.strip())
    return [f"kill switch of {found} lifted: traffic leaves this machine without the tunnel again"]


def blocked(system: System) -> dict[str, int] | None:
    """Packets by the names in :data:`pyvpn.linux.firewall.COUNTERS`, since it was set last.

    None if there is no kill switch.

    :raises ChangeFailed: nft could not look.
    """
    objects = _objects(system)
    if objects is None:
        return None
    counters = [entry["counter"] for entry in objects if "counter" in entry]
    counted = {counter["name"]: int(counter["packets"]) for counter in counters}
    return {name: counted.get(name, 0) for name in COUNTERS}


def _objects(system: System) -> list[dict[str, Any]] | None:
    """What the table holds, None if there is none."""
    done = system.run(_LIST, "")
    if done.code == NOT_INSTALLED:
        return None
    if done.code:
        if any(words in done.stderr for words in _NOT_THERE):
            return None
        raise ChangeFailed(_LIST, done.code, done.stderr.strip())
    try:
        objects = json.loads(done.stdout)["nftables"]
    except (ValueError, KeyError, TypeError) as error:
        raise ChangeFailed(_LIST, 0, "nft answered something else than JSON") from error
    return [entry for entry in objects if isinstance(entry, dict)]
