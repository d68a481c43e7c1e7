"""What is read from /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.cpu import cipher_warnings, has_aes, wants_aes

#: Lines as the kernel writes them, and whether they tell of AES instructions.
PROCESSORS = {
    "flags\t\t: fpu vme pclmulqdq sse4_2 aes xsave avx\n": True,
    "flags\t\t: fpu vme pclmulqdq sse4_2 xsave avx\n": False,
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32\n": True,
    "Features\t: fp asimd evtstrm crc32 cpuid\n": False,
    # Whatever else has it in its name is no such instruction.
    "model name\t: aes 9000\nflags\t\t: fpu vaes aeskle\n": False,
    "": False,
}


class ProcessorTests(SynchronousTestCase):
    """Recorded processors of x86-64 and aarch64."""

    def written(self, text: str) -> str:
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    def test_instructions(self) -> None:
        """AES instructions are found where the kernel names them; none without the file."""
        for text, has in PROCESSORS.items():
            self.assertIs(has_aes(self.written(text)), has, text)
        self.assertFalse(has_aes("/nonexistent"))

    def test_option(self) -> None:
        """--cipher decides, auto asks the processor; a pin against it draws a warning."""
        for text, has in PROCESSORS.items():
            path = self.written(text)
            for cipher, wanted in (
                ("auto", has),
                ("aes-256-gcm", True),
                ("chacha20-poly1305", False),
            ):
                self.assertIs(wants_aes(cipher, path), wanted, (text, cipher))  # type: ignore[arg-type]
                warned = cipher_warnings(cipher, path)  # type: ignore[arg-type]
                self.assertEqual(len(warned), wanted and not has, (text, cipher))
