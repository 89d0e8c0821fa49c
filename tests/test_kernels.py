"""Kernels of backends/cupy_kernels.cu that go entry by entry or column by column compute their formula, on the CPU.

Those that go row by row are test_kernels_rows.py's, and that the file compiles for every architecture is
test_kernels_compile.py's.
"""

from __future__ import annotations

import numpy as np
import pytest
from engines import CUDA_KERNELS
from kernel_cases import assert_same, backend, check_all_launched, gpu

from refgba import sae
from refgba.backends.cupy_device import aligned
from refgba.bias import Buffer
from refgba.sae import Params

__all__ = ["backend", "gpu"]

KERNELS = ["narrow", "center", "gate", "residual", "gate_gradient"]
ROWS = ["adamw_b_pre", "adamw_rows", "agree"]  # of test_kernels_rows.py

of_codes = pytest.mark.parametrize(("L", "M"), [(1, 70), (31, 33), (33, 31), (33, 70), (100, 1)])
of_rows = pytest.mark.parametrize(("L", "d"), [(1, 300), (31, 5), (33, 257), (100, 1)])
some_all_or_none = pytest.mark.parametrize("gates", ["some", "all", "none"])


# ------------------------------------------------------------------------------------------------- element by element


def test_every_number_is_rounded_to_the_nearest_code(gpu):
    """All bfloat16, and the ties between them with what is next to those: NaN, infinities and subnormals too."""
    below = np.array([0, 0x7FFF, 0x8000, 0x8001], np.uint32)
    x = (np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16) | below).view(np.float32).ravel()
    with np.errstate(invalid="ignore"):
        x = x.astype(gpu.real)
    _, out = gpu.run(gpu.device.each, "narrow", x.size, x, gpu.codes(x.size))
    assert_same(out, gpu.code(x))


@of_rows
def test_center_is_x_without_b_pre(gpu, L, d):
    x, b_pre = gpu.normal(L, d), gpu.normal(d)
    *_, xc = gpu.run(gpu.device.each, "center", L * d, np.int32(d), x, b_pre, gpu.codes(L, d))
    assert_same(xc, gpu.code(x - b_pre))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_grid_that_is_too_small_for_the_array_goes_round(gpu, blocks):
    x, y = gpu.normal(7, 150), gpu.normal(150)
    n, d = np.int64(x.size), np.int32(150)
    _, out = gpu.run(gpu.device.launch, "narrow", blocks, (256,), n, x, gpu.codes(7, 150))
    assert_same(out, gpu.code(x))
    *_, out = gpu.run(gpu.device.launch, "center", blocks, (256,), n, d, x, y, gpu.codes(7, 150))
    assert_same(out, gpu.code(x - y))


# --------------------------------------------------------------------------------------------------- column by column


def bitmap(on, ld):
    """(L, ld / 8) uint8: gate m is bit m % 8 of byte m / 8; garbage beyond the bytes that hold gates."""
    there = np.full((len(on), ld // 8), 0xFF, np.uint8)
    there[:, : -(-on.shape[1] // 8)] = np.packbits(on, axis=1, bitorder="little")
    return there


def assert_filled_up(gpu, codes, M):
    """The codes of M columns; those that fill rows up to a multiple of 8 are 0, and beyond these nothing changed."""
    fill = aligned(M)
    assert_same(codes[:, M:fill], np.zeros_like(codes[:, M:fill]))
    assert_same(codes[:, fill:], gpu.codes(*codes.shape)[:, fill:])
    return codes[:, :M]


def gate(gpu, z, b, activation, counts=None, peaks=None, theta=None):
    """(codes, open, counts, peaks, active), open as booleans"""
    (L, M), ld = z.shape, aligned(z.shape[1]) + 8
    counts = np.zeros(M, np.int64) if counts is None else counts
    peaks = np.zeros(M, gpu.real) if peaks is None else peaks
    room = gpu.codes(L, ld), gpu.room(L, ld // 8, dtype=np.uint8)
    arrays = gpu.spread(z, ld), b, theta, *room, counts, peaks, gpu.room(M, dtype=np.int32)
    numbers = np.int32(ld), np.int32(activation == "relu")
    codes, there, *rest = gpu.run(gpu.device.columns, "gate", L, M, *numbers, *arrays)[-5:]
    on = np.unpackbits(there, axis=1, bitorder="little")[:, :M].astype(bool)
    assert_same(there, bitmap(on, ld))  # no other bit is set
    return assert_filled_up(gpu, codes, M), on, *rest


@some_all_or_none
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@of_codes
def test_gate_is_the_reference_encoding_and_its_buffer_over_two_batches(gpu, L, M, activation, gates):
    b = {"some": gpu.normal(M), "all": np.full(M, 9, gpu.real), "none": np.full(M, -9, gpu.real)}[gates]
    params = Params(W=np.eye(M, dtype=gpu.real), a=b, b=b, b_pre=np.zeros_like(b))  # by which z is its own encoding
    buffer, counts, peaks = Buffer(M), None, None
    for _ in range(2):
        z = gpu.normal(L, M)
        y, on, s = sae.encode(params, z, activation)
        buffer.add(y)
        codes, there, counts, peaks, active = gate(gpu, z, b, activation, counts, peaks)
        assert_same(codes, gpu.gated(s, on))
        np.testing.assert_array_equal(there, on)
        assert active.tolist() == on.sum(axis=0).tolist()
        assert gates == "some" or (on == (gates == "all")).all()
    assert counts.tolist() == buffer.counts.tolist()
    assert peaks.tolist() == buffer.peaks.tolist()


@of_codes
def test_a_gate_with_thresholds_opens_above_them(gpu, L, M):
    z, b, theta = gpu.normal(L, M), gpu.normal(M), abs(gpu.normal(M))
    y = z + b
    codes, there, counts, peaks, active = gate(gpu, z, b, "relu", theta=theta)
    assert_same(codes, gpu.gated(y, y > theta))
    np.testing.assert_array_equal(there, y > theta)
    assert counts.tolist() == active.tolist() == (y > theta).sum(axis=0).tolist()
    assert_same(peaks, np.where(y > theta, y, gpu.real(0)).max(axis=0))


def test_an_open_gate_that_passes_zero_stays_open(gpu):
    z = np.array([[0, -0.0, 2.0**-140, -(2.0**-140), 1, -1]], gpu.real)  # 2^-140 is 0 in bfloat16
    b = np.full(6, 2, gpu.real)
    codes, on, counts, peaks, active = gate(gpu, z, b, "jumprelu")
    assert on.all()
    assert gpu.wide(codes)[0, [0, 1, 4, 5]].tolist() == [0, 0, 1, -1]
    assert (counts.tolist(), active.tolist(), peaks.tolist()) == ([1] * 6, [1] * 6, [2, 2, 2, 2, 3, 1])
    vr = gpu.code(gpu.normal(1, 6))
    g, mean = gate_gradient(gpu, vr, on)
    assert_same(g, vr)  # an open gate passes its gradient
    assert_same(mean, gpu.wide(vr)[0])


@pytest.mark.parametrize(("tiny", "is_normal"), [(2.0**-126, True), (2.0**-127, False), (2.0**-140, False)])
def test_what_is_barely_above_zero_is_open_if_the_dtype_has_it_as_a_normal_number(gpu, tiny, is_normal):
    # CuPy compiles with -ftz=true: to a float kernel a smaller number is 0, as a GPU has it.
    opens = is_normal or gpu.real == np.float64
    z, b = np.array([[tiny, 0, -tiny, 0]], gpu.real), np.array([0, tiny, 0, 0], gpu.real)
    for activation in ("jumprelu", "relu"):
        _, on, counts, peaks, active = gate(gpu, z, b, activation)
        assert on.tolist() == [[opens, opens, False, False]]
        assert counts.tolist() == active.tolist() == [opens, opens, 0, 0]
        assert peaks.tolist() == [tiny * opens, tiny * opens, 0, 0]


def gate_gradient(gpu, vr, on, wanted=True):
    """(g, mean), from vr as codes"""
    (L, M), ld = vr.shape, aligned(vr.shape[1]) + 8
    arrays = gpu.spread(vr, ld), bitmap(on, ld), gpu.codes(L, ld), gpu.room(M) if wanted else None
    g, *mean = gpu.run(gpu.device.columns, "gate_gradient", L, M, np.int32(ld), *arrays)[2:]
    return assert_filled_up(gpu, g, M), *mean


@some_all_or_none
@of_codes
def test_gate_gradient_passes_open_gates_and_takes_the_mean_where_it_is_wanted(gpu, L, M, gates):
    on = gpu.rng.random((L, M)) < {"some": 0.5, "all": 1, "none": 0}[gates]
    vr = gpu.code(gpu.normal(L, M))
    g, mean = gate_gradient(gpu, vr, on)
    passed = np.where(on, gpu.wide(vr), gpu.real(0))
    assert_same(g, gpu.code(passed))
    gpu.assert_sum(mean, passed / L)
    (alone,) = gate_gradient(gpu, vr, on, wanted=False)
    assert_same(alone, g)


@of_codes
def test_gate_gradient_of_whole_numbers_is_exact(gpu, L, M):
    on = gpu.rng.random((L, M)) < 0.5
    vr = gpu.code(gpu.whole(L, M))
    _, mean = gate_gradient(gpu, vr, on)
    assert_same(mean + 0, (gpu.wide(vr) * on).sum(axis=0) / gpu.real(L) + 0)  # + 0: of either sign


def residual(gpu, x, b_pre, f):
    """(r, sums, squares)"""
    L, d = x.shape
    room = gpu.codes(L, d), gpu.room(d), gpu.room(d)
    return gpu.run(gpu.device.columns, "residual", L, d, x, b_pre, f, *room)[3:]


@of_rows
def test_residual_is_f_minus_x_with_its_sums(gpu, L, d):
    x, b_pre, f = gpu.normal(L, d), gpu.normal(d), gpu.normal(L, d)
    r, sums, squares = residual(gpu, x, b_pre, f)
    exact = f - (x - b_pre)
    assert_same(r, gpu.code(exact))
    gpu.assert_sum(sums, exact)
    gpu.assert_sum(squares, exact * exact)


@of_rows
def test_residual_of_whole_numbers_is_exact(gpu, L, d):
    x, b_pre, f = gpu.whole(L, d), gpu.whole(d), gpu.whole(L, d)
    r, sums, squares = residual(gpu, x, b_pre, f)
    exact = f - (x - b_pre)
    assert_same(r, gpu.code(exact))
    assert_same(sums, exact.sum(axis=0))
    assert_same(squares, (exact * exact).sum(axis=0))


# ---------------------------------------------------------------------------------------------------------------- NaN


def test_nan_stays_nan_and_where_it_is(gpu):
    def where(a):
        return np.argwhere(np.isnan(a)).tolist()

    x, one = gpu.normal(33, 5), gpu.normal(5)
    x[32, 3] = np.nan
    assert where(gpu.wide(gpu.run(gpu.device.each, "narrow", x.size, x, gpu.codes(33, 5))[-1])) == [[32, 3]]
    centred = gpu.run(gpu.device.each, "center", x.size, np.int32(5), x, one, gpu.codes(33, 5))[-1]
    assert where(gpu.wide(centred)) == [[32, 3]]
    for r, sums, squares in (residual(gpu, x, one, gpu.normal(33, 5)), residual(gpu, gpu.normal(33, 5), one, x)):
        assert (where(gpu.wide(r)), where(sums), where(squares)) == ([[32, 3]], [[3]], [[3]])
    g, mean = gate_gradient(gpu, gpu.code(x), np.ones((33, 5), bool))
    assert (where(gpu.wide(g)), where(mean)) == ([[32, 3]], [[3]])


def test_nan_opens_no_gate(gpu):
    z = np.ones((2, 3), gpu.real)
    z[1, 1] = np.nan
    codes, _, counts, peaks, active = gate(gpu, z, np.zeros(3, gpu.real), "jumprelu")
    assert_same(codes, gpu.code([[1, 1, 1], [1, 0, 1]]))
    assert counts.tolist() == active.tolist() == [2, 1, 2]
    assert peaks[[0, 2]].tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.usefixtures("backend")
def test_every_kernel_of_this_file_was_launched(request):
    check_all_launched(request, KERNELS)


def test_every_kernel_belongs_to_one_file():
    assert KERNELS + ROWS == CUDA_KERNELS
