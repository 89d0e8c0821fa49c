"""Kill a training run again and again, and resume it: `python kills.py SETTINGS.json`, run by tests/test_resume.py.

A program of its own because it forks: it imports everything once, starts no thread, and each attempt is a child that
runs the command line.  SETTINGS has `train` and `resume`, the arguments of the two commands, `run`, `kills`, how many,
`saving`, how many of them while a checkpoint is written, and `seed`.  Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from forks import forked

from refgba.cli import main
from refgba.runs import checkpoints

BEGIN, END = b"(", b")"  # of a checkpoint


def child(arguments: list[str], pipe: int) -> None:
    """Run a command, telling the parent of checkpoints."""
    whole = checkpoints.save

    def save(*given: object) -> None:
        os.write(pipe, BEGIN)
        whole(*given)
        os.write(pipe, END)

    checkpoints.save = save
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    main(arguments)


def attempt(arguments: list[str], rng: random.Random, aim: bool | None) -> tuple[int, bool]:
    """Start a command and kill it: while it saves, at any time, or (None) not at all.

    How far it gets is counted in checkpoints, not in seconds: a fast machine must not finish before it is killed.

    Returns its exit status, negative if it was killed, and whether a checkpoint was being written.
    """
    pid, reading = forked(child, arguments)
    seen = b""
    if aim is not None:
        begun = 1 if aim else rng.randrange(4)
        while seen.count(BEGIN) < begun and (got := os.read(reading, 1)):
            seen += got
        time.sleep(rng.random() * (0.02 if begun else 0.1))
    if aim is not None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while select.select([reading], [], [], 0)[0] and (got := os.read(reading, 4096)):
        seen += got
    os.close(reading)
    return os.waitstatus_to_exitcode(status), seen.count(BEGIN) > seen.count(END)


def run(train: list[str], resume: list[str], run: str, kills: int, saving: int, seed: int) -> dict[str, int]:
    """Kill and resume until both numbers are reached; then let it finish.  Returns how often which happened."""
    rng, killed, within = random.Random(seed), 0, 0
    while killed < kills or within < saving:
        begun = (Path(run) / "config.json").exists()
        aim = within < saving and rng.random() < 2 * saving / kills
        status, inside = attempt(resume if begun else train, rng, aim)
        if status >= 0:  # it finished before it was killed
            break
        killed, within = killed + begun, within + inside
        if not begun and not (Path(run) / "config.json").exists():  # killed before there was a run: nothing may be lost
            for left in Path(run).glob("*"):
                left.unlink()
    status, _ = attempt(resume, rng, None)
    return {"status": status, "killed": killed, "saving": within}


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
