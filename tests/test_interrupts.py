"""Ctrl-C at any moment of a command: one line, exit status 130, no traceback, nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import QUICK

from refgba.runs import interrupts

# An interrupt as the module that is named begins to load.
PROGRAM = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from refgba.cli import main
main()
"""


def interrupted(module, *arguments):
    environment = os.environ | {"INTERRUPTED": module}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


MODULES = ["json", "click", "numpy", "scipy.special", "refgba.backends", "refgba.experiments", "refgba.runs.console"]


@pytest.mark.parametrize("module", MODULES)
def test_while_the_program_loads(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = interrupted(module, "synth", "-o", "s", "--rows", 10)
    assert (run.returncode, run.stdout, run.stderr.strip()) == (130, "", "Aborted!")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["refgba.experiments.width", "matplotlib"])
def test_while_a_command_loads_what_it_needs(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = interrupted(module, "reproduce", "width", "-o", "out")
    assert run.returncode == 130, run.stderr
    assert run.stderr.strip().splitlines()[-1] == "Aborted!"
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("refgba.model.SyntheticModel.draw", ["synth", "-o", "new", "--rows", 100]),
        ("refgba.data.files.flush", ["data", "pack", "x.npy", "-o", "new"]),
        ("refgba.runs.accumulate.Evaluation.update", ["evaluate", "run", "x.npy", "-o", "new.safetensors"]),
        ("refgba.data.files.flush", ["evaluate", "run", "x.npy", "-o", "new.safetensors"]),
        ("refgba.report.report", ["report", "run", "-o", "new.html"]),
        ("refgba.data.files.flush", ["report", "run", "-o", "new.html"]),
        ("refgba.data.files.flush", ["export", "run", "-o", "new"]),
        ("refgba.theory.modified_ba_step", ["theory", "--n", 8, "--d", 8, "--s", 1, "--simulate", "--rows", 99]),
        ("refgba.data.synthetic.write", ["demo", "-o", "new"]),
    ],
)
def test_while_a_command_works(cli, data, tmp_path, monkeypatch, where, arguments):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupt(*_args, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    run = cli(*arguments)
    assert run.exit_code == interrupts.STATUS, run.output
    assert run.stderr.splitlines()[-1] == "Aborted!"
    assert "Traceback" not in run.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nothing_else_is_taken_for_an_interrupt(cli, monkeypatch):
    def end(*_args, **_named):
        raise EOFError("cache")

    monkeypatch.setattr("refgba.theory.resonance_band", end)
    run = cli("theory", "--n", 8, "--d", 8, "--s", 1)
    assert run.exit_code == 1
    assert run.stderr == "Error: something that was read ended too early (cache)\n"


def test_a_program_that_loads_the_commands_keeps_its_own_way_with_interrupts():
    code = "import signal; {}; import refgba.cli; print(signal.getsignal(signal.SIGINT) is {})"
    for before, handler in (("", "signal.default_int_handler"), ("signal.signal(2, signal.SIG_IGN)", "signal.SIG_IGN")):
        program = code.format(before or "pass", handler)
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_at_any_moment(share, tmp_path):
    command = [sys.executable, "-c", "from refgba.cli import main; main()", "synth", "-o", "s", "--rows", "40000"]
    began = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    seconds = time.monotonic() - began
    process = subprocess.Popen([*command[:-3], "t", *command[-2:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(share * seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)  # the last where the interpreter was ending anyway
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "t").rglob("*") if path.name.startswith(".partial")]
