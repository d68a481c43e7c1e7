"""Who this machine is to a hub: its device id and the last login stamp that it used.

One file for each hub and user, with or without a profile. The stamp keeps a client whose clock was
set back able to log in (docs/protocol.rst, "Login").
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path

from attrs import define

from pyvpn.errors import StoreError

DEVICE_ID_SIZE = 16


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
        """Read the file of one hub and user; make it if there is none.

        :raises StoreError: it cannot be read, written or understood.
        """
        name = blake2s(login_public + user.encode(), digest_size=12).hexdigest()
        path = state_dir / "clients" / f"{name}.json"
        try:
            entry = json.loads(path.read_text(encoding="ascii"))
            device = bytes.fromhex(entry["device"])
            last_stamp = entry["last_stamp"]
            if len(device) != DEVICE_ID_SIZE or type(last_stamp) is not int or last_stamp < 0:
                raise ValueError
        except FileNotFoundError:
            identity = cls(path, random_bytes(DEVICE_ID_SIZE))
            identity.save()
            return identity
        except OSError as error:
            raise StoreError(f"{path}: cannot read this file: {error.strerror}") from error
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"{path}: this file is damaged; remove it, and the hub will see a new device"
            ) from None
        return cls(path, device, last_stamp)

    def save(self) -> None:
        """Write the file anew, whole or not at all.

        :raises StoreError: it cannot be written.
        """
        entry = {"device": self.device.hex(), "last_stamp": self.last_stamp}
        temporary = None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent)
            with open(descriptor, "w", encoding="ascii") as file:
                json.dump(entry, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
            raise StoreError(f"{self.path}: cannot write this file: {error.strerror}") from error
