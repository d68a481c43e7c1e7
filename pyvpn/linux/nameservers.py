"""Who answers this machine's questions for names, set and restored.

Whoever owns /etc/resolv.conf is asked to do it: systemd-resolved, resolvconf (Debian's or
openresolv, which differ), and only where nobody owns it we write the file. What we set and how it
is given back is always found again from the machine itself, not from our memory.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from pyvpn.linux import namerecords, resolvedlink, resolvfile
from pyvpn.linux.resolvfile import PATH, Ours, Snapshot, failed
from pyvpn.linux.system import ChangeFailed, System

Owner = Literal["resolved", "resolvconf", "file"]

RESOLVED = "/run/systemd/resolve"
RESOLVED_STATIC = "/usr/lib/systemd/resolv.conf"
RESOLVED_UPLINK = f"{RESOLVED}/resolv.conf"
RESOLVCONF = "/run/resolvconf/resolv.conf"
STUBS = ("127.0.0.53", "127.0.0.54")
"""systemd-resolved(8): where it answers programs that read resolv.conf."""

_RUN_OWNERS = {"NetworkManager": "NetworkManager", "connman": "ConnMan", "netconfig": "netconfig"}


@dataclass(frozen=True)
class NameServers:
    """The name servers that come with a TUN.

    :ivar device: the TUN.
    :ivar servers: their addresses, in the order to ask.
    :ivar search: domains to complete short names with, in order; and those are asked of
        ``servers`` whoever else is asked.
    :ivar exclusive: no other server is asked for anything, as all traffic goes through the tunnel.
        Otherwise, where the owner of /etc/resolv.conf can tell names apart (systemd-resolved), only
        names in ``search`` are asked of ``servers``; where it cannot, all names are, and the
        servers of before follow them in the list.
    """

    device: str
    servers: tuple[str, ...]
    search: tuple[str, ...] = ()
    exclusive: bool = False


def owner(system: System, root: str = "/") -> Owner:
    """Who decides what /etc/resolv.conf says.

    :raises ChangeFailed: somebody whom we cannot ask, or it cannot be written.
    """
    try:
        here = resolvfile.snapshot(root)
    except OSError as error:
        raise resolvfile.problem(error) from error
    here = resolvfile.beneath(here, _others(system))
    if here.link is not None:
        return _owner_of_link(here.link, system, root)
    text = here.text or ""
    servers = resolvfile.servers_in(text)
    if servers and all(server in STUBS for server in servers) and resolvedlink.answers(system):
        return "resolved"
    if text.startswith(namerecords.OPENRESOLV_HEADER) and namerecords.resolvconf(system):
        return "resolvconf"
    path = resolvfile.below(root, PATH)
    # Asked of the file when there is one: it may be a writable mount in a directory that is not.
    if not os.access(path if here.text is not None else os.path.dirname(path), os.W_OK):
        raise failed(f"{PATH} cannot be written: it is immutable or its file system read-only")
    return "file"


def before(wanted: NameServers, system: System, root: str = "/") -> dict[str, Any]:
    """What it takes to undo :func:`take`, as JSON takes it; nothing is changed.

    :raises ChangeFailed: as :func:`owner`.
    """
    who = owner(system, root)
    flavour = namerecords.resolvconf(system) if who == "resolvconf" else None
    here = resolvfile.beneath(resolvfile.snapshot(root), _others(system))
    return {
        "owner": who,
        "flavour": flavour,
        "record": namerecords.record_name(wanted.device, flavour, root),
        # Debian's resolvconf cannot be told "only these": a file of ours stands in front of its
        # list. Not so with systemd-resolved: it reads such a file into servers of its own, and
        # keeps them when the file has gone.
        "in_file": who == "file" or (flavour == "debian" and "exclusive"),
        "file": resolvfile.to_json(here),
    }


def take(wanted: NameServers, before: dict[str, Any], system: System, root: str = "/") -> list[str]:
    """Set the name servers; again with other values replaces what was set, ``before`` stays.

    Again with the same values it does nothing, or sets anew what somebody has replaced; in
    /etc/resolv.conf that is then what comes back at the end.

    :returns: lines for the log.
    :raises ChangeFailed: it could not be done; then all is as it was before the call.
    """
    in_file = _in_file(wanted, before)
    in_record = before["owner"] != "file" and not in_file
    record = namerecords.record(wanted.device, before, system, root)
    try:
        here = resolvfile.snapshot(root)
        mine = _mine(here, wanted.device, system)
        try:
            lines = []
            if in_file:
                lines += _take_file(wanted, before, here, system, root)
            elif mine is not None:
                resolvfile.put(mine.before, root)
            if in_record:
                lines += record.put(wanted) + _around_the_stub(before, root)
            elif before["owner"] != "file":
                record.remove()
        except (ChangeFailed, OSError):
            if resolvfile.snapshot(root) != here:
                resolvfile.put(here, root)
            record.restore()
            raise
    except OSError as error:
        raise resolvfile.problem(error) from error
    return lines


def give_back(
    wanted: NameServers, before: dict[str, Any], system: System, root: str = "/"
) -> list[str]:
    """Undo :func:`take`, as far as what it set is still there.

    Not an error: the TUN is gone and its record with it; somebody else has written
    /etc/resolv.conf since, which stays as it is.

    :returns: lines for the log; each failure is one of them, what is left and what helps.
    """
    lines: list[str] = []
    if before["owner"] != "file":
        try:
            lines += namerecords.record(wanted.device, before, system, root).remove()
        except ChangeFailed as error:
            lines.append(f"name servers of {wanted.device} are left: {error.stderr}")
    try:
        lines += _give_back_file(wanted, before, system, root)
    except ChangeFailed as error:
        lines.append(f"{PATH} is left as it is: {error.stderr}")
    except OSError as error:
        lines.append(f"{PATH} is left as it is: {resolvfile.problem(error).stderr}")
    return lines


def repair(system: System, root: str = "/") -> list[str]:
    """Give back the file of a process that ended without doing so: after a power cut nothing else
    is left to tell of it.

    :returns: a line of what was done or could not be; [] where there was nothing to do.
    """
    try:
        here = resolvfile.snapshot(root)
        original = resolvfile.beneath(here, _others(system))
        if original == here:
            return []
        resolvfile.put(original, root)
    except ChangeFailed:
        return []  # whatever it is, it is not ours
    except OSError as error:
        return [f"note: {PATH} is left as it is: {resolvfile.problem(error).stderr}"]
    return [f"{PATH} is as it was before: its process ended without giving it back"]


def upstream(root: str = "/", without: Collection[str] = ()) -> list[str]:
    """The name servers that were set before us, in the order to ask; needs no privilege.

    A scope stays with its address (``fe80::1%eth0``). Servers on loopback come last: they only
    forward, by routes that are not ours to choose.

    :param without: those that are ours.
    """
    try:
        here = resolvfile.snapshot(root)
    except (OSError, ChangeFailed):
        return []
    while (ours := resolvfile.recognised(here)) is not None:
        here = ours.before
    text = resolvfile.text_of(root, here)
    found = _asked_before(here, text, root)
    hidden = {_plain(address) for address in without}
    addresses = [address for address in found if _plain(address) not in hidden | {None}]
    return sorted(dict.fromkeys(addresses), key=_is_loopback)


def _others(system: System) -> Callable[[str], bool]:
    """Tells whether a claim is that of another living process."""
    return lambda claim: claim != system.claim() and system.alive(claim)


def _owner_of_link(link: str, system: System, root: str) -> Owner:
    path = resolvfile.followed(root, link)
    if path.startswith(RESOLVED + "/") or path == RESOLVED_STATIC:
        if not resolvedlink.answers(system):
            raise failed(
                f"{PATH} is a link to {link}, which is systemd-resolved's, but resolvectl is not "
                "there or gets no answer (systemctl status systemd-resolved tells why)"
            )
        return "resolved"
    if path == RESOLVCONF:
        if not namerecords.resolvconf(system):
            raise failed(
                f"{PATH} is a link to {link}, which is resolvconf's, but that program is not here"
            )
        return "resolvconf"
    if path.startswith("/run/"):
        name = path.split("/")[2]
        known = _RUN_OWNERS.get(name, f"a program that we do not know ({name})")
        raise failed(f"{PATH} is a link to {link}, which belongs to {known}")
    if not os.path.isfile(resolvfile.below(root, path)):
        raise failed(f"{PATH} is a link to {link}, where there is no file")
    return "file"


def _around_the_stub(before: dict[str, Any], root: str) -> list[str]:
    """systemd-resolved(8), /etc/resolv.conf: what it can do only while it is asked."""
    link = before["file"]["link"]
    if link is None or resolvfile.followed(root, link) != RESOLVED_UPLINK:
        return []
    return [
        f"{PATH} is a link to {link}: programs that read it ask all name servers for all names; "
        f"with a link to {RESOLVED}/stub-resolv.conf systemd-resolved tells them apart"
    ]


def _mine(here: Snapshot, device: str, system: System) -> Ours | None:
    """Our file for this TUN, unless another living process has written it."""
    ours = resolvfile.recognised(here)
    if ours is None or ours.device != device:
        return None
    return None if _others(system)(ours.claim) else ours


def _take_file(
    wanted: NameServers, before: dict[str, Any], here: Snapshot, system: System, root: str
) -> list[str]:
    mine = _mine(here, wanted.device, system)
    original = mine.before if mine else resolvfile.beneath(here, _others(system))
    lines = []
    if original != resolvfile.from_json(before["file"]):
        lines.append(f"{PATH} was written by somebody else meanwhile: that comes back at the end")
    if under := _mine_under(original, wanted.device, system):
        original = under.before
    asked = _lines(wanted, original, root)
    text = resolvfile.ours_text(Ours(wanted.device, system.claim(), original), asked)
    if text == here.text:
        return lines
    resolvfile.put(Snapshot(text), root)
    if writer := re.search(r"^#.*[Gg]enerated by (\w[\w.-]*)", original.text or "", re.MULTILINE):
        lines.append(
            f"{writer[1]} writes {PATH} too, and then the VPN's name servers are not in it"
        )
    return [*lines, f"{PATH}: {'; '.join(asked)}"]


def _mine_under(original: Snapshot, device: str, system: System) -> Ours | None:
    """Our own file below another client's: without this the two pile up on each other."""
    over = resolvfile.recognised(original)
    return None if over is None else _mine(over.before, device, system)


def _lines(wanted: NameServers, original: Snapshot, root: str) -> list[str]:
    """The part of our file that programs read."""
    old = resolvfile.text_of(root, original)
    servers, search = list(wanted.servers), list(wanted.search)
    if not wanted.exclusive or not servers:
        servers += resolvfile.servers_in(old)
        search += resolvfile.search_in(old)
    servers = list(dict.fromkeys(servers))[: resolvfile.MAX_SERVERS]
    kept = resolvfile.within(search)
    lines = [f"nameserver {server}" for server in servers]
    lines += [f"search {' '.join(kept)}"] if kept else []
    return lines + resolvfile.kept_lines(old)


def _give_back_file(
    wanted: NameServers, before: dict[str, Any], system: System, root: str
) -> list[str]:
    resolvfile.tidy(root)
    here = resolvfile.snapshot(root)
    ours = resolvfile.recognised(here)
    if ours is not None and ours.device == wanted.device:
        resolvfile.put(resolvfile.beneath(ours.before, _others(system)), root)
        return [f"{PATH} is as it was before"]
    if not _in_file(wanted, before) or here == resolvfile.from_json(before["file"]):
        return []
    by = f"PyVPN for {ours.device}" if ours else "another program"
    return [f"{PATH} was written by {by} meanwhile: it is left as it is"]


def _in_file(wanted: NameServers, before: dict[str, Any]) -> bool:
    return bool(before["in_file"]) and (wanted.exclusive or before["in_file"] is True)


def _asked_before(here: Snapshot, text: str, root: str) -> list[str]:
    servers = resolvfile.servers_in(text)
    path = None if here.link is None else resolvfile.followed(root, here.link)
    stub = bool(servers) and all(server in STUBS for server in servers)
    if stub or (path is not None and path.startswith(RESOLVED + "/")):
        uplink = resolvfile.text_of(root, Snapshot(link=RESOLVED_UPLINK))
        return resolvfile.servers_in(uplink)
    if path == RESOLVCONF or text.startswith(namerecords.OPENRESOLV_HEADER):
        return _unique([*namerecords.others(root), *servers])
    return servers


def _unique(addresses: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(addresses))


def _plain(address: str) -> str | None:
    try:
        return str(ip_address(address))
    except ValueError:
        return None


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback
