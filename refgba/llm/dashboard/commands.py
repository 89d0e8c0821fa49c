"""`refgba llm dashboard` and `refgba llm features`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refgba.data import files
from refgba.errors import InputError
from refgba.llm.dashboard.features import Features, open_dictionary, open_fitting, survey_features
from refgba.llm.dashboard.folder import directions, write_dashboard
from refgba.llm.dashboard.logits import Effects, acting, direct_effects
from refgba.llm.dashboard.others import FORMATS, write_delphi, write_features
from refgba.llm.dashboard.survey import Choice
from refgba.llm.models import Model, open_model
from refgba.runs import console
from refgba.runs.given import refuse_unused
from refgba.runs.options import PATH, WORD, json_option, output_option

DEFAULT = Choice()


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say which contexts are shown."""
    for option in (
        click.option("--device", default="auto", help="of MODEL: cpu, cuda, ...; auto: a GPU where there is one"),
        click.option("--seed", default=DEFAULT.seed, help="of the sample"),
        click.option("--window", default=DEFAULT.window, help="tokens shown of a context"),
        click.option("--examples", default=DEFAULT.examples, help="contexts shown of each quantile"),
        click.option("--quantiles", default=DEFAULT.quantiles, help="parts of a random sample of a neuron's contexts"),
        click.option("--top", default=DEFAULT.top, help="highest contexts shown of each neuron"),
    ):
        command = option(command)
    return command


def surveyed(run: Path, store: Path, choice: dict[str, Any]) -> Features:
    """The neurons of RUN on STORE; remarks about what a user should know."""
    features = survey_features(run, store, Choice(**choice), console.counting)
    console.remark_unfinished(store)
    return features


@click.command("dashboard", short_help="Show what each neuron fires on.")
@click.argument("run", type=PATH)
@click.argument("store", type=PATH)
@click.argument("model", type=WORD, required=False)
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder; open its index.html")
@click.option("--other", type=PATH, metavar="RUN", help="a run of another seed: each neuron's nearest in it")
@choice_options
@json_option
def dashboard_command(
    run: Path, store: Path, model: str | None, out: Path, other: Path | None, device: str, as_json: bool, **choice: Any
) -> None:
    """What each neuron of RUN fires on in STORE, as a folder that opens from disk, without a server or a network.

    RUN is a run, a checkpoint, or the folder of a dictionary of any library; STORE is of `refgba harvest`.  With MODEL,
    that of the harvest, also the logits that each neuron promotes and suppresses directly.
    """
    opened = fitting(run, store, model, device, other)
    features = surveyed(run, store, choice)
    effects = on_logits(features, opened)
    write_dashboard(features, out, effects, other, console.counting)
    if as_json:
        return click.echo(json.dumps(summary(features) | {"page": str(out / "index.html")}))
    return console.line(f"Wrote {out}: {features.M} neurons on {features.rows} rows; open {out / 'index.html'}")


def fitting(run: Path, store: Path, model: str | None, device: str, other: Path | None = None) -> Model | None:
    """The model, open, if there is one; InputError, before all rows are read, for anything that does not fit."""
    if model is None:
        refuse_unused(["device"], "without MODEL")
    harvest = open_fitting(run, open_dictionary(run)[0], store)
    if other is not None:
        directions(other, harvest)
    if model is None:
        return None
    opened = open_model(model, "float32", device)
    acting(opened, harvest)
    return opened


def on_logits(features: Features, model: Model | None) -> Effects | None:
    """The direct effects in a model, None without one, with a remark if it is not the model that was harvested."""
    if model is None:
        return None
    return direct_effects(features, model, counting=console.counting, say=console.remark)


def summary(features: Features) -> dict[str, Any]:
    """The survey in a few numbers, for JSON."""
    count = features.survey.count
    return {
        "neurons": features.M,
        "rows": features.rows,
        "zero_rows": features.survey.zeros,
        "l0": float(count.sum()) / max(1, features.rows),
        "dead": float((count == 0).mean()),
    }


@click.command("features", short_help="Write what neurons fire on for other projects.")
@click.argument("run", type=PATH)
@click.argument("store", type=PATH)
@click.argument("model", type=WORD, required=False)
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder")
@click.option("--format", type=click.Choice(FORMATS), required=True, help="whose files to write")
@choice_options
@json_option
def features_command(
    run: Path, store: Path, model: str | None, out: Path, format: str, device: str, as_json: bool, **choice: Any
) -> None:
    """What each neuron of RUN fires on in STORE, in the files of other projects; arguments as for `dashboard`.

    \b
    saedashboard     batch-N.json of SAEDashboard and Neuronpedia
    circuit-tracer   NEURON.json for its front end
    delphi           every activation, for its automatic interpretation: LatentDataset(OUT, ..., modules=[SITE])
    """
    if format == "delphi":
        if model is not None:
            raise InputError("delphi's files hold no effects on logits: leave MODEL out")
        refuse_unused(["device", *choice], "on --format delphi, which has every activation")
        dictionary, _ = open_dictionary(run)
        harvest = open_fitting(run, dictionary, store)
        console.remark_unfinished(store)
        count = write_delphi(dictionary, harvest, out, counting=console.counting)
        facts: dict[str, Any] = {"neurons": len(dictionary.W_enc), "rows": len(harvest), "activations": count}
    else:
        opened = fitting(run, store, model, device)
        features = surveyed(run, store, choice)
        effects = on_logits(features, opened)
        write_features(features, out, format, effects, console.counting)
        facts = summary(features)
    if as_json:
        return click.echo(json.dumps(facts | {"format": format, "folder": str(out)}))
    return console.line(f"Wrote {out}, {format}: {facts['neurons']} neurons on {facts['rows']} rows")
