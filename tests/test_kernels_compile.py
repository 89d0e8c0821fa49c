"""backends/cupy_kernels.cu compiles for every architecture, with the options that CuPy adds and without a warning."""

from __future__ import annotations

import re
from contextlib import suppress
from unittest.mock import MagicMock

import pytest
from engines import CUDA_KERNELS, in_place_of_cupy

from refgba import backends


@pytest.fixture(scope="module")
def nvrtc():
    """NVRTC through CuPy, which needs no GPU for it."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:  # a RuntimeError of cuda-pathfinder's since CuPy 14
        pytest.skip(f"NVRTC is not installed ({' '.join(str(error).split())})")
    return cupy.cuda.nvrtc


@pytest.mark.parametrize("architecture", [70, 80, 90, 100])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_it_compiles_without_a_warning(nvrtc, dtype, architecture):
    if architecture not in nvrtc.getSupportedArchs():
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.getVersion()))} does not compile for sm_{architecture}")
    cp = MagicMock()
    cp.cuda.Device.return_value.compute_capability = "100"
    with in_place_of_cupy(cp):
        backends.cupy_device.Device(dtype, 1536)
    module = cp.RawModule.call_args.kwargs
    as_cupy_adds = (f"-arch=sm_{architecture}", "-ftz=true", "--device-as-default-execution-space")
    program = nvrtc.createProgram(module["code"], "cupy_kernels.cu", (), ())
    try:
        with suppress(nvrtc.NVRTCError):  # the log says what it was
            nvrtc.compileProgram(program, module["options"] + as_cupy_adds)
        log = nvrtc.getProgramLog(program).splitlines()
        assert [line for line in log if "Architectures prior to" not in line] == []  # those are deprecated
        entries = re.findall(rb"\.entry (\w+)\(", nvrtc.getPTX(program))
        assert {entry.decode() for entry in entries} == set(CUDA_KERNELS)
    finally:
        nvrtc.destroyProgram(program)
