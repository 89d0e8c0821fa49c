"""The table of twins in backends/base.py names what exists, all that exists, and every kernel tells its formula."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

import pytest
from engines import CUDA, CUDA_KERNELS

import refgba
from refgba import adam
from refgba.backends.base import TWINS, adamw_factors
from refgba.config import GBAConfig

REFGBA = Path(refgba.__file__).parent
NUMBA = "backends/numba_kernels.py"


def definitions(path):
    """The functions and classes of a source file, methods as Class.method; it is not imported, so needs no library."""

    def inside(body, prefix=""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{node.name}.")

    return dict(inside(ast.parse(path.read_text(encoding="utf-8")).body))


def kernels(path):
    """The functions of a source file that numba compiles."""
    return {
        name: node
        for name, node in definitions(path).items()
        if any(ast.unparse(decorator).startswith("njit(") for decorator in node.decorator_list)
    }


PYTHON = {("", twin.reference) for twin in TWINS} | {
    ("backends/", name) for twin in TWINS for name in (*twin.numba, *twin.cupy)
}


@pytest.mark.parametrize(("folder", "name"), sorted(PYTHON))
def test_every_function_in_the_table_exists(folder, name):
    module, _, function = name.partition(".")
    assert function in definitions(REFGBA / f"{folder}{module}.py")


def test_every_cuda_kernel_is_in_the_table_and_the_table_has_no_other():
    assert {kernel for twin in TWINS for kernel in twin.cuda} == set(CUDA_KERNELS)
    assert all(twin.cupy for twin in TWINS if twin.cuda)


def test_every_numba_kernel_is_in_the_table_but_the_two_sums_that_others_use():
    named = {name for twin in TWINS for name in twin.numba}
    compiled = {f"numba_kernels.{name}" for name in kernels(REFGBA / NUMBA)}
    assert compiled - named == {"numba_kernels.dot", "numba_kernels.add"}


def test_every_line_of_algorithms_1_and_2_is_in_the_table_in_order():
    lines = [twin.line for twin in TWINS]
    assert list(dict.fromkeys(lines)) == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "2", "ours"]


def test_every_numba_kernel_tells_its_formula():
    for name, node in kernels(REFGBA / NUMBA).items():
        assert re.search("<-|·", ast.get_docstring(node) or ""), name


def test_every_cuda_kernel_tells_its_formula():
    comment, head = r"(?:^//.*\n)*^//.* <- .*\n(?:^//.*\n)*", r'extern "C" __global__ void\s+(?:\S+\s+)?(\w+)\('
    assert re.findall(comment + head, source(), re.MULTILINE) == CUDA_KERNELS


def test_cuda_source_is_ascii_since_cupy_may_write_it_in_any_encoding():
    assert source().isascii()


def source():
    return CUDA.read_text(encoding="utf-8")


def test_kernels_move_a_parameter_as_the_reference_does():
    config = GBAConfig(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.99, adam_eps=1e-4)
    theta, m, v, g = 0.3, -0.02, 0.001, 0.7
    for t in (1, 2, 50):
        by = adamw_factors(t, 0.007, config)
        new_m, new_v = adam.moment(m, g, config.beta1), adam.moment(v, g * g, config.beta2)
        assert m + by.toward1 * (g - m) == new_m
        assert v + by.toward2 * (g * g - v) == new_v
        moved = by.keep * theta - by.rate * new_m / ((by.root * new_v) ** 0.5 + by.eps)
        assert moved == pytest.approx(float(adam.moved(theta, new_m, new_v, adam.factors(t, 0.007, config))), rel=1e-14)


BACKENDS = sorted(chain(REFGBA.glob("backends/*.py"), REFGBA.glob("backends/baselines/*.py")))
CORRECTION = re.compile(r"\*\*\s*t\b|1 - (config\.)?beta[12]\b")


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: path.stem)
def test_no_backend_has_a_bias_correction_of_its_own(path):
    code = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text(encoding="utf-8"))
    assert not CORRECTION.search(code)
