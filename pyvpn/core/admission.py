"""Who may make the hub compute, and how often passwords may be tried: PROTOCOL 3 and 8.

Nobody who cannot receive at an address can use up what that address is granted, and nobody who does
not know a device can use up what that device is granted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from attrs import frozen

from pyvpn.core.cookies import CookieChecker
from pyvpn.core.ratelimit import TokenBucket, TokenBuckets
from pyvpn.core.timers import NEVER
from pyvpn.errors import RemoteProtocolError

# docs/protocol.rst, "Limits", has all of these with their reasons; rates are per second.

#: Handshakes with a right mac1 above which the hub is under load: 100 cost it 3 % of a core.
LOAD_RATE = 100
#: Logins that wait for the owner's decision.
UNDECIDED_BOUND = 128
#: Seconds by which the reactor may be late, and for which the hub is under load when it was later.
LATE = 0.05
LOAD_TIME = 1.0
#: Handshakes of one source (IPv4 address, IPv6 /64) under load.
SOURCE_RATE, SOURCE_BURST = 20, 5
#: Failed logins of one source.
SOURCE_FAILURE_RATE, SOURCE_FAILURE_BURST = 1, 5
#: Failed logins of all together, above which everybody needs a cookie.
FAILURE_RATE = 20
#: Logins to one account from all devices together that are not known.
USER_RATE, USER_BURST = 1 / 60, 10
#: Failures in a row of those, after which they rest, and for how many seconds.
FREEZE_FAILURES = 100
FREEZE_TIME = 3600.0
#: Logins of a known device.
DEVICE_RATE, DEVICE_BURST = 1 / 5, 20
#: Logins with a wrong password that are remembered, 150 bytes each: more than the buckets of an
#: account let through in a month.
WRONG_KEPT = 65_536

_V4_MAPPED = bytes(10) + b"\xff\xff"

Holder = tuple[str, bytes]


@frozen
class Debit:
    """A token that a login took, to be refunded when its session is confirmed.

    :ivar user: the account, None for all names that are no account.
    :ivar device: a known device's id, None for all others together.
    """

    user: str | None
    device: bytes | None


def source_of(address: bytes) -> bytes:
    """Return whom 18 bytes of address and port are counted as: IPv4 address or IPv6 /64."""
    return address[12:16] if address.startswith(_V4_MAPPED) else address[:8]


class Admission:
    """The hub's buckets.

    :param cookie_key: the network's cookie key.
    :param counters: where each bound counts.
    """

    def __init__(
        self,
        cookie_key: bytes,
        random_bytes: Callable[[int], bytes],
        counters: defaultdict[str, int],
    ) -> None:
        self.counters = counters
        self._cookies = CookieChecker(cookie_key, random_bytes)
        self._arrivals = TokenBucket(LOAD_RATE, LOAD_RATE)
        self._failures = TokenBucket(FAILURE_RATE, FAILURE_RATE)
        self._load_until = self._cookies_until = 0.0
        self._sources: TokenBuckets[bytes] = TokenBuckets(SOURCE_RATE, SOURCE_BURST, counters)
        # Two for each source. What comes without a cookie can be forged, so it must not use up what
        # those are granted who have shown that they receive there.
        failures = SOURCE_FAILURE_RATE, SOURCE_FAILURE_BURST, counters
        self._claimed: TokenBuckets[bytes] = TokenBuckets(*failures)
        self._proven: TokenBuckets[bytes] = TokenBuckets(*failures)
        self._users: TokenBuckets[str | None] = TokenBuckets(USER_RATE, USER_BURST, counters)
        self._devices: TokenBuckets[Holder] = TokenBuckets(DEVICE_RATE, DEVICE_BURST, counters)
        self._in_a_row: dict[str | None, int] = {}
        self._frozen_until: dict[str | None, float] = {}
        self._wrong: dict[bytes, None] = {}
        #: When the reactor is to wake the core, so that it sees whether that comes late. Asked only
        #: while handshakes come.
        self.probe_due = NEVER

    # -- load ---------------------------------------------------------------------------------

    def under_load(self, now: float) -> bool:
        """Tell whether the hub has more to do than it should."""
        return now < self._load_until

    def overloaded(self, now: float) -> None:
        """Note that there is too much to do: from now on, for a second."""
        if now >= self._load_until:
            self.counters["under_load"] += 1
        self._load_until = now + LOAD_TIME

    def woken(self, now: float) -> None:
        """Call from the core's timer: lateness is what the reactor was kept busy by others."""
        if now >= self.probe_due:
            if now - self.probe_due > LATE:
                self.overloaded(now)
            self.probe_due = NEVER

    # -- sources ------------------------------------------------------------------------------

    def arrived(
        self,
        message: bytes,
        receiver: int,
        address: bytes,
        now: float,
        cookies: CookieChecker | None = None,
    ) -> bytes | None:
        """Judge where a handshake with a right mac1 comes from; return the cookie reply if one is
        due first.

        :param receiver: the index that the message gave.
        :param address: 16 bytes of address and 2 of port, where it came from.
        :param cookies: makes the cookies of this kind of message; None: a 0x50.
        :raises RemoteProtocolError: ``source_too_many`` or ``source_failing``.
        """
        self.probe_due = min(self.probe_due, now + LATE)
        if not self._arrivals.take(now):
            self.overloaded(now)
        source = source_of(address)
        loaded = self.under_load(now)
        # Who guesses passwords must not lock out the stock peers behind the same NAT.
        login = cookies is None
        cookies = cookies or self._cookies
        if cookies.mac2_valid(message, address, now):
            if loaded and not self._sources.take(source, now):
                raise RemoteProtocolError("source_too_many")
            if login and not self._proven.available(source, now):
                raise RemoteProtocolError("source_failing")
            return None
        if loaded or (
            login and (now < self._cookies_until or not self._claimed.available(source, now))
        ):
            self.counters["cookie_demanded"] += 1
            return cookies.reply(message, receiver, address, now)
        return None

    def failed(self, message: bytes, address: bytes, now: float) -> None:
        """Count a login that came to nothing by its sender's fault, against its source and all."""
        if not self._failures.take(now):
            if now >= self._cookies_until:
                self.counters["cookies_for_all"] += 1
            self._cookies_until = now + LOAD_TIME
        proven = self._cookies.mac2_valid(message, address, now)
        (self._proven if proven else self._claimed).take(source_of(address), now)

    # -- users and devices ----------------------------------------------------------------------

    def debit(self, debit: Debit, now: float) -> None:
        """Take a token for one comparison of a password.

        :raises RemoteProtocolError: ``login_device_limited``, ``login_frozen`` or
            ``login_user_limited``; nothing is taken then.
        """
        if debit.device is not None and debit.user is not None:
            if not self._devices.take((debit.user, debit.device), now):
                raise RemoteProtocolError("login_device_limited")
        elif now < self._frozen_until.get(debit.user, 0.0):
            raise RemoteProtocolError("login_frozen")
        elif not self._users.take(debit.user, now):
            raise RemoteProtocolError("login_user_limited")

    def repeated(self, message: bytes) -> bool:
        """Tell whether this very 0x50 has been found to have a wrong password before.

        A wrong password leaves no stamp behind. Without this, whoever recorded one typing error
        could use up with it what the account and its device are granted, without any secret.
        """
        return message[-32:-16] in self._wrong

    def remember_wrong(self, message: bytes) -> None:
        """Know this 0x50 when it comes again, by its mac1."""
        self._wrong[message[-32:-16]] = None
        if len(self._wrong) > WRONG_KEPT:
            del self._wrong[next(iter(self._wrong))]

    def guessed_wrong(self, debit: Debit, now: float) -> None:
        """Note that the password was wrong; unknown devices rest after many in a row."""
        if debit.device is not None:
            return
        row = self._in_a_row[debit.user] = self._in_a_row.get(debit.user, 0) + 1
        if row >= FREEZE_FAILURES:
            self._in_a_row[debit.user] = 0
            self._frozen_until[debit.user] = now + FREEZE_TIME
            self.counters["user_frozen"] += 1

    def confirmed(self, debit: Debit) -> None:
        """Refund a login that has become a session."""
        if debit.device is not None and debit.user is not None:
            self._devices.refund((debit.user, debit.device))
        else:
            self._users.refund(debit.user)
            self._in_a_row.pop(debit.user, None)

    def forget_user(self, user: str) -> None:
        """Let an account begin anew: it is gone, or has another password."""
        self._users.forget(user)
        self._in_a_row.pop(user, None)
        self._frozen_until.pop(user, None)
