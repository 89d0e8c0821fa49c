"""Commands of refgba in environments of their own, for the tests of backends whose libraries or caches fail."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import refgba

ROOT = Path(refgba.__file__).parent.parent
NO_HOME = "/proc/1/nowhere"  # which nobody can write to, root neither
PROGRAM = "from refgba.cli import main; main()"
TEST_NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
TEST_CUPY = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")


def refgba_in(settings, *arguments, path=(), user=()):
    """A command of refgba in a process with these environment variables, None for one that is not set."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))} | settings
    return subprocess.run(
        [*user, sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120,
        env={name: str(value) for name, value in variables.items() if value is not None}, check=False,
    )  # fmt: skip


def reasons(result):
    """What `refgba backends` says of each backend: None of one that is usable."""
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}
    assert list(lines) == ["numpy", "numba", "cupy"], result.stdout
    assert lines["numpy"] == "usable"
    return {name: None if line == "usable" else line.removeprefix("not usable: ") for name, line in lines.items()}
