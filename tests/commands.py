"""What tests of the command line share: a small training run's flags, and how results and mistakes are read."""

from __future__ import annotations

import json

import click

REFERENCE = ["--backend", "numpy", "--dtype", "float64"]
QUICK = ["--width", "24", "--groups", "3", "--steps", "30", "--batch", "32", *REFERENCE]


def last_json(result):
    """The object that a command with --json printed as its last line."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def assert_one_line(result, complaint, status=2):
    """A mistake in the input, or with status 1 a failure: one line with this complaint, the last on stderr."""
    assert result.exit_code == status, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert result.stderr.rstrip().splitlines()[-1] == lines[0]
    assert "Traceback" not in result.output


def commands(group, name=""):
    """Every command of the program, by its full name."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name}{word} ")
        else:
            yield name + word, command
