"""What is measured: a problem's size, its parameters and rows, and the machine they are measured on.

NumPy, and all that imports it, is imported inside functions: step.py sets the numbers of threads first.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

DTYPES = ("float64", "float32", "tf32", "bfloat16")
LIBRARIES = ("numpy", "scipy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch", "dictionary-learning")
BATCHES = 4  # batches that steps take in turn
SOME = 4096  # neurons by which the share of active ones is told
DRAWN = 2**16  # different neurons at most: to draw a million takes a minute, and a step takes as long with copies
LR = 1e-9  # so low that nothing moves, and as many neurons stay active

Result = dict[str, Any]  # what a program prints as JSON


@dataclass(frozen=True)
class Setting:
    """What is measured, and how: the options of step.py, by whose names `only` chooses what takes part."""

    d: int
    width: int
    batch: int
    density: float
    dtype: str
    threads: int
    rounds: int
    steps: int
    untied: bool
    only: tuple[str, ...]
    peers: bool
    adaptation: bool
    sustained: float = 0.0  # seconds without a rest, besides the samples

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes to measure."""
        return DTYPES if self.dtype == "all" else (self.dtype,)

    def label(self, name: str, dtype: str) -> str:
        """The name in results: with the dtype where several are measured."""
        return f"{name} {dtype}" if self.dtype == "all" else name

    def wants(self, name: str) -> bool:
        """Whether that name takes part."""
        return not self.only or any(f"{name} ".startswith(f"{wanted} ") for wanted in self.only)

    def config(self, dtype: str) -> Any:
        """Settings under which a step and an adaptation do all of their work, and nothing moves."""
        from refgba import recipe

        made = recipe.default if self.adaptation else recipe.paper
        return made(
            self.d, width=self.width, groups=min(10, self.width), batch=self.batch, steps=self.steps, dtype=dtype,
            untied=self.untied, lr=LR, gamma_minus=0.0, gamma_plus=0.0, a_init=1.2 * self.d / self.width,
        )  # fmt: skip


class Data:
    """Random parameters and BATCHES batches of unit rows, in float64, and the share of neurons that are active.

    Of more than DRAWN neurons the rest are copies.
    """

    def __init__(self, s: Setting) -> None:
        import numpy as np
        from scipy.special import betaincinv

        from refgba.gba import random_params
        from refgba.sae import unit_rows

        drawn = random_params(replace(s.config("float64"), width=min(s.width, DRAWN), groups=1), s.d)
        wide = {name: np.resize(A, (s.width, *A.shape[1:])) for name, A in drawn.arrays().items() if name != "b_pre"}
        self.params = replace(drawn, **wide)
        half = (s.d - 1) / 2  # (w · x + 1) / 2 of random directions is Beta(half, half), so nearly w · x ~ N(0, 1 / d)
        self.params.b[:] = 1 - 2 * betaincinv(half, half, 1 - s.density)
        rng = np.random.default_rng(0)
        self.x = [unit_rows(rng.standard_normal((s.batch, s.d))) for _ in range(BATCHES)]
        some = slice(SOME)  # of a million neurons all pre-activations would be 34 GB
        self.active = float(np.mean(self.x[0] @ self.params.W[some].T + self.params.b[some] > 0))


def device(backend: str) -> str:
    """cuda or cpu: where a backend computes."""
    return "cuda" if backend == "cupy" else "cpu"


def host(dtype: str) -> str:
    """The dtype of the host arrays that a run in `dtype` starts from."""
    from refgba.config import GBAConfig

    return GBAConfig(dtype=cast(Any, dtype)).master


def clock() -> str:
    """The clock and the power of the GPU at this moment, as nvidia-smi has them."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().replace("\n", "; ")


def environment() -> dict[str, Any]:
    """The machine: its processor and GPU by name, its cores, and the versions of the libraries that matter."""
    cpu, gpu = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().replace("\n", ", ")
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    versions = {"python": platform.python_version()} | {
        name: installed[name] for name in LIBRARIES if name in installed
    }
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu or None, "versions": versions}
