"""Take a secret out of the command line that every user of the machine can read."""

from __future__ import annotations

import ctypes
from pathlib import Path

# proc(5), /proc/PID/stat: where the arguments stand in this process's memory.
_ARG_START, _ARG_END = 48, 49


def wipe_argument(secret: str, proc: str = "/proc/self") -> bool:
    """Overwrite a secret in this process's arguments with ``x``; tell whether it was found there.

    Linux shows the process's own memory as ``/proc/PID/cmdline``, so writing there is all it takes.
    """
    raw = secret.encode("utf-8", "surrogateescape")
    # The command's name, in parentheses, may hold spaces: what is behind it begins with field 3.
    fields = Path(proc, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    start, end = (int(fields.split()[number - 3]) for number in (_ARG_START, _ARG_END))
    arguments = ctypes.string_at(start, end - start)
    offset = 0
    found = False
    for argument in arguments.split(b"\0"):
        # As an argument of its own (--pw SECRET) or behind an equals sign (--pw=SECRET).
        if raw and (argument == raw or argument.endswith(b"=" + raw)):
            ctypes.memset(start + offset + len(argument) - len(raw), ord("x"), len(raw))
            found = True
        offset += len(argument) + 1
    return found
