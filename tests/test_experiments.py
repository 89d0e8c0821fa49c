"""The experiments behind `refgba reproduce`: small ones run, and what is written is whole."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from experiments_micro import MICRO, shrink

from refgba import experiments, gba, model
from refgba.cli import main
from refgba.config import BaselineConfig, GBAConfig
from refgba.data import files
from refgba.errors import InputError
from refgba.experiments import Outcome, Picture, Verdict, cooccurrence, drawing, imbalanced, width
from refgba.experiments.experiment import Experiment

image = pytest.importorskip("matplotlib.image")

# ---- the framework ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", experiments.NAMES)
def test_every_experiment_keeps_to_the_protocol(name):
    module = experiments.load(name)
    members = {member for member in (*Experiment.__annotations__, *vars(Experiment)) if not member.startswith("_")}
    assert members == {"QUESTION", "SIZES", "TAKES_DATA", "measure", "verdict", "pictures"}
    for member in members:
        assert hasattr(module, member), member
    assert module.__doc__
    assert module.QUESTION.endswith(".")
    assert set(module.SIZES) == {"quick", "full"}
    for sizes in module.SIZES.values():
        assert "seeds" in {field.name for field in fields(sizes)}
        assert sizes == type(sizes)(**asdict(sizes))
        with pytest.raises(FrozenInstanceError):
            sizes.seeds = 1
    measured = [parameter.lstrip("_") for parameter in inspect.signature(module.measure).parameters]
    assert measured == ["sizes", "backend", "tick"] + ["data"] * module.TAKES_DATA
    for member in (module.verdict, module.pictures):
        assert list(inspect.signature(member).parameters) == ["data"]


@pytest.mark.parametrize("name", experiments.NAMES)
def test_results_that_are_kept_answer_the_question_that_is_asked_now(name):
    kept = Path(__file__).parents[1] / f"benchmarks/results/{name}.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["question"] == experiments.load(name).QUESTION


def test_every_module_of_an_experiment_is_registered_and_tried_small():
    folder = Path(experiments.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "\nQUESTION = " in path.read_text(encoding="utf-8")}
    assert modules == set(experiments.NAMES) == set(MICRO)
    assert len(experiments.NAMES) == len(modules)


@pytest.mark.parametrize(("name", "backend"), [("resonanse", "numpy"), ("width", "torch")])
def test_an_unknown_name_or_backend_is_an_input_error(name, backend):
    with pytest.raises(InputError, match="there is no"):
        experiments.run(name, "quick", backend)


def test_without_matplotlib_it_says_what_to_install_before_anything_is_computed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(width, "measure", None)
    with pytest.raises(InputError, match=r"not installed: pip install matplotlib$"):
        experiments.run("width", "quick")
    with pytest.raises(InputError, match="matplotlib"):
        experiments.write(outcome(pictures=1), tmp_path)


def outcome(pictures=0):
    draw = Picture("title", "alt", lambda figure: figure.subplots().plot([0, 1]), (2, 2))
    verdict = Verdict({"it <is>": True}, "it is.")
    return Outcome("some", "Is it so?", verdict, {"x": [1, None, 0.5]}, (draw,) * pictures)


def test_what_is_written_can_be_read_and_shown(tmp_path):
    paths = experiments.write(outcome(pictures=2), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["some.json", "some-1.png", "some-2.png"]
    told = json.loads(paths[0].read_text())
    assert told["data"] == {"x": [1, None, 0.5]}
    assert [told["name"], told["question"], told["verdict"]] == ["some", "Is it so?", "Reproduced: it is."]
    assert told["claims"] == {"it <is>": True}
    assert told["figures"][1] == {"file": "some-2.png", "title": "title", "alt": "alt"}
    for path in paths[1:]:
        assert image.imread(BytesIO(path.read_bytes())).std() > 0


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    paths = experiments.write(outcome(pictures=1), tmp_path)
    before = [path.read_bytes() for path in paths]

    def fail(_path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", fail)
    changed = replace(outcome(pictures=1), verdict=Verdict({"it is": False}, "it is not."))
    with pytest.raises(InputError, match="No space left"):
        experiments.write(changed, tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        experiments.write(outcome(), tmp_path / "file")


def test_nan_is_refused_rather_than_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        experiments.write(replace(outcome(), data={"x": float("nan")}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_tells_the_grade_each_claim_and_how_it_was_measured():
    draw = Picture("A title", "alt", lambda figure: figure.subplots().plot([0, 1]), (8, 4))
    verdict = Verdict({"it <is> so": True, "it is more": False}, "0.5 <b>")
    about = {"scale": "full", "backend": "numba", "seeds": [0, 1], "versions": {"numpy": "2"}, "seconds": 1234.5}
    about["data"] = {"name": "<i>.npy", "rows": 65536}
    text = experiments.page([Outcome("width", "Is it <u>?", verdict, about, (draw,))])
    assert text.count("<strong>Reproduced in part, 1 of 2:</strong> 0.5 &lt;b&gt;") == 2
    assert "<td>it &lt;is&gt; so</td><td>yes</td>" in text
    assert "<td>it is more</td><td>no</td>" in text
    assert "refgba reproduce width --full --backend numba --data D/X.npy --held-out D/Y.npy</code> on 65,536" in text
    assert "</code> on 65,536 rows of &lt;i&gt;.npy, 2 seeds, 1,234 s" in text
    assert "Is it &lt;u&gt;?" in text
    assert 'class="chart wide" style="--inches: 8"' in text


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """`refgba reproduce` at the sizes of MICRO, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shrink(monkeypatch)
    return lambda *arguments: CliRunner().invoke(main, ["reproduce", *arguments])


def test_reproduce_adds_to_the_page_of_its_folder(reproduce, tmp_path):
    first = reproduce("width", "--quick", "-o", "out")
    assert first.exit_code == 0, first.output
    told = json.loads((tmp_path / "out" / "width.json").read_text())
    assert f"width: {told['verdict']}\n" in first.stdout
    alone = (tmp_path / "out" / "report.html").read_text()
    second = reproduce("cooccurrence", "cooccurrence", "-o", "out", "--json")
    assert list(json.loads(second.stdout.splitlines()[-1])) == ["cooccurrence"]
    both = (tmp_path / "out" / "report.html").read_text()
    assert "s-width" in both
    assert "s-cooccurrence" in both
    assert both.count("<svg") > alone.count("<svg") > 0
    (tmp_path / "out" / "cooccurrence.json").unlink()
    again = reproduce("-o", "out")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "report.html").read_text() == alone


@pytest.mark.parametrize("damaged", ["{}", '{"data": {}}', '{"data": 3}', "not JSON", '{"data": {"settings": []}}'])
def test_a_result_that_cannot_be_shown_is_told_before_anything_is_computed(reproduce, tmp_path, monkeypatch, damaged):
    (tmp_path / "width.json").write_text(damaged)
    monkeypatch.setattr(cooccurrence, "measure", None)
    refused = reproduce("cooccurrence", "-o", ".")
    assert refused.exit_code == 2, refused.output
    assert "width.json: " in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["width.json"]


def test_reproduce_refuses_before_anything_is_computed(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(width, "measure", None)
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["-o", "new"], "new holds no results: name an experiment (imbalanced, "),
        (["width", "widht"], "there is no experiment 'widht'"),
        (["width", "-o", "file"], "file: exists and is not a folder"),
        (["width", "--data", "x.npy"], "--data and --held-out go together"),
    ):
        refused = reproduce(*arguments)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_results_that_are_committed_say_what_follows_from_their_numbers():
    committed = Path(__file__).parents[1] / "benchmarks" / "results"
    shown = experiments.stored(committed)
    assert list(shown) == list(experiments.NAMES)
    for name, outcome in shown.items():
        told = json.loads((committed / f"{name}.json").read_text())
        assert outcome.data["scale"] == "full"
        for key in ("question", "verdict"):
            assert told[key] == getattr(outcome, key), name
        assert told["claims"] == outcome.verdict.claims


# ---- each experiment, small ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MICRO))
def test_an_experiment_runs_and_is_written(name, outcomes, tmp_path):
    result = outcomes[name]
    assert result.name == name
    assert result.question.count(".") >= 1
    assert result.verdict == experiments.load(name).verdict(result.data)
    assert result.verdict.startswith(("Reproduced", "Not reproduced"))
    assert result.data["seeds"] == [0, 1]
    assert result.data["settings"]["seeds"] == 2
    assert {"numpy", "refgba"} <= set(result.data["versions"])
    paths = experiments.write(result, tmp_path)
    text = paths[0].read_text()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON file"))
    assert told["data"] == result.data
    assert len(paths) == 1 + len(result.figures)
    for path, picture in zip(paths[1:], result.figures, strict=True):
        assert len(picture.alt) > 40
        pixels = image.imread(BytesIO(path.read_bytes()))
        assert pixels.shape[1] == round(picture.size[0] * drawing.DPI)
        assert (pixels[:, :, :3] < 0.9).any(axis=2).mean() > 0.005  # something is drawn on the white


@pytest.mark.parametrize("name", ["width", "cooccurrence"])  # the others share their code
def test_the_same_seeds_give_the_same_numbers(name, outcomes, monkeypatch):
    monkeypatch.setitem(experiments.load(name).SIZES, "quick", MICRO[name])
    again = experiments.run(name, "quick", "numpy")
    assert {k: v for k, v in again.data.items() if "seconds" not in k} == {
        k: v for k, v in outcomes[name].data.items() if "seconds" not in k
    }


def test_a_tied_topk_that_takes_all_neurons_is_gba_that_never_adapts():
    config = GBAConfig(width=16, steps=20, batch=8, adapt_every=100, lr=1e-2, lr_decay=0.5)
    X = model.imbalanced(0).draw(0, 200).X
    state = gba.init(gba.random_params(config, 42), config)
    for _ in gba.train(state, gba.minibatches(X, config)):
        pass
    np.testing.assert_allclose(imbalanced.tied(X, config, k=16), state.params.W, rtol=1e-12)
    assert not np.allclose(imbalanced.tied(X, config, k=2), state.params.W)


def test_topk_can_begin_as_the_features():
    truth = model.imbalanced(0)
    config = BaselineConfig(width=truth.n, k=20, steps=1, batch=8, lr=0.0)
    V = imbalanced.trained(truth.draw(0, 100).X, config, "numpy", truth.V)
    assert imbalanced.rates(V, truth.V) == [1, 1]
