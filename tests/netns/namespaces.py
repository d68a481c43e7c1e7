"""Network namespaces through ``ip``: made, listed, emptied and deleted by name."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.netns.processes import LabError, WaitedTooLong, search_path, wait_until

NAMED_NAMESPACES = Path("/run/netns")
#: What lies in NAME there is seen as /etc/... by what 'ip netns exec NAME' runs.
ETC_OF_NAMESPACES = Path("/etc/netns")


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``ip``; with `check` a failure is a :class:`LabError` that quotes it."""
    done = subprocess.run(
        ["ip", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": search_path()},
        check=False,
    )
    if check and done.returncode:
        said = " ".join(done.stderr.split())
        raise LabError(f"ip {shlex.join(words)} ended with status {done.returncode}: {said}")
    return done


def why_not() -> str | None:
    """Why a laboratory cannot be built here, as one line, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [
        name for name in ("ip", "nft", "ping") if shutil.which(name, path=search_path()) is None
    ]
    if missing:
        return f"missing commands: {', '.join(missing)} (make deps installs them)"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun (modprobe tun)"
    # Containers often run as root without the right to make namespaces: only trying tells.
    probe = f"pyvpn-{os.getpid()}-probe"
    made = ip("netns", "add", probe, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {' '.join(made.stderr.split())}"
    ip("netns", "del", probe)
    return None


def named(prefix: str) -> Iterator[str]:
    """The namespaces whose names begin with `prefix` and a dash."""
    if NAMED_NAMESPACES.is_dir():
        for entry in sorted(NAMED_NAMESPACES.iterdir()):
            if entry.name.startswith(f"{prefix}-"):
                yield entry.name


def remove_namespace(namespace: str) -> None:
    """End what still runs in a namespace of ours, then delete it; harmless without it."""
    if not (NAMED_NAMESPACES / namespace).exists():
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids(namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        # Their children may have undone their Linux state first: give them a moment to.
        with contextlib.suppress(WaitedTooLong):
            wait_until(lambda: not pids(namespace), "an empty namespace", 5)
            break
    ip("netns", "del", namespace, check=False)
    shutil.rmtree(ETC_OF_NAMESPACES / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):  # somebody else's is there too
        ETC_OF_NAMESPACES.rmdir()


def own_etc(namespace: str, files: Mapping[str, str]) -> None:
    """Give a namespace files of its own over those of /etc; :func:`remove_namespace` removes
    them."""
    place = ETC_OF_NAMESPACES / namespace

    def made() -> bool:
        # Another laboratory may remove the empty directory above at any moment.
        with contextlib.suppress(FileNotFoundError):
            place.mkdir(parents=True, exist_ok=True)
        return place.is_dir()

    wait_until(made, f"the directory {place}", 5)
    for name, text in files.items():
        (place / name).write_text(text)


def etc_of_links(own: Path, machines: Path, files: Mapping[str, str]) -> None:
    """Make a directory that, mounted as /etc, is the machine's but for `files` (name → text).

    :param own: the directory, made here.
    :param machines: where the machine's /etc is to be mounted; made here, too.
    """
    own.mkdir()
    machines.mkdir()
    for entry in Path("/etc").iterdir():
        if entry.name not in files:
            target = os.readlink(entry) if entry.is_symlink() else machines / entry.name
            (own / entry.name).symlink_to(target)
    for name, text in files.items():
        (own / name).write_text(text)
        (own / name).chmod(0o644)


def pids(namespace: str) -> list[int]:
    """The processes whose network namespace it is."""
    shown = ip("netns", "pids", namespace, check=False)
    return [int(word) for word in shown.stdout.split()]
