"""The names that the hub answers for: the network's, and those that nobody may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network

from twisted.names import dns

from pyvpn.core.hostnames import DOMAIN, HUB, IPAddress, Names
from pyvpn.service.dnsquery import Query, Records

TTL = 10
"""Seconds an answer may be kept: a machine that moved is found again soon, and a page with 50
pictures asks once."""

REFRESH = 1.0
"""Seconds for which ``names()`` is not asked again."""

SHARE = 0.02
"""Of the time, what may go into new names, unless they are :data:`TTL` old. Those of 10,000 devices
take 150 ms, in which no packet is handed on; and when the hub starts anew they all come in turn."""

IPNetwork = IPv4Network | IPv6Network

# Meaning nothing outside of this machine or link, or meant for programs that ask differently: RFC
# 6761 6.4, RFC 6762 3, RFC 7686 2, RFC 9476, RFC 6303 4. To answer that they do not exist also
# keeps others from learning what is looked for.
_NOWHERE = ("local", "invalid", "onion", "alt", "127.in-addr.arpa", "1" + 31 * ".0" + ".ip6.arpa")

# Here programs ask whether they may go round us to a resolver that they choose: any with encryption
# (RFC 9462 6.4), and Firefox to its maker's. It would know none of the names of this network.
_NO_OTHER_RESOLVER = ("resolver.arpa", "use-application-dns.net")

_NEVER_FORWARDED = [place.encode() for place in (*_NOWHERE, *_NO_OTHER_RESOLVER)]

_LOOPBACK = (dns.Record_A("127.0.0.1", TTL), dns.Record_AAAA("::1", TTL))


class Zones:
    """What the hub answers with authority.

    :param names: what is called how; the same object as before where nothing has changed.
    :param networks: those whose addresses have their names here.
    :param clock: boottime seconds.
    """

    def __init__(
        self,
        names: Callable[[], Names],
        networks: Iterable[IPNetwork],
        clock: Callable[[], float],
        domain: str = DOMAIN,
    ) -> None:
        self._names = names
        self._reverse = [_ReverseZone(network) for network in networks]
        self._clock = clock
        self._domain = domain.encode("ascii")
        self._due = float("-inf")
        self._seen: Names | None = None
        self._hosts: dict[bytes, tuple[IPAddress, ...]] = {}
        self._between: set[bytes] = set()
        self._pointers: dict[IPAddress, bytes] = {}

    def answer(self, query: Query) -> Records | None:
        """The whole answer, or None for a name that is not in our hands."""
        name = query.zone_name
        if _below(name, self._domain):
            self._refresh()
            return self._host(query, name)
        found = self._own_reverse(name)
        if found is not None:
            self._refresh()
            return self._pointer(query, *found)
        for place in _NEVER_FORWARDED:
            if _below(name, place):
                return self._none(place, dns.ENAME)
        if _below(name, b"localhost"):  # RFC 6761 6.3
            return self._found(query, _LOOPBACK, b"localhost")
        return None

    def _refresh(self) -> None:
        start = self._clock()
        if start < self._due:
            return
        self._due = start + REFRESH
        names = self._names()
        if names is not self._seen:
            self._take_in(names)
            self._seen = names
        end = self._clock()
        self._due = end + min(max(REFRESH, (end - start) / SHARE), TTL)

    def _take_in(self, names: Names) -> None:
        self._hosts = {name.lower().encode("ascii"): found for name, found in names.items()}
        self._between = {parent for name in self._hosts for parent in _parents(name)}
        self._pointers = {}
        for name, addresses in self._hosts.items():
            for address in addresses:
                self._pointers.setdefault(address, name)

    def _host(self, query: Query, name: bytes) -> Records:
        addresses = self._hosts.get(name)
        if addresses is None and name not in self._between and name != self._domain:
            return self._none(self._domain, dns.ENAME)
        records = [_address_record(address) for address in addresses or ()]
        if name == self._domain:
            records += self._apex()
        return self._found(query, records, self._domain)

    def _own_reverse(self, name: bytes) -> tuple[bytes, IPNetwork | None] | None:
        if not name.endswith(b".arpa"):
            return None
        for zone in self._reverse:
            found = zone.find(name)
            if found is not None:
                return found
        return None

    def _pointer(self, query: Query, apex: bytes, asked: IPNetwork | None) -> Records:
        if asked is None:
            return self._none(apex, dns.ENAME)
        records: list[dns.IEncodableRecord] = []
        if query.zone_name == apex:
            records += self._apex()
        elif asked.prefixlen == asked.max_prefixlen:
            name = self._pointers.get(asked.network_address)
            if name is None:
                return self._none(apex, dns.ENAME)
            records.append(dns.Record_PTR(name, TTL))
        # That which is neither is the beginning of names that may exist. To deny it would deny
        # all of them to who asks one label after the other (RFC 8020).
        return self._found(query, records, apex)

    def _apex(self) -> list[dns.IEncodableRecord]:
        return [self._authority(), dns.Record_NS(self._hub, TTL)]

    @property
    def _hub(self) -> bytes:
        return b"%s.%s" % (HUB.encode(), self._domain)

    def _authority(self) -> dns.Record_SOA:
        contact = b"hostmaster." + self._domain
        # Nobody copies these zones: only the last, how long a "no" may be kept, means something.
        return dns.Record_SOA(self._hub, contact, 1, 3600, 600, 86400, TTL, TTL)

    def _found(self, query: Query, records: Sequence[dns.IEncodableRecord], apex: bytes) -> Records:
        if query.type == dns.ALL_RECORDS:
            # One small record for all that there are: RFC 8482 4.2.
            records = [dns.Record_HINFO(b"RFC8482", b"", TTL)]
        else:
            records = [record for record in records if query.type == record.TYPE]
        if not records:
            return self._none(apex, dns.OK)
        return Records(dns.OK, [_record(query.name, record) for record in records])

    def _none(self, apex: bytes, rcode: int) -> Records:
        """No such name, or none of this type: with SOA, for how long to believe it (RFC 2308 2)."""
        return Records(rcode, (), [_record(apex, self._authority())])


class _ReverseZone:
    """Names for the addresses of one network, in slices of whole octets or nibbles."""

    def __init__(self, network: IPNetwork) -> None:
        self.network = network
        self._ending = b".in-addr.arpa" if network.version == 4 else b".ip6.arpa"
        self._bits = 8 if network.version == 4 else 4
        spelling = "%d" if network.version == 4 else "%x"
        self._spelt = {(spelling % number).encode(): number for number in range(1 << self._bits)}
        length = -(-network.prefixlen // self._bits) * self._bits
        # The last label is that of a single address, and no zone of its own.
        self._cut = min(length, network.max_prefixlen - self._bits)

    def find(self, name: bytes) -> tuple[bytes, IPNetwork | None] | None:
        """The slice's name, and what is asked for: an address, or all that begin so.

        Only the slice's name if there can be nothing of that name; None if it is not ours.
        """
        if not name.endswith(self._ending):
            return None
        labels = name[: -len(self._ending)].split(b".")[::-1]
        numbers = self._numbers(labels)
        prefix = self._prefix(numbers)
        if not self._mine(prefix):
            return None
        count = self._cut // self._bits
        apex = b".".join(labels[:count][::-1]) + self._ending
        return apex, prefix if len(numbers) == len(labels) else None

    def _numbers(self, labels: Sequence[bytes]) -> list[int]:
        """Those labels at the beginning that are right."""
        numbers: list[int] = []
        for label in labels[: self.network.max_prefixlen // self._bits]:
            number = self._spelt.get(label)
            if number is None:
                break
            numbers.append(number)
        return numbers

    def _prefix(self, numbers: Sequence[int]) -> IPNetwork:
        length = len(numbers) * self._bits
        value = 0
        for number in numbers:
            value = value << self._bits | number
        network = (value << self.network.max_prefixlen - length, length)
        return IPv4Network(network) if self.network.version == 4 else IPv6Network(network)

    def _mine(self, prefix: IPNetwork) -> bool:
        if prefix.prefixlen < self._cut:
            return False  # a zone above ours, which holds other people's networks too
        if prefix.prefixlen == self._cut:
            return prefix.overlaps(self.network)
        return prefix.network_address in self.network


def _below(name: bytes, place: bytes) -> bool:
    return name.endswith(place) and (len(name) == len(place) or name[-len(place) - 1] == 46)


def _parents(name: bytes) -> Iterator[bytes]:
    while (dot := name.find(b".")) >= 0:
        name = name[dot + 1 :]
        yield name


def _address_record(address: IPAddress) -> dns.IEncodableRecord:
    if address.version == 4:
        return dns.Record_A(str(address), TTL)
    return dns.Record_AAAA(str(address), TTL)


def _record(name: bytes, record: dns.IEncodableRecord) -> dns.RRHeader:
    return dns.RRHeader(name, record.TYPE, dns.IN, TTL, record, auth=True)
