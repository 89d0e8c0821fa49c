"""What a run did, on one page: what was run, how well, what to look at, and every neuron in a table.

    run = load_run(Path("runs/mine"))
    run.evaluation, run.summary, _ = judging.load(Path("evaluation.safetensors"), run.config)
    Path("report.html").write_text(report([run]), encoding="utf-8")

Only `gather` evaluates networks; a report otherwise shows what `refgba evaluate -o` wrote, or the caller measured.

    gather      runs on disk, read, judged and held against the truth
    run         what is known of a run, and reading it
    findings    what to look at, in sentences
    lead        the first screen
    sections    the parts under headings
    copies      neurons that share a feature
    neurons     the table of neurons, and their labels
    charts      the figures
    plot        axes and marks as SVG
    words       how numbers are written
    page        the file: markup, blocks, figures as SVG; page.css, shared.js and report.js go into it
"""

from __future__ import annotations

from collections.abc import Sequence

from refgba.errors import InputError
from refgba.report.lead import facts, judged, look, overview, tiles
from refgba.report.neurons import read_labels
from refgba.report.page import join, resource
from refgba.report.page import page as html_page
from refgba.report.run import RunData, Truth, load_run
from refgba.report.sections import SECTIONS

__all__ = ["RunData", "Truth", "load_run", "read_labels", "report"]


def report(runs: Sequence[RunData]) -> str:
    """The page of one run, or of several side by side; InputError for none, or arrays that do not fit each other."""
    if not runs:
        raise InputError("a report needs at least one run")
    for run in runs:
        run.check()
    sections = [section for make in SECTIONS if (section := make(runs)) is not None]
    anchors = {section.title: section.anchor for section in sections}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    lead = join(facts(runs), tiles(runs[0])) if len(runs) == 1 else overview(runs)
    script = resource("shared.js") + resource("report.js") if "Table of neurons" in anchors else ""
    return html_page(title, join(judged(runs), lead, look(runs, anchors)), sections, script)
