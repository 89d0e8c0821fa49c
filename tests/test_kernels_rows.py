"""Kernels of backends/cupy_kernels.cu that go row by row, and the updates: AdamW, a, b_pre, agreement."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from kernel_cases import CONFIG, assert_same, backend, check_all_launched, gpu
from test_kernels import ROWS

from refgba import backends, recipe, sae
from refgba.adam import AdamW

__all__ = ["backend", "gpu"]

of_weights = pytest.mark.parametrize(("M", "d"), [(1, 304), (31, 8), (33, 264), (70, 8), (3, 2056), (2, 8200)])


# -------------------------------------------------------------------------------------------------------- the updates


@pytest.mark.parametrize("d", [8, 32, 264])
@pytest.mark.parametrize("n", [1, 31, 33, 100])
def test_adamw_b_pre_is_the_reference_update(gpu, n, d):
    theta, optimiser = gpu.normal(d), AdamW.like(np.zeros(d, gpu.real))
    m, v, L = optimiser.m.copy(), optimiser.v.copy(), 100
    for t in range(3):
        sums, shift, factors = gpu.whole(d), gpu.whole(n, d), gpu.factors(t)  # of whole numbers every sum is exact
        sums[::5], shift[:, ::5] = 0, 0
        g = gpu.real(1 / L) * sums - shift.sum(axis=0)
        before, expected = theta, optimiser.update(theta, g, CONFIG.lr, CONFIG)
        arguments = gpu.real(1 / L), sums, shift, before, m, v, *factors
        *_, theta, m, v = gpu.run(gpu.device.columns, "adamw_b_pre", n, d, *arguments)
        assert_same(m, optimiser.m)
        assert_same(v, optimiser.v)
        moved = abs(expected - factors[-1] * before)
        assert (abs(theta - expected) <= 8 * gpu.eps * (abs(before) + moved)).all()


class OfRows:
    """The arguments of adamw_rows, by name, for random rows; None where a launch leaves one out."""

    ARRAYS = ("W", "m", "v", "low", "G", "held", "a", "m_a", "v_a", "b", "mean", "aV", "shift")

    def __init__(self, gpu, M, d, blocks=1024):
        gpu.of_rows(d)
        self.gpu, self.M, self.d, self.L, self.blocks = gpu, M, d, 100, min(M, blocks)
        self.W, self.a, self.held = sae.unit_rows(gpu.normal(M, d)), gpu.normal(M), gpu.rng.random(M) < 0.3
        self.m, self.v = np.zeros_like(self.W), np.zeros_like(self.W)
        self.low = gpu.codes(M, d) if gpu.device.copies else self.W  # as the backend has it: a copy, or W itself
        self.G, self.mean = gpu.normal(M, d), gpu.normal(M)
        self.G[::5] = 0  # dead neurons
        self.m_a = self.v_a = self.b = self.shift = None
        self.aV, self.share, self.more = gpu.codes(M, d), 1 / self.L, 0

    def run(self, updates=0, updates_a=0):
        """Launch it as a step does, and keep what it makes of the arrays."""
        gpu = self.gpu
        arrays = [getattr(self, name) for name in self.ARRAYS]
        _, _, rate, root, *_ = gpu.factors(updates_a)
        numbers = np.int32(self.more), gpu.real(1 / self.L), gpu.real(self.share), *gpu.factors(updates), rate, root
        block = (gpu.device.row_block,)
        launch = "adamw_rows", self.blocks, block, np.int32(self.M), np.int32(self.d)
        there = [name for name in self.ARRAYS if getattr(self, name) is not None]
        for name, array in zip(there, gpu.run(gpu.device.launch, *launch, *arrays, *numbers), strict=True):
            setattr(self, name, array)


@of_weights
def test_adamw_rows_is_the_reference_update_at_unit_norm_and_a_held_row_does_not_turn(gpu, M, d):
    case = OfRows(gpu, M, d)
    optimiser, held, a = AdamW.like(case.W), case.held, case.a
    for t in range(3):
        case.G = gpu.normal(M, d)
        case.G[::5] = 0
        before, low = case.W, case.low
        case.run(t)
        moved = optimiser.update(before, (gpu.real(1 / case.L) * a)[:, None] * case.G, CONFIG.lr, CONFIG)
        assert_same(case.m, optimiser.m)
        assert_same(case.v, optimiser.v)
        unit = sae.unit_rows(moved)
        assert (abs(case.W - unit) <= 16 * gpu.eps * (abs(before) + abs(moved) + abs(unit)))[~held].all()
        assert_same(case.W[held], before[held])
        assert_same(case.low[~held], gpu.code(case.W[~held]))
        assert_same(case.low[held], low[held])
        assert_same(case.a, a)
        assert_same(case.aV, gpu.code(a[:, None] * case.W))
        case.low = case.low if gpu.device.copies else case.W


@of_weights
@pytest.mark.parametrize("with_b", [False, True])
def test_adamw_rows_moves_a_by_the_gradient_that_is_in_the_rows(gpu, M, d, with_b):
    case = OfRows(gpu, M, d)
    case.m_a, case.v_a = np.zeros_like(case.a), np.zeros_like(case.a)
    case.b = gpu.normal(M) if with_b else None
    before, W = case.a, case.W
    terms = W.astype(float) * case.G / case.L
    offset = 0.5 * case.b * case.mean if with_b else np.zeros(M)
    da = terms.sum(axis=1) + offset
    case.run(updates=4)
    rounding = (d + 8) * gpu.eps * (abs(terms).sum(axis=1) + abs(offset))
    toward1, toward2, rate, root, eps, keep = map(float, gpu.factors())
    assert (abs(case.m_a - toward1 * da) <= toward1 * rounding).all()
    assert (abs(case.v_a - toward2 * da**2) <= toward2 * rounding * (2 * abs(da) + rounding) + 1e-30).all()
    step = rate * case.m_a / (np.sqrt(root * case.v_a.astype(float)) + eps)  # of the moments that it has
    assert (abs(case.a - (keep * before - step)) <= 16 * gpu.eps * (abs(before) + abs(step))).all()
    assert_same(case.aV, gpu.code(case.a[:, None] * case.W))  # a of after, and rows of after: held ones of before
    assert_same(case.W[case.held], W[case.held])


@of_weights
@pytest.mark.parametrize("blocks", [1, 3, 1024])
def test_adamw_rows_adds_up_what_shifts_b_pre_in_parts(gpu, M, d, blocks):
    case = OfRows(gpu, M, d, blocks)
    case.W, case.a, case.mean = gpu.whole(M, d), gpu.whole(M) // 30, gpu.whole(M) // 30  # so that sums are exact
    case.low = case.low if gpu.device.copies else case.W
    case.shift, case.aV = gpu.room(case.blocks, d), None
    c = (case.a * case.mean)[:, None] * case.W
    parts = np.stack([c[i :: case.blocks].sum(axis=0) for i in range(case.blocks)])
    W = case.W
    case.run()
    assert_same(case.shift + 0, parts + 0)
    case.W, case.more, case.m, case.v = W, 1, np.zeros_like(W), np.zeros_like(W)
    case.low = case.low if gpu.device.copies else case.W
    case.run()
    assert_same(case.shift + 0, 2 * parts + 0)


@pytest.mark.parametrize("blocks", [1, 7])
def test_how_many_blocks_share_the_rows_changes_no_row(gpu, blocks):
    every, few = OfRows(gpu, 33, 264), OfRows(gpu, 33, 264, blocks)
    for name in ("W", "G", "a", "held", "mean"):
        setattr(few, name, getattr(every, name))
    few.low = few.low if gpu.device.copies else few.W
    for case in (every, few):
        case.m_a, case.v_a = np.zeros_like(case.a), np.zeros_like(case.a)
        case.run()
    for name in ("W", "m", "v", "a", "m_a", "v_a", "aV"):
        assert_same(getattr(few, name), getattr(every, name))


def test_a_thread_has_as_much_of_a_row_as_its_block_needs():
    row_shape = backends.cupy_device.row_shape
    assert [row_shape(d, 4) for d in (8, 1536, 2048, 2056, 4096, 16384)] == [
        (1, 32), (1, 384), (1, 512), (2, 288), (2, 512), (8, 512)]  # fmt: skip
    for d in range(8, 20_000, 8):
        for itemsize in (4, 8):
            per, threads = row_shape(d, itemsize)
            assert per * threads * 16 >= d * itemsize > (per - 1) * threads * 16
            assert threads <= 512
            assert threads % 32 == 0


# ---------------------------------------------------------------------------------------------------------- agreement


def agreeing(gpu, W, tau, at_once):
    """Which rows the backend holds, with room for the cosines of that many rows at once."""

    def hold(W, room, held):
        config, work = SimpleNamespace(hold=tau), SimpleNamespace(room=room)
        state = SimpleNamespace(theta={"W": W}, config=config, work=work, held=held, device=gpu.device)
        gpu.backend.hold(state)

    ld = backends.cupy_device.aligned(len(W))
    return gpu.run(hold, W, gpu.room(at_once * ld), gpu.room(len(W), dtype=np.bool_))[2]


@pytest.mark.parametrize(("M", "at_once"), [(1, 1), (31, 1), (33, 8), (70, 100)])
def test_agree_finds_the_rows_that_the_reference_finds(gpu, M, at_once):
    W = sae.unit_rows(gpu.normal(M, 5))
    expected = recipe.agreeing(W, 0.8)
    assert_same(agreeing(gpu, W, 0.8, at_once), expected)
    assert M < 31 or 0 < expected.sum() < M


def test_a_row_agrees_from_exactly_tau_on(gpu):
    W = np.array([[1, 0], [0.6, 0.8], [0, -1]], gpu.real)
    assert agreeing(gpu, W, float(gpu.real(0.6)), 3).tolist() == [True, True, False]
    assert agreeing(gpu, W, float(np.nextafter(gpu.real(0.6), gpu.real(1))), 3).tolist() == [False] * 3


def test_the_only_two_of_many_rows_that_agree_are_found(gpu):
    W = np.eye(300, dtype=gpu.real)
    W[299] = W[3]
    for at_once in (70, 300):
        assert np.flatnonzero(agreeing(gpu, W, 0.99, at_once)).tolist() == [3, 299]


# ---------------------------------------------------------------------------------------------------------------- NaN


def test_a_nan_gradient_reaches_its_parameter_or_row_and_no_other(gpu):
    sums, zeros = gpu.normal(304), np.zeros(304, gpu.real)
    sums[299] = np.nan
    arguments = gpu.real(1), sums, gpu.normal(5, 304), gpu.normal(304), zeros, zeros.copy(), *gpu.factors()
    for result in gpu.run(gpu.device.columns, "adamw_b_pre", 5, 304, *arguments)[2:]:
        assert np.flatnonzero(np.isnan(result)).tolist() == [299]
    case = OfRows(gpu, 3, 304)
    case.G, case.held = gpu.normal(3, 304), np.array([False, False, True])
    case.G[[0, 2], [4, 299]] = np.nan
    case.m_a, case.v_a, case.shift = np.zeros(3, gpu.real), np.zeros(3, gpu.real), gpu.room(3, 304)
    case.run()
    assert np.isnan(case.W).all(axis=1).tolist() == np.isnan(case.W).any(axis=1).tolist() == [True, False, False]
    assert np.isnan(case.m).sum(axis=1).tolist() == [1, 0, 1]
    assert np.isnan(case.a).tolist() == np.isnan(gpu.wide(case.aV)).all(axis=1).tolist() == [True, False, True]
    assert not np.isnan(case.shift).any()  # by rows of before
    assert not gpu.device.copies or np.isnan(gpu.wide(case.low)).all(axis=1).tolist()[0]


# ------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.usefixtures("backend")
def test_every_kernel_of_this_file_was_launched(request):
    check_all_launched(request, ROWS)
