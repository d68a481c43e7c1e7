"""/etc/resolv.conf as a file: what stands there, a text of ours in its place, and back again.

Ours carries in comment lines all that was there before, and a check sum of itself. So it can be
given back without any other record (after a power cut the journal in /run is gone, this file is
not), a service without privilege can read in it who was asked before, and a file that somebody
else has changed meanwhile is never mistaken for ours.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pyvpn.linux.system import ChangeFailed

PATH = "/etc/resolv.conf"

MAX_BYTES = 65536
"""More than any resolv.conf; bounds what the child keeps of a file that is something else."""

MAX_SERVERS = 3
"""resolv.conf(5): MAXNS, glibc reads no more."""

MAX_SEARCH = (6, 256)
"""resolv.conf(5): domains, and characters together, that a glibc before 2.26 reads."""

REMEDY = "--no-dns leaves the name servers alone"

_TITLE = "# PyVPN set the name servers of "
_ADVICE = '# What was here before stands below; "pyvpn down" or "pyvpn cleanup" gives it back.\n'
_BEFORE = "# before: "
_TEMPORARY = "/etc/.resolv.conf.pyvpn"
_LABEL = "security.selinux"


@dataclass(frozen=True)
class Snapshot:
    """What stands at /etc/resolv.conf.

    :ivar text: all of it, a character a byte (Latin-1), so that any bytes come back as they were;
        None for a link and for nothing at all.
    :ivar link: where the link leads, as it is written; None for no link.
    """

    text: str | None = None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str | None = None


@dataclass(frozen=True)
class Ours:
    """A resolv.conf that we wrote, unchanged.

    :ivar device: the TUN that it is for.
    :ivar claim: the process that wrote it (:meth:`pyvpn.linux.system.System.claim`).
    """

    device: str
    claim: str
    before: Snapshot


def failed(text: str, code: int = 1) -> ChangeFailed:
    """The error of all that goes wrong with name servers: what, and what helps."""
    return ChangeFailed(["set", "name", "servers"], code, f"{text}; {REMEDY}")


def below(root: str, path: str) -> str:
    """``path``, that is absolute, as seen from outside ``root``."""
    return os.path.join(root, path.lstrip("/"))


def followed(root: str, link: str) -> str:
    """The path that /etc/resolv.conf leads to when it is the link ``link``, as seen in ``root``."""
    path = PATH
    for _ in range(8):
        path = os.path.normpath(os.path.join(os.path.dirname(path), link))
        if path.startswith("/var/run/"):  # everywhere a link to /run
            path = path.removeprefix("/var")
        try:
            link = os.readlink(below(root, path))
        except OSError:
            break
    return path


def snapshot(root: str = "/") -> Snapshot:
    """What stands there now.

    :raises ChangeFailed: neither a file nor a link, or no resolv.conf at all by its size.
    :raises OSError: it cannot be read.
    """
    path = below(root, PATH)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return Snapshot()
    if stat.S_ISLNK(status.st_mode):
        link = os.readlink(path)
        if not link.isascii() or not link.isprintable():
            raise failed(f"{PATH} is a link to {link!r}, a name that nothing good comes of")
        return Snapshot(link=link)
    if not stat.S_ISREG(status.st_mode):
        raise failed(f"{PATH} is neither a file nor a link")
    if status.st_size > MAX_BYTES:
        raise failed(f"{PATH} has {status.st_size} bytes, which no list of name servers has")
    mode = stat.S_IMODE(status.st_mode)
    return Snapshot(_read(path), mode, status.st_uid, status.st_gid)


def text_of(root: str, of: Snapshot) -> str:
    """The text that a program reads through ``of``; "" for none."""
    if of.link is None:
        return of.text or ""
    try:
        return _read(below(root, followed(root, of.link)))
    except OSError:
        return ""


def recognised(of: Snapshot) -> Ours | None:
    """Did we write this, and did nobody change it since?"""
    if of.text is None or not of.text.startswith(_TITLE):
        return None
    first, _, rest = of.text.partition("\n")
    device, _, signed = first.removeprefix(_TITLE).partition(" (")
    claim, _, check = signed.removesuffix(")").partition(" ")
    if check != _check(device, claim, rest):
        return None
    lines = rest.split("\n")[:-1]
    packed = [line.removeprefix(_BEFORE) for line in lines if line.startswith(_BEFORE)]
    before = _unpacked(packed)
    return None if before is None else Ours(device, claim, before)


def beneath(of: Snapshot, holds: Callable[[str], bool]) -> Snapshot:
    """``of``, or what was there before when that is ours and its writer holds it no more, etc."""
    while (ours := recognised(of)) is not None and not holds(ours.claim):
        of = ours.before
    return of


def ours_text(ours: Ours, lines: Iterable[str]) -> str:
    """Our file, with ``lines`` for the programs that read it."""
    rest = _ADVICE + "".join(f"{line}\n" for line in lines)
    rest += "".join(f"{_BEFORE}{line}\n" for line in _packed(ours.before))
    signed = f"{ours.claim} {_check(ours.device, ours.claim, rest)}"
    return f"{_TITLE}{ours.device} ({signed})\n{rest}"


def put(wanted: Snapshot, root: str = "/") -> None:
    """Make it stand there, as one step where that can be.

    :raises OSError: it could not be; what stood there stands there still.
    """
    path, temporary = below(root, PATH), below(root, _TEMPORARY)
    if wanted == Snapshot():
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    try:
        _remove(temporary)
        _create(temporary, wanted, path)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        # A file that is a mount of its own (a container's) cannot be replaced, only written.
        in_place = error.errno in (errno.EBUSY, errno.EROFS) and not os.path.islink(path)
        if wanted.text is None or not in_place:
            raise
        _overwrite(path, wanted.text)


def tidy(root: str = "/") -> None:
    """Remove what :func:`put` leaves when it is killed."""
    _remove(below(root, _TEMPORARY))


def servers_in(text: str) -> list[str]:
    """The name servers of a resolv.conf, in order, each once."""
    return list(dict.fromkeys(words[0] for words in _values(text, "nameserver") if words))


def search_in(text: str) -> list[str]:
    """Its search domains; the last line of them counts, as in glibc."""
    lists = _values(text, "search", "domain")
    return lists[-1] if lists else []


def kept_lines(text: str) -> list[str]:
    """Its lines about how to ask, not whom."""
    return [line for line in text.split("\n") if line.split()[:1] in (["options"], ["sortlist"])]


def within(domains: Iterable[str]) -> list[str]:
    """As many of these search domains as every libc reads."""
    kept: list[str] = []
    for domain in dict.fromkeys(domains):
        if len(kept) < MAX_SEARCH[0] and len(" ".join([*kept, domain])) <= MAX_SEARCH[1]:
            kept.append(domain)
    return kept


def problem(error: OSError) -> ChangeFailed:
    """An error of the system at /etc/resolv.conf, for people."""
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EPERM:
        said += f" (chattr -i {PATH} makes an immutable file writable)"
    return failed(f"{PATH} cannot be replaced: {said}", error.errno or 1)


def to_json(of: Snapshot) -> dict[str, Any]:
    """For the journal."""
    return asdict(of)


def from_json(values: dict[str, Any]) -> Snapshot:
    """And back.

    :raises TypeError: that is no snapshot.
    """
    return Snapshot(**values)


def _values(text: str, *keywords: str) -> list[list[str]]:
    # glibc wants the keyword in the first column, so an indented line is none.
    lines = [line.split() for line in text.split("\n") if line[:1].strip()]
    return [words[1:] for words in lines if words[0] in keywords]


def _check(device: str, claim: str, rest: str) -> str:
    return hashlib.sha256(f"{device} {claim}\n{rest}".encode("latin-1", "replace")).hexdigest()[:32]


def _packed(of: Snapshot) -> list[str]:
    if of.link is not None:
        return [f"link {of.link}"]
    if of.text is None:
        return ["nothing"]
    return [f"file {of.mode:o} {of.uid} {of.gid}", *of.text.split("\n")]


def _unpacked(lines: list[str]) -> Snapshot | None:
    kind, *values = lines[0].split(" ") if lines else [""]
    if kind == "link" and values:
        return Snapshot(link=lines[0].removeprefix("link "))
    if kind == "file" and len(values) == 3:
        mode, uid, gid = int(values[0], 8), int(values[1]), int(values[2])
        return Snapshot("\n".join(lines[1:]), mode, uid, gid)
    return Snapshot() if kind == "nothing" else None


def _read(path: str) -> str:
    with open(path, "rb") as stream:
        return stream.read(MAX_BYTES).decode("latin-1")


def _create(path: str, wanted: Snapshot, like: str) -> None:
    if wanted.link is not None:
        os.symlink(wanted.link, path)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write(descriptor, wanted.text or "")
        if (wanted.uid, wanted.gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, wanted.uid, wanted.gid)
        os.fchmod(descriptor, wanted.mode)
        _copy_label(like, path)
        # Or a power cut after the rename leaves an empty file, and a machine without names.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        old = os.pread(descriptor, MAX_BYTES, 0)
        try:
            _write(descriptor, text)
            os.ftruncate(descriptor, len(text))
        except OSError:
            os.lseek(descriptor, 0, os.SEEK_SET)
            _write(descriptor, old.decode("latin-1"))
            os.ftruncate(descriptor, len(old))
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    rest = text.encode("latin-1")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _copy_label(source: str, target: str) -> None:
    """With SELinux a file that a daemon may not read is as good as none."""
    with suppress(OSError):
        os.setxattr(target, _LABEL, os.getxattr(source, _LABEL))


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
