"""backends/cupy_kernels.cu compiles for every architecture, with the options that CuPy adds and without a warning.

And what the compiler makes of it has not got worse: benchmarks/results/kernels-static.json has what it was.  A change
that is meant is written there by

    python benchmarks/kernels.py --static --json | tail -1 > benchmarks/results/kernels-static.json
"""

from __future__ import annotations

import importlib
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from engines import CUDA_KERNELS

from refgba import backends

BENCHMARKS = Path(backends.__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def nvrtc():
    """NVRTC through CuPy, which needs no GPU for it."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:  # a RuntimeError of cuda-pathfinder's since CuPy 14
        pytest.skip(f"NVRTC is not installed ({' '.join(str(error).split())})")
    return cupy.cuda.nvrtc


def of_baselines():
    """The source of the baselines' own kernels, and their names."""
    module = importlib.import_module("refgba.backends.baselines.cupy")
    return module.SOURCE.read_text(encoding="utf-8"), module.OWN


@pytest.mark.parametrize("architecture", [70, 80, 90, 100])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_it_compiles_without_a_warning(nvrtc, dtype, architecture):
    if architecture not in nvrtc.getSupportedArchs():
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.getVersion()))} does not compile for sm_{architecture}")
    code, options = importlib.import_module("refgba.backends.cupy_device").compilation(dtype, 1536)
    source, own = of_baselines()
    as_cupy_adds = (f"-arch=sm_{architecture}", "-ftz=true", "--device-as-default-execution-space")
    program = nvrtc.createProgram(code + source, "cupy_kernels.cu", (), ())
    try:
        with suppress(nvrtc.NVRTCError):  # the log says what it was
            nvrtc.compileProgram(program, options + as_cupy_adds)
        log = nvrtc.getProgramLog(program).splitlines()
        assert [line for line in log if "Architectures prior to" not in line] == []  # those are deprecated
        entries = re.findall(rb"\.entry (\w+)\(", nvrtc.getPTX(program))
        assert {entry.decode() for entry in entries} == {*CUDA_KERNELS, *own}
    finally:
        nvrtc.destroyProgram(program)


@pytest.fixture(scope="module")
def program(nvrtc):
    """benchmarks/kernels_static.py."""
    del nvrtc
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("kernels_static")


@pytest.fixture(scope="module")
def static(program):
    """What the compiler makes of the kernels now, and what was committed."""
    return program.report(), json.loads((BENCHMARKS / "results" / "kernels-static.json").read_text(encoding="utf-8"))


def by_kernel(report):
    """The rows by kernel, dtype, architecture and d."""
    return {(row["kernel"], row["dtype"], row["sm"], row.get("d")): row for row in report["rows"]}


def test_no_kernel_spills_and_none_has_a_stack(static):
    now = by_kernel(static[0])
    assert {name for name, *_ in now} == {*CUDA_KERNELS, *of_baselines()[1]}
    assert [key for key, row in now.items() if row["spilled"] or row["stack"]] == []


def test_every_kernel_leaves_a_multiprocessor_threads_enough(static):
    for (name, dtype, *_), row in by_kernel(static[0]).items():
        lesser = {"center": 1536, "adamw_each": 1536, "adamw_across_rows": 512, "code_gradient": 1024}
        least = lesser.get(name, 2048)
        if name in ("gate", "gate_gradient"):  # more in registers, so that fewer have more under way
            least = {"float64": 512, "float32": 1024, "bfloat16": 1024}[dtype]
        least = (512 if dtype == "float64" else 768) if name in ("adamw_rows", "adamw_free_rows") else least
        assert row["resident"] >= least, (name, dtype, row)


def test_no_kernel_takes_more_registers_or_instructions_than_the_table_says(static):
    now, known = map(by_kernel, static)
    assert now.keys() == known.keys()
    more = 1.0 if static[0]["nvrtc"] == static[1]["nvrtc"] else 1.25  # another compiler has other habits
    for key, row in now.items():
        for what in ("registers", "instructions"):
            assert row[what] <= more * known[key][what], (key, what)


def test_spills_registers_and_instructions_are_those_of_the_compiler(nvrtc, program):
    one = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] += 1; }'
    sums = "".join(f"float s{i} = x[{i} * blockDim.x + threadIdx.x];" for i in range(64))
    many = one.replace("x[threadIdx.x] += 1;", sums + "".join(f"x[{i}] = s{i} * s{63 - i} + s0;" for i in range(64)))
    rows = {}
    for name, code, options in (("one", one, ()), ("many", many, ()), ("few", many, ("-maxrregcount=24",))):
        log, cubin = program.compiled(nvrtc, code, ("-arch=sm_90", *options))
        rows[name] = dict(program.figures(log))["k"] | {"instructions": program.code_sizes(cubin)["k"] // 16}
    assert rows["one"]["instructions"] < 40
    assert rows["many"]["instructions"] > 3 * 64  # a load, an FMA and a store each
    assert rows["one"]["registers"] < 16 < 40 < rows["many"]["registers"]
    assert rows["few"]["registers"] <= 24
    assert [rows[name]["spilled"] > 0 for name in rows] == [False, False, True]


def test_threads_that_are_resident_follow_from_registers_and_blocks(program):
    assert [program.resident(*case) for case in ((32, 1024), (33, 1024), (64, 512), (46, 384), (16, 32))] == [
        2048, 1024, 1024, 1152, 1024]  # fmt: skip
