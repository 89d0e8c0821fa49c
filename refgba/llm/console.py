"""How far a pass over text is: tokens, tokens per second, and how long it will take."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType

from refgba.llm.harvesting import Progress
from refgba.runs import console

EVERY = 30.0  # seconds between lines where nobody sees a line that is written over


class Meter:
    """`with Meter("harvesting") as meter: meter(progress)`: a line on stderr that is written over, on a terminal.

    Elsewhere a line per half minute, and one at the end.
    """

    def __init__(self, label: str) -> None:
        """label: what is going on."""
        self.label, self.began, self.shown, self.line, self.longest = label, perf_counter(), 0.0, "", 0

    def __enter__(self) -> Meter:
        self.began = self.shown = perf_counter()
        return self

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        now = perf_counter()
        self.line = f"{self.label}  {describe(progress, now - self.began)}"
        if sys.stderr.isatty():
            self.longest = max(self.longest, len(self.line))
            sys.stderr.write("\r" + self.line.ljust(self.longest))
            sys.stderr.flush()
        elif now - self.shown >= EVERY:
            self.shown = now
            console.line(self.line, err=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.line and sys.stderr.isatty():
            console.line(err=True)
        elif self.line:
            console.line(self.line, err=True)


def describe(progress: Progress, seconds: float) -> str:
    """Tokens, tokens per second and time left, in words; seconds: since this attempt began."""
    rate = (progress.tokens - progress.before) / max(seconds, 1e-9)
    text = f"{progress.tokens:,} tokens  {rate:,.0f} tokens/s"
    if progress.share is None or not progress.share or not rate:
        return text
    left = progress.tokens * (1 / progress.share - 1) / rate
    minutes, rest = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
    return f"{progress.share:.0%}  {text}  {clock} left"
