"""Reading a run for a report: its settings, its log, its parameters, and a file of its evaluation."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from reports import CONFIG, Page

from refgba import backends
from refgba.config import Settings
from refgba.data.activations import open_activations
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.report import load_run, report
from refgba.runs.judging import evaluate, load, result, save
from refgba.runs.trainer import train_run

NUMPY = backends.load("numpy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and the file of its evaluation."""
    path = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    np.save(path / "x.npy", x)
    data, found = survey(open_activations(path / "x.npy"))
    list(train_run(data, found, CONFIG, NUMPY, {"backend": "numpy", "recipe": "paper"}, path / "run"))
    evaluation = evaluate(load_run(path / "run").params, CONFIG, NUMPY, [x], top=2)
    save(evaluation, path / "ev.safetensors", {"network": "run", "data": "x.npy"})
    return path, result(evaluation, CONFIG)


def test_a_run_and_its_evaluation_are_read_back(trained):
    path, measured = trained
    run = load_run(path / "run")
    assert (run.name, run.config, len(run.metrics)) == ("run", CONFIG, 40)
    run.evaluation, run.summary, about = load(path / "ev.safetensors", run.config)
    assert about == {"network": "run", "data": "x.npy"}
    for name, value in run.summary.items():
        assert value == (pytest.approx(measured[name]) if isinstance(value, float) else measured[name])
    assert Page(report([run])).headings


def test_damaged_metrics_are_named(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for bad, complaint in (
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: should hold a JSON object"),
        ('{"loss": 1}', "line 2: damaged: step is not as it was written"),
        ('{"step": 2, "loss": NaN}', "line 2: damaged: loss is not as it was written"),
        ('{"step": 2, "l0": "many"}', "line 2: damaged: l0 is not as it was written"),
    ):
        (run / "metrics.jsonl").write_text("\n".join([lines[0], bad, *lines[2:], ""]))
        with pytest.raises(InputError) as error:
            load_run(run)
        assert str(error.value).startswith(f"{run / 'metrics.jsonl'}: {complaint}")
        assert "\n" not in str(error.value)
    (run / "metrics.jsonl").write_text("\n".join([lines[0], '{"step": 2, "lo']))
    assert [line["step"] for line in load_run(run).metrics] == [1]


def test_an_unfinished_run_is_read(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    shutil.rmtree(run / "final")
    (run / "about.json").unlink()
    assert load_run(run).params is None
    assert Page(report([load_run(run)])).headings == ["What to look at", "Training", "Settings"]


def test_what_is_no_run_or_evaluation_is_named(trained, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: not a run"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match=f"{path}: not a file of `refgba evaluate -o`"):
        load(path)
    with pytest.raises(InputError, match="the evaluation has 12 neurons, the run 24"):
        load(trained[0] / "ev.safetensors", replace(CONFIG, width=24))


def test_a_checkpoint_is_a_run_without_its_log(trained):
    run = load_run(trained[0] / "run" / "final")
    assert isinstance(run.config, Settings)
    assert run.metrics == []
