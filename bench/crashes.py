"""What survives kill -9, asked and measured.

    python bench/crashes.py [SEED]

Processes that write to a store under load are killed at random moments, half of them on the disk of
the temporary directory and half in memory, where more writes fit between two kills; see
tests/state/fire.py. Exit status: 0 every figure is met, 1 one is not.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import heading, show

from tests.state import fire, temporary_directory

KILLS = 200
SECONDS = 60.0


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(10**6)
    print(f"seed {seed}")
    heading()
    started, met, kills = time.monotonic(), True, 0
    places = (Path(tempfile.mkdtemp(prefix="pyvpn-")), temporary_directory())
    try:
        for number, (place, name) in enumerate(zip(places, ("disk", "memory"), strict=True)):
            try:
                figures = fire.run(place, KILLS // 2, seed + number)
            except fire.Lost as problem:
                met = show(f"acknowledged writes lost, {name}", "0", str(problem), False)
                continue
            kills += figures.kills
            what = f"lost of {figures.acknowledged} acknowledged, {name}"
            met &= show(what, "0", "0", True)
    finally:
        for place in places:
            shutil.rmtree(place)
    met &= show("kills while writing", f"≥ {KILLS}", str(kills), kills >= KILLS)
    took = time.monotonic() - started
    met &= show("all of it", f"≤ {SECONDS:.0f} s", f"{took:.1f} s", took <= SECONDS)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
