"""Flags that were given, and have no effect: each is a mistake that is told, not left for a person to find."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.core import ParameterSource

from refgba.errors import InputError


def given() -> dict[str, str]:
    """What was given on the command line of the command that runs: each flag or argument, by its name in Python."""
    ctx = click.get_current_context()
    return {
        param.name: param.opts[0]
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }


def refuse_unused(names: Iterable[str], why: str) -> None:
    """InputError, naming the flags, where any of these were given.  names: in Python.  why: they have no effect."""
    flags = [flag for name, flag in given().items() if name in set(names)]
    if flags:
        verb, them = ("has", "it") if len(flags) == 1 else ("have", "them")
        raise InputError(f"{' and '.join(flags)} {verb} no effect {why}; leave {them} out")
