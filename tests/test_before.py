"""What earlier versions wrote still opens, and means the same: runs, checkpoints, exports, stores, traces, dumps.

tests/before/README.md says which version wrote it, and how.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from refgba.cli import main

BEFORE = Path(__file__).parent / "before"
DATA, TRUTH = BEFORE / "truth" / "X.npy", BEFORE / "truth" / "V.npy"
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))
RUNS = sorted(path.name for path in (BEFORE / "networks").iterdir())
EXPORTS = sorted(path.name for path in (BEFORE / "exports").iterdir())


def refgba(*arguments):
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def result(*arguments):
    """What a command prints with --json."""
    return json.loads(refgba(*arguments, "--json").splitlines()[-1])


def same(found, expected, rel):
    """Whether all that the earlier version printed is printed still, to within `rel`."""
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=rel, abs=rel), name


def test_nothing_is_left_out():
    assert sorted(EXPECTED) == sorted([*RUNS, *(f"exports/{name}" for name in EXPORTS)])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_evaluated_as_before(name):
    run = BEFORE / "networks" / name
    same(result("evaluate", run, DATA, "--truth", TRUTH), EXPECTED[name]["evaluate"], 1e-5)
    checkpoint = run / "checkpoints" / "step-20"
    same(result("evaluate", checkpoint, DATA, "--truth", TRUTH), EXPECTED[name]["checkpoint"], 1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_extended_as_before(name, tmp_path):
    run = shutil.copytree(BEFORE / "networks" / name, tmp_path / "run")
    same(result("train", "--resume", run, DATA, "--steps", 60), EXPECTED[name]["extended"], 1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_goes_on_as_before(name, tmp_path):
    run = shutil.copytree(BEFORE / "networks" / name, tmp_path / "run")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-40")
    same(result("train", "--resume", run, DATA), EXPECTED[name]["resumed"], 1e-4)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_evaluated_as_before(name):
    same(result("evaluate", BEFORE / "exports" / name, DATA), EXPECTED[f"exports/{name}"], 1e-5)


def test_a_store_is_sound():
    assert result("data", "verify", BEFORE / "store")["rows"] == 600


def test_a_dump_agrees_with_its_trace():
    assert result("oracle", "check", BEFORE / "trace", BEFORE / "candidate")["agrees"]


def test_a_report_is_made_of_all_runs(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [BEFORE / "networks" / name for name in RUNS]
    refgba("report", *runs, "--data", DATA, "-o", tmp_path / "report.html")
    assert all(name in (tmp_path / "report.html").read_text(encoding="utf-8") for name in RUNS)
