"""refgba: Group Bias Adaptation for sparse autoencoders, a NumPy reference to read with the paper open.

`refgba.paper` is the paper's algorithm alone, in one file.  The rest, in reading order:

    model            section 2   x = hV: data with known features
    sae              section 2   the network, its loss, every gradient written out
    groups           section 3   neurons in groups, each with a target frequency
    bias             section 3   Algorithm 2: adapting the biases
    gba              section 3   Algorithm 1: the whole method, with adam, config and, for what is ours, recipe
    measured         ours        targets of Algorithm 2 that the data give, in place of the groups'
    identifiability  section 5   is the data such that its features can be found?
    theory           section 6   Modified BA, the resonance band
    metrics          section 6   what was recovered, how well it reconstructs

A "neuron" of an autoencoder is a "latent" or "feature" elsewhere; a "feature" here is a direction in the data.  All of
it at work: 256 neurons find 32 features in 24 dimensions, of which each row holds two.

    >>> from refgba import gba, metrics, model, recipe
    >>> data = model.SyntheticModel(model.Uniform(32, (2,)), d=24)
    >>> X = data.draw(0, 8192).X
    >>> config = recipe.default(d=24, width=256, steps=400, batch=256)
    >>> state = gba.init(gba.random_params(config, d=24), config)
    >>> for _ in gba.train(state, gba.minibatches(X, config)):
    ...     pass
    >>> metrics.frr(state.params.V, data.V, tau=0.8)
    1.0

Around the paper's part are rooms: `baselines` to compare with, `backends` that compute fast, `data` (rows in), `runs`
(training on files), `formats` of other libraries, `planning` (what a run would take), `report`, the `oracle` for ports,
`experiments`, `llm` (language models), and two ways in: the command line `cli`, and `notebook`.  Training in three
lines, on any backend, is its `refgba.GBA`; `refgba.load` opens what was trained.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

OFFERED = ("GBA", "load")  # what `refgba.notebook` offers under shorter names, imported when it is first asked for
# Every module and room, imported when it is first asked for.
MODULES = (
    "paper", "model", "sae", "groups", "bias", "adam", "gba", "measured", "identifiability", "theory", "metrics",
    "recipe", "config", "streams", "types", "errors", "baselines", "backends", "data", "formats", "runs", "planning",
    "report", "oracle", "experiments", "llm", "notebook", "cli",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in OFFERED:
        return getattr(import_module("refgba.notebook"), name)
    if name in MODULES:
        return import_module(f"refgba.{name}")
    raise AttributeError(f"module 'refgba' has no attribute {name!r}; it has {', '.join((*OFFERED, *MODULES))}")


def __dir__() -> list[str]:
    return sorted([*OFFERED, *MODULES, *(name for name in globals() if name.startswith("__"))])
