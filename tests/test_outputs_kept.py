"""What -o names is replaced only if the same command wrote it: no run, store, array or page of another is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import QUICK, assert_one_line

from refgba.data import files
from refgba.errors import InputError
from refgba.llm import results
from refgba.planning import calibration
from refgba.report.page import page
from refgba.report.pages import CLAIMS, CLAIMS_PAGE, DEMO, RUNS_PAGE

BEFORE = Path(__file__).parent / "before"
SHIPPED = Path(calibration.__file__).with_name(calibration.SHIPPED)

# Every command that replaces a file, without the name of it.
REPLACING = {
    "report": ["report", "default"],
    "plan": ["plan", "--d", 8, "--width", 64, "--tokens", 64, "--measure"],
    "llm evaluate": ["llm", "evaluate", "default", "absent", "--text", "default/about.json"],
    "llm effects": ["llm", "effects", "default", "absent", "--text", "default/about.json", "--neuron", 1],
    "llm steer": ["llm", "steer", "default", "absent", "--neuron", 1, "--by", 1, "--prompt", "a"],
}
RESULT = {"network": "n", "model": "m", "site": "s"}
OWN = {
    RUNS_PAGE: page("first", "", []),
    CLAIMS_PAGE: page(CLAIMS, "", []),
    calibration.OUTPUT: SHIPPED.read_text(encoding="utf-8"),
    results.EVALUATION: json.dumps(RESULT | {"points": 3, "interval": "", "left_alone": {}}),
    results.EFFECTS: json.dumps(RESULT | {"ranking": [], "direct": "", "effects": []}),
    results.TEXTS: json.dumps(RESULT | {"neurons": [1], "by": [1], "peaks": [1], "texts": []}),
}
# What the first version that had pages began them with.
FIRST_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>run</title>
"""


@pytest.fixture
def kept(tmp_path):
    """A run, a store, arrays, settings and pages of other commands; what they hold, by path."""
    for name in ("networks/default", "store", "truth", "exports/default-npz"):
        shutil.copytree(BEFORE / name, tmp_path / Path(name).name)
    shutil.copy(BEFORE / "evaluation.safetensors", tmp_path)
    (tmp_path / "notes.json").write_text('{"network": "mine"}')
    (tmp_path / "page.html").write_text("<!DOCTYPE html>\n<title>mine</title>")
    (tmp_path / "demo.html").write_text(page(DEMO, "", []))
    (tmp_path / "claims.html").write_text(page(CLAIMS, "", []))
    (tmp_path / "index.html").write_text(page("a dashboard", "", [], beside=True))
    return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", REPLACING.values(), ids=REPLACING)
def test_nothing_is_replaced_that_the_command_did_not_write(cli, tmp_path, kept, command):
    assert {"params.safetensors", "config.json", "meta.json", "X.npy"} <= {path.name for path in kept}
    for path in kept:
        refused = cli(*command, "-o", path.relative_to(tmp_path))
        assert_one_line(refused, f"Error: {path.relative_to(tmp_path)}: ")
        if path.suffix == ".json" or "plan" not in command:
            assert "so it is not replaced; choose another name" in refused.stderr
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mine", OWN, ids=lambda mine: mine.what)
def test_what_a_command_wrote_it_replaces_and_no_other_does(tmp_path, mine):
    path = tmp_path / "out.json"
    path.write_text(OWN[mine])
    for other in OWN:
        if other is not mine:
            with pytest.raises(InputError, match="is not replaced"):
                other.write(path, b"x")
    assert path.read_text() == OWN[mine]
    mine.write(path, b"x")
    with pytest.raises(InputError, match="is not replaced"):
        mine.write(path, b"y")
    assert path.read_bytes() == b"x"
    path.write_bytes(b"")  # as mktemp leaves it
    mine.write(path, b"z")


def test_the_page_of_an_earlier_version_is_replaced(cli, kept, tmp_path):
    del kept
    (tmp_path / "old.html").write_text(FIRST_PAGE)
    for _ in range(2):
        result = cli("report", "default", "--data", "truth/X.npy", "-o", "old.html")
        assert (result.exit_code, result.stdout) == (0, "Wrote old.html\n"), result.stderr
    assert "<title>default</title>" in (tmp_path / "old.html").read_text()


def test_reproduce_replaces_its_own_files_alone(cli, tmp_path):
    for name in ("report.html", "imbalanced.json"):
        (tmp_path / name).write_text("{}")
        assert_one_line(cli("reproduce", "imbalanced", "--backend", "absent", "-o", "."), f"{name}: exists and is not")
        (tmp_path / name).unlink()


def test_the_demonstration_replaces_nothing(cli, tmp_path):
    for name in ("demo.html", "data/held-out.npy"):
        path = tmp_path / "demo" / name
        files.write_output(path, b"mine")
        assert_one_line(cli("demo", "--rows", 500, *QUICK, "-o", "demo"), f"{name}: exists; choose another")
        assert [file.read_bytes() for file in (tmp_path / "demo").rglob("*") if file.is_file()] == [b"mine"]
        path.unlink()


@pytest.mark.parametrize(
    ("command", "suffix"),
    [(["evaluate", "absent", "absent.npy"], ".safetensors"), (REPLACING["plan"], ".json")],
    ids=["evaluate", "plan"],
)
def test_a_name_ends_as_the_command_says(cli, tmp_path, command, suffix):
    assert_one_line(cli(*command, "-o", "new.txt"), f"new.txt: what is written there is a {suffix} file")
    assert not list(tmp_path.iterdir())


def test_every_new_folder_may_be_there_and_empty(cli, kept, tmp_path):
    del kept
    for command in (
        ["export", "default", "--format", "npz"],
        ["import", "default-npz"],
        ["data", "pack", "truth/X.npy"],
        ["oracle", "record"],
        ["oracle", "dump", BEFORE / "trace", "--backend", "numpy"],
    ):
        out = tmp_path / "-".join(map(str, command[:2])).replace("/", "-")
        out.mkdir()
        assert cli(*command, "-o", out.name).exit_code == 0
        assert_one_line(cli(*command, "-o", out.name), f"{out.name}: is not empty; choose another folder")
