"""Draw docs/features.svg, the picture of README: features being found.

    python benchmarks/picture.py [-o docs/features.svg] [--steps 3000] [--width 1024]

It is made of the figures of the page that `refgba demo` ends on: the default recipe on 128 known features in 42
dimensions, seed 0, and the case in two dimensions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from refgba.report.demo import picture
from refgba.runs import demo, plane
from refgba.runs.settings import Request

ROOT = Path(__file__).parent.parent
ROWS = 50_000


def draw(steps: int, width: int, backend: str) -> tuple[str, demo.Look]:
    """The picture, and how much was found in the end."""
    with TemporaryDirectory() as folder:
        run = demo.begin(
            Path(folder) / "run", ROWS, "constant", Request({"steps": steps, "width": width}, backend=backend)
        )
        for _ in run.launch.steps(int):
            pass
        evaluation, _ = run.judged()
    return picture(run.looks, run.launch.config, evaluation.frequency, plane.turn()), run.looks[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "features.svg")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--backend", default="numba")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    drawn, last = draw(arguments.steps, arguments.width, arguments.backend)
    arguments.out.write_text(drawn, encoding="utf-8")
    found = ", ".join(f"{share:.1%} at cosine {tau}" for share, tau in zip(last.frr, demo.THRESHOLDS, strict=True))
    print(f"wrote {arguments.out}: {found}")
