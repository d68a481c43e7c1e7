"""Writing a file so that it is whole or not there. Standard library only: root's child needs it."""

from __future__ import annotations

import os
from contextlib import suppress


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file, mode 0600: readers see the old or the new one, never a part.

    The content is on the disk before the name is; :func:`sync_directory` makes the name durable.

    :raises OSError: the directory is missing, full or not writable; nothing has changed then.
    """
    new = f"{os.fspath(path)}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    # The directory may belong to another user than us: root must not be led by a link of his to
    # another file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
