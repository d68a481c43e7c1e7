"""Who needs which sysctl of this network namespace, and what it was before the first of them.

Two hubs on one machine both need forwarding; the first to stop must not switch it off under the
other. The child of each claims a value here and the last one to release it restores it. Standard
library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyvpn.files import replace_file
from pyvpn.linux.system import System, claim_pid

LEDGER_DIRECTORY = "/run/pyvpn-ledger"

PROC_SYS = "/proc/sys"

Entry = dict[str, Any]
"""``before`` and ``value``: text; ``side``: other key → [before, after or None]; ``claims``."""


class Ledger:
    """The claims of one network namespace.

    :param directory: holds one file per namespace; made when needed, gone when nobody needs it.
    :param namespace: which one, None for the one that we are in.
    """

    def __init__(self, directory: str, system: System, namespace: str | None = None) -> None:
        self._directory = directory
        self._system = system
        # A name from the kernel's cookie: inode numbers of namespaces are used again soon.
        digest = hashlib.sha256((namespace or system.namespace()).encode()).hexdigest()[:24]
        self._path = os.path.join(directory, digest + ".json")

    def claim(self, key: str, value: str, claim: str) -> str | None:
        """Set ``key`` to ``value`` and note that ``claim`` needs it so.

        :returns: the change as a line for the log, None if it was so already.
        :raises OSError: the sysctl or the ledger cannot be written.
        """
        system = self._system
        path = sysctl_path(key)
        with self._locked() as entries:
            current = system.read(path)
            entry: Entry | None = entries.get(key)
            others = [] if entry is None else self._living(entry, claim)
            if entry is not None and not others and current != entry["value"]:
                entry = None  # left by a crash, and set anew by somebody else since
            if entry is None:
                if current == value:
                    entries.pop(key, None)
                    return None  # it was so before us: nothing to change, nothing to restore
                side = {other: [old, None] for other, old in self._side_values(key).items()}
                entry = {"before": current, "value": value, "side": side}
            entry["claims"] = [*others, claim]
            entry["value"] = value
            entries[key] = entry
            if current == value:
                return None
            # On disk before the change, so that a crash in between can be repaired.
            self._save(entries)
            try:
                system.write(path, value)
            except OSError:
                entry["claims"] = others
                if not others:
                    del entries[key]
                raise
            # Those that did not change too: the way back may change them.
            now = self._side_values(key)
            entry["side"] = {
                other: [old, now.get(other, old)] for other, (old, _) in entry["side"].items()
            }
            return f"sysctl {key}={value}"

    def release(self, key: str, claim: str) -> str | None:
        """``claim`` needs ``key`` no more; the last one puts back what was there before.

        :returns: what was done or why not, as a line for the log; None if there was nothing to do.
        :raises OSError: the kernel refuses the old value, or the ledger cannot be written.
        """
        with self._locked() as entries:
            entry: Entry | None = entries.get(key)
            if entry is None or claim not in entry["claims"]:
                return None
            others = self._living(entry, claim)
            if others:
                entry["claims"] = others
                pids = ", ".join(claim_pid(other) for other in others)
                return f"note: sysctl {key} stays {entry['value']}: process {pids} needs it"
            done = self._restore(key, entry)
            del entries[key]
            return done

    def forget(self) -> None:
        """Its namespace is gone, and so is everything that was claimed in it."""
        with self._locked() as entries:
            entries.clear()

    def _restore(self, key: str, entry: Entry) -> str | None:
        system = self._system
        try:
            current = system.read(sysctl_path(key))
        except FileNotFoundError:
            return None  # gone with its interface
        if current != entry["value"]:
            return f"note: sysctl {key} is {current} now, set by somebody else: left alone"
        # What followed ours on the kernel's side goes back too, unless it was changed since.
        side: dict[str, str] = {}
        for other, (before, after) in entry["side"].items():
            found = self._read_if_there(other)
            if found is not None:
                side[other] = before if after is None or found == after else found
        system.write(sysctl_path(key), entry["before"])
        for other, wanted in side.items():
            if self._read_if_there(other) not in (None, wanted):
                system.write(sysctl_path(other), wanted)
        return f"sysctl {key}={entry['before']}"

    def _living(self, entry: Entry, without: str) -> list[str]:
        return [one for one in entry["claims"] if one != without and self._system.alive(one)]

    def _read_if_there(self, key: str) -> str | None:
        try:
            return self._system.read(sysctl_path(key))
        except OSError:
            return None

    def _side_values(self, key: str) -> dict[str, str]:
        values = {other: self._read_if_there(other) for other in side_keys(key, self._system)}
        return {other: value for other, value in values.items() if value is not None}

    def _save(self, entries: dict[str, Entry]) -> None:
        replace_file(self._path, json.dumps(entries))

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Entry]]:
        """The entries, for us alone; written back at the end, also when the body raised."""
        directory = self._lock_directory()
        try:
            try:
                with open(self._path, encoding="utf-8") as stream:
                    text = stream.read()
                entries = json.loads(text)
            except (FileNotFoundError, ValueError):
                text, entries = "{}", {}
            try:
                yield entries
            finally:
                if entries and json.dumps(entries) != text:
                    self._save(entries)
                elif not entries:
                    self._clear()
        finally:
            os.close(directory)

    def _lock_directory(self) -> int:
        while True:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                # Whoever held the lock before us may have removed the directory.
                if os.path.samestat(os.fstat(descriptor), os.stat(self._directory)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _clear(self) -> None:
        for path in (self._path, self._path + ".new"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        try:
            os.rmdir(self._directory)
        except OSError:
            pass  # another namespace has claims, or it is a mount: an empty directory does no harm


def sysctl_path(key: str) -> str:
    """The file of a sysctl key."""
    return f"{PROC_SYS}/{key}"


def side_keys(key: str, system: System) -> list[str]:
    """The keys that the kernel changes by itself when ``key`` changes.

    Documentation/networking/ip-sysctl of Linux: ip_forward sets forwarding of each interface and
    of ``default``, and accept_redirects of ``all`` to the opposite; IPv6's ``all/forwarding`` sets
    that of each interface.
    """
    if key == "net/ipv4/ip_forward":
        family, extra = "net/ipv4/conf", ["net/ipv4/conf/all/accept_redirects"]
    elif key == "net/ipv6/conf/all/forwarding":
        family, extra = "net/ipv6/conf", []
    else:
        return []
    names = [name for name in system.names(sysctl_path(family)) if name != "all"]
    return [*extra, *(f"{family}/{name}/forwarding" for name in names)]
