"""The rows of a store that count, block by block; and again later, only as they were."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_files import (
    change,
    everything,
    flip,
    npy,
    numbers,
    of,
    one_line,
    rows,
    safetensors,
    written,
)

from refgba.data import store
from refgba.data.activations import Activations, open_activations, reopen
from refgba.data.store import DTYPES, META, open_shard, open_store
from refgba.data.survey import Check, survey

# ---- against an oracle -----------------------------------------------------------------------------------------------


@st.composite
def stores(draw):
    """Sizes of shards, rows in a block, and which rows are zeros."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    N = sum(sizes)
    zero = draw(st.lists(st.integers(0, N - 1), unique=True, max_size=N - 1))
    return sizes, draw(st.integers(1, 9)), sorted(zero)


@given(stores(), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_blocks_are_the_rows_in_order_without_those_dropped(tmp_path_factory, drawn, dtype, seed):
    sizes, block, zero = drawn
    x = rows(sum(sizes), 3, seed)
    x[zero] = 0
    raw, path = of(x, dtype), tmp_path_factory.mktemp("s")
    pieces = np.split(raw, np.cumsum(sizes)[:-1])
    shards = [open_shard(safetensors(path / f"{k}.safetensors", piece.copy())) for k, piece in enumerate(pieces)]
    opened = store.Store(path, tuple(shards))
    if len(raw) - len(zero) > 1 and len({tuple(row) for row in x.tolist()}) > 2:
        data, found = survey(Activations(opened, block, 1), drop_zero_rows=True)
        assert (found.rows, found.dropped) == (len(x) - len(zero), len(zero))
    else:  # nothing to learn from: a survey refuses it
        data = Activations(opened, block, 1, np.array(zero, np.int64))
    # By hand: blocks start anew with each shard.
    edges = [a + i for a, n in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False) for i in range(0, n, block)]
    kept = [np.setdiff1d(np.arange(a, b), zero) for a, b in zip(edges, [*edges[1:], len(x)], strict=True)]
    assert data.begins.tolist() == [*edges, len(x)]
    assert data.counts.tolist() == [len(k) for k in kept]
    assert len(data) == len(x) - len(zero)
    for k in range(len(edges)):
        np.testing.assert_array_equal(data.stored(k), raw[edges[k] : [*edges, len(x)][k + 1]])
    some = np.random.default_rng(seed).permutation(len(edges))[: 1 + seed % len(edges)]
    np.testing.assert_array_equal(data.read(some), raw[np.concatenate([kept[k] for k in some])])
    sample = list(data.sample(len(x) // 2, block))
    assert sum(map(len, sample)) <= max(len(x) // 2, block)
    whole = {tuple(numbers(raw[k], dtype).ravel().tolist()) for k in kept}
    for part in sample:
        assert tuple(part.ravel().tolist()) in whole
    halves = list(data.sample(len(x) // 2, 2))
    assert max(map(len, halves), default=0) <= 2
    assert [row for part in halves for row in part.tolist()] == [row for part in sample for row in part.tolist()]
    rest = numbers(raw[np.concatenate(kept)], dtype)
    np.testing.assert_array_equal(np.concatenate(list(data.sample(len(x), 4))), rest)
    check = Check(opened, "float64", drop_zero_rows=True)
    np.testing.assert_array_equal(np.concatenate(list(check.chunks(replace(data, dropped=check.dropped), 4))), rest)
    assert check.row(np.arange(len(rest))).tolist() == np.concatenate(kept).tolist()


# ---- going on with a run's data --------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A store of 3 shards whose row 50 is dropped, and the arguments of `reopen`."""
    x = rows()
    x[50] = 0
    path = written(tmp_path / "s", x, 40)
    data, _ = survey(replace(open_activations(path), block=16), drop_zero_rows=True)
    return path, (json.loads(json.dumps(data.record())), data.dropped, data.crc)


def test_a_store_opens_again_as_it_was_also_elsewhere_and_longer(begun, tmp_path):
    path, record = begun
    before = np.delete(everything(open_store(path)), 50, axis=0)

    def reopened(where=None):
        data = reopen(*record, where)
        return data.read(np.arange(len(data.counts)))

    np.testing.assert_array_equal(reopened(), before)
    path.rename(tmp_path / "t")
    np.testing.assert_array_equal(reopened(tmp_path / "t"), before)
    one_line(reopened, path, "no such file")
    npy(tmp_path / "t" / "more.npy", rows(9))
    shards = json.loads((tmp_path / "t" / META).read_text())["shards"]
    change(tmp_path / "t", shards=[*shards, {"file": "more.npy", "rows": 9}])
    assert len(open_store(tmp_path / "t")) == 109
    assert len(reopen(*record, tmp_path / "t")) == 99


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (lambda path: written(path, rows(d=4), 40), "d is 4, the run began with 5"),
        (lambda path: written(path, rows(), 40, dtype="float64"), "dtype is float64, the run began with float32"),
        (lambda path: written(path, rows(80), 40), "has 2 shards, the run began with 3"),
        (lambda path: written(path, rows(), 45), "00000.npy: has 45 rows, the run began with 40"),
        (lambda path: written(path, rows(), 40), ""),
        (lambda path: written(path, rows(seed=1), 40), "00000.npy: rows 0 to 15 are not those that were checked"),
    ],
)
def test_other_data_are_refused_with_what_is_not_as_it_was(begun, tmp_path, other, complaint):
    path = other(tmp_path / "other")
    if complaint:
        one_line(lambda: reopen(*begun[1], path), path, complaint)
    else:  # its first and last block are the same; the one that is not is found when it is read
        data = reopen(*begun[1], path)
        one_line(lambda: data.read(np.array([3])), path, "00001.npy: rows 0 to 15 are not those that were checked")


def test_a_byte_that_flips_between_two_epochs_is_named_by_file_and_rows(begun):
    path, record = begun
    data = reopen(*record)
    flip(path / "00001.npy", 128 + 20 * 20)
    data.read(np.array([0, 1, 2, 3]))
    one_line(lambda: data.read(np.array([0, 4])), path / "00001.npy", "rows 16 to 31 are not those that were checked")
    (path / "00002.npy").unlink()
    one_line(lambda: data.read(np.array([7])), path / "00002.npy", "cannot be read (No such file or directory)")
    one_line(lambda: reopen(*record), path / "00002.npy", "no such file")


def test_a_record_that_does_not_fit_is_refused(begun):
    path, (record, dropped, crc) = begun
    one_line(lambda: reopen(record, dropped, crc[:-1]), path, "the run's record of its data does not fit")
    one_line(lambda: reopen(record, dropped[:0], crc), path, "the run's record of its data does not fit")
