"""``twistd pyvpn-client``: options of a client."""

from __future__ import annotations

import getpass
import os
import sys

from pyvpn.config import ClientConfig, read_password_file
from pyvpn.errors import ConfigError
from pyvpn.linux import preflight
from pyvpn.linux.commandline import wipe_argument
from pyvpn.linux.cpu import cipher_warnings
from pyvpn.service.base import Surroundings
from pyvpn.service.client import ClientService
from pyvpn.service.options import ServiceOptions

PASSWORD_VARIABLE = "PYVPN_PW"


class Options(ServiceOptions):
    """Options of a client; what is not given comes from the profile that ``pyvpn join`` made."""

    command = "pyvpn-client"
    synopsis = "[options]"
    longdesc = (
        "A client of a PyVPN network. Without --pw the password comes from --pw-file,"
        f" ${PASSWORD_VARIABLE}, the profile's password file, or a question on the terminal."
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
        ["state-dir", None, None, "device id and logs [default: /var/lib/pyvpn]"],
        ["run-dir", None, None, "pid file, control socket [default: /run/pyvpn]"],
    ]

    config: ClientConfig
    password: str

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
        self.config = ClientConfig.load(self)
        self.check_machine(self.config.tun, self.config.files)
        if self.config.port_explicit:
            preflight.udp_port_free(self.config.port, self.config.interface)
        preflight.writable(self.config.state_dir)
        for line in cipher_warnings(self.config.cipher):
            self.warn(line)
        self.place_files(self.config.files)
        self.password = self._password()

    def _password(self) -> str:
        if self.get("pw") is not None:
            password = self["pw"]
        elif self["pw-file"] is not None:
            password = read_password_file(self["pw-file"])
        elif PASSWORD_VARIABLE in os.environ:
            password = os.environ.pop(PASSWORD_VARIABLE)
        elif self.config.password_file is not None:
            password = read_password_file(str(self.config.password_file))
        elif sys.stdin.isatty():
            password = getpass.getpass(f"Password of {self.config.user}: ")
        else:
            raise ConfigError(
                "no password: give --pw-file FILE, or start it on a terminal to be asked"
            )
        if not password:
            raise ConfigError("the password is empty")
        return str(password)


def makeService(options: Options) -> ClientService:
    """Assemble a client; nothing is opened before it starts."""
    return ClientService(
        options.config, options.password, options.process(), Surroundings(owner=options.owner())
    )
