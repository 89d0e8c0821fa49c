"""What a step trains on: epochs without replacement, well mixed, and a pure function of data, seed and step."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba import gba
from refgba.config import GBAConfig
from refgba.data import feed, unit_rows
from refgba.data.activations import open_activations
from refgba.data.prefetch import THREADS
from refgba.data.survey import survey


def numbered(N):
    """Rows whose direction tells their number: `number` inverts it."""
    return np.stack([np.arange(N), np.ones(N)], axis=1)


def number(x):
    return np.rint(x[:, 0] / x[:, 1]).astype(int)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    def make(N, block, windows, zero=()):
        path = tmp_path_factory.mktemp("data") / "x.npy"
        x = numbered(N)
        x[list(zero)] = 0
        np.save(path, x)
        data = replace(open_activations(path), block=block, windows=windows)
        return survey(data, drop_zero_rows=True)[0]

    return make


def config(L, steps, seed=0):
    return GBAConfig(batch=L, steps=steps, seed=seed)


@settings(max_examples=60)
@given(
    N=st.integers(2, 60), block=st.integers(1, 20), windows=st.integers(1, 4), L=st.integers(1, 40),
    start=st.integers(0, 12), seed=st.integers(0, 1000), zero=st.integers(0, 3),
)  # fmt: skip
def test_batches_are_epochs_and_any_step_can_be_the_first(opened, N, block, windows, L, start, seed, zero):
    windows, zero = min(windows, -(-N // block)), range(0, min(3 * zero, N - 2), 3)
    data, c = opened(N, block, windows, zero), config(L, 12, seed)
    batches = [number(x) for x in feed.minibatches(data, c)]
    assert [len(rows) for rows in batches] == [L] * 12
    sequence, whole = np.concatenate(batches), sorted(set(range(N)) - set(zero))
    for epoch in range(len(sequence) // len(whole)):
        assert sorted(sequence[epoch * len(whole) : (epoch + 1) * len(whole)]) == whole
    resumed = [number(x) for x in feed.minibatches(data, c, start)]
    assert [rows.tolist() for rows in resumed] == [rows.tolist() for rows in batches[start:]]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_in_one_window_the_minibatches_are_the_references(opened, dtype):
    data, c = opened(100, 7, 1, zero=(0, 13)), replace(config(32, 9), dtype=dtype)
    reference = gba.minibatches(np.delete(numbered(100), [0, 13], axis=0), c)
    for ours, theirs in zip(feed.minibatches(data, c), reference, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "stored"), [("float64", ">f4"), ("float32", "<f2")])
@pytest.mark.parametrize("d", [3, 3000, 70_000])  # in a piece there are many rows, a few, not one
def test_rows_are_scaled_as_the_reference_scales_them_whatever_the_pieces(tmp_path, monkeypatch, dtype, stored, d):
    monkeypatch.setattr(unit_rows, "PIECE", 2**17)
    X = np.random.default_rng(0).standard_normal((23, d)).astype(stored)
    np.save(tmp_path / "x.npy", X)
    data, _ = survey(replace(open_activations(tmp_path / "x.npy"), block=4))
    c = replace(config(13, 5), dtype=dtype)
    for ours, theirs in zip(feed.minibatches(data, c), gba.minibatches(X, c), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_batches_that_are_kept_stay_as_they_were(opened):
    data, c = opened(60, 3, 5), config(7, 40)
    kept = list(feed.minibatches(data, c))  # windows come and go in the same two places
    for before, after in zip(kept, feed.minibatches(data, c), strict=True):
        np.testing.assert_array_equal(before, after)


def test_neighbours_in_the_file_are_not_neighbours_in_a_batch(opened):
    N, block, windows, L = 64_000, 100, 4, 256  # a window: 160 blocks, 16 000 rows
    data = opened(N, block, windows)
    batches = [number(x) for x in feed.minibatches(data, config(L, N // L))]
    together = np.mean([np.isin(rows + 1, rows).mean() for rows in batches])  # has its neighbour in the batch
    assert together == pytest.approx(L / (N / windows), rel=0.15)  # as often as any two rows of a window
    beside = np.mean([(np.abs(np.diff(rows)) == 1).mean() for rows in batches])
    assert beside < 5 * 2 / (N / windows)
    blocks = np.array([len(set(rows // block)) for rows in batches])
    expected = 160 * (1 - (1 - 1 / 160) ** L)  # of the window's, when each row is from any of them
    assert blocks.mean() == pytest.approx(expected, rel=0.03)
    assert blocks.min() > 0.8 * expected
    order = np.concatenate(batches)
    assert abs(np.corrcoef(order, np.arange(N))[0, 1]) < 0.2  # an epoch does not run through the file: 1 would be so
    means = np.array([rows.mean() for rows in batches])
    assert means.std() < 0.15 * N  # nor does any batch come from one part of it: 0.29 N would be so


def test_each_epoch_window_and_seed_has_an_order_of_its_own(opened):
    data = opened(600, 10, 2)
    epochs = [
        tuple(np.concatenate([number(x) for x in feed.minibatches(data, config(600, 2, seed))])) for seed in (0, 1)
    ]
    orders = [rows[i : i + 600] for rows in epochs for i in (0, 600)]
    assert len(set(orders)) == 4
    first, second = (set(orders[0][i : i + 300]) for i in (0, 300))
    assert not first & second
    assert set(orders[1][:300]) not in (first, second)  # windows are drawn anew


def test_the_next_window_is_read_while_this_one_is_in_use_and_no_more(opened, monkeypatch):
    read, data = [], opened(1000, 10, 10)
    whole = type(data).read
    monkeypatch.setattr(
        type(data), "read", lambda self, blocks, room: (read.append(len(blocks)), whole(self, blocks, room))[1]
    )
    with closing(feed.minibatches(data, config(10, 1000))) as batches:
        before = threading.active_count()
        for seen in (1, 2, 3):
            list(islice(batches, 10))
            assert len(read) <= seen + 1
        assert before < threading.active_count() <= before + 1 + 2 * THREADS  # that read, and that scale
    assert threading.active_count() == before
