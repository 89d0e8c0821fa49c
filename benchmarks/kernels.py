"""Where a step of the GPU backend spends its time: every kernel and matrix product between two CUDA events.

    python benchmarks/kernels.py --d 1536 --width 65536 --batch 4096 --dtype bfloat16
    python benchmarks/kernels.py --static     what the compiler makes of each kernel; needs no GPU (kernels_static.py)

For each, by its name or its shape, this prints how often a step runs it, how long that takes, what share of the step
that is, and how fast it is, in numbers that compare with the device's: TFLOP/s of a product, and for a kernel the bytes
per second that it moves to and from memory (TRAFFIC).  "the rest" is what lies between: sums of a few numbers, waiting
for rows, and the host where it is slower than the device.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import click
import kernels_static
from setting import BATCHES, DTYPES, Data, Setting, environment

# What a kernel does to each of its arrays, in their order: r reads it, w writes it, u does both, g reads it where a
# gate is open; - is an array that a step of GBA does not have.
TRAFFIC = {
    "narrow": "rw",
    "center": "rrw",
    "gate": "rr-wwuuw",
    "residual": "rrrwww",
    "gate_gradient": "grww",
    "adamw_b_pre": "rruuu",
    "adamw_rows": "uuuwrruuurrww",
    "agree": "rw",
}
TIMES = {"r": 1, "w": 1, "u": 2, "-": 0}
SECTOR = 32  # bytes that a GPU reads at once, if it reads one of them

WARM = 3  # steps that are not counted: kernels are loaded, cuBLAS chooses


class Clock:
    """What a device runs from now on: spans, each a name, its work (bytes or FLOP) and the two events around it."""

    def __init__(self, cupy: Any, device: Any, density: float) -> None:
        self.cupy, self.spans = cupy, list[tuple[str, float, Any, Any]]()
        launch, product = device.launch, device.product

        def launched(name: str, blocks: int, block: tuple[int, ...], *arguments: Any) -> None:
            self.between(name, traffic(name, arguments, density), lambda: launch(name, blocks, block, *arguments))

        def multiplied(A: Any, B: Any, C: Any, **how: Any) -> None:
            (m, n), k = C.shape, A.shape[0 if how.get("tA") else 1]
            self.between(f"product ({m}, {k}) ({k}, {n})", 2.0 * m * k * n, lambda: product(A, B, C, **how))

        device.launch, device.product = launched, multiplied

    def between(self, name: str, work: float, run: Callable[[], object]) -> None:
        """Run it between two events."""
        start, end = self.event(), self.cupy.cuda.Event()
        run()
        end.record()
        self.spans.append((name, work, start, end))

    def event(self) -> Any:
        """An event that comes after all that has been launched."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events, once the second has come."""
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end))


def traffic(name: str, arguments: tuple[Any, ...], density: float) -> float:
    """Bytes that a launch moves to and from memory, where that share of the gates is open.

    An array of parameters is one only where it is passed, and a copy only where it is not the array itself.
    """
    arrays = [a for a in arguments if a is None or getattr(a, "ndim", 0)]
    moved, seen = 0.0, set[int]()
    for how, array in zip(TRAFFIC[name], arrays, strict=True):
        if array is None or array.data.ptr in seen:
            continue
        seen.add(array.data.ptr)
        sectors = 1 - (1 - density) ** (SECTOR // array.itemsize)
        moved += int(array.nbytes) * (sectors if how == "g" else TIMES[how])
    return moved


def measured(backend: Any, s: Setting) -> dict[str, Any]:
    """Milliseconds per step as `ms`, and its `parts`: times per step, ms, and tflop_s or gb_s."""
    data = Data(s)
    config = s.config(s.dtype)
    state = backend.init(data.params.astype(config.master), config)
    batches = [backend.put(state, x.astype(config.master)) for x in data.x]
    clock = Clock(backend.cp, state.device, data.active)
    for i in range(WARM):
        backend.step(state, batches[i % BATCHES])
    clock.spans.clear()
    begin = clock.event()
    for i in range(s.rounds):
        backend.step(state, batches[i % BATCHES])
    whole = clock.ms(begin, clock.event()) / s.rounds
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, work, start, end in clock.spans:
        parts[name] = [a + b for a, b in zip(parts[name], (1, clock.ms(start, end), work), strict=True)]
    figures = {}
    for name, (times, ms, work) in sorted(parts.items(), key=lambda item: -item[1][1]):
        rate = "tflop_s" if name.startswith("product") else "gb_s"
        speed = work / ms * (1e-9 if rate == "tflop_s" else 1e-6) if ms else 0.0
        figures[name] = {"times": times / s.rounds, "ms": ms / s.rounds, rate: speed}
    figures["the rest"] = {"times": 1, "ms": whole - sum(part["ms"] for part in figures.values())}
    return {"ms": whole, "parts": figures}


@click.command(context_settings={"show_default": True}, help=(__doc__ or "").partition("\n")[0])
@click.option("--d", type=click.IntRange(2), default=1536, help="dimensions")
@click.option("--width", type=click.IntRange(1), default=65536, help="M, neurons")
@click.option("--batch", type=click.IntRange(1), default=4096, help="L, rows")
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.02, help="share of neurons active")
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, default=["bfloat16"], help="repeatable")
@click.option("--rounds", type=click.IntRange(1), default=20, help="steps that are counted")
@click.option("--untied", is_flag=True)
@click.option("--static", is_flag=True, help="registers, spills and instructions instead of times; needs no GPU")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")
def main(static: bool, as_json: bool, dtypes: tuple[str, ...], **options: Any) -> None:
    from refgba import backends
    from refgba.errors import InputError

    if static:
        made = kernels_static.report()
        click.echo(kernels_static.page(made["rows"]) + f"NVRTC {made['nvrtc']}")
        if as_json:
            click.echo(json.dumps(made))
        return

    machine, results = environment(), []
    for dtype in dtypes:
        fixed: dict[str, Any] = {"threads": 1, "steps": 4000, "only": ("cupy",), "peers": False, "adaptation": False}
        s = Setting(**fixed, dtype=dtype, **options)
        try:
            results.append(measured(backends.load("cupy", dtype), s) | {"setting": vars(s) | machine})
        except InputError as error:
            raise click.UsageError(str(error)) from None
        show(s, results[-1])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    click.echo(f"GPU: {machine['gpu']}; {versions}")
    if as_json:
        click.echo(json.dumps(results, default=str))


def show(s: Setting, result: dict[str, Any]) -> None:
    """Print the parts of a step, and what they were told to do."""
    tied = "untied" if s.untied else "tied"
    click.echo(f"d {s.d}, M {s.width}, L {s.batch}, {s.dtype}, {tied}: {result['ms']:.3f} ms")
    longest = max(map(len, result["parts"]))
    for name, part in result["parts"].items():
        speed = f"{part['tflop_s']:9.1f} TFLOP/s" if "tflop_s" in part else f"{part.get('gb_s', 0):9.0f} GB/s"
        click.echo(
            f"{name:{longest}}  {part['times']:5g} times  {part['ms']:9.3f} ms  {part['ms'] / result['ms']:6.1%}"
            + (f"  {speed}" if name != "the rest" else "")
        )
    click.echo()


if __name__ == "__main__":
    main()
