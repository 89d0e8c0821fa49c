"""Every kernel of backends/cupy_kernels.cu, run on the CPU, computes its formula, with threads in any order.

That the file compiles for every architecture is test_kernels_compile.py's.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import emulated_cupy
import numpy as np
import pytest
from engines import CUDA_KERNELS, engine

from refgba import backends, gba, recipe, sae
from refgba.adam import AdamW
from refgba.bias import Buffer
from refgba.config import GBAConfig
from refgba.sae import Params

VARIANTS = ("float64", "float32", "bfloat16")
CONFIG = GBAConfig(lr=0.01, weight_decay=0.1)
launched: set[tuple[str, str]] = set()  # (variant, kernel), by any test below

of_codes = pytest.mark.parametrize(("L", "M"), [(1, 70), (31, 33), (33, 31), (33, 70), (100, 1)])
of_rows = pytest.mark.parametrize(("L", "d"), [(1, 300), (31, 5), (33, 257), (100, 1)])
of_weights = pytest.mark.parametrize(("M", "d"), [(1, 300), (31, 1), (33, 257), (70, 5)])
some_all_or_none = pytest.mark.parametrize("gates", ["some", "all", "none"])


# -------------------------------------------------------------------------------------------------------- the kernels


@pytest.fixture
def backend():
    with engine("cupy emulated") as backend:
        yield backend


@pytest.fixture(params=VARIANTS)
def gpu(backend, request):
    return Emulated(backend, request.param)


class Emulated:
    """The kernels of a variant, and its arithmetic."""

    def __init__(self, backend, variant):
        self.backend, self.variant, self.device = backend, variant, backends.cupy_device.Device(variant)
        self.real, self.eps = self.device.real, np.finfo(self.device.real).eps
        self.rng = np.random.default_rng(0)

    def run(self, launch, *arguments):
        """The arrays among the arguments after a launch, the same bits in every order of the threads.

        One that is passed twice is one on the device too.
        """
        cp, results = self.backend.cp, []
        for order in cp.ORDERS:
            cp.emulation.order = order
            there = {id(a): cp.asarray(a) for a in arguments if isinstance(a, np.ndarray)}
            launch(*(there.get(id(a), a) for a in arguments))
            results.append([there[id(a)].get() for a in arguments if id(a) in there])
        for others in results[1:]:
            for first, other in zip(results[0], others, strict=True):
                assert_same(first, other)
        launched.update((self.variant, name) for name in cp.emulation.launches)
        return results[0]

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(self.real)

    def whole(self, *shape):
        """Small enough that sums of their products are exact in any order, some too long for bfloat16."""
        return self.rng.integers(-90, 91, shape).astype(self.real)

    def room(self, *shape, dtype=None):
        """Garbage to be written over: NaN, or -1."""
        dtype = np.dtype(dtype or self.real)
        return np.full((*shape, dtype.itemsize), 0xFF, np.uint8).view(dtype).reshape(shape)

    def codes(self, *shape):
        return self.room(*shape, dtype=self.device.code)

    def code(self, x):
        """x as matrix products read it: one rounding."""
        x = np.asarray(x, self.real)
        return emulated_cupy.to_bf16(x) if self.device.copies else x

    def wide(self, code):
        return emulated_cupy.from_bf16(code) if self.device.copies else code

    def gated(self, s, on):
        """The codes of s: bits that are 0 are a closed gate, so that an open one keeps at least a sign."""
        code = self.code(s)
        return np.where(on, np.where(self.wide(code) == 0, self.code(-0.0), code), self.code(0.0))

    def assert_sum(self, result, terms, rounded=0.0):
        """The result is the sum of the terms but for their rounding, and one by the share `rounded` at the end."""
        value, size = terms.sum(axis=0, dtype=float), abs(terms).sum(axis=0, dtype=float)
        error = (len(terms) + 4) * self.eps * size
        assert (abs(result - value) <= error + rounded * (abs(value) + error)).all()

    def factors(self, updates=0):
        """What a step passes to AdamW's next update."""
        state = SimpleNamespace(config=CONFIG, device=self.device, updates=Counter({"theta": updates}))
        return self.backend.factors(state, "theta", CONFIG.lr)


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


def assert_same(result, expected):
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(bits(result), bits(expected))


def whole_array(n):
    return "adamw", -(-n // 256), (256,), np.int32(n)


def test_adamw_is_launched_here_as_in_a_step(gpu, monkeypatch):
    launches = set()
    monkeypatch.setattr(type(gpu.device), "launch", lambda _, *arguments: launches.add(arguments[:4]))
    config = GBAConfig(width=70, groups=1, batch=2, dtype=gpu.variant)
    state = gpu.backend.init(gba.random_params(config, 257), config)
    gpu.backend.step(state, gpu.backend.put(state, np.ones((2, 257), gpu.real)))
    assert {arguments for arguments in launches if arguments[0] == "adamw"} == {whole_array(70), whole_array(257)}


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


def gate(gpu, z, b, activation, counts=None, peaks=None):
    """(codes, counts, peaks, active)"""
    L, M = z.shape
    counts = np.zeros(M, np.int64) if counts is None else counts
    peaks = np.zeros(M, gpu.real) if peaks is None else peaks
    active = gpu.room(M, dtype=np.int32)
    relu = np.int32(activation == "relu")
    return gpu.run(gpu.device.columns, "gate", L, M, relu, z, b, gpu.codes(L, M), counts, peaks, active)[2:]


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
        codes, counts, peaks, active = gate(gpu, z, b, activation, counts, peaks)
        assert_same(codes, gpu.gated(s, on))
        assert active.tolist() == on.sum(axis=0).tolist()
        assert gates == "some" or (on == (gates == "all")).all()
    assert counts.tolist() == buffer.counts.tolist()
    assert peaks.tolist() == buffer.peaks.tolist()


def test_an_open_gate_that_passes_zero_stays_open(gpu):
    z = np.array([[0, -0.0, 2.0**-140, -(2.0**-140), 1, -1]], gpu.real)  # 2^-140 is 0 in bfloat16
    b = np.full(6, 2, gpu.real)
    codes, counts, peaks, active = gate(gpu, z, b, "jumprelu")
    assert (bits(codes) != 0).all()
    assert gpu.wide(codes)[0, [0, 1, 4, 5]].tolist() == [0, 0, 1, -1]
    assert_same(codes[:, :2], gpu.code([[-0.0, -0.0]]))
    assert (counts.tolist(), active.tolist(), peaks.tolist()) == ([1] * 6, [1] * 6, [2, 2, 2, 2, 3, 1])
    vr, a = gpu.normal(1, 6), gpu.normal(6)
    g, da, c = gate_gradient(gpu, vr, codes, a)
    assert_same(g, gpu.code(vr))  # an open gate passes its gradient
    assert_same(c, gpu.code(a * vr[0]))
    assert_same(da + 0, gpu.wide(codes)[0] * vr[0] + 0)  # + 0: of either sign


def test_what_is_barely_above_zero_is_open(gpu):
    tiny = 2.0**-140  # in float32 subnormal, in bfloat16 0
    z, b = np.array([[tiny, 0, -tiny, 0]], gpu.real), np.array([0, tiny, 0, 0], gpu.real)
    for activation in ("jumprelu", "relu"):
        codes, counts, peaks, active = gate(gpu, z, b, activation)
        assert (bits(codes) != 0).tolist() == [[True, True, False, False]]
        assert (counts.tolist(), active.tolist()) == ([1, 1, 0, 0], [1, 1, 0, 0])
        assert peaks.tolist() == [tiny, tiny, 0, 0]


def gate_gradient(gpu, vr, s, a):
    """(g, da, c)"""
    L, M = vr.shape
    room = gpu.codes(L, M), gpu.room(M), gpu.codes(M)
    return gpu.run(gpu.device.columns, "gate_gradient", L, M, vr, s, a, *room)[3:]


@some_all_or_none
@of_codes
def test_gate_gradient_passes_open_gates_and_takes_means(gpu, L, M, gates):
    on = gpu.rng.random((L, M)) < {"some": 0.5, "all": 1, "none": 0}[gates]
    s = gpu.gated(gpu.normal(L, M) * (gpu.rng.random((L, M)) < 0.9), on)  # one in ten passes 0
    vr, a = gpu.normal(L, M), gpu.normal(M)
    g, da, c = gate_gradient(gpu, vr, s, a)
    passed = np.where(on, vr, gpu.real(0))
    assert_same(g, gpu.code(passed))
    gpu.assert_sum(da, gpu.wide(s) * passed / L)
    gpu.assert_sum(gpu.wide(c), a * passed / L, rounded=2.0**-8 if gpu.device.copies else 0.0)


@of_codes
def test_gate_gradient_of_whole_numbers_is_exact(gpu, L, M):
    on = gpu.rng.random((L, M)) < 0.5
    vr, a, s = gpu.whole(L, M), gpu.whole(M), gpu.gated(gpu.whole(L, M), on)
    _, da, c = gate_gradient(gpu, vr, s, a)
    assert_same(da + 0, (gpu.wide(s) * vr).sum(axis=0) / gpu.real(L) + 0)
    assert_same(gpu.wide(c) + 0, gpu.wide(gpu.code(a * (vr * on).sum(axis=0) / gpu.real(L))) + 0)


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


# --------------------------------------------------------------------------------------------------------- row by row


@of_weights
def test_scale_rows_is_a_times_v(gpu, M, d):
    a, V = gpu.normal(M), gpu.normal(M, d)
    *_, aV = gpu.run(gpu.device.rows, "scale_rows", M, d, a, V, gpu.codes(M, d))
    assert_same(aV, gpu.code(a[:, None] * V))


# -------------------------------------------------------------------------------------------------------- the updates


@pytest.mark.parametrize("n", [1, 31, 256, 257, 600])
def test_adamw_is_the_reference_update(gpu, n):
    theta, optimiser = gpu.normal(n), AdamW.like(np.zeros(n, gpu.real))
    m, v = optimiser.m.copy(), optimiser.v.copy()
    for t in range(3):
        g = gpu.normal(n) * gpu.real(10.0) ** gpu.rng.integers(-12, 3, n).astype(gpu.real)
        g[::7] = 0
        before, factors = theta, gpu.factors(t)
        expected = optimiser.update(before, g, CONFIG.lr, CONFIG)
        theta, m, v, _ = gpu.run(gpu.device.launch, *whole_array(n), before, m, v, g, *factors)
        assert_same(m, optimiser.m)
        assert_same(v, optimiser.v)
        moved = abs(expected - factors[-1] * before)
        assert (abs(theta - expected) <= 8 * gpu.eps * (abs(before) + moved)).all()


def update_rows(gpu, W, m, v, g, a, L, held, low, updates=0):
    """(W, m, v, low)"""
    arguments = W, m, v, g, a, gpu.real(1 / L), held, low, *gpu.factors(updates)
    results = gpu.run(gpu.device.rows, "adamw_rows", *W.shape, *arguments)
    return *results[:3], results[-1]


@of_weights
def test_adamw_rows_is_the_reference_update_at_unit_norm_and_a_held_row_does_not_turn(gpu, M, d):
    L = 100
    W, a, held = sae.unit_rows(gpu.normal(M, d)), gpu.normal(M), gpu.rng.random(M) < 0.3
    low = gpu.codes(M, d) if gpu.device.copies else W  # as the backend has it: a copy, or W itself
    optimiser = AdamW.like(W)
    m, v = optimiser.m.copy(), optimiser.v.copy()
    for t in range(3):
        g = gpu.normal(M, d)
        g[::5] = 0  # dead neurons
        before, low_before = W, low
        W, m, v, low = update_rows(gpu, before, m, v, g, a, L, held, low, t)
        moved = optimiser.update(before, (gpu.real(1 / L) * a)[:, None] * g, CONFIG.lr, CONFIG)
        assert_same(m, optimiser.m)
        assert_same(v, optimiser.v)
        unit = sae.unit_rows(moved)
        assert (abs(W - unit) <= 16 * gpu.eps * (abs(before) + abs(moved) + abs(unit)))[~held].all()
        assert_same(W[held], before[held])
        assert_same(low[~held], gpu.code(W[~held]))
        assert_same(low[held], low_before[held])
        low = low if gpu.device.copies else W


# ---------------------------------------------------------------------------------------------------------- agreement


def agreeing(gpu, W, tau, at_once):
    """Which rows the backend holds, with room for the cosines of that many rows at once."""

    def hold(W, room, held):
        config, work = SimpleNamespace(hold=tau), SimpleNamespace(room=room)
        state = SimpleNamespace(theta={"W": W}, config=config, work=work, held=held, device=gpu.device)
        gpu.backend.hold(state)

    return gpu.run(hold, W, gpu.room(at_once * len(W)), gpu.room(len(W), dtype=np.bool_))[2]


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


def test_nan_stays_nan_and_where_it_is(gpu):
    def where(a):
        return np.argwhere(np.isnan(a)).tolist()

    x, one = gpu.normal(33, 5), gpu.normal(5)
    x[32, 3] = np.nan
    assert where(gpu.wide(gpu.run(gpu.device.each, "narrow", x.size, x, gpu.codes(33, 5))[-1])) == [[32, 3]]
    centred = gpu.run(gpu.device.each, "center", x.size, np.int32(5), x, one, gpu.codes(33, 5))[-1]
    scaled = gpu.run(gpu.device.rows, "scale_rows", 33, 5, gpu.normal(33), x, gpu.codes(33, 5))[-1]
    assert where(gpu.wide(centred)) == where(gpu.wide(scaled)) == [[32, 3]]
    for r, sums, squares in (residual(gpu, x, one, gpu.normal(33, 5)), residual(gpu, gpu.normal(33, 5), one, x)):
        assert (where(gpu.wide(r)), where(sums), where(squares)) == ([[32, 3]], [[3]], [[3]])
    g, da, c = gate_gradient(gpu, x, gpu.code(np.ones((33, 5))), one)
    assert (where(gpu.wide(g)), where(da), where(gpu.wide(c))) == ([[32, 3]], [[3]], [[3]])
    _, da, _ = gate_gradient(gpu, gpu.normal(33, 5), gpu.code(x), one)
    assert where(da) == [[3]]


def test_nan_opens_no_gate(gpu):
    z = np.ones((2, 3), gpu.real)
    z[1, 1] = np.nan
    codes, counts, peaks, active = gate(gpu, z, np.zeros(3, gpu.real), "jumprelu")
    assert_same(codes, gpu.code([[1, 1, 1], [1, 0, 1]]))
    assert counts.tolist() == active.tolist() == [2, 1, 2]
    assert peaks[[0, 2]].tolist() == [1, 1]


def test_a_nan_gradient_reaches_its_parameter_or_row_and_no_other(gpu):
    g = gpu.normal(300)
    g[299] = np.nan
    zeros = np.zeros_like(g)
    arrays = gpu.normal(300), zeros, zeros.copy(), g
    for result in gpu.run(gpu.device.launch, *whole_array(300), *arrays, *gpu.factors()):
        assert np.flatnonzero(np.isnan(result)).tolist() == [299]
    W, zeros, held = sae.unit_rows(gpu.normal(3, 300)), np.zeros((3, 300), gpu.real), np.array([False, False, True])
    g = np.stack([g[::-1], zeros[0], g])
    W, m, _, low = update_rows(gpu, W, zeros, zeros.copy(), g, gpu.normal(3), 9, held, gpu.code(W.copy()))
    assert np.isnan(W).all(axis=1).tolist() == np.isnan(W).any(axis=1).tolist() == [True, False, False]
    assert np.isnan(m).sum(axis=1).tolist() == [1, 0, 1]
    assert not gpu.device.copies or np.isnan(gpu.wide(low)).all(axis=1).tolist() == [True, False, False]


# ------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.usefixtures("backend")
def test_every_kernel_was_launched_by_this_file(request):
    here = {item.originalname for item in request.session.items if item.path == request.path}
    if {name for name in globals() if name.startswith("test_")} - here:
        pytest.skip("only some tests of this file were asked for")
    assert launched == {(variant, name) for variant in VARIANTS for name in CUDA_KERNELS}
