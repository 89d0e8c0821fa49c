"""What holds for every baseline: its settings and their lifetime, what a run keeps on disk, and what others make of it.

These are the answers to the questions of `method.Method` that no baseline answers differently.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from refgba.baselines.method import Exported, Groups, Own
from refgba.baselines.network import Params
from refgba.baselines.training import learning_rate
from refgba.config import BaselineConfig as Config
from refgba.recipe import FIXED

__all__ = ["OWN", "TWINS", "Config", "configured", "exported", "extended", "extension", "groups", "parameters"]

OWN = Own("idle", np.int64)
TWINS = "refgba.backends.baselines"


def configured(method: str, d: int, settings: dict[str, Any]) -> Config:
    """The settings of a run on rows of d dimensions: those given, and width and steps as GBA's recipe has them."""
    return Config(**{"method": method, "width": max(1024, 8 * d), "steps": FIXED["steps"]} | settings)


def extended(config: Config, steps: int) -> Config:
    """The settings of a run that goes on to more steps than it began with."""
    return replace(config, steps=steps)


def extension(config: Config, done: int) -> str:
    """What an extension means for a run that goes on from step `done`, one line."""
    now = done + 1
    rate = learning_rate(config, now)
    return f"extended to {config.steps} steps: the learning rate of step {now} is {rate:.3g}, zero at the new end"


def parameters(config: Config, t: int) -> tuple[str, ...]:
    """The arrays that a network has after step t: all of them, always."""
    return tuple(f.name for f in fields(Params))


def groups(config: Config) -> Groups | None:
    """None: the neurons of a baseline have no target frequencies."""
    return None


def exported(params: Params, config: Config) -> Exported:
    """The network in the terms of other libraries: its thresholds are what y has to exceed in inference."""
    return Exported(params.W, params.b, params.theta, params.W_dec, params.b_pre)
