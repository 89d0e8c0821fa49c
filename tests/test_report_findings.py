"""What a report says to look at: each check speaks where the numbers do, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from reports import CONFIG, log, params

from refgba.report import RunData, Truth, report
from refgba.report.findings import findings
from refgba.runs.judging import summarise


def said(run):
    return " ".join(text for text, _ in findings(run))


def quiet(**more):
    """A run in which nothing stands out: all at half their target, and as well as can be."""
    N = 10_000
    p = np.round(CONFIG.target()[CONFIG.group()] * 0.6 * N) / N
    h = np.zeros(13, np.int64)
    h[4] = N
    arrays = {name: np.ones(12) for name in ("peak", "mean", "std", "z_score")} | {"frequency": p, "l0_histogram": h}
    run = RunData("quiet", CONFIG, {}, log(loss=lambda _: 1.0), params(), arrays, truth=Truth(np.ones(3)))
    run.summary = summarise(arrays, CONFIG) | {"fvu": 0.5}
    for name, value in more.items():
        setattr(run, name, value)
    return run


def with_frequency(m, p):
    run = quiet()
    frequency = run.evaluation["frequency"].copy()
    frequency[m] = p
    run.evaluation = {**run.evaluation, "frequency": frequency}
    run.summary |= summarise(run.evaluation, CONFIG)
    return run


def test_nothing_is_said_where_nothing_stands_out():
    assert findings(quiet()) == []
    assert "Nothing stands out" in report([quiet()])


def test_neurons_over_target_are_counted():
    text = said(with_frequency(11, 0.102))
    assert "Over target: 25% of the neurons of group 3 (target 10%)." in text
    assert "at most 0% of a group" in text  # 1020 of 10,000 is within chance of a tenth
    assert "at most 25% of a group" in said(with_frequency(11, 0.2))


def test_dead_and_dense_neurons_are_counted():
    assert "1 of 12 neurons (8.33%) fired on none of the 10,000 rows, all of them in group 3." in said(
        with_frequency(11, 0)
    )
    assert "One neuron fires on more than half of the rows (neuron 2 on 75%)." in said(with_frequency(2, 0.75))


def test_empty_rows_are_counted():
    run = quiet()
    h = run.evaluation["l0_histogram"].copy()
    h[:] = 0
    h[[0, 4]] = 100, 9900
    assert "1% of the rows have no active neuron" in said(
        replace(run, evaluation={**run.evaluation, "l0_histogram": h})
    )


def test_the_end_of_the_loss_is_judged_beyond_its_noise():
    rng = np.random.default_rng(0)
    falling = log(200, lambda t: 2 - t / 200 + 0.001 * rng.standard_normal())
    long = replace(CONFIG, steps=200)
    assert "The loss was still falling" in said(quiet(config=long, metrics=falling))
    assert "The loss was rising" in said(quiet(config=long, metrics=log(200, lambda t: 1 + t / 200)))
    noisy = log(200, lambda t: 1 + 0.1 * (-1) ** t)
    assert "The loss" not in said(quiet(config=long, metrics=noisy))


def test_an_unfinished_run_says_so():
    assert "its log ends at step 20 of 40" in said(quiet(metrics=log(20, lambda _: 1.0)))


def test_the_other_checks_speak_where_they_should():
    assert "FVU is 0.6 on the rows judged here, 0.5 on the last batches" in said(
        quiet(summary=quiet().summary | {"fvu": 0.6})
    )
    theta = params()
    theta.a[:3] = -1
    assert "3 neurons (25%) have an output scale a of 0 or less" in said(quiet(params=theta))
    truth = Truth(np.array([0.5, 0.85, 0.95, 1.0]), np.array([0.001, 0.001, 0.1, 0.1]))
    assert (
        "2 of 4 true features have no neuron at cosine 0.9 or more, 1 none at 0.8; those missed at 0.9 occur in 0.1% "
        "of the rows (median), the others in 10%." in said(quiet(truth=truth))
    )
