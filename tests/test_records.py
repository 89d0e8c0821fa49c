"""The records of a run, edited or damaged: each field is taken and can be worked with, or is refused in one line.

Every value of every record is replaced in turn by every value of RAW, and left out.  What a reader takes must then
train, be judged or be drawn: JSON never has a NaN, and no number is so large that arithmetic fails on it.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from odd_files import at_most, device, giant, pipe

from refgba import backends
from refgba.config import GBAConfig
from refgba.data import files
from refgba.data.activations import open_activations, reopen
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.report import RunData, load_run, read_labels, report
from refgba.runs import folder, log
from refgba.runs.schema import Damaged, each, entries, has, number, one_of, optional, require, text, whole
from refgba.runs.trainer import Saving, TrainingError, resume_run, train_run

RAW = ["null", "true", "0", "-1", "1", "0.5", "1e-320", "1e400", "NaN", "[]", "{}", '""', '"x"', "[null]"]
RAW += [str(2**31), str(2**63), str(2**80), "9" * 4000, "9" * 5000, r'"\u0000"', r'"\ud800"', r'"a\nb"', "1e308"]
NUMPY = backends.load("numpy")
CONFIG = GBAConfig(width=6, groups=2, steps=8, batch=4, adapt_every=2, form=0.5, untied=True, dtype="float32")


def places(value, path=()):
    """The path of every value in JSON, but for the outermost."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(original):
    """The text of a record with each of its values replaced by each of RAW, or left out."""
    for where in places(json.loads(original)):
        for raw in (*RAW, None):
            value = json.loads(original)
            parent = value
            for key in where[:-1]:
                parent = parent[key]
            if raw is None:
                del parent[where[-1]]
                yield where, raw, json.dumps(value)
            else:
                parent[where[-1]] = "@value@"
                yield where, raw, json.dumps(value).replace('"@value@"', raw)


def refused(read, path):
    """The error with which a reader refuses, None where it does not."""
    try:
        read(path)
    except (InputError, TrainingError) as error:
        return error
    return None


def in_one_line(error, path):
    """Whether a refusal is one line that can be printed and names the run."""
    message = str(error)
    message.encode()
    return len(message.splitlines()) == 1 and str(path) in message


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    np.save(path / "x.npy", np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32))
    data, found = survey(open_activations(path / "x.npy"))
    list(train_run(data, found, CONFIG, NUMPY, {"backend": "numpy", "recipe": "default"}, path / "run", Saving(6)))
    shutil.rmtree(path / "run" / "final")
    shutil.rmtree(path / "run" / "checkpoints" / "step-8")
    return path / "run"


def go_on(run):
    """Go on with a run from its newest checkpoint, which is at step 6 of 8."""
    record = folder.read_record(run)
    data = reopen(record.about["data"], record.dropped, record.crc, run.parent / "x.npy")
    saving = Saving.of(record.config, **record.about["checkpoints"])
    list(resume_run(record, data, record.config, NUMPY, saving))


@pytest.mark.parametrize("name", ["about.json", "checkpoints/step-6/state.json"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_goes_on_with_any_record_or_refuses_it(run, tmp_path, name, monkeypatch):
    monkeypatch.setattr(files, "flush", id)  # nothing here is about disks
    original = (run / name).read_text()
    accepted = 0
    for where, raw, new in changed(original):
        copy = tmp_path / "run"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        (tmp_path / "x.npy").exists() or shutil.copy(run.parent / "x.npy", tmp_path)
        (copy / name).write_bytes(new.encode("utf-8", "surrogatepass"))
        refusal = refused(go_on, copy)
        if refusal is not None:
            assert in_one_line(refusal, tmp_path), (where, raw, refusal)
            continue
        accepted += 1
        lines = (copy / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 9)), (where, raw)
        assert not any("NaN" in line or "Infinity" in line for line in lines), (where, raw)
        load_run(copy)
    assert accepted > 20  # the names of the shards, the path, the version: nothing depends on them


def test_a_log_is_drawn_or_refused_by_its_line(run, tmp_path):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for _, raw, new in changed(lines[1]):
        (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], new, *lines[2:], ""]), "utf-8", "surrogatepass")
        refusal = refused(log.read, tmp_path)
        if refusal is not None:
            assert str(refusal).startswith(f"{tmp_path / 'metrics.jsonl'}: line 2: "), raw
            continue
        for line in log.read(tmp_path):
            assert all(isinstance(value, int | float) and abs(value) <= 1e300 for value in line.values()), raw


@pytest.mark.parametrize("values", [(1, 1e300), (1e300, 1e300), (5e-324, 1), (0, 0), (1e-150, 1e150)])
@pytest.mark.parametrize("steps", [(1, 2), (5, 1), (1, 1), (1, 2**31 - 1)])
def test_whatever_a_log_may_hold_is_drawn(values, steps):
    pytest.importorskip("matplotlib")
    rows = [{"step": t, "loss": v, "fvu": v, "seconds": v} for t, v in zip(steps, values, strict=True)]
    with np.errstate(all="ignore"):  # as on the command line
        assert "Loss" in report([RunData("extreme", CONFIG, metrics=rows * 30)])


def test_labels_are_read_or_refused(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"17": "a name", "0": ""}')
    assert read_labels(path) == {17: "a name", 0: ""}
    for bad in ('{"x": "a"}', '{"-1": "a"}', '{"1": 2}', '{"²": "a"}', "[]", "null", "1", '{"%s": "a"}' % ("9" * 5000)):
        path.write_text(bad)
        with pytest.raises(InputError) as caught:
            read_labels(path)
        assert in_one_line(caught.value, path)


def test_a_damaged_record_of_a_report_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    about = json.loads((copy / "about.json").read_text())
    for value in (None, [], "x", 3, {"path": None}):
        (copy / "about.json").write_text(json.dumps(about | {"data": value}))
        with pytest.raises(Damaged, match=r"about.json: damaged: data\S* is not as it was written"):
            load_run(copy)


# ---- what is no ordinary file ----------------------------------------------------------------------------------------


NAMES = ["config.json", "about.json", "data.safetensors", "metrics.jsonl"]
NAMES += [f"checkpoints/step-6/{name}" for name in ("params.safetensors", "training.safetensors", "state.json")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [pipe, device, giant])
def test_what_is_no_ordinary_file_is_refused_at_once(run, tmp_path, name, change):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.parent / "x.npy", tmp_path)
    change(copy / name)
    readers = [go_on, load_run if "/" not in name else lambda path: folder.open_network((path / name).parent)]
    with at_most(30):
        refusals = [refused(read, copy) for read in readers]
    assert refusals[0] is not None
    assert refusals[1] is not None or name == "data.safetensors"  # which a report does not need
    for refusal in refusals:
        assert refusal is None or in_one_line(refusal, copy)


# ---- the checks ------------------------------------------------------------------------------------------------------


def test_a_table_names_the_first_field_that_is_wrong(tmp_path):
    table = {"name": text, "inner": {"n": whole(0, 5)}, "list": optional(each(entries(text, whole(0)), fewest=1))}
    good = {"name": "x", "inner": {"n": 5}, "list": [["a", 1]], "more": object()}
    require(tmp_path, good, table)
    for change, named in [
        ({"name": 3}, "name"),
        ({"inner": None}, "inner"),
        ({"inner": {"n": 6}}, "inner.n"),
        ({"inner": {"n": True}}, "inner.n"),
        ({"list": []}, "list"),
        ({"list": [["a"]]}, "list"),
    ]:
        with pytest.raises(Damaged) as caught:
            require(tmp_path, good | change, table, "line 3: ")
        assert str(caught.value) == f"{tmp_path}: line 3: damaged: {named} is not as it was written"


def test_numbers_lie_in_their_bounds():
    assert number(0, 1)(0.5)
    assert number(0, 1)(1)
    for bad in (float("nan"), float("inf"), -1e-320, 10**400, True, "0", None):
        assert not number(0, 1)(bad)
    assert one_of("a", "b")("a")
    assert not one_of("a", "b")(["a"])
    assert has({"n": whole(1)})({"n": 1})
    assert not has({"n": whole(1)})([])
