"""Who this machine is to a hub: its device id and the last login stamp that it used.

One file for each hub and user, with or without a profile. The stamp keeps a client whose clock was
set back able to log in (docs/protocol.rst, "Login").
"""

from __future__ import annotations

import json
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
        """Write the file anew, whole or not at all.

        :raises StoreError: it cannot be written.
        """
        entry = {"device": self.device.hex(), "last_stamp": self.last_stamp}
        try:
            write_private_file(self.path, json.dumps(entry))
        except ConfigError as error:
            raise StoreError(str(error)) from error
