"""Tests of what the hub remembers."""

import os
import tempfile
from pathlib import Path


def temporary_directory() -> Path:
    """A new directory, in memory where that exists: each test waits for many fsyncs."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-", dir=fast))
