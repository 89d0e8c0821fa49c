"""What -o names is refused before anything is computed, by its own name, or written, with the folders it is in."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import QUICK, assert_one_line, commands

from refgba.cli import main
from refgba.runs.options import Output

ROOT = Path(__file__).parent.parent
BEFORE = ROOT / "tests" / "before"

# Every command that writes, with inputs that do not exist: whoever names the output has looked at it first.
COMMANDS = {
    "demo": ["demo", "--backend", "absent"],
    "train": ["train", "absent.npy"],
    "evaluate": ["evaluate", "absent", "absent.npy"],
    "report": ["report", "absent"],
    "reproduce": ["reproduce", "imbalanced", "--backend", "absent"],
    "export": ["export", "absent"],
    "import": ["import", "absent"],
    "data pack": ["data", "pack", "absent.npy"],
    "synth": ["synth", "--kind", "hierarchy", "--n", 127],
    "oracle record": ["oracle", "record", "--config", "absent.json"],
    "oracle dump": ["oracle", "dump", "absent", "--backend", "absent"],
    "plan": ["plan", "--d", 8, "--width", 64, "--tokens", 64, "--measure", "--device", "absent"],
    "harvest": ["harvest", "absent", "--site", "mlp", "--text", "absent.txt"],
    "llm evaluate": ["llm", "evaluate", "absent", "absent", "--text", "absent.txt"],
    "llm effects": ["llm", "effects", "absent", "absent", "--text", "absent.txt"],
    "llm steer": ["llm", "steer", "absent", "absent", "--neuron", 0, "--prompt", "absent"],
    "llm explore": ["llm", "explore", "absent", "--site", "mlp", "--text", "absent.txt"],
    "llm dashboard": ["llm", "dashboard", "absent", "absent"],
    "llm features": ["llm", "features", "absent", "absent"],
}


def test_every_output_of_every_command_is_checked():
    outputs = {
        name: option for name, command in commands(main) for option in command.params if {"-o"} & set(option.opts)
    }
    assert outputs.keys() == COMMANDS.keys()
    assert all(isinstance(option.type, Output) and option.type.refusals for option in outputs.values())


@pytest.mark.parametrize("out", ["file/x", "file/a/b/x", "x" * 300, "a/" + "x" * 300, "loop", "loop/x"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_cannot_be_written_is_named_as_it_was_given_before_all_else(cli, tmp_path, command, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    assert_one_line(cli(*command, "-o", out), f"Error: {out}: cannot be written (")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "loop"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_dash_is_refused_by_every_command(cli, tmp_path, command):
    assert_one_line(cli(*command, "-o", "-"), "Error: -: output goes to files only; give another name, or ./- for this")
    assert not list(tmp_path.iterdir())
    assert "output goes to" not in cli(*command, "-o", "./-").stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_is_there_and_is_no_file_or_folder_is_refused_and_left(cli, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    result = cli(*command, "-o", "pipe")
    assert_one_line(result, "Error: pipe: ")
    assert "absent" not in result.stderr
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_may_not_be_written_is_told_by_every_command_first():
    code = "import os, sys\nfrom click.testing import CliRunner\nfrom refgba.cli import main\n"
    code += "if os.geteuid() == 0: os.seteuid(65534)\n"
    code += "for line in sys.stdin.read().splitlines(): print(CliRunner().invoke(main, line.split()).stderr, end='')\n"
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where other users may not look
        place = Path(name)
        (place / "there").mkdir(mode=0o555)
        place.chmod(0o555)
        outs = [place / "new", place / "a" / "b" / "new"]
        lines = [" ".join([*map(str, command), "-o", str(out)]) for command in COMMANDS.values() for out in outs]
        lines += [f"train absent.npy -o {place}/there", f"synth --n 127 --kind hierarchy -o {place}/there"]
        done = subprocess.run(
            [sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        place.chmod(0o755)
    errors = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if "rror" in line]
    wanted = [f"Error: {line.rpartition(' ')[2]}: cannot be written (Permission denied)" for line in lines]
    assert errors == wanted, done.stderr


def test_missing_folders_are_made(cli, data, tmp_path):
    store = tmp_path / "a" / "deep"
    for arguments in (
        ["train", data, "-o", "a/deep/run", *QUICK],
        ["evaluate", "a/deep/run", data, "-o", "b/deep/evaluation.safetensors"],
        ["report", "a/deep/run", "-o", "c/deep/report.html"],
        ["export", "a/deep/run", "-o", "d/deep/npz", "--format", "npz"],
        ["export", "a/deep/run", "-o", "e/deep/saelens"],
        ["import", "e/deep/saelens", "-o", "f/deep/imported"],
        ["data", "pack", data, "-o", "g/deep/store"],
        ["synth", "-o", "h/deep/data", "--rows", 20],
        ["oracle", "record", "-o", "i/deep/trace"],
        ["oracle", "dump", "i/deep/trace", "--backend", "numpy", "-o", "j/deep/dump"],
    ):
        result = cli(*arguments)
        assert result.exit_code == 0, result.output
        out = Path(arguments[arguments.index("-o") + 1])
        assert out.exists()
        assert str(out) in result.stdout or arguments[0] == "evaluate"
    assert [path.name for path in store.iterdir()] == ["run"]


def test_a_file_named_like_the_dash_can_be_written(cli, data):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    assert cli("report", "run", "-o", "./-").exit_code == 0
    assert Path("-").stat().st_size > 0


def test_a_disk_that_fills_up_at_the_end_is_told_by_the_path_that_was_given(cli, data, monkeypatch):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("refgba.data.files.flush", full)
    for arguments in (["evaluate", "run", data], ["report", "run"], ["export", "run", "--format", "npz"]):
        out = "a/out.safetensors"
        assert_one_line(cli(*arguments, "-o", out), f"Error: {out}: cannot be written (No space left on device)", 1)
    assert not Path("a").exists()


@contextmanager
def full_disk():
    """No file can be written that is longer than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "x.npy", *QUICK], ["demo", "--rows", 600, *QUICK], ["evaluate", "before", BEFORE / "truth/X.npy"],
        ["report", "before", "--data", BEFORE / "truth/X.npy"], ["export", "before"], ["import", "exported"],
        ["data", "pack", "x.npy"], ["synth", "--rows", 20], ["oracle", "record"],
        ["oracle", "dump", BEFORE / "trace", "--backend", "numpy"],
        ["plan", "--d", 8, "--width", 64, "--tokens", 64, "--measure"],
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)  # fmt: skip
def test_a_full_disk_is_a_failure_of_every_command_and_leaves_nothing(cli, data, tmp_path, monkeypatch, command):
    assert data.name == "x.npy"
    shutil.copytree(BEFORE / "networks" / "default", tmp_path / "before")
    shutil.copytree(BEFORE / "exports" / "default-saelens", tmp_path / "exported")
    monkeypatch.setattr("refgba.planning.commands.measured", lambda here: here)
    out = f"a/deep/out{dict(evaluate='.safetensors', plan='.json').get(command[0], '')}"
    there = sorted(tmp_path.rglob("*"))
    with full_disk():
        result = cli(*command, "-o", out)
    assert_one_line(result, "cannot be written (File too large)", 1)
    assert f"Error: {out}" in result.stderr
    assert sorted(tmp_path.rglob("*")) == there


def test_neither_the_demo_nor_a_report_needs_matplotlib(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli("demo", "--rows", 500, *QUICK).exit_code == 0
    result = cli("report", "runs/demo")
    assert (result.exit_code, result.stdout) == (0, "Wrote report.html\n")
