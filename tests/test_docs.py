"""What is written about the code is true: the examples in docstrings, and what README and the other pages name.

tutorial.md is held against the code by test_tutorial.py.
"""

from __future__ import annotations

import doctest
import pkgutil
import re
import shlex
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

import refgba
from refgba import backends, cli, gba, recipe
from refgba.runs import folder

ROOT = Path(refgba.__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

# ---- the examples in docstrings --------------------------------------------------------------------------------------

PACKAGES = (refgba, backends)
MODULES = [package.__name__ for package in PACKAGES] + [
    found.name for package in PACKAGES for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]

# What a newcomer calls first.
SHOWN = [
    "refgba",
    "refgba.groups.target_frequencies",
    "refgba.groups.assign_groups",
    "refgba.bias.Buffer",
    "refgba.bias.adapt",
    "refgba.sae.unit_rows",
    "refgba.sae.forward",
    "refgba.sae.gradients",
    "refgba.model.SyntheticModel",
    "refgba.model.imbalanced",
    "refgba.identifiability.identifiability",
    "refgba.theory.modified_ba",
    "refgba.theory.resonance_band",
    "refgba.theory.width_bound",
    "refgba.metrics.mcs",
    "refgba.metrics.frr",
    "refgba.runs.accumulate.Evaluation",
    "refgba.baselines.network.largest",
    "refgba.oracle.comparison.compare",
    "refgba.data.activations.open_activations",
    "refgba.runs.folder.open_network",
    "refgba.backends.load",
    "refgba.notebook.estimator.GBA",
    "refgba.backends.status",
]


def examples(name):
    """The docstrings of a module that have examples; they begin with no names at all, as if pasted."""
    try:
        module = import_module(name)
    except ImportError as error:  # of a library that only some machines have: any other module has to be there
        if not name.startswith("refgba.backends.cupy"):
            raise
        pytest.skip(f"{name} cannot be imported: {error}")
    return [found for found in doctest.DocTestFinder().find(module, name, globs={}) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_can_be_pasted_and_give_what_they_show(name):
    for example in examples(name):
        output = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example, out=output.append)
        assert runner.failures == 0, "".join(output)
        assert runner.tries == len(example.examples)


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_newcomer_calls_first_has_an_example(name):
    module = max((m for m in MODULES if f"{name}.".startswith(f"{m}.")), key=len)
    assert name in {example.name for example in examples(module)}


def test_an_example_that_is_wrong_is_noticed():
    [example] = doctest.DocTestFinder().find(type("_", (), {"__doc__": ">>> 1 + 1\n3\n"}), "wrong", globs={})
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=[].append)
    assert runner.failures == 1


# ---- what the pages name ---------------------------------------------------------------------------------------------


def parts(page):
    """The fenced blocks of a page in Markdown, as (language, text), and what stands in single backticks elsewhere."""
    fenced = re.findall(r"^```(\S*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return fenced, [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]


def shell(page):
    """Every line of a page that may be a command."""
    fenced, inline = parts(page)
    return [line for _, block in fenced for line in block.replace("\\\n", " ").splitlines()] + inline


def resolve(line):
    """The words of a line that begins with refgba which the command line does not know."""
    words = shlex.split(line, comments=True)[1:]
    command = cli.main
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if isinstance(command, click.Group):
        return words or ["a command"]
    known = {"--help", "-h", *(flag for p in command.params for flag in (*p.opts, *p.secondary_opts))}
    return [word for word in words if word.startswith("-") and word.split("=")[0] not in known]


def flags(command):
    """Every flag of a command and those under it."""
    yield from (flag for p in command.params for flag in (*p.opts, *p.secondary_opts))
    for below in getattr(command, "commands", {}).values():
        yield from flags(below)


def commands(page):
    """The lines of a page that call refgba."""
    return [line for line in shell(page) if re.match(r"(\.venv/bin/)?refgba\s", line)]


PAGES = {
    path: (ROOT / path).read_text(encoding="utf-8")
    for path in (
        "README.md",
        "CHANGELOG.md",
        ".github/CONTRIBUTING.md",
        "benchmarks/recipe.md",
        "benchmarks/results/README.md",
        *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
    )
}
README = PAGES["README.md"]
FENCED, INLINE = parts(README)
LINKS = re.compile(r"\]\(([^)#\s]+)")
ROOMS = re.compile(r"(?<![\w./-])(?:benchmarks|docs|tests|refgba|backends|\.github)/[\w./-]*[\w/]")
FILES = re.compile(r"(?:[\w.-]+/)+(?:[\w.-]+)?|\w+\.py")


@pytest.mark.parametrize(
    ("page", "line"), [(path, line) for path, page in PAGES.items() for line in dict.fromkeys(commands(page))]
)
def test_commands_and_their_flags_exist(page, line):
    assert resolve(line) == [], page


def test_every_command_stands_in_readme():
    named = {tuple(shlex.split(line, comments=True)[1:2]) for line in commands(README)}
    assert named >= {(name,) for name in cli.main.commands}


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("refgba demo --rows 5", []),
        ("refgba trian X.npy", ["trian", "X.npy"]),
        ("refgba train X.npy --widht 5", ["--widht"]),
        ("refgba data", ["a command"]),
        ("refgba data pack FILES -o STORE --n 3", ["--n"]),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line, unknown):
    assert resolve(line) == unknown


@pytest.mark.parametrize(
    ("page", "flag"),
    [
        (path, flag)
        for path in ("README.md", "docs/usage.md", "docs/limits.md")
        for flag in sorted({code.split()[0] for code in parts(PAGES[path])[1] if code.startswith("-")})
    ],
)
def test_a_flag_that_a_page_names_alone_belongs_to_some_command(page, flag):
    assert flag in set(flags(cli.main)), page


@pytest.mark.parametrize(
    ("page", "link"),
    [(path, link) for path, page in PAGES.items() for link in sorted(set(LINKS.findall(page))) if "://" not in link],
)
def test_links_lead_to_files(page, link):
    assert (ROOT / page).parent.joinpath(link).exists()


@pytest.mark.parametrize("path", sorted(set(ROOMS.findall(README))))
def test_paths_in_readme_exist(path):
    assert (ROOT / path).exists()


def test_every_file_that_contributing_names_exists():
    named = {path for code in parts(PAGES[".github/CONTRIBUTING.md"])[1] for path in FILES.findall(code)}
    named = {path for path in named if not path.startswith(("site", ".venv"))}
    there = {path for path in named if "NAME" not in path}
    assert len(there) > 30
    assert [path for path in sorted(there) if not (ROOT / path).exists()] == []
    folders = {Path(path).parent for path in named - there}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (path, target)
        for path, page in PAGES.items()
        for target in sorted({line.split()[1] for line in shell(page) if line.startswith("make ")})
    ],
)
def test_make_targets_exist(page, target):
    assert target in re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE), page


def test_every_promise_names_a_test_that_exists():
    lines = PAGES["docs/promises.md"].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| promise |")]
    assert len(rows) > 40
    for row in rows:
        _, promise, tests, _ = row.split("|")
        assert promise.strip().endswith(".")
        named = re.findall(r"`(tests/\w+\.py)::(test_\w+)`", tests)
        assert " ".join(f"`{path}::{name}`" for path, name in named) == tests.strip(), row
        assert named, row
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), row


def test_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = recipe.default(d=6, width=20, steps=1)
    Path("runs").mkdir()
    folder.write_network(Path("runs/mine"), gba.random_params(config, 6), config, {"step": 1})
    names = {}
    for language, block in FENCED:
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out == "1.0\n"
    assert names["V"].shape == (20, 6)


# ---- pages that are made, and the site -------------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch):
    """What opens a program of benchmarks/ as a module; it may import its neighbours."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module


def test_the_page_of_results_is_what_its_program_writes(program):
    assert PAGES["benchmarks/results/README.md"] == program("results_table").page()


def test_a_row_of_results_has_one_number_per_cell(program):
    row = program("results_table").Row
    assert row("FVU", "GBA", [0.25, 0.5], "fraction", 2).cells() == [
        "FVU", "GBA", "0.3750", "0.2500", "0.5000", "fraction", "2",
    ]  # fmt: skip
    assert row("width", "GBA", [4.0, 16.0], "neurons", 2, geometric=True).cells()[2:5] == ["8", "4", "16"]
    assert row("share", "the paper", [-0.01], "%", None).cells()[2:] == ["0.0", "", "", "%", ""]
    assert row("width", "GBA", [4.0, None], "neurons", 2).cells()[2:5] == ["not reached", "", ""]


def test_the_picture_of_readme_can_be_drawn(tmp_path, program):
    picture = program("picture")
    drawn, last = picture.draw(steps=10, width=32, backend="numpy")
    assert last.step == 10
    (tmp_path / "features.svg").write_text(drawn, encoding="utf-8")
    assert ElementTree.parse(tmp_path / "features.svg").getroot().tag.endswith("svg")


def test_the_navigation_of_the_site_names_pages_that_exist():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", PAGES["docs/index.md"], re.MULTILINE | re.DOTALL)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = [re.sub(r".*<(.*)>", r"\1", entry) for entry in entries]
    assert len(pages) > 10
    made = {"api/refgba"}  # from the docstrings
    files = {page: Path(f"{ROOT if page.startswith('/') else ROOT / 'docs/'}/{page}.md") for page in pages}
    assert [page for page in pages if page not in made and not files[page].exists()] == []
    lasting = {*(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/index.md"}
    assert lasting <= {file.resolve() for file in files.values()}, "`make docs` refuses pages that it does not lead to"


# ---- doors: hooks, workflow and issue forms --------------------------------------------------------------------------


def test_pre_commit_checks_what_make_lint_checks():
    [lint] = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert hooks == [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_supported():
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert '["3.11", "3.12", "3.13", "3.14"]' in workflow
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        ("failure", ["refgba backends"]),
        ("numbers", ["refgba backends", "refgba oracle record", "refgba oracle dump", "refgba oracle check"]),
    ],
)
def test_issue_forms_ask_for_what_a_report_needs(form, asked):
    text = (ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text(encoding="utf-8")
    assert [line for line in asked if line not in text] == []
    assert [line for line in re.findall(r"`(refgba [^`]+)`", text) if resolve(line) not in ([], ["--version"])] == []


# ---- the version -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("CITATION.cff", r"^version: (.+)$"),
        ("CHANGELOG.md", r"^## \[?(\d[^] ]*)"),  # the newest release
    ],
)
def test_the_version_is_the_same_everywhere(name, stated):
    assert re.findall(stated, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)[0] == refgba.__version__


def test_the_citation_has_what_its_format_requires():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    keys = [line.split(":")[0] for line in lines if re.match(r"[a-z-]+:", line)]
    assert len(keys) == len(set(keys))
    assert {"cff-version", "message", "title", "authors"} <= set(keys)
    assert lines[0] == "cff-version: 1.2.0"
    assert not any("\t" in line for line in lines)  # YAML allows no tabs
