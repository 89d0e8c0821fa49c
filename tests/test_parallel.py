"""Several ranks train the network that one process trains, and share no more than they have to.

The tests start the ranks themselves, with the mpiexec that is installed beside this Python.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import ranks_worker as worker
from commands import last_json
from ranks import ROOT, TRAIN, needs_mpi, on_ranks
from safetensors.numpy import load_file

from refgba import backends, gba
from refgba.backends.comm import Ranks
from refgba.metrics import frr
from refgba.model import imbalanced
from refgba.runs import checkpoints, folder

pytestmark = needs_mpi
SETTINGS = [
    "--width", 62, "--groups", 3, "--steps", 60, "--batch", 32, "--adapt-every", 10, "--hold", 0.6,
    "--backend", "numpy", "--dtype", "float64", "--checkpoint-every", 20,
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((600, 9)))
    return path


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run of one process."""
    from click.testing import CliRunner

    from refgba.cli import main

    run = tmp_path_factory.mktemp("alone") / "run"
    result = CliRunner().invoke(main, ["train", *map(str, [data, "-o", run, *SETTINGS, "--json"])])
    assert result.exit_code == 0, result.output
    return run, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=[2, 3, 4])
def ranked(request, data, tmp_path_factory):
    """The same run on several ranks: how many, its folder, and what it printed."""
    run = tmp_path_factory.mktemp("ranked") / "run"
    more = ["--broadcast-rows"] if request.param == 2 else []
    status, out, err = on_ranks(request.param, *TRAIN, data, "-o", run, *SETTINGS, "--json", *more)
    assert status == 0, err
    return request.param, run, out, err


on_two_ranks = pytest.mark.parametrize("ranked", [2], indirect=True, scope="module")


def compare(actual, expected, tolerance=1e-10):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=tolerance, err_msg=name)


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def references():
    """What the reference comes to, by kind, and its traffic: none."""
    found = {}
    for kind, more in worker.KINDS.items():
        config = worker.config(**more)
        state = gba.init(gba.random_params(config, 42), config)
        metrics = [(m.loss, m.l0) for m in gba.train(state, gba.minibatches(worker.rows(), config))]
        found[kind] = {**state.params.arrays(), "held": state.held, "metrics": np.array(metrics)}
    return found


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(1, "numba"), (2, "numba"), (3, "numba"), (4, "numba"), (2, "numpy"), (3, "numpy"),
     *(pytest.param(ranks, "numpy", marks=pytest.mark.slow) for ranks in (1, 4))],
)  # fmt: skip
def test_fifty_steps_and_five_adaptations_are_those_of_one_process(ranks, name, references, tmp_path):
    if name == "numba":
        pytest.importorskip("numba")
    out = tmp_path / "out.npz"
    status, _, err = on_ranks(ranks, sys.executable, ROOT / "tests/ranks_worker.py", name, out)
    assert status == 0, err
    results = dict(np.load(out))
    V = imbalanced().V
    for kind, expected in references.items():
        first, again = (
            {array: results[f"{kind}/{repetition}/{array}"] for array in expected} for repetition in range(2)
        )
        compare(first, expected)
        for array, value in first.items():
            np.testing.assert_array_equal(value, again[array], err_msg=array)  # to the bit on repetition
        assert 0 < expected["held"].sum() < expected["held"].size
        assert frr(first["W"], V, 0.5) == frr(expected["W"], V, 0.5) > 0
    d, steps, adaptations, K = 42, worker.STEPS, worker.STEPS // worker.EVERY, worker.K
    extra = {"numpy": 1, "numba": 2}[name]  # open gates, and what is no longer finite; the request to stop is one more
    shared = [8 * steps * worker.L * d, 8 * (steps * (d + extra + 1) + adaptations * (2 * K + 1))]
    for width in (60, 240):
        assert results[f"traffic/{width}"].tolist() == (shared if ranks > 1 else [0, 0])


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_one_process_is_the_reference(name, references):
    if name == "numba":
        pytest.importorskip("numba")
    backend = backends.load(name)
    for kind, expected in references.items():
        state, metrics = worker.trained(backend, worker.config(**worker.KINDS[kind]), worker.rows(), Ranks())
        found = {**backend.params(state).arrays(), "held": state.held, "metrics": np.array(metrics)}
        compare(found, expected, 0.0 if name == "numpy" else 1e-10)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_has_the_same_files_with_the_same_numbers(ranked, alone):
    ranks, run, out, err = ranked
    whole, result = alone
    own = json.loads(out)  # one object: the other ranks print nothing
    for name in ("fvu", "l0", "dead", "loss", "steps"):
        assert own[name] == pytest.approx(result[name], rel=1e-9), name
    assert err.count("Note: M = 62") == 1
    assert f"on each of {ranks} ranks" in err
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}
    compare(folder.open_network(run).params.arrays(), folder.open_network(whole).params.arrays())
    lines = [[json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (run, whole)]
    for here, there in zip(*lines, strict=True):
        for name in ("step", "loss", "l0", "fvu", "dead", "within"):
            assert here[name] == pytest.approx(there[name], rel=1e-9, abs=1e-12)


def test_a_result_is_the_bytes_that_safetensors_writes(ranked, tmp_path):
    from safetensors.numpy import save_file

    network = folder.open_network(ranked[1])
    save_file(network.params.arrays(), tmp_path / "params.safetensors")
    assert (tmp_path / "params.safetensors").read_bytes() == (ranked[1] / "final/params.safetensors").read_bytes()


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_a_checkpoint_is_read_by_any_number_of_ranks(ranked, alone, readers):
    config, about = folder.read_config(alone[0]), folder.read_about(alone[0])
    expected, _ = checkpoints.load(alone[0] / "checkpoints/step-40", config, about["data"]["fingerprint"])
    for rank, written in product(range(readers), (ranked[1], alone[0])):
        part, path = Ranks(rank, readers), written / "checkpoints/step-40"
        state, _ = checkpoints.load(path, config, about["data"]["fingerprint"], part)
        own = part.own(config.width)
        compare(
            state.params.arrays(),
            {n: v if n == "b_pre" else v[own] for n, v in expected.params.arrays().items()},
        )
        for name, adam in expected.optimiser.items():
            rows = slice(None) if name == "b_pre" else own
            np.testing.assert_allclose(state.optimiser[name].m, adam.m[rows], rtol=0, atol=1e-10)
            np.testing.assert_allclose(state.optimiser[name].v, adam.v[rows], rtol=0, atol=1e-10)
            assert state.optimiser[name].t == adam.t
        np.testing.assert_array_equal(state.buffer.counts, expected.buffer.counts[own])
        np.testing.assert_array_equal(state.last.counts, expected.last.counts[own])
        np.testing.assert_array_equal(state.held, expected.held[own])


@on_two_ranks
@pytest.mark.parametrize("readers", [1, 3])
def test_a_run_goes_on_with_another_number_of_ranks(ranked, alone, readers, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ranked[1], run)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints/step-60")
    status, _, err = on_ranks(readers, *TRAIN, "--resume", run)
    assert status == 0, err
    compare(folder.open_network(run).params.arrays(), folder.open_network(alone[0]).params.arrays())


@on_two_ranks
def test_a_damaged_shard_is_named_and_the_checkpoint_before_it_used(ranked, tmp_path):
    written, run = ranked[1], tmp_path / "run"
    shutil.copytree(written, run)
    shutil.rmtree(run / "final")
    shard = run / "checkpoints/step-60/params-1-of-2.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    status, _, err = on_ranks(2, *TRAIN, "--resume", run)
    assert status == 0, err
    assert f"{shard}: damaged" in err
    for name in ("params-0-of-2", "training-1-of-2"):
        again = run / f"checkpoints/step-60/{name}.safetensors"
        assert again.read_bytes() == (written / f"checkpoints/step-60/{name}.safetensors").read_bytes()


@pytest.mark.parametrize("other", [False, True])
def test_the_centre_and_the_rows_held_out_are_those_of_one_process(data, tmp_path, cli, other):
    X = np.load(data) + 5
    np.save(tmp_path / "x.npy", X[:500])
    np.save(tmp_path / "other.npy", X[500:])
    held_out = ["--held-out", tmp_path / "other.npy"] if other else ["--held-out-share", 0.2]
    options = [tmp_path / "x.npy", *held_out, "--centre", "on", *SETTINGS, "--json"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = cli("train", *options, "-o", whole)
    assert result.exit_code == 0, result.output
    status, out, err = on_ranks(2, *TRAIN, *options, "-o", run)
    assert status == 0, err
    printed = [json.loads(text.splitlines()[-1])["held_out"] for text in (result.stdout, out)]
    assert printed[1]["rows"] == printed[0]["rows"] == 100
    assert printed[1]["fvu"] == pytest.approx(printed[0]["fvu"], rel=1e-9)
    for here, there in zip(*(vars(folder.read_record(path)).items() for path in (run, whole)), strict=True):
        if here[0] in ("dropped", "crc", "held_out", "centre"):
            np.testing.assert_array_equal(here[1], there[1], err_msg=here[0])
    assert folder.read_about(run)["held_out"] == folder.read_about(whole)["held_out"]
    expected = folder.open_network(whole)
    compare(folder.open_network(run).params.arrays(), expected.params.arrays())
    assert np.linalg.norm(expected.centre) > 5
    for network in (run / "final", run / "checkpoints/step-60"):
        for part in (Ranks(), Ranks(1, 3)):
            read = folder.read_network(network, part) if network.name != "final" else folder.open_network(network)
            np.testing.assert_array_equal(read.centre, expected.centre)
            assert read.state["centred"] is True
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints/step-60")
    status, _, err = on_ranks(3, *TRAIN, "--resume", run)
    assert status == 0, err
    again = folder.open_network(run)
    compare(again.params.arrays(), expected.params.arrays())
    np.testing.assert_array_equal(again.centre, expected.centre)


@on_two_ranks
def test_export_evaluate_and_report_read_the_result(ranked, data, cli):
    run = ranked[1]
    for command in (
        ("export", run, "-o", Path("npz"), "--format", "npz"),
        ("evaluate", run, data, "--json"),
        ("evaluate", run / "checkpoints/step-60", data, "--json"),
        ("report", run, "-o", Path("page.html")),
    ):
        result = cli(*command)
        assert result.exit_code == 0, result.output


@on_two_ranks
def test_the_ranks_judge_a_network_together(ranked, data, cli, tmp_path):
    """None holds more neurons than its own, and what is written is what one process writes."""
    zero = np.load(data)
    zero[[3, 400]] = 0
    np.save(tmp_path / "x.npy", zero)
    network, own = ranked[1] / "checkpoints/step-40", tmp_path / "own.safetensors"
    flags = ["--json", "--top", 3, "--drop-zero-rows", "--drop-below", 0.2]
    command = ["evaluate", network, tmp_path / "x.npy", *flags, "-o"]
    result = cli(*command, tmp_path / "alone.safetensors")
    assert result.exit_code == 0, result.output
    status, out, err = on_ranks(3, sys.executable, "-m", "refgba", *command, own)
    assert status == 0, err
    expected, found = (json.loads(text.splitlines()[-1]) for text in (result.stdout, out))
    expected.pop("copies")  # no rank has all neurons to compare
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key
    expected = load_file(tmp_path / "alone.safetensors")
    compare(load_file(own), expected)
    assert expected["top_rows"].shape == (62, 3)


@on_two_ranks
def test_what_is_judged_in_one_process_only_is_refused_in_one_line(ranked, data, tmp_path, cli):
    assert cli("export", ranked[1], "-o", tmp_path / "npz", "--format", "npz").exit_code == 0
    for flags, complaint in (
        ([ranked[1], data, "--truth", data], "--truth is compared with all neurons in one process, not on 2 ranks"),
        ([tmp_path / "npz", data], "a dictionary is judged in one process, not on 2 ranks: start it without mpiexec"),
    ):
        status, out, err = on_ranks(2, sys.executable, "-m", "refgba", "evaluate", *flags)
        assert (status, out, err.count("Error: ")) == (2, "", 1), err
        assert complaint in err


@pytest.mark.slow
def test_whole_runs_on_two_ranks_end_as_those_of_one_process(tmp_path, cli):
    """In float32 rounding differs, and long runs agree in outcome: features are found, and as much is reconstructed."""
    pytest.importorskip("numba")
    rows = ROOT / "refgba/experiments/data/minilm-l3-mlp.npy"
    truth, held_out = tmp_path / "set/V.npy", rows.with_name("minilm-l3-mlp.heldout.npy")
    assert cli("synth", "-o", tmp_path / "set").exit_code == 0
    runs = {
        "imbalanced": [tmp_path / "set/X.npy", "--backend", "numba"],
        "real": [rows, "--held-out", held_out, "--steps", 1000, "--backend", "numba"],
    }
    for name, flags in runs.items():
        alone, ranked = tmp_path / f"{name}-alone", tmp_path / f"{name}-ranked"
        assert cli("train", *flags, "-o", alone).exit_code == 0
        status, _, err = on_ranks(2, *TRAIN, *flags, "-o", ranked, seconds=600)
        assert status == 0, err
        if name == "imbalanced":
            for run in (alone, ranked):
                found = folder.open_network(run).params.V
                assert frr(found, np.load(truth), 0.8) == 1
                assert frr(found, np.load(truth), 0.9) >= 0.98
        else:
            fvu = [last_json(cli("evaluate", run, held_out, "--json"))["fvu"] for run in (alone, ranked)]
            assert fvu[1] == pytest.approx(fvu[0], rel=0.02)
