"""The programs in benchmarks/ run at a small size.  Tests hold that they can be run, not what they measure."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import emulated_cupy
import numpy as np
import pytest
from dictionaries import network, topk
from engines import CUDA_KERNELS, engine
from llm_stores import random_store, write_run

from refgba import backends, recipe
from refgba.llm.dashboard import survey_features

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


def test_neurons_are_read_blind_and_then_opened(tmp_path):
    store = random_store(tmp_path / "store", d=6)
    params, config = network(M=40, d=6)
    params.b[:] = -0.2
    runs = {"gba": write_run(tmp_path / "a", params, config)}
    plain, config = topk(k=4, M=40, d=6)
    runs["topk"] = write_run(tmp_path / "b", plain, config)
    place = tmp_path / "out"
    flags = ["--store", str(store), "--neurons", "5", "-o", str(place)]
    benchmark("blind.py", "draw", *map(str, runs.values()), *flags)
    text, key = (place / "contexts.txt").read_text(encoding="utf-8"), json.loads((place / "key.json").read_text())
    assert not any(method in text for method in runs)
    chosen = {method: [k["neuron"] for k in key["neurons"].values() if k["method"] == method] for method in runs}
    for method, run in runs.items():
        features = survey_features(run, store)
        assert len(set(chosen[method])) == 5
        assert features.survey.count[chosen[method]].min() > 0
    assert [line for line in text.splitlines() if line.startswith("#")] == [f"#{n}" for n in range(1, 11)]
    for number, part in enumerate(text.split("\n#")[1:], 1):
        entry = key["neurons"][str(number)]
        found = survey_features(runs[entry["method"]], store, top=8).examples(entry["neuron"])
        first = part.splitlines()[1]
        assert first.startswith("top  100  ")
        assert f"【{found.tokens(0)[found.peak(0)]}】".replace("\n", "⏎").replace("\t", "→") in first
    answers = {n: {"theme": "a word" if int(n) % 2 else None} for n in key["neurons"]}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    printed = benchmark("blind.py", "open", str(place), str(tmp_path / "answers.json"), "-o", str(tmp_path / "r.json"))
    totals, result = json.loads(printed), json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert sum(totals[method]["themes"] for method in runs) == 5
    odd = sum(n["number"] % 2 for n in result["neurons"] if n["method"] == "gba")
    assert totals["gba"]["themes"] == odd


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


def program(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def on_a_gpu(monkeypatch, dtype="bfloat16", untied=True, **others):
    """A small setting in which a backend on a GPU is measured."""
    values = {
        "d": 32,
        "width": 64,
        "batch": 16,
        "density": 0.1,
        "dtype": dtype,
        "threads": 1,
        "rounds": 2,
        "steps": 4000,
    }
    rest = {"untied": untied, "only": ("cupy",), "peers": False, "adaptation": False}
    return program(monkeypatch, "setting").Setting(**values | rest | others)


def test_kernels_tells_the_parts_of_a_step(monkeypatch):
    kernels, s = program(monkeypatch, "kernels"), on_a_gpu(monkeypatch)
    with engine("cupy emulated") as backend:
        result = kernels.measured(backend, s)
    parts = result["parts"]
    own = {"center", "gate", "residual", "gate_gradient", "adamw_rows", "adamw_b_pre"}
    products = {"product (16, 32) (32, 64)", "product (16, 64) (64, 32)"}
    assert own | products <= set(parts)
    assert parts["product (16, 32) (32, 64)"]["times"] == 2  # x W^T and r V^T
    assert parts["product (64, 16) (16, 32)"]["times"] == 2  # the gradients of W and of W_dec
    assert parts["adamw_rows"]["times"] == 2  # W and W_dec
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(result["ms"])
    assert all(part["tflop_s"] > 0 for name, part in parts.items() if name.startswith("product"))


@pytest.mark.parametrize(("dtype", "per_entry"), [("bfloat16", 8 + 8 + 8 + 2 + 4 + 2), ("float32", 8 + 8 + 8 + 4 + 4)])
def test_kernels_counts_all_bytes_that_a_kernel_moves(monkeypatch, dtype, per_entry):
    kernels, moved = program(monkeypatch, "kernels"), {}
    monkeypatch.setattr(
        kernels.Clock, "between", lambda _, name, work, run: (moved.setdefault(name, work), run(), None)[2]
    )
    s, L, M, d = on_a_gpu(monkeypatch, dtype, untied=False), 16, 64, 32
    with engine("cupy emulated") as backend:
        config = s.config(dtype)
        state = backend.init(program(monkeypatch, "setting").Data(s).params.astype(config.master), config)
        kernels.Clock(backend.cp, state.device, 0.1)
        backend.step(state, backend.put(state, np.ones((L, d), np.float32)))
    code = 2 if dtype == "bfloat16" else 4
    shift = M * d * 4  # here every row has a part of its own
    assert moved["adamw_rows"] == per_entry * M * d + shift + M * (1 + 3 * 8 + 4)
    assert moved["gate"] == L * M * (4 + code + 1 / 8) + M * (4 + 16 + 8 + 4)
    some = 1 - 0.9 ** (32 // code)  # of the sectors of 32 bytes
    assert moved["gate_gradient"] == pytest.approx(L * M * (code * some + 1 / 8 + code) + M * 4)
    assert moved["residual"] == L * d * (4 + 4 + code) + d * 4 * 3
    assert moved["adamw_b_pre"] == d * 4 * (1 + M + 6)


def test_kernels_knows_what_every_kernel_does_to_its_arrays(monkeypatch):
    assert list(program(monkeypatch, "kernels").TRAFFIC) == CUDA_KERNELS


@pytest.mark.parametrize("dtype", ["float64", "float32", "tf32", "bfloat16"])
def test_the_floor_on_a_gpu_multiplies_what_a_step_does(monkeypatch, dtype):
    floors, s = program(monkeypatch, "floors"), on_a_gpu(monkeypatch, dtype, width=70, d=12)
    with engine("cupy emulated") as backend:
        monkeypatch.setattr(backend, "unusable", lambda: None)
        monkeypatch.setattr(backend.memory, "chunk_size", lambda *_: 40)
        five = {c.name: c for c in floors.gpu_floors(s, dtype)}
        emulated_cupy.emulation.log = log = []
        five["five_gemm_ms"].step(0)
        products = [work.name for work in log].count("gemmEx")
        five["copy"].step(0)
    assert set(five) == {"gpu_encode_ms", "five_gemm_ms", "copy"}
    assert products == 2 * 4  # chunks; the last two of the five are one
    assert emulated_cupy.emulation.unaligned == 0


def test_the_codes_of_the_floor_are_as_dense_as_asked(monkeypatch):
    floors, s = program(monkeypatch, "floors"), on_a_gpu(monkeypatch, batch=500, density=0.02)
    rows, weights, codes = floors.factors(s, 64)
    assert (rows.shape, weights.shape, codes.shape) == ((1000, 32), (64, 32), (1000, 64))
    assert np.mean(codes != 0) == pytest.approx(0.02, rel=0.1)


def test_the_share_of_active_neurons_is_told_by_some_of_them(monkeypatch):
    setting = program(monkeypatch, "setting")
    data = setting.Data(on_a_gpu(monkeypatch, width=3 * setting.SOME, batch=64, density=0.02))
    all_of_them = np.mean(data.x[0] @ data.params.W.T + data.params.b > 0)
    assert data.active == pytest.approx(all_of_them, rel=0.1)


def test_step_runs_on_without_a_rest_beside_the_samples():
    result = json.loads(benchmark("step.py", *SMALL, "--only", "numpy", "--sustained", "0.05").splitlines()[-1])
    assert result["backends"]["numpy"]["sustained_ms"] > 0
    assert {"sustained_encode_ms", "sustained_adam_ms"} <= set(result["floor"])


def test_the_clock_of_a_gpu_is_read_while_steps_run(monkeypatch):
    candidates, running, seen = program(monkeypatch, "candidates"), [], []
    begun = threading.Event()

    def clock():
        seen.append(bool(running))
        begun.set()
        return "1800 MHz"

    def step(i):
        running.append(i)
        if i > 100 * candidates.STEPS["cuda"]:
            begun.wait(10)

    monkeypatch.setattr(candidates, "clock", clock)
    made = candidates.Candidate("floor", "none", "cuda", "float32", step, wait=lambda _: time.sleep(1e-3))
    ms, reading = made.sustain(0.2)
    assert (reading, seen) == ("1800 MHz", [True])
    assert ms > 0


@pytest.mark.parametrize("in_turn", [False, True])
def test_feed_times_windows_of_a_store_on_a_gpu(monkeypatch, tmp_path, in_turn):
    feed, rng = program(monkeypatch, "feed"), np.random.default_rng(0)
    X = rng.standard_normal((400, 8)).astype(np.float16)
    np.save(tmp_path / "x.npy", X)
    config = recipe.default(8, width=20, groups=2, batch=32, dtype="float32", steps=10**6, form=0.0, lr=feed.LR)
    data, _ = feed.survey(feed.open_activations(tmp_path / "x.npy"), config.master)
    with engine("cupy emulated") as backend:
        monkeypatch.setattr(backend, "unusable", lambda: None)
        emulated_cupy.emulation.log = log = []
        result = feed._training(backend, data, X, config, 1, 3, in_turn)
    assert {"warm_ms", "cold_ms", "warm_ready_ms", "cold_ready_ms", "warm_ratio", "cold_ratio"} <= set(result)
    assert min(result[name] for name in result if name.endswith("_ms")) > 0
    assert [work.name for work in log].count("gate") == 1 + 2 * (3 + 1 + 3) * result["window_steps"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("failing", ["tests", "measurements", "nothing"])
def test_make_gpu_ends_where_tests_fail_and_nowhere_else(tmp_path, failing):
    calls = tmp_path / "calls"
    for name in ("python", "compute-sanitizer"):
        fails = {"tests": '*"-m pytest"*', "measurements": "*benchmarks/*|*sanitizer*", "nothing": "none"}[failing]
        script = f'#!/bin/sh\necho "{name} $* $PYTHONPATH" >> "{calls}"\ncase "{name} $*" in {fails}) exit 1;; esac\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": "/site"}
    command = ["make", "-j2", "-C", str(ROOT), "gpu", "PYTHON=python"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = calls.read_text().splitlines()
    assert (done.returncode != 0) == (failing == "tests")
    assert all(line.endswith(f"{ROOT}:/site") for line in lines if "benchmarks/" in line)  # peers can be elsewhere
    assert next(line for line in lines if "-m pytest" in line).startswith("python -m pytest -m gpu")
    if failing != "tests":
        for name in ("step", "kernels", "train", "feed"):
            assert any(f"benchmarks/{name}.py" in line for line in lines)
        timed = [line for line in lines if "torch cuda compiled" in line]
        dtypes = [line.partition("--dtype ")[2].split()[0] for line in timed]
        assert dtypes == ["bfloat16", "bfloat16", "tf32", "float32"]
        assert ["--untied" in line for line in timed] == [False, True, False, False]
        assert all(f"--batch {L}" in timed[0] for L in (512, 2048, 4096, 8192))
        last = [line.partition("--tool ")[2] for line in lines[-2:]]
        assert [line.split()[0] for line in last] == ["memcheck", "racecheck"]
        assert all("--report-api-errors no" in line for line in last)


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
        "feed.py", "--gb", "0.002", "--d", "16", "--width", "64", "--batch", "2048", "--rounds", "1", "--windows", "1",
        "--place", str(tmp_path), "--json",
    )  # fmt: skip
    assert json.loads(printed.splitlines()[-1])["rows"] > 0


def test_agreement_of_seeds_is_measured_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("numba")
    out = tmp_path / "agreement.json"
    printed = benchmark("agreement.py", "--quick", "-o", str(out)).splitlines()
    ours, theirs = json.loads(out.read_text(encoding="utf-8"))["cells"]
    assert (ours["method"], theirs["method"], len(printed)) == ("GBA", "TopK", 2)
    assert theirs["k"] == round(ours["l0"][0])
    assert 0 <= ours["agreement"]["matched"][1] <= ours["agreement"]["mcs"][1] <= 1
    assert benchmark("agreement.py", "--quick", "-o", str(out)) == ""
