"""What may be a user's name: the same on the wire, in links and on the command line."""

from __future__ import annotations

import unicodedata

#: Bytes of UTF-8: the width of the field in the login message.
USER_SIZE = 32


def user_name_valid(name: str) -> bool:
    """Tell whether a name fits: 1 to 32 bytes of UTF-8, NFC, nothing that cannot be printed.

    docs/protocol.rst, "Login"; control characters and line breaks would end up in logs and
    terminals.
    """
    return (
        printable(name)
        and 1 <= len(name.encode()) <= USER_SIZE
        and unicodedata.is_normalized("NFC", name)
    )


def printable(text: str) -> bool:
    """Tell whether a text holds no control characters, surrogates or line separators."""
    categories = map(unicodedata.category, text)
    return not any(kind.startswith("C") or kind in ("Zl", "Zp") for kind in categories)
