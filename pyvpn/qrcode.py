"""QR codes: on the terminal, and as the bytes of a PNG or SVG file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from pyvpn.errors import ConfigError

if TYPE_CHECKING:
    from segno import QRCode

COLUMNS: Final = 80  # of a terminal that nobody has made wider
BORDER: Final = 4  # modules: the quiet zone that ISO/IEC 18004 asks for
SCALE: Final = 8  # pixels a module: sharp on a screen, still small as a file
FORMATS: Final = (".png", ".svg")

WHITE_ON_BLACK: Final = "\x1b[97;40m"
RESET: Final = "\x1b[0m"

# By (upper module is dark, lower module is dark); what is drawn is the light.
_HALVES: Final = {
    (False, False): "█",
    (False, True): "▀",
    (True, False): "▄",
    (True, True): " ",
}


def _made(text: str) -> QRCode:
    import segno

    try:
        # Level L: held against a screen nothing is scratched, and small codes are read more easily.
        return segno.make(text, error="l", micro=False)
    except segno.DataOverflowError:
        size = len(text.encode())
        raise ConfigError(f"{size} bytes are too many for a QR code; pass on the file") from None


def terminal_lines(text: str, coloured: bool = True) -> list[str]:
    """The lines of a QR code, two modules high each; the quiet zone gives way to :data:`COLUMNS`.

    :param coloured: white on black by escape sequences; else the terminal had better be dark.
    :raises ConfigError: if it is too long.
    """
    code = _made(text)
    size = len(code.matrix)
    border = max(1, min(BORDER, (COLUMNS - size) // 2))
    rows = [[bool(module) for module in row] for row in code.matrix_iter(border=border)]
    if len(rows) % 2:  # always: the size is odd, the border on both sides even
        rows.append([not coloured] * len(rows[0]))
    lines = [
        "".join(_HALVES[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]
    return [f"{WHITE_ON_BLACK}{line}{RESET}" for line in lines] if coloured else lines


def image(text: str, suffix: str) -> bytes:
    """A file of a QR code, black on white.

    :param suffix: one of :data:`FORMATS`.
    :raises ConfigError: if it is too long.
    """
    out = io.BytesIO()
    _made(text).save(out, kind=suffix[1:], scale=SCALE, border=BORDER, light="white")
    return out.getvalue()
