"""How commands show themselves: mistakes as one line and an exit status, progress on stderr, results as tables."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from refgba.backends.base import AnyConfig
from refgba.data.files import quoted
from refgba.data.remarks import remarks, statistics
from refgba.data.store import META, Store, open_store
from refgba.errors import InputError, os_status
from refgba.runs import interrupts
from refgba.runs.demo import Demo
from refgba.runs.forecast import Forecast, about, forecast, sized
from refgba.runs.launch import Launch
from refgba.runs.log import Progress
from refgba.runs.signals import Stopped, signals, steady_stderr
from refgba.runs.trainer import TrainingError
from refgba.theory import Band, resonance_band

# So NumPy's errors begin for arrays larger than it can count, where smaller ones are a MemoryError.
BEYOND_NUMPY = ("Maximum allowed dimension exceeded", "Maximum allowed size exceeded", "array is too big")

FAR = 1.5  # times the L0 that was asked for, or less than it by as much: worth a remark
PATIENCE = 0.5  # seconds after which something waited for is named

HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click 8.2 shows help by an error, which is no mistake


class Commands(click.Group):
    """Turns a mistake in the input into one line and exit status 2, a failure of the machine or the run into 1.

    Ctrl-C is one line and `interrupts.STATUS`, and nothing else is taken for it.
    """

    def main(self, args: Sequence[str] | None = None, *others: Any, **named: Any) -> Any:
        """Run the program, or in Python a command with these arguments."""
        if args is None:
            interrupts.quiet()
        return super().main(args, *others, **named)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with steady_stderr():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            with np.errstate(all="ignore"):  # What is not finite is noticed and told where it matters.
                return super().invoke(ctx)
        except click.UsageError as error:
            if isinstance(error, HELP):
                raise
            message = error.format_message()
            if isinstance(error, click.MissingParameter):  # whose choices click lists one per line
                message = " ".join(message.split())
            raise click.UsageError(escaped(message), error.ctx) from None
        except InputError as error:
            _fail(ctx, str(error), error.status)
        except TrainingError as error:
            _fail(ctx, str(error), 1)
        except Stopped as stopped:
            line(err=True)
            line(str(stopped), err=True)
            ctx.exit(128 + stopped.number)
        except KeyboardInterrupt:
            line(err=True)
            line(interrupts.ABORTED, err=True)
            ctx.exit(interrupts.STATUS)
        except EOFError as error:  # click would take it for Ctrl-C
            _fail(ctx, f"something that was read ended too early ({error})", 1)
        except MemoryError as error:
            _fail(ctx, f"not enough memory ({error})", 1)
        except ValueError as error:
            if not str(error).startswith(BEYOND_NUMPY):
                raise
            _fail(ctx, f"not enough memory on any machine ({error})", 1)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            _fail(ctx, message, os_status(error))


def _fail(ctx: click.Context, message: str, status: int) -> None:
    line(f"Error: {message}", err=True)
    ctx.exit(status)


def escaped(text: str, encoding: str = "utf-8") -> str:
    """Text that may come from outside, on one line: what controls a terminal, or what it cannot show, as an escape."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return printable.encode(encoding, "backslashreplace").decode(encoding)


def line(text: str = "", err: bool = False) -> None:
    """One line on stdout or stderr, `escaped`: names of files, tensors and models may hold anything."""
    stream = sys.stderr if err else sys.stdout
    click.echo(escaped(text, getattr(stream, "encoding", None) or "utf-8"), err=err)


def lines(text: str) -> None:
    """Several lines on stdout, each `escaped`."""
    for part in text.split("\n"):
        line(part)


def program() -> str:
    """How this program was called, so that the commands it suggests can be pasted: make calls .venv/bin/refgba."""
    return "refgba" if Path(sys.argv[0]).is_absolute() else sys.argv[0]


def remark(text: str) -> None:
    """A remark on stderr."""
    line(f"Note: {text}", err=True)


def remark_unfinished(*paths: Path) -> None:
    """A remark on each store that has not been written to its end."""
    for path in paths:
        if (path / META).is_file() and (unfinished := open_store(path).unfinished) is not None:
            remark(unfinished)


@contextmanager
def counting(label: str, rows: int) -> Iterator[Callable[[int], object]]:
    """A progress bar over rows, on stderr; yields what to call with the number of rows done."""
    with click.progressbar(length=rows, label=label, file=sys.stderr) as bar:
        yield bar.update


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """If it lasts longer than a moment, a line on stderr says so, on a terminal with the seconds."""
    over = threading.Event()
    moving = sys.stderr.isatty()

    def show() -> None:
        seconds = 0.0
        while not over.wait(PATIENCE if not seconds else 1.0):
            if not seconds or moving:
                click.echo(f"{text} ..." + f" {seconds:.0f} s\r" * moving, nl=not moving, err=True)
            seconds = seconds + 1 if seconds else PATIENCE
        if seconds and moving:
            click.echo(err=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show_rehearsal(run: Launch, as_json: bool) -> None:
    """The settings of a `refgba.runs.launch.rehearse`, and the time and memory that its run is expected to take."""
    with waiting("Timing a few steps"):
        expected = expectation(run)
    if as_json:
        facts = {"backend": run.name, "rows": len(run.data), "d": run.data.d}
        click.echo(json.dumps(facts | asdict(expected) | {"config": asdict(run.config)}))
        return
    for name, value in asdict(run.config).items():
        line(f"{name:12} {value}")
    line(what(run, expected))
    line("Nothing was written, and the rows were not read: this was a dry run.")


def show_trained(run: Launch, result: dict[str, Any], as_json: bool) -> None:
    """What a run ended in, where it is, and how to go on."""
    if missed := off_target(run.config, result["l0"]):
        remark(missed)
    if as_json:
        click.echo(json.dumps(result))
        return
    show_groups(result.get("groups", []))
    judging = f"{program()} evaluate {quoted(run.path)} DATA"
    line(f"On rows it was trained on: {summary(result)}")
    if run.held_out is None:
        line(f"No rows were held out; on others it does worse, which {judging} would show.")
    else:
        line(f"On {run.held_out.name}: {summary(result['held_out'])}")
    line(f"The run is in {run.path}, trained in {result['seconds']:.0f} s.  On other data: {judging}")


def off_target(config: AnyConfig, l0: float) -> str:
    """In one line, that a run whose L0 was asked for ended far from it; nothing where it did not."""
    asked = getattr(config, "l0", 0.0)
    if not asked or asked / FAR <= l0 <= FAR * asked:
        return ""
    return (
        f"L0 is {l0:.1f} where {asked:g} was asked for: biases did not get there while neurons moved; a learning rate "
        f"(lr) below {config.lr:g}, or more steps than {config.steps}, may help"
    )


def expectation(run: Launch) -> Forecast:
    """What this rank is expected to take, with its own neurons."""
    own = replace(run.config, width=run.ranks.count(run.config.width))
    return forecast(own, run.backend, run.data, run.done)


def foretell(run: Launch) -> None:
    """One line on what is going to be trained, and what time and memory are expected; nothing where all is done."""
    if run.done < run.config.steps:
        with waiting("Timing a few steps"):
            expected = expectation(run)
        remark(what(run, expected))


def what(run: Launch, expected: Forecast) -> str:
    """What is trained, on what and with what, and what that is expected to take, in one line."""
    config = run.config
    since = f", of which {run.done} are done" if run.done else ""
    return (
        f"M = {config.width} neurons on {len(run.data)} rows of d = {run.data.d}, {config.steps} steps of "
        f"{config.batch} rows{since}; {run.name} in {config.dtype} takes "
        f"{about(expected.seconds)}, with {sized(expected.bytes)} of memory"
        + (f" on each of {run.ranks.size} ranks" if run.ranks.size > 1 else "")
    )


def train(run: Launch) -> int:
    """Train with a progress bar; returns the last step that was taken, 0 where all had been."""
    last = 0
    foretell(run)
    with (
        signals() as stop,
        click.progressbar(
            length=run.config.steps, label="training", item_show_func=_standing, file=sys.stderr, width=18
        ) as bar,
    ):
        for progress in run.steps(stop):
            bar.update(progress.step - last, progress)
            last = progress.step
    return last


def _standing(progress: Progress | None) -> str:
    if progress is None:
        return ""
    return f"loss {progress.loss:.4f}  L0 {progress.l0:.1f}  FVU {progress.fvu:.3f}  dead {progress.dead:.1%}" + (
        f"  <= target {progress.within:.0%}" if progress.within is not None else ""
    )


def show_result(result: dict[str, Any]) -> None:
    """The groups, if any, and the summary of a `refgba.runs.judging.result`."""
    show_groups(result.get("groups", []))
    show_summary(result)


def show_groups(groups: list[dict[str, Any]]) -> None:
    """One line per group of neurons, under a heading; nothing where there are none."""
    if groups:
        line("group   target    median      mean   at or under target")
    for k, g in enumerate(groups, start=1):
        line(f"{k:5d} {g['target']:8.4f}  {g['median']:8.4f}  {g['mean']:8.4f}   {g['within']:8.0%}")


def show_summary(result: dict[str, Any]) -> None:
    """Reconstruction and sparsity in one line."""
    line(summary(result))


def summary(result: dict[str, Any]) -> str:
    """Reconstruction and sparsity, in words."""
    l0 = result["l0_distribution"]
    return (
        f"FVU {result['fvu']:.4f} (explained variance {result['explained_variance']:.4f})   "
        f"L0 {result['l0']:.1f} (median {l0['median']}, 90% from {l0['p5']} to {l0['p95']})   "
        f"dead {result['dead']:.2%}   over {result['rows']} rows"
    )


def show_recovery(result: dict[str, Any]) -> None:
    """Which true features were recovered, of a `refgba.runs.judging.recovery`."""
    for tau, share in result["frr"].items():
        line(f"FRR({tau}) {share:.1%}   one-to-one {result['one_to_one'][tau]:.1%}")
    if result["e"] is not None:
        line(f"every true feature has a neuron of its own within e = {result['e']:.3f} (1 - cosine)")


def show_demo(demo: Demo, result: dict[str, Any]) -> None:
    """What the demonstration ended in, beside what theory and the paper say, and how to go on."""
    truth, run = demo.truth, demo.launch
    band = resonance_band(truth.n, truth.d, 3)
    line()
    line(
        f"GBA on the imbalanced set: n = {truth.n} features in d = {truth.d} dimensions, {demo.rows} rows, "
        f"M = {run.config.width}"
    )
    line(
        f"Each feature occurs in f = {truth.rows.f[0]:.3f} of the rows.  Theory's resonance band for the rows of s = 3:"
        f" p from {band.low:.4f} to {band.high:.4f}"
    )
    line()
    show_groups(result.get("groups", []))
    line()
    show_recovery(result)
    line("the paper's GBA: FRR(0.8) 100.0%, FRR(0.9) 100.0%")
    show_summary(result)
    line()
    line(f"See features being found: {demo.page}, in a browser")
    line(f"The run is in {run.path}, trained in {result['seconds']:.0f} s.  Judge it again, or on data of your own:")
    x, v = (quoted(run.path / "data" / name) for name in ("X.npy", "V.npy"))
    line(f"  {program()} evaluate {quoted(run.path)} {x} --truth {v}")


def show_bands(band: Band, frequencies: Band) -> None:
    """The resonance band, and the same in terms of how often a feature occurs."""
    empty = ", which is empty" if band.empty else ""
    line(f"resonance band   {band.low:.4g} <~ p <~ {band.high:.4g}   ({band.binding} binds){empty}")
    line(f"by frequency     {frequencies.low:.4g} <~ p <~ {frequencies.high:.4g}   (f = s/n; {frequencies.binding})")


def shards(count: int) -> str:
    """So many shards, in words."""
    return "1 shard" if count == 1 else f"{count} shards"


def show_soundness(store: Path, facts: dict[str, Any], drop_below: float) -> None:
    """What `refgba data verify` found in a store; drop_below: the share of the median norm below which rows go."""
    zeros = facts["dropped"] - facts["faint_dropped"]
    dropped = f", {zeros} rows of zeros besides" if zeros else ""
    dropped += f", {facts['faint_dropped']} rows below {drop_below:g} of the median norm besides" * (drop_below > 0)
    line(
        f"{store}: {facts['rows']} rows are sound{dropped}; {facts['checksums']} of {facts['shards']} shards have a "
        "checksum, and match it"
    )
    if "contexts" in facts:
        line(f"The tokens of these rows, of {facts['contexts']} contexts, are sound, too")
    if facts["faint"]:
        line(
            f"{facts['faint']} of these rows have a norm under a thousandth of the median, {facts['median_norm']:.3g}, "
            "and count in full once they are scaled; --drop-below 0.001 skips them"
        )
    for name, measured in statistics(facts):
        line(f"{name}: {measured}")
    for sentence in remarks(**(facts | {"dropped": 0, "faint": 0, "faint_dropped": 0, "offset": None})):
        line(f"{sentence[0].upper()}{sentence[1:]}")


def show_packed(out: Path, store: Store) -> None:
    """What `refgba data pack` has written."""
    line(f"Wrote {out}: {len(store)} rows of d = {store.d} in {store.dtype}, {shards(len(store.shards))}")


def show_store(path: Path, facts: dict[str, Any]) -> None:
    """A store of activations, by its `refgba.data.pack.info`."""
    fewest, most = facts["rows_per_shard"]
    line(
        f"{path}: {facts['rows']} rows of d = {facts['d']} in {facts['dtype']}, {sized(facts['bytes'])}, "
        f"{shards(facts['shards'])} of "
        f"{fewest if fewest == most else f'{fewest} to {most}'} rows, "
        f"{facts['checksums']} with a checksum{'' if facts['complete'] else '; still being written'}"
    )
    for name, value in facts["about"].items():
        text = json.dumps(value)
        line(f"{name}: {text if len(text) < 500 else f'{text[:500]}... (--json has all)'}")
