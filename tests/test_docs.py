"""What is written about the code is true: the examples in docstrings, and what README names.

tutorial.md is held against the code by test_tutorial.py.
"""

from __future__ import annotations

import doctest
import pkgutil
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

import refgba
from refgba import backends, cli

ROOT = Path(refgba.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

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
    "refgba.baselines.largest",
    "refgba.oracle.comparison.compare",
    "refgba.data.activations.open_activations",
    "refgba.runs.folder.open_network",
    "refgba.backends.load",
    "refgba.backends.status",
]


def examples(name):
    """The docstrings of a module that have examples; they begin with no names at all, as if pasted."""
    try:
        module = import_module(name)
    except ImportError as error:  # of a library that only some machines have: any other module has to be there
        if name != "refgba.backends.cupy":
            raise
        pytest.skip(f"{name} cannot be imported: {error}")
    return [found for found in doctest.DocTestFinder().find(module, name, globs={}) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_can_be_pasted_and_give_what_they_show(name):
    for example in examples(name):
        said = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example, out=said.append)
        assert runner.failures == 0, "".join(said)
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


# ---- what README names -----------------------------------------------------------------------------------------------

FENCED = re.findall(r"^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", PROSE)]
SHELL = [line for block in FENCED for line in block.replace("\\\n", " ").splitlines()] + INLINE


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


COMMANDS = [line for line in SHELL if re.match(r"(\.venv/bin/)?refgba\s", line)]


@pytest.mark.parametrize("line", COMMANDS)
def test_readmes_commands_and_their_flags_exist(line):
    assert resolve(line) == []


def test_every_command_stands_in_readme():
    named = {tuple(shlex.split(line, comments=True)[1:2]) for line in COMMANDS}
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


@pytest.mark.parametrize("flag", sorted({code.split()[0] for code in INLINE if code.startswith("-")}))
def test_a_flag_that_readme_names_alone_belongs_to_some_command(flag):
    assert flag in set(flags(cli.main))


@pytest.mark.parametrize("path", sorted({path for path in re.findall(r"\]\(([^)#]+)", README) if "://" not in path}))
def test_readmes_links_lead_to_files(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:benchmarks|tests|refgba|backends)/[\w./-]+\w", README))))
def test_paths_in_readme_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in SHELL if line.startswith("make ")}))
def test_readmes_make_targets_exist(target):
    assert target in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


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
