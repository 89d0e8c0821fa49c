"""tutorial.md, executed: every block of code, its output, its figures.  `make tutorial` writes what has changed.

    ```python               runs; the blocks of one chapter share a namespace, chapters share nothing
    ```text                 what the block before it prints; a block that prints nothing has none
    <!-- solution           runs as a ```python block does, but is not shown to readers: an exercise and its value
    ```python refgba/x.py   does not run: a quotation, consecutive lines of that file

Figures are those that a chapter saves, as `NAME.png`, and shows, as `![...](benchmarks/tutorial/NAME.png)`.  Code runs
in an empty folder, so nothing is written into the repository before it is compared.  Pasted into a checkout it changes
no file of it, since git ignores what a chapter writes.

Results differ between machines in their last digits, and training amplifies that.  So an output agrees when all words
and whole numbers are equal, and every number with a decimal point is within RELATIVE of what is expected, plus one unit
of the last digit, of that number which has more of them.  How figures are compared is told at `differs`.
Output that agrees is left as it stands: on a machine where everything agrees nothing changes.

    python tests/tutorial.py            all chapters, and docs/notebook.md
    python tests/tutorial.py 6 7        these
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "tutorial.md"
NOTEBOOK = ROOT / "docs/notebook.md"  # a page of the same kind; its figures lie beside it

RELATIVE = Decimal("0.02")
CELL = 16  # pixels
FIGURE = 0.005  # root mean square difference of two figures' cells, of white and black being 1 apart

HEADING = re.compile(r"^## (?P<title>.+)$")
BEGIN = re.compile(r"^```python$|^<!-- solution$")
END = {"```python": "```", "<!-- solution": "-->"}
QUOTE = re.compile(r"^```python (?P<path>\S+)$")
IMAGE = re.compile(r"!\[[^\]]*\]\((?P<path>[^)]+\.png)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Code that runs, with line numbers of the whole text, from 0.

    lines: where the code stands.  output: where its expected output stands, or where it is to come.
    """

    lines: range
    output: range


@dataclass(frozen=True)
class Chapter:
    """A chapter: its lines in the text, the blocks that run, and the figures it shows."""

    title: str
    lines: range
    blocks: tuple[Block, ...]
    figures: tuple[str, ...]


def chapters(text: list[str]) -> list[Chapter]:
    """The chapters of a tutorial, given as lines."""
    starts = [i for i, line in enumerate(text) if HEADING.match(line)]
    return [_chapter(text, range(*ends)) for ends in zip(starts, [*starts[1:], len(text)], strict=True)]


def _chapter(text: list[str], lines: range) -> Chapter:
    figures = [match["path"] for i in lines for match in IMAGE.finditer(text[i])]
    return Chapter(text[lines.start][3:], lines, tuple(_blocks(text, lines)), tuple(figures))


def _blocks(text: list[str], lines: range) -> Iterator[Block]:
    for i in lines:
        if BEGIN.match(text[i]):
            end = text.index(END[text[i]], i)
            following = next((k for k in range(end + 1, lines.stop) if text[k]), end)
            shown = text[following] == "```text"
            output = range(following + 1, text.index("```", following + 1)) if shown else range(end + 1, end + 1)
            yield Block(range(i + 1, end), output)


def quotations(text: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The files that are quoted, and the lines quoted from them."""
    for i, line in enumerate(text):
        if match := QUOTE.match(line):
            yield match["path"], text[i + 1 : text.index("```", i)]


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What running a chapter gave: the output of each block, the PNG files saved, by path, and all files written."""

    outputs: tuple[list[str], ...]
    figures: dict[str, bytes]
    written: tuple[str, ...] = ()


def run(text: list[str], chapter: Chapter) -> Result:
    """Execute a chapter's blocks, in order, in an empty folder and with matplotlib's own defaults.

    BLAS gets one thread: the products are small, and on a busy machine threads that wait for each other take minutes.
    Errors pass through; the traceback has the lines of tutorial.md.
    """
    namespace: dict[str, object] = {"__name__": "tutorial"}
    mpl.use("Agg")
    with TemporaryDirectory() as folder, chdir(folder), mpl.rc_context(), threadpool_limits(1, "blas"):
        mpl.rcdefaults()
        outputs = tuple(_output(text, block, namespace) for block in chapter.blocks)
        plt.close("all")
        written = {str(path.relative_to(folder)): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        figures = {name: path.read_bytes() for name, path in written.items() if path.suffix == ".png"}
    return Result(outputs, figures, tuple(written))


def _output(text: list[str], block: Block, namespace: dict[str, object]) -> list[str]:
    code = "\n" * block.lines.start + "\n".join(text[i] for i in block.lines)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, TUTORIAL, "exec"), namespace)
    return [line.rstrip() for line in printed.getvalue().splitlines()]


# ---- comparing -------------------------------------------------------------------------------------------------------


def agrees(expected: list[str], got: list[str]) -> bool:
    """Whether an output is what it should be: equal words and whole numbers, and other numbers within the tolerance."""
    if [_words(line) for line in expected] != [_words(line) for line in got]:
        return False
    numbers = zip(NUMBER.findall("\n".join(expected)), NUMBER.findall("\n".join(got)), strict=True)
    return all(_near(*pair) for pair in numbers)


def _words(line: str) -> list[str]:
    """What stands between the numbers; how many blanks, which may align them, does not matter."""
    return [" ".join(words.split()) for words in NUMBER.split(line)]


def _near(expected: str, got: str) -> bool:
    if expected == got:
        return True
    if "." not in expected or "." not in got:
        return False
    unit = min(Decimal(1).scaleb(int(Decimal(text).as_tuple().exponent)) for text in (expected, got))  # of a last digit
    return abs(Decimal(expected) - Decimal(got)) <= RELATIVE * abs(Decimal(expected)) + unit


def differs(expected: bytes, got: bytes) -> float:
    """How far apart two PNG files are: the root mean square difference of their cells, from 0 to 1.

    A cell is the mean over CELL x CELL pixels, a colour at a time: a line that moves by a pixel changes cells little,
    one that goes elsewhere changes those it left and those it came to.  Only cells count that are not blank in both, so
    that a large empty figure hides nothing.  Figures of different sizes are 1 apart.
    """
    a, b = _cells(expected), _cells(got)
    if a.shape != b.shape:
        return 1.0
    drawn = (a.min(axis=2) < 1) | (b.min(axis=2) < 1)
    return float(np.sqrt(np.mean((a - b)[drawn] ** 2))) if drawn.any() else 0.0


def _cells(png: bytes) -> np.ndarray:
    pixels = plt.imread(io.BytesIO(png))[:, :, :3]
    h, w = (size // CELL for size in pixels.shape[:2])
    cells: np.ndarray = pixels[: h * CELL, : w * CELL].reshape(h, CELL, w, CELL, 3).mean(axis=(1, 3))
    return cells


def changes(text: list[str], chapter: Chapter, result: Result, root: Path = ROOT) -> Iterator[str]:
    """What of a chapter is not as it stands in the text and in the figures under `root`, a line each."""
    for block, got in zip(chapter.blocks, result.outputs, strict=True):
        expected = [text[i] for i in block.output]
        if not agrees(expected, got):
            yield f"line {block.output.start + 1}: expected {expected}, got {got}"
    shown = {Path(figure).name: figure for figure in chapter.figures}
    for name in sorted({*shown} - {*result.figures}):
        yield f"{shown[name]}: shown, but not saved"
    for name, png in result.figures.items():
        figure = shown.get(name, name)
        if name not in shown:
            yield f"{name}: saved, but not shown"
        elif not (root / figure).exists():
            yield f"{figure}: not there yet"
        elif (apart := differs((root / figure).read_bytes(), png)) > FIGURE:
            yield f"{figure}: {apart:.3f} from what it was, more than {FIGURE}"


# ---- writing ---------------------------------------------------------------------------------------------------------


def rewrite(text: list[str], chapter: Chapter, result: Result, root: Path = ROOT) -> None:
    """Put what has changed into the text and into the figures under `root`."""
    for block, got in reversed(list(zip(chapter.blocks, result.outputs, strict=True))):
        if not agrees([text[i] for i in block.output], got):
            shown = text[block.output.start - 1] == "```text"
            text[block.output.start : block.output.stop] = got if shown else ["", "```text", *got, "```"]
    for figure in chapter.figures:
        path, png = root / figure, result.figures.get(Path(figure).name)
        if png is not None and not (path.exists() and differs(path.read_bytes(), png) <= FIGURE):
            path.write_bytes(png)


def main(numbers: list[str], tutorial: Path = TUTORIAL, root: Path = ROOT) -> None:
    """Run the chapters of these numbers, or all; write what has changed, and say what that was."""
    text = tutorial.read_text(encoding="utf-8").split("\n")
    for k in range(len(chapters(text))):
        chapter = chapters(text)[k]  # anew, since what is written moves the lines of those that follow
        if numbers and chapter.title.split(".")[0] not in numbers:
            continue
        began = time.perf_counter()
        result = run(text, chapter)
        found = list(changes(text, chapter, result, root))
        print(f"{chapter.title}: {time.perf_counter() - began:.1f} s, {len(found) or 'nothing'} changed", flush=True)
        for change in found:
            print(f"  changed: {change}")
        rewrite(text, chapter, result, root)
        tutorial.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
    main(sys.argv[1:], NOTEBOOK, NOTEBOOK.parent)
