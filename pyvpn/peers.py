"""The stock WireGuard peers of a network: what its store, address pool and running hub agree on.

An administrator changes them by name, ``wg`` by public key. After either, of the enabled peers no
two have the same network: the later one wins, as in WireGuard.
"""

from __future__ import annotations

import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from pyvpn.core.burst import Endpoint
from pyvpn.core.leases import AddressPool, Holder, Lease
from pyvpn.errors import AddressTaken, ConfigError, LocalProtocolError, PoolExhausted
from pyvpn.state.interface import IStore, WireGuardPeerRecord

if TYPE_CHECKING:
    from pyvpn.core.wireguardpeers import WireGuardPeer, WireGuardPeers

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

NO_KEY: Final = bytes(32)  # as a public key: none; as a pre-shared key: none
#: Overlaps that one answer tells of: a peer may have 65,536 networks.
MOST_WARNINGS: Final = 20


@frozen
class LiveCore:
    """A running hub's core, as far as its stock peers are concerned.

    :ivar now: the core's clock.
    :ivar endpoint: what ``address:port`` is to the core.
    :ivar settle: sends what the core has queued.
    :ivar connected: whether a user's device, named by its holder, has a session.
    :ivar forget: forgets a device that its lease was taken from, since nobody has seen it for long.
    """

    wireguard: WireGuardPeers
    now: Callable[[], float]
    endpoint: Callable[[str], Endpoint]
    settle: Callable[[], None]
    connected: Callable[[Holder], bool]
    forget: Callable[[Holder], None]


@frozen
class NewPeer:
    """What is said of a new peer, right in its form.

    :ivar networks: allowed IPs. Of single addresses in the VPN's own network the first of each
        family becomes the peer's own, instead of a leased one.
    :ivar endpoint: ``address:port``, or None.
    """

    name: str
    public_key: bytes
    psk: bytes = field(default=NO_KEY, repr=False)
    networks: tuple[Network, ...] = ()
    keepalive: int = 0
    endpoint: str | None = None


class StockPeers:
    """All stock peers of one network; changes are made one at a time.

    :param store: open, and written by this process alone.
    :param pool: the addresses of peers and of users' devices. The devices' leases may be restored
        when :meth:`restore` is done: a peer's address stands in its own configuration, a device
        gets another one.
    :param hub_public: the hub's own public key.
    :param live: the running hub, None without one.
    :param wall_clock: Unix time in nanoseconds.
    """

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        pool: AddressPool,
        hub_public: bytes,
        live: LiveCore | None = None,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.pool = pool
        self.hub_public = hub_public
        self._store = store
        self._live = live
        self._wall_clock = wall_clock
        # Between looking at core or store and writing no other change may come.
        self._turn = DeferredLock()
        # Of the enabled ones: their networks, and whose each network is.
        self._networks: dict[bytes, list[Network]] = {}
        self._owners: dict[Network, bytes] = {}

    def restore(self) -> None:
        """Tell the pool, and the core if there is one, what the store remembers."""
        lost: list[str] = []
        for record in sorted(self._store.peers().values(), key=_rank):
            networks = networks_of(record)
            lost += [f"{address} of {record.name}" for address in self._hold(record, networks)]
            if record.enabled:
                self._own(record.public_key, networks)
                self._configure(record, networks)
        if lost:
            self._log.warn(
                "{count} addresses of WireGuard peers are not in {network4}, {network6}, or others'"
                " already: {lost}; remove those peers and add them anew",
                count=len(lost),
                network4=self.pool.network4,
                network6=self.pool.network6 or "no IPv6",
                lost=_some(lost),
            )

    def named(self, name: str) -> WireGuardPeerRecord:
        """The peer of a name.

        :raises ConfigError: there is none.
        """
        for record in self._store.peers().values():
            if record.name == name:
                return record
        raise ConfigError(f"there is no WireGuard peer '{name}'; to see all: pyvpn peer list")

    def name_of(self, public_key: bytes) -> str:
        """A peer's name, or its key where it has none yet."""
        record = self._store.peers().get(public_key)
        return b64encode(public_key).decode() if record is None else record.name

    def connected(self) -> Iterator[tuple[WireGuardPeerRecord, WireGuardPeer]]:
        """The peers with a session, and what the core knows of each."""
        if self._live is not None:
            known = self._store.peers()
            for key, peer in self._live.wireguard.peers.items():
                if peer.current is not None and key in known:
                    yield known[key], peer

    def in_core(self, public_key: bytes) -> WireGuardPeer | None:
        """What the running hub knows of a peer, if it is enabled and there is a hub."""
        return None if self._live is None else self._live.wireguard.peers.get(public_key)

    def behind(self) -> dict[str, list[Network]]:
        """The enabled peers with networks beyond the VPN's own, and these, by the peers' names."""
        records = self._store.peers()
        found = {}
        for key, networks in self._networks.items():
            beyond = [network for network in networks if not self._within_vpn(network)]
            if beyond and key in records:
                found[records[key].name] = beyond
        return found

    def _within_vpn(self, network: Network) -> bool:
        if isinstance(network, IPv4Network):
            return network.subnet_of(self.pool.network4)
        return self.pool.network6 is not None and network.subnet_of(self.pool.network6)

    # -- by name ---------------------------------------------------------------------------------

    def add(self, new: NewPeer) -> Deferred[tuple[WireGuardPeerRecord, list[str]]]:
        """Give a new peer addresses, and let it connect.

        :returns: fires with what is kept, and with warnings for people; fails with
            :class:`ConfigError` if it cannot be, :class:`StoreError` if it cannot be kept.
        """
        return self._one_at_a_time(self._add, new)

    def enable(self, name: str) -> Deferred[tuple[WireGuardPeerRecord, list[str]]]:
        """Let a peer connect again; fires and fails as :meth:`add`."""
        return self._one_at_a_time(self._enable, name)

    def disable(self, name: str) -> Deferred[WireGuardPeerRecord]:
        """Let a peer connect no more; it keeps its addresses."""
        return self._one_at_a_time(self._disable, name)

    def remove(self, name: str) -> Deferred[WireGuardPeerRecord]:
        """Forget a peer; its addresses are free."""
        return self._one_at_a_time(self._remove, name)

    def _one_at_a_time(self, change: Callable[..., Any], argument: object) -> Deferred[Any]:
        return self._turn.run(lambda: Deferred.fromCoroutine(change(argument)))

    async def _add(self, new: NewPeer) -> tuple[WireGuardPeerRecord, list[str]]:
        self._check_new(new)
        self._check_networks(new.networks, new.public_key)
        record = self._with_addresses(new)
        try:
            warnings = await self._put_enabled(record)
        except BaseException:
            self.pool.release(_holder(record.public_key))
            raise
        return record, warnings

    async def _enable(self, name: str) -> tuple[WireGuardPeerRecord, list[str]]:
        record = self.named(name)
        if record.enabled:
            return record, []
        self._check_networks(networks_of(record), record.public_key)
        record = evolve(record, enabled=True)
        return record, await self._put_enabled(record)

    async def _disable(self, name: str) -> WireGuardPeerRecord:
        record = evolve(self.named(name), enabled=False)
        await self._store.put_peers([record])
        self._stop(record)
        return record

    async def _remove(self, name: str) -> WireGuardPeerRecord:
        record = self.named(name)
        await self._store.remove_peers([record.public_key])
        self._stop(record)
        self.pool.release(_holder(record.public_key))
        return record

    async def _put_enabled(self, record: WireGuardPeerRecord) -> list[str]:
        """Keep a record and let its peer connect; return what people should know of it."""
        networks = networks_of(record)
        losers = self._losers({record.public_key: networks})
        warnings = self._overlaps(record, networks)
        await self._store.put_peers([*losers, record])
        self._take_over([*losers, record])
        self._configure(record, networks)
        if self._live is not None:
            self._live.settle()
        return warnings

    # -- checks ----------------------------------------------------------------------------------

    def _check_new(self, new: NewPeer) -> None:
        records, key = self._store.peers(), new.public_key
        if new.name in self._store.users():
            raise ConfigError(f"there is a user '{new.name}'; choose another name for the peer")
        if any(record.name == new.name for record in records.values()):
            raise ConfigError(
                f"a WireGuard peer '{new.name}' exists already; choose another name, or first run:"
                f" pyvpn peer remove {quote(new.name)}"
            )
        if key in records:
            raise ConfigError(
                f"public_key: the WireGuard peer '{records[key].name}' has this key; each device"
                " needs a key pair of its own"
            )
        if key == self.hub_public:
            raise ConfigError("public_key: this is the hub's own key; give the peer's")
        if key == NO_KEY:
            raise ConfigError("public_key: this is no key; run 'wg pubkey' with the private one")
        self._check_not_a_user(key)

    def _check_not_a_user(self, public_key: bytes) -> None:
        """Refuse a password user's key: in stock messages it would let a password be guessed.

        :raises ConfigError: naming the user.
        """
        for user in self._store.users().values():
            if user.public_key == public_key:
                raise ConfigError(
                    f"public_key: this key is made from the password of user '{user.name}'; a"
                    " WireGuard peer needs a random one"
                )

    def is_hub(self, network: Network) -> bool:
        """Whether a network is exactly one of the hub's own addresses."""
        return network.prefixlen == network.max_prefixlen and network.network_address in (
            self.pool.hub4,
            self.pool.hub6,
        )

    def _check_networks(self, networks: Iterable[Network], public_key: bytes) -> None:
        """Nobody takes away what was leased to a user, nor the hub's own."""
        for address in _single(networks):
            if self.is_hub(ip_network(address)):
                raise ConfigError(f"allowed_ips: {address} is the hub's own address")
            holder = self.pool.holder(address)
            if holder is not None and holder[0]:
                raise ConfigError(
                    f"allowed_ips: {address} is leased to user '{holder[0]}'; choose another"
                )

    # -- addresses -------------------------------------------------------------------------------

    def _with_addresses(self, new: NewPeer) -> WireGuardPeerRecord:
        """A record with addresses of its own, which the pool holds for it."""
        ipv4, ipv6 = self._own_addresses(new.networks)
        if ipv4 is None or ipv6 is None:
            ipv4, ipv6 = self._leased(_holder(new.public_key), ipv4, ipv6)
        record = WireGuardPeerRecord(
            name=new.name,
            public_key=new.public_key,
            psk=new.psk,
            allowed_ips=_beside(new.networks, (ipv4, ipv6)),
            ipv4=_text(ipv4),
            ipv6=_text(ipv6),
            keepalive=new.keepalive,
            enabled=True,
            created=self._wall_clock() // 1_000_000_000,
            endpoint=new.endpoint,
        )
        # Those that are free: what another peer has is its own until this is written.
        for address in _single(networks_of(record)):
            if self.pool.holder(address) is None:
                self.pool.reserve(_holder(record.public_key), address)
        return record

    def _own_addresses(
        self, networks: Iterable[Network]
    ) -> tuple[IPv4Address | None, IPv6Address | None]:
        """The first single address of each family in the VPN's own network."""
        ipv4: IPv4Address | None = None
        ipv6: IPv6Address | None = None
        for address in _single(networks):
            if isinstance(address, IPv4Address):
                if ipv4 is None and address in self.pool.network4:
                    ipv4 = address
            elif ipv6 is None and address in (self.pool.network6 or ()):
                ipv6 = address
        return ipv4, ipv6

    def _leased(
        self, holder: Holder, ipv4: IPv4Address | None, ipv6: IPv6Address | None
    ) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Find what is missing of an address pair; the pool does not hold it yet."""
        pool = self.pool
        if ipv4 is not None and pool.holder(ipv4) is not None:
            return ipv4, ipv6  # taken from another peer, and so without a partner
        wanted6 = ipv6 if ipv6 is not None and pool.holder(ipv6) is None else None
        before = set(pool.leases())
        try:
            lease = pool.lease(
                holder, ipv4, wanted6, self._wall_clock() // 1_000_000_000, self._connected
            )
        except (PoolExhausted, AddressTaken) as error:
            raise ConfigError(str(error)) from error
        pool.release(holder)
        for lost in before.difference(pool.leases()):
            if self._live is not None:
                self._live.forget(lost)
        return lease.ipv4, ipv6 or lease.ipv6

    def _connected(self, holder: Holder) -> bool:
        return self._live is not None and self._live.connected(holder)

    def _hold(self, record: WireGuardPeerRecord, networks: Iterable[Network]) -> list[Address]:
        """Hold a peer's addresses in the pool; return its own ones that cannot be held."""
        holder = _holder(record.public_key)
        missing = [
            address for address in _single(networks) if not self.pool.reserve(holder, address)
        ]
        return [address for address in missing if str(address) in (record.ipv4, record.ipv6)]

    # -- networks --------------------------------------------------------------------------------

    def _own(self, public_key: bytes, networks: list[Network]) -> None:
        self._networks[public_key] = networks
        self._owners.update(dict.fromkeys(networks, public_key))

    def _disown(self, public_key: bytes) -> None:
        for network in self._networks.pop(public_key, ()):
            if self._owners.get(network) == public_key:
                del self._owners[network]

    def _take_over(self, records: list[WireGuardPeerRecord]) -> None:
        """Note what these records say now; addresses may go from one of them to another."""
        for record in records:
            self._disown(record.public_key)
            self.pool.release(_holder(record.public_key))
        for record in records:
            networks = networks_of(record)
            self._hold(record, networks)
            if record.enabled:
                self._own(record.public_key, networks)

    def _losers(self, gains: Mapping[bytes, Iterable[Network]]) -> list[WireGuardPeerRecord]:
        """The records of those who lose networks to the keys of ``gains``, without them."""
        lost: dict[bytes, set[Network]] = {}
        for winner, networks in gains.items():
            for network in networks:
                owner = self._owners.get(network, winner)
                if owner != winner and owner not in gains:
                    lost.setdefault(owner, set()).add(network)
        records = self._store.peers()
        return [_without(records[key], networks) for key, networks in lost.items()]

    def _overlaps(self, record: WireGuardPeerRecord, networks: list[Network]) -> list[str]:
        """Tell whose networks a record takes, and whose it lies in or around."""
        records, own = self._store.peers(), record.public_key
        warnings = [
            f"{network} is {record.name}'s now and {records[owner].name}'s no more: the later wins"
            for network in networks
            if (owner := self._owners.get(network, own)) != own
        ]
        ours = {network: record.name for network in networks if self._beyond(network)}
        if ours:
            others = {
                network: records[owner].name
                for network, owner in self._owners.items()
                if owner != own and self._beyond(network)
            }
            warnings += [
                f"{inner} of {inside} lies within {outer} of {outside}: the longer prefix wins"
                for inner, inside, outer, outside in (
                    *_within(ours, others),
                    *_within(others, ours),
                )
            ]
        if len(warnings) > MOST_WARNINGS:
            more = len(warnings) - MOST_WARNINGS
            warnings[MOST_WARNINGS:] = [f"and {more} more networks overlap"]
        return warnings

    def _beyond(self, network: Network) -> bool:
        """Whether a network is neither an address in the VPN's own one nor everything."""
        if not network.prefixlen:
            return False
        if network.prefixlen < network.max_prefixlen:
            return True
        pool = self.pool.network4 if network.version == 4 else self.pool.network6
        return pool is None or network.network_address not in pool

    # -- the core --------------------------------------------------------------------------------

    def _configure(self, record: WireGuardPeerRecord, networks: Iterable[Network]) -> None:
        """Make the core's peer what the record says."""
        if self._live is None:
            return
        wireguard, now = self._live.wireguard, self._live.now()
        try:
            peer = wireguard.add(record.public_key, now)
            wireguard.set_psk(peer, record.psk, now)
            if record.endpoint is not None:
                wireguard.set_endpoint(peer, self._live.endpoint(record.endpoint), now)
            wireguard.set_keepalive(peer, record.keepalive, now)
        except (LocalProtocolError, ValueError) as error:
            self._log.error("WireGuard peer {name}: {error}", name=record.name, error=error)
            return
        wireguard.disallow_all(peer)
        for network in networks:
            try:
                wireguard.allow(peer, network)
            except LocalProtocolError as error:
                self._log.error("WireGuard peer {name}: {error}", name=record.name, error=error)

    def _stop(self, record: WireGuardPeerRecord) -> None:
        self._disown(record.public_key)
        if self._live is not None:
            self._live.wireguard.remove(record.public_key, self._live.now())
            self._live.settle()

    # -- by wg -----------------------------------------------------------------------------------

    def changed(self, public_keys: Collection[bytes]) -> Deferred[None]:
        """Keep what was changed in the core about these peers, removals included.

        Whoever is new gets a name. Whoever was disabled and is in the core is enabled.
        """
        return self._one_at_a_time(self._follow, public_keys)

    async def _follow(self, public_keys: Collection[bytes]) -> None:
        assert self._live is not None
        known, core = self._store.peers(), self._live.wireguard.peers
        gone = [key for key in public_keys if key not in core and _enabled(known.get(key))]
        names = {known[key].name for key in known.keys() - set(gone)} | set(self._store.users())
        records: dict[bytes, WireGuardPeerRecord] = {}
        for key in public_keys:
            if key in core:
                name = known[key].name if key in known else _new_name(key, names)
                names.add(name)
                records[key] = self._as_in_core(name, core[key], known.get(key))
        for key in gone:
            self._disown(key)
            self.pool.release(_holder(key))
        losers = self._losers({key: networks_of(record) for key, record in records.items()})
        self._take_over([*losers, *records.values()])
        if gone:
            await self._store.remove_peers(gone)
        written = [*losers, *(new for key, new in records.items() if new != known.get(key))]
        if written:
            await self._store.put_peers(written)

    def _as_in_core(
        self, name: str, peer: WireGuardPeer, old: WireGuardPeerRecord | None
    ) -> WireGuardPeerRecord:
        assert self._live is not None
        networks = self._live.wireguard.networks(peer)
        ipv4, ipv6 = self._own_addresses(networks)
        if old is not None:
            had = {_text(address) for address in _single(networks)}
            ipv4 = IPv4Address(old.ipv4) if old.ipv4 in had and old.ipv4 else ipv4
            ipv6 = IPv6Address(old.ipv6) if old.ipv6 in had and old.ipv6 else ipv6
        return WireGuardPeerRecord(
            name=name,
            public_key=peer.public_key,
            psk=peer.psk,
            allowed_ips=_beside(networks, (ipv4, ipv6)),
            ipv4=_text(ipv4),
            ipv6=_text(ipv6),
            keepalive=peer.keepalive_interval,
            enabled=True,
            created=self._wall_clock() // 1_000_000_000 if old is None else old.created,
            endpoint=None if peer.endpoint is None else str(peer.endpoint),
        )


def restored_leases(pool: AddressPool, store: IStore) -> dict[Holder, Lease]:
    """Lease to the users' devices again what the store remembers; return what could be.

    To be asked when peers have theirs.
    """
    # The last one seen first: should the store hold an address twice, it is that device's.
    devices = sorted(store.devices().items(), key=lambda entry: -entry[1].last_seen)
    for holder, device in devices:
        if device.ipv4 is not None:
            ipv6 = None if device.ipv6 is None else IPv6Address(device.ipv6)
            pool.restore(holder, Lease(IPv4Address(device.ipv4), ipv6), device.last_seen)
    return dict(pool.leases())


def networks_of(record: WireGuardPeerRecord) -> list[Network]:
    """All that is allowed to a peer, its own addresses first."""
    own = [ip_network(text) for text in (record.ipv4, record.ipv6) if text]
    return own + [ip_network(text) for text in record.allowed_ips]


def addresses_of(record: WireGuardPeerRecord) -> list[str]:
    """A peer's own addresses, as single-address networks."""
    return [str(ip_network(text)) for text in (record.ipv4, record.ipv6) if text]


def _holder(public_key: bytes) -> Holder:
    return ("", public_key)  # no user has an empty name


def _single(networks: Iterable[Network]) -> Iterator[Address]:
    for network in networks:
        if network.prefixlen == network.max_prefixlen:
            yield network.network_address


def _beside(networks: Iterable[Network], own: tuple[Address | None, ...]) -> tuple[str, ...]:
    """Networks as text, none twice, without the addresses of its own."""
    texts = dict.fromkeys(map(str, networks))
    for address in own:
        if address is not None:
            texts.pop(str(ip_network(address)), None)
    return tuple(texts)


def _without(record: WireGuardPeerRecord, networks: Collection[Network]) -> WireGuardPeerRecord:
    lost = set(map(str, networks))
    return evolve(
        record,
        ipv4=None if record.ipv4 and f"{record.ipv4}/32" in lost else record.ipv4,
        ipv6=None if record.ipv6 and f"{record.ipv6}/128" in lost else record.ipv6,
        allowed_ips=tuple(text for text in record.allowed_ips if text not in lost),
    )


def _within(
    inner: Mapping[Network, str], outer: Mapping[Network, str]
) -> Iterator[tuple[Network, str, Network, str]]:
    """Each network of ``inner`` that lies in a larger one of ``outer``, with the values of both."""
    places = {_place(network, network.prefixlen): network for network in outer}
    lengths = {(network.version, network.prefixlen) for network in outer}
    for network, name in inner.items():
        for version, length in lengths:
            if version == network.version and length < network.prefixlen:
                around = places.get(_place(network, length))
                if around is not None:
                    yield network, name, around, outer[around]


def _place(network: Network, length: int) -> tuple[int, int, int]:
    """A key that two networks share if they are alike in so many bits."""
    number = int(network.network_address) >> (network.max_prefixlen - length)
    return network.version, length, number


def _new_name(public_key: bytes, taken: Collection[str]) -> str:
    """A name for a peer that nobody has given one."""
    digits = urlsafe_b64encode(public_key).decode()
    return next(name for size in range(8, 30) if (name := f"wg-{digits[:size]}") not in taken)


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)


def _rank(record: WireGuardPeerRecord) -> tuple[bool, int]:
    """Who is restored later: he gets what both say they have."""
    return record.enabled, record.created


def _enabled(record: WireGuardPeerRecord | None) -> bool:
    return record is not None and record.enabled


def _some(texts: list[str], most: int = 5) -> str:
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")
