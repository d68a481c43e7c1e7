"""The undo journal: on disk before each change, so that whoever survives can repair.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyvpn.files import replace_file
from pyvpn.linux.steps import Before, UndoneStep, step_from_json, step_to_json

VERSION = 1


class Record(NamedTuple):
    """One change that was made, or was about to be, and what it takes to undo it."""

    step: UndoneStep
    before: Before


class JournalError(Exception):
    """The journal cannot be read or written; the text is one line naming it and the remedy."""


class JournalInUse(JournalError):
    """Its owner is alive: there is nothing to repair."""


class Journal:
    """The records of one privileged child, newest last.

    :param path: the file; it exists exactly while there may be something to undo.
    :param claim: the process that makes the changes (:meth:`pyvpn.linux.system.System.claim`).
    :param namespace: the network namespace they are made in.
    """

    def __init__(self, path: str, claim: str, namespace: str) -> None:
        self.path = path
        self.claim = claim
        self.namespace = namespace
        self.records: list[Record] = []

    @classmethod
    def load(cls, path: str) -> Journal | None:
        """The journal in ``path``, None if there is none.

        :raises JournalError: unreadable, or not one of ours.
        """
        try:
            data = json.loads(_read_own(path))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}")
            journal = cls(path, data["claim"], data["namespace"])
            journal.records = [
                Record(step_from_json(entry["step"]), entry["before"]) for entry in data["records"]
            ]
        except FileNotFoundError:
            return None
        except OSError as error:
            said = error.strerror or error
            raise JournalError(f"cannot read the journal {path}: {said}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"the journal {path} is damaged; look at addresses and sysctls yourself,"
                " then remove the file"
            ) from error
        return journal

    def save(self) -> None:
        """Put the records on the disk, wholly or not at all, before returning.

        :raises JournalError: the file cannot be written.
        """
        data: dict[str, Any] = {
            "version": VERSION,
            "claim": self.claim,
            "namespace": self.namespace,
            "records": [
                {"step": step_to_json(record.step), "before": record.before}
                for record in self.records
            ],
        }
        try:
            replace_file(self.path, json.dumps(data))
        except OSError as error:
            raise JournalError(
                f"cannot write the journal {self.path}: {error.strerror};"
                " choose another directory with --run-dir"
            ) from error

    def register(self, records: Sequence[Record]) -> None:
        """Put these behind the others, on the disk too; then, and not before, make the changes.

        :raises JournalError: the file cannot be written; none of them is registered.
        """
        if not records:
            return
        self.records += records
        try:
            self.save()
        except JournalError:
            del self.records[-len(records) :]
            raise

    def forget(self, records: Sequence[Record]) -> None:
        """These of :attr:`records` are undone, or never were done."""
        if not records:
            return
        # By identity: a thousand routes, each looked for by value among as many, take 75 ms.
        gone = {id(record) for record in records}
        self.records = [record for record in self.records if id(record) not in gone]
        try:
            self.save()
        except JournalError:
            pass  # the one on the disk names more than there is to undo, which does no harm

    def remove(self) -> None:
        """Nothing is left to undo. Harmless twice."""
        for path in (self.path, self.path + ".new"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def _read_own(path: str) -> str:
    """The text of a file that we wrote: what stands in it is going to be carried out.

    :raises OSError: unreadable, a link, or the file of another user, who would lend our privilege.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, encoding="utf-8") as stream:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it belongs to another user, or others may write it")
        return stream.read()
