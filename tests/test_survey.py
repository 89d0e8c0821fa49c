"""One pass over all rows: what it says of sound rows, and how it names those that are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from store_files import (
    change,
    flip,
    npy,
    numbers,
    of,
    one_line,
    rows,
    safetensors,
    written,
)

from refgba.cli import main
from refgba.data.activations import open_activations, reopen
from refgba.data.inspection import info, verify
from refgba.data.store import DTYPES, open_store
from refgba.data.survey import survey


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_survey_of_shards_is_that_of_the_rows_in_one_file(tmp_path, dtype):
    x = of(rows(500) + 1, dtype)
    _, whole = survey(open_activations(safetensors(tmp_path / "x.safetensors", x)))
    path = written(tmp_path / "s", x, 70, "safetensors", dtype)
    data, parts = survey(replace(open_activations(path), block=9))
    assert (parts.rows, parts.variance) == (whole.rows, pytest.approx(whole.variance, rel=1e-12))
    unit = numbers(x, dtype).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert whole.variance == pytest.approx(unit.var(axis=0).sum(), rel=1e-12)
    assert len(data.counts) == 7 * 8 + 2


@pytest.mark.parametrize("format", ["npy", "safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_file_and_row(tmp_path, format, value):
    x = rows(300)
    x[7 * 30 + 11, 2] = x[290, 0] = value
    path = written(tmp_path / "s", x, 30, format)
    for read in (lambda: survey(open_activations(path)), lambda: verify(open_store(path))):
        one_line(read, f"{path}/00007.{format}: row 11 (row 221 of {path}) holds a NaN, an infinity")


def test_a_signalling_nan_is_named_without_a_warning(tmp_path):
    x = rows().astype(np.float32)
    x.view(np.uint32)[31, 2] = 0x7F800001
    path = npy(tmp_path / "x.npy", x)
    with np.errstate(all="ignore"):  # as on the command line; threads do not know of it
        one_line(lambda: survey(open_activations(path)), f"{path}: row 31 holds a NaN")


def test_a_shard_that_does_not_match_its_checksum_is_named(tmp_path):
    path = written(tmp_path / "s", rows(), 40)
    flip(path / "00001.npy", 200)
    for read in (lambda: survey(open_activations(path)), lambda: verify(open_store(path))):
        one_line(read, path / "00001.npy", "does not match its checksum in meta.json")


def test_info_tells_what_the_headers_say(tmp_path):
    path = written(tmp_path / "s", rows(), 40, model="m")
    told = json.loads(json.dumps(info(open_store(path))))
    size = sum(file.stat().st_size for file in path.glob("*.npy"))
    assert told == {
        "path": str(path),
        "rows": 100,
        "d": 5,
        "dtype": "float32",
        "complete": True,
        "shards": 3,
        "rows_per_shard": [20, 40],
        "bytes": size,
        "checksums": 3,
        "about": {"model": "m"},
    }
    opened = open_store(path)
    (path / "00001.npy").unlink()
    one_line(lambda: info(opened), path / "00001.npy", "cannot be read")


def higher_median(x):
    return np.sort(np.linalg.norm(x, axis=1))[len(x) // 2]


def test_verify_counts_what_it_checked(tmp_path):
    x = rows()
    x[[3, 50]] = 0
    path = written(tmp_path / "s", x, 40)
    one_line(lambda: verify(open_store(path)), path / "00000.npy", "row 3 is all zeros")
    change(path, shards={1: {"sha256": None}})
    ticks: list[int] = []
    told = verify(open_store(path), drop_zero_rows=True, tick=ticks.append)
    assert told.pop("variance") == pytest.approx(1, abs=0.1)
    assert told.pop("median_norm") == pytest.approx(
        np.median(np.linalg.norm(np.delete(x, [3, 50], 0), axis=1)), rel=0.02
    )
    counts = {"rows": 98, "dropped": 2, "shards": 3, "checksums": 2, "no_checksum": 1}
    counts |= {"faint": 0, "faint_dropped": 0, "compared": 98, "repeated": 0, "commonest": 1}
    assert {name: told.pop(name) for name in counts} == counts
    assert told["largest_norm"] == pytest.approx(np.linalg.norm(x, axis=1).max(), rel=1e-6)
    assert 0 <= told["offset"] < 0.45
    assert sum(ticks) == 100
    large = npy(tmp_path / "x.npy", rows().astype(np.float64) * 1e25)
    one_line(lambda: verify(open_store(large), "float32"), large, "row 0", "too large or small for float32")
    verify(open_store(large))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("stored", "size"), [("float64", 1e-25), ("float32", 1e-22), ("float64", 1e25), ("float32", 1)]
)
def test_verify_takes_what_train_takes_and_refuses_what_it_refuses(tmp_path, stored, size, dtype):
    path = npy(tmp_path / "x.npy", (rows(64).astype(np.float64) * size).astype(stored))
    short = ["--steps", "1", "--width", "8", "--groups", "2", "--batch", "8", "--backend", "numpy"]
    verified, trained = (
        CliRunner().invoke(main, [*arguments, "--dtype", dtype])
        for arguments in (["data", "verify", str(path)], ["train", str(path), "-o", str(tmp_path / "run"), *short])
    )
    assert verified.exit_code == trained.exit_code == (0 if dtype == "float64" or size == 1 else 2), verified.output
    if verified.exit_code:
        assert verified.stderr.splitlines()[-1] == trained.stderr.splitlines()[-1]


# ---- rows near zero --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("faint", "zero"), [(0, 0), (1, 0), (50, 0), (40, 5)])
def test_rows_near_zero_are_counted_and_dropped_only_if_asked(tmp_path, dtype, faint, zero):
    x = rows(100).astype(np.float64) + 1
    picked = np.random.default_rng(1).permutation(100)
    x[picked[:faint]] *= 1e-4
    x[picked[faint : faint + zero]] = 0
    path = written(tmp_path / "s", x.astype(dtype), 30, dtype=dtype)
    data = replace(open_activations(path), block=7)
    _, whole = survey(data, drop_zero_rows=True)
    assert (whole.rows, whole.dropped, whole.faint, whole.faint_dropped) == (100 - zero, zero, faint, 0)
    kept, without = survey(data, drop_zero_rows=True, drop_below=1e-3)
    assert (without.rows, without.dropped, without.faint, without.faint_dropped) == (
        100 - zero - faint, zero + faint, 0, faint
    )  # fmt: skip
    assert kept.dropped.tolist() == sorted(picked[: faint + zero].tolist())
    unit = np.delete(x.astype(dtype), kept.dropped, axis=0).astype(np.float64)
    norm = np.linalg.norm(unit, axis=1, keepdims=True)
    assert without.variance == pytest.approx((unit / norm).var(axis=0).sum(), rel=1e-9)
    assert without.median_norm == whole.median_norm
    counted = np.delete(x, picked[faint : faint + zero], axis=0)
    assert whole.median_norm == pytest.approx(higher_median(counted), rel=0.01)
    again = reopen(kept.record(), kept.dropped, kept.crc)
    assert (len(again), again.fingerprint) == (100 - zero - faint, kept.fingerprint)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_the_median_is_from_0_to_1(tmp_path, share):
    path = npy(tmp_path / "x.npy", rows())
    one_line(lambda: survey(open_activations(path), drop_below=share), "below a share of the median norm", share)


def test_verify_says_how_many_rows_are_noise_near_zero(tmp_path):
    x = rows(100)
    x[::4] *= 1e-12
    path = npy(tmp_path / "x.npy", x)
    said = CliRunner().invoke(main, ["data", "verify", str(path)]).output
    assert "100 rows are sound" in said
    assert "25 of these rows have a norm under a thousandth of the median" in said
    said = CliRunner().invoke(main, ["data", "verify", str(path), "--drop-below", "0.001"]).output
    assert "75 rows are sound, 25 rows below 0.001 of the median norm besides" in said
    assert "thousandth" not in said
