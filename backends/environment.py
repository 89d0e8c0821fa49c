"""What the libraries of others need here before they are imported, and what is said when one of them fails.

A library can fail while it is imported, while it compiles and when it is first used, with an exception of any class.
Wherever that happens, `reason` makes one line of it, with a cure.  `cache_folder` is where compiled kernels go on a
machine where the folders that the libraries choose themselves cannot be written.

tests/test_environment.py breaks the libraries and the machine in these ways.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import NamedTuple


class Needs(NamedTuple):
    """What a backend takes from others.

    libraries: what is imported, in this order.  install: how they are installed.  settings: what the names of the
    environment variables begin with that steer them.  cache: the one that names the folder of compiled kernels.
    """

    libraries: tuple[str, ...]
    install: str
    settings: tuple[str, ...]
    cache: str


NEEDS = {
    "numba": Needs(("numba", "threadpoolctl"), "pip install numba threadpoolctl", ("NUMBA_",), "NUMBA_CACHE_DIR"),
    "cupy": Needs(
        ("cupy",),
        "pip install 'cupy-cuda12x[ctk]' for CUDA 12, or 'cupy-cuda13x[ctk]' for CUDA 13",
        ("CUPY_", "CUDA_"),
        "CUPY_CACHE_DIR",
    ),
}
LONGEST = 300  # characters of another library's message that are passed on

unreadable: dict[str, str] = {}
"""Of a library its complaint about an environment variable that it could not read, made as it was imported."""


# ---- what went wrong -------------------------------------------------------------------------------------------------


def reason(name: str, what: str, error: BaseException) -> str:
    """Why the backend cannot run, and the cure, in one line: what failed, with which error."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return f"{what} ({type(error).__name__}{': ' * bool(text)}{text}): {_cure(name, error, text)}"


def _cure(name: str, error: BaseException, text: str) -> str:
    """What to do about an error of the libraries of a backend."""
    needs, cache = NEEDS[name], os.environ.get(NEEDS[name].cache)
    again = needs.install.replace("pip install", "pip install --force-reinstall")
    unwritable = cache and isinstance(error, OSError) and str(error.filename).startswith(cache)
    if unwritable or "no locator available" in text:
        return f"set {needs.cache} to a folder that can be written"
    replaced = [f for f in vars(math).values() if isinstance(f, FunctionType)]
    if name == "numba" and any(f"{f} " in f"{text} " or f"{f}(" in text for f in replaced):
        return (
            "another library of this process has replaced functions of Python's math, which numba compiles (nnsight "
            "does; dictionary_learning imports it): import numba after it, or train in a process of its own"
        )
    settings = {key: value for key, value in sorted(os.environ.items()) if key.startswith(needs.settings)}
    meant = {key: value for key, value in settings.items() if _is_about(text.lower(), key.lower(), value.lower())}
    if meant:
        return f"unset {_listed(meant)}"
    return f"unset what is wrong among {_listed(settings)}, or if nothing is, {again}" if settings else again


def _is_about(text: str, key: str, value: str) -> bool:
    """Whether an error is about an environment variable: it has its name, or its value and a word of its name."""
    stem = key.partition("_")[2]
    words = any(word in text for word in stem.split("_") if len(word) > 3)
    return stem in text or (words and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None)


def _listed(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def missing(error: BaseException) -> str | None:
    """The name of the library that is not there at all, where the error says so."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    try:
        there = find_spec(error.name.partition(".")[0]) is not None
    except ValueError:  # a program that says None of it in sys.modules
        there = False
    return None if there else error.name


# ---- imports ---------------------------------------------------------------------------------------------------------


def refusal(name: str) -> str | None:
    """Import the libraries of a backend: why one of them cannot be used and what to do, or None."""
    if name == "cupy":
        _find_cache_for_cupy()
    if name not in NEEDS:
        return None
    for library in NEEDS[name].libraries:
        try:
            _import(library)
        except (Exception, SystemExit) as error:  # whatever goes wrong in the code of others
            absent = missing(error)
            return (
                f"{absent} is not installed: {NEEDS[name].install}"
                if absent
                else reason(name, f"{library} fails", error)
            )
        if library in unreadable:
            return f"{unreadable[library]}: unset it, or give it a value that {library} takes"
    return None


def _import(library: str) -> None:
    """Import a library, and keep what it says of environment variables, a traceback within a warning, to one line."""
    if library in sys.modules:
        import_module(library)  # an error where a program says None of it
        return
    with warnings.catch_warnings(record=True) as said:
        import_module(library)
    for warning in said:
        text = str(warning.message)
        if "could not be parsed" in text:
            unreadable[library] = text.partition("\n")[0].rstrip(".")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


# ---- caches ----------------------------------------------------------------------------------------------------------


def _find_cache_for_cupy() -> None:
    """Name a folder for compiled kernels, which CuPy wants as it is imported, where its own cannot be written."""
    if "cupy" in sys.modules or NEEDS["cupy"].cache in os.environ or find_spec("cupy") is None:
        return
    if not writable(Path(os.path.expanduser("~/.cupy/kernel_cache"))):
        os.environ[NEEDS["cupy"].cache] = str(cache_folder() / "cupy")


def writable(folder: Path) -> bool:
    """Whether files can be written to the folder, which is made if it is not there."""
    if not folder.is_absolute():  # there is no home, and ~ has stayed what it is
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def cache_folder() -> Path:
    """A folder of this program's own for compiled kernels, which nobody but this user can write to or read.

    In XDG_CACHE_HOME or ~/.cache, else in the temporary directory.  What is loaded from a cache is executed, so a
    folder of that name that others made, can write to, or have put a link in the place of, is not used.  If none is
    left, the folder is a new one that lasts as long as the process.  OSError when there is not even that.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    for folder in (caches / "refgba", Path(tempfile.gettempdir()) / f"refgba-{os.geteuid()}"):
        if _private(folder):
            return folder
    fresh = tempfile.mkdtemp(prefix="refgba-")
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    return Path(fresh)


def _private(folder: Path) -> bool:
    """Whether the folder, which is made if it is not there, is this user's alone, and can be written."""
    if not folder.is_absolute():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError:
        return False
    alone = facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(facts.st_mode) and alone and writable(folder)
