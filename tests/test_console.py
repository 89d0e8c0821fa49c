"""What commands print of names that others chose: one line, no control characters, in any encoding of the terminal."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from commands import QUICK, assert_one_line

from refgba.errors import brief
from refgba.runs import console

NAMES = {
    "escape": "a\x1b[31mb",
    "bell": "a\x07b",
    "newline": "a\nb",
    "return": "a\rb",
    "c1": "a\x9bb",
    "separator": "a\u2028b",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_shown_escaped_and_on_one_line(cli, data, tmp_path, name):
    shown = console.escaped(name)
    assert shown.isprintable()
    (tmp_path / name).mkdir()
    inside = f"{name}/x.npy"
    data.rename(tmp_path / inside)
    for arguments in (
        ["train", inside, "-o", f"{name}/run", *QUICK],
        ["evaluate", f"{name}/run", inside, "-o", f"{name}/e.safetensors"],
        ["report", f"{name}/run", "-o", f"{name}/r.html"],
        ["export", f"{name}/run", "-o", f"{name}/exported"],
        ["import", f"{name}/exported", "-o", f"{name}/imported"],
        ["data", "pack", inside, "-o", f"{name}/store", "--model", name],
        ["data", "info", f"{name}/store"],
        ["synth", "-o", f"{name}/s", "--rows", 20],
    ):
        result = cli(*arguments)
        assert result.exit_code == 0, result.output
        assert all(part.isprintable() for part in result.output.split("\n")), arguments
        if arguments[0] not in ("evaluate",):
            assert shown in result.stdout
    for arguments in (["train", f"{name}/none.npy", "-o", "r"], ["evaluate", name, inside], ["data", "info", name]):
        assert_one_line(cli(*arguments), shown)
    for arguments in ([name], ["train", f"--{name}"], ["export", "run", "-o", "x", "--format", name]):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert all(part.isprintable() for part in result.output.split("\n")), arguments


def test_a_path_in_a_record_is_shown_escaped(cli, data, tmp_path):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    record = json.loads((tmp_path / "run" / "about.json").read_text())
    record["data"]["path"] = "gone\x1b[2J\nError: all is well"
    (tmp_path / "run" / "about.json").write_text(json.dumps(record))
    for arguments in (["train", "--resume", "run"], ["report", "run"]):
        assert_one_line(cli(*arguments), r"gone\x1b[2J\nError: all is well")


def test_what_libraries_say_in_lines_is_said_in_one(cli):
    assert_one_line(
        cli("llm", "features", "run", "y.npy", "-o", "f"),
        "Missing option '--format'. Choose from: saedashboard, circuit-tracer, delphi",
    )
    assert brief(ValueError("damaged:\n\tat \x1b byte 3")) == r"damaged: at \x1b byte 3"
    assert brief("a\nb") == r"a\nb"  # what is in a file


def pasted(text):
    """The commands that a text suggests, as a shell splits them: in backticks, in <code>, or to the end of a line."""
    parts = re.findall(
        r"`(refgba .*?)`|<code>(refgba .*?)</code>|(?:^|: |which )\s*(refgba [a-z].*?)(?: would|$)", text, re.M
    )
    return [shlex.split(html.unescape("".join(part))) for part in parts]


def test_a_command_that_is_suggested_can_be_pasted(cli, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/refgba"])
    place = tmp_path / "it's a place"
    place.mkdir()
    data.rename(place / "x.npy")
    run, x = "it's a place/run", "it's a place/x.npy"
    judge = ["refgba", "evaluate", run, "DATA"]
    assert pasted(cli("train", x, "-o", run, *QUICK).stdout) == [judge, judge]
    demo = "it's a place/demo"
    known = [f"{demo}/data/X.npy", "--truth", f"{demo}/data/V.npy"]
    assert pasted(cli("demo", "-o", demo, "--rows", 500, *QUICK).stdout) == [["refgba", "evaluate", demo, *known]]
    assert ["refgba", "report", demo] in pasted((tmp_path / demo / "demo.html").read_text())
    (place / "run" / "final").rename(place / "final")
    for command in (["train", x, "-o", run, *QUICK], ["evaluate", run, x]):
        assert pasted(cli(*command).stderr) == [["refgba", "train", "--resume", run]]
    np.savez_compressed(place / "z.npz", x=np.eye(4))
    packing = ["refgba", "data", "pack", "it's a place/z.npz", "-o", "z-store"]
    assert packing in pasted(cli("train", "it's a place/z.npz", "-o", "new").stderr)


def program(*arguments, cwd, **environment):
    command = [sys.executable, "-c", "from refgba.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, timeout=120)


OTHERS = [pytest.param(encoding, marks=pytest.mark.slow) for encoding in ("latin-1", "cp1252")]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", *OTHERS])
def test_any_name_is_shown_in_any_encoding(tmp_path, encoding):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 8)))
    name = os.fsdecode(b"caf\xff-") + "\N{GREEK SMALL LETTER GAMMA}"
    for arguments in (
        ["train", "x.npy", "-o", name, *QUICK],
        ["report", name, "-o", f"{name}.html"],
        ["export", name, "-o", f"{name}-exported"],
        ["data", "pack", "x.npy", "-o", f"{name}-store"],
        ["data", "info", f"{name}-store"],
        ["synth", "-o", f"{name}-synth", "--rows", "20"],
    ):
        result = program(*arguments, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, (arguments, result.stderr.decode())
        assert rb"caf\udcff-" in result.stdout
    refused = program("evaluate", f"{name}-none", "x.npy", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert refused.returncode == 2
    assert rb"caf\udcff-" in refused.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_the_page_of_the_oracle_is_shown_in_any_encoding(tmp_path, encoding):
    result = program("oracle", "format", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"\n") > 20


def test_a_file_of_settings_may_begin_with_a_byte_order_mark(cli, data, tmp_path):
    (tmp_path / "settings.json").write_bytes(b"\xef\xbb\xbf" + b'{"lr": 0.25}')
    assert cli("train", data, "-o", "run", *QUICK, "--config", "settings.json").exit_code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["lr"] == 0.25
