"""The commands of this room.  torch and transformers are imported when one of them runs, not before."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from refgba.data import files
from refgba.data.centre import Centring
from refgba.errors import InputError
from refgba.llm import results
from refgba.llm.console import Meter
from refgba.llm.dashboard.commands import dashboard_command, features_command
from refgba.recipe import RECIPES
from refgba.runs import console, judging
from refgba.runs.given import refuse_unused
from refgba.runs.options import PATH, WORD, drop_options, json_option, output_option
from refgba.runs.settings import Request
from refgba.runs.signals import Stopped
from refgba.runs.trainer import TrainingError

DTYPES = ("float32", "bfloat16", "float16")


def text_flags(required: bool, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flags that say which text is read.  required, help: of --text."""

    def options(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--per-document", type=click.IntRange(1), help="at most so many contexts of each, its first"),
            click.option("--shuffle", type=int, metavar="SEED", help="take the files in random order"),
            click.option(
                "--files", "pattern", metavar="PATTERN", help='in folders, such as "*.py"  [default: all text]'
            ),
            click.option("--column", default="text", help="field of .jsonl, column of parquet and data sets"),
            click.option("--text", "texts", type=PATH, metavar="PATH", multiple=True, required=required, help=help),
        ):
            command = option(command)
        return command

    return options


text_options = text_flags(True, "file or folder; may repeat")


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how a model is opened."""
    for option in (
        click.option("--bos/--no-bos", default=None, help="begin contexts with BOS  [default: as the tokenizer]"),
        click.option("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one"),
        click.option("--compute", type=click.Choice(DTYPES), default="float32", help="the model's arithmetic"),
    ):
        command = option(command)
    return command


@click.command("harvest", short_help="Write a language model's activations.")
@click.argument("model", type=WORD)
@click.option("--site", "patterns", multiple=True, required=True, help="submodule, or a wildcard; may repeat")
@text_options
@output_option(files.refuse_folder, required=True, help="folder of the store, or of a store per site")
@click.option("--of", type=click.Choice(["output", "input"]), default="output", help="which side of the submodule")
@click.option("--tokens", type=click.IntRange(1), help="how many the model sees  [default: all of the text]")
@click.option("--context", type=click.IntRange(1), help="tokens in a context  [default: 128, or what the model takes]")
@click.option("--batch", type=click.IntRange(1), default=8, help="contexts at a time")
@click.option("--pack", is_flag=True, help="several documents per context; attention crosses their boundaries")
@click.option("--dtype", type=click.Choice(DTYPES), help="of the store  [default: float32 if --compute is]")
@click.option("--drop-first", type=click.IntRange(0), default=1, help="first positions of each context to leave out")
@click.option("--keep-special", is_flag=True, help="keep the rows of special tokens")
@click.option("--max-norm", default=10.0, help="leave out rows beyond so many median norms; 0 keeps all")
@click.option("--shard", type=click.IntRange(1), default=32_768, help="tokens per shard; a killed harvest repeats one")
@model_options
@json_option
def harvest_command(
    model: str, patterns: tuple[str, ...], texts: tuple[Path, ...], column: str, pattern: str | None,
    shuffle: int | None, per_document: int | None, out: Path, bos: bool | None, device: str, compute: str,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Write the activations of MODEL on text as stores that `refgba train` takes, one per site.

    MODEL is the folder of a Hugging Face model, a .gguf file, or a hub's name; a site is one of its submodules, such as
    model.layers.15.mlp, or several: "model.layers.*.mlp".  Beside each row: its token, document, position and norm.
    The same command goes on after a kill, to the same bytes.
    """
    from refgba.llm import harvesting
    from refgba.llm.models import open_model
    from refgba.llm.text import TextOptions
    from refgba.llm.text import files as listed

    chosen = harvesting.Settings(**settings)
    text = TextOptions(texts, column, pattern, shuffle, per_document)
    listed(text)  # before a model is opened for nothing
    opened = open_model(model, compute, device, bos)
    with Meter("harvesting") as meter:
        stores = harvesting.harvest(opened, patterns, text, out, chosen, meter, console.remark)
    facts = [summary(store) for store in stores]
    if as_json:
        return click.echo(json.dumps({"stores": facts}))
    done = "Wrote" if meter.line else "Already there:"
    for fact in facts:
        left = ", ".join(f"{count} for {why}" for why, count in fact["dropped"].items() if count)
        left += f"; files that are not UTF-8: {fact['files_left_out']}" if fact["files_left_out"] else ""
        left += f"; lines without text: {fact['lines_left_out']}" if fact["lines_left_out"] else ""
        console.line(
            f"{done} {fact['store']}: {fact['rows']} rows of d = {fact['d']} from {fact['tokens']} tokens of "
            f"{fact['site']}; left out: {left or 'none'}"
        )
    store = shlex.quote(facts[0]["store"])
    console.line(f"Train on it: {console.program()} train {store} -o runs/NAME --dtype float32")
    return None


def summary(store: Any) -> dict[str, Any]:
    """A harvest in a few numbers, for JSON."""
    from refgba.data.store import read_meta

    shards = read_meta(store.store.path)["shards"]
    dropped = {why: sum(shard["dropped"][why] for shard in shards) for why in shards[0]["dropped"]}
    return {
        "store": str(store.store.path),
        "site": store.settings["site"],
        "rows": len(store),
        "d": store.store.d,
        "dtype": store.store.dtype,
        "tokens": sum(shard["read"] for shard in shards),
        "contexts": int(store.context_starts[-1]),
        "dropped": dropped,
        **{name: sum(shard.get(name, 0) for shard in shards) for name in ("files_left_out", "lines_left_out")},
        "median_norm": store.about["median_norm"],
    }


@click.group("llm", short_help="Put networks into language models.")
def llm_group() -> None:
    """Inside a language model: what a network's features do to what it predicts."""


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say where in the model a network belongs."""
    for option in (
        click.option("--context", type=click.IntRange(1), help="tokens in a context  [default: as harvested]"),
        click.option("--of", type=click.Choice(["output", "input"]), help="which side  [default: as harvested]"),
        click.option("--site", help="submodule  [default: as harvested]"),
        click.option("--store", type=PATH, help="the harvest that RUN is for  [default: the one it was trained on]"),
    ):
        command = option(command)
    return command


def put(
    run: Path, model: str, store: Path | None, site: str | None, of: Any, context: int | None, compute: str,
    device: str, bos: bool | None,
) -> Any:  # fmt: skip
    """RUN in MODEL, a `refgba.llm.splice.Place`; remarks where its harvest is unknown, unfinished or of another one."""
    from refgba.llm import splice
    from refgba.llm.models import open_model
    from refgba.llm.networks import open_network

    network = open_network(run, store)
    if network.store is not None:
        console.remark_unfinished(network.store)
    opened = open_model(model, compute, device, bos)
    place = splice.place(network, opened, site, of, None, context)
    for line in unlike_the_harvest(place):
        console.remark(line)
    return place


def unlike_the_harvest(place: Any) -> list[str]:
    """What differs from the harvest that a network was trained on, or that it is not known, in lines."""
    about = place.network.harvested
    if about is None:
        return [
            f"no harvest says which rows {place.network.path} is for: the first position and special tokens of each "
            f"context of {place.context} tokens are left alone; name the harvest with --store if there is one"
        ]
    tokenizer, lines = place.model.tokenizer, [place.model.differs_from(about)]
    if (harvested := about["tokenizer"].get("prefix", tokenizer.prefix)) != tokenizer.prefix:
        names = [[tokenizer.special.get(id, str(id)) for id in ids] for ids in (tokenizer.prefix, harvested)]
        own, theirs = (" ".join(part) or "no special token" for part in names)
        lines.append(f"contexts begin with {own}, those of the harvest with {theirs}")
    return [line for line in lines if line is not None]


def tell(omissions: Any) -> None:
    """Remarks on what was left out of a text, a `refgba.llm.text.Omissions`."""
    for line in omissions.remarks():
        console.remark(line)


@llm_group.command("evaluate", short_help="Measure what the model loses.")
@click.argument("run", type=PATH)
@click.argument("model", type=WORD)
@text_options
@place_options
@click.option("--tokens", type=click.IntRange(2), default=16_384, help="how many of the text are read")
@click.option("--batch", type=click.IntRange(1), default=8, help="contexts at a time")
@click.option("--pack", is_flag=True, help="several documents per context")
@click.option("--seed", type=click.IntRange(0), default=0, help="of the intervals, and of what a masked model guesses")
@output_option(results.EVALUATION.refuse, help="write the result to this JSON file")
@model_options
@json_option
def evaluate_command(
    run: Path, model: str, texts: tuple[Path, ...], column: str, pattern: str | None, shuffle: int | None,
    per_document: int | None,
    tokens: int, batch: int, pack: bool, seed: int, out: Path | None, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """What MODEL loses when an activation is replaced by RUN's reconstruction of it.

    RUN is a run, a checkpoint, or the folder of a dictionary of any library.  Cross-entropy clean, spliced, and ablated
    to zero and to the mean; loss recovered; KL; by position; with attention sinks left alone and replaced.
    """
    from refgba.llm import evaluation
    from refgba.llm.text import Omissions, TextOptions
    from refgba.llm.text import files as listed

    omissions = Omissions()
    text = TextOptions(texts, column, pattern, shuffle, per_document, omissions)
    listed(text)
    place = put(run, model, **where)
    with Meter("evaluating") as meter:
        result = evaluation.evaluate(place, text, tokens, batch, pack, seed, meter)
    tell(omissions)
    record = result.record()
    if out is not None:
        results.EVALUATION.write_json(out, record)
    if as_json:
        return click.echo(json.dumps(record))
    return console.lines(result.table())


@llm_group.command("effects", short_help="Ablate neurons, and steer with them.")
@click.argument("run", type=PATH)
@click.argument("model", type=WORD)
@text_options
@place_options
@click.option("--neuron", "neurons", type=click.IntRange(0), multiple=True, help="whose effect; may repeat")
@click.option("--together", is_flag=True, help="edit these neurons at once, rather than one by one")
@click.option("--rank", type=click.IntRange(1), help="rank all by what ablating them does to the loss; show so many")
@click.option("--strength", "strengths", type=float, multiple=True, help="in peaks; may repeat  [default: -1 .5 1 2]")
@click.option("--replace", "replaced", is_flag=True, help="replace the activation; else the error is kept")
@click.option("--tokens", type=click.IntRange(1), default=8192, help="of the text, to measure peaks on")
@click.option("--sample", type=click.IntRange(1), default=8, help="contexts to measure effects on")
@click.option("--random", type=click.IntRange(0), default=3, help="random directions beside each strength")
@click.option("--seed", type=click.IntRange(0), default=0, help="of the random directions")
@output_option(results.EFFECTS.refuse, help="write the result to this JSON file")
@model_options
@json_option
def effects_command(
    run: Path, model: str, texts: tuple[Path, ...], column: str, pattern: str | None, shuffle: int | None,
    per_document: int | None,
    neurons: tuple[int, ...], together: bool, rank: int | None, strengths: tuple[float, ...], replaced: bool,
    tokens: int, sample: int, random: int, seed: int, out: Path | None, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """What RUN's neurons do to MODEL's predictions: ablate them, and steer with them.

    KL from the unchanged model by strength in units of the neuron's peak, beside random directions of the same norm;
    logits promoted and suppressed, measured and directly through the unembedding.  Give --neuron, or --rank.
    """
    from refgba.llm import effects
    from refgba.llm.quantities import finite, for_json
    from refgba.llm.quantities import neurons as distinct
    from refgba.llm.text import Omissions, TextOptions
    from refgba.llm.text import files as listed

    if not neurons and rank is None:
        raise InputError("give --neuron M, or --rank N for the N neurons with the largest effect on the loss")
    omissions = Omissions()
    text = TextOptions(texts, column, pattern, shuffle, per_document, omissions)
    listed(text)
    sizes = [finite("--strength", strength) for strength in strengths or effects.STRENGTHS]
    chosen = distinct(neurons) if neurons else []
    place = put(run, model, **where)
    chosen = place.network.neurons(chosen) if chosen else []
    surveyed = effects.survey(place, text, tokens, rank=rank is not None)
    tell(omissions)
    ranking: list[dict[str, Any]] = []
    if rank is not None and surveyed.attribution is not None:
        order = abs(surveyed.attribution).argsort()[::-1][:rank].tolist()
        ranking = [{"neuron": m, "attribution": float(surveyed.attribution[m])} for m in order]
        chosen += [m for m in order if m not in chosen]
    sets = [chosen] if together else [[neuron] for neuron in chosen]
    with console.counting("measuring effects", len(chosen)) as tick:
        measured = effects.Effects(place, surveyed, sample, replaced, random, seed, tick)
        found = [measured.of(part, sizes) for part in sets]
    record = {"network": str(run), "model": model, "site": place.site, "of": place.of, "rows": surveyed.rows}
    whole = record | {"ranking": ranking, "direct": measured.unembedding.why_not or "through the unembedding"}
    whole = for_json(whole | {"effects": [effect.record() for effect in found]})
    if out is not None:
        results.EFFECTS.write_json(out, whole)
    if as_json:
        return click.echo(json.dumps(whole))
    for entry in ranking:
        console.line(f"neuron {entry['neuron']}: ablated, the loss changes by about {entry['attribution']:+.3g} nats")
    if measured.unembedding.why_not is not None:
        console.remark(f"no direct effects: {measured.unembedding.why_not}")
    for effect in found:
        console.lines(effect.table())
    return None


@llm_group.command("steer", short_help="Write text while neurons are held.")
@click.argument("run", type=PATH)
@click.argument("model", type=WORD)
@click.option("--neuron", "neurons", type=click.IntRange(0), multiple=True, required=True, help="may repeat")
@click.option("--by", "by", type=float, multiple=True, required=True, help="strength in peaks; one, or one per neuron")
@click.option("--prompt", "prompts", multiple=True, required=True, help="what the text begins with; may repeat")
@click.option("--peak", "given", type=float, multiple=True, help="of each neuron  [default: measured on the harvest]")
@text_flags(False, "measure peaks on this text instead; may repeat")
@click.option("--new", type=click.IntRange(1), default=40, help="tokens to write")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, help="0 takes the likeliest token")
@click.option("--random", type=click.IntRange(0), default=1, help="random directions of the same norm beside")
@click.option("--seed", type=click.IntRange(0), default=0, help="of drawn tokens and random directions")
@place_options
@output_option(results.TEXTS.refuse, help="write the texts to this JSON file")
@model_options
@json_option
def steer_command(
    run: Path, model: str, neurons: tuple[int, ...], by: tuple[float, ...], prompts: tuple[str, ...],
    given: tuple[float, ...], texts: tuple[Path, ...], column: str, pattern: str | None, shuffle: int | None,
    per_document: int | None, new: int, temperature: float, random: int, seed: int, out: Path | None, as_json: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Text that MODEL writes while neurons of RUN are held up, or down with a negative strength.

    --by 1 adds a neuron's peak to every token, with the error of the reconstruction kept.
    """
    from refgba.llm import quantities, steering
    from refgba.llm.text import Omissions, TextOptions
    from refgba.llm.text import files as listed

    if given or not texts:
        why = "with --peak, which is not measured then" if given else "without --text"
        refuse_unused(["texts"] * bool(given) + ["column", "pattern", "shuffle", "per_document"], why)
    omissions = Omissions()
    text = TextOptions(texts, column, pattern, shuffle, per_document, omissions)
    listed(text)
    chosen = quantities.neurons(neurons)
    strengths = quantities.each("--by", by, len(chosen))
    peaks = quantities.each("--peak", given, len(chosen)) if given else []
    quantities.finite("--temperature", temperature)
    place = put(run, model, **where)
    chosen = place.network.neurons(chosen)
    if not given:
        peaks = steering.peaks(place, chosen, text if texts else None).tolist()
        tell(omissions)
    with console.counting("writing", len(prompts)) as tick:
        written = steering.steer(place, list(prompts), chosen, strengths, peaks, new, temperature, seed, random, tick)
    record = {"network": str(run), "model": model, "site": place.site, "neurons": neurons, "by": strengths}
    whole = record | {"peaks": peaks, "activation": "edited, with the error kept"}
    whole |= {"texts": [part.record() for part in written]}
    if out is not None:
        results.TEXTS.write_json(out, whole)
    if as_json:
        return click.echo(json.dumps(whole))
    for part in written:
        console.lines(repr(part))
    return None


@llm_group.command("explore", short_help="From a model and a text to a dashboard.")
@click.argument("model", type=WORD)
@click.option("--site", required=True, help="submodule, or a wildcard that matches one")
@text_options
@output_option(files.refuse_folder, required=True, help="folder for store, run and dashboard")
@click.option("--tokens", type=click.IntRange(1), default=200_000, help="how many of the text the model sees")
@click.option("--context", type=click.IntRange(2), help="tokens in a context  [default: 128, or what the model takes]")
@click.option("--width", type=click.IntRange(1), help="M, the number of neurons  [default: 8 d, at least 1024]")
@click.option("--steps", type=click.IntRange(1), help="of training  [default: 4000]")
@click.option("--seed", type=click.IntRange(0), default=0, help="of training")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="measured", help="of training, as for `train`")
@click.option("--l0", type=float, help="active neurons per row that measured targets aim at  [default: counted]")
@click.option(
    "--relative", type=float, help="0 to 1: thresholds relative to peaks, for neurons to be read  [default: 0]"
)
@drop_options
@click.option("--centre", type=click.Choice(get_args(Centring)), help="subtract what all rows share  [default: auto]")
@click.option("--backend", help="what trains; see `refgba backends`  [default: auto]")
@model_options
@json_option
def explore_command(
    model: str, site: str, texts: tuple[Path, ...], column: str, pattern: str | None, shuffle: int | None,
    per_document: int | None, out: Path, tokens: int, context: int | None, width: int | None, steps: int | None,
    seed: int, recipe: str, l0: float | None, relative: float | None, drop_zero_rows: bool, drop_below: float,
    centre: Centring | None, backend: str | None, bos: bool | None, device: str, compute: str, as_json: bool,
) -> None:  # fmt: skip
    """From MODEL and a text to a dashboard of what neurons fire on: harvest, train and dashboard, in one command.

    It says first how long that will take.  -o holds what the three commands write, `store`, `run` and `dashboard`;
    their other settings are their defaults.  Given again after whatever stopped it, it goes on.
    """
    from refgba.llm import harvesting
    from refgba.llm.explore import Rows, explore
    from refgba.llm.models import open_model
    from refgba.llm.text import TextOptions
    from refgba.llm.text import files as listed

    text = TextOptions(texts, column, pattern, shuffle, per_document)
    listed(text)
    settings = harvesting.Settings(tokens=tokens, context=context)
    given = {"width": width, "steps": steps, "seed": seed, "l0": l0, "relative": relative}
    request = Request(given, recipe=recipe, backend=backend)
    with console.waiting("Opening the model"):
        opened = open_model(model, compute, device, bos)
    exploration = explore(opened, site, text, out, settings, request, Rows(drop_zero_rows, drop_below, centre))
    if not exploration.page.exists():
        with console.waiting("Timing a few batches and steps"):
            expected = exploration.expected()
        console.remark(f"{expected}; what is done already is not done again")
    with Meter("harvesting") as meter:
        exploration.harvest(meter, console.remark)
    run = exploration.launch(console.counting, console.remark, console.waiting)
    if not exploration.trained:
        try:
            console.train(run)
        except Stopped as stopped:
            by = signal.Signals(stopped.number).name
            raise Stopped(f"{out}: stopped by {by} while training; the same command goes on", stopped.number) from None
        except TrainingError as error:
            raise exploration.failed(error) from None
    result = judging.judge_trained(run.path, run.data, run.backend, run.held_out, console.counting)
    exploration.dashboard(console.counting, console.remark)
    if as_json:
        return click.echo(json.dumps(result | {"page": str(exploration.page)}))
    console.show_trained(run, result, False)
    return console.line(f"Open {exploration.page}")


def attach(main: click.Group) -> None:
    """Add the commands of this room to the program."""
    main.add_command(harvest_command)
    main.add_command(llm_group)
    llm_group.add_command(dashboard_command)
    llm_group.add_command(features_command)
