"""The command line: one thin command a verb, no arithmetic.

Results go to stdout, progress and remarks to stderr.  With --json a command prints one JSON object as its last line of
stdout.  Exit status: 0, 1 for a run that failed, 2 for bad usage or bad input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import chain, count
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import click
import numpy as np

from refgba import __version__, backends, experiments, model, oracle, report, theory
from refgba import formats as interop
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig, GBAConfig, Method, Settings, settings_from_json
from refgba.data import files, laws, pack, synthetic
from refgba.data.activations import Activations, Check, open_activations, reopen, survey
from refgba.data.store import DTYPES, open_store
from refgba.errors import InputError, brief
from refgba.identifiability import identifiability
from refgba.metrics import frr
from refgba.oracle import traces
from refgba.recipe import FIXED, RECIPES, derive
from refgba.runs import folder
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import arrays, evaluate_dictionary, load_truth, recovery
from refgba.runs.judging import evaluate as evaluate_network
from refgba.runs.judging import result as measured
from refgba.runs.judging import save as save_evaluation
from refgba.runs.trainer import Progress, Saving, Stopped, TrainingError, extended, resume_run, signals, train_run
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Activation, Array, Dtype

F = TypeVar("F", bound=Callable[..., Any])

METHODS = ("gba", "ba", *get_args(Method))
GBA_SETTINGS = [field.name for field in fields(GBAConfig)]
BASELINE_SETTINGS = [field.name for field in fields(BaselineConfig)]

DEMO = {"steps": 3000}  # enough for 128 features, and well under a minute on two cores
HELD_OUT = 20_000  # fresh rows that the demo is judged on
EVALUATE = 2048  # rows evaluated at a time
SAMPLE = 65_536  # rows of its own data, at most, that a training run is judged on


class _Commands(click.Group):
    """Turns a mistake in the input into one line and exit status 2, a failed run into one line and 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with np.errstate(all="ignore"):  # what is not finite is found and told where it matters
                return super().invoke(ctx)
        except InputError as error:
            _fail(ctx, str(error), 2)
        except TrainingError as error:
            _fail(ctx, str(error), 1)
        except Stopped as stopped:
            click.echo(f"\n{stopped}", err=True)
            ctx.exit(128 + stopped.number)
        except MemoryError as error:
            _fail(ctx, f"not enough memory ({error})", 1)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            _fail(ctx, f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)


def _fail(ctx: click.Context, message: str, status: int) -> None:
    click.echo(f"Error: {message}", err=True)
    ctx.exit(status)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Group Bias Adaptation for sparse autoencoders: train one, and judge what it found.

    Start with `refgba demo`; then `refgba train your-activations.npy -o runs/mine`.
    """


# ---- options that several commands share -----------------------------------------------------------------------------


def _settings(command: F) -> F:
    """A flag for every setting of every method, all of them optional: the recipe fills in what is not given."""
    flags: list[tuple[type[Settings], Any]] = [(GBAConfig, field) for field in fields(GBAConfig)]
    others = [field for field in fields(BaselineConfig) if field.name not in (*GBA_SETTINGS, "method")]
    flags += [(BaselineConfig, field) for field in others]
    for config, field in reversed(flags):
        kind, name = get_type_hints(config)[field.name], "--" + field.name.replace("_", "-")
        if kind is bool:
            name += "/--no-" + field.name.replace("_", "-")
        choice = click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind
        default = _defaults(field.name, field.default) if field.name in GBA_SETTINGS else f"default: {field.default}"
        said = f"{field.metadata['help']}  [{default}]"
        command = click.option(name, field.name, type=choice, default=None, help=said)(command)
    shared = [
        click.option("--method", type=click.Choice(METHODS), help="ba is gba of one group  [default: gba]"),
        click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest"),
        click.option("--config", "config_file", type=Path, help="JSON file of settings; flags win over it"),
        click.option("--backend", help="what computes; see `refgba backends`  [default: numpy]"),
        click.option(
            "--checkpoint-every", type=int, help="steps between checkpoints, 0: none  [default: a tenth of them]"
        ),
        click.option("--keep", type=int, help="how many checkpoints stay, the newest  [default: 2]"),
    ]
    for option in reversed(shared):
        command = option(command)
    return command


def _defaults(name: str, paper: Any) -> str:
    """What the recipes make of a setting that is not given, for --help."""
    if name in FIXED and FIXED[name] != paper:
        return f"default: {FIXED[name]}; recipe paper: {paper}"
    return f"default: from the data and the run; recipe paper: {paper}" if name in derive(1) else f"default: {paper}"


_json = click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")


def _configure(
    method: str | None, recipe: str, config_file: Path | None, d: int, flags: dict[str, Any], **defaults: Any
) -> AnyConfig:
    """The settings of a run: a command's own defaults, under those of the file, under the flags; then the recipe."""
    given = dict(defaults)
    if config_file is not None:
        try:
            given |= settings_from_json(config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config_file}: cannot be read ({error})") from None
        except InputError as error:
            raise InputError(f"{config_file}: {error}") from None
    given |= {name: value for name, value in flags.items() if value is not None}
    method = method or given.pop("method", "gba")
    given.pop("method", None)
    known = GBA_SETTINGS if method in ("gba", "ba") else BASELINE_SETTINGS
    for name in given:
        if name not in known:
            raise InputError(f"--{name.replace('_', '-')} is no setting of method {method}")
    if method == "ba" and given.setdefault("groups", 1) != 1:
        raise InputError(f"method ba has one group, not {given['groups']}")
    try:
        if method not in ("gba", "ba"):
            common: dict[str, Any] = {"method": method, "width": max(1024, 8 * d), "steps": FIXED["steps"]}
            return BaselineConfig(**common | given)
        config = RECIPES[recipe](d, **given)
    except InputError as error:
        raise error if config_file is None else InputError(f"{error} (from {config_file} and the flags)") from None
    if config.adapt_every > config.steps:
        click.echo(f"Note: adapt_every {config.adapt_every} > steps {config.steps}: no bias will adapt", err=True)
    return config


# ---- what is shown ---------------------------------------------------------------------------------------------------


@contextmanager
def _counting(label: str, rows: int) -> Iterator[Callable[[int], object]]:
    """A progress bar over rows, on stderr; yields what to call with the number of rows done."""
    with click.progressbar(length=rows, label=label, file=sys.stderr) as bar:
        yield bar.update


def _train(steps: Iterator[Progress], config: AnyConfig) -> Progress | None:
    """Train with a progress bar; returns how the last step stood, None where all had been done."""
    last: Progress | None = None
    with click.progressbar(
        length=config.steps, label="training", item_show_func=_standing, file=sys.stderr, width=18
    ) as bar:
        for progress in steps:
            bar.update(progress.step - (last.step if last else 0), progress)
            last = progress
    return last


def _standing(progress: Progress | None) -> str:
    if progress is None:
        return ""
    return f"loss {progress.loss:.4f}  L0 {progress.l0:.1f}  FVU {progress.fvu:.3f}  dead {progress.dead:.1%}" + (
        f"  <= target {progress.within:.0%}" if progress.within is not None else ""
    )


def _show_groups(groups: list[dict[str, Any]]) -> None:
    if groups:
        click.echo("group   target    median      mean   at or under target")
    for k, g in enumerate(groups, start=1):
        click.echo(f"{k:5d} {g['target']:8.4f}  {g['median']:8.4f}  {g['mean']:8.4f}   {g['within']:8.0%}")


def _show_summary(summary: dict[str, Any]) -> None:
    l0 = summary["l0_distribution"]
    click.echo(
        f"FVU {summary['fvu']:.4f} (explained variance {summary['explained_variance']:.4f})   "
        f"L0 {summary['l0']:.1f} (median {l0['median']}, 90% from {l0['p5']} to {l0['p95']})   "
        f"dead {summary['dead']:.2%}   over {summary['rows']} rows"
    )


def _show_recovery(found: dict[str, Any]) -> None:
    for tau, share in found["frr"].items():
        click.echo(f"FRR({tau}) {share:.1%}   one-to-one {found['one_to_one'][tau]:.1%}")
    if found["e"] is not None:
        click.echo(f"every true feature has a neuron of its own within e = {found['e']:.3f} (1 - cosine)")


# ---- commands --------------------------------------------------------------------------------------------------------


@main.command()
@click.option("-o", "--out", type=Path, help="folder of the run  [default: runs/demo, or the first free runs/demo-N]")
@click.option("--rows", default=50_000, help="rows of data to train on")
@click.option("--weights", type=click.Choice(list(model.WEIGHTS)), default="constant", help="law of the entries of H")
@_settings
@_json
def demo(
    out: Path | None, rows: int, weights: str, method: str | None, recipe: str, config_file: Path | None,
    backend: str | None, checkpoint_every: int | None, keep: int | None, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Recover known features: the paper's imbalanced set, from data to features, in under a minute.

    n = 128 features in d = 42 dimensions; half of the rows hold 3 of them, half hold 20.  --seed sets data and weights.
    """
    out = out or _free(Path("runs/demo"))
    config = _configure(method, recipe, config_file, 42, flags, **DEMO)
    truth = replace(model.imbalanced(config.seed), weights=weights)
    saving = Saving.of(config, checkpoint_every, keep)
    backend = backend or "numpy"
    engine = backends.load_for(backend, config)
    folder.refuse_existing(out)
    synthetic.write(truth, rows, out / "data", {"set": "imbalanced", "weights": weights, "seed": config.seed}, False)
    data, found = survey(open_activations(out / "data" / "X.npy"), config.master)
    with signals() as stop:
        last = _train(
            train_run(data, found, config, engine, {"backend": backend, "recipe": recipe}, out, saving, stop), config
        )
    assert last is not None  # a run has at least one step
    params = folder.open_network(out).params
    fresh = (draw.X for draw in truth.chunks(rows + HELD_OUT, synthetic.CHUNK, start=rows))
    evaluation = evaluate_network(params, config, engine, fresh)
    result = _result(evaluation, config, last.step, last.seconds, out) | recovery(params.V, truth.V)
    if as_json:
        return click.echo(json.dumps(result))
    click.echo(f"\nGBA on the imbalanced set: n = 128 features in d = 42 dimensions, {rows} rows, M = {config.width}")
    band = theory.resonance_band(truth.n, truth.d, 3)
    click.echo(
        f"Each feature occurs in f = {truth.rows.f[0]:.3f} of the rows.  Theory's resonance band for the rows of s = 3:"
        f" p from {band.low:.4f} to {band.high:.4f}\n"
    )
    _show_groups(result.get("groups", []))
    click.echo()
    _show_recovery(result)
    click.echo("the paper's GBA: FRR(0.8) 100.0%, FRR(0.9) 100.0%")
    _show_summary(result)
    click.echo(f"\nThe run is in {out}, trained in {last.seconds:.0f} s.  Judge it again, or on data of your own:")
    click.echo(f"  {_program()} evaluate {out} {out}/data/X.npy --truth {out}/data/V.npy")
    return None


def _program() -> str:
    """How this program was called, so that the commands it suggests can be pasted: make calls .venv/bin/refgba."""
    return "refgba" if Path(sys.argv[0]).is_absolute() else sys.argv[0]


def _free(path: Path) -> Path:
    """`path` itself, or the first of path-2, path-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{k}") for k in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


@main.command()
@click.argument("data", type=Path, required=False)
@click.option("-o", "--out", type=Path, help="folder of the run")
@click.option("--resume", type=Path, metavar="RUN", help="go on with the run in this folder; --steps extends it")
@click.option("--drop-zero-rows", is_flag=True, help="skip rows that are all zeros instead of refusing them")
@_settings
@_json
def train(
    data: Path | None, out: Path | None, resume: Path | None, drop_zero_rows: bool, method: str | None, recipe: str,
    config_file: Path | None, backend: str | None, checkpoint_every: int | None, keep: int | None, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Train on DATA and write the run to the folder -o.

    DATA is a .npy or .safetensors file of activations (rows, d), or a folder of them (`refgba data`).  It is read block
    by block; rows are scaled to unit norm.  Without flags the recipe chooses every setting from d.

    A run that was stopped or killed goes on with --resume, to the same result to the bit; DATA is then needed only if
    it has moved.
    """
    if resume is not None:
        wrong = [
            f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None and name != "steps"
        ]
        wrong += ["-o"] * (out is not None) + ["--config"] * (config_file is not None)
        wrong += ["--drop-zero-rows"] * drop_zero_rows + ["--recipe"] * (recipe != "default")
        wrong += ["--method"] * (method is not None)
        if wrong:
            raise InputError(f"a run that goes on keeps its settings: {wrong[0]} cannot be given with --resume")
        return _resume(resume, data, flags["steps"], backend, checkpoint_every, keep, as_json)
    if data is None or out is None:
        raise InputError("give DATA and -o FOLDER to begin a run, or --resume RUN to go on with one")
    activations = open_activations(data)
    config = _configure(method, recipe, config_file, activations.d, flags)
    saving = Saving.of(config, checkpoint_every, keep)
    backend = backend or "numpy"
    engine = backends.load_for(backend, config)
    folder.refuse_existing(out)
    with _counting("checking", len(activations)) as tick:
        activations, found = survey(activations, config.master, drop_zero_rows, tick)
    names = {"backend": backend, "recipe": recipe}
    with signals() as stop:
        _train(train_run(activations, found, config, engine, names, out, saving, stop), config)
    return _trained(out, activations, engine, as_json)


def _resume(
    run: Path, path: Path | None, steps: int | None, backend: str | None, every: int | None, keep: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Go on with a run, with its own settings, data and backend unless others are given."""
    record = folder.read_record(run)
    about, config = record.about, record.config
    if steps is not None and steps != config.steps:
        config = extended(config, steps)
    kept = about["checkpoints"]
    saving = Saving.of(config, kept["every"] if every is None else every, kept["keep"] if keep is None else keep)
    engine = backends.load_for(backend or about["backend"], config)
    data = reopen(about["data"], record.dropped, record.crc, path)

    def say(remark: str) -> None:
        click.echo(f"Note: {remark}", err=True)

    if backend not in (None, about["backend"]):
        say(f"the run began with backend {about['backend']}; with {backend} it will not be the same to the bit")
    with signals() as stop:
        if _train(resume_run(record, data, config, engine, saving, stop, say), config) is None:
            say(f"the run has done its {config.steps} steps; --steps extends it")
    return _trained(run, data, engine, as_json)


def _trained(out: Path, data: Activations, engine: backends.Backend, as_json: bool) -> None:
    """Judge a finished run on rows of its own data."""
    network = folder.open_network(out)
    sample = data.sample(SAMPLE, EVALUATE)
    with _counting("evaluating", min(len(data), SAMPLE)) as tick:
        evaluation = evaluate_network(network.params, network.config, engine, sample, tick)
    seconds = network.state["seconds"]
    result = _result(evaluation, network.config, network.state["step"], seconds, out)
    if as_json:
        return click.echo(json.dumps(result))
    _show_groups(result.get("groups", []))
    _show_summary(result)
    click.echo(f"The run is in {out}, trained in {seconds:.0f} s.  On other data: {_program()} evaluate {out} DATA")
    return None


def _result(evaluation: Evaluation, config: AnyConfig, steps: int, seconds: float, out: Path) -> dict[str, Any]:
    """What train and demo promise under --json."""
    return measured(evaluation, config) | {"steps": steps, "seconds": seconds, "run": str(out)}


@main.command()
@click.argument("network", type=Path)
@click.argument("data", type=Path)
@click.option("--truth", type=Path, help="V.npy, the true features (n, d), to report recovery")
@click.option("--drop-zero-rows", is_flag=True, help="skip rows that are all zeros instead of refusing them")
@click.option("--backend", help="what computes; see `refgba backends`  [default: numpy]")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="arithmetic  [default: that of the run]")
@click.option("-o", "--out", type=Path, help="write what each neuron does to this new .safetensors file")
@click.option("--top", type=click.IntRange(0, 1000), default=10, help="rows on which each neuron is highest, for -o")
@_json
def evaluate(
    network: Path, data: Path, truth: Path | None, drop_zero_rows: bool, backend: str | None, dtype: Dtype | None,
    out: Path | None, top: int, as_json: bool,
) -> None:  # fmt: skip
    """Judge NETWORK on DATA in one pass: reconstruction, sparsity, frequencies.

    NETWORK is a run, one of its checkpoints, or the folder of a dictionary (`refgba export`, SAELens); DATA is as for
    `train`.  With -o: frequency, peak, mean, standard deviation, Z-score and top rows of every neuron.
    """
    if out is not None and out.exists():
        raise InputError(f"{out}: exists; choose another file or remove it")
    top = top if out is not None else 0
    judged = _judge(network, data, backend, dtype, drop_zero_rows, top, truth)
    evaluation, result = judged.evaluation, judged.result
    if out is not None:
        save_evaluation(evaluation, out, {"network": str(network), "data": str(data)}, judged.check.row)
    if as_json:
        return click.echo(json.dumps(result))
    _show_groups(result.get("groups", []))
    _show_summary(result)
    if truth is not None:
        _show_recovery(result)
    return None


class _Judged(NamedTuple):
    """What `_judge` found: of which features, and by the check that knows which rows were left out."""

    evaluation: Evaluation
    result: dict[str, Any]
    features: Array
    check: Check


def _judge(
    network: Path, data: Path, backend: str | None, dtype: Dtype | None, drop_zero_rows: bool, top: int,
    truth: Path | None, most: int | None = None,
) -> _Judged:  # fmt: skip
    """Evaluate a run, a checkpoint or a dictionary on data, or on its first `most` rows."""
    config: AnyConfig | None = None
    if interop.is_dictionary(network):
        if backend is not None or dtype is not None:
            raise InputError(
                f"{network}: a dictionary is evaluated with NumPy in its own dtype, without --backend, --dtype"
            )
        dictionary = interop.read(network)
        W, master = dictionary.W_dec, str(dictionary.W_dec.dtype)
    else:
        opened = folder.open_network(network)
        config = opened.config if dtype is None else replace(opened.config, dtype=dtype)
        engine = backends.load_for(backend or "numpy", config)
        W, master = opened.params.V, config.master
    activations = open_activations(data, W.shape[1])
    found: dict[str, Any] = {} if truth is None else recovery(W, load_truth(truth, W.shape[1]))
    check = Check(activations.store, master, drop_zero_rows)
    rows = len(activations) if most is None else min(most, len(activations))
    chunks = _first(rows, check.chunks(activations, EVALUATE))
    with _counting("evaluating", rows) as tick:
        if config is None:
            evaluation = evaluate_dictionary(dictionary, chunks, tick, top)
        else:
            evaluation = evaluate_network(opened.params, config, engine, chunks, tick, top)
    return _Judged(evaluation, measured(evaluation, config) | found, W, check)


def _first(rows: int, chunks: Iterator[Array]) -> Iterator[Array]:
    """That many rows."""
    for x in chunks:
        yield x[:rows]
        rows -= len(x)
        if rows <= 0:
            return


@main.command("report")
@click.argument("runs", type=Path, nargs=-1, required=True)
@click.option("-o", "--out", type=Path, default="report.html", help="the page, replaced if it exists")
@click.option("--data", type=Path, help="what the runs are judged on  [default: what each was trained on]")
@click.option("--rows", type=click.IntRange(1), default=SAMPLE, help="of the data, from its first on")
@click.option("--truth", type=Path, help="V.npy, the true features (n, d), to show recovery")
@click.option("--labels", type=Path, help="JSON object of neurons' names, by their number")
@click.option("--drop-zero-rows", is_flag=True, help="skip rows that are all zeros instead of refusing them")
@click.option("--backend", help="what computes; see `refgba backends`  [default: numpy]")
def report_command(
    runs: tuple[Path, ...], out: Path, data: Path | None, rows: int, truth: Path | None, labels: Path | None,
    drop_zero_rows: bool, backend: str | None,
) -> None:  # fmt: skip
    """One HTML page about RUNS: how well they did, what to look at, curves, frequencies, and a table of all neurons."""
    names = _labels(labels)
    found = []
    for path in runs:
        run = report.load_run(path)
        if len({other.name for other in runs}) < len(runs):
            run.name = str(path)
        source = data or Path(str(run.about.get("data", {}).get("path", "")))
        if data is None and not source.name:
            raise InputError(f"{path}: does not say what it was trained on; give --data")
        judged = _judge(path, source, backend, None, drop_zero_rows, 10, truth, rows)
        run.evaluation = arrays(judged.evaluation, judged.check.row)
        run.summary, run.labels = judged.result, names
        run.data = f"{source}, {judged.evaluation.rows} rows{'' if data else ', on which it was trained'}"
        if truth is not None:
            run.truth = report.Truth.of(judged.features, load_truth(truth, judged.features.shape[1]))
        found.append(run)
    files.write(out, report.report(found).encode())
    click.echo(f"Wrote {out}")


def _labels(path: Path | None) -> dict[int, str]:
    """Names of neurons by their number, from a JSON object."""
    if path is None:
        return {}
    given = files.read_json(path, 2**28)
    for number, name in given.items():
        if not (number.isascii() and number.isdigit() and isinstance(name, str)):
            raise InputError(f'{path}: names are to be like {{"17": "a name"}}, not {brief(number)!r}')
    return {int(number): name for number, name in given.items()}


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--quick", "scale", flag_value="quick", default="quick", help="about a minute each")
@click.option("--full", "scale", flag_value="full", help="several minutes each")
@click.option("-o", "--out", type=Path, default="experiments", help="folder for JSON, PNG and the page")
@click.option("--backend", default="numpy", help="what computes; see `refgba backends`")
@click.option("--data", type=Path, help="activations to train on, where an experiment takes them  [default: a sample]")
@click.option("--held-out", type=Path, help="rows to judge on, with --data")
@_json
def reproduce(
    names: tuple[str, ...], scale: experiments.Scale, out: Path, backend: str, data: Path | None,
    held_out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the paper's claims again: experiments by NAME, or `all`.

    Writes NAME.json, NAME-1.png, ... and prints each verdict.  report.html shows these and whatever else was written
    to the folder before; without a NAME only that page is made anew.
    """
    chosen = list(experiments.NAMES) if "all" in names else list(dict.fromkeys(names))
    for name in chosen:
        experiments.load(name)
    if (data is None) != (held_out is None):
        raise InputError("--data and --held-out go together: what is trained on cannot be judged on")
    rows = None if data is None or held_out is None else (data, held_out)
    earlier = experiments.stored(out, but=chosen)
    if not (chosen or earlier):
        raise InputError(f"{out} holds no results: name an experiment ({', '.join(experiments.NAMES)}), or `all`")
    experiments.make_folder(out)  # before anything is computed
    outcomes = {}
    for name in chosen:
        outcome = experiments.run(name, scale, backend, lambda line: click.echo(line, err=True), rows)
        experiments.write(outcome, out)
        outcomes[name] = outcome
        if not as_json:
            click.echo(f"{name}: {outcome.verdict}")
    shown = outcomes | earlier
    files.write(out / "report.html", experiments.page([shown[n] for n in experiments.NAMES if n in shown]).encode())
    if as_json:
        told = {
            o.name: {"verdict": o.verdict, "claims": o.verdict.claims, "data": o.data}
            for o in (outcomes or earlier).values()
        }
        return click.echo(json.dumps(told))
    click.echo(f"Wrote {out / 'report.html'}")
    return None


@main.command()
@click.argument("network", type=Path)
@click.option("-o", "--out", type=Path, required=True, help="new folder")
@click.option("--format", type=click.Choice(interop.FORMATS), default="saelens", help="whose files to write")
def export(network: Path, out: Path, format: str) -> None:
    """Write NETWORK, a run or one of its checkpoints, for other libraries.

    \b
    saelens             SAELens 6, SAE.load_from_disk: takes raw activations
    saelens-folded      the same without normalisation or input bias: takes unit rows
    dictionary-learning load_dictionary: takes unit rows; torch has to be installed
    npz                 NumPy, exact: W_enc, b_enc, threshold, W_dec, b_dec
    """
    opened = folder.open_network(network)
    interop.export(opened.params, opened.config, opened.provenance(), out, format)
    click.echo(f"Wrote {out}, {format}: {opened.config.width} neurons, d = {opened.params.b_pre.size}")


@main.command("import")
@click.argument("source", type=Path)
@click.option("-o", "--out", type=Path, required=True, help="new folder")
def import_command(source: Path, out: Path) -> None:
    """Make a dictionary of SOURCE, a SAELens folder (standard, jumprelu, topk), that `evaluate` takes.

    `evaluate` reads SAELens folders as they are, too; this writes them as plain NumPy arrays.
    """
    dictionary = interop.read(source)
    interop.write_npz(dictionary, {"imported": source.resolve().name}, out)
    M, d = dictionary.W_enc.shape
    click.echo(f"Wrote {out}: {M} neurons, d = {d}, for rows that are {INPUTS[dictionary.input]}")


INPUTS = {"raw": "as they are", "unit": "scaled to unit norm", "sqrt_d": "scaled to norm sqrt(d)"}
INPUTS |= {"layer_norm": "scaled by layer norm"}


@main.group("data")
def data_group() -> None:
    """Stores of activations: a file, or a folder of .npy or .safetensors shards with a meta.json."""


@data_group.command("info")
@click.argument("store", type=Path)
@_json
def data_info(store: Path, as_json: bool) -> None:
    """What is in STORE, by its headers."""
    found = pack.info(open_store(store))
    if as_json:
        return click.echo(json.dumps(found))
    fewest, most = found["rows_per_shard"]
    click.echo(
        f"{store}: {found['rows']} rows of d = {found['d']} in {found['dtype']}, {found['bytes'] / 1e9:.3g} GB, "
        f"{found['shards']} shards of {fewest if fewest == most else f'{fewest} to {most}'} rows, "
        f"{found['checksums']} with a checksum{'' if found['complete'] else '; still being written'}"
    )
    for name, value in found["about"].items():
        click.echo(f"{name}: {json.dumps(value)}")
    return None


@data_group.command("verify")
@click.argument("store", type=Path)
@click.option("--drop-zero-rows", is_flag=True, help="skip rows that are all zeros instead of refusing them")
@_json
def data_verify(store: Path, drop_zero_rows: bool, as_json: bool) -> None:
    """Read all of STORE: checksums, shapes, and whether every row is finite and has a direction."""
    opened = open_store(store)
    with _counting("checking", len(opened)) as tick:
        found = pack.verify(opened, drop_zero_rows=drop_zero_rows, tick=tick)
    if as_json:
        return click.echo(json.dumps(found))
    dropped = f", {found['dropped']} rows of zeros besides" if found["dropped"] else ""
    click.echo(
        f"{store}: {found['rows']} rows are sound{dropped}; {found['checksums']} of {found['shards']} shards have a "
        "checksum, and match it"
    )
    return None


@data_group.command("pack")
@click.argument("sources", type=Path, nargs=-1, required=True)
@click.option("-o", "--out", type=Path, required=True, help="new folder")
@click.option("--dtype", type=click.Choice(DTYPES), help="of the shards  [default: that of the sources]")
@click.option("--rows-per-shard", type=click.IntRange(1), help="[default: about 256 MiB]")
@click.option("--format", type=click.Choice(["npy", "safetensors"]), default="npy", help="of the shards")
@click.option("--model", help="whose activations, for meta.json")
@click.option("--layer", type=int, help="for meta.json")
@click.option("--site", help="where in the layer, for meta.json")
@_json
def data_pack(
    sources: tuple[Path, ...], out: Path, dtype: str | None, rows_per_shard: int | None,
    format: pack.Format, as_json: bool, **about: Any,
) -> None:  # fmt: skip
    """Merge SOURCES, files or stores, into a new store; split and convert it on the way."""
    given = {name: value for name, value in about.items() if value is not None}
    with _counting("packing", sum(len(open_store(source)) for source in sources)) as tick:
        store = pack.pack(
            list(sources), out, dtype=dtype, rows_per_shard=rows_per_shard, format=format, about=given, tick=tick
        )
    if as_json:
        return click.echo(json.dumps(pack.info(store)))
    click.echo(f"Wrote {out}: {len(store)} rows of d = {store.d} in {store.dtype}, {len(store.shards)} shards")
    return None


KINDS = ["imbalanced", "uniform", "independent", "zipf", "pairs", "hierarchy"]


@main.command()
@click.option("-o", "--out", type=Path, required=True, help="folder for X.npy, V.npy and model.json")
@click.option("--kind", type=click.Choice(KINDS), default="imbalanced", help="which features a row holds")
@click.option("--rows", default=100_000, help="N")
@click.option("--n", default=128, help="number of features")
@click.option("--d", default=42, help="dimensions")
@click.option("--s", "sparsity", type=int, multiple=True, help="uniform, imbalanced: features a row; may repeat")
@click.option("--frequency", default=0.05, help="independent, zipf, pairs: mean frequency; hierarchy: of a parent")
@click.option("--exponent", default=1.0, help="zipf: how fast frequencies fall")
@click.option("--rho-2", default=0.2, help="pairs: how often the partner of a feature is there too")
@click.option("--children", type=click.IntRange(min=1), default=3, help="hierarchy: children a parent")
@click.option("--p-child", default=0.3, help="hierarchy: how often a child is there when its parent is")
@click.option("--weights", type=click.Choice(list(model.WEIGHTS)), default="constant", help="law of the entries of H")
@click.option("--features", type=click.Choice(list(model.FEATURES)), default="gaussian", help="law of V")
@click.option("--noise", default=0.0, help="standard deviation of noise added to each coordinate")
@click.option("--seed", default=0, help="seed of everything")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", help="of X")
@click.option("--keep-h", is_flag=True, help="write H.npy (rows, n) too")
@_json
def synth(out: Path, as_json: bool, keep_h: bool, rows: int, **asked: Any) -> None:
    """Write synthetic activations with known features, and say whether section 5 calls them identifiable."""
    truth = model.SyntheticModel(
        _rows_law(asked), asked["d"], asked["weights"], asked["features"], asked["noise"], asked["seed"], asked["dtype"]
    )
    with _counting("drawing", rows) as tick:
        synthetic.write(truth, rows, out, asked, keep_h, tick)
    report = identifiability((draw.H for draw in truth.chunks(rows, synthetic.CHUNK)), truth.V)
    if as_json:
        conditions = {c.name: asdict(c) for c in report.conditions}
        return click.echo(json.dumps({"out": str(out), "rows": rows, "conditions": conditions}))
    click.echo(f"Wrote {rows} rows to {out}.  Section 5 asks:")
    click.echo(str(report))
    return None


def _rows_law(asked: dict[str, Any]) -> model.Rows:
    """The law of the supports that the flags of `synth` ask for."""
    kind, n, f = asked["kind"], asked["n"], asked["frequency"]
    if kind in ("imbalanced", "uniform"):
        return model.Uniform(n, asked["sparsity"] or ((3, 20) if kind == "imbalanced" else (3,)))
    if kind == "pairs":
        return laws.Pairs(n, f, asked["rho_2"])
    if kind == "hierarchy":
        parents, rest = divmod(n, 1 + asked["children"])
        if rest or parents < 1:
            raise InputError(f"--n {n} must be a multiple of 1 + --children = {1 + asked['children']}")
        return laws.Hierarchy(parents, asked["children"], f, asked["p_child"])
    return model.Independent(np.full(n, f) if kind == "independent" else laws.zipf_frequencies(n, f, asked["exponent"]))


@main.command("theory")
@click.option("--n", required=True, type=int, help="number of features")
@click.option("--d", required=True, type=int, help="dimensions")
@click.option("--s", required=True, type=int, help="features a row")
@click.option("--p", type=float, help="a frequency to judge and, with --simulate, to run  [default: 1 / n]")
@click.option("--simulate", is_flag=True, help="run Modified BA at --p and print what it recovers, step by step")
@click.option("--width", type=click.IntRange(min=1), default=2048, help="simulate: M")
@click.option("--rows", type=click.IntRange(min=2), default=50_000, help="simulate: N")
@click.option("--steps", type=click.IntRange(min=1), default=5, help="simulate: steps")
@click.option("--eta", default=float("inf"), help="simulate: step size")
@click.option("--activation", type=click.Choice(["jumprelu", "relu"]), default="jumprelu", help="simulate: phi")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="simulate: seed of data and weights")
@_json
def theory_command(n: int, d: int, s: int, p: float | None, simulate: bool, as_json: bool, **asked: Any) -> None:
    """What the theory (section 6) says of n features in d dimensions, s a row: the resonance band and the width.

    The bounds hide constants, here set to 1: read them as orders of magnitude.
    """
    band, frequencies = theory.resonance_band(n, d, s), theory.frequency_band(n, d, s)
    p = 1 / n if p is None else p
    bound = theory.width_bound(n, p, s)
    inside = not band.empty and band.low <= p <= band.high
    recovered = _simulate(n, d, s, p, **asked) if simulate else []
    if as_json:
        said = {
            "band": asdict(band),
            "frequency_band": asdict(frequencies),
            "superposition": theory.superposition(n, d),
        }
        return click.echo(
            json.dumps(said | {"p": p, "inside": inside, "width": bound if isfinite(bound) else None, "frr": recovered})
        )
    click.echo(
        f"n = {n}, d = {d}, s = {s}: {theory.superposition(n, d)} superposition (d against sqrt n = {n**0.5:.1f})"
    )
    empty = ", which is empty" if band.empty else ""
    click.echo(f"resonance band   {band.low:.4g} <~ p <~ {band.high:.4g}   ({band.binding} binds){empty}")
    click.echo(
        f"by frequency     {frequencies.low:.4g} <~ p <~ {frequencies.high:.4g}   (f = s/n; {frequencies.binding})"
    )
    click.echo(f"at p = {p:.4g}, {'inside' if inside else 'outside'} the band, width M >~ {bound:.3g}")
    for step, share in enumerate(recovered, start=1):
        click.echo(f"Modified BA, step {step}: FRR(0.9) {share:.1%}")
    return None


def _simulate(
    n: int, d: int, s: int, p: float, width: int, rows: int, steps: int, seed: int, eta: float, activation: Activation
) -> list[float]:
    """FRR(0.9) of Modified BA after each step, on uniform s-sparse rows."""
    truth = model.SyntheticModel(model.Uniform(n, (s,)), d, seed=seed)
    W = stream(seed, "weights").standard_normal((width, d))
    X = unit_rows(truth.draw(0, rows).X)
    return [frr(W, truth.V, 0.9) for W in theory.modified_ba(X, W, p, steps, eta=eta, activation=activation)]


@main.command("backends")
@_json
def backends_command(as_json: bool) -> None:
    """Which backends can run here, and for the others why not."""
    status = backends.status()
    if as_json:
        return click.echo(json.dumps({name: {"usable": why is None, "reason": why} for name, why in status.items()}))
    for name, why in status.items():
        click.echo(f"{name:8} {'usable' if why is None else 'not usable: ' + why}")
    return None


# ---- the oracle ------------------------------------------------------------------------------------------------------


@main.group("oracle")
def oracle_group() -> None:
    """For those who write GBA again: what every step must give, and where another implementation first departs."""


@oracle_group.command("record")
@click.option("-o", "--out", type=Path, required=True, help="new folder")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest")
@click.option("--config", "config_file", type=Path, help="JSON file of settings; flags win over it")
@click.option("--d", type=click.IntRange(1), default=5, help="dimensions of the rows")
@click.option("--width", type=int, help=f"M  [default: {traces.SMALL['width']}]")
@click.option("--batch", type=int, help=f"L  [default: {traces.SMALL['batch']}]")
@click.option("--steps", type=int, help=f"T  [default: {traces.SMALL['steps']}]")
@click.option("--first", type=click.IntRange(1), help="record only so many of the steps")
@click.option("--seed", type=int, help=f"of weights and rows  [default: {traces.SMALL['seed']}]")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="what passes an open gate")
@click.option("--untied/--no-untied", default=None, help="a decoder of its own")
@click.option("--ties", is_flag=True, help="decisions exactly at their limits, with settings of its own")
def oracle_record(
    out: Path, recipe: str, config_file: Path | None, d: int, first: int | None, ties: bool, **flags: Any
) -> None:  # fmt: skip
    """Record a trace of the reference in float64, on synthetic rows: every quantity of every step."""
    traces.refuse_existing(out)
    if ties:
        trace = traces.ties()
    else:
        config = _configure("gba", recipe, config_file, d, flags, **traces.SMALL)
        assert isinstance(config, GBAConfig)
        trace = traces.example(replace(config, dtype="float64"), d, first)
    traces.write_trace(trace, out)
    neurons = f"{trace.config.width} neurons, d = {trace.d}"
    click.echo(f"Wrote {out}: {trace.steps} steps of {neurons}, {len(trace.arrays)} arrays")


@oracle_group.command("check")
@click.argument("trace", type=Path)
@click.argument("candidate", type=Path)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, True, True),
    help="relative to the size of each quantity  [default: by the dtype]",
)
@_json
@click.pass_context
def oracle_check(ctx: click.Context, trace: Path, candidate: Path, tolerance: float | None, as_json: bool) -> None:
    """Compare CANDIDATE, another implementation's dump, with TRACE: the first quantity that deviates, and why.

    Exit status 1 when one does.  `refgba oracle format` says what a dump is.
    """
    report = traces.check(trace, candidate, tolerance)
    click.echo(json.dumps({"agrees": report.agrees} | asdict(report)) if as_json else str(report))
    ctx.exit(0 if report.agrees else 1)


@oracle_group.command("dump")
@click.argument("trace", type=Path)
@click.option("-o", "--out", type=Path, required=True, help="new folder")
@click.option("--backend", required=True, help="what computes; see `refgba backends`")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), default="float32", help="arithmetic")
@click.option("--starts", type=click.Choice(traces.STARTS), default="trace", help="from which state each step starts")
def oracle_dump(trace: Path, out: Path, backend: str, dtype: Dtype, starts: oracle.Starts) -> None:
    """Write down what one of our own backends makes of TRACE, for `refgba oracle check`."""
    traces.refuse_existing(out)
    recorded = traces.read_trace(trace)
    arrays = traces.dump(recorded, backends.load(backend, dtype), dtype, starts)
    traces.write_candidate(arrays, starts, out, recorded)
    click.echo(f"Wrote {out}: {len(arrays)} arrays of {backend} in {dtype}")


@oracle_group.command("format")
def oracle_format() -> None:
    """Print the page that describes traces and dumps."""
    click.echo(Path(oracle.__file__).with_name("format.md").read_text(encoding="utf-8"), nl=False)
