"""The kernels of backends/cupy_kernels.cu on the CPU, for tests/test_kernels*.py: variants, arithmetic, launches.

Every launch runs with the threads in several orders, and has to give the same bits in each.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import emulated_cupy
import numpy as np
import pytest
from engines import engine

from refgba import backends
from refgba.config import GBAConfig

VARIANTS = ("float64", "float32", "bfloat16")
CONFIG = GBAConfig(lr=0.01, weight_decay=0.1)
launched: set[tuple[str, str]] = set()  # (variant, kernel), by any test of this process


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
        self.backend, self.variant = backend, variant
        self.of_rows(8)
        self.real, self.eps = self.device.real, np.finfo(self.device.real).eps
        self.rng = np.random.default_rng(0)

    def of_rows(self, d):
        """Take the kernels of rows of d numbers."""
        self.device = backends.cupy_device.Device(self.variant, d)

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
        """The codes of s, 0 where a gate is closed."""
        return np.where(on, self.code(s), self.code(0.0))

    def assert_sum(self, result, terms, rounded=0.0):
        """The result is the sum of the terms but for their rounding, and one by the share `rounded` at the end."""
        value, size = terms.sum(axis=0, dtype=float), abs(terms).sum(axis=0, dtype=float)
        error = (len(terms) + 4) * self.eps * size
        assert (abs(result - value) <= error + rounded * (abs(value) + error)).all()

    def factors(self, updates=0):
        """What a step passes to AdamW's next update."""
        state = SimpleNamespace(config=CONFIG, updates=Counter({"theta": updates}))
        return tuple(map(self.real, self.backend.factors(state, "theta", CONFIG.lr)))

    def spread(self, x, ld):
        """x (L, M) as the device has it, with rows that begin ld numbers apart, and garbage between them."""
        wide = self.room(len(x), ld, dtype=x.dtype)
        wide[:, : x.shape[1]] = x
        return wide


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


def assert_same(result, expected):
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(bits(result), bits(expected))


def check_all_launched(request, kernels):
    """That tests of the file of a request have launched these kernels in every variant; a skip where some did not run.

    The file has only tests that are named in its own text.
    """
    here = {item.originalname for item in request.session.items if item.path == request.path}
    if {name for name in vars(request.module) if name.startswith("test_")} - here:
        pytest.skip("only some tests of this file were asked for")
    assert {(variant, name) for variant in VARIANTS for name in kernels} <= launched
