"""The reference imports NumPy, SciPy and its siblings, nothing else; and arrows run one way."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import refgba

ROOT = Path(refgba.__file__).parent


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_the_reference_is_pure(path):
    siblings = {f"refgba.{sibling.stem}" for sibling in ROOT.glob("*.py")}
    for name in imported(path):
        top = name.split(".")[0]
        if top == "refgba":
            assert name == "refgba" or any(name == s or name.startswith(s + ".") for s in siblings), name
        else:
            assert top in {"numpy", "scipy", "__future__"} | sys.stdlib_module_names, name


@pytest.mark.parametrize("path", sorted((ROOT.parent / "backends").glob("*.py")), ids=lambda path: path.name)
def test_backends_do_not_know_runs_or_the_command_line(path):
    for name in imported(path):
        assert not name.startswith(("refgba.runs", "refgba.llm", "refgba.experiments", "cli")), name
