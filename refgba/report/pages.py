"""The titles of pages, and which of them a command may replace: those that it wrote itself."""

from __future__ import annotations

from pathlib import Path

from refgba.data.outputs import Output
from refgba.report.page import markup, title_of

DEMO = "Features being found"
CLAIMS = "The paper's claims, measured again"


def _of_runs(path: Path) -> bool:
    """Whether a file is a page of runs, whose title is theirs."""
    return title_of(path) not in (None, markup(DEMO), markup(CLAIMS))


RUNS_PAGE = Output("a page of `refgba report`", _of_runs)
CLAIMS_PAGE = Output("a page of `refgba reproduce`", lambda path: title_of(path) == markup(CLAIMS))
