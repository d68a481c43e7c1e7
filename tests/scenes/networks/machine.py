"""A host that has more of its own than a network: /etc, /run and a name.

A client changes /etc/resolv.conf, a DHCP client too, programs meet in /run, and a device is called
as its machine is. So each host has a mount and a UTS namespace, kept alive by a process that does
nothing. Its /etc is the machine's own, linked entry by entry, but for the files given here: what is
written there, also by renaming a new file over an old one, nobody else sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.netns.namespaces import etc_of_links

NSSWITCH = """passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""

#: Arguments: the host's name, its /etc, and where the machine's own is to be seen.
HOLDER = """
set -e
echo "$1" >/proc/sys/kernel/hostname
mount --bind /etc "$3"
mount --bind "$2" /etc
mount -t tmpfs -o mode=755 none /run
[ ! -e /sys/module/wireguard ] || mount -t tmpfs none /sys/module
echo ready
exec sleep infinity
"""


def holder(name: str, home: Path, files: Mapping[str, str]) -> list[str]:
    """Prepare the host's /etc in `home`; the command, to be run in its network namespace, that
    prints ``ready`` and then keeps the other namespaces alive.

    :param files: name in /etc → text, resolv.conf among them. /etc/hosts and /etc/nsswitch.conf
        are there in any case.
    """
    own, machines = home / "etc", home / "etc-of-the-machine"
    given = {
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n",
        "hostname": f"{name}\n",
        "nsswitch.conf": NSSWITCH,
        **files,
    }
    etc_of_links(own, machines, given)
    return ["unshare", "--uts", "/bin/sh", "-c", HOLDER, "sh", name, str(own), str(machines)]


def inside(holder: int, home: Path) -> list[str]:
    """What goes before a command to be run in the namespaces that the process `holder` keeps."""
    which = [f"--target={holder}", "--mount", "--net", "--uts"]
    return ["nsenter", *which, f"--wd={home}", "--"]
