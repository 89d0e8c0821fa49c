"""A pipe, a device or a giant in the place of any file that is read: one line at once, never a wait."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, assert_one_line
from odd_files import at_most, device, giant, pipe

from refgba.errors import InputError
from refgba.runs import judging
from refgba.runs.settings import read_settings

BEFORE = Path(__file__).parent / "before"
DICTIONARIES = sorted(
    path.relative_to(BEFORE) for path in (BEFORE / "exports").rglob("*") if path.is_file() and path.suffix != ".pt"
)
TRACES = [Path(folder, name) for folder in ("trace", "candidate") for name in ("index.json", "arrays.safetensors")]
CHANGES = pytest.mark.parametrize("change", [pipe, device, giant])


@CHANGES
@pytest.mark.parametrize("name", DICTIONARIES, ids=str)
def test_a_file_of_a_dictionary(cli, tmp_path, name, change):
    copy = Path(shutil.copytree(BEFORE / name.parent, tmp_path / "dictionary"))
    change(copy / name.name)
    for command in (["evaluate", copy, BEFORE / "truth" / "X.npy"], ["import", copy, "-o", "out"]):
        with at_most(30):
            assert_one_line(cli(*command), str(copy))


@CHANGES
@pytest.mark.parametrize("name", ["ae.pt", "config.json"])
def test_a_file_of_dictionary_learning(cli, tmp_path, name, change):
    pytest.importorskip("torch", reason="torch reads what dictionary_learning wrote")
    run, copy = BEFORE / "networks" / "default", tmp_path / "dictionary"
    assert cli("export", run, "-o", copy, "--format", "dictionary-learning").exit_code == 0
    change(copy / name)
    with at_most(60):
        assert_one_line(cli("import", copy, "-o", "out"), str(copy))


@CHANGES
@pytest.mark.parametrize("name", TRACES, ids=str)
def test_a_file_of_a_trace_or_of_a_dump(cli, tmp_path, name, change):
    for folder in ("trace", "candidate"):
        shutil.copytree(BEFORE / folder, tmp_path / folder)
    change(tmp_path / name)
    with at_most(30):
        assert_one_line(cli("oracle", "check", "trace", "candidate"), f"Error: {name}: ")


@CHANGES
def test_a_file_of_an_evaluation(tmp_path, change):
    path = Path(shutil.copy(BEFORE / "evaluation.safetensors", tmp_path))
    change(path)
    with at_most(30), pytest.raises(InputError, match=str(path)):
        judging.load(path)


@CHANGES
@pytest.mark.parametrize("flag", ["--truth", "--labels", "--data"])
def test_a_file_for_a_report(cli, data, tmp_path, flag, change):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    path = tmp_path / "odd.npy"
    np.save(path, np.ones((3, 42)))
    change(path)
    with at_most(30):
        result = cli("report", "run", flag, path)
    if not (change is giant and flag in ("--truth", "--data")):  # rows are read from where the header says
        assert_one_line(result, str(path))


def test_settings_come_through_a_pipe_but_not_without_end(cli, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=('{"width": 24}',))
    writer.start()
    assert read_settings(path) == {"width": 24}
    writer.join()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "giant").touch()
    giant(tmp_path / "giant")
    for name in ("zero", "giant"):
        with at_most(30):
            result = cli("oracle", "record", "-o", "out", "--config", name)
        assert_one_line(result, f"Error: {name}: larger than 16,777,216 bytes")
