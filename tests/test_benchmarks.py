"""The programs in benchmarks/ run at a small size.  Tests hold that they can be run, not what they measure."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engines import engine

from refgba import backends

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("rows.npy", "held-out.npy")]
    for path in paths:
        np.save(path, rng.standard_normal((600, 16)).astype(np.float32))
    return [str(path) for path in paths]


def benchmark(name, *arguments):
    """What a program prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_compares_whole_runs(rows):
    pytest.importorskip("numba")
    printed = benchmark("train.py", rows[0], "--held-out", rows[1], "--steps", "4", "--json")
    result = json.loads(printed.splitlines()[-1])
    assert result["numba"]["fvu"] == pytest.approx(result["numpy"]["fvu"], rel=1e-3)
    assert result["numpy"]["faster"] == 1


SMALL = ("--d", "16", "--width", "64", "--batch", "32", "--rounds", "1", "--threads", "1", "--no-peers", "--json")


def test_step_times_backends_and_floors():
    result = json.loads(benchmark("step.py", *SMALL).splitlines()[-1])
    assert {"ms", "ratio"} <= set(result["backends"]["numpy"])
    assert {"encode_ms", "adam_ms"} <= set(result["floor"])


def test_step_times_adaptations():
    result = json.loads(benchmark("step.py", *SMALL, "--adaptation", "--only", "numpy").splitlines()[-1])
    assert set(result["backends"]["numpy"]) == {"ms", "adapt_ms", "adapt_every", "share"}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_step_measures_memory_at_several_widths():
    result = json.loads(benchmark("step.py", *SMALL, "--memory", "--only", "numpy", "--width", "128").splitlines()[-1])
    assert [row["setting"]["width"] for row in result["rows"]] == [64, 128]
    assert all(row["backends"]["numpy"]["promised_bytes"] > 0 for row in result["rows"])


def test_kernels_tells_the_parts_of_a_step(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    kernels, setting = importlib.import_module("kernels"), importlib.import_module("setting")
    s = setting.Setting(32, 64, 16, 0.1, "bfloat16", 1, 2, 4000, True, ("cupy",), False, False)
    with engine("cupy emulated") as backend:
        result = kernels.measured(backend, s)
    parts = result["parts"]
    own = {"center", "gate", "scale_rows", "residual", "gate_gradient", "adamw_rows"}  # "adamw" is of what it trains
    products = {"product (16, 32) (32, 64)", "product (16, 64) (64, 32)", "product (1, 64) (64, 32)"}
    assert own | products <= set(parts)
    assert parts["product (16, 32) (32, 64)"]["times"] == 2  # x W^T and r V^T
    assert parts["product (64, 16) (16, 32)"]["times"] == 2  # the gradients of W and of W_dec
    assert parts["adamw_rows"]["times"] == 2  # W and W_dec
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(result["ms"])
    assert all(part["tflop_s"] > 0 for name, part in parts.items() if name.startswith("product"))


def test_kernels_needs_a_gpu_and_says_so():
    if backends.status()["cupy"] is None:
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 2
    assert "cupy" in done.stderr
    assert "Traceback" not in done.stderr


def test_seeds_sums_up_runs():
    printed = benchmark("seeds.py", "--seeds", "2", "--steps", "3", "--rows", "600")
    assert [line.split(":")[0] for line in printed.splitlines()] == ["seed 0", "seed 1", "FRR(0.8)", "FRR(0.9)"]


def test_feed_measures_a_store(tmp_path):
    printed = benchmark(
        "feed.py", "--gb", "0.002", "--d", "16", "--width", "64", "--batch", "32", "--rounds", "2", "--place",
        str(tmp_path), "--json",
    )  # fmt: skip
    assert json.loads(printed.splitlines()[-1])["rows"] > 0
