"""What the processor is good at."""

from __future__ import annotations

import re
from pathlib import Path

from pyvpn.values import Cipher


def has_aes(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Tell whether the processor has AES instructions, so that AES-256-GCM beats ChaCha20-Poly1305.

    Without them AES in software is slower, and its tables leak through timing.
    """
    try:
        text = Path(cpuinfo).read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return re.search(r"^(flags|Features)\s*:.*\baes\b", text, re.MULTILINE) is not None


def wants_aes(cipher: Cipher, cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Tell whether a side with this ``--cipher`` offers, or grants, AES-256-GCM."""
    return cipher == "aes-256-gcm" or (cipher == "auto" and has_aes(cpuinfo))


def cipher_warnings(cipher: Cipher, cpuinfo: str = "/proc/cpuinfo") -> list[str]:
    """Return what speaks against a pinned cipher on this machine, a line each."""
    if cipher == "aes-256-gcm" and not has_aes(cpuinfo):
        return ["this processor has no AES instructions: AES-256-GCM is slow, and leaks its timing"]
    return []
