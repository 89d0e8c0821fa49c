"""What to look at in a run, in sentences.  A check speaks only where the numbers stand out, and names them.

`findings` returns (sentence, topic) pairs; the topic is the title of the section that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refgba.data.remarks import remarks
from refgba.report.run import RunData
from refgba.report.words import percent, rounded

# A check speaks from these values on.
OVER = 0.1  # the share of a group's neurons that are over target
DEAD = 0.005  # the share of all neurons that never fired
CONCENTRATED = 2 / 3  # name two groups if they hold this share of the dead neurons
COPIES = 0.05  # the share of all neurons that are copies of others
EMPTY = 0.001  # the share of rows without an active neuron
WORSE = 1.1  # FVU on the rows judged, over that at the end of training
FALL = 0.005  # the relative change of the loss over the last tenth of the log
LOGGED = 40  # lines in the log: fewer say nothing about its end

Sentences = Iterator[tuple[str, str]]


def findings(run: RunData) -> list[tuple[str, str]]:
    """What stands out, most severe first; empty where nothing does."""
    return [sentence for check in CHECKS for sentence in check(run)]


def _unfinished(run: RunData) -> Sentences:
    if run.config is None or not run.metrics:
        return
    last, steps = run.metrics[-1]["step"], run.config.steps
    if last < steps:
        yield f"The run has not finished: its log ends at step {last:,} of {steps:,}.", "Training"
    if run.groups is not None and run.config.adapt_every > steps:
        yield f"No bias was adapted: adapt_every is {run.config.adapt_every:,}, of {steps:,} steps.", "Training"


def _rows_trained_on(run: RunData) -> Sentences:
    for sentence in remarks(**run.about.get("data", {})):
        yield f"In the rows trained on, {sentence}.", "Data"


def _over(run: RunData) -> Sentences:
    groups, p, N = run.groups, run.evaluation.get("frequency"), run.rows
    if groups is None or p is None:
        return
    group, target = groups
    share = [float(np.mean(p[group == k] > p_k)) for k, p_k in enumerate(target)]
    chance = target + 3 * np.sqrt(target * (1 - target) / max(1, N))
    far = [float(np.mean(p[group == k] > bound)) for k, bound in enumerate(chance)]
    worst = [k for k in sorted(range(len(target)), key=lambda k: -share[k]) if share[k] >= OVER]
    if not worst:
        return
    first, *others = worst
    named = f"{percent(share[first])} of the neurons of group {first + 1} (target {percent(target[first])})"
    named = _and([named, *(f"{percent(share[k])} of group {k + 1}" for k in others[:2])])
    more = f", {percent(OVER)} or more of {_groups(len(others) - 2)}" if len(others) > 2 else ""
    most = max(far[k] for k in worst)
    yield (
        f"Over target: {named}{more}. Over it by more than chance in {N:,} rows (three standard deviations): at most "
        f"{percent(most)} of a group.",
        "Frequencies",
    )


def _groups(count: int) -> str:
    return "one more group" if count == 1 else f"{count} more groups"


def _under(run: RunData) -> Sentences:
    for k, g in enumerate(run.summary.get("groups", [])):
        if g["median"] < g["target"] / 2:
            yield (
                f"The median neuron of group {k + 1} fires at {percent(g['median'])}, "
                f"{percent(g['median'] / g['target'])} of the group's target of {percent(g['target'])}.",
                "Frequencies",
            )
            return


def _dead(run: RunData) -> Sentences:
    p = run.evaluation.get("frequency")
    if p is None or np.mean(p == 0) < DEAD:
        return
    dead = p == 0
    where = ""
    groups = run.groups
    if groups is not None and len(groups.target) > 2:
        count = np.bincount(groups.group[dead], minlength=len(groups.target))
        most = np.sort(np.argsort(-count, kind="stable")[:2])
        if count.max() == dead.sum():
            where = f", all of them in group {int(count.argmax()) + 1}"
        elif count[most].sum() >= CONCENTRATED * dead.sum() and len(groups.target) > 3:
            where = f", {count[most].sum():,} of them in groups {most[0] + 1} and {most[1] + 1}"
    yield (
        f"{dead.sum():,} of {len(p):,} neurons ({percent(float(dead.mean()))}) fired on none of the {run.rows:,} rows"
        f"{where}.",
        "Frequencies",
    )


def _copies(run: RunData) -> Sentences:
    if run.copies is None or run.copies.summary["copies"] < COPIES * len(run.copies.first):
        return
    s, M = run.copies.summary, len(run.copies.first)
    cost = ""
    if "fvu" in s:
        cost = (
            f"; merging each set into one neuron would take {rounded(s['l0_copies'])} of {rounded(s['l0'])} active "
            f"neurons per row away, and change FVU from {rounded(s['fvu'])} to {rounded(s['fvu_merged'])}"
        )
    yield (
        f"{s['copies']:,} of {M:,} neurons ({percent(s['copies'] / M)}) are copies, within a cosine of {s['tau']:g} of "
        f"a more frequent one{cost}.",
        "Copies",
    )


def _rows(run: RunData) -> Sentences:
    h, p = run.evaluation.get("l0_histogram"), run.evaluation.get("frequency")
    if h is not None and h.sum() and h[0] / h.sum() >= EMPTY:
        yield (
            f"{percent(float(h[0] / h.sum()))} of the rows have no active neuron: b_pre alone is their reconstruction.",
            "Rows",
        )
    if p is not None and (p > 0.5).any():
        dense = int(np.sum(p > 0.5))
        m = int(p.argmax())
        many = f"{dense:,} neurons fire" if dense > 1 else "One neuron fires"
        yield f"{many} on more than half of the rows (neuron {m} on {percent(float(p[m]))}).", "Frequencies"


def _loss(run: RunData) -> Sentences:
    loss = np.array([line["loss"] for line in run.metrics if "loss" in line])
    n = len(loss) // 10
    last, before = loss[-n:], loss[-2 * n : -n]
    if len(loss) < LOGGED or not before.all():
        return
    change = float(last.mean() / before.mean() - 1)
    noise = float(np.sqrt((last.var(ddof=1) + before.var(ddof=1)) / n) / before.mean())
    if abs(change) <= max(FALL, 2 * noise):
        return
    how = "was still falling" if change < 0 else "was rising"
    yield (
        f"The loss {how} when the log ends: its mean over the last tenth is {percent(abs(change))} "
        f"{'below' if change < 0 else 'above'} that of the tenth before.",
        "Training",
    )


def _gap(run: RunData) -> Sentences:
    fvu = [line["fvu"] for line in run.metrics[-max(1, len(run.metrics) // 20) :] if "fvu" in line]
    here = run.summary.get("fvu")
    if fvu and here is not None and here > WORSE * np.mean(fvu):
        yield (
            f"FVU is {rounded(here)} on the rows judged here, {rounded(float(np.mean(fvu)))} on the last batches of "
            "training.",
            "Training",
        )


def _parameters(run: RunData) -> Sentences:
    vectors = run.vectors()
    a, b = vectors.get("a"), vectors.get("b")
    if a is not None and (a <= 0).any():
        yield (
            f"{int((a <= 0).sum()):,} neurons ({percent(float(np.mean(a <= 0)))}) have an output scale a of 0 or less: "
            "they add nothing, or their direction's opposite, as a held copy of a direction does to take back what "
            "other copies add too much.",
            "Neurons",
        )
    if run.groups is not None and b is not None and (b <= -1).any():
        yield f"{int((b <= -1).sum()):,} neurons are at the lowest bias, -1: it cannot be lowered further.", "Neurons"


def _truth(run: RunData) -> Sentences:
    if run.truth is None:
        return
    cosine, frequency = run.truth.cosine, run.truth.frequency
    missed = cosine < 0.9
    if not missed.any():
        return
    sentence = (
        f"{int(missed.sum()):,} of {len(cosine):,} true features have no neuron at cosine 0.9 or more, "
        f"{int((cosine < 0.8).sum()):,} none at 0.8"
    )
    if frequency is not None and not missed.all():
        lost, found = float(np.median(frequency[missed])), float(np.median(frequency[~missed]))
        if lost < 0.67 * found or found < 0.67 * lost:
            sentence += (
                f"; those missed at 0.9 occur in {percent(lost)} of the rows (median), the others in {percent(found)}"
            )
    yield sentence + ".", "Recovery"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


CHECKS: tuple[Callable[[RunData], Sentences], ...] = (
    _unfinished, _truth, _rows_trained_on, _over, _under, _dead, _copies, _rows, _loss, _gap, _parameters,
)  # fmt: skip
