"""Evaluating a network or any dictionary in one pass, and what is told and stored of it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import REFERENCE
from safetensors import safe_open
from safetensors.numpy import load_file

from refgba import backends, sae
from refgba.cli import main
from refgba.config import BaselineConfig, GBAConfig
from refgba.errors import InputError
from refgba.metrics import per_group
from refgba.runs import folder, judging
from refgba.runs.accumulate import Evaluation, quantiles
from refgba.runs.judging import evaluate, evaluate_dictionary, load, result, save

CONFIG = GBAConfig(width=12, groups=3, steps=1, batch=16, dtype="float32")
NUMPY = backends.load("numpy")
ARRAYS = ("frequency", "peak", "mean", "std", "z_score")


def rows(N=100, d=5):
    return np.random.default_rng(0).standard_normal((N, d)).astype(np.float32)


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    W = sae.unit_rows(rng.standard_normal((12, 5)))
    params = sae.Params(W, rng.random(12), -0.4 * rng.random(12), 0.01 * rng.random(5))
    return params.astype("float32")


class Network:
    """The same network as a dictionary that knows nothing of backends."""

    def __init__(self, params):
        self.params, self.W_enc = params, params.W

    def prepare(self, x):
        return sae.unit_rows(x)

    def encode(self, x):
        y, _, s = sae.encode(self.params, x, CONFIG.activation)
        return y, s

    def decode(self, s):
        return sae.decode(self.params, s)


class Largest:
    """Of each row only its largest positive entry, worked by hand below: y is negative where another one is larger."""

    W_enc = np.eye(2)

    def prepare(self, x):
        return x

    def encode(self, x):
        y = np.where(x == x.max(axis=1, keepdims=True), x, -1)
        return y, np.maximum(y, 0)

    def decode(self, s):
        return s


def test_top_rows_are_numbered_through_all_chunks_and_ticks_count_rows(params):
    x, done = rows(), []
    whole = evaluate(params, CONFIG, NUMPY, [x], top=5)
    split = evaluate(params, CONFIG, NUMPY, np.split(x, [10, 55]), done.append, top=5)
    assert done == [10, 45, 45]
    y = (sae.unit_rows(x) - params.b_pre) @ params.W.T + params.b
    highest = np.argsort(-y, axis=0)[:5].T
    enough = (y > 0).sum(axis=0) >= 5
    assert enough.sum() > 6
    for evaluation in (whole, split):
        np.testing.assert_array_equal(evaluation.top_rows[enough], highest[enough])
    assert evaluate(params, CONFIG, NUMPY, [x]).top_rows.shape == (12, 0)


def test_a_dictionary_is_evaluated_as_the_network_it_is(params):
    chunks = np.split(rows(), [30])
    network = evaluate(params, CONFIG, NUMPY, chunks, top=3)
    dictionary = evaluate_dictionary(Network(params), iter(chunks), top=3)
    assert dictionary.summary() == pytest.approx(network.summary(), rel=1e-6)
    np.testing.assert_array_equal(dictionary.top_rows, network.top_rows)
    np.testing.assert_array_equal(dictionary.l0_histogram, network.l0_histogram)


def test_a_dictionary_worked_by_hand():
    done = []
    chunks = [np.array([[3.0, 1.0], [0.0, 2.0]]), np.array([[5.0, 0.0]])]
    evaluation = evaluate_dictionary(Largest(), chunks, done.append, top=2)
    assert done == [2, 1]
    assert evaluation.l0 == 1
    assert evaluation.loss == pytest.approx(1 / 6)  # the 1 beside the 3 is lost: half its square over three rows
    np.testing.assert_array_equal(evaluation.top_rows, [[2, 0], [1, -1]])
    np.testing.assert_array_equal(evaluation.top_values, [[5, 3], [2, 0]])


def test_the_result_is_json_with_groups_where_they_are_known(params):
    evaluation = evaluate(params, CONFIG, NUMPY, [rows()])
    plain = result(evaluation, None)
    assert plain == evaluation.summary() | {"l0_distribution": quantiles(evaluation.l0_histogram)}
    grouped = result(evaluation, CONFIG)
    groups = per_group(evaluation.frequency, CONFIG.group(), CONFIG.target())
    assert grouped == plain | {"groups": [asdict(group) for group in groups]}
    assert json.loads(json.dumps(grouped)) == grouped


def test_groups_of_another_network_are_refused(params):
    evaluation = evaluate(params, CONFIG, NUMPY, [rows()])
    with pytest.raises(InputError, match="must be"):
        result(evaluation, GBAConfig(width=13, groups=3))


@pytest.mark.parametrize("top", [0, 1, 4])
def test_what_is_saved_is_read_back_bit_for_bit(params, tmp_path, top):
    evaluation = evaluate(params, CONFIG, NUMPY, [rows()], top=top)
    path = tmp_path / "evaluation.safetensors"
    save(evaluation, path, {"data": "x.npy", "rows": "100"})
    kept = {"top_rows", "top_values"} if top else set()
    arrays = load_file(path)
    assert set(arrays) == {*ARRAYS, "l0_histogram"} | kept
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(evaluation, name))
        assert array.dtype == (np.int64 if name in ("l0_histogram", "top_rows") else np.float64)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"data": "x.npy", "rows": "100"}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_saving_replaces_what_was_there_and_leaves_it_when_it_fails(params, tmp_path):
    path = tmp_path / "evaluation.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match="no row"):
        save(Evaluation(12, 5), path, {})
    assert path.read_bytes() == b"before"
    save(evaluate(params, CONFIG, NUMPY, [rows()]), path, {})
    assert load_file(path)["frequency"].shape == (12,)
    save(evaluate(params, CONFIG, NUMPY, [rows()]), tmp_path / "new" / "x.safetensors", {})
    assert load_file(tmp_path / "new" / "x.safetensors")["frequency"].shape == (12,)
    with pytest.raises(InputError, match=r"evaluation.safetensors/x: cannot be written \(Not a directory\)"):
        save(evaluate(params, CONFIG, NUMPY, [rows()]), path / "x", {})


def test_a_file_of_an_earlier_version_is_read():
    path = Path(__file__).parent / "before" / "evaluation.safetensors"
    arrays, summary, about = load(path)
    assert arrays["top_rows"].shape == (32, 3)
    assert (summary["rows"], sorted(about)) == (600, ["data", "network"])
    assert summary["l0"] == pytest.approx(arrays["frequency"].sum())


def test_what_follows_from_a_file_is_what_was_measured_to_the_bit(params, tmp_path):
    evaluation = evaluate(params, CONFIG, NUMPY, np.split(rows(97), [10, 55]))
    save(evaluation, tmp_path / "x.safetensors", {})
    _, summary, _ = load(tmp_path / "x.safetensors", CONFIG)
    measured = result(evaluation, CONFIG)
    assert set(measured) - set(summary) == {"fvu", "explained_variance", "loss"}
    assert summary == {name: measured[name] for name in summary}


def peak(work):
    """The most memory that Python and NumPy held at once while it lasted."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("width", "d", "batch"), [(65_536, 16, 32), (16_384, 256, 8), (32_768, 4, 256)])
@pytest.mark.parametrize("recipe", ["gba", "topk"])
def test_judging_takes_no_more_memory_than_training(width, d, batch, recipe):
    common = {"width": width, "batch": batch, "steps": 1, "dtype": "float32"}
    config = GBAConfig(**common) if recipe == "gba" else BaselineConfig(method=recipe, **common)
    backend, x = backends.load_for("numpy", config), rows(2048, d)
    params = backend.params(backends.begin(backend, config, d))

    def train():
        state = backends.begin(backend, config, d)
        backend.step(state, backend.put(state, sae.unit_rows(x[:batch])))

    training = peak(train)
    constant = 2**26  # finding the top rows of the first rows
    assert peak(lambda: evaluate(params, config, backend, [x], top=2)) < 1.05 * training + constant


def test_how_rows_are_split_changes_only_rounding(params, monkeypatch):
    whole = evaluate(params, CONFIG, NUMPY, [rows()], top=3)
    monkeypatch.setattr(judging, "ENTRIES", 1)
    split = evaluate(params, replace(CONFIG, batch=7), NUMPY, [rows()], top=3)
    assert split.summary() == pytest.approx(whole.summary(), rel=1e-6)
    np.testing.assert_array_equal(split.top_rows, whole.top_rows)


def test_a_run_that_cannot_be_judged_for_memory_is_said_to_be_complete(tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError("Unable to allocate 1. GiB")

    monkeypatch.setattr(Evaluation, "update", fails)
    np.save(tmp_path / "x.npy", rows())
    command = ["train", str(tmp_path / "x.npy"), "-o", str(tmp_path / "run"), "--steps", "3", "--width", "12"]
    result = CliRunner().invoke(main, [*command, "--groups", "3", "--batch", "8", *REFERENCE])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: not enough memory (Unable to allocate 1. GiB; training is done and {tmp_path / 'run' / 'final'} "
        f"complete: `refgba evaluate {tmp_path / 'run'}` judges it where there is more)"
    )
    assert folder.open_network(tmp_path / "run").state["step"] == 3
