"""A run on disk: what is read, what is refused, and that nothing is ever half written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refgba import backends, gba
from refgba.config import GBAConfig
from refgba.data.activations import open_activations
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.runs import folder, trainer
from refgba.runs.judging import evaluate, recovery
from refgba.runs.trainer import TrainingError, train_run
from refgba.sae import unit_rows

CONFIG = GBAConfig(width=12, groups=3, steps=40, batch=16, adapt_every=4, lr=0.01, a_init=0.3, dtype="float32")
NUMPY = backends.load("numpy")


def rows(N=100, d=5):
    return np.random.default_rng(0).standard_normal((N, d)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    def save(array, name="x.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return save


def trained(path, out, config=CONFIG):
    data, found = survey(open_activations(path))
    return list(train_run(data, found, config, NUMPY, {"backend": "numpy"}, out))


# ---- activations -----------------------------------------------------------------------------------------------------


def test_a_survey_finds_mean_and_variance_of_the_unit_rows(saved):
    x = rows() + 1
    _, found = survey(open_activations(saved(x)))
    unit = unit_rows(x.astype(np.float64))
    assert found.variance == pytest.approx(unit.var(axis=0).sum(), rel=1e-12)
    assert (found.rows, found.dropped) == (100, 0)


def test_zero_rows_are_named_or_dropped(saved):
    x = rows()
    x[[3, 50]] = 0
    path = saved(x)
    with pytest.raises(InputError, match="row 3 is all zeros and has no direction; --drop-zero-rows skips such rows"):
        survey(open_activations(path))
    data, found = survey(open_activations(path), drop_zero_rows=True)
    assert (len(data), found.rows, found.dropped) == (98, 98, 2)
    assert (data.read(np.array([0])) == np.delete(x, [3, 50], axis=0)).all()


def test_only_zero_rows_is_an_error_even_when_they_are_dropped(saved):
    with pytest.raises(InputError, match="every row is all zeros"):
        survey(open_activations(saved(np.zeros((4, 3)))), drop_zero_rows=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(saved, value):
    x = rows(20_000, 2)
    x[9_000, 1] = x[15_000, 0] = value
    with pytest.raises(InputError, match="row 9000 holds a NaN, an infinity"):
        survey(open_activations(saved(x)))


def test_rows_that_only_float64_can_hold_are_refused_in_float32(saved):
    x = rows().astype(np.float64)
    x[4] *= 1e30
    survey(open_activations(saved(x)), "float64")
    with pytest.raises(InputError, match=r"row 4 holds .* too large or small for float32"):
        survey(open_activations(saved(x)), "float32")


def test_rows_whose_squares_underflow_are_refused_not_called_zero(saved):
    x = rows()
    x[4] *= 1e-30
    survey(open_activations(saved(x)), "float64")
    with pytest.raises(InputError, match=r"row 4 .* too large or small for float32"):
        survey(open_activations(saved(x)), "float32")


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_is_algorithm_1_and_leaves_a_run_behind(saved, tmp_path):
    path, out = saved(rows()), tmp_path / "runs" / "one"
    log = trained(path, out)
    _, found = survey(open_activations(path))
    state = gba.init(gba.random_params(CONFIG, 5), CONFIG)
    losses = [metrics.loss for metrics in gba.train(state, gba.minibatches(rows(), CONFIG))]
    run = folder.open_network(out)
    for name, array in state.params.arrays().items():
        assert (getattr(run.params, name) == array).all(), name
    assert run.config == CONFIG
    about = json.loads((out / "about.json").read_text())
    assert about["backend"] == "numpy"
    assert (about["data"]["path"], about["data"]["rows"], about["data"]["d"]) == (str(path), 100, 5)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in written] == losses
    assert [p.step for p in log] == list(range(1, 41))
    frequency = state.last.counts / state.last.rows
    assert log[-1].dead == (frequency == 0).mean()
    assert log[-1].within == (frequency <= CONFIG.target()[CONFIG.group()]).mean()
    assert 0 < log[-1].within < 1
    assert log[-1].fvu == pytest.approx(2 * losses[-1] / found.variance)
    assert sorted(p.name for p in out.iterdir()) == [
        "about.json", "checkpoints", "config.json", "data.safetensors", "final", "metrics.jsonl",
    ]  # fmt: skip


def test_a_run_is_never_overwritten(saved, tmp_path):
    path, out = saved(rows()), tmp_path / "run"
    trained(path, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="already holds a run"):
        trained(path, out, replace(CONFIG, seed=1))
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_loss_that_is_not_finite_ends_the_run_without_a_result(saved, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf); training diverged"), np.errstate(all="ignore"):
        trained(saved(rows()), tmp_path / "run", replace(CONFIG, a_init=1e38))
    assert not (tmp_path / "run" / "final").exists()


def test_about_two_hundred_lines_are_logged_whatever_the_length(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOGS", 5)
    steps = [p.step for p in trained(saved(rows()), tmp_path / "run", replace(CONFIG, steps=42))]
    assert steps == [8, 16, 24, 32, 40, 42]


# ---- reading back ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(saved, tmp_path):
    trained(saved(rows()), tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run, it has no config.json"):
        folder.open_network(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"settings": 3}', '{"width": -1}', "\ud800"])
def test_a_damaged_record_is_refused(run, text):
    (run / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"config.json: "):
        folder.read_record(run)


def test_damaged_parameters_are_refused(run):
    path = run / "final" / "params.safetensors"
    whole, arrays = path.read_bytes(), load_file(path)
    for damaged in (b"", whole[:40], whole[:-1], whole[:-9] + b"\x00" + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"params.safetensors: damaged: it does not match its checksum in state.json"
        ):
            folder.open_network(run)
    path.unlink()
    with pytest.raises(InputError, match=r"params.safetensors: cannot be read"):
        folder.open_network(run)
    for change, complaint in [  # of a writer with other ideas, since the checksum is right
        ({"W": arrays["W"][:5].copy()}, r"W has shape \(5, 5\), it should be \(12, 5\)"),
        ({"a": arrays["a"].astype(np.float64)}, "a should hold finite float32 values"),
        ({"b": np.full_like(arrays["b"], np.nan)}, "b should hold finite float32 values"),
    ]:
        save_file(arrays | change, path)
        state = json.loads((run / "final" / "state.json").read_text())
        state["sha256"]["params.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (run / "final" / "state.json").write_text(json.dumps(state))
        with pytest.raises(InputError, match=complaint):
            folder.open_network(run)


def test_arrays_that_are_not_contiguous_survive(run):
    opened = folder.open_network(run)
    W = np.asfortranarray(opened.params.W)
    folder.write_network(run / "again", replace(opened.params, W=W), opened.config, {"step": 1})
    assert (load_file(run / "again" / "params.safetensors")["W"] == W).all()
    assert (folder.open_network(run / "again").params.W == W).all()


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_is_the_same_for_any_chunks_and_equals_the_formulas(run):
    opened, x = folder.open_network(run), rows()
    whole = evaluate(opened.params, opened.config, NUMPY, [x])
    split = evaluate(opened.params, opened.config, NUMPY, np.split(x, [10, 55]))
    unit = unit_rows(x)
    s = unit @ opened.params.W.T
    s = (s - opened.params.b_pre @ opened.params.W.T) * (s - opened.params.b_pre @ opened.params.W.T > -opened.params.b)
    f = (s * opened.params.a) @ opened.params.W + opened.params.b_pre
    assert whole.fvu == pytest.approx(((f - unit) ** 2).sum() / ((unit - unit.mean(axis=0)) ** 2).sum(), rel=1e-5)
    assert whole.l0 == pytest.approx((s > 0).sum() / 100)
    for name, value in whole.summary().items():
        assert split.summary()[name] == pytest.approx(value, rel=1e-6), name


def test_data_of_another_dimension_is_refused(saved):
    with pytest.raises(InputError, match=r"x.npy: its rows have d = 4, the network d = 5"):
        open_activations(saved(rows(d=4)), d=5)


def test_recovery_worked_by_hand():
    V = np.eye(2)
    W = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])  # cosine 1 with v_1, 0.87 with v_2
    assert recovery(W, V) == {
        "frr": {"0.8": 1.0, "0.9": 0.5},
        "one_to_one": {"0.8": 1.0, "0.9": 0.5},
        "e": pytest.approx(1 - np.sqrt(0.75)),
    }
    assert recovery(W[:1], V)["e"] is None
