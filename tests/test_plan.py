"""`refgba plan`: what it predicts agrees with what is known elsewhere, with itself, and with measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
from commands import assert_one_line, last_json
from hypothesis import given
from hypothesis import strategies as st
from ranks import ROOT, environment, needs_mpi

from refgba.errors import InputError
from refgba.planning import calibration, costs, devices, plans
from refgba.planning.plans import Wish

WISH = Wish(d=1536, M=65536, tokens=10**9, L=4096, dtype="bfloat16", untied=False)
INTERNET = ["--d", 8192, "--width", 16_777_216, "--tokens", 40_000_000_000]


def plan(wish, ranks=1, device="h200"):
    return plans.planned(wish, device, ranks, "infiniband", calibration.read(None), 2**40)


def test_a_step_is_what_was_worked_out_by_hand():
    work = costs.work(1536, 65536, 4096, 1, "bfloat16")
    assert work.flops == pytest.approx(4.12e12, rel=1e-3)  # five products of 2 M d L
    adam, scaled, gates = 30 * 65536 * 1536, 2 * 65536 * 1536, 9 * 65536 * 4096
    assert work.bytes == adam + scaled + gates
    assert work.shared == 4 * (4096 * 1536 + 1536)  # whatever M
    assert costs.work(1536, 10 * 65536, 4096, 1, "bfloat16").shared == work.shared


@pytest.mark.parametrize(
    ("dtype", "L", "ms"),
    [("bfloat16", 4096, 7.70), ("bfloat16", 512, 2.13), ("tf32", 4096, 15.6), ("float32", 4096, 83)],
)
def test_a_step_takes_as_long_as_an_h100_took(dtype, L, ms):  # benchmarks/results/gpu-2026-11-26.md
    assert plan(replace(WISH, L=L, dtype=dtype), device="h100").step == pytest.approx(1e-3 * ms, rel=0.1)


def test_memory_is_what_the_gpu_backend_says_that_it_needs():
    pytest.importorskip("cupy")
    from refgba.backends import cupy_memory

    for dtype, untied in product(("bfloat16", "tf32", "float32", "float64"), (True, False)):
        for M, L, d in (
            (3072, 1024, 384),
            (8192, 512, 768),
            (65536, 512, 1536),
            (65536, 4096, 1536),
            (10**6, 64, 8190),
        ):
            planned = costs.gpu_bytes(d, M, L, 1 + untied, dtype)
            assert planned == pytest.approx(cupy_memory.needs(dtype, M, L, d, untied), rel=0.01)


@given(st.integers(1, 2000), st.floats(1, 1e10))
def test_an_all_reduce_takes_longer_the_more_there_is_and_nothing_alone(ranks, size):
    network = devices.NETWORKS["infiniband"]
    seconds = devices.all_reduce_seconds(size, ranks, 450e9, 8, network)
    assert (seconds == 0) == (ranks == 1)
    assert devices.all_reduce_seconds(2 * size, ranks, 450e9, 8, network) >= seconds


def test_an_all_reduce_by_hand():
    network = devices.Network(1e9, 0.0, "made up")
    within = devices.all_reduce_seconds(8e9, 8, 1e9, 8, network)
    assert within == pytest.approx(2 * 7 * 1.0, rel=1e-3)  # an eighth of the array per message
    between = devices.all_reduce_seconds(8e9, 16, 1e9, 8, network) - within
    assert between == pytest.approx(2 * 0.5, rel=1e-3)  # each device has an eighth, and half of it per message


def test_more_devices_need_less_memory_each_and_less_time():
    by = [plan(WISH, ranks) for ranks in (1, 2, 4, 8)]
    assert [p.bytes for p in by] == sorted((p.bytes for p in by), reverse=True)
    assert [p.step for p in by] == sorted((p.step for p in by), reverse=True)


def test_the_largest_width_fits_and_a_larger_one_does_not():
    from dataclasses import replace

    most = plans.largest(lambda M: plan(replace(WISH, M=M)).fits)
    assert plan(replace(WISH, M=most)).fits
    assert not plan(replace(WISH, M=most + most // 50)).fits
    assert plans.largest(lambda _M: False) == 0


def test_the_smallest_machine_fits_and_one_of_fewer_devices_does_not():
    here = calibration.read(None)
    internet = Wish(8192, 2**24, 4 * 10**10, 4096, "bfloat16")
    least = plans.smallest(internet, "infiniband", here, 0.0, None)
    assert least.fits
    for name in devices.DEVICES:
        assert not plan(internet, least.ranks // 2, name).fits
    quick = plans.smallest(internet, "infiniband", here, 0.0, 100.0)
    assert quick.hours <= 100 < least.hours
    assert plans.smallest(internet, "infiniband", here, 0.0, 1e-6) is None


def test_it_answers_for_internet_scale(cli):
    result = last_json(cli("plan", *INTERNET, "--device", "h100", "--ranks", 64, "--json"))
    assert result["plan"]["fits"]
    assert result["plan"]["steps"] == 4 * 10**10 // 4096
    assert result["plan"]["disk"] == 4e10 * 8192 * 2
    assert result["smallest"]["ranks"] <= 64
    text = cli("plan", *INTERNET).stdout
    assert "more than there is" in text  # one GPU
    assert "655 TB" in text


def test_the_calibration_that_comes_along_keeps_its_promise(cli):
    here = calibration.read(None)
    assert len(here.checks) == len(calibration.JUDGED) == 5
    assert not set(calibration.JUDGED) & set(calibration.CALIBRATED)
    stored = (ROOT / "benchmarks/results/plan.json").read_text(encoding="utf-8")
    assert json.loads(stored)["checks"] == list(here.checks)
    assert here.worst("time_error") < 0.25
    assert here.worst("memory_error") < 0.10
    shown = cli("plan", "--d", 768, "--width", 8192, "--tokens", 10**6, "--batch", 512, "--device", "here")
    assert f"by up to {here.worst('time_error'):.0%} in time" in shown.stderr


def test_memory_here_is_predicted():
    pytest.importorskip("numba")
    size = calibration.measured(200, 5000, 200, "float32")
    held = calibration.Calibration("here", 1, (0.0,) * len(costs.TERMS), size.base).bytes(200, 5000, 200, 2, "float32")
    assert held == pytest.approx(size.bytes, rel=0.10)


def test_a_calibration_measures_fits_and_is_read_again(cli, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(calibration, "CALIBRATED", ((32, 512, 64), (16, 1024, 64)))
    monkeypatch.setattr(calibration, "JUDGED", ((24, 512, 64),))
    flags = ["--d", 64, "--width", 1024, "--tokens", 10**5, "--device", "here", "--json"]
    first = last_json(cli("plan", *flags, "--measure", "-o", "here.json"))
    again = last_json(cli("plan", *flags, "--calibration", "here.json"))
    assert first == again
    assert first["calibration"]["time_error"] is not None
    assert all(rate >= 0 for rate in calibration.read(tmp_path / "here.json").rates)


def test_a_fit_finds_the_rates_that_made_its_measurements():
    rates = (1e-4, 2e-11, 5e-11, 2e-9, 1e-9, 3e-8, 1e-8)
    true = calibration.Calibration("made up", 1, rates, 10**8)
    sizes = [
        calibration.Size(d, M, L, "float32", 0.02, *(true.seconds(d, M, L, 2, p) for p in (0.02, 0.16)), 10**8, 1)
        for d, M, L in calibration.CALIBRATED
    ]  # fmt: skip
    found = calibration.fitted(sizes)
    for d, M, L in calibration.JUDGED:
        assert found.seconds(d, M, L, 2, 0.02) == pytest.approx(true.seconds(d, M, L, 2, 0.02), rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--device", "abacus"], "there is no device 'abacus'; the devices are here, "),
        (["--hours", "nan"], "nan is not a finite number"),
        (["--hours", "inf"], "inf is not a finite number"),
        (["--network", "string"], "there is no network 'string'; the networks are infiniband, ethernet"),
        (["--ranks", 2000], "2000 ranks are more than 1024 neurons"),
        (["--device", "here", "--dtype", "bfloat16"], "the calibration of device here is of float32, not bfloat16"),
        (["--calibration", "nowhere.json"], "nowhere.json: no such file"),
        (["-o", "here.json"], "-o writes what --measure measures; give both"),
    ],
)
def test_bad_use_is_one_line(cli, flags, complaint):
    assert_one_line(cli("plan", "--d", 64, "--width", 1024, "--tokens", 10**6, *flags), complaint)


@pytest.mark.parametrize(
    "text", ['{"machine": 3}', "[]", "{", '{"machine": "a", "threads": 1, "rates": [1], "base": 1}']
)
def test_a_calibration_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "here.json").write_text(text)
    with pytest.raises(InputError, match=r"here\.json"):
        calibration.read(tmp_path / "here.json")


def test_a_measurement_that_fails_names_its_size(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="a measurement of d 8, width 64, batch 8 failed"):
        calibration.measured(8, 64, 8, "float32")


def test_json_is_the_last_line(cli):
    result = cli("plan", "--d", 64, "--width", 1024, "--tokens", 10**6, "--json")
    assert set(json.loads(result.stdout.splitlines()[-1])) == {"plan", "largest_width", "calibration", "smallest"}


@needs_mpi
def test_weak_scaling_is_measured_and_simulated(tmp_path):
    pytest.importorskip("numba")
    out = tmp_path / "scaling.json"
    command = [sys.executable, str(ROOT / "benchmarks/scaling.py"), "-o", str(out), "--d", "16", "--width", "256"]
    done = subprocess.run(
        [*command, "--batch", "32", "--steps", "5"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [row["ranks"] for row in result["measured"]["ranks"]] == [1, 2]
    assert [row["ranks"] for row in result["simulated"]["ranks"]] == [1, 8, 64, 512]
    assert all(0 < row["efficiency"] <= 1 for row in result["simulated"]["ranks"])
