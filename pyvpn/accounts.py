"""The hub's accounts on the command line: ``init``, ``user …`` and ``invite``.

With the hub running the commands go through its control socket and act on live sessions; otherwise
they lock the state directory and work on it themselves, for which alone Twisted is imported. The
password stays in this process: the hub and its store only get the public key made of it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pyvpn import config
from pyvpn.config import InstanceFiles
from pyvpn.control_client import NoPrivilege, ask, listener_pid
from pyvpn.errors import ConfigError, StoreError
from pyvpn.terminal import DASH, emphasised, prompt, say, table
from pyvpn.token import make_password, password_problem

if TYPE_CHECKING:
    from pyvpn.state.directory import StateDirectory

DONE: Final = 0

T = TypeVar("T")


#: Does one command of administration, by its name and arguments; gives its result.
Do = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


def administer(options: argparse.Namespace, command: str, **arguments: str) -> dict[str, Any]:
    """The result of a command, by the running hub or on its state directory."""

    async def once(do: Do) -> dict[str, Any]:
        return await do(command, **arguments)

    return conversation(options, once)


def conversation(options: argparse.Namespace, talk: Callable[[Do], Coroutine[Any, Any, T]]) -> T:
    """The result of several commands in a row, all by the running hub or all on its directory.

    Not to be called twice: a reactor runs once.
    """
    hub = hub_socket(options)
    if listener_pid(hub) is None:
        return alone(options.state_dir, talk)

    async def by_hub(command: str, **arguments: str) -> dict[str, Any]:
        return ask(hub, command, arguments)

    try:
        talk(by_hub).send(None)  # it never waits
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("a conversation with the hub waits for nothing else")


def hub_socket(options: argparse.Namespace) -> Path:
    """Where the hub listens for commands, if it runs."""
    return InstanceFiles.of("server", options.run_dir, options.state_dir).socket


def alone(state_dir: Path, talk: Callable[[Do], Coroutine[Any, Any, T]]) -> T:
    """The result of several commands, with the state directory locked for ourselves."""
    from pyvpn.admin import Administration
    from pyvpn.state.directory import StateDirectory
    from pyvpn.state.sqlite import SQLiteStore

    refuse_empty(state_dir)
    state = StateDirectory(state_dir)
    state.lock()
    try:
        store = SQLiteStore(state.store_path)
        store.open()

        async def work() -> T:
            administration = Administration(store, state, None)

            async def by_us(command: str, **arguments: str) -> dict[str, Any]:
                return dict(await administration.run(command, arguments))

            try:
                return await talk(by_us)
            finally:
                await store.close()

        result: T = in_reactor(work)
        return result
    finally:
        state.unlock()


def in_reactor(work: Callable[[], Any]) -> Any:
    """Run the reactor until a coroutine is done; return its result or raise its error."""
    from twisted.internet import reactor as module
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    reactor: Any = module
    outcome: list[Any] = []

    def begin() -> None:
        Deferred.fromCoroutine(work()).addBoth(outcome.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome:
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]


def refuse_empty(state_dir: Path) -> None:
    """Refuse a directory without a network, rather than making one by surprise."""
    if state_dir.exists() and not os.access(state_dir, os.R_OK | os.X_OK, effective_ids=True):
        raise NoPrivilege(f"{state_dir} is not yours to read; run it as root")
    if not (state_dir / "network.token").exists():
        raise ConfigError(
            "there is no network here yet; make one with: pyvpn init", path=str(state_dir)
        )


def init(options: argparse.Namespace) -> int:
    """Make the state directory, the network token and the store; harmless twice."""
    from pyvpn.state.directory import StateDirectory

    text = endpoint = None
    if options.endpoint is not None:  # looked at first: a refused command leaves nothing behind
        try:
            text = ",".join(config.endpoints(options.endpoint, config.SERVER_PORT))
        except ConfigError as error:
            raise ConfigError(error.message, path="--endpoint") from None
    made = StateDirectory(options.state_dir).prepare(os.urandom)
    if text is not None:
        endpoint = administer(options, "endpoint_set", endpoint=text).get("endpoint", text)
    else:
        administer(options, "user_list")  # a store that cannot be used is told of now
    say(f"state directory  {options.state_dir} ({'made' if made else 'was there already'})")
    if endpoint is None:
        say("endpoint         not changed; invitations need one: pyvpn init --endpoint HOST[:PORT]")
    else:
        say(f"endpoint         {endpoint}")
    say("", "Next: pyvpn user add NAME")
    return DONE


def public_key(options: argparse.Namespace, name: str, password: str) -> str:
    """The key that the hub may know, made here of the password that it may not."""
    from pyvpn.core import login
    from pyvpn.state.directory import StateDirectory

    state = StateDirectory(options.state_dir)
    token = state.token
    refuse_foreign(options, state)
    private = login.password_key(password, name, token.password_salt, token.log_n, token.r, token.p)
    return login.public_key(private).hex()


def refuse_foreign(options: argparse.Namespace, state: StateDirectory) -> None:
    """Refuse to make a key with the salt of one network for a hub that runs another.

    Nobody could ever log in with it. The hub keeps its state directory locked, so one that can be
    locked is not that of a running hub.
    """
    if listener_pid(hub_socket(options)) is None:
        return
    try:
        state.lock()
    except StoreError:
        return
    state.unlock()
    raise ConfigError(
        "the hub that runs here uses another state directory; give that with --state-dir",
        path=str(options.state_dir),
    )


def chosen_password(options: argparse.Namespace, name: str) -> tuple[str, bool]:
    """The password for an account and whether it was made here."""
    if options.pw_file is not None:
        password = config.read_password_file(options.pw_file)
    elif options.prompt:
        password = prompt(f"New password for {name}: ")
        if prompt("The same again: ") != password:
            raise ConfigError("the two passwords differ; nothing was changed")
    else:
        return make_password(os.urandom), True
    if problem := password_problem(password, name):
        raise ConfigError(f"this password {problem}; take another, or leave it out to get one made")
    return password, False


def user_add(options: argparse.Namespace) -> int:
    """Make an account, with a strong password unless one is given."""
    return new_password(options, "user_add", "added")


def user_passwd(options: argparse.Namespace) -> int:
    """Give an account another password."""
    return new_password(options, "user_passwd", "has a new password")


def new_password(options: argparse.Namespace, command: str, done: str) -> int:
    """Compute the key of a password and hand it to the hub."""
    name = config.user_name(options.name)
    refuse_empty(options.state_dir)
    password, made = chosen_password(options, name)
    administer(options, command, name=name, public_key=public_key(options, name, password))
    say(f"{name} {done}.")
    if made:
        say("", f"  password  {password}", "", "It is shown this once and stored nowhere.")
    if command == "user_add":
        say(f"Next: pyvpn invite {shlex.quote(name)}")
    return DONE


def user_list(options: argparse.Namespace) -> int:
    """Show the accounts."""
    users = administer(options, "user_list").get("users", [])
    if not users:
        say("no users yet; add one with: pyvpn user add NAME")
    else:
        rows = [
            (
                user.get("name"),
                "enabled" if user.get("enabled", True) else "disabled",
                date(user.get("created")),
                devices(user.get("devices")),
            )
            for user in users
        ]
        say(*emphasised(table(("USER", "STATE", "SINCE", "DEVICES"), rows)))
    return DONE


def date(seconds: object) -> str:
    """A Unix time as a local date."""
    if not isinstance(seconds, int | float):
        return DASH
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def devices(found: object) -> str:
    """The devices of an account, each with its address."""
    if not isinstance(found, list):
        return DASH
    known = [device for device in found if isinstance(device, dict)]
    names = [device.get("name") or str(device.get("device_id", DASH))[:8] for device in known]
    addresses = [device.get("ipv4") or DASH for device in known]
    return ", ".join(f"{name} {own}" for name, own in zip(names, addresses, strict=True))


def user_disable(options: argparse.Namespace) -> int:
    """Refuse further logins of an account; its sessions end at once."""
    return changed(options, "disable")


def user_enable(options: argparse.Namespace) -> int:
    """Let a disabled account log in again."""
    return changed(options, "enable")


def changed(options: argparse.Namespace, change: str) -> int:
    """Do one of the two above."""
    name = config.user_name(options.name)
    administer(options, f"user_{change}", name=name)
    say(f"{name} {change}d.")
    return DONE


def user_remove(options: argparse.Namespace) -> int:
    """Remove an account and its devices; its sessions end at once."""
    name = config.user_name(options.name)
    answer = administer(options, "user_remove", name=name)
    say(f"{name} removed.")
    if routes := answer.get("routes"):
        say(f"No longer reached, as it was behind {name}: {', '.join(map(str, routes))}")
    for warning in answer.get("warnings") or ():
        say(f"warning: {warning}")
    return DONE


def invite(options: argparse.Namespace) -> int:
    """Show the join link of a user, for people also as a QR code."""
    name = config.user_name(options.name)
    link = str(administer(options, "invite", name=name)["link"])
    if not sys.stdout.isatty():
        say(link)
        return DONE
    import segno

    say(f"Join link for {name}:", "", link, "")
    segno.make(link, error="l").terminal(compact=True, border=2)
    say(
        "The link holds the network's secret: pass it on privately. It does not hold the password;",
        "pass that on by another way.",
        "",
        f"Next, on {name}'s machine: sudo pyvpn join 'LINK'",
    )
    if listener_pid(hub_socket(options)) is None:
        say("The hub is not running; start it with: sudo pyvpn up server")
    return DONE
