"""Stock WireGuard peers on the command line: ``peer …``.

Keys are made in this process. A peer's private key is shown once, as the peer's .conf file and as a
QR code; the hub never gets it, and no disk does unless ``--output`` names a file.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Final

from attrs import evolve, field, frozen

from pyvpn import config, qrcode, wgconf
from pyvpn.accounts import DONE, Do, administer, conversation
from pyvpn.errors import ConfigError, VPNError
from pyvpn.files import sync_directory
from pyvpn.status import ago, amount
from pyvpn.terminal import DASH, emphasised, say, table
from pyvpn.wgconf import Network, PeerConf, WireGuardConf, format_key

MTU: Final = 1416  # docs/protocol.rst: fits 1,500 bytes outside, over IPv6 too
KEEPALIVE: Final = 25  # seconds: below what the NATs of this world remember
MAX_SHOWN: Final = 3  # networks in a row of the table; a peer may have thousands
#: Both families, also where the VPN has but one: the other one's would go around it.
EVERYTHING: Final = ("0.0.0.0/0", "::/0")
FILES: Final = (".conf", *qrcode.FORMATS)

# wg-quick and the apps make the interface's name of the file's.
_INTERFACE = re.compile(r"[A-Za-z0-9_=+.-]{1,15}")
_KEY_ELSEWHERE = "# PrivateKey = the one that was made together with this public key:\n# "


def peer_name(text: str) -> str:
    """A peer's name: what a user's may be."""
    try:
        return config.user_name(text)
    except ConfigError as error:
        raise ConfigError(error.message.replace("user name", "peer name", 1)) from None


def note(*lines: str) -> None:
    """Tell people something beside the result, which may be going into a file."""
    out = sys.stdout if sys.stdout.isatty() else sys.stderr
    for line in lines:
        print(line, file=out)


def warn(answer: Mapping[str, Any]) -> None:
    """Tell people what the hub warns of."""
    note(*(f"warning: {warning}" for warning in _texts(answer.get("warnings"))))


# -- add -------------------------------------------------------------------------------------------


@frozen
class Keys:
    """The keys of a peer to be: what the hub is told of them, and the secret that it is not."""

    public: bytes
    private: bytes | None = field(repr=False)
    psk: bytes = field(repr=False)

    @classmethod
    def made(cls, public_key: str | None, with_psk: bool) -> Keys:
        """New keys, or those that go with a public key made elsewhere."""
        psk = os.urandom(wgconf.KEY_SIZE) if with_psk else wgconf.NO_PSK
        if public_key is not None:
            return cls(_option("--public-key", wgconf.parse_key, public_key), None, psk)
        from pyvpn.core import login

        raw = bytearray(os.urandom(wgconf.KEY_SIZE))
        raw[0] &= 248  # RFC 7748, section 5: done by every use anyway, and by 'wg genkey' at once
        raw[31] = raw[31] & 127 | 64
        return cls(login.public_key(bytes(raw)), bytes(raw), psk)

    @property
    def psk_text(self) -> str:
        """As the hub wants it: empty for none."""
        return "" if self.psk == wgconf.NO_PSK else format_key(self.psk)


def peer_add(options: argparse.Namespace) -> int:
    """Make keys and addresses for a WireGuard peer; show its .conf and a QR code."""
    name = peer_name(options.name)
    allowed = _option("--allowed-ips", wgconf.parse_allowed_ips, options.allowed_ips or "")
    keepalive = _option("--keepalive", wgconf.parse_keepalive, options.keepalive)
    elsewhere = options.public_key is not None
    with_code = sys.stdout.isatty() and not elsewhere if options.qr is None else options.qr
    if elsewhere and (with_code or (options.output and _suffix(options.output) != ".conf")):
        raise ConfigError(
            "a QR code would lack the private key, which only its device has; take --output"
            " FILE.conf or nothing",
            path="--public-key",
        )
    keys = Keys.made(options.public_key, options.psk)
    with reserved(options.output) as write:
        added = _added(options, name, keys, allowed)
        text = conf_text(added, keys, keepalive, everything=options.all_traffic)
        note(f"{name} added: {', '.join(_texts(added.get('addresses')))}")
        warn(added)
        try:
            write(text)
        except (OSError, ConfigError) as error:
            raise VPNError(
                f"{options.output}: cannot write it: {getattr(error, 'strerror', None) or error};"
                f" the peer has lost its key: pyvpn peer remove {shlex.quote(name)}"
            ) from error
    _show(options.output, text, with_code, secret=not elsewhere or options.psk)
    return DONE


def _added(
    options: argparse.Namespace, name: str, keys: Keys, allowed: Iterable[Network]
) -> dict[str, Any]:
    """The hub's answer; it is not asked for what could be of no use."""

    async def talk(do: Do) -> dict[str, Any]:
        if keys.private is not None and not (await do("status")).get("endpoint"):
            raise ConfigError(
                "no endpoint is set, so the peer could not be told where the hub is; set its public"
                " address: pyvpn init --endpoint HOST[:PORT]"
            )
        if options.all_traffic and not (await do("network_show")).get("internet"):
            raise ConfigError(
                "this hub offers no internet, so the peer's traffic would end there; to offer it:"
                " pyvpn network set --internet on",
                path="--all-traffic",
            )
        return await do(
            "peer_add",
            name=name,
            public_key=format_key(keys.public),
            psk=keys.psk_text,
            allowed_ips=_comma(allowed),
            # The interval is the peer's: it is the one behind a NAT.
            keepalive="0",
        )

    return conversation(options, talk)


def conf_text(
    added: Mapping[str, Any], keys: Keys, keepalive: int, *, everything: bool = False
) -> str:
    """The text of a new peer's .conf.

    :param added: the answer to ``peer_add``.
    :param keepalive: the peer's, in seconds.
    :param everything: whether the peer sends all of its traffic through the hub, questions for
        names included. Otherwise those go where they went: wg-quick cannot tell them apart.
    """
    endpoint = added.get("endpoint")
    hub = PeerConf(
        public_key=wgconf.parse_key(added["hub_public_key"]),
        psk=keys.psk,
        allowed_ips=_networks(EVERYTHING if everything else added.get("networks")),
        endpoint=None if not endpoint else wgconf.parse_endpoint(endpoint),
        keepalive=keepalive,
    )
    conf = WireGuardConf(
        private_key=keys.private,
        addresses=tuple(map(ip_interface, _texts(added.get("addresses")))),
        mtu=int(added.get("mtu") or MTU),
        dns=tuple(map(ip_address, _texts(added.get("dns")))) if everything else (),
        search=tuple(_texts(added.get("search"))) if everything else (),
        peers=(hub,),
    )
    text = wgconf.format_conf(conf)
    if keys.private is None:
        text = _below_interface(text, _KEY_ELSEWHERE + format_key(keys.public))
    if not endpoint:
        text += "# Endpoint = HOST:PORT of the hub\n"
    return text


def _below_interface(text: str, lines: str) -> str:
    head, _, rest = text.partition("\n")
    return f"{head}\n{lines}\n{rest}"


def _show(output: str | None, text: str, with_code: bool, *, secret: bool) -> None:
    """The .conf, or where it is, and its QR code; only the .conf on a pipe."""
    if output is None:
        if sys.stdout.isatty():
            say("")
        say(text.rstrip("\n"))
    else:
        say(f"written to {output}")
    if with_code:
        plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
        say("", *qrcode.terminal_lines(text, coloured=not plain), "")
    if output is None:
        if secret:
            note("It is shown this once and stored nowhere; pass it on privately.")
        scan = "scan the code with the WireGuard app, or " if with_code else ""
        note(f"Next: {scan}save the text as FILE.conf there.")
    elif _suffix(output) == ".conf":
        stem = Path(output).stem
        if _INTERFACE.fullmatch(stem):
            note(f"Next, on the peer: sudo wg-quick up {shlex.quote(f'./{stem}.conf')}")
        else:
            note(f"Rename it for wg-quick: '{stem}' cannot name an interface (15 letters, digits)")


@contextmanager
def reserved(output: str | None) -> Iterator[Callable[[str], None]]:
    """Make a file before anything else happens; gives what writes a .conf into it, by its suffix.

    Nobody else may read it, and it goes again if nothing gets written.
    """
    if output is None:
        yield lambda text: None
        return
    suffix, path = _suffix(output), Path(output)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError("it exists already; choose another name", path=output) from None
    except OSError as error:
        raise ConfigError(f"cannot make it: {error.strerror}", path=output) from error
    try:
        with open(descriptor, "wb") as file:

            def write(text: str) -> None:
                file.write(text.encode() if suffix == ".conf" else qrcode.image(text, suffix))
                file.flush()
                os.fsync(file.fileno())

            yield write
        sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _suffix(output: str) -> str:
    suffix = Path(output).suffix.lower()
    if suffix not in FILES:
        raise ConfigError(f"give a name that ends in {', '.join(FILES)}", path="--output")
    return suffix


def _option(option: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(error.message, path=option) from None


def _texts(value: object) -> list[str]:
    """A list of texts, or text with commas, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _comma(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def _networks(value: object) -> tuple[Network, ...]:
    return wgconf.parse_allowed_ips(_comma(_texts(value)))


# -- list, enable, disable, remove -----------------------------------------------------------------


def peer_list(options: argparse.Namespace) -> int:
    """Show the WireGuard peers."""
    peers = _rows(administer(options, "peer_list"))
    if not peers:
        say("no WireGuard peers yet; add one with: pyvpn peer add NAME")
        return DONE
    now = time.time()
    heads = (
        *("PEER", "STATE", "KEY", "ADDRESSES", "ALLOWED IPS"),
        *("ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"),
    )
    rows = [
        (
            peer.get("name"),
            "enabled" if peer.get("enabled", True) else "disabled",
            str(peer.get("public_key", DASH))[:8],
            ", ".join(_texts(peer.get("addresses"))),
            _some(_texts(peer.get("allowed_ips"))),
            peer.get("endpoint"),
            ago(peer.get("last_handshake") or None, now),
            amount(peer.get("rx_bytes")),
            amount(peer.get("tx_bytes")),
        )
        for peer in peers
    ]
    say(*emphasised(table(heads, rows)))
    return DONE


def _rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = answer.get("peers")
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _some(texts: list[str]) -> str:
    more = len(texts) - MAX_SHOWN
    return ", ".join(texts[:MAX_SHOWN]) + (f", {more} more" if more > 0 else "")


def peer_disable(options: argparse.Namespace) -> int:
    """Cut a WireGuard peer off; its keys and addresses are kept."""
    return _changed(options, "disable")


def peer_enable(options: argparse.Namespace) -> int:
    """Let a disabled WireGuard peer connect again."""
    return _changed(options, "enable")


def peer_remove(options: argparse.Namespace) -> int:
    """Forget a WireGuard peer; its addresses become free."""
    return _changed(options, "remove")


def _changed(options: argparse.Namespace, change: str) -> int:
    name = peer_name(options.name)
    answer = administer(options, f"peer_{change}", name=name)
    warn(answer)
    say(f"{name} {change}d.")
    return DONE


# -- import, export --------------------------------------------------------------------------------


def peer_import(options: argparse.Namespace) -> int:
    """Add every [Peer] of another hub's .conf file, with its key and allowed IPs."""
    conf = wgconf.load_conf(options.file)
    if not conf.peers:
        raise ConfigError("there is no [Peer] in it", path=options.file)

    async def talk(do: Do) -> list[str | ConfigError | dict[str, Any]]:
        known = {row.get("public_key"): row for row in _rows(await do("peer_list"))}
        names = {str(row.get("name")) for row in known.values()}
        outcomes: list[str | ConfigError | dict[str, Any]] = []
        for peer in conf.peers:
            if row := known.get(format_key(peer.public_key)):
                outcomes.append(f"{row.get('name')} was there already")
                continue
            peer = evolve(peer, name=unique_name(peer, names))
            try:
                answer = await do("peer_add", **_arguments(peer))
            except ConfigError as error:
                outcomes.append(ConfigError(f"{peer.name}: {error}"))
                continue
            names.add(peer.name)
            outcomes.append(answer | {"name": peer.name})
            if peer.endpoint is not None and not _is_numeric(peer.endpoint):
                outcomes.append(f"{peer.name}: waits to be called, {peer.endpoint} is no address")
        return outcomes

    return _told(options, conf, conversation(options, talk))


def unique_name(peer: PeerConf, names: set[str]) -> str:
    """What a comment calls a peer, or its key; both if another one is called so."""
    key = base64.urlsafe_b64encode(peer.public_key).decode()[:8]
    if peer.name and peer.name not in names:
        return peer.name
    called = f"{peer.name}-{key}"
    return called if peer.name and len(called.encode()) <= 32 else f"wg-{key}"


def _arguments(peer: PeerConf) -> dict[str, str]:
    """``peer_add``'s, for a peer as another hub had it.

    :raises ConfigError: it takes all traffic, as the server does in the file of a client.
    """
    if any(not network.prefixlen for network in peer.allowed_ips):
        raise ConfigError(
            "all traffic would go to this peer; is this the file of a client? Else take: pyvpn peer"
            f" add {shlex.quote(peer.name)} --public-key {format_key(peer.public_key)}"
            " --allowed-ips …"
        )
    arguments = {
        "name": peer.name,
        "public_key": format_key(peer.public_key),
        "psk": "" if peer.psk == wgconf.NO_PSK else format_key(peer.psk),
        "allowed_ips": _comma(peer.allowed_ips),
        "keepalive": str(peer.keepalive),
    }
    if peer.endpoint is not None and _is_numeric(peer.endpoint):
        arguments["endpoint"] = peer.endpoint
    return arguments


def _is_numeric(endpoint: str) -> bool:
    """Whether a hub, which asks no name server, can use it."""
    try:
        ip_address(endpoint.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _told(
    options: argparse.Namespace,
    conf: WireGuardConf,
    outcomes: list[str | ConfigError | dict[str, Any]],
) -> int:
    """Say what became of each peer of a file."""
    refused, hub_key = 0, None
    for outcome in outcomes:
        if isinstance(outcome, ConfigError):
            refused += 1
            print(f"pyvpn: {outcome}", file=sys.stderr)
        elif isinstance(outcome, str):
            say(outcome)
        else:
            hub_key = outcome.get("hub_public_key")
            say(f"{outcome['name']} added: {', '.join(_texts(outcome.get('addresses')))}")
            warn(outcome)
    if hub_key is not None:
        note(*_key_advice(options, conf, str(hub_key)))
    if refused:
        raise ConfigError(f"{refused} of {len(outcomes)} peers were refused", path=options.file)
    return DONE


def _key_advice(options: argparse.Namespace, conf: WireGuardConf, hub_key: str) -> list[str]:
    """What is left to do for peers that know another hub."""
    from pyvpn.core import login

    lines = [f"The peers must be told where this hub is, and its public key {hub_key}."]
    if conf.private_key is not None:
        if format_key(login.public_key(conf.private_key)) == hub_key:
            return []
        lines += [
            "Or the hub takes over the key that they know: stop it, write the file's PrivateKey to",
            f"{options.state_dir}/wireguard.key, start it.",
        ]
    return lines


def peer_export(options: argparse.Namespace) -> int:
    """Print this hub as a .conf file for wg-quick; it holds the pre-shared keys."""
    answer = administer(options, "peer_export")
    rows = _rows(answer)
    port = answer.get("port")
    private = answer.get("hub_private_key") if options.private_key else None
    conf = WireGuardConf(
        private_key=None if private is None else wgconf.parse_key(private),
        addresses=tuple(map(ip_interface, _texts(answer.get("addresses")))),
        listen_port=None if port is None else int(port),
        peers=tuple(_exported(row) for row in rows if row.get("enabled", True)),
    )
    text = wgconf.format_conf(conf)
    if private is None:
        text = _below_interface(text, "# PrivateKey = left out: pyvpn peer export --private-key")
    say(text.rstrip("\n"))
    if disabled := len(rows) - len(conf.peers):
        note(f"left out because they are disabled: {disabled}")
    return DONE


def _exported(row: Mapping[str, Any]) -> PeerConf:
    """A peer as the hub's side of WireGuard has it."""
    own = (*_texts(row.get("addresses")), *_texts(row.get("allowed_ips")))
    endpoint = row.get("endpoint")
    return PeerConf(
        public_key=wgconf.parse_key(row["public_key"]),
        psk=wgconf.parse_key(row["psk"]) if row.get("psk") else wgconf.NO_PSK,
        allowed_ips=_networks(own),
        endpoint=None if not endpoint else wgconf.parse_endpoint(endpoint),
        keepalive=int(row.get("keepalive") or 0),
        name=str(row.get("name") or ""),
    )


# -- the command line ------------------------------------------------------------------------------


def add_commands(
    commands: Any,
    common: argparse.ArgumentParser,
    command: Callable[[Any, str, Callable[..., int]], argparse.ArgumentParser],
) -> None:
    """peer …, into the groups and by the maker of commands of :mod:`pyvpn.cli`."""
    text = "devices with stock WireGuard: add, list, disable, enable, remove, import, export"
    peer = commands.add_parser("peer", help=text, description=text, parents=[common])
    peers = peer.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = command(peers, "add", peer_add)
    add.add_argument("name", metavar="NAME", help="1 to 32 bytes")
    add.add_argument(
        "--allowed-ips", metavar="NET[,NET…]", help="networks behind the peer, beside its addresses"
    )
    add.add_argument(
        "--all-traffic",
        action="store_true",
        help="the peer sends everything through the hub, and asks it for names",
    )
    add.add_argument("--psk", action="store_true", help="make a pre-shared key as well")
    add.add_argument(
        "--keepalive",
        metavar="SECONDS",
        default=str(KEEPALIVE),
        help=f"how often the peer says something; off for never (default {KEEPALIVE})",
    )
    add.add_argument("--public-key", metavar="KEY", help="for keys made elsewhere")
    add.add_argument(
        "--output", metavar="FILE", help="write a file: .conf, or a QR code as .png or .svg"
    )
    add.add_argument(
        "--qr", action=argparse.BooleanOptionalAction, help="a QR code (default: on a terminal)"
    )
    command(peers, "list", peer_list)
    for name, run in (
        ("disable", peer_disable),
        ("enable", peer_enable),
        ("remove", peer_remove),
    ):
        command(peers, name, run).add_argument("name", metavar="NAME")
    command(peers, "import", peer_import).add_argument("file", metavar="FILE.conf")
    command(peers, "export", peer_export).add_argument(
        "--private-key", action="store_true", help="with the hub's own private key"
    )
