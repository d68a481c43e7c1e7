"""The built wheel, installed away from the sources: twistd finds both commands in it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import __version__

ROOT = Path(__file__).resolve().parent.parent
TWISTD = "from twisted.scripts.twistd import run; run()"


class WheelTests(SynchronousTestCase):
    """One wheel, built from a copy of the sources without any registry."""

    wheel: Path

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix=f"pyvpn-wheel-{os.getpid()}-")
        self.addCleanup(directory.cleanup)
        self.away = Path(directory.name)
        self.empty = self.away / "empty"
        self.empty.mkdir()
        built = self.away / "built"
        # The environment's own setuptools builds: an isolated build would ask a registry for it.
        self.succeed([ROOT / "contrib" / "wheel.sh", sys.executable, built, "--no-build-isolation"])
        (self.wheel,) = built.glob("*.whl")

    def succeed(self, argv: list[str | Path]) -> str:
        """Run a command in an empty directory to success; what it printed."""
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.empty,
            timeout=120,
            check=False,
        )
        self.assertEqual(done.returncode, 0, f"{argv}: {done.stdout}")
        return done.stdout

    def test_wheel_is_complete(self) -> None:
        """Every module of the package and the plugin is in the wheel and nothing else, so that no
        subpackage is forgotten in setup.cfg; the license goes with it."""
        sources = {
            str(path.relative_to(ROOT))
            for pattern in ("pyvpn/**/*.py", "pyvpn/py.typed", "twisted/plugins/*.py")
            for path in ROOT.glob(pattern)
        }
        self.assertIn("twisted/plugins/pyvpn_plugin.py", sources)
        packed = set(zipfile.ZipFile(self.wheel).namelist())
        metadata = {name for name in packed if ".dist-info/" in name}
        self.assertEqual(packed - metadata, sources)
        self.assertTrue([name for name in metadata if name.endswith("LICENSE")])

    def test_installed_elsewhere(self) -> None:
        """In a virtual environment that has the dependencies, twistd knows neither command before
        the wheel is installed and both after it, and ``pyvpn`` is there and tells its version."""
        home = self.away / "venv"
        venv.create(home, with_pip=False, symlinks=True)
        python = home / "bin" / "python"
        scheme = {"base": str(home), "platbase": str(home)}
        packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        # The dependencies of the environment that runs this test. Only one in site-packages itself
        # has its .pth files read, so the development installation of PyVPN does not come along.
        dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (packages / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
        help_text: list[str | Path] = [python, "-I", "-c", TWISTD, "--help"]

        before = self.succeed(help_text)
        self.assertNotIn("pyvpn-", before)
        self.assertIn("web", before)
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install"]
        self.succeed([*pip, "--quiet", "--no-deps", "--no-index", "--ignore-installed", self.wheel])
        after = self.succeed(help_text)
        self.assertRegex(after, r"pyvpn-server +PyVPN's hub")
        self.assertRegex(after, r"pyvpn-client +A client of PyVPN")

        place = self.succeed([python, "-I", "-c", "import pyvpn; print(pyvpn.__file__)"])
        self.assertEqual(Path(place.strip()), packages / "pyvpn" / "__init__.py")
        version = self.succeed([home / "bin" / "pyvpn", "--version"])
        self.assertIn(__version__, version)
        for name in ("pyvpn-server", "pyvpn-client"):
            options = self.succeed([python, "-I", "-c", TWISTD, name, "--help"])
            self.assertIn("--state-dir" if name == "pyvpn-server" else "--profile", options)
