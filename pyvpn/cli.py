"""The ``pyvpn`` command.

With the hub running, commands go through its control socket and act on live sessions; otherwise
they lock the state directory and work on it themselves. Twisted is imported only for the latter, so
that everything else starts fast.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not running, 4 no privilege.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from pyvpn import __version__, accounts, config, network_cli, peers_cli, status
from pyvpn.accounts import DONE
from pyvpn.config import Profile
from pyvpn.control_client import NoPrivilege, NotRunning, ask, listener_pid, running_pid
from pyvpn.errors import ConfigError, StartError, VPNError
from pyvpn.instance import Instance
from pyvpn.terminal import emphasised, prompt, say
from pyvpn.token import JoinLink

FAILED, USAGE, NOT_RUNNING, NO_PRIVILEGE = range(1, 5)
INTERRUPTED: Final = 128 + signal.SIGINT  # what shells expect after Ctrl-C
EXIT_STATUS: Final = (
    "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not running, 4 no privilege."
)
CONNECT_PATIENCE: Final = 3.0  # seconds that `up` watches for the first login before it returns


def join(options: argparse.Namespace) -> int:
    """Turn a join link into a profile."""
    text = sys.stdin.readline() if options.link == "-" else options.link
    link = JoinLink.from_text(text.strip())
    name = options.name if options.name is not None else host_profile(link)
    path = config.profile_path(options.profile_dir, config.profile_name(name))
    if name in config.profile_names(options.profile_dir):
        profile = Profile.load(path)
        # The password salt is made once per network and kept for ever (docs/protocol.rst).
        same_network = profile.token.password_salt == link.token.password_salt
        if profile.user != link.user or not same_network:
            raise ConfigError(
                "this profile is of another user or network; choose another name with --name NAME",
                path=str(path),
            )
        profile = evolve(profile, servers=link.addresses, token=link.token)
    else:
        profile = Profile(name=name, servers=link.addresses, user=link.user, token=link.token)
    if options.pw_file is not None:
        config.read_password_file(options.pw_file)
        profile = evolve(profile, password_file=str(Path(options.pw_file).absolute()))
    elif options.save_password:
        asked = sys.stdin.isatty()
        question = f"Password of {link.user}: "
        password = prompt(question) if asked else config.read_password_file("-")
        config.write_private_file(path.with_suffix(".password"), password + "\n")
        profile = evolve(profile, password_file=f"{name}.password")
    profile.save(path)
    say(
        f"profile  {name} ({path})",
        f"server   {', '.join(link.addresses)}",
        f"user     {link.user}",
    )
    say("", f"Next: sudo pyvpn up {name}")
    return DONE


def host_profile(link: JoinLink) -> str:
    """A profile name made of the hub's first address."""
    host = config.host_port(link.addresses[0], config.SERVER_PORT)[0]
    return host.replace(":", "-").strip("-.")[:32].rstrip("-.")


def up(options: argparse.Namespace) -> int:
    """Start a hub or client as a daemon."""
    instance = named(options)
    if (pid := instance.pid()) is not None:
        say(f"{instance.name} is running already (pid {pid})")
        return DONE
    given = ["--state-dir", str(options.state_dir), "--run-dir", str(options.run_dir)]
    password = None
    if instance.name == "server":
        if options.config is not None:
            given += ["--config", str(Path(options.config).absolute())]
    else:
        given += ["--profile", instance.name, "--profile-dir", str(options.profile_dir)]
        profile = config.choose_profile(options.profile_dir, instance.name)
        if profile.password_file is None:
            password = os.environ.get("PYVPN_PW") or prompt(f"Password of {profile.user}: ")
    require_privilege()
    pid = instance.start([*given, *options.rest], password)
    try:
        news = first_news(instance)
    except NotRunning:
        raise StartError(instance.last_words() or f"it has ended; {instance.look()}") from None
    say(f"{instance.name} is up (pid {pid})", *news)
    return DONE


def require_privilege() -> None:
    """Say at once what the daemon would say later, with the exit status that means it."""
    from pyvpn.linux import preflight

    try:
        preflight.privileged()
    except StartError as error:
        raise NoPrivilege(str(error)) from None


def first_news(instance: Instance) -> list[str]:
    """What a fresh instance says about itself, a client after a moment for its login."""
    deadline = time.monotonic() + CONNECT_PATIENCE
    answer = instance.status()
    while instance.name != "server" and not answer.get("addresses"):
        if time.monotonic() > deadline:
            return [f"not connected yet; see 'pyvpn status' and 'pyvpn logs {instance.name}'"]
        time.sleep(0.1)
        answer = instance.status()
    return status.instance_lines(instance.files.socket.stem, answer)


def down(options: argparse.Namespace) -> int:
    """End a hub or client, wait until it is gone, and lift its kill switch."""
    instance = named(options)
    try:
        ended = f"{instance.name} is down (was pid {instance.stop()})"
    except NotRunning:
        # Killed, perhaps, and its kill switch stands.
        lifted = lift_kill_switch(instance.files.socket.stem)
        if not lifted:
            raise
        ended = f"{instance.name} was not running"
    else:
        lifted = lift_kill_switch(instance.files.socket.stem)
    say(ended, *lifted)
    return DONE


def lift_kill_switch(owner: str | None = None) -> list[str]:
    """Remove the kill switch, if it is the owner's where one is given; lines about it."""
    from pyvpn.linux import killswitch
    from pyvpn.linux.system import ChangeFailed, LinuxSystem

    if owner == "server":
        return []
    try:
        return killswitch.lift(LinuxSystem(), owner)
    except ChangeFailed as error:
        if os.geteuid():
            raise NoPrivilege(
                f"the kill switch cannot be lifted: {error}; run it as root"
            ) from None
        raise VPNError(f"the kill switch cannot be lifted: {error}") from None


def traffic(options: argparse.Namespace) -> int:
    """Send all traffic of this machine through a running client, or the VPN's alone."""
    instance = named(options)
    answer = ask(instance.files.socket, "traffic", {"what": options.what})
    what = "all traffic goes" if options.what == "all" else "the VPN's traffic alone goes"
    say(f"{what} through {instance.name}", *answer["notes"])
    return DONE


def logs(options: argparse.Namespace) -> int:
    """Show the end of a log."""
    instance = named(options)
    say(*instance.log_tail())
    if options.follow:
        sys.stdout.flush()
        os.execvp("tail", ["tail", "-n", "0", "-F", str(instance.files.log)])
    return DONE


def named(options: argparse.Namespace) -> Instance:
    """The hub or client that the command is about."""
    name = options.name if options.name == "server" else config.profile_name(options.name)
    return Instance.named(name, options.run_dir, options.state_dir)


def show_status(options: argparse.Namespace) -> int:
    """Ask everything that runs here how it is."""
    answers: dict[str, dict[str, Any]] = {}
    notes = []
    for socket in sockets(options.run_dir):
        try:
            answers[socket.stem] = status.flat(ask(socket, "status"))
        except NotRunning:
            notes.append(f"{socket.stem}: ended without clearing up; repair it with: pyvpn cleanup")
        except NoPrivilege:
            raise
        except VPNError as error:
            notes.append(f"{socket.stem}: {error}")
    if options.json:
        say(json.dumps(answers, indent=2, sort_keys=True))
    else:
        for instance, answer in answers.items():
            say(*emphasised(status.instance_lines(instance, answer)))
        for note in notes:
            say(note)
    if answers:
        return DONE
    raise NotRunning(f"nothing runs here (no answer in {options.run_dir})")


def sockets(run_dir: Path) -> list[Path]:
    """The control sockets in a run directory."""
    try:
        return sorted(run_dir / name for name in os.listdir(run_dir) if name.endswith(".sock"))
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NoPrivilege(f"{run_dir} is not yours to read; run it as root") from None


def cleanup(options: argparse.Namespace) -> int:
    """Repair what processes left that ended without clearing up."""
    from pyvpn.linux import privsep

    done = privsep.cleanup(options.run_dir)
    for socket in sockets(options.run_dir):
        if listener_pid(socket) is None:
            done += removed(socket)
    for pid_file in sorted(options.run_dir.glob("*.pid")):
        plugin = "pyvpn-server" if pid_file.stem == "server" else "pyvpn-client"
        if running_pid(pid_file, plugin) is None:
            done += removed(pid_file)
    if options.kill_switch:
        done += lift_kill_switch()
    say(*(done or ["nothing to repair"]))
    return DONE


def removed(path: Path) -> list[str]:
    """Remove what a dead process left; say so."""
    try:
        path.unlink()
    except OSError as error:
        raise VPNError(f"{path}: cannot remove it: {error.strerror}") from error
    return [f"{path} removed: its process has ended"]


# -- the command line ------------------------------------------------------------------------------

Group = Any  # argparse's type of a group of commands is private


def directory(text: str) -> Path:
    """A directory option; what is wrong with it is wrong usage."""
    try:
        return config.directory(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def common_options() -> argparse.ArgumentParser:
    """The directories, accepted before and after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for option, text, default in (
        ("--state-dir", "the hub's state, and all logs", config.STATE_DIR),
        ("--run-dir", "control sockets and pid files", config.RUN_DIR),
        ("--profile-dir", "profiles of joined networks", config.PROFILE_DIR),
    ):
        text = f"{text} (default {default})"
        common.add_argument(option, type=directory, metavar="DIR", help=text)
    return common


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = common_options()
    top = argparse.ArgumentParser(
        prog="pyvpn",
        description="A VPN of your own: one hub, its clients, login by password.",
        epilog=EXIT_STATUS,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"pyvpn {__version__}")

    def command(group: Group, name: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").partition("\n")[0]
        added: argparse.ArgumentParser = group.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=EXIT_STATUS,
            parents=[common],
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_hub_commands(commands, common, command)
    peers_cli.add_commands(commands, common, command)
    network_cli.add_commands(commands, common, command)
    add_machine_commands(commands, command)
    return top


def add_hub_commands(
    commands: Group,
    common: argparse.ArgumentParser,
    command: Callable[[Group, str, Callable[..., int]], argparse.ArgumentParser],
) -> None:
    """init, user …, invite."""
    init = command(commands, "init", accounts.init)
    init.add_argument(
        "--endpoint",
        metavar="HOST[:PORT]",
        help="where clients reach the hub from outside; several with commas between",
    )
    text = "the accounts: add, passwd, list, disable, enable, remove"
    user = commands.add_parser("user", help=text, description=text, parents=[common])
    users = user.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run in (("add", accounts.user_add), ("passwd", accounts.user_passwd)):
        added = command(users, name, run)
        added.add_argument("name", metavar="NAME", help="1 to 32 bytes")
        how = added.add_mutually_exclusive_group()
        how.add_argument("--pw-file", metavar="FILE", help="read the password there; - for stdin")
        how.add_argument("--prompt", action="store_true", help="ask for the password")
    command(users, "list", accounts.user_list)
    for name, run in (
        ("disable", accounts.user_disable),
        ("enable", accounts.user_enable),
        ("remove", accounts.user_remove),
    ):
        command(users, name, run).add_argument("name", metavar="NAME")
    command(commands, "invite", accounts.invite).add_argument("name", metavar="USER")


def add_machine_commands(
    commands: Group,
    command: Callable[[Group, str, Callable[..., int]], argparse.ArgumentParser],
) -> None:
    """join, up, down, traffic, logs, status, cleanup."""
    added = command(commands, "join", join)
    added.add_argument("link", metavar="LINK", help="in single quotes; - reads it from stdin")
    added.add_argument("--name", metavar="NAME", help="of the profile (default: the hub's host)")
    how = added.add_mutually_exclusive_group()
    how.add_argument("--save-password", action="store_true", help="ask for it and keep it (0600)")
    how.add_argument("--pw-file", metavar="FILE", help="where the client shall read the password")
    what = "'server' for the hub, or a profile"
    added = command(commands, "up", up)
    added.add_argument("name", metavar="NAME", help=what)
    added.add_argument("--config", metavar="FILE", help="the hub's configuration file")
    added.usage = "%(prog)s [options] NAME [-- OPTIONS OF THE HUB OR CLIENT]"
    command(commands, "down", down).add_argument("name", metavar="NAME", help=what)
    added = command(commands, "traffic", traffic)
    added.add_argument("name", metavar="NAME", help="a profile")
    added.add_argument("what", choices=("all", "vpn"), help="until the client ends")
    added = command(commands, "logs", logs)
    added.add_argument("name", metavar="NAME", help=what)
    added.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")
    added = command(commands, "status", show_status)
    added.add_argument("--json", action="store_true", help="for programs")
    added = command(commands, "cleanup", cleanup)
    text = "let traffic leave this machine around the tunnel again"
    added.add_argument("--kill-switch", action="store_true", help=text)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; ``rest`` is what stands after ``--``."""
    head, rest = list(arguments), []
    if "--" in head:
        cut = head.index("--")
        head, rest = head[:cut], head[cut + 1 :]
    options = argparse.Namespace(
        state_dir=config.STATE_DIR,
        run_dir=config.RUN_DIR,
        profile_dir=config.PROFILE_DIR,
        rest=rest,
    )
    top = parser()
    top.parse_args(head, options)
    if rest and options.run is not up:
        top.error("only 'up' passes options on after --")
    return options


def for_lack_of_privilege(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that this user may not do it."""
    while error is not None:
        if isinstance(error, PermissionError | NoPrivilege):
            return True
        error = error.__cause__ or error.__context__
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (wrong usage and --help leave by SystemExit)."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `pyvpn logs x | head`: nobody wants the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (VPNError, OSError) as error:
        print(f"pyvpn: {error}", file=sys.stderr)
        if isinstance(error, NotRunning):
            return NOT_RUNNING
        return NO_PRIVILEGE if for_lack_of_privilege(error) else FAILED


if __name__ == "__main__":
    sys.exit(main())
