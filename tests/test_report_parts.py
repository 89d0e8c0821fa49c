"""What the views of neurons are made of: histograms in one pass, nearest neurons, and the axes of figures."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import Page, full

from refgba.report import RunData, report
from refgba.report import likeness as module
from refgba.report.likeness import likeness, nearest
from refgba.report.plot import Axis, Plot
from refgba.report.run import Seen
from refgba.report.words import percent
from refgba.runs.copies import MAX_PRODUCTS
from refgba.runs.histograms import Histograms
from refgba.sae import unit_rows


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_histograms_of_a_stream_are_those_of_all_rows(seed, chunks):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((40, 5)) * np.exp(rng.uniform(-8, 8, 5)) - [0, 0, 0, 0, 1e9]
    found = Histograms(5, 16)
    for part in np.array_split(z, chunks):
        found.update(part, part.max(axis=0))
    assert (found.end[:4] >= z.max(axis=0)[:4]).all()
    assert (found.end <= 2 * np.maximum(z.max(axis=0), 0)).all() or chunks == 1
    assert found.end[4] == found.counts[4].sum() == 0
    for m in range(4):
        edges = np.linspace(0, found.end[m], 17)
        positive = z[:, m][z[:, m] > 0]
        expected = np.histogram(positive, edges)[0]
        assert found.counts[m].sum() == len(positive)
        assert np.abs(np.cumsum(found.counts[m]) - np.cumsum(expected)).max() <= 1  # a value on an edge


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_nearest_neurons_are_those_of_highest_cosine(count, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    V, others = rng.standard_normal((7, 4)), 3 * rng.standard_normal((9, 4))
    V[2] = 0
    monkeypatch.setattr(module, "CELLS", 20)
    monkeypatch.setattr(module, "GROUPS", 2)
    U, to = (unit_rows(A, otherwise=A).astype(dtype) for A in (V, others))
    for there, cosines in ((None, U @ U.T - 9 * np.eye(7, dtype=dtype)), (to, U @ to.T)):
        number, cosine = nearest(U, there, count)
        found = min(count, cosines.shape[1] - (there is None))
        assert (number[:, found:] == -1).all()
        best = -np.sort(-cosines, axis=1)[:, :found]
        np.testing.assert_allclose(cosine[:, :found], best, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(cosines, number[:, :found], 1), best, atol=1e-6)


def test_of_equal_cosines_the_lower_number_is_nearer():
    number, cosine = nearest(np.eye(3)[[0, 0, 0, 1]], None, 3)
    assert number.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert cosine.tolist() == [[1, 1, 0]] * 3 + [[0, 0, 0]]


def test_runs_are_compared_where_they_can_be(monkeypatch):
    A, B, C = np.eye(4), np.eye(4)[::-1], np.eye(3)
    own, other = likeness(A, [("b", B), ("c", C)])
    assert (own.run, own.nearest.shape, other.run) == ("", (4, 3), "b")
    np.testing.assert_array_equal(other.nearest[:, 0], [3, 2, 1, 0])
    assert likeness(np.eye(1), []) == ()
    monkeypatch.setattr(module, "MAX_PRODUCTS", 15)
    assert likeness(A, [("b", B)]) == ()
    assert MAX_PRODUCTS > 4096 * 4096 * 768


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.booleans())
def test_every_axis_has_ticks_and_every_tick_its_number(low, ratio, log):
    axis = Axis("x", low, low * ratio, log, percent)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low * (1 - 1e-9) <= tick <= low * ratio * (1 + 1e-9) for tick in ticks)
    plot = Plot(axis, Axis("y", 0, 1))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg("alt"))
    assert len(texts) >= 2 + 2 + 2


def test_marks_stay_within_the_figure():
    plot = Plot(Axis("x", 1, 10, log=True), Axis("y", 0, 1))
    plot.line(np.array([0.0, 5, 1e9]), np.array([-5.0, 0.5, 7]), 0)
    numbers = [
        float(n) for n in re.findall(r"[\d.]+", re.findall(r'd="(M[^"]*)" style="fill: none', plot.svg("x"))[-1])
    ]
    assert max(numbers) <= plot.right
    assert min(numbers) >= min(plot.left, plot.top)


# ---- which rows are judged -------------------------------------------------------------------------------------------


def first_words(run):
    return re.sub(r"\s+", " ", " ".join(Page(report([run])).text))[:400]


@pytest.mark.parametrize("seen", list(Seen))
def test_a_report_says_first_which_rows_it_judges_and_warns_of_those_trained_on(seen):
    run = full()
    run.seen = seen
    said = first_words(run)
    assert re.search(r"mine Judged on held-out\.npy: 200 rows\.", said)
    assert ("The run was not trained on these rows." in said) == (seen is Seen.NO)
    assert ("Warning: these are rows that the run was trained on." in said) == (seen is Seen.ALL)
    assert ("Warning: most of these rows" in said) == (seen is Seen.SOME)


def test_a_warning_names_the_runs_that_it_is_about():
    a, b = full("a"), full("b")
    a.seen, b.seen = Seen.ALL, Seen.NO
    said = " ".join(Page(report([a, b])).text)
    assert "a: Warning:" in re.sub(r"\s+", " ", said)
    assert "Warning" not in " ".join(Page(report([RunData("none")])).text)
