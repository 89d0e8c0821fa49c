"""Traces and candidates as files and on the command line: faulty ones are refused with their name; the page is true."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from recorded import KINDS, SHIPPED, config_of, recorded
from safetensors.numpy import load_file, save_file
from second_port import step

from refgba import oracle
from refgba.cli import main
from refgba.errors import InputError
from refgba.oracle import compare, traces
from refgba.oracle.stepwise import QUANTITIES

# ---- partial and faulty dumps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_any_quantity_may_come_alone_and_is_compared(quantity):
    for kind in KINDS:
        alone = {name: value for name, value in recorded(kind).arrays.items() if name.split("/")[1] == quantity}
        if not alone:
            continue
        if quantity == "rows":  # computed by no port: alone they show nothing
            alone |= {"1/x": recorded(kind).at(1)["x"]}
        assert compare(recorded(kind), alone).compared == len(alone)
        last = max(alone, key=lambda name: int(name.split("/")[0]))
        value = alone[last]
        moved = ~value if value.dtype == bool else value + 1
        found = compare(recorded(kind), alone | {last: moved}).deviation
        assert f"{found.step}/{found.name}" == last


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _: {}, "nothing to compare: the dump holds no arrays"),
        (lambda a: {"3/rows": a["3/rows"], "0/W": a["0/W"]}, "nothing to compare: the dump holds only what the trace"),
        (lambda a: {"3/dW.detectors": a["3/dW"]}, "step 3 has no quantity 'dW.detectors'; is it dW.detector?"),
        (lambda a: {"3/nothing at all": a["3/dW"]}, "known are rows, x,"),
        (lambda a: {"dW": a["3/dW"]}, "dW: names are STEP/QUANTITY"),
        (lambda a: {"13/dW": a["3/dW"]}, "with steps 0 to 12"),
        (lambda a: {"03/dW": a["3/dW"]}, "03/dW: names are"),
        (lambda a: {"9" * 5000 + "/dW": a["3/dW"]}, "names are STEP/QUANTITY"),
        (lambda a: {"0/dW": a["3/dW"]}, "step 0 has no quantity 'dW'"),
        (lambda a: {"0/W_dec": a["3/W"]}, "step 0 has no quantity 'W_dec'"),
        (lambda a: {"3/dW": a["3/dW"].T}, "3/dW has shape (5, 12), it should be (12, 5); it looks transposed"),
        (lambda a: {"3/dW": a["3/dW"][:4]}, "3/dW has shape (4, 5), it should be (12, 5)"),
        (lambda a: {"3/dW": a["3/dW"].astype(np.float16)}, "3/dW holds float16, it should hold bfloat16, float32 or"),
        (lambda a: {"3/counts": a["3/peaks"]}, "3/counts holds float64, it should hold whole numbers"),
        (lambda a: {"3/on": a["3/y"]}, "3/on holds float64, it should hold bool"),
        (lambda a: {"3/f": np.where(a["3/f"] == a["3/f"][1, 2], np.nan, a["3/f"])}, "3/f holds nan at [1, 2]"),
        (lambda _: {"3/loss": np.array(np.inf)}, "3/loss holds inf at []"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_its_name(change, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        compare(recorded(), change(recorded().arrays))


@pytest.mark.parametrize("tolerance", [0, -1, 1, float("nan")])
def test_a_tolerance_that_means_nothing_is_refused(tolerance):
    with pytest.raises(InputError, match="tolerance"):
        compare(recorded(), recorded().arrays, tolerance=tolerance)


def test_a_scalar_may_be_an_array_of_one():
    assert compare(recorded(), {"3/loss": recorded().at(3)["loss"].reshape(1)}).agrees


def test_what_should_not_be_there_at_a_step_deviates():
    found = compare(recorded(), {"2/p": recorded().at(3)["p"], "2/b": recorded().at(2)["b"]}).deviation
    assert (found.step, found.name, found.expected) == (2, "p", None)
    assert "adapt_every = 3" in found.causes[0]
    found = compare(recorded(), {"2/W_dec": recorded().at(2)["W"]}).deviation
    assert (found.name, found.causes) == ("W_dec", ["the decoder of its own begins before forming is over"])
    assert "there should be no W_dec" in str(found)


# ---- files and the command line --------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["oracle", *(str(a) for a in arguments)])

    return run


def test_record_dump_and_check_on_the_command_line(cli, tmp_path):
    assert cli("record", "-o", "trace").exit_code == 0
    assert (
        load_file(tmp_path / "trace/arrays.safetensors").keys() == traces.read_trace(SHIPPED / "default").arrays.keys()
    )
    assert cli("dump", "trace", "--backend", "numpy", "-o", "candidate").exit_code == 0
    agrees = cli("check", "trace", "candidate")
    assert agrees.exit_code == 0
    assert agrees.stdout.startswith("390 quantities of 12 steps agree to 1e-05 of their size")
    arrays = load_file(tmp_path / "candidate/arrays.safetensors")
    arrays["5/loss"] *= 2
    save_file(arrays, tmp_path / "candidate/arrays.safetensors")
    deviates = cli("check", "trace", "candidate")
    assert deviates.exit_code == 1
    assert "step 5: loss deviates" in deviates.stdout
    assert "likely cause: the loss lacks its 1/2\n" in deviates.stdout
    as_json = cli("check", "trace", "candidate", "--json")
    assert as_json.exit_code == 1
    found = json.loads(as_json.stdout.splitlines()[-1])
    assert found["agrees"] is False
    assert (found["deviation"]["name"], found["deviation"]["step"]) == ("loss", 5)
    assert found["deviation"]["causes"] == ["the loss lacks its 1/2"]


def test_settings_of_a_trace_come_from_files_and_flags(cli, tmp_path):
    (tmp_path / "c.json").write_text('{"width": 8, "groups": 2, "gamma_minus": 0.125}')
    assert cli("record", "-o", "t", "--config", "c.json", "--d", 4, "--first", 2, "--seed", 3).exit_code == 0
    trace = traces.read_trace(tmp_path / "t")
    c = trace.config
    assert (c.width, c.groups, c.gamma_minus, c.seed, c.steps, trace.steps, trace.d) == (8, 2, 0.125, 3, 12, 2, 4)
    assert cli("check", "t", "t").exit_code == 0
    (tmp_path / "c.json").write_text('{"width": -8}')
    refused = cli("record", "-o", "t2", "--config", "c.json")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "t2").exists()


def test_the_trace_of_ties_and_that_of_a_run_in_float32_can_be_recorded(cli, tmp_path):
    assert cli("record", "-o", "ties", "--ties").exit_code == 0
    assert traces.read_trace(tmp_path / "ties").config == traces.read_trace(SHIPPED / "ties").config
    (tmp_path / "c.json").write_text('{"dtype": "float32", "steps": 4, "batch": 3}')
    assert cli("record", "-o", "t", "--config", "c.json").exit_code == 0
    assert traces.read_trace(tmp_path / "t").config.dtype == "float64"


def test_what_exists_is_never_replaced(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name, complaint in (("file", "exists and is not a folder"), ("folder", "is not empty; choose another folder")):
        for command in (["record"], ["dump", SHIPPED / "default", "--backend", "numpy"]):
            refused = cli(*command, "-o", name)
            assert refused.exit_code == 2
            assert f"{name}: {complaint}" in refused.stderr
    assert [path.read_text() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["kept", "kept"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(path, change):
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


def set_index(path, **changes):
    index = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in index.items() if value is not None}))


FAULTS = {
    "no folder": (lambda f: shutil.rmtree(f), "index.json: no such file"),
    "no arrays": (lambda f: (f / "arrays.safetensors").unlink(), "arrays.safetensors: no such file"),
    "truncated": (lambda f: cut(f / "arrays.safetensors"), "arrays.safetensors: cannot be read"),
    "empty": (lambda f: (f / "arrays.safetensors").write_bytes(b""), "arrays.safetensors: cannot be read"),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json: not JSON"),
    "a list": (lambda f: (f / "index.json").write_text("[]"), "should hold a JSON object"),
    "another format": (lambda f: set_index(f / "index.json", format="x"), 'should say "format": "refgba-trace"'),
    "a later version": (lambda f: set_index(f / "index.json", version=2), '"version": 1'),
    "no start": (lambda f: set_index(f / "index.json", starts=None), '"starts" should be'),
}
TRACE_FAULTS = FAULTS | {
    "no settings": (lambda f: set_index(f / "index.json", config=None), "a dump to compare, not a trace?"),
    "bad settings": (lambda f: set_index(f / "index.json", config={"width": 0}), "width must be at least 1"),
    "unknown settings": (lambda f: set_index(f / "index.json", config={"colour": 1}), "unknown setting 'colour'"),
    "another width": (lambda f: set_index(f / "index.json", config={"width": 9, "groups": 3, "batch": 12}), "no trace"),
    "an array less": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.pop("7/da")), "arrays.safetensors: no trace: 7/da is"),
    "an array more": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"7/q": a["7/da"]})), "7/q does not belong"),
    "no steps": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: [a.pop(n) for n in list(a) if "/rows" in n]),
        "1/rows is missing"),
    "a matrix for b_pre": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"0/b_pre": a["0/W"]})), "one dimension"),
    "float32": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"7/da": a["7/da"].astype("f4")})),
        "7/da holds float32, in a trace it should hold float64"),
    "NaN": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a["7/da"].__setitem__(3, np.nan)),
        "7/da holds nan at [3]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_candidate_is_one_line_and_status_2(fault, cli, tmp_path):
    shutil.copytree(SHIPPED / "default", tmp_path / "candidate")
    break_it, complaint = FAULTS[fault]
    break_it(tmp_path / "candidate")
    refused = cli("check", SHIPPED / "default", "candidate")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert complaint in refused.stderr


def test_a_candidate_with_a_nan_is_told_its_file_and_place(cli, tmp_path):
    shutil.copytree(SHIPPED / "default", tmp_path / "candidate")
    rewrite(tmp_path / "candidate/arrays.safetensors", lambda a: a["7/da"].__setitem__(3, np.nan))
    refused = cli("check", SHIPPED / "default", "candidate")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "Error: candidate/arrays.safetensors: 7/da holds nan at [3]; 1 of its 12 entries are not finite\n"
    )


@pytest.mark.parametrize("fault", TRACE_FAULTS)
def test_a_faulty_trace_is_one_line_and_status_2(fault, cli, tmp_path):
    shutil.copytree(SHIPPED / "default", tmp_path / "trace")
    break_it, complaint = TRACE_FAULTS[fault]
    break_it(tmp_path / "trace")
    refused = cli("check", "trace", SHIPPED / "default")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert complaint in refused.stderr


def test_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(traces.files, "flush", full)
    with pytest.raises(InputError, match="out: cannot be written"):
        traces.write_trace(recorded(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_names_every_quantity_and_its_example_runs(cli, tmp_path, capsys):
    page = cli("format").stdout
    assert page == Path(oracle.__file__).with_name("format.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`]+)`", page.split("## What a step holds")[1].split("## Where")[0]))
    for name in QUANTITIES:
        theta = re.sub(r"^(updates|m|v)\..*", r"\1.θ", name)
        assert theta in told, name
    shutil.copytree(SHIPPED / "default", tmp_path / "trace")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {"my_step": step})
    assert capsys.readouterr().out.startswith("474 quantities of 12 steps agree to 1e-10")
    for kind in ("default", "paper"):
        about = json.loads((SHIPPED / kind / "index.json").read_text())
        assert list(about["quantities"]) == list(QUANTITIES)
        assert f"record -o trace{' --recipe paper' if kind == 'paper' else ''}" in page


# ---- what a porter meets ---------------------------------------------------------------------------------------------


def test_group_and_target_may_be_given_at_every_step():
    right = recorded().arrays
    constants = {f"{t}/{name}": recorded().at(3)[name] for t in range(1, 13) for name in ("group", "target")}
    report = compare(recorded(), right | constants)
    assert report.agrees
    assert report.compared == len(right | constants)
    found = compare(recorded(), constants | {"2/target": constants["2/target"][::-1]}).deviation
    assert (found.step, found.name, found.causes) == (2, "target", ["HTF and LTF are swapped"])


def test_what_was_not_given_is_told():
    right = recorded().arrays
    assert compare(recorded(), right).missing == []
    report = compare(
        recorded(), {"5/rows": right["5/rows"], "5/x": right["5/x"], "6/x": right["6/x"], "6/p": right["6/p"]}
    )
    assert {"y", "lr", "p at step 6"} <= {*report.missing, "p at step 6"}
    assert not {"x", "rows", "p", "p at step 5"} & {*report.missing}
    assert str(report).startswith("4 quantities of 2 of 12 steps agree to 1e-10 of their size")
    assert "\nnot in the dump, so not checked: held, lr, y, on, s, f, " in str(report)
    without = {name: value for name, value in right.items() if name not in ("6/dW", "7/dW")}
    assert compare(recorded(), without).missing == ["dW at steps 6, 7"]


def test_one_is_told_as_one_and_no_zero_is_negative():
    trace = traces.example(config_of("default"), 5, 1)
    assert str(compare(trace, {"1/x": trace.at(1)["x"]})).startswith("1 quantity of 1 step agrees to 1e-10")
    wrong = compare(recorded(), {"3/db": recorded().at(3)["db"] + 0.5})
    assert "should be 0.0, is 0.5" in str(wrong)
    negative = compare(recorded(), {"3/db": np.where(np.arange(12) == 4, 1.0, -0.0)}).deviation
    assert "should be 0.0, is 1.0" in str(replace(negative, expected=-0.0))


def test_arrays_in_bfloat16_are_understood(cli, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = {
        name: value.astype(ml_dtypes.bfloat16) if value.dtype == np.float64 else value
        for name, value in recorded().arrays.items()
        if name.split("/")[1] in ("x", "held", "seen", "s", "on", "dW")
    }
    report = compare(recorded(), arrays)
    assert report.agrees, str(report)
    assert report.tolerance == 1e-2
    (tmp_path / "candidate").mkdir()
    save_file(arrays, tmp_path / "candidate/arrays.safetensors")
    index = {"format": "refgba-trace", "version": 1, "starts": "trace"}
    (tmp_path / "candidate/index.json").write_text(json.dumps(index))
    told = cli("check", SHIPPED / "default", "candidate")
    assert (told.exit_code, f"{report.compared} quantities" in told.stdout) == (0, True), told.output
    assert "agree to 0.01" in told.stdout


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"config": {"form": 0.0, "dtype": "float32"}}, "made for another trace: form is 0.0, not 0.4"),
        ({"config": {"colour": 1}}, "colour is 1, not None"),
        ({"config": [], "d": 5}, '"config" should be the trace\'s, an object of settings'),
        ({"d": 4}, "made for another trace: d is 4, not 5"),
    ],
)
def test_a_candidate_that_says_it_is_of_another_trace_is_refused(changes, complaint, cli, tmp_path):
    shutil.copytree(SHIPPED / "default", tmp_path / "candidate")
    set_index(tmp_path / "candidate/index.json", config={"dtype": "float32"}, d=None)
    assert cli("check", SHIPPED / "default", "candidate").exit_code == 0
    set_index(tmp_path / "candidate/index.json", **changes)
    refused = cli("check", SHIPPED / "default", "candidate")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert complaint in refused.stderr


def test_a_dump_is_tied_to_its_trace(cli):
    assert cli("dump", SHIPPED / "default", "--backend", "numpy", "-o", "candidate").exit_code == 0
    assert cli("check", SHIPPED / "default", "candidate").exit_code == 0
    refused = cli("check", SHIPPED / "paper", "candidate")
    assert refused.exit_code == 2
    assert "index.json: made for another trace: " in refused.stderr


def test_rows_of_another_trace_are_named():
    other = traces.example(config_of("default", seed=5), 5).arrays
    for shown in (("rows", "x"), ("x", "y")):
        found = compare(recorded(), {name: other[name] for name in other if name.split("/")[1] in shown}).deviation
        assert (found.name, found.causes) == (
            shown[0],
            ["the rows are not the trace's: is this the dump of another trace?"],
        )
