"""What a client changes on a machine, as text, so that before and after can be compared."""

from __future__ import annotations

import difflib
import os
import re
import stat

from tests.scenes.ends import Failed
from tests.scenes.networks.lab import NetworksLab

COMMANDS = (
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "ip -brief link",
    "ip -brief address",
    "nft list ruleset",
)

#: Below /proc/sys/net; of each interface that there is.
SYSCTLS = (
    "ipv4/ip_forward",
    *(
        f"ipv4/conf/*/{name}"
        for name in (
            "rp_filter",
            "src_valid_mark",
            "send_redirects",
            "accept_redirects",
            "secure_redirects",
            "forwarding",
        )
    ),
    *(
        f"ipv6/conf/*/{name}"
        for name in ("forwarding", "accept_ra", "accept_redirects", "disable_ipv6")
    ),
)

#: Goes on by itself: how long something is still known for, and what a counter has counted.
VOLATILE = (
    (re.compile(r" expires \d+sec"), ""),
    (re.compile(r"packets \d+ bytes \d+"), "packets N bytes N"),
)


def snapshot(lab: NetworksLab, host: str) -> str:
    """All of it, with a heading for each part."""
    parts = []
    for command in COMMANDS:
        text = lab.run(host, command.split(), check=True).stdout
        for pattern, instead in VOLATILE:
            text = pattern.sub(instead, text)
        lines = [line.rstrip() for line in text.splitlines()]
        parts += [f"# {command}", *(sorted(lines) if "table all" in command else lines)]
    shell = f"cd /proc/sys/net && grep -H . {' '.join(SYSCTLS)}"
    sysctls = lab.run(host, ["sh", "-c", shell], check=True).stdout
    parts += ["# sysctl", *sorted(sysctls.splitlines()), "# resolv.conf"]
    return "\n".join([*parts, *_resolv_conf(lab, host), ""])


def difference(before: str, after: str) -> str:
    """What is there no more (-) and what is new (+), one to a line; "" for nothing."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def same(before: str, after: str, when: str) -> None:
    """:class:`Failed` with the difference, if there is one."""
    found = difference(before, after)
    if found:
        raise Failed(f"the machine is not as before, {when}:\n{found}")


def _resolv_conf(lab: NetworksLab, host: str) -> list[str]:
    """Its kind, mode and owner, where it leads if it is a link, and its lines."""
    path = lab.etc(host, "resolv.conf")
    found = path.lstat()
    about = f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(found.st_mode):
        return [f"{about} -> {os.readlink(path)}"]
    return [about, *path.read_text().splitlines()]
