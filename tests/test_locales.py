"""Names that are no UTF-8, under real locales: every command takes them, writes them and says them in one line.

The locales are made here, by glibc's localedef, since most machines have few; where it is missing, those that need it
are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
MADE = {"en_US.UTF-8": ("en_US", "UTF-8"), "de_DE": ("de_DE", "ISO-8859-1"), "tr_TR": ("tr_TR", "ISO-8859-9")}
MADE |= {"tr_TR.UTF-8": ("tr_TR", "UTF-8")}

# One process does all, to save its beginning: a line per command, its arguments apart by NUL.
PROGRAM = """if 1:
    import os, sys
    from refgba.cli import main
    for line in open("commands", "rb").read().split(b"\\n"):
        try:
            main([os.fsdecode(argument) for argument in line.split(b"\\0")])
        except SystemExit as end:
            print(f"status {end.code}", flush=True)
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """The folder of the locales of MADE; skips where they cannot be made."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/en_US").exists():
        pytest.skip("localedef, or what it makes locales of, is not installed")
    folder = tmp_path_factory.mktemp("locales")
    for name, (source, charmap) in MADE.items():
        subprocess.run(["localedef", "-i", source, "-f", charmap, folder / name], capture_output=True, check=False)
        if not (folder / name).exists():
            pytest.skip(f"localedef cannot make {name}")
    return folder


def walk(tmp_path, environment, odd):
    """Run every command that reads or writes files on names that hold `odd`, bytes; what they print."""
    x, run, store, trace, dump, saelens, npz, imported, resumed = (
        name + odd for name in (b"x", b"run", b"st", b"tr", b"du", b"sae", b"npz", b"imp", b"report")
    )
    x += b".npy"
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32))
    (tmp_path / "x.npy").rename(os.fsdecode(os.path.join(os.fsencode(tmp_path), x)))
    quick = [argument.encode() for argument in QUICK]
    evaluation = b"e" + odd + b".safetensors"
    commands = [
        [b"data", b"pack", x, b"-o", store, b"--model", odd],
        [b"data", b"info", store],
        [b"data", b"verify", store],
        [b"train", x, b"-o", run, *quick],
        [b"train", b"--resume", run, b"--steps", b"40"],
        [b"train", store, b"-o", run + b"2", *quick],
        [b"evaluate", run, x, b"-o", evaluation],
        [b"evaluate", run, store, b"--json"],
        [b"report", run, run + b"2", b"-o", resumed],
        [b"export", run, b"-o", saelens],
        [b"export", run, b"-o", npz, b"--format", b"npz"],
        [b"import", saelens, b"-o", imported],
        [b"evaluate", imported, x, b"-o", b"2" + evaluation],
        [b"synth", b"-o", b"s" + odd, b"--rows", b"20"],
        [b"oracle", b"record", b"-o", trace],
        [b"oracle", b"dump", trace, b"--backend", b"numpy", b"-o", dump],
        [b"oracle", b"check", trace, dump],
        [b"oracle", b"format"],
    ]
    (tmp_path / "commands").write_bytes(b"\n".join(b"\0".join(command) for command in commands))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **environment},
    )  # fmt: skip
    statuses = [line for line in done.stdout.split(b"\n") if line.startswith(b"status ")]
    printed = (done.stderr + done.stdout)[-3000:].decode("ascii", "replace")
    assert (done.returncode, statuses) == (0, [b"status 0"] * len(commands)), printed
    written = os.listdir(os.fsencode(tmp_path))
    assert {run, store, evaluation, resumed, saelens, npz, imported, trace, dump} <= set(written)
    return done


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("odd", [b"\xff", "\N{LATIN SMALL LETTER DOTLESS I}".encode()], ids=["byte", "dotless i"])
def test_any_name_is_read_and_written(tmp_path, locales, name, odd):
    walk(tmp_path, {"LC_ALL": name, "LOCPATH": str(locales)}, odd)


@pytest.mark.parametrize("name", ["C", "POSIX", "C.UTF-8"])
def test_any_name_is_read_and_written_without_a_language(tmp_path, name):
    walk(tmp_path, {"LC_ALL": name}, b"\xff")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/e\xff.safetensors")
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"network": "run\\udcff", "data": "x\\udcff.npy"}
