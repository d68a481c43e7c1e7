"""Who this machine is to a hub: its device id and the last login stamp that it used.

One file for each hub and user, with or without a profile. The stamp keeps a client whose clock was
set back able to log in (docs/protocol.rst, "Login").
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from hashlib import blake2s
from pathlib import Path

from attrs import define

from pyvpn.config import write_private_file
from pyvpn.errors import ConfigError, StoreError

DEVICE_ID_SIZE = 16
#: Unix nanoseconds in the year 2262: above it a stamp is damage and not a wrong clock.
LATEST_STAMP = 1 << 63


@define
class ClientIdentity:
    """What is kept.

    :ivar device: 16 random bytes, made once.
    :ivar last_stamp: Unix nanoseconds, 0 before the first login.
    """

    path: Path
    device: bytes
    last_stamp: int = 0

    @classmethod
    def load(
        cls,
        state_dir: Path,
        login_public: bytes,
        user: str,
        random_bytes: Callable[[int], bytes],
    ) -> ClientIdentity:
        """Read the file of one hub and user; without one, make an id that :meth:`save` will keep.

        :raises StoreError: it cannot be read or understood.
        """
        name = blake2s(login_public + user.encode(), digest_size=12).hexdigest()
        path = state_dir / "clients" / f"{name}.json"
        try:
            entry = json.loads(path.read_text(encoding="ascii"))
            device = bytes.fromhex(entry["device"])
            last_stamp = entry["last_stamp"]
            if type(last_stamp) is not int or not 0 <= last_stamp < LATEST_STAMP:
                raise ValueError
            if len(device) != DEVICE_ID_SIZE:
                raise ValueError
        except FileNotFoundError:
            return cls(path, random_bytes(DEVICE_ID_SIZE))
        except OSError as error:
            raise StoreError(f"{path}: cannot read this file: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(
                f"{path}: this file is damaged; remove it, and the hub will see a new device"
            ) from None
        return cls(path, device, last_stamp)

    def save(self) -> None:
        """Write what is kept; waits for the disk only if the file is not as we left it.

        A client that serves has no thread that could wait, and saves with every login. So only the
        first save is whole, on the disk, or not at all. Each later one overwrites the stamp where
        it stands and has the kernel begin to write, which is sound for three reasons:

        * The file is 81 bytes, always, and begins a sector: after a power cut it holds the old
          stamp or the new one. A process that is killed leaves what it wrote to the kernel.
        * The device id is overwritten by itself.
        * The old stamp is as good as the new one unless the clock is set back as well. Then the hub
          takes no login until that clock is past the stamp that was lost (docs/security.rst, "What
          a crash can lose"). Before, that was so in the moment until fsync() was done, and is now
          in the moment until the kernel's write is.

        :raises StoreError: it cannot be written.
        """
        # Blanks keep the length; stamps have 19 digits from the year 2001 on.
        text = f'{{"device": "{self.device.hex()}", "last_stamp": {self.last_stamp:>19}}}'
        if _overwrite(self.path, text.encode("ascii")):
            return
        try:
            write_private_file(self.path, text)
        except ConfigError as error:
            raise StoreError(str(error)) from error


def _overwrite(path: Path, data: bytes) -> bool:
    """Overwrite a file in place, without waiting; False where it is not one that we have made.

    It may be gone, damaged, restored with another mode, or a link of the directory's owner's to
    what root must not write to (as in :func:`pyvpn.files.replace_file`).
    """
    try:
        # O_NONBLOCK: a FIFO without a reader is refused and not waited for.
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        now = os.fstat(descriptor)
        ours = stat.S_IFREG | 0o600, 1, os.geteuid(), len(data)
        if (now.st_mode, now.st_nlink, now.st_uid, now.st_size) != ours:
            return False
        if os.pwrite(descriptor, data, 0) != len(data):
            return False
        # mm/fadvise.c: starts the write (WB_SYNC_NONE), which would else be due in 30 s.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False  # the disk is full or failing: the whole write says so, if it fails too
    finally:
        os.close(descriptor)
    return True
