"""Settings of Sphinx for the documentation site: `make docs`.

The source folder is the repository's root, so that every page is the file itself and its links stay as they are.
docs/index.md is the table of contents.  The API pages in docs/api/ are made anew from the docstrings by each build.
"""

from __future__ import annotations

import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import refgba

ROOT = Path(__file__).parent.parent

project, author, version = "refgba", "the refgba authors", refgba.__version__
copyright = "the refgba authors, MIT licence"
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/api/*.rst",
    "README.md",
    "tutorial.md",
    "CHANGELOG.md",
    "refgba/oracle/format.md",
    "refgba/experiments/data/README.md",
    "benchmarks/**.md",
]
exclude_patterns = ["docs/api/modules.rst", ".*", "runs", "site", "build", "tests", "refgba/backends", "refgba/cli.py"]
extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",  # shell blocks that show output
    "ref.python",  # Params and State are names in several modules
]

apidoc_modules = [
    {
        "path": "../refgba",
        "destination": "docs/api",
        "exclude_patterns": [
            "../refgba/cli.py",
            "../refgba/__main__.py",
        ],
        "follow_links": True,
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "undoc-members", "ignore-module-all"},
    }
]
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("cupy", "numba") if find_spec(name) is None]
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Array", "Float64", "Int64", "Mask")}
smartquotes = False  # flags begin with two hyphens

html_theme = "furo"
html_title = f"refgba {version}"
html_extra_path = ["redirect"]  # the front page of the site leads to docs/index.html


def as_rst(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText.

    Docstrings here are plain text for those who read the code: paragraphs, `names` in single backticks, examples that
    begin with >>>, and indented blocks of formulas and tables, which keep their lines.
    """
    blocks = re.split(r"\n\s*\n", textwrap.dedent("\n".join(lines)))
    result = []
    for block in blocks:
        text = block.strip("\n")
        if text.startswith(">>>"):
            result.append(text)
        elif text.startswith(" "):
            result.append("::\n\n" + textwrap.indent(textwrap.dedent(text), "    "))
        else:
            result.append(_paragraph(text))
    return "\n\n".join(result).split("\n")


def _paragraph(text: str) -> str:
    """One paragraph: names in literals, and nothing else with a meaning in reStructuredText.

    Lines that are indented below others are a list or a table, and keep their form.
    """
    if "\n " in text:
        return "::\n\n" + textwrap.indent(text, "    ")
    parts = re.split(r"``?([^`]+)``?", text)  # every second part stood in backticks
    return "".join(f"``{part.strip()}``" if k % 2 else _escaped(part) for k, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Plain text: characters, and lines of punctuation alone, lose their meaning in reStructuredText."""
    text = re.sub(r"([\\*_|`])", r"\\\1", text)
    return re.sub(r"^(?=[^\w\s\\]{2,}(\s|$))|(?<=:)(?=:(\s|$))", r"\\", text, flags=re.MULTILINE)


def _docstring(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _source(_app: Any, _document: str, source: list[str]) -> None:
    """Links to CONTRIBUTING lead to its page."""
    source[0] = re.sub(r"\]\((\.\./)*\.github/CONTRIBUTING\.md", r"](\1docs/contributing.md", source[0])


def setup(app: Any) -> None:
    """Connect what is above to Sphinx."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("source-read", _source)
