"""tutorial.md is true: its code runs and gives the numbers, words and figures shown; its names and links exist.

So are the settings and numbers on the page for porters (refgba/oracle/format.md), and the runner of the tutorial
(tests/tutorial.py) notices what is wrong.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from tutorial import (
    FIGURE,
    NOTEBOOK,
    ROOT,
    TUTORIAL,
    agrees,
    changes,
    chapters,
    differs,
    main,
    quotations,
    rewrite,
    run,
)

from refgba import gba, recipe
from refgba.config import GBAConfig
from refgba.sae import Params, unit_rows

TEXT = TUTORIAL.read_text(encoding="utf-8").split("\n")
CHAPTERS = chapters(TEXT)
PAGE = (ROOT / "refgba/oracle/format.md").read_text(encoding="utf-8")
REFERENCE = {path.stem for path in (ROOT / "refgba").glob("*.py")}

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.title.split(".")[0])


# ---- the tutorial ----------------------------------------------------------------------------------------------------


def ignored(paths):
    """Which of these paths in a checkout git ignores."""
    asked = subprocess.run(
        ["git", "check-ignore", "--stdin", "--no-index"],
        cwd=ROOT, input="\n".join(paths), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode > 1:
        pytest.skip("not a git checkout")
    return set(asked.stdout.splitlines())


@every_chapter
def test_a_chapter_gives_what_it_shows_and_pasting_it_changes_no_file_of_a_checkout(chapter):
    result = run(TEXT, chapter)
    assert list(changes(TEXT, chapter, result)) == []
    assert ignored(result.written) == set(result.written)


def test_the_page_for_notebooks_gives_what_it_shows_and_changes_no_file_of_a_checkout():
    page = NOTEBOOK.read_text(encoding="utf-8").split("\n")
    for chapter in chapters(page):
        result = run(page, chapter)
        assert list(changes(page, chapter, result, NOTEBOOK.parent)) == []
        assert ignored(result.written) == set(result.written)


def test_the_commands_of_readme_write_where_git_looks_away():
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "-o " in line]
    targets = [found for line in lines for found in re.findall(r"-o ([\w./-]+)", line)]
    assert len(targets) >= 4
    assert ignored(targets) == set(targets)
    assert ignored(["tutorial.md", "docs/notebook.png", "benchmarks/tutorial/real.png", "refgba/runs/demo.py"]) == set()


def test_a_dozen_lines_and_no_import_but_refgba_and_numpy_are_enough_for_a_notebook():
    page = NOTEBOOK.read_text(encoding="utf-8").split("\n")
    lines = [page[i] for block in chapters(page)[0].blocks for i in block.lines if page[i]]
    assert [line for line in lines if "import" in line] == ["import numpy as np", "import refgba"]
    assert len([line for line in lines if "import" not in line and "truth = " not in line]) <= 12
    for step in (".fit(X)", "components_", ".transform(X)", ".frr(", ".plot(", ".save(", "refgba.load(", ".export("):
        assert any(step in line for line in lines), step


@every_chapter
def test_a_chapter_has_an_aim_code_a_picture_and_an_exercise_and_fewer_than_250_lines(chapter):
    lines = [TEXT[i] for i in chapter.lines]
    assert re.fullmatch(r"\*After this lesson you can .+\.\*", lines[2]), "one sentence says what is learned"
    assert len(lines) < 250
    assert chapter.figures
    assert "```python" in lines
    assert any(re.search(r"`refgba\.", line) for line in lines)
    [exercise] = [i for i, line in enumerate(lines) if line.startswith("**Exercise ")]
    [solution] = [i for i, line in enumerate(lines) if line == "<!-- solution"]
    assert exercise < solution
    assert chapter.blocks[-1].lines.start == chapter.lines.start + solution + 1
    assert len(chapter.blocks[-1].output) > 0, "the exercise has no value to match"


def test_every_output_belongs_to_code_and_no_code_is_left_out():
    outputs = [block.output.start - 1 for chapter in CHAPTERS for block in chapter.blocks if len(block.output)]
    assert outputs == [i for i, line in enumerate(TEXT) if line == "```text"]
    kinds = {line for line in TEXT if line.startswith(("```", "<!--")) and not line.startswith("```python ")}
    assert kinds == {"```", "```python", "```text", "<!-- solution"}
    opening = [i for i, line in enumerate(TEXT) if line.startswith("```")][::2]
    assert [TEXT[i + 1] for i in opening if TEXT[i] == "```"] == ["make tutorial"], "what has no language does not run"


def test_there_are_twelve_chapters():
    assert [chapter.title.split(".")[0] for chapter in CHAPTERS] == [str(k) for k in range(1, 13)]


def test_what_is_quoted_stands_in_the_source():
    quoted = list(quotations(TEXT))
    assert len(quoted) > 5
    for path, lines in quoted:
        assert "\n".join(lines) in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no such lines: {lines[0]}"


def names():
    """What the prose names as code: dotted names that begin with the package, or with a module of the reference."""
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", "\n".join(TEXT)):
        top, *rest = name.split(".")
        if top == "refgba":
            yield name
        elif top in REFERENCE and rest != ["py"]:
            yield f"refgba.{name}"


def test_names_of_code_exist():
    found = sorted(set(names()))
    assert len(found) > 20
    for name in found:
        module, *attributes = name.split(".")
        thing = import_module(module)
        for k, attribute in enumerate(attributes, 1):
            if not hasattr(thing, attribute):
                import_module(".".join([module, *attributes[:k]]))
            thing = getattr(thing, attribute)


def anchors():
    """The anchors that GitHub makes of headings."""
    headings = [line.lstrip("#").strip().lower() for line in TEXT if re.match("#{1,3} ", line)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(TEXT))
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        if link.startswith("https://"):
            assert path == "https://arxiv.org/abs/2506.14002"
        elif path:
            assert (ROOT / path).exists(), link
        else:
            assert anchor in anchors(), link


def test_every_figure_in_the_folder_is_shown_and_small():
    shown = {ROOT / figure for chapter in CHAPTERS for figure in chapter.figures}
    assert shown == set((ROOT / "benchmarks/tutorial").iterdir())
    assert max(path.stat().st_size for path in shown) < 60 * 1024
    assert {plt.imread(path).shape[1] for path in shown} == {700}, "letters are as drawn on a page of 700 pixels"


@every_chapter
def test_figures_are_named_and_their_axes_labelled(chapter):
    blocks = ["\n".join(TEXT[i] for i in block.lines) for block in chapter.blocks]
    for drawing in (code for code in blocks if ".savefig(" in code):
        assert re.search(r"title", drawing)
        assert re.search(r"xlabel", drawing) or "xticks=[]" in drawing
        assert re.search(r"ylabel", drawing)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in {"tutorial", *re.findall(r"`make ([\w-]+)`", "\n".join(TEXT))}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_papers_algorithm_in_one_file_comes_first():
    opening = " ".join(TEXT[: TEXT.index("```")])
    assert "`refgba/paper.py`" in opening or "(refgba/paper.py)" in opening


# ---- the page for porters --------------------------------------------------------------------------------------------


def test_the_settings_on_the_page_are_those_of_the_recipes():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", PAGE.split("### Settings")[1].split("###")[0], re.MULTILINE)
    paper, derived = vars(GBAConfig()), recipe.derive(384)
    assert [name for name, *_ in rows] == list(paper)
    for name, of_paper, of_default in rows:
        assert of_paper == str(paper[name])
        if name not in derived:
            assert of_default == str(recipe.FIXED.get(name, paper[name]))


def test_the_derived_settings_are_the_formulas_on_the_page():
    d, M, T = 10, 300, 1000
    found = recipe.derive(d, width=M, steps=T)
    assert recipe.derive(d)["width"] == max(1024, 8 * d)
    assert found["adapt_every"] == max(1, round(T / 150))
    assert found["gamma_minus"] == found["gamma_plus"] == 3.75 * found["adapt_every"] / T
    assert found["a_init"] == 1.2 * d / M
    assert found["b_init"] == -1 / d**0.5


def test_the_run_to_check_a_port_by_gives_the_numbers_on_the_page():
    M, d, L = 12, 6, 8
    tied = GBAConfig(
        width=M, groups=3, steps=20, batch=L, htf=0.3, ltf=0.05, lr=0.05, weight_decay=0.01, gamma_minus=0.1,
        gamma_plus=0.2, adapt_every=3, floor=0.5, form=0.425, hold=0.4, lr_decay=0.5, a_init=0.5,
    )  # fmt: skip
    m, l, i = np.arange(M)[:, None], np.arange(L)[:, None], np.arange(d)
    batches = [unit_rows(np.cos(t + 5 * l + 2 * i + l * i)) for t in range(1, 21)]
    start = Params(unit_rows(np.sin(1 + 7 * m + 3 * i + m * i)), np.full(M, 0.5), np.zeros(M), np.zeros(d))
    state = gba.init(start, tied)
    losses = [metrics.loss for metrics in gba.train(state, batches)]
    F, p = recipe.forming_steps(tied), state.params
    lines = [
        f"F {F}, held {state.held.sum()}, losses {losses[0]:.5f} {losses[F]:.5f} {losses[-1]:.5f}",
        f"b {p.b.sum():.5f}, a {p.a.sum():.5f}, b_pre {p.b_pre.sum():.5f}, W {(p.W * i).sum():.5f}",
    ]
    state = gba.init(start, replace(tied, untied=True))
    *_, last = gba.train(state, batches)
    p = state.params
    sums = f"W {(p.W * i).sum():.5f}, W_dec {(p.V * i).sum():.5f}"
    lines.append(f"untied: loss {last.loss:.5f}, b_pre {p.b_pre.sum():.5f}, {sums}")
    assert "\n".join(["```", *lines, "```"]) in PAGE


# ---- the runner of the tutorial --------------------------------------------------------------------------------------


def text_of(code: str, *output: str, after: str = "") -> list[str]:
    """A tutorial of one chapter with one block."""
    shown = ["", "```text", *output, "```"] if output else []
    return ["# A tutorial", "", "## 1. A chapter", "", "```python", *code.split("\n"), "```", *shown, "", after]


def found(text: list[str], root: Path = ROOT) -> list[str]:
    """What the runner says has changed."""
    [chapter] = chapters(text)
    return list(changes(text, chapter, run(text, chapter), root))


def test_what_is_right_passes():
    assert found(text_of("x = 2\nprint('x is', x)\nprint(x / 3)", "x is 2", "0.667")) == []


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("x is 2", "x is 3"),  # a whole number
        ("x is 0.671", "x is 0.655"),  # another, by more than 2% and one unit
        ("x is 2", "y is 2"),  # a word
        ("x is 2", "x is 2 too"),  # more words
        ("x is 2\nnext", "x is 2"),  # more lines
        ("True", "False"),
        ("0.5", "-0.5"),
        ("1e-10", "1e-09"),
        ("1e-06", "0.0"),
        ("1.0", "1.0 1.0"),
    ],
)
def test_a_wrong_output_is_found(printed, shown):
    assert len(found(text_of(f"print({printed!r})", *shown.split("\n")))) == 1


@pytest.mark.parametrize(
    ("printed", "shown"),
    [("0.667", "0.655"), ("0.00", "0.01"), ("9.97  a", "10.02 a"), ("1.31e+06", "1.30e+06"), ("-0.25", "-0.26")],
)
def test_last_digits_may_differ(printed, shown):
    assert agrees([shown], [printed])


def test_an_error_in_the_code_is_an_error_with_its_line():
    text = text_of("x = 1\nx / 0")
    with pytest.raises(ZeroDivisionError) as raised:
        found(text)
    last = raised.traceback[-1]
    assert Path(last.path) == TUTORIAL
    assert text[last.lineno] == "x / 0"


def test_output_that_is_not_shown_is_found():
    assert len(found(text_of("print(1)"))) == 1


def test_a_solution_runs_and_its_value_is_compared():
    text = ["## 1. A", "<!-- solution", "print(6 * 7)", "-->", "", "The value:", "", "```text", "42", "```"]
    assert len(found(text)) == 1, "a value belongs right under its solution"
    del text[5:7]
    assert found(text) == []
    text[text.index("42")] = "41"
    assert len(found(text)) == 1


def test_chapters_share_no_names():
    text = [*text_of("x = 1"), *text_of("print(x)", "1")]
    first, second = chapters(text)
    run(text, first)
    with pytest.raises(NameError):
        run(text, second)


def test_quotations_do_not_run():
    text = ["## 1. A", "```python refgba/sae.py", "1 / 0", "```"]
    assert found(text) == []
    assert list(quotations(text)) == [("refgba/sae.py", ["1 / 0"])]


DRAW = """import matplotlib.pyplot as plt
import numpy as np
x = np.linspace(0, 1, 100)
figure, axes = plt.subplots(figsize=(8, 3))
axes.plot(x, 0.5 * np.sin({frequency} * x), label={label!r})
axes.set(ylim=(-1, 1))
axes.legend()
figure.savefig("{name}.png")"""
SHOW = "![a sine](benchmarks/tutorial/sine.png)"


def drawing(frequency: float = 6, label: str = "sine", name: str = "sine") -> list[str]:
    return text_of(DRAW.format(frequency=frequency, label=label, name=name), after=SHOW)


@pytest.fixture
def drawn(tmp_path):
    """A root with the figure of `drawing()`."""
    (tmp_path / "benchmarks/tutorial").mkdir(parents=True)
    text = drawing()
    rewrite(text, chapters(text)[0], run(text, chapters(text)[0]), tmp_path)
    return tmp_path


def test_a_figure_that_is_the_same_passes(drawn):
    assert found(drawing(), drawn) == []
    assert found(drawing(6.01), drawn) == [], "the last digits of a curve"


@pytest.mark.parametrize("given", [{"frequency": 7}, {"frequency": 12}, {"label": "a cosine, and more of it"}])
def test_a_changed_figure_is_found(drawn, given):
    [change] = found(drawing(**given), drawn)
    assert f"more than {FIGURE}" in change


def test_a_figure_that_is_missing_or_not_shown_is_found(drawn):
    assert found(drawing(), drawn / "nowhere") == ["benchmarks/tutorial/sine.png: not there yet"]
    assert found(drawing(name="other"), drawn) == [
        "benchmarks/tutorial/sine.png: shown, but not saved",
        "other.png: saved, but not shown",
    ]


def test_figures_of_different_sizes_differ(drawn):
    small = text_of(DRAW.format(frequency=6, label="sine", name="sine").replace("(8, 3)", "(6, 3)"), after=SHOW)
    assert found(small, drawn) != []


@every_chapter
def test_no_figure_passes_for_another(chapter):
    others = {ROOT / figure for other in CHAPTERS for figure in other.figures}
    for figure in chapter.figures:
        png = (ROOT / figure).read_bytes()
        assert differs(png, png) == 0
        for other in others - {ROOT / figure}:
            assert differs(png, other.read_bytes()) > 3 * FIGURE


def test_code_runs_in_an_empty_folder_that_goes_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found(text_of("from pathlib import Path\nprint(len(list(Path().iterdir())))\nPath('x').touch()", "0")) == []
    assert list(tmp_path.iterdir()) == []


def test_rewriting_puts_right_what_is_wrong_and_nothing_else(drawn, capsys):
    path, figure = drawn / "tutorial.md", drawn / "benchmarks/tutorial/sine.png"
    close = text_of("print(0.667)", "0.66")
    wrong = [*text_of("print('x', 2)", "x 3"), *close, *text_of("print(1)"), *drawing(7)]
    right = [*text_of("print('x', 2)", "x 2"), *close, *text_of("print(1)", "1"), *drawing(7)]
    path.write_text("\n".join(wrong), encoding="utf-8")
    main([], path, drawn)
    first = path.read_text(encoding="utf-8"), figure.read_bytes()
    assert first[0] == "\n".join(right)
    assert capsys.readouterr().out.count("changed: ") == 3
    main([], path, drawn)
    assert first == (path.read_text(encoding="utf-8"), figure.read_bytes())
    assert capsys.readouterr().out.count("nothing changed") == 4
