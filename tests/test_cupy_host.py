"""What backends/cupy.py does around its kernels: memory, copies, waits.  On the CPU, through tests/emulated_cupy.py."""

from __future__ import annotations

import threading
from dataclasses import replace

import emulated_arrays
import emulated_cupy
import numpy as np
import pytest
from engines import engine

from refgba import backends, gba
from refgba.config import GBAConfig
from refgba.data.prefetch import prefetched
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


# ---------------------------------------------------------------------------------------------------- rows on their way


def schedule(log, ms):
    """When each piece of work begins and ends, if a stream does one after another and takes ms(work) for it.

    Work that waits for an event waits for its last record before that, in the order of the host.
    """
    free, records, times = {}, {}, []
    for work in log:
        begin = free.get(work.stream, 0.0)
        if work.name == "wait":
            begin = max(begin, records.get(work.event, 0.0))
        free[work.stream] = end = begin + ms(work)
        if work.name == "record":
            records[work.event] = end
        times.append((begin, end))
    return times


def logged(cupy, config, steps):
    """All work of a run whose host is as far ahead as it can be: it launches a step as soon as its rows are put."""
    state, x = started(cupy, config), batches(config)[0]
    emulated_cupy.emulation.log = log = []
    for _ in range(steps):
        cupy.step(state, cupy.put(state, x))
    copies = state.feed.copies
    assert {work.stream for work in log if work.name == "set"} == {copies}
    return log, copies


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0], ids="a copy takes {} of a step".format)
def test_a_copy_runs_while_earlier_steps_do(cupy, share):
    steps = 30
    config = replace(CONFIG, steps=2 * steps + 2, form=0.5)  # all of one kind
    log, copies = logged(cupy, config, steps)
    a_step = sum(work.stream is not copies and work.event is None for work in log) / steps
    copy = share * a_step

    def ms(work):
        return copy if work.name == "set" else 0.0 if work.event else 1.0

    end = max(end for _, end in schedule(log, ms))
    assert end == pytest.approx(steps * a_step + copy, abs=3 * copy)
    assert end < 0.8 * steps * (a_step + copy) or share < 0.5


@pytest.mark.parametrize(("copy", "kernel"), [(1.0, 1.0), (0.01, 1.0), (100.0, 1.0), (1.0, 0.001)])
def test_no_copy_begins_before_the_last_step_that_reads_its_memory_has_and_no_step_before_its_copy(cupy, copy, kernel):
    log, copies = logged(cupy, CONFIG, 20)
    times = schedule(log, lambda work: copy if work.name == "set" else 0.0 if work.event else kernel)
    used = {work.arrays[0] for work in log if work.name == "set"}
    assert len(used) <= cupy.memory.BATCHES
    for place in used:
        ends, readers = 0.0, 0
        for work, (begin, end) in zip(log, times, strict=True):
            if place in work.arrays:  # each waits for all before it: copies for readers, and readers for the copy
                readers += work.stream is not copies
                if work.name == "set" or readers:
                    assert begin >= ends
                ends = max(ends, end)
        assert readers >= 2


def test_memory_of_rows_that_are_gone_is_used_again_and_that_of_others_is_not(cupy):
    state = started(cupy)
    kept = [cupy.put(state, batches()[0]) for _ in range(3)]
    ours = {rows.array.data.ptr for rows in kept}
    used = []
    for x in batches():
        rows = cupy.put(state, x)
        used.append(rows.array.data.ptr)
        cupy.step(state, rows)
        del rows
    assert ours.isdisjoint(used)
    assert len(set(used)) <= cupy.memory.BATCHES
    big = cupy.put(state, np.concatenate(batches()[:2]))
    for rows in kept:
        np.testing.assert_array_equal(cupy.get(rows.array)[:, :12], batches()[0].astype("f"))
    assert big.array.shape == (32, 16)


def test_rows_are_put_on_the_device_of_the_run_by_a_thread_that_begins_on_another(cupy):
    with emulated_cupy.Device(1):
        state = started(cupy)
        rows = prefetched(cupy.put(state, x) for x in batches())
        for _ in gba.train(state, rows, cupy.step, cupy.adapt):
            pass
        assert state.device.here.id == state.feed.copies.device_id == 1
    assert emulated_cupy.Device().id == 0


def test_a_step_in_another_thread_multiplies_with_a_handle_of_its_own(cupy):
    state, losses = started(cupy), []
    thread = threading.Thread(
        target=lambda: losses.extend(float(cupy.step(state, cupy.put(state, x)).loss) for x in batches()[:3])
    )
    thread.start()
    thread.join()
    assert len(losses) == 3


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False)])
def test_a_stream_for_each_thread_is_refused(cupy, monkeypatch, value, refused):
    name = backends.cupy_device.THREADS_OWN_STREAM
    monkeypatch.setenv(name, value)
    message = f"{name}=1 gives the thread that copies rows a stream that the steps do not wait for: unset it"
    assert cupy.unusable() == (message if refused else None)


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", ["float64", "float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("untied", [False, True])
def test_rows_of_every_matrix_that_is_multiplied_begin_at_16_bytes(cupy, dtype, untied, monkeypatch):
    monkeypatch.setattr(cupy.memory, "chunk_size", lambda *_: 37)
    config = replace(CONFIG, dtype=dtype, untied=untied, steps=4)
    state = started(cupy, config, d=13)
    for x in batches(config, d=13):
        rows = cupy.put(state, x)
        _, s = cupy.encode(state, rows)
        cupy.decode(state, s)
        cupy.step(state, rows)
    assert [c.size for c in state.work.chunks] == [37, 33]
    assert emulated_cupy.emulation.unaligned == 0


@pytest.mark.parametrize("M", [1, 255, 256, 257, 16384, 16385, 65536, 65537, 100_000, 2**20])
def test_chunks_are_as_few_as_fit_and_nearly_equal(cupy, M):
    L, itemsize = 4096, 4
    sizes = cupy.memory.chunk_sizes(M, L, itemsize)
    assert sum(sizes) == M
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == -(-M // 16384)  # so many fit CHUNK
    assert max(sizes) <= 16384
    assert sizes[-1] > max(sizes) - 256 * len(sizes)


@pytest.mark.parametrize("form", [0.5, 0.0])
def test_what_shifts_b_pre_is_formed_only_where_b_pre_is_trained(cupy, form):
    config = replace(CONFIG, form=form)
    state = started(cupy, config)
    cupy.step(state, cupy.put(state, batches()[0]))
    assert ("adamw_b_pre" in emulated_cupy.emulation.launches) == (form == 0.0)
    assert np.isnan(cupy.get(state.work.shift)).any() == (form > 0)  # as fresh memory is


@pytest.mark.parametrize("untied", [False, True])
def test_tied_weights_have_one_product_for_their_gradient(cupy, untied):
    state = started(cupy, replace(CONFIG, untied=untied, form=0.0))
    emulated_cupy.emulation.log = log = []
    cupy.step(state, cupy.put(state, batches()[0]))
    assert [work.name for work in log].count("gemmEx") == (5 if untied else 4)


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
    assert 33 * 2**30 < cupy.memory.needs("bfloat16", 2**20, 4096, 1536) < 34 * 2**30
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
