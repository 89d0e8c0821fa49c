"""What the experiments share: outcomes and how they are written, data, the two algorithms, and statistics of seeds.

An experiment is a module with `run(scale, backend, tick) -> Outcome`.  Its numbers are those of several seeds; a seed
draws the features, the rows and the initial neurons, each from a stream of its own.
"""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from refgba import __version__, backends, gba, theory
from refgba.backends.base import AnyConfig, AnyParams
from refgba.config import GBAConfig
from refgba.data import feed, files
from refgba.data.activations import Activations, open_activations
from refgba.data.survey import Check, survey
from refgba.errors import InputError
from refgba.metrics import mcs
from refgba.model import Rows, SyntheticModel, features
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import evaluate
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Literal["quick", "full"]  # about a minute on one core, or several
S = TypeVar("S")
T = TypeVar("T")
Tick: TypeAlias = Callable[[str], object]  # told what is being computed

TAU = 0.9  # a feature counts as recovered from this cosine on
RECOVERED = 0.9  # recovery works where the FRR is at least this
DPI = 150
SAMPLE = ("minilm-l3-mlp.npy", "minilm-l3-mlp.heldout.npy")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
ON_CORES = ("numpy", "numba")  # backends that compute on the CPU
CHUNK = 2048  # rows of real activations judged at a time

# Okabe and Ito's colours, which the colour-blind tell apart; a marker and a line style each, for those who print.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#000000", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#E69F00", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
)
HEAT = "cividis"  # reads the same with and without red-green vision, and in grey


# ---- outcomes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure: its title, what it shows for those who cannot see it, how to draw it, and its size in inches."""

    title: str
    alt: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (8.0, 4.5)


class Verdict(str):
    """How a measurement compares: a grade, and one sentence with the numbers.

    claims: what the paper says (or what its theory does), in words, and whether it is so in the numbers; the grade
    counts those that are.
    """

    claims: dict[str, bool]

    def __new__(cls, claims: Mapping[str, bool], said: str) -> Verdict:
        """SAID, under the grade that the claims earn."""
        verdict = super().__new__(cls, f"{grade(claims)}: {said}")
        verdict.claims = {claim: bool(held) for claim, held in claims.items()}
        return verdict


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    question: what the paper claims, one sentence.  verdict: how the measurement compares, computed from `data`.  data:
    every number, with settings, seeds, versions and seconds; nothing but JSON.
    """

    name: str
    question: str
    verdict: Verdict
    data: dict[str, Any]
    figures: tuple[Picture, ...]


def conduct(
    name: str,
    question: str,
    sizes: Any,
    measure: Callable[[Any, str, Tick], dict[str, Any]],
    verdict: Callable[[dict[str, Any]], Verdict],
    pictures: Callable[[dict[str, Any]], Sequence[Picture]],
    scale: Scale,
    backend: str,
    tick: Tick,
) -> Outcome:
    """Measure, time, judge: the body of every experiment's `run`.  `sizes` is a dataclass of settings with `seeds`."""
    backends.load(backend, "float32")  # a backend that cannot run is refused before anything is computed
    began, busy = time.perf_counter(), _cpu_seconds()
    measured = measure(sizes, backend, tick)
    about = {
        "scale": scale,
        "backend": backend,
        "settings": asdict(sizes),
        "seeds": list(range(sizes.seeds)),
        "tau": TAU,
        "versions": {"refgba": __version__, "python": platform.python_version()}
        | {package: version(package) for package in ("numpy", "scipy", "matplotlib")},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(_cpu_seconds() - busy, 1),
    }
    data: dict[str, Any] = json.loads(json.dumps(about | measured, allow_nan=False))  # as a reader of the file sees it
    return Outcome(name, question, verdict(data), data, tuple(pictures(data)))


def _cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(os.times()[:4])


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Write NAME-1.png, NAME-2.png, ... and then NAME.json into the folder `out`, each whole or not at all.

    Returns the files, JSON first.  InputError without matplotlib, or when the folder cannot be made or written.
    """
    images = {f"{outcome.name}-{k}.png": png(picture) for k, picture in enumerate(outcome.figures, start=1)}
    told = {
        "name": outcome.name,
        "question": outcome.question,
        "verdict": outcome.verdict,
        "claims": outcome.verdict.claims,
        "figures": [
            {"file": file, "title": p.title, "alt": p.alt} for file, p in zip(images, outcome.figures, strict=True)
        ],
        "data": outcome.data,
    }
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    make_folder(out)
    try:
        for file, image in images.items():
            files.write(out / file, image)
        files.write(out / f"{outcome.name}.json", text.encode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return [out / f"{outcome.name}.json", *(out / file for file in images)]


def make_folder(out: Path) -> None:
    """Make the folder, where it is not there yet; InputError when that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None


def sketch(picture: Picture) -> Figure:
    """A picture drawn, without its title.  InputError without matplotlib."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture.size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    picture.draw(figure)
    return figure


def png(picture: Picture) -> bytes:
    """A picture drawn, as the bytes of a PNG file.  InputError without matplotlib."""
    figure = sketch(picture)
    figure.suptitle(picture.title, fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def require_matplotlib() -> None:
    """InputError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "experiments draw with matplotlib, which is not installed: pip install 'refgba[report]'"
        ) from None


# ---- data and algorithms ---------------------------------------------------------------------------------------------


def gaussian(n: int, d: int, seed: int) -> Array:
    """The theory's features: unit rows of Gaussian entries, (n, d)."""
    return features(n, d, "gaussian", stream(seed, "features"))


def mixture(rows: Rows, V: Array, N: int, seed: int) -> Array:
    """X = H V at unit norm in float32, for features V (n, d) of any kind; rows without a feature are left out."""
    H = SyntheticModel(rows, d=1, seed=seed, dtype=np.float32).draw(0, N).H  # does not depend on d
    return unit_rows(H[H.any(axis=1)] @ V.astype(np.float32))


def neurons(M: int, d: int, seed: int) -> Array:
    """The M neurons that a run begins with: those of `gba.random_params`, float32."""
    return unit_rows(stream(seed, "weights").standard_normal((M, d))).astype(np.float32)


def climb(X: Array, W: Array, p: float, steps: int) -> Array:
    """The neurons W (M, d) after `steps` steps of Modified BA at frequency p."""
    *_, W = theory.modified_ba(X, W, p, steps)
    return W


@dataclass(frozen=True)
class Trained:
    """Algorithm 1 after its last step: what the neurons stand for, the decoder rows (M, d), and how often each fired
    since the last adaptation (M,).
    """

    neurons: Array
    frequency: Float64


def train(X: Array, config: GBAConfig, backend: str) -> Trained:
    """Run Algorithm 1 on rows X (N, d)."""
    engine, state = trained(gba.minibatches(X, config), X.shape[1], config, backend)
    counters = engine.counters(state)
    return Trained(engine.params(state).V, counters.counts / counters.rows)


def trained(
    minibatches: Iterable[Array], d: int, config: AnyConfig, backend: str, params: AnyParams | None = None
) -> tuple[backends.Backend, Any]:
    """A backend, and its state of a network of any method after all of the minibatches of rows (L, d).

    params: what to begin with, where not with the method's own random start.
    """
    engine = backends.load_for(backend, config)
    state = engine.init(params, config) if params else backends.begin(engine, config, d)
    for _ in gba.train(state, (engine.put(state, x) for x in minibatches), engine.step, engine.adapt):
        pass
    return engine, state


@dataclass(frozen=True)
class Real:
    """Real activations: rows to train on, which have been surveyed, and rows to judge on."""

    train: Activations
    held_out: Activations

    def about(self) -> dict[str, Any]:
        """What an outcome tells of them."""
        return {
            "name": self.train.store.path.name,
            "rows": len(self.train),
            "held_out": len(self.held_out),
            "d": self.train.d,
        }

    def seen(self, config: AnyConfig) -> Iterator[Array]:
        """The rows to train on, in order, checked and CHUNK at a time."""
        return Check(self.train.store, config.master).chunks(self.train, CHUNK)

    def judged(self, config: AnyConfig) -> Iterator[Array]:
        """The held-out rows, checked and CHUNK at a time."""
        return Check(self.held_out.store, config.master).chunks(self.held_out, CHUNK)


def opened(data: tuple[Path, Path] | None) -> Real:
    """The activations `data`, to train and to judge on, or for None the sample that comes along."""
    folder = resources.files("refgba.experiments") / "data"
    train, held_out = data or (Path(str(folder / name)) for name in SAMPLE)
    rows, _ = survey(open_activations(train), "float32")
    return Real(rows, open_activations(held_out, rows.d))


def evaluated(real: Real, config: AnyConfig, backend: str) -> tuple[AnyParams, Evaluation]:
    """A network of any method trained on real activations, and what it does on the held-out rows."""
    engine, state = trained(feed.minibatches(real.train, config), real.train.d, config, backend)
    params = engine.params(state)
    return params, evaluate(params, config, engine, real.judged(config))


# ---- statistics ------------------------------------------------------------------------------------------------------


def nearest(V: Array, W: Array) -> list[float]:
    """For each feature, V (n, d), the largest cosine of a neuron, W (M, d), rounded to four digits."""
    return [round(float(c), 4) for c in mcs(V, W)]


def recovery(cosines: Sequence[float]) -> float:
    """The share of features whose `nearest` neuron is within TAU."""
    return float(np.mean(np.asarray(cosines) >= TAU))


def spread(values: Sequence[float]) -> str:
    """Shares of several seeds as `97.1% (96.0-98.4%)`: mean, lowest and highest."""
    return f"{np.mean(values):.1%} ({min(values):.1%}-{max(values):.1%})".replace("%-", "-")


def edges(x: Sequence[float], y: Sequence[float], level: float) -> tuple[float, float] | None:
    """Where the curve y, linear in log x between its points, rises to `level` and falls below it around its maximum.

    None where it never reaches the level.  Where it is still above at the first or the last x, that x.
    """
    peak = int(np.argmax(y))
    if y[peak] < level:
        return None
    low = high = peak
    while low > 0 and y[low - 1] >= level:
        low -= 1
    while high < len(y) - 1 and y[high + 1] >= level:
        high += 1
    first = x[low] if low == 0 else _crossing(x, y, low - 1, low, level)
    last = x[high] if high == len(y) - 1 else _crossing(x, y, high + 1, high, level)
    return float(first), float(last)


def _crossing(x: Sequence[float], y: Sequence[float], out: int, within: int, level: float) -> float:
    share = (level - y[out]) / (y[within] - y[out])
    return float(np.exp(np.log(x[out]) + share * (np.log(x[within]) - np.log(x[out]))))


def decades(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The length in decades of x of the interval that `edges` gives; 0 where there is none."""
    found = edges(x, y, level)
    return float(np.log10(found[1] / found[0])) if found else 0.0


def power(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent of the power law y ~ x^k that fits best (least squares of the logarithms); None below two points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else None


def grade(claims: Mapping[str, bool]) -> str:
    """The first word of a verdict: how many claims, each checked by itself, hold in the numbers."""
    held = sum(claims.values())
    return "Reproduced" if held == len(claims) else "Reproduced in part" if held else "Not reproduced"


# ---- several networks at once ----------------------------------------------------------------------------------------


def at_once(work: Callable[[S], T], items: Sequence[S], backend: str, tick: Tick) -> list[T]:
    """work(item) for each, in processes of one thread, as many as there are cores: for networks too small for threads.

    `work` is a function of a module, or a partial of one.  One after the other where there is one item or one core, and
    for a backend whose device they would share.
    """
    processes = min(len(items), os.cpu_count() or 1)
    if processes < 2 or backend not in ON_CORES:
        return [work(item) for item in items]
    tick(f"{len(items)} more, {processes} at a time")
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by libraries as a new process loads them
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            begun = [pool.submit(work, item) for item in items]
            for done, _ in enumerate(as_completed(begun), start=1):
                tick(f"{done} of {len(items)} done")
            return [future.result() for future in begun]
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- drawing ---------------------------------------------------------------------------------------------------------


def band(
    axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], style: Mapping[str, Any], label: str
) -> None:
    """A line through the means over seeds, seeds (seeds, points), and a shade from the lowest to the highest."""
    y = np.asarray(seeds)
    axes.plot(x, y.mean(axis=0), label=label, markersize=4.5, linewidth=1.6, **style)
    axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style["color"], alpha=0.18, linewidth=0)


def share_axis(axes: Axes, label: str) -> None:
    """A vertical axis of shares, from 0 to 100%, with a faint grid."""
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at these values, written as they are."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(values), [f"{v:g}" for v in values])
    axis.set_minor_locator(NullLocator())


def log_ticks(axis: Any, digits: tuple[float, ...]) -> None:
    """Ticks of a logarithmic axis at these digits of each decade, written as they are."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
