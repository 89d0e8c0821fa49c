"""A window of a real run as a trace, the settings that a port derives, and what is told of files that are no trace."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from recorded import SHIPPED
from second_port import port

from refgba import model
from refgba.cli import main
from refgba.oracle import compare, traces
from refgba.runs import folder

D, FORMED = 6, 8
TRAIN = (
    "--steps", 20, "--width", 14, "--groups", 4, "--batch", 16, "--adapt-every", 3, "--form", 0.4, "--hold", 0.7,
    "--lr", 0.02, "--htf", 0.4, "--ltf", 0.1, "--gamma-minus", 0.5, "--gamma-plus", 0.5, "--seed", 3,
    "--backend", "numpy",
)  # fmt: skip


def cli(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train(data, out, *more):
    done = cli("train", data, "-o", out, *TRAIN, *more)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, and with runs on them in two dtypes and of another method."""
    path = tmp_path_factory.mktemp("window")
    np.save(path / "X.npy", model.SyntheticModel(model.Uniform(12, (2, 3)), D, seed=1).draw(0, 200).X)
    for dtype in ("float64", "float32"):
        train(path / "X.npy", path / dtype, "--dtype", dtype, "--checkpoint-every", 5)
    done = cli("train", path / "X.npy", "-o", path / "topk", "--method", "topk", "--steps", 4, "--batch", 16, "--k", 2)
    assert done.exit_code == 0, done.output
    return path


def record(place, out, dtype, *more):
    done = cli("oracle", "record", "-o", out, "--run", place / dtype, *more)
    assert done.exit_code == 0, done.output
    return traces.read_trace(out), done.stdout


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_steps_around_the_change_of_phase_are_recorded(dtype, place, tmp_path):
    trace, said = record(place, tmp_path / "t", dtype)
    assert trace.numbers == range(FORMED - 1, FORMED + 3)
    assert f"steps 7 to 10 of 14 neurons, d = 6, 175 arrays, from a state in {dtype}\n" in said
    index = json.loads((tmp_path / "t/index.json").read_text())
    assert index["first"] == 7
    assert index["run"] == {"dtype": dtype, "backend": "numpy", "checkpoint": 0}
    assert all(value.dtype != np.float32 for value in trace.arrays.values())
    assert f"{FORMED}/W_dec" not in trace.arrays
    assert 0 < trace.at(FORMED + 1)["held"].sum() < 14
    state = trace.at(FORMED - 2)["W"]
    assert np.array_equal(state.astype(np.float32), state) is (dtype == "float32")


def test_a_window_is_what_the_run_did(place, tmp_path):
    trace, _ = record(place, tmp_path / "t", "float64", "--window", "17:20")
    final = folder.open_network(place / "float64").params.arrays()
    for name, value in final.items():
        np.testing.assert_allclose(trace.at(20)[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert json.loads((tmp_path / "t/index.json").read_text())["run"]["checkpoint"] == 15


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_window_from_a_checkpoint_is_that_from_the_beginning(dtype, place, tmp_path):
    shutil.copytree(place / dtype, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    whole, _ = record(tmp_path, tmp_path / "a", "run", "--window", "18:19")
    short, _ = record(place, tmp_path / "b", dtype, "--window", "18:19")
    for name, value in whole.arrays.items():
        assert np.array_equal(short.arrays[name], value), name


@pytest.mark.parametrize("starts", traces.STARTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ports_are_checked_against_a_window(dtype, starts, place, tmp_path):
    trace, _ = record(place, tmp_path / "t", dtype)
    given = port(trace, starts, np.dtype(dtype))
    assert compare(trace, given, starts).agrees
    assert (
        cli("oracle", "dump", tmp_path / "t", "--backend", "numpy", "--starts", starts, "-o", tmp_path / "c").exit_code
        == 0
    )
    checked = cli("oracle", "check", tmp_path / "t", tmp_path / "c")
    assert checked.exit_code == 0, checked.output
    assert " quantities of 4 steps agree to 1e-05" in checked.stdout
    before = {f"6/{name}": value for name, value in trace.at(6).items()}
    assert compare(trace, given | before, starts).compared == len(given | before)
    found = compare(trace, given | before | {"6/a": before["6/a"] + 1}, starts).deviation
    assert (found.step, found.name, found.causes) == (6, "a", ["the port does not begin with the trace's state"])
    found = compare(trace, {"9/held": np.zeros(14, bool), "10/held": np.zeros(14, bool)}, starts).deviation
    assert (found.step, found.name, found.causes[0]) == (9, "held", "no neuron is held when forming ends")
    with pytest.raises(traces.InputError, match="names are STEP/QUANTITY, like 7/dW, with steps 6 to 10"):
        compare(trace, {"5/W": given["7/W"]})


def test_data_may_have_moved(place, tmp_path):
    shutil.copytree(place / "float64", tmp_path / "run")
    shutil.copy(place / "X.npy", tmp_path / "moved.npy")
    about = json.loads((tmp_path / "run/about.json").read_text())
    about["data"]["path"] = str(tmp_path / "gone.npy")
    (tmp_path / "run/about.json").write_text(json.dumps(about))
    refused = cli("oracle", "record", "-o", tmp_path / "t", "--run", tmp_path / "run")
    assert (refused.exit_code, "gone.npy" in refused.stderr) == (2, True)
    record(tmp_path, tmp_path / "t", "run", "--data", tmp_path / "moved.npy")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--run", "float64", "--window", "19:21"], "it has steps 1 to 20, so --window cannot be 19:21"),
        (["--run", "float64", "--window", "9:8"], "it has steps 1 to 20, so --window cannot be 9:8"),
        (["--run", "float64", "--window", "0:8"], "it has steps 1 to 20, so --window cannot be 0:8"),
        (["--run", "float64", "--window", "7"], "'7' should be two numbers of steps, like 1599:1602"),
        (
            ["--run", "float64", "--seed", "1"],
            "--seed has no effect with --run, which has settings of its own; leave it out",
        ),
        (["--run", "float64", "--ties"], "--ties has no effect with --run, which has settings of its own"),
        (["--window", "7:8"], "--window has no effect without --run, the run that it is of"),
        (["--ties", "--d", "5"], "--d has no effect with --ties, which has settings of its own"),
        (["--run", "topk"], "a run of topk; a trace is of GBA"),
        (["--run", "nothing"], "not a run, it has no config.json"),
    ],
)
def test_what_cannot_be_recorded_is_refused(arguments, complaint, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    refused = cli("oracle", "record", "-o", tmp_path / "t", *arguments)
    assert refused.exit_code == 2
    assert complaint in refused.stderr
    assert not (tmp_path / "t").exists()


def test_a_run_of_one_phase_needs_a_window(place, tmp_path):
    train(place / "X.npy", tmp_path / "run", "--form", 0)
    refused = cli("oracle", "record", "-o", tmp_path / "t", "--run", tmp_path / "run")
    assert (refused.exit_code, "has one phase; say which steps to record with --window" in refused.stderr) == (2, True)
    assert record(tmp_path, tmp_path / "t", "run", "--window", "2:3")[0].numbers == range(2, 4)


@pytest.mark.parametrize("first", [0, "7", 2.0, True, 8, 10**12])
def test_a_wrong_number_of_the_first_step_is_refused(first, place, tmp_path):
    record(place, tmp_path / "t", "float64", "--window", "7:8")
    index = json.loads((tmp_path / "t/index.json").read_text()) | {"first": first}
    (tmp_path / "t/index.json").write_text(json.dumps(index))
    refused = cli("oracle", "check", tmp_path / "t", tmp_path / "t")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert ("no trace: " if first == 8 else '"first" should be the number of the first') in refused.stderr


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_those_that_train_derives(place, tmp_path):
    chosen = ("--steps", 20, "--width", 64, "--batch", 16)
    assert cli("train", place / "X.npy", "-o", tmp_path / "run", *chosen, "--dtype", "float64").exit_code == 0
    printed = json.loads(cli("oracle", "settings", "--d", D, *chosen, "--json").stdout)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {name: printed[name] for name in config if name != "method"} == {
        name: value for name, value in config.items() if name != "method"
    }
    assert (printed["forming_steps"], printed["group_sizes"]) == (8, [7, 6, 7, 6, 6, 7, 6, 7, 6, 6])
    assert "forming_steps 8\n" in cli("oracle", "settings", "--d", D, *chosen).stdout


def test_the_settings_of_a_port_are_held_against_them(tmp_path):
    def check(given, *more):
        (tmp_path / "port.json").write_text(json.dumps(given))
        return cli("oracle", "settings", tmp_path / "port.json", "--d", 768, "--width", 4608, *more)

    right = {"a_init": 1.2 * 768 / 4608, "gamma_minus": 3.75 * 27 / 4000, "b_init": -(768**-0.5), "forming_steps": 1600}
    agrees = check(right | {"hold": 0.85, "untied": True, "activation": "jumprelu"})
    assert (agrees.exit_code, agrees.stdout) == (0, "all settings given are as `train` derives them\n")
    differs = check(right | {"a_init": 1.0, "group_sizes": [461] * 10, "untied": 1, "adapt_every": 26})
    assert differs.exit_code == 1
    assert "a_init should be 0.19999999999999998, is 1.0\n" in differs.stdout
    assert "adapt_every should be 27, is 26\n" in differs.stdout
    assert differs.stdout.count("\n") == 3
    as_json = json.loads(check({"a_init": 1.0}, "--json").stdout)
    assert (as_json["agrees"], as_json["differences"]) == (False, ["a_init should be 0.19999999999999998, is 1.0"])
    for wrong, complaint in (({"colour": 1}, "unknown setting 'colour'"), ([], "should hold a JSON object")):
        refused = check(wrong)
        assert (refused.exit_code, complaint in refused.stderr, "port.json" in refused.stderr) == (2, True, True)


# ---- no trace --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_trace_is_told_what_was_expected(tmp_path):
    np.savez(tmp_path / "port.npz", W=np.ones(3))
    (tmp_path / "empty").mkdir()
    for wrong, what in (("port.npz", "port.npz: is a file"), ("empty", "empty/index.json: no such file")):
        for pair in ((SHIPPED / "default", tmp_path / wrong), (tmp_path / wrong, SHIPPED / "default")):
            refused = cli("oracle", "check", *pair)
            assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
            assert f"{what}; a trace, or a candidate, is a folder of arrays.safetensors, whose" in refused.stderr
            assert '"starts": "trace"}; see `refgba oracle format`' in refused.stderr
