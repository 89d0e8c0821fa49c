"""Time of one training step: the backends, what users would pick instead (peers.py), and the floors of the hardware.

    python benchmarks/step.py                  one step; also with --dtype all, and with --width several times
    python benchmarks/step.py --adaptation     adapting the biases, as a share of the time to train
    python benchmarks/step.py --memory         peak memory of the first steps

One process measures everything in turns: a round to warm up, then in every round one sample of each candidate: a rest,
a step that is not timed, as in a run there is always one before, then STEPS with one wait at the end.  Reported are
medians.  Rows and weights are random
directions, and one bias for all neurons sets how many of them are active; nothing learns, so that this stays.

The floors, of which `ratio` is a multiple: `encode_ms`, one (L, d) @ (d, M) product, plus `adam_ms`, reading W, m, v
and g and writing W, m and v once; for what runs on a GPU both as measured there.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import click

# NumPy and all that imports it is imported inside functions: `main` sets the threads first.

DTYPES = ("float64", "float32", "tf32", "bfloat16")
LIBRARIES = ("numpy", "scipy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch", "dictionary-learning")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
BATCHES = 4  # used in turn
STEPS = {"cpu": 2, "cuda": 10}  # in a sample
REST = 0.2  # seconds before each sample: OpenBLAS's threads spin for 0.1 s when a product is done, on the others' cores
COPY = 2**26  # numbers copied to measure the bandwidth of a GPU
LR = 1e-9  # nothing may move
PROMISE = 5  # copies of W, besides one L x M array: the most that a step may hold

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how."""

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

    @property
    def dtypes(self) -> tuple[str, ...]:
        return DTYPES if self.dtype == "all" else (self.dtype,)

    def label(self, name: str, dtype: str) -> str:
        return f"{name} {dtype}" if self.dtype == "all" else name

    def wants(self, name: str) -> bool:
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
    """Random parameters and BATCHES batches of unit rows, in float64, and the share of neurons that are active."""

    def __init__(self, s: Setting) -> None:
        import numpy as np
        from scipy.special import betaincinv

        from refgba.gba import random_params
        from refgba.sae import unit_rows

        self.params = random_params(s.config("float64"), s.d)
        half = (s.d - 1) / 2  # (w . x + 1) / 2 of random directions is Beta(half, half): nearly w . x ~ N(0, 1 / d)
        self.params.b[:] = 1 - 2 * betaincinv(half, half, 1 - s.density)
        rng = np.random.default_rng(0)
        self.x = [unit_rows(rng.standard_normal((s.batch, s.d))) for _ in range(BATCHES)]
        self.active = float(np.mean(self.x[0] @ self.params.W.T + self.params.b > 0))


@dataclass
class Candidate:
    """Something to time.  `step(i)` may return before it is done; `wait`, given what it returned, does not."""

    kind: str  # backends, peers or floor
    name: str
    device: str  # cpu or cuda
    dtype: str
    step: Callable[[int], Any]
    wait: Callable[[Any], object] = lambda _: None
    adapt: Callable[[], object] | None = None
    times: list[float] = field(default_factory=list)  # ms
    adapt_times: list[float] = field(default_factory=list)
    last: Any = None  # what the last step returned

    def sample(self, round: int) -> None:
        time.sleep(REST)
        steps = STEPS[self.device]
        self.wait(self.step(round))
        start = time.perf_counter()
        for i in range(round * steps, (round + 1) * steps):
            self.last = self.step(i)
        self.wait(self.last)
        self.times.append(1e3 * (time.perf_counter() - start) / steps)
        if self.adapt:
            start = time.perf_counter()
            self.adapt()
            self.adapt_times.append(1e3 * (time.perf_counter() - start))

    @property
    def ms(self) -> float:
        return statistics.median(self.times[1:])  # the first warmed up


def device(backend: str) -> str:
    return "cuda" if backend == "cupy" else "cpu"


def host(dtype: str) -> str:
    """The dtype of the host arrays that a run in `dtype` starts from."""
    from refgba.config import GBAConfig

    return GBAConfig(dtype=cast(Any, dtype)).master


# ---- candidates ------------------------------------------------------------------------------------------------------


def usable(s: Setting, unavailable: dict[str, str]) -> Iterator[tuple[Any, str, str]]:
    """Every backend with every dtype to measure: (module, name, dtype)."""
    from refgba import backends

    for name, reason in backends.status().items():
        if not s.wants(name):
            continue
        if reason is not None:
            unavailable[name] = reason
            continue
        module = backends.load(name)
        for dtype in s.dtypes:
            if dtype in module.DTYPES:
                yield module, name, dtype
            elif s.dtype != "all":
                unavailable[name] = f"no such dtype: {dtype}"


def backend(s: Setting, data: Data, module: Any, name: str, dtype: str) -> Candidate:
    state = module.init(data.params.astype(host(dtype)), s.config(dtype))
    batches = [module.put(state, x.astype(host(dtype))) for x in data.x]
    wait = import_module("cupy").cuda.Device().synchronize if device(name) == "cuda" else lambda: None
    return Candidate(
        "backends", name, device(name), dtype,
        step=lambda i: module.step(state, batches[i % BATCHES]),
        wait=lambda metrics: float(metrics.loss),
        adapt=(lambda: (module.adapt(state), wait())) if s.adaptation else None,
    )  # fmt: skip


def peers(s: Setting, data: Data, unavailable: dict[str, str]) -> Iterator[Candidate]:
    try:
        library = import_module("peers")
    except ImportError as error:
        missing = "not installed" if error.name == "torch" else f"cannot be imported: {error}"
        unavailable |= {"torch": missing, "dictionary_learning": f"needs torch, {missing}"}
        return
    there, reasons = library.found(s.threads)
    unavailable |= reasons
    for name, (device, dtypes, start) in there.items():
        for dtype in s.dtypes if s.wants(name) else ():
            if dtype in dtypes:
                try:
                    step = start(dtype, data.params, data.x, s.density)
                except Exception as error:  # whatever it is, the others are still measured
                    unavailable[s.label(name, dtype)] = told_briefly(error)
                else:
                    yield Candidate("peers", name, device, dtype, step, partial(library.wait, device))
            elif s.dtype != "all":
                unavailable[name] = f"no such dtype: {dtype}"


def told_briefly(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def cpu_floors(s: Setting, data: Data, dtype: str) -> Iterator[Candidate]:
    import numpy as np

    x, W = data.x[0].astype(host(dtype)), data.params.W.astype(host(dtype))
    z, rate = np.empty((s.batch, s.width), W.dtype), W.dtype.type(1e-3)
    arrays = [np.random.default_rng(0).standard_normal(W.size * (1 + s.untied), W.dtype) for _ in range(4)]
    stream = adam_stream()[0]
    yield Candidate("floor", "encode_ms", "cpu", dtype, lambda _: np.matmul(x, W.T, out=z))
    yield Candidate("floor", "adam_ms", "cpu", dtype, lambda _: stream(*arrays, rate))


def adam_stream() -> tuple[Callable[..., None], str]:
    """One pass over W, m, v and g with next to no arithmetic, and what does it."""

    def blocks(W: Any, m: Any, v: Any, g: Any, rate: Any) -> None:
        for start in range(0, W.size, 2**14):
            here = slice(start, start + 2**14)
            m[here] += rate * g[here]
            v[here] += rate * g[here]
            W[here] -= rate * m[here]

    def threads(W: Any, m: Any, v: Any, g: Any, rate: Any) -> None:
        for i in prange(W.size):
            m[i] += rate * (g[i] - m[i])
            v[i] += rate * (g[i] - v[i])
            W[i] -= rate * m[i]

    try:
        numba = import_module("numba")
    except ImportError:
        return blocks, "NumPy, on one thread"
    prange = numba.prange
    return numba.njit(threads, parallel=True, fastmath=True), "numba, on all threads"


def gpu_floors(s: Setting, dtype: str) -> Iterator[Candidate]:
    """The first of the five products of a dense step, all five, and a copy: by torch, or where it cannot by CuPy."""
    kind: Any = "float32" if dtype == "tf32" else dtype
    random: Callable[..., Any]
    precision: Callable[[str], Any]
    try:
        torch = import_module("torch")
        torch.zeros(1, device="cuda")
    except (ImportError, AssertionError, RuntimeError):  # no torch, one without CUDA, no device that it can use
        cupy, linalg = import_module("cupy"), import_module("cupy._core")._routines_linalg
        kind = import_module("ml_dtypes").bfloat16 if kind == "bfloat16" else kind
        random = lambda *shape: cupy.random.standard_normal(shape, dtype="f").astype(kind)  # noqa: E731
        types = {True: linalg.COMPUTE_TYPE_TF32, False: linalg.COMPUTE_TYPE_DEFAULT}
        precision = lambda dtype: linalg.set_compute_type("f", types[dtype == "tf32"])  # noqa: E731
        wait = cupy.cuda.Device().synchronize
    else:
        random = lambda *shape: torch.randn(shape, device="cuda").to(getattr(torch, kind))  # noqa: E731
        wait, precision = torch.cuda.synchronize, import_module("peers").set_precision
    x, W, c = random(s.batch, s.d), random(s.width, s.d), random(s.batch, s.width)
    source, target = random(COPY), random(COPY)

    def products(times: int, _: int) -> None:
        precision(dtype)
        x @ W.T
        if times == 5:
            x @ W.T, c @ W, c.T @ x, c.T @ x
        precision("float32")  # as a backend in CuPy has to find it

    def copy(_: int) -> int:
        target[:] = source
        return 2 * int(source.nbytes)

    for name, times in {"gpu_encode_ms": 1, "five_gemm_ms": 5}.items():
        yield Candidate("floor", name, "cuda", dtype, partial(products, times), lambda _: wait())
    yield Candidate("floor", "copy", "cuda", dtype, copy, lambda _: wait())


# ---- measuring -------------------------------------------------------------------------------------------------------


def timed(s: Setting) -> Result:
    """The times at one width."""
    from refgba.errors import InputError

    data, unavailable, candidates = Data(s), dict[str, str](), list[Candidate]()
    for module, name, dtype in usable(s, unavailable):
        try:
            candidates.append(backend(s, data, module, name, dtype))
        except InputError as error:
            unavailable[s.label(name, dtype)] = str(error)
    if not s.adaptation:
        candidates += peers(s, data, unavailable) if s.peers else ()
        for dtype in sorted({c.dtype for c in candidates if c.device == "cpu"}):
            candidates += cpu_floors(s, data, dtype)
        for dtype in sorted({c.dtype for c in candidates if c.device == "cuda"}):
            candidates += gpu_floors(s, dtype)
    for round in range(s.rounds + 1):
        for c in candidates.copy():
            try:
                c.sample(round)
            except Exception as error:
                if c.kind != "peers" or round:
                    raise
                unavailable[s.label(c.name, c.dtype)] = told_briefly(error)
                candidates.remove(c)
    result: Result = {"backends": {}, "peers": {}, "floor": {}}
    for dtype in s.dtypes:
        floor = floors(s, [c for c in candidates if c.kind == "floor" and c.dtype == dtype])
        result["floor"] |= {s.label(name, dtype): value for name, value in floor.items()}
        if dtype == "float32":
            result["floor"] |= floor  # under its bare names beside others
        for c in candidates:
            if c.kind != "floor" and c.dtype == dtype:
                result[c.kind][s.label(c.name, dtype)] = figures(s, c, candidates, floor)
    if result["floor"]:
        result["floor"]["adam_by"] = adam_stream()[1]
    asked = [wanted.split()[0] for wanted in s.only]
    result["unavailable"] = {name: why for name, why in unavailable.items() if s.wants(name) or name in asked}
    return result | {"setting": asdict(s) | {"active": data.active}}


def floors(s: Setting, measured: list[Candidate]) -> dict[str, float]:
    """The floors in one dtype, in ms; AdamW's on a GPU from the bandwidth of a copy."""
    found = {c.name: c.ms for c in measured}
    if "copy" in found:
        found["copy_gb_s"] = 1e-6 * measured[-1].last / found.pop("copy")
        moved = 7 * s.width * s.d * (1 + s.untied) * (8 if measured[-1].dtype == "float64" else 4)
        found["gpu_adam_ms"] = 1e-6 * moved / found["copy_gb_s"]
    return found


def figures(s: Setting, c: Candidate, candidates: list[Candidate], floor: dict[str, float]) -> dict[str, float]:
    """What is told of a backend or a peer."""
    if c.adapt:
        every, ms = s.config(c.dtype).adapt_every, statistics.median(c.adapt_times[1:])
        return {"ms": c.ms, "adapt_ms": ms, "adapt_every": every, "share": ms / (every * c.ms + ms)}
    on = "gpu_" if c.device == "cuda" else ""
    told = {"ms": c.ms, "ratio": c.ms / (floor[f"{on}encode_ms"] + floor[f"{on}adam_ms"])}
    if c.device == "cuda":
        told["five_gemm_ratio"] = c.ms / floor["five_gemm_ms"]
    rivals = [p.ms for p in candidates if p.kind == "peers" and (p.device, p.dtype) == (c.device, c.dtype)]
    if rivals:
        told["speedup"] = min(rivals) / c.ms
    told["ms_per_1000"] = 1e3 * c.ms / s.width
    if c.last is not None:
        told["active"] = float(c.last.l0) / s.width
    return told


def remembered(s: Setting) -> Result:
    """The peak memory at one width, each backend in a process of its own."""
    result: Result = {"backends": {}, "unavailable": {}, "setting": asdict(s)}
    for _, name, dtype in usable(s, result["unavailable"]):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peak = process.submit(peak_memory, s, name, dtype).result()
        W = s.width * s.d * (8 if dtype == "float64" else 4)
        promised = PROMISE * W * (1 + s.untied) + s.batch * W // s.d
        told = {"bytes": peak, "copies": peak / W, "promised_bytes": promised, "share": peak / promised}
        result["backends"][s.label(name, dtype)] = told
    return result


def peak_memory(s: Setting, name: str, dtype: str) -> int:
    """Bytes that a backend takes at most for its state, the first steps and an adaptation.

    Not counted is what was there before: libraries, the rest of a run at a tiny size, the parameters and rows given.
    """
    from refgba import backends

    module = backends.load(name)

    def run(s: Setting, before: Callable[[], int], after: Callable[[], int]) -> int:
        data = Data(s)
        params, batches = data.params.astype(host(dtype)), [x.astype(host(dtype)) for x in data.x]
        del data
        taken = before()
        state = module.init(params, s.config(dtype))
        for x in batches:
            float(module.step(state, module.put(state, x)).loss)
        module.adapt(state)
        return after() - taken

    run(replace(s, d=16, width=512, batch=64), int, int)
    if device(name) == "cuda":  # memory of the GPU: what CuPy's pool has taken it keeps
        free = import_module("cupy").cuda.Device()
        return -run(s, lambda: int(free.mem_info[0]), lambda: int(free.mem_info[0]))
    return run(s, forget_peak, lambda: resident("VmHWM"))


def forget_peak() -> int:
    """Resident bytes, which become the peak so far.  Linux with glibc only."""
    ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def environment() -> dict[str, Any]:
    cpu, gpu = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().replace("\n", ", ")
    there = {dist.name.lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    versions = {"python": platform.python_version()} | {name: there[name] for name in LIBRARIES if name in there}
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu or None, "versions": versions}


# ---- the command -----------------------------------------------------------------------------------------------------

COLUMNS = {  # key of a figure: its heading and format
    "ms": ("ms", ".3f"),
    "ratio": ("x floor", ".2f"),
    "five_gemm_ratio": ("x 5 GEMMs", ".2f"),
    "speedup": ("x faster than fastest peer", ".2f"),
    "ms_per_1000": ("ms per 1000 neurons", ".3f"),
    "active": ("active", ".2%"),
    "adapt_ms": ("ms to adapt", ".3f"),
    "adapt_every": ("every", "d"),
    "bytes": ("peak bytes", ",d"),
    "copies": ("copies of W", ".2f"),
    "promised_bytes": ("promised", ",d"),
    "share": ("share", ".2%"),
}


def show(s: Setting, result: Result) -> None:
    active, tied = result["setting"].get("active", s.density), "untied" if s.untied else "tied"
    click.echo(f"d {s.d}, M {s.width}, L {s.batch}, {active:.2%} active, {s.dtype}, {tied}, {s.rounds} rounds")
    rows = result["backends"] | result.get("peers", {})
    keys = [key for key in COLUMNS if any(key in told for told in rows.values())]
    lines = [["", *(COLUMNS[key][0] for key in keys)]]
    for name, told in rows.items():
        lines.append([name, *(format(told[key], COLUMNS[key][1]) if key in told else "" for key in keys)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        click.echo("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
    for prefix, part in {"floor ": result.get("floor", {}), "": result["unavailable"]}.items():
        for name, value in part.items():
            click.echo(f"{prefix}{name}: {value if isinstance(value, str) else format(value, '.3f')}")
    click.echo()


@click.command(context_settings={"show_default": True}, help=(__doc__ or "").partition("\n")[0])
@click.option("--d", type=click.IntRange(2), default=768, help="dimensions")
@click.option("--width", "widths", type=click.IntRange(1), multiple=True, default=[8192], help="M, neurons; repeatable")
@click.option("--batch", type=click.IntRange(1), default=512, help="L, rows")
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.02, help="share of neurons active")
@click.option("--dtype", type=click.Choice([*DTYPES, "all"]), default="float32")
@click.option("--threads", type=click.IntRange(1), default=2, help="of every library on the CPU")
@click.option("--rounds", type=click.IntRange(1), default=20)
@click.option("--steps", type=click.IntRange(1), default=4000, help="of the run whose recipe --adaptation takes")
@click.option("--untied", is_flag=True)
@click.option("--only", multiple=True, help="a name or its first words, like 'torch cpu'; repeatable")
@click.option(
    "--no-peers", "peers", flag_value=False, default=True, show_default=False, help="backends and floors only"
)
@click.option("--adaptation", is_flag=True, help="the share of the time to train that adapting takes")
@click.option("--memory", is_flag=True, help="peak memory instead of times")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")
def main(widths: tuple[int, ...], threads: int, memory: bool, as_json: bool, **given: Any) -> None:
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    told, results = environment(), []
    for width in widths:
        s = Setting(width=width, threads=threads, **given)
        results.append(remembered(s) if memory else timed(s))
        results[-1]["setting"] |= told
        names = [name for part in ("backends", "peers", "unavailable") for name in results[-1].get(part, ())]
        for wanted in s.only:
            known = any(replace(s, only=(wanted,)).wants(name) for name in names)
            if not known and not any(wanted.startswith(f"{name} ") for name in results[-1]["unavailable"]):
                raise click.UsageError(f"nothing that can be measured is called {wanted!r}")
        show(s, results[-1])
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    click.echo(f"{told['cpu']}, {threads} of {told['cores']} cores, GPU: {told['gpu'] or 'none'}; {versions}")
    if as_json:
        click.echo(json.dumps(results[-1] | ({"rows": results} if len(results) > 1 else {})))


if __name__ == "__main__":
    main()
