"""What the survey says of dimensions, of the longest row and of rows that repeat, and what follows for training."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from store_files import npy, of, rows, written

import refgba.data.survey as module
from refgba.cli import main
from refgba.data.activations import open_activations
from refgba.data.repeats import RowHashes
from refgba.data.store import DTYPES
from refgba.data.survey import Survey, survey


def found(path, **options):
    return survey(replace(open_activations(path), block=11), **options)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 4, 8, 13])
def test_rows_equal_to_an_earlier_one_are_counted_wherever_they_lie(tmp_path, dtype, d):
    signs = (-1.0) ** np.arange(100)[:, None]  # not all point the same way
    x = of(signs * np.arange(1, 100 * d + 1).reshape(100, d) / 64, dtype)
    x[[20, 57, 99]] = x[3]
    x[98] = x[50]
    distinct = len(np.unique(x, axis=0))  # small dtypes round some rows to one
    result = found(written(tmp_path / "s", x, 30, "safetensors", dtype))
    assert (result.compared, result.repeated) == (100, 100 - distinct)
    assert result.commonest == np.unique(x, axis=0, return_counts=True)[1].max() >= 4


def test_rows_that_do_not_count_do_not_repeat(tmp_path):
    x = rows(100).astype(np.float64)
    x[:40] = 0
    x[40:70] = x[40] * 1e-6
    x[99] = x[98]
    result = found(npy(tmp_path / "x.npy", x), drop_zero_rows=True, drop_below=1e-3)
    assert (result.rows, result.compared, result.repeated, result.commonest) == (30, 30, 1, 2)


def test_no_row_beyond_the_bound_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMPARED", 33)  # three blocks of 11 rows
    x = rows(100)
    x[[5, 90]] = x[4]
    result = found(npy(tmp_path / "x.npy", x))
    assert (result.compared, result.repeated) == (33, 1)


def test_rows_that_differ_in_a_bit_of_one_word_differ_in_their_hash():
    hashes = RowHashes(8, 4)
    row = rows(1, 8).view(np.uint32)
    flipped = np.repeat(row, 256, axis=0)
    flipped[np.arange(256), np.arange(256) // 32] ^= np.uint32(1) << (np.arange(256) % 32).astype(np.uint32)
    assert not (hashes.of(flipped) == hashes.of(row)).any()


def test_a_massive_dimension_is_named_with_its_size_and_share(tmp_path):
    x = np.random.default_rng(0).standard_normal((4000, 40)) * np.linspace(0.9, 1.1, 40)
    x[:, 7] *= 20
    x[:, 31] *= 8
    result = found(npy(tmp_path / "x.npy", x))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    mean_square, variance = (unit**2).mean(axis=0), unit.var(axis=0)
    assert (result.massive_dimensions, [entry["dimension"] for entry in result.massive]) == (2, [7, 31])
    for entry in result.massive:
        j, typical = entry["dimension"], np.median(mean_square)
        assert entry["ratio"] == pytest.approx(mean_square[j] / typical, rel=1e-3)
        assert entry["largest"] == pytest.approx(np.abs(unit[:, j]).max() / np.sqrt(typical), rel=1e-3)
        assert entry["share"] == pytest.approx(variance[j] / variance.sum(), rel=1e-3)
    assert result.massive_share == pytest.approx(variance[[7, 31]].sum() / variance.sum(), rel=1e-3)
    [remark] = result.remarks()
    assert remark.startswith(f"2 massive dimensions hold {result.massive_share:.0%} of the variance (7, 31): FVU")


def test_a_dimension_that_is_large_by_a_constant_alone_is_not_massive_once_that_is_subtracted(tmp_path):
    x = np.random.default_rng(0).standard_normal((4000, 40))
    x[:, 7] += 30
    path = npy(tmp_path / "x.npy", x)
    raw = found(path)
    assert (raw.massive_dimensions, raw.massive[0]["dimension"]) == (1, 7)
    assert raw.massive_share < 0.1  # a constant has no variance
    data = replace(open_activations(path), centre=x.mean(axis=0))
    assert survey(data)[1].massive_dimensions == 0


def test_a_sample_of_many_rows_tells_the_same(tmp_path):
    x = np.random.default_rng(0).standard_normal((50_000, 8)).astype(np.float32)
    x[:, 2] *= 6
    result = survey(open_activations(npy(tmp_path / "x.npy", x)))[1]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    ratio = (unit[:, 2] ** 2).mean() / np.median((unit**2).mean(axis=0))
    assert result.massive[0]["ratio"] == pytest.approx(ratio, rel=0.05)


def test_ordinary_rows_have_no_remark(tmp_path):
    assert [*found(npy(tmp_path / "x.npy", rows(500, 16))).remarks()] == []


def test_the_longest_row_is_told_with_the_dimension_that_makes_it_long(tmp_path):
    x = rows(500, 16)
    x[77, 5] = 4000
    result = found(npy(tmp_path / "x.npy", x))
    assert (result.largest_norm, result.largest_in) == (pytest.approx(4000, rel=1e-3), 5)
    assert result.largest_share == pytest.approx(1, abs=1e-3)
    [remark] = result.remarks()
    assert "times the median, 100% of its square in dimension 5; scaled to unit norm" in remark


def test_verify_says_what_rows_are_like_and_what_it_means(tmp_path):
    x = rows(300, 16)
    x[:, 2] *= 30
    x[100:200] = x[:100]
    path = npy(tmp_path / "x.npy", x)
    told = CliRunner().invoke(main, ["data", "verify", str(path)]).stdout
    assert "massive dimensions: 1 with 10 or more times the mean square of the median dimension" in told
    assert "repeated rows: 100 of 300 rows compared equal an earlier one; the commonest occurs 2 times" in told
    assert "each copy counts in full, and rows held out may equal rows trained on" in told
    facts = json.loads(CliRunner().invoke(main, ["data", "verify", str(path), "--json"]).stdout.splitlines()[-1])
    assert (facts["repeated"], facts["massive"][0]["dimension"], facts["gamma"] > 0) == (100, 2, True)


def test_a_run_records_what_its_report_then_shows(tmp_path):
    x = rows(300, 16)
    x[:, 2] *= 30
    x[100:200] = x[:100]
    path, run = npy(tmp_path / "x.npy", x), tmp_path / "run"
    short = ["--steps", "2", "--width", "8", "--groups", "2", "--batch", "8", "--backend", "numpy"]
    trained = CliRunner().invoke(main, ["train", str(path), "-o", str(run), *short])
    assert trained.exit_code == 0, trained.output
    assert "Note: one dimension holds" in trained.stderr
    assert "Note: 100 of 300 rows compared equal an earlier one" in trained.stderr
    about = json.loads((run / "about.json").read_text(encoding="utf-8"))["data"]
    assert (about["repeated"], about["massive_dimensions"]) == (100, 1)
    page = tmp_path / "page.html"
    assert CliRunner().invoke(main, ["report", str(run), "-o", str(page)]).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "The rows trained on" in text
    assert "In the rows trained on, one dimension holds" in text


def test_a_survey_survives_json():
    made = Survey(1, 0, 1.0, 1.0, 0, 0, massive=[{"dimension": 1, "ratio": 11.0, "largest": 9.0, "share": 0.5}])
    assert Survey(rows=1, **json.loads(json.dumps(made.record()))) == made
