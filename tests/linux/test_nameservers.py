"""Name servers: whoever owns /etc/resolv.conf sets them, and afterwards all is as it was."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux import nameservers
from pyvpn.linux.nameservers import NameServers
from pyvpn.linux.system import ChangeFailed, Completed
from tests.linux.resolvers import UPLINK_SERVER, VPN_SERVER, Machine

SPLIT = NameServers("leamit0", ("10.10.0.1", "fd00::1"), ("pyvpn",))
FULL = NameServers("leamit0", ("10.10.0.1", "fd00::1"), ("pyvpn",), exclusive=True)

TEXT = "# by hand\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\nsearch lan\noptions rotate"
"""Without a newline at its end, as files written by hand are."""


class Told:
    """A system whose commands answer what the test says, as the programs did when recorded.

    :ivar answers: start of a command line → answer; the longest start counts.
    """

    def __init__(self, claim: str = "boot:1:1") -> None:
        self.answers: dict[str, Completed] = {}
        self.commands: list[tuple[str, str]] = []
        self.living = {claim}
        self._claim = claim

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        line = " ".join(argv)
        self.commands.append((line, stdin))
        for start in sorted(self.answers, key=len, reverse=True):
            if line.startswith(start):
                return self.answers[start]
        return Completed(127, "", f"{argv[0]} is not installed")

    def claim(self) -> str:
        return self._claim

    def alive(self, claim: str) -> bool:
        return claim in self.living


class Root:
    """A directory with an /etc and a /run in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = Path(path, "etc/resolv.conf")
        for name in ("etc", "run"):
            os.makedirs(os.path.join(path, name))

    def write(self, path: str, text: str = "nameserver 192.168.1.1\n") -> None:
        """A file and the directories that it is in."""
        place = Path(self.path, path.lstrip("/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def link(self, to: str, text: str | None = "nameserver 192.168.1.1\n") -> None:
        """resolv.conf is a link, to a file with this text if any."""
        self.file.symlink_to(to)
        if text is not None:
            self.write(os.path.normpath(os.path.join("/etc", to)), text)

    def state(self) -> tuple[Any, ...]:
        """All that must be the same afterwards."""
        names = sorted(os.listdir(self.file.parent))
        if self.file.is_symlink():
            return (names, os.readlink(self.file))
        if not self.file.exists():
            return (names,)
        return (names, self.file.read_bytes(), stat.S_IMODE(self.file.stat().st_mode))


class Case(SynchronousTestCase):
    """A root without anything, and a system without programs."""

    def setUp(self) -> None:
        self.system: Any = Told()
        self.root = Root(self.mktemp())

    def owner(self) -> str:
        return nameservers.owner(self.system, self.root.path)

    def before(self, wanted: NameServers = SPLIT) -> dict[str, Any]:
        # As it comes back from the journal.
        before = nameservers.before(wanted, self.system, self.root.path)
        again: dict[str, Any] = json.loads(json.dumps(before))
        return again

    def take(self, wanted: NameServers, before: dict[str, Any]) -> list[str]:
        return nameservers.take(wanted, before, self.system, self.root.path)

    def give_back(self, wanted: NameServers, before: dict[str, Any]) -> list[str]:
        return nameservers.give_back(wanted, before, self.system, self.root.path)

    def upstream(self, *without: str) -> list[str]:
        return nameservers.upstream(self.root.path, without)

    def read(self) -> list[str]:
        """The lines that programs read."""
        return [line for line in self.root.file.read_text().splitlines() if line[:1] != "#"]

    def refused(self, call: Callable[[], object]) -> str:
        """The one line that a refusal says, after a look that it changed nothing."""
        state = self.root.state()
        said = self.assertRaises(ChangeFailed, call).stderr
        self.assertEqual(self.root.state(), state)
        self.assertNotIn("\n", said)
        self.assertIn("--no-dns", said)
        return said


class OwnerTests(Case):
    """Who owns /etc/resolv.conf, and whom we cannot ask."""

    def test_an_ordinary_file_is_nobody_s(self) -> None:
        """A plain file, an empty one and none at all are ours to write."""
        self.assertEqual(self.owner(), "file")
        for text in ("", TEXT):
            self.root.file.write_text(text)
            self.assertEqual(self.owner(), "file")

    def test_a_link_into_the_directory_of_systemd_resolved(self) -> None:
        """It is systemd-resolved's when resolvectl answers, and refused when it does not."""
        for to in (
            "../run/systemd/resolve/stub-resolv.conf",
            "/run/systemd/resolve/resolv.conf",
            "/var/run/systemd/resolve/stub-resolv.conf",
            "/usr/lib/systemd/resolv.conf",
        ):
            self.root.file.unlink(missing_ok=True)
            self.root.link(to)
            self.system.answers = {}
            self.assertIn("which is systemd-resolved's", self.refused(self.owner))
            self.system.answers = {"resolvectl dns": Completed(0, "Global:\n", "")}
            self.assertEqual(self.owner(), "resolved")

    def test_a_file_that_names_only_the_stub(self) -> None:
        """A copy of the stub's resolv.conf is systemd-resolved's, if that answers."""
        self.root.file.write_text("nameserver 127.0.0.53\noptions edns0\n")
        self.assertEqual(self.owner(), "file")
        self.system.answers = {"resolvectl dns": Completed(0, "Global:\n", "")}
        self.assertEqual(self.owner(), "resolved")

    def test_both_kinds_of_resolvconf(self) -> None:
        """Debian's is known by its link, openresolv by its first line, and each by its program."""
        self.root.link("../run/resolvconf/resolv.conf")
        self.assertIn("which is resolvconf's", self.refused(self.owner))
        self.system.answers = {"resolvconf --version": Completed(0, "Debian resolvconf 1.91\n", "")}
        self.assertEqual(self.owner(), "resolvconf")
        self.assertEqual(self.before()["flavour"], "debian")
        self.root.file.unlink()
        self.root.file.write_text("# Generated by resolvconf\nnameserver 192.168.1.1\n")
        self.system.answers = {"resolvconf --version": Completed(0, "openresolv 3.12.0\n", "")}
        self.assertEqual(self.owner(), "resolvconf")
        self.assertEqual(self.before()["flavour"], "openresolv")
        # resolvectl goes by that name too, and then nobody owns the file.
        self.system.answers = {"resolvconf --version": Completed(0, "systemd 252 (252)\n", "")}
        self.assertEqual(self.owner(), "file")

    def test_a_link_to_a_file_of_somebody_unknown(self) -> None:
        """A link into /run of a program that we cannot ask is refused, naming file and owner."""
        for to, who in (
            ("/run/NetworkManager/resolv.conf", "NetworkManager"),
            ("../run/connman/resolv.conf", "ConnMan"),
            ("/run/odd/resolv.conf", "a program that we do not know (odd)"),
        ):
            self.root.file.unlink(missing_ok=True)
            self.root.link(to)
            said = self.refused(self.owner)
            self.assertIn(f"/etc/resolv.conf is a link to {to}, which belongs to {who}", said)

    def test_a_link_to_nothing(self) -> None:
        """A dangling link is refused; one to an ordinary file is taken and given back."""
        self.root.link("resolv.conf.mine", None)
        self.assertIn("where there is no file", self.refused(self.owner))
        self.root.write("/etc/resolv.conf.mine", TEXT)
        state = self.root.state()
        before = self.before()
        self.take(SPLIT, before)
        self.assertFalse(self.root.file.is_symlink())
        self.assertIn("nameserver 192.168.1.1", self.read())
        self.give_back(SPLIT, before)
        self.assertEqual(self.root.state(), state)

    def test_what_is_no_resolv_conf(self) -> None:
        """A directory, and a file that is far too large, are refused."""
        self.root.file.mkdir()
        self.assertIn("neither a file nor a link", self.refusal())
        self.root.file.rmdir()
        self.root.file.write_text("#" * 70000)
        self.assertIn("has 70000 bytes", self.refused(self.owner))

    def refusal(self) -> str:
        return self.assertRaises(ChangeFailed, self.owner).stderr

    def test_a_file_that_cannot_be_written(self) -> None:
        """What is immutable or on a read-only file system is found out before any change."""
        self.root.file.write_text(TEXT)
        real = os.access
        self.patch(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
        self.assertIn("immutable or its file system read-only", self.refused(self.owner))


class FileTests(Case):
    """/etc/resolv.conf as a plain file."""

    def setUp(self) -> None:
        super().setUp()
        self.root.file.write_text(TEXT)
        self.root.file.chmod(0o640)
        self.state = self.root.state()

    def test_ours_first_then_those_of_before(self) -> None:
        """Split: our servers, then the old ones up to three; both search lists; options stay."""
        self.take(SPLIT, self.before())
        self.assertEqual(
            self.read(),
            [
                "nameserver 10.10.0.1",
                "nameserver fd00::1",
                "nameserver 192.168.1.1",
                "search pyvpn lan",
                "options rotate",
            ],
        )
        self.assertEqual(stat.S_IMODE(self.root.file.stat().st_mode), 0o644)
        self.assertIn("leamit0", self.root.file.read_text().splitlines()[0])

    def test_only_ours(self) -> None:
        """Exclusive: no server and no domain of before."""
        self.take(FULL, self.before())
        self.assertEqual(
            self.read(),
            ["nameserver 10.10.0.1", "nameserver fd00::1", "search pyvpn", "options rotate"],
        )

    def test_a_search_list_that_every_libc_reads(self) -> None:
        """Six domains and 256 characters, ours first, none twice."""
        many = tuple(f"d{number}.example" for number in range(5))
        wanted = NameServers("leamit0", ("10.10.0.1",), ("lan", *many))
        self.take(wanted, self.before())
        self.assertIn("search lan " + " ".join(many), self.read())
        long = NameServers("leamit0", ("10.10.0.1",), ("a" * 150, "b" * 150, "c"))
        self.take(long, self.before())
        self.assertIn(f"search {'a' * 150} c lan", self.read())

    def test_given_back(self) -> None:
        """Text, mode and the other files of /etc are what they were, byte for byte."""
        before = self.before()
        self.assertEqual(self.root.state(), self.state)
        self.take(SPLIT, before)
        self.assertNotEqual(self.root.state(), self.state)
        self.assertEqual(self.give_back(SPLIT, before), ["/etc/resolv.conf is as it was before"])
        self.assertEqual(self.root.state(), self.state)
        self.assertEqual(self.give_back(SPLIT, before), [])
        self.assertEqual(self.root.state(), self.state)

    def test_no_file_before(self) -> None:
        """Where there was none, there is none afterwards."""
        self.root.file.unlink()
        before = self.before()
        self.take(FULL, before)
        self.assertIn("nameserver 10.10.0.1", self.read())
        self.assertEqual(self.upstream(), [])
        self.give_back(FULL, before)
        self.assertFalse(self.root.file.exists())

    def test_other_values(self) -> None:
        """Taken again, the new values stand and the first backup comes back."""
        before = self.before()
        self.take(SPLIT, before)
        self.take(FULL, before)
        self.assertNotIn("nameserver 192.168.1.1", self.read())
        self.take(SPLIT, before)
        self.assertIn("nameserver 192.168.1.1", self.read())
        self.give_back(SPLIT, before)
        self.assertEqual(self.root.state(), self.state)

    def test_the_same_values_again(self) -> None:
        """Taken again with the same values, the file is not even written."""
        before = self.before()
        self.take(SPLIT, before)
        inode = self.root.file.stat().st_ino
        self.assertEqual(self.take(SPLIT, before), [])
        self.assertEqual(self.root.file.stat().st_ino, inode)

    def test_after_a_crash(self) -> None:
        """Another process gives back what one that was killed has taken."""
        before = self.before()
        self.take(FULL, before)
        self.system = Told("boot:2:2")
        self.give_back(FULL, before)
        self.assertEqual(self.root.state(), self.state)

    def test_repair(self) -> None:
        """A file of ours whose process is gone is given back with nothing but itself to tell of it;
        a living one's, and one that is not ours, stay."""
        self.root.file.write_text(TEXT)
        state = self.root.state()

        def repair(living: bool) -> list[str]:
            other = Told("boot:9:9")
            other.living |= {"boot:1:1"} if living else set()
            return nameservers.repair(other, self.root.path)

        self.assertEqual(repair(living=False), [])
        self.take(SPLIT, self.before())
        self.assertNotEqual(self.root.state(), state)
        self.assertEqual(repair(living=True), [])
        self.assertNotEqual(self.root.state(), state)
        self.assertEqual(len(repair(living=False)), 1)
        self.assertEqual(self.root.state(), state)
        self.take(SPLIT, self.before())
        self.root.file.write_text(self.root.file.read_text() + "nameserver 192.0.2.1\n")
        state = self.root.state()
        self.assertEqual(repair(living=False), [])
        self.assertEqual(self.root.state(), state)

    def test_after_a_power_cut(self) -> None:
        """With the journal gone, the next start finds the backup in the file itself."""
        self.take(FULL, self.before())
        self.system = Told("boot:2:2")
        before = self.before()
        self.assertIn("by hand", before["file"]["text"])
        self.take(FULL, before)
        self.give_back(FULL, before)
        self.assertEqual(self.root.state(), self.state)

    def test_somebody_else_wrote_it_meanwhile(self) -> None:
        """What is not ours any more stays as it is, and a line says so."""
        before = self.before()
        for change in ("nameserver 9.9.9.9\n", None):
            self.take(FULL, before)
            text = self.root.file.read_text() + "nameserver 1.1.1.1\n" if change is None else change
            self.root.file.write_text(text)
            (line,) = self.give_back(FULL, before)
            self.assertIn("written by another program meanwhile: it is left as it is", line)
            self.assertEqual(self.root.file.read_text(), text)

    def test_taken_again_after_somebody_else_wrote_it(self) -> None:
        """Then what they wrote is what comes back, not our older backup."""
        before = self.before()
        self.take(FULL, before)
        self.root.file.write_text("# Generated by NetworkManager\nnameserver 9.9.9.9\n")
        log = " ".join(self.take(FULL, before))
        self.assertIn("written by somebody else meanwhile", log)
        self.assertIn("NetworkManager writes /etc/resolv.conf too", log)
        self.assertEqual(self.upstream(), ["9.9.9.9"])
        self.give_back(FULL, before)
        self.assertIn("nameserver 9.9.9.9", self.read())

    def test_half_way(self) -> None:
        """A write, a rename or a change of mode that fails leaves the file and no other behind."""
        for name in ("write", "replace", "fchmod", "fsync"):

            def fail(*arguments: object, name: str = name) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            before = self.before()
            patch = self.patch(os, name, fail)
            said = self.refused(lambda: self.take(SPLIT, before))  # noqa: B023 (called at once)
            patch.restore()
            self.assertIn("/etc/resolv.conf cannot be replaced: No space left on device", said)
            self.assertEqual(self.root.state(), self.state)
            self.take(SPLIT, before)
            self.give_back(SPLIT, before)

    def test_killed_before_the_rename(self) -> None:
        """What a killed process left beside the file goes when its name servers are given back."""
        before = self.before()

        class Killed(BaseException):
            pass

        def kill(*arguments: object) -> None:
            raise Killed

        patch = self.patch(os, "replace", kill)
        self.assertRaises(Killed, self.take, SPLIT, before)
        patch.restore()
        self.assertNotEqual(self.root.state(), self.state)
        self.assertEqual(self.give_back(SPLIT, before), [])
        self.assertEqual(self.root.state(), self.state)

    def test_an_immutable_file(self) -> None:
        """The refusal says what makes it writable; and what is ours then, giving back says."""
        before = self.before()

        def fail(*arguments: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        patch = self.patch(os, "replace", fail)
        self.assertIn("chattr -i", self.refused(lambda: self.take(SPLIT, before)))
        patch.restore()
        self.take(SPLIT, before)
        patch = self.patch(os, "replace", fail)
        (line,) = self.give_back(SPLIT, before)
        self.assertIn("/etc/resolv.conf is left as it is", line)
        patch.restore()
        self.give_back(SPLIT, before)
        self.assertEqual(self.root.state(), self.state)

    def test_a_file_that_is_a_mount(self) -> None:
        """What cannot be replaced is written in place (FACTS 2.7), and given back so, too."""

        def busy(*arguments: object) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        self.patch(os, "replace", busy)
        inode, before = self.root.file.stat().st_ino, self.before()
        self.take(SPLIT, before)
        self.assertIn("nameserver 10.10.0.1", self.read())
        self.give_back(SPLIT, before)
        self.assertEqual(self.root.state(), self.state)
        self.assertEqual(self.root.file.stat().st_ino, inode)

    def test_two_clients(self) -> None:
        """Whoever goes first, the machine ends with what it began with."""
        mine, other = self.system, Told("boot:2:2")
        theirs = NameServers("leamit1", ("10.20.0.1",), ("office",))
        for first_goes_first in (True, False):
            mine.living = other.living = {"boot:1:1", "boot:2:2"}
            self.system = mine
            before = self.before()
            self.take(SPLIT, before)
            self.system = other
            before_theirs = self.before(theirs)
            self.take(theirs, before_theirs)
            self.assertEqual(self.read()[:2], ["nameserver 10.20.0.1", "nameserver 10.10.0.1"])
            self.assertEqual(self.upstream(), ["192.168.1.1", "fe80::1%eth0"])
            if first_goes_first:
                self.system = mine
                self.assertIn("PyVPN for leamit1", self.give_back(SPLIT, before)[0])
                mine.living = other.living = {"boot:2:2"}
                self.system = other
                self.give_back(theirs, before_theirs)
            else:
                self.give_back(theirs, before_theirs)
                self.system = mine
                self.give_back(SPLIT, before)
            self.assertEqual(self.root.state(), self.state)

    def test_two_clients_in_turns(self) -> None:
        """Taking from each other again and again does not pile one file on the other."""
        mine, other = self.system, Told("boot:2:2")
        theirs = NameServers("leamit1", ("10.20.0.1",))
        mine.living = other.living = {"boot:1:1", "boot:2:2"}
        before = self.before()
        sizes = []
        for _ in range(5):
            self.system = mine
            self.take(SPLIT, before)
            self.system = other
            self.take(theirs, before)
            sizes.append(self.root.file.stat().st_size)
        self.assertEqual(len(set(sizes)), 1, sizes)

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=300), st.booleans())
    def test_any_bytes_come_back(self, content: bytes, exclusive: bool) -> None:
        """Whatever the file held, it holds again, and our own file is always recognised."""
        self.root.file.write_bytes(content)
        wanted = FULL if exclusive else SPLIT
        before = self.before(wanted)
        self.take(wanted, before)
        self.assertNotEqual(self.root.file.read_bytes(), content)
        self.give_back(wanted, before)
        self.assertEqual(self.root.file.read_bytes(), content)


class UpstreamTests(Case):
    """The servers of before us, read without privilege."""

    def test_of_the_file_and_through_ours(self) -> None:
        """The same before and while the file is ours, scopes kept, ours and nonsense left out."""
        self.root.file.write_text(TEXT + "\nnameserver nonsense\n nameserver 1.1.1.1\n")
        expected = ["192.168.1.1", "fe80::1%eth0"]
        self.assertEqual(self.upstream(), expected)
        before = self.before()
        self.take(FULL, before)
        self.assertEqual(self.upstream(), expected)
        self.assertEqual(self.upstream("192.168.1.1"), ["fe80::1%eth0"])

    def test_loopback_comes_last(self) -> None:
        """A forwarder on this machine asks by routes that we do not choose."""
        self.root.file.write_text("nameserver 127.0.0.1\nnameserver ::1\nnameserver 9.9.9.9\n")
        self.assertEqual(self.upstream(), ["9.9.9.9", "127.0.0.1", "::1"])

    def test_behind_the_stub(self) -> None:
        """With systemd-resolved they stand in its own list, from which ours are taken out."""
        self.root.link("../run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
        self.root.write(
            "/run/systemd/resolve/resolv.conf",
            "nameserver 10.10.0.1\nnameserver fd00::1\nnameserver 192.168.1.1\n"
            "# Too many DNS servers configured, the following entries may be ignored.\n"
            "nameserver fe80::1%4\nsearch pyvpn lan\n",
        )
        expected = ["192.168.1.1", "fe80::1%4"]
        self.assertEqual(self.upstream("10.10.0.1", "fd00:0::1"), expected)

    def test_in_the_records_of_resolvconf(self) -> None:
        """resolv.conf names three servers at most, so those beyond are looked up in the records."""
        self.root.link("../run/resolvconf/resolv.conf", "nameserver 10.10.0.1\n")
        self.root.write("/run/resolvconf/interface/tun.leamit0.pyvpn", "nameserver 10.10.0.1\n")
        self.root.write("/run/resolvconf/interface/eth0.dhclient", "nameserver 192.168.1.1\n")
        self.assertEqual(self.upstream("10.10.0.1"), ["192.168.1.1"])

    def test_of_nothing(self) -> None:
        """No file, a dangling link or a directory: nobody, and no error."""
        self.assertEqual(self.upstream(), [])
        self.root.link("nowhere", None)
        self.assertEqual(self.upstream(), [])
        self.root.file.unlink()
        self.root.file.mkdir()
        self.assertEqual(self.upstream(), [])


class ResolvedTests(Case):
    """What systemd-resolved is told, against its recorded answers (252)."""

    def setUp(self) -> None:
        super().setUp()
        self.root.link("../run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
        self.system.answers = {
            "resolvectl": Completed(0, "", ""),
            "resolvectl dns leamit0": Completed(0, "Link 5 (leamit0): 10.10.0.1\n", ""),
            "resolvectl domain leamit0": Completed(0, "Link 5 (leamit0): pyvpn\n", ""),
            "resolvectl default-route leamit0": Completed(0, "Link 5 (leamit0): no\n", ""),
        }
        self.state = self.root.state()
        self.was = self.before()
        self.system.commands = []

    def said(self) -> list[str]:
        """The commands that change something."""
        return [line for line, _ in self.system.commands if len(line.split(" ")) > 3]

    def test_split(self) -> None:
        """Only the names in our domains are asked of our servers."""
        self.take(SPLIT, self.was)
        self.assertEqual(
            self.said(),
            [
                "resolvectl dns leamit0 10.10.0.1 fd00::1",
                "resolvectl domain leamit0 pyvpn",
                "resolvectl default-route leamit0 no",
                "resolvectl nta leamit0 pyvpn",
                "resolvectl dnsovertls leamit0 no",
            ],
        )
        self.assertEqual(self.root.state(), self.state)

    def test_the_same_values_again(self) -> None:
        """What stands already is not said again."""
        self.take(NameServers("leamit0", ("10.10.0.1",), ("pyvpn",)), self.was)
        self.assertEqual(self.said(), [])

    def test_exclusive(self) -> None:
        """All names are; other links have no domains meanwhile, or the log says that they have."""
        self.system.answers["resolvectl domain"] = Completed(
            0, "Global: corp\nLink 3 (eth0): lan ~.\nLink 4 (eth1):\nLink 6 (eth2): dmz\n", ""
        )
        self.system.answers["resolvectl domain eth2 "] = Completed(
            1, "", "Failed to set domain configuration: Link eth2 is managed.\n"
        )
        log = self.take(FULL, self.was)
        self.assertIn("resolvectl domain leamit0 ~. pyvpn", self.said())
        self.assertIn("resolvectl default-route leamit0 yes", self.said())
        self.assertIn("resolvectl domain eth0 ", self.said())
        self.assertNotIn("resolvectl domain eth1 ", self.said())
        told = [line for line in log if "that cannot be changed" in line]
        self.assertEqual(len(told), 2, log)
        self.assertIn("of all links too, for names in corp", told[0])
        self.assertIn("of eth2 too, for names in dmz", told[1])

        self.system.commands = []
        self.system.answers["resolvectl domain"] = Completed(
            0, "Global: corp\nLink 3 (eth0):\nLink 4 (eth1):\nLink 6 (eth2): dmz\n", ""
        )
        self.give_back(FULL, self.was)
        self.assertEqual(self.said(), ["resolvectl domain eth0 lan ~."])
        self.give_back(FULL, self.was)
        self.assertEqual(len(self.said()), 1)

    def test_domains_that_changed_meanwhile(self) -> None:
        """What a link has got since, or a link that is gone, is left alone."""
        listed = "Link 3 (eth0): lan\nLink 4 (eth1): dmz\nLink 6 (eth2): corp\n"
        self.system.answers["resolvectl domain"] = Completed(0, listed, "")
        self.take(FULL, self.was)
        self.system.commands = []
        listed = "Link 3 (eth0): other\nLink 6 (eth2):\n"
        self.system.answers["resolvectl domain"] = Completed(0, listed, "")
        self.give_back(FULL, self.was)
        self.assertEqual(self.said(), ["resolvectl domain eth2 corp"])

    def test_no_answer_when_given_back(self) -> None:
        """Domains that could not be given back are when the next process tries."""
        self.system.answers["resolvectl domain"] = Completed(0, "Link 3 (eth0): lan\n", "")
        self.take(FULL, self.was)
        self.system.answers["resolvectl"] = Completed(1, "", "Connection timed out\n")
        self.system.answers["resolvectl domain"] = self.system.answers["resolvectl"]
        log = " ".join(self.give_back(FULL, self.was))
        self.assertIn("domains of eth0 are left", log)
        self.assertIn("name servers of leamit0 are left", log)
        self.system.answers["resolvectl"] = Completed(0, "", "")
        self.system.answers["resolvectl domain"] = Completed(0, "Link 3 (eth0):\n", "")
        self.give_back(FULL, self.was)
        self.assertIn("resolvectl domain eth0 lan", self.said())

    def test_half_way(self) -> None:
        """When one command fails, those before it are taken back to what was."""
        self.system.answers["resolvectl default-route leamit0 yes"] = Completed(
            1, "", "Failed to set default route configuration: Connection timed out\n"
        )
        said = self.refused(lambda: self.take(FULL, self.was))
        self.assertIn("Connection timed out", said)
        self.assertEqual(
            self.said()[-3:],
            [
                "resolvectl dns leamit0 10.10.0.1",
                "resolvectl domain leamit0 pyvpn",
                "resolvectl default-route leamit0 no",
            ],
        )
        for verb in ("dns", "domain"):
            answer = Completed(0, "Link 5 (leamit0):\n", "")
            self.system.answers[f"resolvectl {verb} leamit0"] = answer
        self.refused(lambda: self.take(FULL, self.was))
        self.assertEqual(self.system.commands[-1][0], "resolvectl revert leamit0")

    def test_the_interface_is_gone(self) -> None:
        """With it systemd-resolved has forgotten all; another failure is told."""
        self.system.answers["resolvectl revert"] = Completed(
            1, "", 'Failed to resolve interface "leamit0": No such device\n'
        )
        self.assertEqual(self.give_back(SPLIT, self.was), [])
        self.system.answers["resolvectl revert"] = Completed(
            1, "", "sd_bus_open_system: No such file or directory\n"
        )
        (line,) = self.give_back(SPLIT, self.was)
        self.assertIn("sd_bus_open_system", line)


class ResolvconfTests(Case):
    """What both kinds of resolvconf are told."""

    def test_a_record_that_is_refused(self) -> None:
        """What it kept for us before is kept again, and the file is as it was."""
        self.root.link("../run/resolvconf/resolv.conf")
        self.system.answers = {
            "resolvconf --version": Completed(0, "Debian resolvconf 1.91\n", ""),
            "resolvconf -a": Completed(1, "", "resolvconf: Error: Run lock held\n"),
            "resolvconf -d": Completed(0, "", ""),
        }
        before = self.before()
        self.take(FULL, before)
        self.assertFalse(self.root.file.is_symlink())
        self.assertIn("Run lock held", self.refused(lambda: self.take(SPLIT, before)))
        self.assertIn("nameserver 10.10.0.1", self.read())
        self.give_back(FULL, before)
        self.assertEqual(os.readlink(self.root.file), "../run/resolvconf/resolv.conf")

    def test_an_administrator_who_wants_another_order(self) -> None:
        """When the result is not what we asked for, a line says so; when it is, none does."""
        self.root.link("../run/resolvconf/resolv.conf")
        self.system.answers = {
            "resolvconf --version": Completed(0, "Debian resolvconf 1.91\n", ""),
            "resolvconf": Completed(0, "", ""),
        }
        before = self.before()
        log = self.take(SPLIT, before)
        self.assertIn("says to ask 192.168.1.1 first", log[-1])
        for text in ("nameserver 127.0.0.1\n", "nameserver 10.10.0.1\nnameserver 1.1.1.1\n", ""):
            self.root.write("/run/resolvconf/resolv.conf", text)
            self.assertEqual(len(self.take(SPLIT, before)), 1)

    def test_the_place_in_the_order(self) -> None:
        """Debian's asks by patterns: our record begins as its first simple one, as wg-quick's."""
        self.root.link("../run/resolvconf/resolv.conf")
        self.system.answers = {"resolvconf --version": Completed(0, "Debian resolvconf 1.91\n", "")}
        self.assertEqual(self.before()["record"], "tun.leamit0.pyvpn")
        self.root.write("/etc/resolvconf/interface-order", "lo.inet6\nlo\nvpn*\ntun*\n*\n")
        self.assertEqual(self.before()["record"], "vpn.leamit0.pyvpn")
        self.root.write("/etc/resolvconf/interface-order", "*\n")
        self.assertEqual(self.before()["record"], "leamit0.pyvpn")


REAL_SPLIT = NameServers("leamit0", (VPN_SERVER,), ("pyvpn",))
REAL_FULL = NameServers("leamit0", (VPN_SERVER,), ("pyvpn",), exclusive=True)


class RealTests:
    """The same for each owner, on a machine where it runs; names are looked up as programs do."""

    owner: str
    is_owner: str

    def setUp(self) -> None:
        self.machine = Machine(self.owner)
        self.addCleanup(self.machine.close)  # type: ignore[attr-defined]
        self.root = self.machine.root
        self.state = self.machine.state()

    def test_split_full_and_back(self: Any) -> None:
        """Who is asked for what, before, while and after; and all about names is as it was."""
        machine, root = self.machine, self.root
        self.assertEqual(nameservers.owner(machine, root), self.is_owner)
        self.assertEqual(machine.asked("before.example"), ("uplink", {"uplink"}))
        before = nameservers.before(REAL_SPLIT, machine, root)
        self.assertEqual(machine.state(), self.state)

        self.assertNotEqual(nameservers.take(REAL_SPLIT, before, machine, root), [])
        self.assertEqual(nameservers.take(REAL_SPLIT, before, machine, root), [])
        self.assertEqual(machine.asked("a.pyvpn"), ("vpn", {"vpn"}))
        others = "uplink" if self.is_owner == "resolved" else "vpn"
        self.assertEqual(machine.asked("split.example"), (others, {others}))
        self.assertEqual(nameservers.upstream(root, [VPN_SERVER]), [UPLINK_SERVER])

        self.assertNotEqual(nameservers.take(REAL_FULL, before, machine, root), [])
        self.assertEqual(nameservers.take(REAL_FULL, before, machine, root), [])
        self.assertEqual(machine.asked("b.pyvpn"), ("vpn", {"vpn"}))
        self.assertEqual(machine.asked("full.example"), ("vpn", {"vpn"}))
        self.assertEqual(nameservers.upstream(root, [VPN_SERVER]), [UPLINK_SERVER])

        nameservers.take(REAL_SPLIT, before, machine, root)
        self.assertEqual(machine.asked("again.example"), (others, {others}))
        nameservers.give_back(REAL_SPLIT, before, machine, root)
        self.assertEqual(machine.state(), self.state)
        self.assertEqual(machine.asked("after.example"), ("uplink", {"uplink"}))

    def test_after_the_end_of_the_interface(self: Any) -> None:
        """The TUN goes before its name servers are given back, as after a crash."""
        before = nameservers.before(REAL_FULL, self.machine, self.root)
        nameservers.take(REAL_FULL, before, self.machine, self.root)
        self.assertNotEqual(self.machine.state(), self.state)
        self.machine.do("ip link delete leamit0")
        nameservers.give_back(REAL_FULL, json.loads(json.dumps(before)), self.machine, self.root)
        gone = [line for line in self.state.splitlines() if "leamit0" not in line]
        self.assertEqual(self.machine.state().splitlines(), gone)


class RealFileTests(RealTests, SynchronousTestCase):
    """Nobody owns /etc/resolv.conf."""

    owner = is_owner = "file"

    def test_a_mount(self) -> None:
        """A resolv.conf that is a mount of its own, as a container's, is written in place."""
        self.machine.do("cp /etc/resolv.conf /run/it; mount --bind /run/it /etc/resolv.conf")
        before = nameservers.before(REAL_SPLIT, self.machine, self.root)
        nameservers.take(REAL_SPLIT, before, self.machine, self.root)
        self.assertEqual(self.machine.asked("a.pyvpn"), ("vpn", {"vpn"}))
        nameservers.give_back(REAL_SPLIT, before, self.machine, self.root)
        self.assertEqual(self.machine.state(), self.state)

    def test_read_only(self) -> None:
        """On a read-only file system it is refused before any change."""
        self.assertEqual(nameservers.owner(self.machine, self.root), "file")
        self.machine.do("mount --bind -o ro /etc /etc; mount -o remount,bind,ro /etc")
        error = self.assertRaises(ChangeFailed, nameservers.owner, self.machine, self.root)
        self.assertIn("read-only", error.stderr)
        self.assertEqual(self.machine.state(), self.state)


class RealDebianTests(RealTests, SynchronousTestCase):
    """Debian's resolvconf."""

    owner, is_owner = "debian", "resolvconf"

    def test_another_interface_comes_meanwhile(self) -> None:
        """A DHCP answer while only ours are asked changes nothing, and is there afterwards."""
        before = nameservers.before(REAL_FULL, self.machine, self.root)
        nameservers.take(REAL_FULL, before, self.machine, self.root)
        self.machine.do("echo nameserver 192.168.7.1 | resolvconf -a wlan0.dhclient")
        self.assertEqual(self.machine.asked("full.example"), ("vpn", {"vpn"}))
        nameservers.give_back(REAL_FULL, before, self.machine, self.root)
        self.assertIn("nameserver 192.168.7.1", self.machine.state())


class RealOpenresolvTests(RealTests, SynchronousTestCase):
    """openresolv."""

    owner, is_owner = "openresolv", "resolvconf"


class RealResolvedTests(RealTests, SynchronousTestCase):
    """systemd-resolved."""

    owner = is_owner = "resolved"

    def test_names_that_an_uplink_calls_its_own(self) -> None:
        """Also all names, as NetworkManager says it of uplinks: only ours are asked."""
        machine, root = self.machine, self.root
        machine.do("resolvectl domain eth0 '~.' lan")
        state = machine.state()
        self.assertEqual(machine.asked("before.lan"), ("uplink", {"uplink"}))
        before = nameservers.before(REAL_FULL, machine, root)
        nameservers.take(REAL_FULL, before, machine, root)
        self.assertEqual(machine.asked("printer.lan"), ("vpn", {"vpn"}))
        self.assertEqual(machine.asked("full.example"), ("vpn", {"vpn"}))
        # A second time, to see that the empty domains of now are not what comes back.
        nameservers.take(REAL_FULL, before, machine, root)
        nameservers.give_back(REAL_FULL, before, machine, root)
        self.assertEqual(machine.state(), state)
        self.assertEqual(machine.asked("after.lan"), ("uplink", {"uplink"}))
