"""``twistd pyvpn-client``: options of a client."""

from __future__ import annotations

import getpass
import os
import sys

from pyvpn.config import ClientConfig, WireGuardClientConfig, host_port, read_password_file
from pyvpn.errors import ConfigError, StartError
from pyvpn.linux import firewalls, killswitch, preflight
from pyvpn.linux.commandline import wipe_argument
from pyvpn.linux.cpu import cipher_warnings
from pyvpn.linux.system import ChangeFailed, LinuxSystem
from pyvpn.service import wireguardsetup
from pyvpn.service.base import Surroundings, VPNService
from pyvpn.service.client import ClientService
from pyvpn.service.options import ServiceOptions
from pyvpn.service.wireguardclient import WireGuardClientService
from pyvpn.wgconf import WireGuardConf, load_conf

PASSWORD_VARIABLE = "PYVPN_PW"


class Options(ServiceOptions):
    """Options of a client; what is not given comes from the profile that ``pyvpn join`` made.

    With ``--wireguard`` it is a client of a foreign WireGuard server, and the file says the rest.
    """

    command = "pyvpn-client"
    synopsis = "[options]"
    longdesc = (
        "A client of a PyVPN network. Without --pw the password comes from --pw-file,"
        f" ${PASSWORD_VARIABLE}, the profile's password file, or a question on the terminal. With"
        " --wireguard it is a client of a WireGuard server instead; of the other options it takes"
        " --interface, --port, --tun, --mtu, --kill-switch, --lan-access, --exclude, --no-dns,"
        " --state-dir and --run-dir then."
    )

    optParameters = [
        ["pw-file", None, None, "read the password from a file's first line, - for standard input"],
        ["server", None, None, "HOST[:PORT] of the hub, several with commas"],
        ["user", None, None, "name to log in with"],
        ["token-file", None, None, "file with the network token"],
        ["profile", None, None, "profile to use [default: 'default', or the only one]"],
        ["profile-dir", None, None, "where profiles are [default: /etc/pyvpn/clients]"],
        ["tun-addr", None, None, "inner address to ask the hub for [default: the hub chooses]"],
        ["tun-dstaddr", None, None, "the hub's inner address, set as the TUN's other end"],
        ["tun-netmask", None, None, "netmask or prefix length of the TUN [default: the hub's]"],
        ["interface", None, None, "local address to send from [default: the kernel chooses]"],
        ["port", None, None, "local UDP port, 0 for any [default: 12000, or a free one]"],
        ["tun", None, None, "name of the TUN interface [default: leamit0]"],
        ["mtu", None, None, "largest inner packet [default: what the path takes]"],
        ["cipher", None, None, "auto, aes-256-gcm or chacha20-poly1305 [default: auto]"],
        ["deliver", None, None, "push or poll: when the hub sends what is for us [default: push]"],
        ["poll-interval", None, None, "seconds between polls [default: 25 with push, 1 with poll]"],
        [
            "lan-access",
            None,
            None,
            "with all traffic: yes or no [default: yes; no with the switch]",
        ],
        ["include", None, None, "networks that go through the VPN too, with commas"],
        ["exclude", None, None, "networks that never do, with commas"],
        ["share", None, None, "networks behind this machine that the VPN may reach, with commas"],
        ["wireguard", None, None, "FILE.conf: join a WireGuard server as this wg-quick file says"],
        ["state-dir", None, None, "device id and logs [default: /var/lib/pyvpn]"],
        ["run-dir", None, None, "pid file, control socket [default: /run/pyvpn]"],
    ]

    optFlags = [
        ["all-traffic", None, "send all traffic through the hub, not that of the VPN alone"],
        ["kill-switch", None, "nothing leaves but through the VPN, until 'pyvpn down'"],
        ["no-routes", None, "take no routes from the hub"],
        ["no-dns", None, "leave this machine's name servers alone"],
    ]

    #: With the password, or else with the file.
    config: ClientConfig | WireGuardClientConfig
    password: str
    conf: WireGuardConf | None = None

    def opt_pw(self, password: str) -> None:
        """the password; better not given here, where the shell's history keeps it"""
        wipe_argument(password)
        self["pw"] = password
        self.warn(
            "--pw leaves the password in the shell's history; safer: --pw-file, or the question on"
            " the terminal"
        )

    def opt_tun_adr(self, address: str) -> None:
        """another spelling of --tun-addr"""
        self["tun-addr"] = address

    def check(self) -> None:
        if self["wireguard"] is not None:
            self._check_wireguard()
            return
        self.config = config = ClientConfig.load(self)
        self.check_machine(config.tun, config.files)
        if config.port_explicit:
            preflight.udp_port_free(config.port, config.interface)
        preflight.writable(config.state_dir)
        shared = bool(config.share)
        self._check_firewalls(config, port=host_port(config.servers[0], 0)[1], shared=shared)
        for line in cipher_warnings(config.cipher):
            self.warn(line)
        self.place_files(config.files)
        self.password = self._password(config)

    def _check_wireguard(self) -> None:
        self.config = config = WireGuardClientConfig.load(self)
        self.conf = conf = load_conf(config.file)
        wireguardsetup.check(config, conf)
        self.check_machine(config.tun, config.files)
        preflight.subnet_free(
            wireguardsetup.own_networks(conf), remedy="change Address in the file", routed=False
        )
        port = wireguardsetup.port(config, conf)
        if port:
            preflight.udp_port_free(port, config.interface)
        preflight.writable(config.state_dir)
        self._check_firewalls(config)
        for line in wireguardsetup.warnings(config, conf):
            self.warn(line)
        self.place_files(config.files)

    def _check_firewalls(
        self,
        config: ClientConfig | WireGuardClientConfig,
        *,
        port: int | None = None,
        shared: bool = False,
    ) -> None:
        """Refuse what nft is needed for and missing; say what others' rules will block."""
        system = LinuxSystem()
        if (config.kill_switch or shared) and not firewalls.nft_available(system):
            option = "--kill-switch" if config.kill_switch else "--share"
            raise StartError(f"{option} needs nft, which is not installed (package nftables)")
        try:
            owner = killswitch.standing(system)
        except ChangeFailed as error:
            raise StartError(f"cannot see whether a kill switch stands: {error}") from None
        if owner is not None and owner != config.files.socket.stem:
            said = (
                f"the kill switch of {owner} stands: 'pyvpn down {owner.removeprefix('client-')}'"
                " or 'pyvpn cleanup --kill-switch' lifts it"
            )
            if config.kill_switch:
                raise StartError(f"{said}; a machine has one at most")
            self.warn(f"{said}; until then nothing passes through this client")
        for line in firewalls.client_lines(
            system, config.tun, config.kill_switch, port=port, shared=shared
        ):
            self.warn(line)

    def _password(self, config: ClientConfig) -> str:
        if self.get("pw") is not None:
            password = self["pw"]
        elif self["pw-file"] is not None:
            password = read_password_file(self["pw-file"])
        elif PASSWORD_VARIABLE in os.environ:
            password = os.environ.pop(PASSWORD_VARIABLE)
        elif config.password_file is not None:
            password = read_password_file(str(config.password_file))
        elif sys.stdin.isatty():
            password = getpass.getpass(f"Password of {config.user}: ")
        else:
            raise ConfigError(
                "no password: give --pw-file FILE, or start it on a terminal to be asked"
            )
        if not password:
            raise ConfigError("the password is empty")
        return str(password)


def makeService(options: Options) -> VPNService:
    """Assemble a client; nothing is opened before it starts."""
    config, process = options.config, options.process()
    surroundings = Surroundings(owner=options.owner())
    if isinstance(config, WireGuardClientConfig):
        assert options.conf is not None
        return WireGuardClientService(config, options.conf, process, surroundings)
    return ClientService(config, options.password, process, surroundings)
