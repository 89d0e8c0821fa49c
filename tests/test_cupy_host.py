"""What backends/cupy.py does around its kernels: memory, copies, waits.  On the CPU, through tests/emulated_cupy.py."""

from __future__ import annotations

from dataclasses import replace

import emulated_arrays
import emulated_cupy
import numpy as np
import pytest
from engines import engine

from refgba import gba
from refgba.config import GBAConfig
from refgba.errors import InputError

CONFIG = GBAConfig(
    width=70, groups=3, batch=16, steps=20, adapt_every=6, form=0.5, hold=0.9, a_init=0.2, dtype="float32"
)


@pytest.fixture
def cupy():
    with engine("cupy emulated") as backend:
        yield backend


def started(cupy, config=CONFIG, d=12):
    return cupy.init(gba.random_params(config, d), config)


def batches(config=CONFIG, d=12):
    return list(gba.minibatches(np.random.default_rng(0).standard_normal((100, d)), config))


@pytest.mark.parametrize("dtype", ["float64", "float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("untied", [False, True])
def test_a_step_never_waits_for_the_device(cupy, dtype, untied):
    config = replace(CONFIG, dtype=dtype, untied=untied)
    state = started(cupy, config)
    for x in batches(config):  # forming, holding and fitting
        rows = cupy.put(state, x)
        before = emulated_cupy.emulation.waits
        cupy.step(state, rows)
        assert emulated_cupy.emulation.waits == before


def test_batches_that_wait_their_turn_keep_their_rows(cupy):
    state = started(cupy)
    ahead = [(cupy.put(state, x), x) for x in batches()[:8]]  # more than there are stages
    for rows, x in ahead:
        y, _ = cupy.encode(state, rows)
        p = cupy.params(state)
        np.testing.assert_allclose(cupy.get(y), (x - p.b_pre) @ p.W.T + p.b, atol=1e-6)


def test_a_batch_larger_than_the_others_is_taken(cupy):
    state = started(cupy)
    x = np.concatenate(batches()[:4])
    y, s = cupy.encode(state, cupy.put(state, x))
    assert cupy.get(y).shape == cupy.get(s).shape == (64, 70)
    assert cupy.get(cupy.decode(state, s)).shape == (64, 12)


def test_a_device_that_is_too_small_says_what_was_needed_and_would_fit(cupy):
    config = replace(CONFIG, width=4096, batch=512, dtype="bfloat16")
    emulated_cupy.Device.mem_info = (2**21, 2**25)
    with pytest.raises(InputError) as caught:
        started(cupy, config, d=256)
    message = str(caught.value)
    assert message.startswith(
        "the GPU's memory is too small: width 4096, batch 512 and d 256 in bfloat16 need 0.1 GiB, 0.0"
    )
    assert message.endswith("no width would fit")
    assert "\n" not in message


def test_the_width_that_would_fit_does_and_one_more_does_not(cupy):
    config = replace(CONFIG, width=200_000, batch=2048, dtype="bfloat16")
    emulated_cupy.Device.mem_info = (2**30, 2**31)
    message = str(cupy.memory.too_large(config, 512))
    fits = int(message.split("width ")[2].split()[0])
    assert cupy.memory.needs("bfloat16", fits, 2048, 512) <= 2**30 < cupy.memory.needs("bfloat16", fits + 1, 2048, 512)
    assert "batch" not in message.split("; ")[1].replace(f"width {fits} at batch 2048", "")  # no batch makes 200k fit


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("untied", [False, True])
def test_needs_is_what_init_takes(cupy, dtype, untied, monkeypatch):
    taken, allocate = [], emulated_arrays.allocate

    def counted(shape, dtype, *rest):
        taken.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return allocate(shape, dtype, *rest)

    monkeypatch.setattr(emulated_arrays, "allocate", counted)
    M, L, d = 3000, 256, 64
    monkeypatch.setattr(cupy.memory, "CHUNK", 2**20)
    state = started(cupy, replace(CONFIG, width=M, batch=L, dtype=dtype, untied=untied), d)
    assert len(state.work.chunks) > 1
    assert sum(taken) + 2**25 == pytest.approx(cupy.memory.needs(dtype, M, L, d, untied), rel=0.01)


def test_a_million_neurons_fit_a_card_of_80_gb(cupy):
    assert 29 * 2**30 < cupy.memory.needs("bfloat16", 2**20, 4096, 1536) < 30.5 * 2**30
    assert cupy.memory.needs("float32", 2**20, 4096, 1536) < 75 * 2**30


def test_a_step_refuses_a_batch_of_another_size(cupy):
    state = started(cupy)
    with pytest.raises(InputError, match="a step takes the 16 rows of its batch setting, not 15"):
        cupy.step(state, cupy.put(state, batches()[0][:15]))


@pytest.mark.parametrize(("dtype", "old"), [("bfloat16", True), ("tf32", True), ("float32", False), ("float64", False)])
def test_a_gpu_without_the_dtype_is_refused(cupy, dtype, old, monkeypatch):
    monkeypatch.setattr(emulated_cupy.Device, "compute_capability", "70")
    config = replace(CONFIG, dtype=dtype)
    if old:
        with pytest.raises(InputError, match=f"this GPU has no {dtype}: that takes compute capability 8.0"):
            started(cupy, config)
    else:
        started(cupy, config)


def test_it_is_usable_where_a_gpu_and_the_libraries_are(cupy):
    assert cupy.unusable() is None


def test_without_a_gpu_or_a_library_it_says_what_is_missing(cupy, monkeypatch):
    def failing(*_):
        raise RuntimeError("Failed to find\n  CUDA headers")

    monkeypatch.setattr(emulated_cupy, "RawKernel", failing)
    assert cupy.unusable().startswith("a CUDA library is missing (Failed to find CUDA headers): pip install")
    monkeypatch.setattr(emulated_cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert cupy.unusable() == "CuPy is installed, but there is no NVIDIA GPU"
