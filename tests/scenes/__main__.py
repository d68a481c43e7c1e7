"""Plays the scenes: ``python -m tests.scenes [--list] [--quick] [--only WORD]...``

Each is played by a process of its own, with a limit; several at a time, since most of them wait
most of their time. The last line is 'N passed, N failed'. A scene that did not run has failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.netns.namespaces import why_not
from tests.netns.processes import LabError
from tests.scenes.ends import Failed
from tests.scenes.scenes import Scene, scenes

ROOT = Path(__file__).resolve().parent.parent.parent
#: A busy machine takes longer than a scene's own limit.
BUSY = 4


class Verdict(NamedTuple):
    """How a scene went: None where it passed, or why not; and the seconds it took."""

    scene: Scene
    wrong: str | None
    seconds: float


def play(scene: Scene) -> str | None:
    """Play one scene here; why it failed, in a line and the logs' ends, or None."""
    try:
        with scene.lab() as lab:
            scene.act(lab, scene.client, scene.server)
    except (Failed, LabError) as error:
        return str(error)
    return None


def argv_of(scene: Scene) -> list[str]:
    """The command that plays one scene: it ends with 0 and says so if the scene has passed."""
    return [sys.executable, "-m", "tests.scenes", "--play", scene.name]


def play_apart(scene: Scene, argv: Sequence[str]) -> Verdict:
    """Play a scene by a process of its own; what is not plainly a success has failed."""
    started = time.monotonic()
    limit = scene.seconds * BUSY
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
    ) as process:
        try:
            said = process.communicate(timeout=limit)[0].strip()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            wrong: str | None = f"it took more than {limit} s"
        else:
            plain = process.returncode == 0 and said == f"passed: {scene.name}"
            wrong = None if plain else said or f"it ended with status {process.returncode}"
    return Verdict(scene, wrong, time.monotonic() - started)


def play_all(
    chosen: Sequence[Scene],
    at_once: int,
    argv_of: Callable[[Scene], Sequence[str]] = argv_of,
) -> int:
    """Play the scenes, the long ones first, those that load the machine one by one at the end;
    print how each went and, at last, how many; the exit status."""

    def play_one(scene: Scene) -> bool:
        try:
            verdict = play_apart(scene, argv_of(scene))
        except Exception as error:
            verdict = Verdict(scene, f"it could not be played: {error!r}", 0.0)
        word = "passed" if verdict.wrong is None else "FAILED"
        shown = "" if verdict.wrong is None else "\n    " + verdict.wrong.replace("\n", "\n    ")
        print(f"{word}  {verdict.seconds:6.1f} s  {scene.name}{shown}", flush=True)
        return verdict.wrong is None

    passed = 0
    order = sorted(chosen, key=lambda scene: -scene.seconds)
    for loud, width in ((False, at_once), (True, 1)):
        with ThreadPoolExecutor(width) as pool:
            passed += sum(pool.map(play_one, [each for each in order if each.loud == loud]))
    return total(passed, len(chosen))


def total(passed: int, asked: int) -> int:
    """Print the last line; the exit status. Counted from what was asked for: a scene without a
    verdict has failed."""
    print(f"{passed} passed, {asked - passed} failed", flush=True)
    return 0 if passed and passed == asked else 1


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenes", description=__doc__)
    parser.add_argument("--list", action="store_true", help="names them and plays none")
    parser.add_argument("--quick", action="store_true", help="those of the test suite alone")
    parser.add_argument("--only", action="append", default=[], metavar="WORD")
    parser.add_argument("--at-once", type=int, default=4, metavar="N")
    parser.add_argument("--play", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = scenes()
    if options.play is not None:
        wrong = play(next(scene for scene in known if scene.name == options.play))
        print(f"passed: {options.play}" if wrong is None else wrong)
        return 0 if wrong is None else 1
    chosen = [
        scene
        for scene in known
        if (scene.quick or not options.quick) and all(word in scene.name for word in options.only)
    ]
    if options.list:
        for scene in chosen:
            print(scene.name)
        return 0
    if "WIREGUARD_GO" not in os.environ:
        print("WIREGUARD_GO names no newer wireguard-go: Debian's alone is used")
    reason = why_not()
    if reason is not None:
        print(f"no scene can be played here: {reason}")
        return total(0, len(chosen))
    return play_all(chosen, options.at_once)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
