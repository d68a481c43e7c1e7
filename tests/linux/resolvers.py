"""A machine of its own, as far as names go: network, /etc, /run, and the real owner of resolv.conf.

It has an uplink (eth0) and a TUN's stand-in (leamit0), with a name server at the end of each that
answers every question with an address that tells who answered.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from unittest import SkipTest

from pyvpn.linux.system import Completed, LinuxSystem

UPLINK_SERVER, VPN_SERVER = "192.168.1.1", "10.10.0.1"
ANSWERED = {"192.0.2.1": "uplink", "10.99.0.1": "vpn"}
"""Who gives which address for every name."""

_TREES = os.environ.get("PYVPN_RESOLVERS", str(Path(__file__).parents[2] / "build" / "resolvers"))

_BASE = f"""
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/u /mnt/w
if [ -d "$TREE/usr" ]; then
    mount -t overlay overlay -o lowerdir="$TREE/usr":/usr /usr
    mount -t overlay overlay -o lowerdir="$TREE/etc":/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
else
    mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
fi
mount -t tmpfs tmpfs /run
echo 'hosts: files dns' >/etc/nsswitch.conf
rm -f /etc/resolv.conf
ip link set lo up
unshare --net sh -c 'touch /run/apart; exec "$PYTHON" -c "$SERVERS"' &
servers=$!
while [ ! -e /run/apart ]; do sleep 0.02; done
ip link add eth0 type veth peer name far0
ip link add leamit0 type veth peer name far1
ip link set dev far0 netns $servers
ip link set dev far1 netns $servers
ip address add 192.168.1.2/24 dev eth0
ip address add 10.10.0.2/24 dev leamit0
ip link set eth0 up
ip link set leamit0 up
ip route add default via {UPLINK_SERVER}
"""

_OWNERS = {
    "file": "printf 'nameserver %s\\nsearch lan\\noptions timeout:1' $UPLINK >/etc/resolv.conf",
    "openresolv": "printf 'nameserver %s\\nsearch lan\\n' $UPLINK | resolvconf -a eth0.dhclient",
    "debian": """
mkdir -p /run/resolvconf/interface
ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf
resolvconf --enable-updates
printf 'nameserver %s\\nsearch lan\\n' $UPLINK | resolvconf -a eth0.dhclient
""",
    "resolved": """
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
mkdir -p /run/dbus /run/systemd
grep -q ^systemd-resolve: /etc/passwd ||
    echo 'systemd-resolve:x:1997:1997::/:/usr/sbin/nologin' >>/etc/passwd
cat >/run/dbus.conf <<END
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>
END
dbus-daemon --config-file=/run/dbus.conf --nofork --nopidfile >/run/dbus.log 2>&1 &
while [ ! -S /run/dbus/system_bus_socket ]; do sleep 0.02; done
/lib/systemd/systemd-resolved >/run/resolved.log 2>&1 &
while ! resolvectl dns eth0 $UPLINK 2>/run/resolvectl.log; do sleep 0.05; done
resolvectl domain eth0 lan
while [ ! -e /run/systemd/resolve/stub-resolv.conf ]; do sleep 0.05; done
""",
}

# Two name servers: who was asked what goes to /run/asked, a line each.
_SERVERS = f"""
import select, socket, subprocess, time
while not {{"far0", "far1"}} <= {{name for _, name in socket.if_nameindex()}}:
    time.sleep(0.02)
sockets = {{}}
for name, device, address, answer in (("uplink", "far0", "{UPLINK_SERVER}", "192.0.2.1"),
                                      ("vpn", "far1", "{VPN_SERVER}", "10.99.0.1")):
    subprocess.run(["ip", "address", "add", address + "/24", "dev", device], check=True)
    subprocess.run(["ip", "link", "set", device, "up"], check=True)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 53))
    sockets[s] = name, answer
open("/run/asked", "w").close()
while True:
    for s in select.select(list(sockets), [], [])[0]:
        query, peer = s.recvfrom(4096)
        end = query.index(0, 12)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode())
            at += 1 + query[at]
        name, answer = sockets[s]
        with open("/run/asked", "a") as log:
            print(name, ".".join(labels), file=log)
        question = query[12:end + 5]
        is_a = query[end + 1:end + 3] == b"\\0\\1"
        reply = query[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([is_a]) + b"\\0\\0\\0\\0" + question
        if is_a:
            reply += b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + socket.inet_aton(answer)
        s.sendto(reply, peer)
"""


class Machine:
    """One such machine; also a :class:`pyvpn.linux.system.System` inside it.

    :param owner: ``file``, or a tree that contrib/resolvers.sh unpacks.
    :ivar root: its file system, as the functions under test take it.
    :raises SkipTest: no privilege (a failure where PYVPN_REQUIRE_NETNS=1), or nothing unpacked.
    """

    def __init__(self, owner: str) -> None:
        tree = os.path.join(_TREES, owner)
        if owner != "file" and not os.path.isdir(tree):
            raise SkipTest("contrib/resolvers.sh unpacks what this needs")
        if os.geteuid() != 0 and os.environ.get("PYVPN_REQUIRE_NETNS") != "1":
            raise SkipTest("a namespace needs root")
        script = f"{_BASE}\n{_OWNERS[owner]}\n{_WHEN_READY}"
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TREE": tree,
            "PYTHON": sys.executable,
            "SERVERS": _SERVERS,
            "UPLINK": UPLINK_SERVER,
        }
        # Whatever runs in there ends with its process 1, and that with us: its input closes.
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [*unshare, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
        )
        assert self._process.stdout is not None
        bound = Timer(20, self._process.kill)
        bound.start()
        ready = self._process.stdout.readline() == "ready\n"
        bound.cancel()
        if not ready:
            self._process.kill()
            said = self._process.communicate(timeout=20)[1]
            raise AssertionError(f"the machine with {owner} did not start: {said}")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        self._pid = children.split()[0]
        self.root = f"/proc/{self._pid}/root"
        self._real = LinuxSystem()
        self.claim = self._real.claim
        self.alive = self._real.alive

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        enter = ["nsenter", "-t", self._pid, "--mount", "--net", "--pid", "--"]
        return self._real.run([*enter, *argv], stdin)

    def do(self, script: str) -> str:
        """Run a script inside; what it printed."""
        done = self.run(["sh", "-ec", script], "")
        if done.code:
            raise AssertionError(f"{script}: {done.stderr}")
        return done.stdout

    def path(self, path: str) -> Path:
        """A file of this machine, as seen from outside."""
        return Path(self.root + path)

    def asked(self, name: str) -> tuple[str, set[str]]:
        """Look a name up as programs do: who answered, and who was asked for it."""
        before = self.path("/run/asked").read_text()
        end = time.monotonic() + 15
        while (done := self.run(["getent", "ahostsv4", name], "")).code and time.monotonic() < end:
            continue
        asked = self.path("/run/asked").read_text().removeprefix(before).splitlines()
        who = {line.split()[0] for line in asked if line.split()[1].startswith(name)}
        return ANSWERED.get(done.stdout.split(" ")[0], done.stdout), who

    def state(self) -> str:
        """All about names that must be the same afterwards."""
        path = self.path("/etc/resolv.conf")
        link = os.readlink(path) if path.is_symlink() else ""
        names = sorted(name for name in os.listdir(self.root + "/etc") if "resolv" in name)
        text = self.do("cat /etc/resolv.conf; (resolvectl dns; resolvectl domain) 2>&1 || true")
        return f"{oct(os.lstat(path).st_mode)} {link} {names}\n{text}"

    def close(self) -> None:
        """The end of the machine."""
        self._process.communicate(timeout=20)


_WHEN_READY = """
while [ ! -e /run/asked ]; do sleep 0.02; done
echo ready
exec cat
"""
