"""The structure: the reference is pure, arrows run one way, no circles, no doors through walls, no file too long.

cli -> llm -> notebook -> experiments -> report, oracle -> planning -> runs -> formats -> data -> backends ->
baselines -> the reference
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refgba

PACKAGE = Path(refgba.__file__).parent
ROOT = PACKAGE.parent
# Top down.  The notebook is beside the command line, and its equal: both are ways in, and nothing below knows of them.
LAYERS = (
    "__main__", "cli", "llm", "notebook", "experiments", "report", "oracle", "planning", "runs", "formats", "data",
    "backends",
    "baselines",
)  # fmt: skip
REFERENCE = len(LAYERS)
SIDE_BY_SIDE = {"report", "oracle"}  # neither imports the other
LONGEST = 450  # lines of a Python file
TABLES: dict[str, str] = {}  # longer files, and why: path -> reason


def name_of(path: Path) -> str:
    """The name by which a file of the package is imported."""
    inside = path.relative_to(PACKAGE).with_suffix("")
    parts = [part for part in inside.parts if part != "__init__"]
    return ".".join(["refgba", *parts])


def files() -> dict[str, Path]:
    """Every module of the package, the backends and the command line through the links, by name."""
    paths = [*PACKAGE.glob("*.py"), *(p for room in PACKAGE.iterdir() if room.is_dir() for p in room.rglob("*.py"))]
    return {name_of(path): path for path in sorted(paths) if "__pycache__" not in path.parts}


FILES = files()


def imports(path: Path) -> set[str]:
    """The names that a file imports, `from a import b` as a.b; imports for type checkers count too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module(name: str) -> str | None:
    """The module of the package that holds an imported name, None for another library's."""
    while name.split(".")[0] == "refgba":
        if name in FILES:
            return name
        name = name.rpartition(".")[0]
    return None


def layer(name: str) -> int:
    """How far down a module is, from 0 for the command line to REFERENCE."""
    room = [*name.split("."), ""][1]
    return LAYERS.index(room) if room in LAYERS else REFERENCE


EDGES = {name: {found for used in imports(path) if (found := module(used))} - {name} for name, path in FILES.items()}


def test_the_parser_sees_every_layer():
    assert {"refgba.backends.numba", "refgba.cli", "refgba.data.store", "refgba.oracle.traces"} <= set(FILES)
    assert "refgba.sae" in EDGES["refgba.gba"]
    assert {layer(name) for name in FILES} == set(range(len(LAYERS) + 1))


@pytest.mark.parametrize("name", [name for name in FILES if layer(name) == REFERENCE])
def test_the_reference_imports_numpy_scipy_and_its_siblings_alone(name):
    for used in imports(FILES[name]):
        top = used.split(".")[0]
        if top == "refgba":
            assert used == "refgba.__version__" or layer(module(used) or used) == REFERENCE, used
        else:
            assert top in {"numpy", "scipy", "__future__"} | sys.stdlib_module_names, used


@pytest.mark.parametrize("name", FILES)
def test_arrows_run_one_way(name):
    for other in EDGES[name]:
        here, there = layer(name), layer(other)
        assert there >= here or other == "refgba", f"{name} imports {other}, which is above it"
        if here != there:
            rooms = {name.split(".")[1], [*other.split("."), ""][1]}
            assert rooms != SIDE_BY_SIDE, f"{name} imports {other}"


def test_there_are_no_circles():
    edges = {name: set(others) for name, others in EDGES.items()}
    while leaves := [name for name, others in edges.items() if not others]:
        for leaf in leaves:
            del edges[leaf]
        for others in edges.values():
            others.difference_update(leaves)
    assert not edges, f"a circle among {', '.join(sorted(edges))}"


@pytest.mark.parametrize("name", FILES)
def test_no_module_imports_private_names_of_another(name):
    for used in imports(FILES[name]):
        if used.split(".")[0] == "refgba":
            last = used.rpartition(".")[2]
            assert not last.startswith("_") or last.startswith("__"), used


def test_no_module_reaches_for_private_names_of_another():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {used.rpartition(".")[2] for used in imports(path) if module(used) == used}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{name}: {node.value.id}.{node.attr}"


def test_nothing_is_imported_by_the_names_of_a_checkout():
    for folder in (PACKAGE, ROOT / "backends", ROOT / "tests", ROOT / "benchmarks"):
        for path in folder.rglob("*.py"):
            for used in imports(path):
                assert used.split(".")[0] not in {"backends", "cli"}, f"{path}: {used}"


def test_no_file_is_too_long():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in paths if p.is_file()}
    assert len(lengths) > 100
    assert {name: n for name, n in lengths.items() if n > LONGEST and name not in TABLES} == {}


# ---- the method is looked up, never asked for ------------------------------------------------------------------------


def decides_by_method(node: ast.AST) -> bool:
    """Whether an expression asks settings or parameters for their class, or compares a method with a name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        asked = ast.unparse(node.args[1])
        return "Config" in asked or "baselines." in asked or asked in {"Params", "gba.State", "State"}
    if isinstance(node, ast.Compare):
        sides = (node.left, *node.comparators)
        literals = (ast.Constant, ast.Tuple, ast.List, ast.Set)
        literal = any(isinstance(side, literals) and ast.unparse(side) != "None" for side in sides)
        return literal and any(re.fullmatch(r"(.*[.])?method", ast.unparse(side)) for side in sides)
    return False


@pytest.mark.parametrize(
    ("code", "decides"),
    [
        ("isinstance(config, GBAConfig)", True),
        ("isinstance(state.params, baselines.Params)", True),
        ("config.method == 'topk'", True),
        ("method not in ('gba', 'ba')", True),
        ("row['method'] == method", False),
        ("self.method is None", False),
        ("isinstance(value, dict)", False),
    ],
)
def test_a_decision_by_method_is_recognised(code, decides):
    assert decides_by_method(ast.parse(code, mode="eval").body) is decides


@pytest.mark.parametrize("name", FILES)
def test_what_depends_on_the_method_is_in_the_table_of_methods(name):
    if name.startswith("refgba.baselines"):
        return
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        assert not decides_by_method(node), f"{name}, line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
