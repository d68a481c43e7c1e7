"""The state directory of a hub: its keys, its store, and the lock that keeps a second process out.

``network.token`` holds the token as text, ``login.key`` the private key to the token's login key
as base64, ``wireguard.key`` the private key towards stock WireGuard peers as ``wg genkey`` writes
it, ``store.sqlite`` the accounts and peers, ``lock`` the process id of whoever uses it all.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Network
from pathlib import Path

from pyvpn.errors import ConfigError, StoreError
from pyvpn.files import replace_file, sync_directory
from pyvpn.state.sqlite import create_store, has_peers
from pyvpn.token import LOG_N_DEFAULT, SCRYPT_P, SCRYPT_R, NetworkToken

#: The store's setting that holds the network's own IPv6 prefix, as text.
SUBNET6_SETTING = "subnet6_auto"

KEY_SIZE = 32  #: bytes of an X25519 private key
MAX_SECRET_BYTES = 4096  #: of a file; a longer one is not ours

_LOSS = "restore it from a backup, or start a new network in another state directory"


def make_subnet6(random_bytes: Callable[[int], bytes]) -> IPv6Network:
    """A new unique local /64: fd, 40 random bits, subnet 0 (RFC 4193, section 3.1)."""
    return IPv6Network((b"\xfd" + random_bytes(5) + bytes(10), 64))


def clamped(private: bytes) -> bytes:
    """32 random bytes as an X25519 private key in its canonical form (RFC 7748, section 5)."""
    return bytes((private[0] & 0xF8, *private[1:31], private[31] & 0x7F | 0x40))


@contextmanager
def _explained(path: Path, doing: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: cannot {doing}: {reason}; {remedy}") from error


class StateDirectory:
    """One hub's directory. Nothing is touched before a method is called.

    Every failure is a :class:`~pyvpn.errors.StoreError` of one line with the file and the remedy.

    :param path: the directory.
    :ivar store_path: where the SQLite store stands.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.token_path = self.path / "network.token"
        self.login_path = self.path / "login.key"
        self.wireguard_path = self.path / "wireguard.key"
        self.store_path = self.path / "store.sqlite"
        self.lock_path = self.path / "lock"
        self._lock: int | None = None

    def prepare(self, random_bytes: Callable[[int], bytes]) -> list[str]:
        """Make whatever is missing and check whatever is there; harmless twice.

        Only making needs the lock, which is taken for that time if it is not held already. So a
        complete directory can be checked while a hub is using it.

        :returns: the names of the files made now, empty if all was there.
        """
        self._make_directory()
        made: list[str] = []
        files = (self.login_path, self.token_path, self.wireguard_path, self.store_path)
        if not all(map(os.path.lexists, files)):
            held = self._lock is not None
            self.lock()
            try:
                made = self._make_files(random_bytes)
            finally:
                if not held:
                    self.unlock()
        self._keys()
        self._read_key(self.wireguard_path)
        self._check_mode(self.store_path)
        return made

    def _make_files(self, random_bytes: Callable[[int], bytes]) -> list[str]:
        """In this order, so that a crash in between leaves something that prepare can finish."""
        made = []
        if not os.path.lexists(self.login_path):
            self._refuse_loss(self.login_path, (self.token_path, self.store_path))
            key = random_bytes(KEY_SIZE)
            self._write_secret(self.login_path, base64.b64encode(key).decode())
            made.append(self.login_path.name)
        if not os.path.lexists(self.token_path):
            # A new token has a new password salt: every account in the store would be locked out.
            self._refuse_loss(self.token_path, (self.store_path,))
            token = NetworkToken(
                LOG_N_DEFAULT,
                SCRYPT_R,
                SCRYPT_P,
                _public_key(self._read_key(self.login_path)),
                random_bytes(32),
                random_bytes(16),
            )
            self._write_secret(self.token_path, token.to_text())
            made.append(self.token_path.name)
        if not os.path.lexists(self.wireguard_path):
            # Stores of before there were stock peers have none that could be locked out.
            if os.path.lexists(self.store_path) and has_peers(self.store_path):
                self._refuse_loss(self.wireguard_path, (self.store_path,))
            key = clamped(random_bytes(KEY_SIZE))
            self._write_secret(self.wireguard_path, base64.b64encode(key).decode())
            made.append(self.wireguard_path.name)
        if not os.path.lexists(self.store_path):
            create_store(self.store_path, {SUBNET6_SETTING: str(make_subnet6(random_bytes))})
            made.append(self.store_path.name)
        return made

    def _refuse_loss(self, missing: Path, dependents: tuple[Path, ...]) -> None:
        for dependent in dependents:
            if os.path.lexists(dependent):
                raise StoreError(f"{missing}: missing, while {dependent.name} is there; {_LOSS}")

    @property
    def token(self) -> NetworkToken:
        """The network token, checked against the login key."""
        return self._keys()[0]

    @property
    def login_private(self) -> bytes:
        """The 32-byte private key of the token's login key."""
        return self._keys()[1]

    @property
    def wireguard_private(self) -> bytes:
        """The hub's 32-byte private key towards stock WireGuard peers."""
        return self._read_key(self.wireguard_path)

    @property
    def wireguard_public(self) -> bytes:
        """The public key to it, which stands in the .conf of each peer."""
        return _public_key(self.wireguard_private)

    def lock(self) -> None:
        """Be the only process that writes here; harmless when held already.

        The lock goes with the process, however that ends (flock on an open file).
        """
        if self._lock is not None:
            return
        self._make_directory()
        remedy = "run as the user who owns the state directory, or choose another --state-dir"
        with _explained(self.lock_path, "lock", remedy):
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            except BlockingIOError:
                holder = self._holder(descriptor)
                os.close(descriptor)
                raise StoreError(
                    f"{self.path} is in use by another PyVPN process{holder}; stop it, or give "
                    "this one its own --state-dir"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
        self._lock = descriptor

    def unlock(self) -> None:
        """Let others in; harmless when not held. The file stays: removing it would be a race."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _holder(descriptor: int) -> str:
        digits = os.pread(descriptor, 20, 0).strip()
        return f" (pid {int(digits)})" if digits.isdigit() else ""

    def _make_directory(self) -> None:
        remedy = "run as root, or choose a --state-dir that you may write to"
        with _explained(self.path, "make the state directory", remedy):
            if not self.path.is_dir():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # another process was faster
                    self.path.mkdir(mode=0o700)
            status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{self.path}: not a directory; choose another --state-dir")
        # Reading names harms nobody (service managers make 0755), replacing files would.
        if status.st_mode & 0o022:
            raise StoreError(
                f"{self.path}: others may write to this directory; run: chmod 700 {self.path}"
            )

    def _keys(self) -> tuple[NetworkToken, bytes]:
        text = self._read_secret(self.token_path)
        try:
            token = NetworkToken.from_text(text)
        except ConfigError as error:
            reason = error.message.partition(";")[0]
            raise StoreError(f"{self.token_path}: {reason}; {_LOSS}") from error
        private = self._read_key(self.login_path)
        if _public_key(private) != token.login_public:
            raise StoreError(
                f"{self.login_path}: this is not the key of {self.token_path.name}; restore both "
                "from one backup"
            )
        return token, private

    def _read_key(self, path: Path) -> bytes:
        text = self._read_secret(path)
        try:
            private = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            private = b""
        if len(private) != KEY_SIZE:
            raise StoreError(f"{path}: not {KEY_SIZE} bytes in base64; {_LOSS}")
        return private

    def _check_mode(self, path: Path) -> None:
        with _explained(path, "read", "check its owner and mode"):
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path}: not a file; move it away")
        if status.st_mode & 0o077:
            raise StoreError(f"{path}: others may read this secret; run: chmod 600 {path}")

    def _read_secret(self, path: Path) -> str:
        if not os.path.lexists(path):
            raise StoreError(f"{path}: missing; run: pyvpn init --state-dir {self.path}")
        self._check_mode(path)
        with _explained(path, "read", "run as the user who owns it"), open(path, "rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        # Whatever is not text fails in the parser, whose message says what was expected.
        return data.decode("ascii", "replace") if len(data) <= MAX_SECRET_BYTES else ""

    def _write_secret(self, path: Path, text: str) -> None:
        """Make a file of mode 0600 that is whole or absent, whatever happens."""
        remedy = "free some space, or make the directory writable"
        with _explained(path, "write", remedy):
            replace_file(path, text + "\n")
            sync_directory(self.path)


def _public_key(private: bytes) -> bytes:
    # Imported here: the login brings in the cryptography, which commands without it need not load.
    from pyvpn.core.login import public_key

    return public_key(private)
