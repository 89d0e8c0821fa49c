"""The command line: a mistake costs nothing but one line."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest
from commands import QUICK, assert_one_line, commands, last_json

from refgba.cli import main
from refgba.config import LARGEST
from refgba.runs.options import Given, Output, Word


def npy(array):
    def write(path):
        np.save(path, array)

    return write


def raw(data):
    return lambda path: path.write_bytes(data)


def truncated(path):
    np.save(path, np.ones((50, 4)))
    path.write_bytes(path.read_bytes()[:-8])


def header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return raw(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64_000))


BAD_ROWS = np.ones((20, 4))
BAD_ROWS[7, 2] = np.nan
ZERO_ROWS = np.ones((20, 4))
ZERO_ROWS[[5, 9]] = 0

BAD_DATA = {
    "missing": (lambda _: None, "no such file"),
    "empty file": (raw(b""), "the file is empty"),
    "not npy": (raw(b"PK\x03\x04 or whatever"), "not a .npy file"),
    "truncated": (truncated, "truncated"),
    "truncated header": (raw(b"\x93NUMPY\x01\x00v\x00{'descr'"), "truncated or damaged"),
    "1-D": (npy(np.ones(4)), "1-D (4,)"),
    "4-D": (npy(np.ones((2, 3, 4, 5))), "4-D (2, 3, 4, 5)"),
    "no rows": (npy(np.ones((0, 4))), "the array is empty, shape (0, 4)"),
    "complex": (npy(np.ones((5, 4), complex)), "dtype is complex128"),
    "integer": (npy(np.ones((5, 4), int)), "dtype is int64"),
    "object": (npy(np.array([[{}, 1]], dtype=object)), "dtype is object"),
    "parallel rows": (npy(np.outer(np.arange(1.0, 30), [1.0, 2.0, 3.0])), "all 29 rows point the same way"),
    "one row": (npy(np.ones((1, 4))), "bad.npy: there is one row; give rows that differ"),
    "negative shape": (header((-5, 16)), "truncated or damaged"),
    "huge shape": (header((10**18, 16)), "truncated or damaged"),
    "huger shape": (header((10**30, 16)), "truncated or damaged"),
    "shape of a bool": (header((True, 16)), "truncated or damaged"),
    "NaN": (npy(BAD_ROWS), "row 7 holds a NaN, an infinity"),
    "zero rows": (npy(ZERO_ROWS), "row 5 is all zeros and has no direction; --drop-zero-rows skips"),
}


@pytest.mark.parametrize(("write", "complaint"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_one_line_and_nothing_is_written(cli, tmp_path, write, complaint):
    write(tmp_path / "bad.npy")
    before = sorted(tmp_path.rglob("*"))
    result = cli("train", "bad.npy", "-o", "runs/mine", "--batch", 1)
    assert_one_line(result, complaint)
    assert "bad.npy" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--width", 5], "Error: --width (5) must be at least --groups (10)"),
        (["--htf", 0.001, "--ltf", 0.1], "Error: --htf (0.001) must be above --ltf (0.1)"),
        (["--htf", 1.5], "Error: --htf must lie strictly between 0 and 1, not 1.5"),
        (["--ltf", 0], "Error: --ltf must lie strictly between 0 and 1, not 0.0"),
        (["--lr", -1], "Error: --lr must not be negative, not -1.0"),
        (["--gamma-minus", -0.1], "Error: --gamma-minus must not be negative, not -0.1"),
        (["--steps", 0], "Error: --steps must be at least 1, not 0"),
        (["--steps", "many"], "not a valid integer"),
        (["--width", 0], "Error: --width must be at least 1, not 0"),
        (["--config", "absent.json"], "absent.json: cannot be read"),
        (["--backend", "abacus"], "there is no backend 'abacus'; the backends are numpy"),
        (["--dtype", "bfloat16"], "backend 'numpy' has no dtype bfloat16; it has float64, float32"),
        (["--backend", "numba", "--dtype", "tf32"], "backend 'numba' has no dtype tf32; it has float64, float32"),
        (["--adam-eps", 0], "Error: --adam-eps must be positive, not 0.0"),
        (["--width", 10**11], "Error: --width must be at most 2,147,483,647"),
        (["--recipe", "best"], "'best' is not one of 'default', 'measured', 'paper'"),
    ],
)
@pytest.mark.parametrize("command", [["train", "x.npy", "-o", "runs/mine"], ["demo"]], ids=["train", "demo"])
def test_a_bad_setting_is_one_line_and_nothing_is_written(cli, data, tmp_path, command, arguments, complaint):  # noqa: ARG001
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(cli(*command, *arguments), complaint)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [["train", "x.npy"], ["demo", "--rows", "500"]], ids=["train", "demo"])
def test_a_folder_with_a_run_is_left_alone(cli, data, tmp_path, command):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_one_line(cli(*command, "-o", "run", *QUICK), "run: already holds a run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_did_not_finish_is_told_from_one_that_did(cli, data, tmp_path):
    result = cli("train", data, "-o", "run", *QUICK, "--lr", "1e300")
    assert result.exit_code == 1
    assert "training diverged, the run has no result: try a lower lr" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "final").exists()
    anew = "training diverged by step 14; begin anew with a lower lr"
    assert_one_line(
        cli("train", data, "-o", "run", *QUICK), f"run: holds config.json of a run that did not finish: {anew}"
    )
    for command in (["evaluate", "run", data], ["export", "run", "-o", "out"]):
        assert_one_line(cli(*command), f"run: the run has not finished, it has no final/; {anew}, and a checkpoint")
    about = tmp_path / "run" / "about.json"
    record = json.loads(about.read_text())
    assert record.pop("diverged") == 14
    about.write_text(json.dumps(record))  # as earlier versions left it, and as a kill does
    for command in (["train", data, "-o", "run", *QUICK], ["evaluate", "run", data]):
        refused = cli(*command)
        assert_one_line(refused, "`refgba train --resume run` goes on with it")
    (tmp_path / "run" / "config.json").unlink()  # what comes last when a run is made: killed before it, there is no run
    assert_one_line(cli("train", data, "-o", "run", *QUICK), "no config.json, so there is no run to go on with; choose")


def test_the_last_update_is_checked_too(cli, data, tmp_path):
    flags = [*QUICK, "--steps", 1, "--form", 0, "--lr", "1e39", "--dtype", "float32"]
    assert cli("train", data, "-o", "run", *flags).exit_code == 1
    assert not (tmp_path / "run" / "final").exists()


def test_synth_overwrites_nothing(cli, tmp_path):
    (tmp_path / "V.npy").write_text("mine")
    assert_one_line(cli("synth", "-o", ".", "--rows", 10), "already holds V.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["V.npy"]
    assert (tmp_path / "V.npy").read_text() == "mine"


def test_a_full_disk_leaves_no_half_file(cli, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refgba.data.synthetic.write_array_header_1_0", full)
    assert_one_line(cli("synth", "-o", "s", "--rows", 10), "s: cannot be written (No space left on device)", 1)
    assert not list(tmp_path.iterdir())


def test_settings_that_never_adapt_are_remarked_on(cli, data):
    assert "no bias will adapt" in cli("train", data, "-o", "run", *QUICK, "--adapt-every", 31).stderr


def test_an_output_that_is_a_file_is_left_alone(cli, data, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_one_line(cli("train", data, "-o", "out", *QUICK), "out: exists and is not a folder")
    assert (tmp_path / "out").read_text() == "mine"


def test_evaluating_what_does_not_fit_is_one_line(cli, data, tmp_path):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    np.save(tmp_path / "narrow.npy", np.ones((5, 3)))
    assert_one_line(cli("evaluate", "run", "narrow.npy"), "narrow.npy: its rows have d = 3, the network d = 42")
    assert_one_line(
        cli("evaluate", "run", data, "--truth", "narrow.npy"), "narrow.npy: its rows have d = 3, the network d = 42"
    )
    assert_one_line(cli("evaluate", "nowhere", data), "nowhere: not a run")
    np.save(tmp_path / "one.npy", np.load(data)[:1])
    np.save(tmp_path / "same.npy", np.tile(np.load(data)[:1], (7, 1)))
    for command in (["evaluate", "run"], ["report", "run", "--data"]):
        assert_one_line(cli(*command, "one.npy"), "one.npy: FVU is undefined: there is one row; give rows that differ")
        assert_one_line(cli(*command, "same.npy"), "same.npy: FVU is undefined: all rows of the data are equal; give")
    np.save(tmp_path / "zero.npy", np.eye(42) * (np.arange(42) != 3))
    assert_one_line(cli("evaluate", "run", data, "--truth", "zero.npy"), "zero.npy: row 3 is zero or not finite")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["theory", "--n", 8, "--d", 4, "--s", 9], "s must be at most n"),
        (
            ["theory", "--n", 8, "--d", 4, "--s", 2, "--simulate", "--width", -5],
            "-5 is not in the range 1<=x<=2147483647",
        ),
        (["synth", "-o", "s", "--kind", "hierarchy", "--children", -1], "-1 is not in the range 1<=x<=2147483647"),
        (["synth", "-o", "s", "--noise", "1e308"], "the rows would not be finite"),
        (["theory", "--n", 8, "--d", 4, "--s", 2, "--p", 2], "p must lie strictly between 0 and 1"),
        (["synth", "-o", "s", "--rows", 0], "rows must be between 1 and"),
        (["synth", "-o", "s", "--features", "orthogonal"], "128 features cannot be orthogonal in 42 dimensions"),
        (["synth", "-o", "s", "--kind", "hierarchy", "--n", 127], "--n 127 must be a multiple of 1 + --children = 4"),
    ],
)
def test_what_cannot_be_is_one_line(cli, tmp_path, arguments, complaint):
    assert_one_line(cli(*arguments), complaint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


PATHS = [
    (name, param) for name, command in commands(main) for param in command.params
    if isinstance(param.type, Given | Word | Output)
]  # fmt: skip


@pytest.mark.parametrize(("name", "param"), PATHS, ids=lambda part: getattr(part, "name", part))
def test_an_empty_name_is_refused_and_not_taken_for_the_current_folder(cli, tmp_path, name, param):
    arguments = [p for p in dict(commands(main))[name].params if isinstance(p, click.Argument)]
    flag = [""] if isinstance(param, click.Option) else []
    given = [param.opts[0], *flag] if flag else ["" if p is param else "x" for p in arguments]
    result = cli(*name.split(), *given)
    assert_one_line(result, "is empty; ")
    assert not list(tmp_path.iterdir())


def test_every_path_is_one_that_is_not_empty():
    assert len(PATHS) > 40
    for name, command in commands(main):
        for param in command.params:
            assert not isinstance(param.type, click.types.FuncParamType), (name, param.name)


@pytest.mark.parametrize("steps", [LARGEST, LARGEST - 40])
@pytest.mark.parametrize("method", ["gba", "topk"])
def test_the_most_steps_that_can_be_asked_for_are_timed(cli, data, method, steps):
    flags = ["--steps", steps, "--width", 40, "--batch", 8, "--backend", "numpy", "--method", method, "--dry-run"]
    assert f"{steps} steps of 8 rows" in cli("train", data, *flags).stdout


HUGE = ("-1", "0", "-" + "9" * 200, "1" + "0" * 200, str(2**31), str(2**63), str(2**64))
SMALL = ("--n", 8, "--d", 6, "--s", 2)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *((("theory", *SMALL), flag) for flag in ("--n", "--d", "--s")),
        *((("theory", *SMALL, "--simulate"), flag) for flag in ("--width", "--rows", "--steps")),
        *((("synth", "-o", "s"), flag) for flag in ("--n", "--d", "--s", "--children")),
    ],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_a_count_out_of_bounds_is_one_line_that_states_them(cli, command, flag, value):
    lowest = 2 if flag == "--rows" else 1
    assert_one_line(cli(*command, flag, value), f"is not in the range {lowest}<=x<=2147483647")


@pytest.mark.parametrize("value", [*HUGE[:4], str(2**63)])
@pytest.mark.parametrize("command", ["synth", "demo"])
def test_rows_out_of_bounds_are_one_line_and_nothing_is_written(cli, tmp_path, command, value):
    assert_one_line(cli(command, "-o", "s", "--rows", value), "rows must be between 1 and 1,099,511,627,776, not")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308", "1e400", "5e-324", "-1", "0"])
@pytest.mark.parametrize("flag", ["--frequency", "--exponent", "--rho-2", "--p-child", "--noise"])
@pytest.mark.parametrize("kind", ["independent", "zipf", "pairs", "hierarchy"])
def test_any_number_is_taken_or_refused_in_one_line(cli, kind, flag, value):
    result = cli("synth", "-o", "s", "--rows", 20, "--n", 32, "--d", 6, "--kind", kind, flag, value)
    assert result.exit_code in (0, 2), result.output
    assert result.exit_code == 0 or result.stderr.rstrip().splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    "command", [("synth", "-o", "s", "--kind", "uniform", "--n"), ("theory", "--s", 1, "--simulate", "--n")]
)
def test_arrays_beyond_any_machine_are_too_little_memory(cli, command):
    result = cli(*command, 2**31 - 1, "--d", 2**31 - 1)
    assert result.exit_code == 1, result.output
    assert result.stderr.rstrip().splitlines()[-1].startswith("Error: not enough memory")


def test_the_width_bound_may_be_past_every_float(cli):
    arguments = ["theory", "--n", 1000, "--d", 100, "--s", 110]
    assert last_json(cli(*arguments, "--json"))["width"] is None
    assert cli(*arguments).exit_code == 0
