"""``pyvpn-wg INTERFACE``: a WireGuard interface in a process, as ``wg-quick`` wants it.

``WG_QUICK_USERSPACE_IMPLEMENTATION=pyvpn-wg wg-quick up FILE`` does the rest: peers, addresses,
routes. Without ``-f`` it returns when the interface and its socket for ``wg`` are there, and goes
on in the background until the link is deleted, the socket is removed, or it gets SIGTERM.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import syslog
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from pyvpn import __version__

COMMAND: Final = "pyvpn-wg"
FOREGROUND_VARIABLE: Final = "WG_PROCESS_FOREGROUND"  # of wireguard-go, as the next one
LEVEL_VARIABLE: Final = "LOG_LEVEL"
FAILED, USAGE = 1, 2

#: What wg-quick takes, less names that sysctl knows otherwise.
_NAME: Final = re.compile(r"(?!\.{1,2}$|all$|default$)[A-Za-z0-9_=+.-]{1,15}")

#: By twisted.logger's names.
_PRIORITIES: Final = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warn": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
    "critical": syslog.LOG_CRIT,
}
_LEVELS: Final = {"verbose": "debug", "debug": "debug", "error": "error", "silent": None}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program."""
    options = _parser().parse_args(argv)
    name: str = options.interface
    problem = _problem(name)
    if problem is not None:
        print(f"{COMMAND}: {problem}", file=sys.stderr)
        sys.exit(FAILED)
    # Relative, an installation's path would mean something else after chdir().
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
    if options.foreground or os.environ.get(FOREGROUND_VARIABLE) == "1":
        _run(name, _to_stderr, lambda: None)
    # As wireguard-go: who wants to know everything keeps the terminal.
    talking = os.environ.get(LEVEL_VARIABLE) in ("verbose", "debug")
    log_to = _to_stderr if talking else _to_syslog
    # Before Twisted is there: its descriptors and signal handlers are the child's alone.
    _as_daemon(lambda ready: _run(name, log_to, ready), range(1 if talking else 3))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="A WireGuard interface in a process, to be set up with wg(8) or wg-quick(8).",
        epilog=(
            f"Environment: {FOREGROUND_VARIABLE}=1 is -f; {LEVEL_VARIABLE} is verbose, error or"
            " silent. The log goes to syslog, with -f or verbose to standard error. Exit status: 0"
            " done, 1 failed, 2 wrong usage."
        ),
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    parser.add_argument("interface", metavar="INTERFACE", type=_interface)
    return parser


def _interface(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"'{text}' cannot name an interface; use at most 15 letters, digits, _ = + . -"
        )
    return text


def _problem(name: str) -> str | None:
    """What is wrong with this machine, as far as a look tells."""
    from pyvpn.errors import VPNError
    from pyvpn.linux import preflight

    try:
        preflight.tun_available()
        preflight.privileged()
    except VPNError as error:
        return str(error)
    if name in (known for _, known in socket.if_nameindex()):
        return f"an interface named {name} exists already; 'ip link delete {name}' removes it"
    return None


# -- the background --------------------------------------------------------------------------------


def _as_daemon(run: Callable[[Callable[[], None]], NoReturn], streams: range) -> NoReturn:
    """Run in a child; end with its word, or its status if it ends before it was ready.

    :param streams: what the child lets go of when it is ready.
    """
    here, there = os.pipe()
    child = os.fork()
    if child:
        os.close(there)
        if os.read(here, 1):
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            print(f"{COMMAND}: ended by signal {-status}", file=sys.stderr)
        sys.exit(FAILED)
    os.setsid()
    os.umask(0o077)
    os.chdir("/")
    # A shell's descriptors would stay open as long as we run.
    os.closerange(3, there)
    os.closerange(there + 1, os.sysconf("SC_OPEN_MAX"))

    def ready() -> None:
        # Who waits for the end of our output, as wg-quick's caller may, must not wait for ours.
        null = os.open(os.devnull, os.O_RDWR)
        for stream in streams:
            os.dup2(null, stream)
        os.close(null)
        os.write(there, b"1")
        os.close(there)

    run(ready)


# -- the interface ---------------------------------------------------------------------------------


def _run(name: str, log_to: Callable[[str], Any], ready: Callable[[], None]) -> NoReturn:
    """Make the interface, and end with it.

    :param log_to: makes the observer of the log, from the interface's name.
    :param ready: called when interface and socket are there.
    """
    from twisted.internet import reactor as installed
    from twisted.logger import globalLogBeginner

    from pyvpn.service.twistd import Process
    from pyvpn.service.wireguard import InterfaceService

    reactor: Any = installed

    class Program(Process):
        def __init__(self) -> None:
            super().__init__(COMMAND, daemon=False, pid_file=None, log=None)

        def started(self) -> None:
            ready()

    globalLogBeginner.beginLoggingTo([log_to(name)], redirectStandardIO=False)
    service = InterfaceService(name, Program(), reactor=reactor)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reactor.stop))
    reactor.run()
    sys.exit(0)


def _filtered(observer: Any, usual: str) -> Any:
    """Pass on what the environment asks for."""
    from twisted.logger import FilteringLogObserver, LogLevel, LogLevelFilterPredicate

    level = _LEVELS.get(os.environ.get(LEVEL_VARIABLE, ""), usual)
    if level is None:
        return lambda event: None
    lowest = LogLevel.lookupByName(level)
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=lowest)])


def _to_stderr(name: str) -> Any:
    from twisted.logger import textFileLogObserver

    return _filtered(textFileLogObserver(sys.stderr), "info")


def _to_syslog(name: str) -> Any:
    from twisted.logger import formatEvent

    syslog.openlog(f"{COMMAND}-{name}", syslog.LOG_PID, syslog.LOG_DAEMON)

    def observe(event: Any) -> None:
        failure = event.get("log_failure")
        text = formatEvent(event) + ("" if failure is None else f": {failure.getErrorMessage()}")
        level = event.get("log_level")
        priority = _PRIORITIES.get("info" if level is None else level.name, syslog.LOG_INFO)
        syslog.syslog(priority, text.replace("\0", "?"))

    return _filtered(observe, "info")
