"""``twistd pyvpn-server``: options of the hub."""

from __future__ import annotations

from pyvpn.config import ServerConfig
from pyvpn.errors import ConfigError, StartError
from pyvpn.linux import firewalls, preflight
from pyvpn.linux.cpu import cipher_warnings
from pyvpn.linux.inuse import NetworksInUse, numeric_hosts
from pyvpn.linux.system import LinuxSystem, System
from pyvpn.service.base import Surroundings
from pyvpn.service.hubnetwork import needs_nft
from pyvpn.service.options import ServiceOptions
from pyvpn.service.server import ServerService
from pyvpn.state.settings import NetworkOptions, NetworkSettings


class Options(ServiceOptions):
    """Options of the hub; each may stand in the file given with --config too."""

    command = "pyvpn-server"
    synopsis = "[options]"
    longdesc = "The hub of a PyVPN network. It makes whatever is missing at its first start."

    optParameters = [
        ["port", None, None, "UDP port [default: 5050]"],
        ["interface", None, None, "the local address to listen on [default: all, IPv4 and IPv6]"],
        ["subnet", None, None, "the network's IPv4 subnet [default: 10.10.0.0/24]"],
        ["subnet6", None, None, "its IPv6 subnet: auto, none or a subnet [default: auto]"],
        ["tun", None, None, "name of the TUN interface [default: leamit0]"],
        ["mtu", None, None, "largest inner packet, 1280 to 65535 bytes [default: 8916]"],
        ["cipher", None, None, "auto, aes-256-gcm or chacha20-poly1305 [default: auto]"],
        ["endpoint", None, None, "HOST[:PORT] by which clients reach this hub, for join links"],
        ["dns", None, None, "whom clients ask for names: hub, none or addresses [default: hub]"],
        ["search", None, None, "domains to complete short names with, beside pyvpn, with commas"],
        ["route", None, None, "networks on the hub's side that clients may reach, with commas"],
        ["exclude", None, None, "networks that clients keep out of the tunnel, with commas"],
        ["state-dir", None, None, "keys, accounts and logs [default: /var/lib/pyvpn]"],
        ["run-dir", None, None, "pid file, control socket [default: /run/pyvpn]"],
        ["config", None, None, "a TOML file with these options, hyphens written as underscores"],
    ]

    optFlags = [
        ["relay", None, "hand packets from client to client without the kernel"],
        ["internet", None, "let clients reach the internet through this hub"],
        ["no-client-to-client", None, "keep clients apart from each other"],
    ]

    config: ServerConfig

    def check(self) -> None:
        self.config = config = ServerConfig.load(self["config"], self)
        self.check_machine(config.tun, config.files)
        networks = [config.subnet]
        preflight.subnet_free(
            [*networks, config.subnet6] if not isinstance(config.subnet6, str | None) else networks
        )
        preflight.udp_port_free(config.port, config.interface)
        preflight.writable(config.state_dir)
        system = LinuxSystem()
        check_network(config, system)
        for line in (*warnings(config, system), *cipher_warnings(config.cipher)):
            self.warn(line)
        self.place_files(config.files)


def check_network(config: ServerConfig, system: System) -> None:
    """Check that clients can be offered what the options say.

    :raises StartError: nft is missing.
    :raises ConfigError: a route leads to where clients reach this hub.
    """
    wanted = NetworkOptions.of(config).over(NetworkSettings())
    needed = needs_nft(wanted)
    if needed is not None and not firewalls.nft_available(system):
        raise StartError(
            f"nft does not work here, and without it there is no {needed}; install nftables"
        )
    if config.route:
        in_use = NetworksInUse.read(system, config.tun)
        for network in config.route:
            problem = in_use.outer(network, numeric_hosts(config.endpoint))
            if problem is not None:
                raise ConfigError(problem, path="--route")


def warnings(config: ServerConfig, system: System) -> list[str]:
    """What of this machine will stand in the way of a hub."""
    answering = config.dns in (None, "hub")
    beyond = bool(config.internet or config.route)
    return firewalls.hub_lines(system, config.port, config.tun, internet=beyond, dns=answering)


def makeService(options: Options) -> ServerService:
    """Assemble the hub; nothing is opened before it starts."""
    return ServerService(options.config, options.process(), Surroundings(owner=options.owner()))
