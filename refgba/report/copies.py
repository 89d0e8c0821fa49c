"""The section on neurons that share a feature: how many there are, in which groups, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgba.report.page import Html, Section, element, grid, join, table
from refgba.report.run import RunData
from refgba.report.words import dash, percent, rounded, shown
from refgba.runs.copies import MAX_PRODUCTS, TAU, Copies

LISTED = 10  # the largest sets, one by one
LEAD = (
    f"Neurons share a feature if their directions agree to a cosine of {TAU:g}.  Sets are greedy: neurons go from the "
    "most frequent to the rarest, and each joins the first set whose first neuron it agrees with, or begins one; a "
    "copy is a member but the first.  “Merged” puts one neuron in a set's place, active where any member is, with "
    "the first one's direction and all that the members add in it."
)


def copies(runs: Sequence[RunData]) -> Section | None:
    """The section, None where no run was searched for copies."""
    searched = [run for run in runs if run.copies is not None or "copies" in run.summary]
    if not searched:
        return None
    known = [(run, run.copies) for run in searched if run.copies is not None]
    parts: list[Html] = [_side_by_side(known)] if known else []
    for run, found in known:
        parts.append(join(_head(run, len(searched)), grid(*_groups(run, found), *_largest(run, found))))
    for run in searched:
        if run.copies is None:
            why = f"Not searched: that takes more than {MAX_PRODUCTS:.1e} products of two numbers, which is minutes."
            parts.append(join(_head(run, len(searched)), element("p", why)))
    return Section("Copies", join(*parts), LEAD)


def _head(run: RunData, runs: int) -> Html | str:
    return element("h3", element("bdi", run.name)) if runs > 1 else ""


def _side_by_side(known: Sequence[tuple[RunData, Copies]]) -> Html:
    """What the copies of each run are and cost."""
    lines = []
    for run, found in known:
        s, M = found.summary, len(found.first)
        lines.append([
            element("bdi", run.name),
            f"{s['copies']:,} of {M:,} ({percent(s['copies'] / M)})",
            f"{s['sets']:,}",
            f"{s['largest']:,}",
            dash(shown(s.get("l0"), rounded)),
            dash(shown(s.get("l0_copies"), rounded)),
            dash(shown(s.get("fvu"), rounded)),
            dash(shown(s.get("fvu_merged"), rounded)),
        ])  # fmt: skip
    columns = ["run", "copies", "sets", "largest set", "L0", "L0 on copies", "FVU", "FVU, merged"]
    rows = sorted({found.summary["rows"] for _, found in known if "rows" in found.summary})
    where = f", on the first {' or '.join(f'{n:,}' for n in rows)} rows judged" if rows else ""
    return table(columns, lines, f"Copies and what they cost{where}")


def _groups(run: RunData, found: Copies) -> list[Html]:
    """How many copies each group has; nothing where there are no groups, or no copies."""
    count = found.summary.get("groups")
    if run.groups is None or not count or not found.summary["copies"]:
        return []
    size = np.bincount(run.groups.group, minlength=len(count)).tolist()
    lines = [
        [k, percent(p), f"{n:,}", f"{of:,}", percent(n / of) if of else "–"]
        for k, (p, n, of) in enumerate(zip(run.groups.target, count, size, strict=True), 1)
    ]
    return [table(["group", "target", "copies", "neurons", "share"], lines, "Copies by group")]


def _largest(run: RunData, found: Copies) -> list[Html]:
    """The largest sets; nothing where there are none."""
    if not found.summary["copies"]:
        return []
    p, sizes = run.evaluation.get("frequency"), np.bincount(found.first, minlength=len(found.first))
    lines = []
    for m in np.argsort(-sizes, kind="stable")[:LISTED].tolist():
        if sizes[m] < 2:
            break
        others = np.flatnonzero((found.first == m) & (np.arange(len(found.first)) != m))
        line = [m, f"{sizes[m]:,}", rounded(float(found.cosine[others].min()))]
        if run.groups is not None:
            groups = run.groups.group[np.append(others, m)]
            low, high = int(groups.min()) + 1, int(groups.max()) + 1
            line.append(f"{low}" if low == high else f"{low} to {high}")
        if p is not None:
            line += [percent(float(p[m])), f"{percent(float(p[others].min()))} to {percent(float(p[others].max()))}"]
        lines.append(line)
    columns = ["first", "neurons", "lowest cosine", *(["groups"] if run.groups is not None else [])]
    columns += ["frequency", "of the copies"] if p is not None else []
    return [table(columns, lines, "The largest sets, by the number of their first neuron")]
