"""Kill a harvest again and again, and start it again: `python harvest_kills.py SETTINGS.json`, by test_llm_harvest.py.

A program of its own because it forks: it imports everything once, and each attempt is a child that runs the command.
How far a child gets is counted in batches, which it tells its parent through a pipe, not in seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from forks import forked

from refgba.cli import main
from refgba.llm import harvesting
from refgba.llm.models import open_model


def child(arguments: list[str], pipe: int) -> None:
    """Run the command, telling the parent of batches."""
    plain = harvesting.run

    def run(*given: object) -> object:
        os.write(pipe, b".")
        return plain(*given)

    harvesting.run = run
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    main(arguments)


def attempt(arguments: list[str], batches: int | None, rest: float) -> int:
    """Start the command and kill it after so many batches and a moment, or (None) let it end; its exit status."""
    pid, reading = forked(child, arguments)
    seen = 0
    while (batches is None or seen < batches) and os.read(reading, 1):
        seen += 1
    if batches is not None:
        time.sleep(rest)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    open_model(given["harvest"][1])  # so that children need not import what opens it
    rng, killed = random.Random(given["seed"]), 0
    whole, cut = ([*given["harvest"], "-o", str(Path(given["folder"]) / name)] for name in ("whole", "killed"))
    assert attempt(whole, None, 0) == 0
    while killed < given["kills"]:
        begun = list(Path(given["folder"]).glob("killed/*/meta.json"))  # before that the median norm is measured
        status = attempt(cut, 2 + rng.randrange(10 if begun else 400), rng.random() * 0.02)
        if status >= 0:
            break
        killed += 1
    assert attempt(cut, None, 0) == 0
    print(json.dumps({"killed": killed}))
