"""The command line: one thin command per verb.  Commands parse, call and print; what decides or computes is elsewhere.

Results go to stdout, progress and remarks to stderr.  With --json a command prints one JSON object as its last line of
stdout.  Exit status: 0; 2 for bad usage or bad input, which another command cures; 1 for what failed all the same:
training that diverged, memory or a disk that was too small.
"""

from __future__ import annotations

from refgba.runs import loading  # isort: split

import json
import webbrowser
from dataclasses import asdict
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import click

from refgba import __version__, backends, experiments, formats, model, report, theory
from refgba.backends.comm import Ranks
from refgba.config import LARGEST
from refgba.data import files, inspection, pack, synthetic
from refgba.data.centre import Centring
from refgba.data.store import DTYPES, open_store
from refgba.errors import InputError
from refgba.identifiability import identifiability
from refgba.llm import networks, records
from refgba.llm.commands import attach
from refgba.oracle.commands import oracle_group
from refgba.planning.commands import plan_command
from refgba.report.demo import demo_page
from refgba.report.gather import gather
from refgba.report.pages import RUNS_PAGE
from refgba.runs import console, demo, folder, judging, launch, plane
from refgba.runs.given import refuse_unused
from refgba.runs.held_out import Choice
from refgba.runs.options import PATH, drop_options, held_out_options, json_option, output_option, request_options
from refgba.runs.parallel import Ranked, RankedSections
from refgba.runs.sections import Sectioned
from refgba.runs.settings import Request
from refgba.types import Activation, Dtype

COUNT = click.IntRange(1, LARGEST)


@click.group(
    cls=console.Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Group Bias Adaptation for sparse autoencoders: train one, and judge what it found.

    Start with `refgba demo`; then `refgba train your-activations.npy -o runs/mine`.
    """


@main.command("demo", cls=Sectioned, short_help="Recover known features, in about a minute.")
@output_option(files.refuse_folder, help="folder of the run  [default: runs/demo, or the first free runs/demo-N]")
@click.option("--rows", default=50_000, help="rows of data to train on")
@click.option("--weights", type=click.Choice(list(model.WEIGHTS)), default="constant", help="law of the entries of H")
@click.option("--open", "open_page", is_flag=True, help="open the page of the demonstration in a browser")
@request_options
@json_option
def demo_command(
    out: Path | None, rows: int, weights: str, open_page: bool, as_json: bool, request: Request
) -> None:  # fmt: skip
    """Recover known features: the paper's imbalanced set, from data to features, in about a minute.

    n = 128 features in d = 42 dimensions; half of the rows hold 3 of them, half hold 20.  --seed sets data and weights.
    It ends on a page, demo.html in the run's folder, that shows features being found.
    """
    out = out or launch.free_folder(Path("runs/demo"))
    run = demo.begin(out, rows, weights, request, console.remark, console.waiting)
    console.train(run.launch)
    evaluation, result = run.judged()
    files.write_output(run.page, demo_page(run, evaluation, result, plane.turn()).encode(errors="backslashreplace"))
    if open_page:
        webbrowser.open(run.page.resolve().as_uri())
    if as_json:
        return click.echo(json.dumps(result | {"page": str(run.page)}))
    return console.show_demo(run, result)


@main.command(cls=RankedSections, short_help="Train a network on activations.")
@click.argument("data", type=PATH, required=False)
@output_option(files.refuse_folder, help="folder of the run")
@click.option("--resume", type=PATH, metavar="RUN", help="go on with the run in this folder; --steps extends it")
@click.option("--dry-run", is_flag=True, help="only show settings, time and memory of the run; -o can be left out")
@held_out_options
@drop_options
@click.option("--centre", type=click.Choice(get_args(Centring)), help="subtract what all rows share  [default: auto]")
@click.option("--broadcast-rows", is_flag=True, help="under mpiexec: rank 0 alone reads the rows, and sends them")
@request_options
@json_option
def train(
    data: Path | None, out: Path | None, resume: Path | None, dry_run: bool, held_out: Choice, drop_zero_rows: bool,
    drop_below: float, centre: Centring | None, as_json: bool, request: Request, ranks: Ranks,
) -> None:  # fmt: skip
    """Train on DATA and write the run to the folder -o.

    DATA is a .npy, .safetensors, .npz or .pt file of activations (rows, d) or (batch, position, d), or a store, which
    `refgba data pack` makes of most else.  Rows are scaled to unit norm.  A tenth of them is held out, not trained on
    but judged on.  Without flags the recipe chooses all from d.

    A run that was stopped or killed goes on with --resume, to the same result to the bit; DATA is then needed only if
    it has moved.

    \b
    refgba train activations.npy -o runs/mine --width 4096
    refgba train --resume runs/mine --steps 8000
    mpiexec -n 4 refgba train activations.npy -o runs/mine
    """
    if resume is not None:
        refused = {"-o": out, "--drop-zero-rows": drop_zero_rows, "--drop-below": drop_below, "--centre": centre}
        refused |= {"--dry-run": dry_run, "--held-out-share": held_out.share is not None}
        request.refuse_to_resume(**refused)
        run = launch.go_on(resume, data, request, console.remark, console.waiting, held_out.data, ranks)
    elif data is not None and dry_run:
        drops = drop_zero_rows, drop_below
        run = launch.rehearse(out, data, request, *drops, console.remark, console.waiting, held_out, ranks)
        return console.show_rehearsal(run, as_json)
    elif data is not None and out is not None:
        choices = drop_zero_rows, drop_below, centre, console.counting, console.remark, console.waiting, held_out
        run = launch.begin(out, data, request, *choices, ranks)
    else:
        raise InputError("give DATA and -o FOLDER to begin a run, or --resume RUN to go on with one")
    if not console.train(run):
        console.remark(f"the run has done its {run.config.steps} steps; --steps extends it")
    result = judging.judge_trained(run.path, run.data, run.backend, run.held_out, console.counting, ranks)
    return console.show_trained(run, result, as_json)


@main.command(cls=Ranked, short_help="Judge a network on activations.")
@click.argument("network", type=PATH)
@click.argument("data", type=PATH)
@click.option("--truth", type=PATH, help="V.npy, the true features (n, d), to report recovery")
@drop_options
@click.option("--backend", help="what computes; see `refgba backends`  [default: numpy]")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="arithmetic  [default: that of the run]")
@output_option(judging.refuse_output, help="write what each neuron does to this new .safetensors file")
@click.option("--top", type=click.IntRange(0, 1000), default=10, help="rows on which each neuron is highest, for -o")
@json_option
def evaluate(
    network: Path, data: Path, truth: Path | None, drop_zero_rows: bool, drop_below: float, backend: str | None,
    dtype: Dtype | None, out: Path | None, top: int, as_json: bool, ranks: Ranks,
) -> None:  # fmt: skip
    """Judge NETWORK on DATA in one pass: reconstruction, sparsity, frequencies.

    NETWORK is a run, one of its checkpoints, or the folder of a dictionary (`refgba export`, SAELens); DATA is as for
    `train`.  With -o: frequency, peak, mean, standard deviation, Z-score and top rows of every neuron.  `mpiexec -n P`
    in front spreads the neurons of a run over P processes.
    """
    if out is None:
        refuse_unused(["top"], "without -o")
    top = top if out is not None else 0
    judged = judging.judge(
        network, data, backend, dtype, drop_zero_rows, top, truth, counting=console.counting, drop_below=drop_below,
        ranks=ranks, copied=True,
    )  # fmt: skip
    for remark in judged.remarks():
        console.remark(remark)
    if out is not None:
        about = {"network": str(network), "data": str(data)}
        ranks.first(partial(judging.save, judged.evaluation, out, about, judged.row))
    if as_json:
        return click.echo(json.dumps(judged.result))
    console.show_result(judged.result)
    if truth is not None:
        console.show_recovery(judged.result)
    return None


@main.command("report", short_help="Write one HTML page about runs.")
@click.argument("runs", type=PATH, nargs=-1, required=True)
@output_option(RUNS_PAGE.refuse, default="report.html", help="the page; an earlier one is replaced")
@click.option("--data", type=PATH, help="what the runs are judged on  [default: what each was trained on]")
@click.option("--rows", type=click.IntRange(1), default=judging.SAMPLE, help="of the data, from its first on")
@click.option("--truth", type=PATH, help="V.npy, the true features (n, d), to show recovery")
@click.option("--labels", type=PATH, help="JSON object of neurons' names, by their number")
@drop_options
@click.option("--backend", help="what computes; see `refgba backends`  [default: numpy]")
def report_command(
    runs: tuple[Path, ...], out: Path, data: Path | None, rows: int, truth: Path | None, labels: Path | None,
    drop_zero_rows: bool, drop_below: float, backend: str | None,
) -> None:  # fmt: skip
    """One HTML page about RUNS: how well they did, what to look at, curves, frequencies, and a table of all neurons."""
    console.remark_unfinished(*([] if data is None else [data]))
    gathered = gather(runs, data, rows, truth, labels, drop_zero_rows, backend, console.counting, drop_below)
    RUNS_PAGE.write(out, report.report(gathered).encode(errors="backslashreplace"))
    console.line(f"Wrote {out}")


@main.command(short_help="Measure the paper's claims again.")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--quick", "scale", flag_value="quick", default="quick", help="half a minute to some minutes each")
@click.option("--full", "scale", flag_value="full", help="several minutes each")
@output_option(files.refuse_folder, default="experiments", help="folder for JSON, PNG and the page")
@click.option("--backend", default="numpy", help="what computes; see `refgba backends`")
@click.option("--data", type=PATH, help="activations to train on, where an experiment takes them  [default: a sample]")
@click.option("--held-out", type=PATH, help="rows to judge on, with --data")
@json_option
def reproduce(
    names: tuple[str, ...], scale: experiments.Scale, out: Path, backend: str, data: Path | None,
    held_out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the paper's claims again: experiments by NAME, or `all`.

    Writes NAME.json, NAME-1.png, ... and prints each verdict.  report.html shows these and whatever else was written
    to the folder before; without a NAME only that page is made anew.
    """
    if (data is None) != (held_out is None):
        raise InputError("--data and --held-out go together: what is trained on cannot be judged on")
    rows = None if data is None or held_out is None else (data, held_out)

    def tick(line: str) -> None:
        console.line(line, err=True)

    def done(outcome: experiments.Outcome) -> None:
        if not as_json:
            console.line(f"{outcome.name}: {outcome.verdict}")

    outcomes = experiments.reproduce(names, out, scale, backend, rows, tick, done)
    if as_json:
        result = {o.name: {"verdict": o.verdict, "claims": o.verdict.claims, "data": o.data} for o in outcomes}
        return click.echo(json.dumps(result))
    console.line(f"Wrote {out / experiments.PAGE}")
    return None


@main.command(short_help="Write a network for other libraries.")
@click.argument("network", type=PATH)
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder")
@click.option("--format", type=click.Choice(formats.FORMATS), default="saelens", help="whose files to write")
@click.option("--store", type=PATH, help="the harvest that NETWORK is for  [default: the one it was trained on]")
def export(network: Path, out: Path, format: str, store: Path | None) -> None:
    """Write NETWORK, a run or one of its checkpoints, for other libraries.

    \b
    saelens             SAELens 6, SAE.load_from_disk: takes raw activations
    saelens-folded      the same without normalisation or input bias: takes unit rows
    dictionary-learning load_dictionary: takes unit rows; torch has to be installed
    npz                 NumPy, exact: W_enc, b_enc, threshold, W_dec, b_dec

    Trained on a harvest, it says there of which model, site and text it is, which others need to open these.
    """
    formats.require(format)
    opened = folder.open_network(network)
    harvest, lost = networks.harvest_of(network, opened.params.b_pre.size, store)
    rows = formats.export(opened.params, opened.config, opened.provenance() | harvest, out, format, opened.centre)
    console.line(f"Wrote {out}, {format}: {opened.config.width} neurons, d = {opened.params.b_pre.size}")
    console.remark(f"the network in {out} {rows}")
    if lost is not None:
        console.remark(f"{network}: {lost}; so {out} does not say of which model and site it is; give --store")


@main.command("import", short_help="Open what other libraries or ports wrote.")
@click.argument("source", type=PATH)
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="of a file's  [default: jumprelu]")
def import_command(source: Path, out: Path, activation: Activation | None) -> None:
    """Make a dictionary of SOURCE that `evaluate` takes.

    SOURCE is a folder of SAELens (standard, jumprelu, topk), which `evaluate` also reads as it is, or the file in which
    a port of GBA saved its parameters: an .npz or .safetensors with W, a, b, b_pre and, where untied, W_dec.
    """
    dictionary = formats.bring(source, activation)
    formats.npz.write(dictionary, {"imported": source.resolve().name}, out)
    M, d = dictionary.W_enc.shape
    console.line(f"Wrote {out}: {M} neurons, d = {d}, for rows that are {formats.INPUTS[dictionary.input]}")


@main.group("data", short_help="Make, look at and check stores of activations.")
def data_group() -> None:
    """Your own data: make a store of activations that `train` takes, look at one, check one."""


@data_group.command("info", short_help="Say what is in a store.")
@click.argument("store", type=PATH)
@json_option
def data_info(store: Path, as_json: bool) -> None:
    """What is in STORE, by its headers."""
    facts = inspection.info(open_store(store))
    if as_json:
        return click.echo(json.dumps(facts))
    return console.show_store(store, facts)


@data_group.command("verify", short_help="Read and check all rows of a store.")
@click.argument("store", type=PATH)
@click.option(
    "--dtype", type=click.Choice(["float64", "float32"]), default="float32", help="arithmetic to train in: as `train`"
)
@drop_options
@json_option
def data_verify(store: Path, dtype: str, drop_zero_rows: bool, drop_below: float, as_json: bool) -> None:
    """Read all of STORE: checksums, shapes, and whether every row is finite and has a direction.

    Of a store that `refgba harvest` wrote also the tokens beside its rows: checksums, lengths, dtypes and ranges.
    """
    opened = open_store(store)
    with console.counting("checking", len(opened)) as tick:
        facts = inspection.verify(opened, dtype, drop_zero_rows, tick, drop_below)
    if records.is_harvest(store):
        facts["contexts"] = records.open_harvest(store).verify_tokens()
    console.remark_unfinished(store)
    if as_json:
        return click.echo(json.dumps(facts))
    return console.show_soundness(store, facts, drop_below)


@data_group.command("pack", short_help="Make a store of your files.")
@click.argument("sources", type=PATH, nargs=-1, required=True)
@output_option(files.refuse_full_folder, files.refuse_folder, required=True, help="new folder")
@click.option("--dtype", type=click.Choice(DTYPES), help="of the shards  [default: that of the sources]")
@click.option("--rows-per-shard", type=click.IntRange(1), help="[default: about 256 MiB]")
@click.option("--format", type=click.Choice(["npy", "safetensors"]), default="npy", help="of the shards")
@click.option("--tensor", metavar="NAME", help="of several arrays or columns in a file, the one that is meant")
@click.option("--model", help="whose activations, for meta.json")
@click.option("--layer", type=int, help="for meta.json")
@click.option("--site", help="where in the layer, for meta.json")
@json_option
def data_pack(sources: tuple[Path, ...], out: Path, tensor: str | None, as_json: bool, **options: Any) -> None:
    """Make a store that `train` takes of SOURCES, files, folders or stores: merged, split, converted.

    .npy, .npz, .pt, .safetensors, .parquet, .arrow, folders of one kind of these, and Hugging Face data sets as
    save_to_disk writes them.  (batch, position, d) arrays become rows in order.
    """
    about = {name: options.pop(name) for name in ("model", "layer", "site")}
    with console.counting("packing", pack.count(list(sources), tensor)) as tick:
        store = pack.pack(list(sources), out, tensor=tensor, about=about, tick=tick, **options)
    console.remark_unfinished(*sources)
    if as_json:
        return click.echo(json.dumps(inspection.info(store)))
    return console.show_packed(out, store)


@main.command(short_help="Write activations with known features.")
@output_option(files.refuse_folder, required=True, help="folder for X.npy, V.npy and model.json")
@click.option("--kind", type=click.Choice(synthetic.KINDS), default="imbalanced", help="which features a row holds")
@click.option("--rows", default=100_000, help="N")
@click.option("--n", type=COUNT, default=128, help="number of features")
@click.option("--d", type=COUNT, default=42, help="dimensions")
@click.option("--s", "sparsity", type=COUNT, multiple=True, help="uniform, imbalanced: features per row; may repeat")
@click.option("--frequency", default=0.05, help="independent, zipf, pairs: mean frequency; hierarchy: of a parent")
@click.option("--exponent", default=1.0, help="zipf: how fast frequencies fall")
@click.option("--rho-2", default=0.2, help="pairs: how often the partner of a feature is there too")
@click.option("--children", type=COUNT, default=3, help="hierarchy: children per parent")
@click.option("--p-child", default=0.3, help="hierarchy: how often a child is there when its parent is")
@click.option("--weights", type=click.Choice(list(model.WEIGHTS)), default="constant", help="law of the entries of H")
@click.option("--features", type=click.Choice(list(model.FEATURES)), default="gaussian", help="law of V")
@click.option("--noise", default=0.0, help="standard deviation of noise added to each coordinate")
@click.option("--seed", default=0, help="seed of everything")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", help="of X")
@click.option("--keep-h", is_flag=True, help="write H.npy (rows, n) too")
@json_option
def synth(out: Path, as_json: bool, keep_h: bool, rows: int, **described: Any) -> None:
    """Write synthetic activations with known features, and say whether section 5 calls them identifiable."""
    refuse_unused(synthetic.unused(described["kind"]), f"on --kind {described['kind']}")
    truth = synthetic.described(described)
    with console.counting("drawing", rows) as tick:
        synthetic.write(truth, rows, out, described, keep_h, tick)
    report = identifiability((draw.H for draw in truth.chunks(rows, synthetic.CHUNK)), truth.V)
    if as_json:
        conditions = {c.name: asdict(c) for c in report.conditions}
        return click.echo(json.dumps({"out": str(out), "rows": rows, "conditions": conditions}))
    console.line(f"Wrote {rows} rows to {out}.  Section 5 asks:")
    console.lines(str(report))
    return None


@main.command("theory", short_help="Print the theory's resonance band and width.")
@click.option("--n", required=True, type=COUNT, help="number of features")
@click.option("--d", required=True, type=COUNT, help="dimensions")
@click.option("--s", required=True, type=COUNT, help="features per row")
@click.option("--p", type=float, help="a frequency to judge and, with --simulate, to run  [default: 1 / n]")
@click.option("--simulate", is_flag=True, help="run Modified BA at --p and print what it recovers, step by step")
@click.option("--width", type=COUNT, default=2048, help="simulate: M")
@click.option("--rows", type=click.IntRange(2, LARGEST), default=50_000, help="simulate: N")
@click.option("--steps", type=COUNT, default=5, help="simulate: steps")
@click.option("--eta", default=float("inf"), help="simulate: step size")
@click.option("--activation", type=click.Choice(["jumprelu", "relu"]), default="jumprelu", help="simulate: phi")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="simulate: seed of data and weights")
@json_option
def theory_command(n: int, d: int, s: int, p: float | None, simulate: bool, as_json: bool, **simulated: Any) -> None:
    """What the theory (section 6) says of n features in d dimensions, s per row: the resonance band and the width.

    The bounds hide constants, here set to 1: read them as orders of magnitude.
    """
    if not simulate:
        refuse_unused(simulated, "without --simulate")
    p = 1 / n if p is None else p
    band, frequencies = theory.resonance_band(n, d, s), theory.frequency_band(n, d, s)
    width, inside, side = theory.width_bound(n, p, s), band.holds(p), theory.superposition(n, d)
    recovered = theory.simulate(n, d, s, p, **simulated) if simulate else []
    if as_json:
        bands = {"band": asdict(band), "frequency_band": asdict(frequencies), "superposition": side}
        at_p = {"p": p, "inside": inside, "width": width if isfinite(width) else None, "frr": recovered}
        return click.echo(json.dumps(bands | at_p))
    console.line(f"n = {n}, d = {d}, s = {s}: {side} superposition (d against sqrt n = {n**0.5:.1f})")
    console.show_bands(band, frequencies)
    console.line(f"at p = {p:.4g}, {'inside' if inside else 'outside'} the band, width M >~ {width:.3g}")
    for step, share in enumerate(recovered, start=1):
        console.line(f"Modified BA, step {step}: FRR(0.9) {share:.1%}")
    return None


@main.command("backends", short_help="List what can compute here.")
@json_option
def backends_command(as_json: bool) -> None:
    """Which backends can run here, and for the others why not."""
    status = backends.status()
    if as_json:
        return click.echo(json.dumps({name: {"usable": why is None, "reason": why} for name, why in status.items()}))
    for name, why in status.items():
        console.line(f"{name:8} {'usable' if why is None else 'not usable: ' + why}")
    return None


main.add_command(oracle_group)
main.add_command(plan_command)


attach(main)
loading.done()
