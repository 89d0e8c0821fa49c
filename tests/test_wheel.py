"""What is installed: one import name, `refgba`, with the backends, the command line and every data file in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

import refgba

ROOT = Path(refgba.__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKS = {"refgba/backends": "../backends", "refgba/cli.py": "../cli.py"}


def data_files() -> list[str]:
    """Every file of the package that is not Python, by its path in an installed refgba."""
    paths = [*(ROOT / "refgba").rglob("*"), *(ROOT / "backends").rglob("*")]
    here = [path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and "__pycache__" not in path.parts]
    inside = {f"refgba/{name}" if name.startswith("backends/") else name for name in here}
    return sorted(name for name in inside if not name.endswith((".py", ".pyc")))


def test_the_links_lead_to_the_top_of_the_repository():
    assert {name: os.readlink(ROOT / name) for name in LINKS} == LINKS


def test_every_data_file_is_named_as_package_data():
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, names in SETTINGS["tool"]["setuptools"]["package-data"].items()
        for pattern in names
    ]
    assert {"refgba/backends/cupy_kernels.cu", "refgba/oracle/format.md"} <= set(data_files())
    assert [name for name in data_files() if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_matplotlib_comes_along():
    assert any(name.startswith("matplotlib") for name in SETTINGS["project"]["dependencies"])


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_gives_a_working_demo(tmp_path):
    def run(*command, cwd=tmp_path):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"  # a copy, since setuptools leaves its build in the folder that it builds
    skipped = shutil.ignore_patterns(".*", "build", "runs", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {
        "refgba",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert set(data_files()) <= names
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "tests" / "constraints.txt"), str(wheel))
    (tmp_path / "cli.py").write_text("raise SystemExit('a file of the user, which has nothing to do with refgba')\n")
    (tmp_path / "backends.py").write_text("raise SystemExit('and another')\n")
    assert "FRR(0.8)" in run(str(python.with_name("refgba")), "demo", "--steps", "20")
    run(str(python.with_name("refgba")), "report", "runs/demo", "-o", "page.html")
    told = run(str(python), "-c", "import importlib.util as u; print(u.find_spec('refgba.cli').origin)", cwd="/")
    assert str(tmp_path / "environment") in told
