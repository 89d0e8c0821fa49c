"""What a notebook or a terminal is shown: a progress bar, and a network as a card."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from time import perf_counter

from refgba.runs.log import Progress

WIDTH = 24  # characters of the bar


def watched() -> bool:
    """Whether anyone sees a line that is written over: a terminal, or a notebook."""
    return sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def with_bar(progress: Iterable[Progress], steps: int, verbose: bool) -> Iterator[Progress]:
    """The same, and if anyone watches, a bar on standard error: one line that is written over."""
    if not (verbose and watched()):
        yield from progress
        return
    began, longest = perf_counter(), 0
    try:
        for now in progress:
            line = bar(now, steps, perf_counter() - began)
            longest = max(longest, len(line))
            print("\r" + line.ljust(longest), end="", file=sys.stderr, flush=True)
            yield now
    finally:
        print(file=sys.stderr)


def bar(now: Progress, steps: int, seconds: float) -> str:
    """One line: how far training is, how it stands, and how long it will take."""
    done = now.step * WIDTH // steps
    left = seconds * (steps - now.step) / now.step
    time = f"{left:.0f} s left" if now.step < steps else f"{seconds:.0f} s"
    standing = f"FVU {now.fvu:.3f}  L0 {now.l0:.1f}  dead {now.dead:.1%}"
    return f"training [{'#' * done}{'-' * (WIDTH - done)}] {now.step}/{steps}  {standing}  {time}"


def card(name: str, note: str, facts: Mapping[str, object]) -> str:
    """A network as HTML: its name, a note, and a table of facts."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(str(fact))}</th><td>{escape(str(value))}</td></tr>"
        for fact, value in facts.items()
    )
    about = f"<br><small>{escape(note)}</small>" if note else ""
    return f"<div><strong>{escape(name)}</strong>{about}<table>{rows}</table></div>"
