"""The help of a command with many flags: the essential ones by default, and all of them, in sections, on request."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from refgba.baselines import METHODS

ESSENTIAL = {
    "out", "resume", "held_out", "dry_run", "width", "steps", "batch", "htf", "method", "backend", "dtype", "seed",
    "rows", "json", "open", "help", "help_all",
}  # fmt: skip
OPTIMISER = {"lr", "lr_decay", "beta1", "beta2", "adam_eps", "weight_decay"}
SECTIONS = ("Essentials", "Run", "GBA", "Ours, beyond the paper", "Baselines", "Optimiser")
ALL = "refgba.help_all"  # the key in `click.Context.meta`


def section(name: str) -> str:
    """Which of SECTIONS a flag stands in, by its name; one that is no setting and not essential is of the run."""
    essentials, run, paper, ours, baselines, optimiser = SECTIONS
    if name in ESSENTIAL:
        return essentials
    if name in OPTIMISER:
        return optimiser
    gba = {setting.name: setting.metadata["ours"] for setting in fields(METHODS["gba"].Config)}
    if name in gba:
        return ours if gba[name] else paper
    theirs = {setting.name for method in METHODS.values() for setting in fields(method.Config)} - {"method"}
    return baselines if name in theirs else run


class Sectioned(click.Command):
    """A command whose `--help` shows the essential flags, and `--help-all` all flags under headings."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """As `click.Command`, with the flag `--help-all` besides."""
        super().__init__(*args, **named)
        about = "show every flag, and exit"
        self.params.append(
            click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_all, help=about)
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, section by section, and of which there are more."""
        records: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                records[section(param.opts[-1].strip("-").replace("-", "_"))].append(record)
        whole = ALL in ctx.meta
        for name in SECTIONS if whole else SECTIONS[:1]:
            if records[name]:
                with formatter.section(name):
                    formatter.write_dl(records[name], col_max=24)
        if not whole:
            more = ", ".join(f"{name} ({len(records[name])})" for name in SECTIONS[1:] if records[name])
            formatter.write_paragraph()
            formatter.write_text(f"More flags with --help-all: {more}.")


def _all(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
