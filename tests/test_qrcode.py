"""QR codes, read back by a decoder that others wrote (ZXing)."""

from __future__ import annotations

import re
import struct
import zlib

import zxingcpp
from twisted.trial.unittest import SynchronousTestCase

from pyvpn import qrcode
from pyvpn.errors import ConfigError

Pixels = list[list[bool]]  # rows; whether it is light

# As long as the .conf of a peer gets with all it can have and an endpoint that is not short.
CONF = f"""\
[Interface]
PrivateKey = {"k" * 43}=
Address = 10.110.200.107/32, fdaa:bbbb:cccc::107/128
MTU = 1416

[Peer]
PublicKey = {"p" * 43}=
PresharedKey = {"s" * 43}=
AllowedIPs = 10.110.200.0/24, fdaa:bbbb:cccc::/64
Endpoint = vpn.subsidiary.example.org:51820
PersistentKeepalive = 25
"""
LIGHT_HALVES = {"█": (True, True), "▀": (True, False), "▄": (False, True), " ": (False, False)}


def decoded(pixels: Pixels, scale: int = 4) -> list[str]:
    """The texts of the QR codes in a picture that lies on black."""
    width, margin = (len(pixels[0]) + 8) * scale, 4 * scale
    black = bytes(width)
    rows = [black] * margin
    for row in pixels:
        inner = b"".join((b"\xff" if light else b"\0") * scale for light in row)
        rows += [bytes(margin) + inner + bytes(margin)] * scale
    rows += [black] * margin
    image = memoryview(b"".join(rows)).cast("B", shape=[len(rows), width])
    found = zxingcpp.read_barcodes(image, try_invert=False)
    return [code.text for code in found]


def on_terminal(lines: list[str]) -> Pixels:
    """What a dark terminal shows of half blocks."""
    pixels: Pixels = []
    for line in lines:
        halves = [LIGHT_HALVES[character] for character in line]
        pixels += [[upper for upper, _ in halves], [lower for _, lower in halves]]
    return pixels


def in_png(data: bytes) -> Pixels:
    """The pixels of a PNG of one bit a pixel, not interlaced."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, palette = 8, b"", b"\0\0\0\xff\xff\xff"
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + content) == struct.unpack_from(">I", data, at + 8 + size)[0]
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", content)
            assert rest[0] == 1 and rest[1] in (0, 3) and rest[2:] == [0, 0, 0]
        elif kind == b"PLTE":
            palette = content
        elif kind == b"IDAT":
            body += content
        at += 12 + size
    raw, stride = zlib.decompress(body), (width + 7) // 8 + 1
    light = [palette[0] > 127, palette[3] > 127]
    rows: list[bytes] = []
    for start in range(0, height * stride, stride):
        row = raw[start + 1 : start + stride]
        if raw[start] == 2:  # "Up": the difference to the row above
            row = bytes(a + b & 0xFF for a, b in zip(row, rows[-1], strict=True))
        else:
            assert raw[start] == 0
        rows.append(row)
    return [[light[row[x // 8] >> 7 - x % 8 & 1] for x in range(width)] for row in rows]


def in_svg(text: str) -> Pixels:
    """The modules of an SVG that draws dark rows as lines, on white."""
    scaled = re.search(r'width="(\d+)" height="\1"', text)
    assert scaled is not None and 'fill="#fff"' in text and 'stroke="#000"' in text, text[:400]
    [path] = re.findall(r'stroke="#000"[^>]* d="([^"]*)"|d="([^"]*)"[^>]* stroke="#000"', text)
    size = int(scaled[1]) // qrcode.SCALE
    pixels = [[True] * size for _ in range(size)]
    x = y = 0.0
    for letter, numbers in re.findall(r"([Mmh])([-\d. ]*)", "".join(path)):
        values = [float(number) for number in re.findall(r"-?\d*\.?\d+", numbers)]
        if letter == "M":
            x, y = values
        elif letter == "m":
            x, y = x + values[0], y + values[1]
        else:
            for column in range(int(x), int(x + values[0])):
                pixels[int(y)][column] = False
            x += values[0]
    return pixels


class TerminalTests(SynchronousTestCase):
    def test_decodable(self) -> None:
        """What stands on the terminal is the text, short or long, coloured or not."""
        for text in ("x", CONF, "é→" * 40, CONF * 5):
            plain = qrcode.terminal_lines(text, coloured=False)
            self.assertEqual(decoded(on_terminal(plain)), [text])
            coloured = qrcode.terminal_lines(text)
            bare = [re.fullmatch(r"\x1b\[97;40m(.*)\x1b\[0m", line) for line in coloured]
            self.assertEqual(decoded(on_terminal([match[1] for match in bare if match])), [text])

    def test_decoder_can_fail(self) -> None:
        """The proof above sees a wrong picture: halves changed round, or dark for light."""
        lines = qrcode.terminal_lines(CONF, coloured=False)
        for wrong in (str.maketrans("▀▄", "▄▀"), str.maketrans("▀▄█ ", "▄▀ █")):
            self.assertEqual(decoded(on_terminal([line.translate(wrong) for line in lines])), [])

    def test_width(self) -> None:
        """A long .conf fits 80 columns, and so does any code that can, with a quiet zone."""
        self.assertGreater(len(CONF), 375)
        self.assertLessEqual(len(qrcode.terminal_lines(CONF, coloured=False)[0]), 80)
        for size in (*range(1, 520, 9), 520):  # the most in 77 modules, ISO/IEC 18004
            lines = qrcode.terminal_lines("x" * size, coloured=False)
            self.assertEqual({len(line) for line in lines}, {len(lines[0])})
            self.assertLessEqual(len(lines[0]), 80, size)
            pixels = on_terminal(lines)[:-1]
            edges = [*pixels[0], *pixels[-1], *(row[at] for row in pixels for at in (0, -1))]
            self.assertTrue(all(edges), size)

    def test_too_long(self) -> None:
        """More than a QR code can hold is refused with a remedy."""
        for make in (qrcode.terminal_lines, lambda text: qrcode.image(text, ".png")):
            error = self.assertRaises(ConfigError, make, "🔑" * 1500)
            self.assertEqual(str(error), "6000 bytes are too many for a QR code; pass on the file")


class ImageTests(SynchronousTestCase):
    def test_png(self) -> None:
        """A PNG holds the text, and its quiet zone."""
        for text in ("x", CONF):
            pixels = in_png(qrcode.image(text, ".png"))
            self.assertEqual(decoded(pixels, 1), [text])
            zone = qrcode.BORDER * qrcode.SCALE
            self.assertTrue(all(map(all, pixels[:zone])))
            self.assertFalse(all(pixels[zone]))

    def test_svg(self) -> None:
        """An SVG holds the text, and its quiet zone."""
        for text in ("x", CONF):
            pixels = in_svg(qrcode.image(text, ".svg").decode())
            self.assertEqual(decoded(pixels), [text])
            self.assertTrue(all(map(all, pixels[: qrcode.BORDER])))
            self.assertFalse(all(pixels[qrcode.BORDER]))
