"""Files that a command makes or replaces: it replaces only what it wrote itself, told by what is in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgba.data import files
from refgba.errors import InputError

LARGEST_RESULT = 2**28  # bytes of a JSON file that may be a result


@dataclass(frozen=True)
class Output:
    """What a command writes to a file.

    what: in words, such as "a page of `refgba report`".  wrote: whether a regular file is one, of any version.  suffix:
    how its name has to end, where the command says so.
    """

    what: str
    wrote: Callable[[Path], bool]
    suffix: str = ""

    def refuse(self, path: Path) -> None:
        """InputError, naming the path, unless the output could be written there, and nothing else is lost by it."""
        files.refuse_output(path)
        refuse_suffix(path, self.suffix)
        if path.exists() and files.regular_size(path) and not self.wrote(path):
            raise InputError(f"{path}: exists and is not {self.what}, so it is not replaced; choose another name")

    def write(self, path: Path, data: bytes) -> None:
        """Make or replace the file, and make the folders it is in; InputError as `refuse`, and when that fails."""
        self.refuse(path)
        files.write_output(path, data)

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """`write` a JSON object."""
        self.write(path, json.dumps(value, indent=1).encode() + b"\n")


def result(what: str, *names: str, suffix: str = "") -> Output:
    """A JSON object that has these names, and perhaps others."""

    def wrote(path: Path) -> bool:
        try:
            return files.read_json(path, LARGEST_RESULT).keys() >= set(names)
        except InputError:
            return False

    return Output(what, wrote, suffix)


def refuse_suffix(path: Path, suffix: str) -> None:
    """InputError, naming the path, unless its name ends in `suffix`."""
    if path.suffix.lower() != suffix and suffix:
        raise InputError(f"{path}: what is written there is a {suffix} file; let its name end in {suffix}")
