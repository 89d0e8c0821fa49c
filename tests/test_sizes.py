"""What a run needs is compared with what there is before anything is read twice, allocated or written."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, assert_one_line

from refgba import backends, recipe
from refgba.baselines import METHODS
from refgba.runs import capacity
from refgba.sae import unit_rows

ROOT = Path(__file__).parent.parent


# ---- batches and rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [501, 999_999])
def test_a_batch_of_more_than_all_rows_is_refused(cli, data, tmp_path, batch):
    before = sorted(tmp_path.rglob("*"))
    result = cli("train", data, "-o", "run", *QUICK[:-2], "--batch", batch)
    assert_one_line(result, f"batch {batch} is more than the 500 rows to train on; choose --batch 500 or less")
    assert sorted(tmp_path.rglob("*")) == before
    assert cli("train", data, "-o", "run", *QUICK[:-2], "--batch", 500).exit_code == 0


def test_rows_that_are_left_out_do_not_count(cli, data):
    x = np.load(data)
    x[:10] = 0
    np.save(data, x)
    flags = [*QUICK[:-2], "--drop-zero-rows", "--batch"]
    assert_one_line(cli("train", data, "-o", "run", *flags, 491), "batch 491 is more than the 490 rows")
    assert cli("train", data, "-o", "run", *flags, 490).exit_code == 0


def test_a_batch_of_more_than_all_rows_of_the_demo_is_refused(cli, tmp_path):
    assert_one_line(cli("demo", "-o", "run", "--rows", 100, "--batch", 101), "batch 101 is more than the 100 rows")
    assert not list(tmp_path.iterdir())


def test_a_run_of_an_earlier_version_with_such_a_batch_goes_on(cli, data):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    for path in [Path("run/config.json"), *Path("run").rglob("state.json")]:
        value = json.loads(path.read_text())
        value.get("config", value)["batch"] = 501
        path.write_text(json.dumps(value))
    assert cli("train", "--resume", "run", "--steps", 40).exit_code == 0


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("flags", [["--width", 2**20], ["--batch", 400, "--width", 2**19], ["--method", "topk"]])
def test_a_run_that_needs_more_memory_than_there_is_says_what_would_fit(
    cli, data, tmp_path, monkeypatch, backend, flags
):
    monkeypatch.setattr(capacity, "machine_bytes", lambda: 10**6)
    before = sorted(tmp_path.rglob("*"))
    result = cli("train", data, "-o", "run", "--batch", 64, "--width", 4096, *flags, "--backend", backend)
    assert_one_line(result, f"of memory with backend {backend}, this machine has 0.000931 GiB; at most ")
    assert sorted(tmp_path.rglob("*")) == before
    method = "topk" if "--method" in flags else "gba"
    config = METHODS[method].configure(42, "default", width=4096, dtype="float32")
    for name, value, other in re.findall(r"(?:most|or) (width|batch) (\d+) at \w+ (\d+)", result.stderr):
        sizes = [int(value), int(other)] if name == "width" else [int(other), int(value)]
        assert capacity.least_bytes(backend, config, 42, *sizes) <= 10**6
        sizes[name == "batch"] += 1
        assert capacity.least_bytes(backend, config, 42, *sizes) > 10**6


def test_demo_and_a_run_that_goes_on_are_refused_too(cli, data, tmp_path, monkeypatch):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    monkeypatch.setattr(capacity, "machine_bytes", lambda: 1000)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command in (["demo", "-o", "demo"], ["train", "--resume", "run", "--steps", 50]):
        assert_one_line(cli(*command), "at most nothing of that would fit")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("width", "batch"), [(4096, 64), (512, 2048)])
def test_no_less_is_asked_for_than_training_takes(width, batch):
    config = recipe.default(64, width=width, batch=batch, steps=4, hold=1.0, dtype="float32")
    backend = backends.load("numpy")
    x = unit_rows(np.random.default_rng(0).standard_normal((batch, 64)).astype(np.float32))
    tracemalloc.start()
    try:
        state = backends.begin(backend, config, 64)
        for _ in range(config.steps):
            backend.step(state, x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 4 < capacity.least_bytes("numpy", config, 64, width, batch) < peak


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backend", backends.NAMES)
def test_the_bound_grows_with_width_batch_and_dimensions(name, backend):
    config = METHODS[name].configure(20, "default", width=200)
    bounds = [capacity.least_bytes(backend, config, *sizes) for sizes in ((20, 200, 64), (40, 400, 128))]
    assert 0 < 2 * bounds[0] < bounds[1]


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_limit_of_the_process_is_what_there_is(kind):
    program = "from refgba.runs import capacity; print(capacity.machine_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(kind, (3 * 2**30, 3 * 2**30)),
    )  # fmt: skip
    assert int(done.stdout) <= 3 * 2**30
    assert capacity.machine_bytes() > 2**28


# ---- what has to be installed ----------------------------------------------------------------------------------------


def test_a_missing_torch_is_told_before_the_run_is_read(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = cli("export", "absent", "-o", "out", "--format", "dictionary-learning")
    assert_one_line(result, "the format dictionary-learning is written and read by torch")
    assert_one_line(cli("export", "absent", "-o", "out", "--format", "npz"), "absent: not a run")
