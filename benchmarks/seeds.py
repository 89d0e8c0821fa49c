"""FRR of `refgba demo` over seeds: data and weights both drawn from the seed.

    python benchmarks/seeds.py [--seeds 10] [flags of refgba demo ...]

Prints one line per seed, then mean and minimum: the rows of recipe.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from click.testing import CliRunner

from refgba.cli import main


def run(seed: int, flags: list[str], folder: Path) -> dict:
    result = CliRunner().invoke(main, ["demo", "--json", "--seed", str(seed), "-o", str(folder / str(seed)), *flags])
    if result.exit_code:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=10)
arguments, flags = parser.parse_known_args()
with tempfile.TemporaryDirectory() as folder:
    runs = []
    for seed in range(arguments.seeds):
        runs.append(run(seed, flags, Path(folder)))
        r = runs[-1]
        print(
            f"seed {seed}: FRR(0.8) {r['frr']['0.8']:.1%}  FRR(0.9) {r['frr']['0.9']:.1%}  FVU {r['fvu']:.3f}"
            f"  L0 {r['l0']:.1f}  dead {r['dead']:.1%}  {r['seconds']:.0f} s",
            flush=True,
        )
for tau in ("0.8", "0.9"):
    shares = [r["frr"][tau] for r in runs]
    print(f"FRR({tau}): mean {statistics.mean(shares):.1%}, lowest {min(shares):.1%}")
