"""Whom ``USER`` and ``USER/DEVICE`` mean."""

from __future__ import annotations

import unicodedata
from shlex import quote

from pyvpn.errors import ConfigError
from pyvpn.state.interface import IStore


def holder(store: IStore, text: str) -> tuple[str | None, bytes | None]:
    """A user, and the id of one of the devices if one is named; (None, None) for nobody.

    A user's name may hold slashes: the longest one that exists is meant.

    :raises ConfigError: there is no such user or device; names those that there are.
    """
    text = unicodedata.normalize("NFC", text)
    if not text:
        return None, None
    users = store.users()
    cuts = [len(text), *(n for n in range(len(text) - 1, 0, -1) if text[n] == "/")]
    for cut in cuts:
        if (user := text[:cut]) in users:
            return user, None if cut == len(text) else _device(store, user, text[cut + 1 :])
    if any(record.name == text for record in store.peers().values()):
        raise ConfigError(
            f"'{text}' is a WireGuard peer; what is behind one is said when it is added: pyvpn peer"
            f" add {quote(text)} --allowed-ips …",
            key="via",
        )
    name = text.partition("/")[0]
    raise ConfigError(f"there is no user '{name}'; to see all: pyvpn user list", key="via")


def _device(store: IStore, user: str, text: str) -> bytes:
    """The id of a user's device, by its name or the beginning of its id."""
    mine = [device for device in store.devices().values() if device.user == user]
    found = [device for device in mine if device.name == text]
    if not found and len(text) >= 8:
        found = [device for device in mine if device.device_id.hex().startswith(text.lower())]
    if len(found) == 1:
        return found[0].device_id
    if found:
        ids = ", ".join(sorted(device.device_id.hex()[:8] for device in found))
        raise ConfigError(
            f"'{user}' has {len(found)} devices called '{text}'; give one of their ids in place of"
            f" the name: {ids}",
            key="via",
        )
    names = ", ".join(sorted(device.name or device.device_id.hex()[:8] for device in mine))
    raise ConfigError(
        f"'{user}' has no device '{text}'; there are: {names or 'none that has been seen yet'}",
        key="via",
    )
