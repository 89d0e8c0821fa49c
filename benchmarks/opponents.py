"""Train any of the methods that GBA is compared with on rows of your own, and print FVU, L0 and dead neurons of each.

    python benchmarks/opponents.py D/X.npy --held-out D/Y.npy --methods matryoshka gated "random rows" -o FILE.json

As in `refgba reproduce frontier`, whose points these are: each setting keeps the learning rate and batch that, with the
first seed, are best on the first half of the held-out rows, and is reported on the other half; all batches see the same
number of rows, and as many networks are trained at once as there are cores.  TopK comes first, since the others are
chosen by its line.  FILE is written after every method.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refgba.data import files
from refgba.experiments import frontier, training

METHODS = tuple(frontier.SIZES["full"].dials())


def trained(
    data: tuple[Path, Path], sizes: frontier.Sizes, methods: list[str], backend: str, out: Path | None
) -> dict[str, Any]:  # fmt: skip
    """The points of these methods, TopK first, and how long they took; written to `out` after every method."""
    began = time.perf_counter()
    about = training.opened_once(data).about()
    measured: dict[str, Any] = {"settings": asdict(sizes), "backend": backend, "data": about, "points": []}
    for method in sorted(methods, key=METHODS.index):
        measured["points"] += frontier.curves([method], measured["points"], sizes, backend, print, data)
        measured["seconds"] = round(time.perf_counter() - began, 1)
        if out is not None:
            files.write(out, (json.dumps(measured, indent=1) + "\n").encode())
    return measured


def main() -> None:
    """Train, print, write."""
    full = frontier.SIZES["full"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["matryoshka", "gated", "random rows"])
    parser.add_argument("--width", type=int, default=0, help="0: as the default recipe has it")
    parser.add_argument("--steps", type=int, default=full.steps, help=f"of batches of {frontier.BATCH} rows")
    parser.add_argument("--k", type=int, nargs="+", default=full.k)
    for name in ("l1", "jumprelu", "gated"):
        parser.add_argument(f"--{name}", type=float, nargs="+", default=getattr(full, name), help="sparsity")
    parser.add_argument("--lr", type=float, nargs="+", default=full.lr)
    parser.add_argument("--batch", type=int, nargs="+", default=full.batch)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("-o", dest="out", type=Path)
    given = vars(parser.parse_args())
    if len(set(given["k"])) < 2:
        parser.error("--k takes two values or more: the other methods are chosen by the line through TopK's")
    methods, data = ["topk", *given["methods"]], (given["data"], given["held_out"])
    names = ("width", "steps", "k", "l1", "jumprelu", "gated", "lr", "batch", "seeds")
    sizes = frontier.Sizes(htf=(), **{name: given[name] for name in names})
    measured = trained(data, sizes, list(dict.fromkeys(methods)), given["backend"], given["out"])
    for method in sorted(set(methods), key=METHODS.index):
        for setting, points in sorted(frontier.kept(measured, method).items(), key=lambda found: found[0] or 0):
            for p in points:
                where = f"lr {p['lr']:g}, batch {p['batch']}, seed {p['seed']}"
                print(f"{method} {setting or ''}: FVU {p['fvu']:.4f}, L0 {p['l0']:.1f}, dead {p['dead']:.1%}; {where}")
    print(f"{measured['seconds']:.0f} s")


if __name__ == "__main__":
    main()
