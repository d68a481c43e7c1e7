"""Which logins may be granted: the hub's steps 1 to 8 for a 0x50 (docs/protocol.rst, "Login v1").

The order is the rule: the dearest comes last, and nobody is blamed for what another may have sent.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from pyvpn.core import login, tai64n
from pyvpn.core.admission import Admission, Debit
from pyvpn.core.cookies import mac1_valid
from pyvpn.core.login import LoginRequest, NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.errors import RemoteProtocolError

#: A stamp may be this far ahead of the hub's clock; a later one would brick the key for that long.
FUTURE_STAMP = 86_400_000_000_000  # ns
#: 2024-01-01, TAI64N: a clock that shows an earlier time was never set. This program is younger.
CLOCK_NEVER_SET = tai64n.pack(1_704_067_200_000_000_000)
#: A device whose last login is no longer ago is known: it has a bucket of its own.
KNOWN_TIME = 30 * 86_400_000_000_000  # ns
#: A device that the hub has no stamp of must come with one that is no older.
PAST_STAMP = 86_400_000_000_000  # ns
#: What a client that never heard of its user's key is compared with: same work, never equal.
_NO_KEY = bytes(32)


class Logins:
    """The hub's judge of logins.

    :param seen: the highest stamp of a right login of a user's device, empty for a stranger; and
        whether the hub has more of it than that.
    :ivar users: name to public key, of those who may log in.
    :ivar newest_stamp: the highest stamp of all.
    """

    def __init__(
        self,
        keys: NetworkKeys,
        login_key: KeyPair,
        admission: Admission,
        seen: Callable[[str, bytes], tuple[bytes, bool]],
        wall_clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.users: dict[str, bytes] = {}
        self.newest_stamp = b""
        self._keys = keys
        self._login_key = login_key
        self._admission = admission
        self._seen = seen
        self._wall_clock = wall_clock
        self._random_bytes = random_bytes

    def clock_behind(self) -> bool:
        """Tell whether the wall clock is wrong: see ``VPNServer.clock_behind``."""
        latest = tai64n.pack(self._wall_clock() + FUTURE_STAMP)
        return max(self.newest_stamp, CLOCK_NEVER_SET) > latest

    def judge(
        self, message: bytes, address: bytes, now: float
    ) -> tuple[LoginRequest, Debit] | bytes:
        """Judge a 0x50; return the login with what it took, or the 0x52 that is due first.

        :param address: 16 bytes of address and 2 of port, where it came from.
        :raises RemoteProtocolError: the reason for silence.
        """
        if message[0] != login.INITIATION:
            raise RemoteProtocolError("datagram_unknown")
        if len(message) != login.INITIATION_SIZE:
            raise RemoteProtocolError("datagram_length")
        if address[16:] == b"\0\0":
            raise RemoteProtocolError("datagram_source_port")
        if not mac1_valid(message, self._keys.mac1_to_server):
            raise RemoteProtocolError("mac1_invalid")
        cookie = self._admission.arrived(message, login.sender_index(message), address, now)
        if cookie is not None:
            return cookie
        try:
            request = LoginRequest(self._keys, self._login_key, message, self._random_bytes)
        except RemoteProtocolError:
            self._admission.failed(message, address, now)
            raise
        self._check_stamp(request)
        if self._admission.repeated(message):
            raise RemoteProtocolError("login_repeated")
        debit = self._debit_of(request)
        try:
            self._admission.debit(debit, now)
            self._check_key(request, message, debit, now)
        except RemoteProtocolError:
            self._admission.failed(message, address, now)
            raise
        return request, debit

    def _check_stamp(self, request: LoginRequest) -> None:
        """Step 6. Nobody is blamed for a failure here: it may be a replay of an honest login."""
        seen, _ = self._seen(request.user, request.device)
        if request.stamp <= seen:
            raise RemoteProtocolError("login_stamp_replayed")
        wall = self._wall_clock()
        if request.stamp > tai64n.pack(wall + FUTURE_STAMP) and not self.clock_behind():
            raise RemoteProtocolError("login_stamp_future")
        if not seen and request.stamp < tai64n.pack(wall - PAST_STAMP):
            raise RemoteProtocolError("login_stamp_old")

    def _debit_of(self, request: LoginRequest) -> Debit:
        """Return whose bucket a login is for; all names that are no account share one."""
        if request.user not in self.users:
            return Debit(None, None)
        since = tai64n.pack(self._wall_clock() - KNOWN_TIME)
        seen, kept = self._seen(request.user, request.device)
        return Debit(request.user, request.device if kept and seen >= since else None)

    def _check_key(self, request: LoginRequest, message: bytes, debit: Debit, now: float) -> None:
        """Step 8."""
        if not hmac.compare_digest(request.public_key, self.users.get(request.user, _NO_KEY)):
            self._admission.remember_wrong(message)
            self._admission.guessed_wrong(debit, now)
            raise RemoteProtocolError("login_wrong")
