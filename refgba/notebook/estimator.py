"""`GBA`: an estimator that trains as `refgba train` does, on an array, a file or a store."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from refgba import __version__
from refgba.baselines import CHOICES, METHODS
from refgba.config import Source
from refgba.data.activations import Activations
from refgba.data.centre import Centring
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.formats.trained import from_params
from refgba.notebook import rows, show
from refgba.notebook.autoencoder import Autoencoder
from refgba.notebook.network import Network
from refgba.runs import folder, judging, launch
from refgba.runs.accumulate import Evaluation
from refgba.runs.copies import Copies
from refgba.runs.log import Progress
from refgba.runs.memory import MemoryRun, Record
from refgba.runs.passes import added, passing
from refgba.runs.settings import Request, flags
from refgba.types import Activation, Array, Dtype, Float64

WRITTEN = ("config", "sha256", "refgba", "centred")  # fields of state.json that `folder.write_network` fills in
OF_TRAINING = ("method", "recipe", "backend", "drop_zero_rows", "centre", "verbose")  # A network has no such settings.


class NotFitted(InputError, AttributeError):
    """Something was asked of an estimator before `fit`."""


class GBA(Autoencoder):
    """A sparse autoencoder by Group Bias Adaptation, or by a method that it is compared with.

    >>> import refgba
    >>> X = refgba.model.imbalanced().draw(0, 1000).X  # rows as they come, (N, d)
    >>> model = refgba.GBA(width=256, steps=40).fit(X)
    >>> model.components_.shape  # the features found, at unit norm
    (256, 42)
    >>> model.transform(X).shape  # codes of raw rows, scaled as in training
    (1000, 256)

    method: gba, ba (one group), l1, topk, batchtopk, jumprelu, matryoshka or gated.  recipe: default, measured or
    paper.  backend: what computes, one of `refgba.backends.NAMES`.  drop_zero_rows: whether `fit` leaves out rows of
    zeros, which it refuses otherwise.  centre: whether a constant that all rows share is subtracted first: "auto",
    where it hides features, "on" or "off".  verbose: whether `fit` shows a bar where someone watches.

    The others are the settings of `refgba train`, under the names of its flags.  Those that are None are chosen as it
    chooses them, but for these defaults:

                       GBA                        refgba train
        backend        numpy                      auto; numpy with the recipe paper
        dtype          float64                    float32; float64 with the recipe paper
        centre         auto                       auto; off with the recipe paper
        rows held out  none, `fit` trains on all  10%, where rows are many

    Where both are told the same, the same numbers come out.
    """

    _record: Record | None  # of a run in memory
    _fired: Float64 | None  # how often each neuron fired at the end of training, (M,), where that is known

    def __init__(
        self, method: str = "gba", *, recipe: str = "default", backend: str | None = None,
        drop_zero_rows: bool = False, centre: Centring = "auto", verbose: bool = True,
        width: int | None = None, groups: int | None = None,
        htf: float | None = None, ltf: float | None = None, gamma_minus: float | None = None,
        gamma_plus: float | None = None, adapt_every: int | None = None, eps: float | None = None,
        steps: int | None = None, batch: int | None = None, lr: float | None = None, beta1: float | None = None,
        beta2: float | None = None, adam_eps: float | None = None, weight_decay: float | None = None,
        activation: Activation | None = None, a_init: float | None = None, b_init: float | None = None,
        seed: int | None = None, dtype: Dtype | None = None, untied: bool | None = None, floor: float | None = None,
        form: float | None = None, hold: float | None = None, lr_decay: float | None = None,
        targets_from: Source | None = None, l0: float | None = None, relative: float | None = None,
        k: int | None = None, sparsity: float | None = None, bandwidth: float | None = None,
        theta_init: float | None = None, aux: float | None = None, aux_k: int | None = None,
        dead_after: int | None = None, prefixes: int | None = None,
    ) -> None:  # fmt: skip
        """Keep the parameters; `fit` looks at them."""
        parameters = {name: value for name, value in locals().items() if name in self.parameters()}
        vars(self).update(parameters)

    # ---- parameters --------------------------------------------------------------------------------------------------

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of all parameters."""
        return tuple(inspect.signature(cls.__init__).parameters)[1:]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name."""
        return {name: getattr(self, name) for name in self.parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; InputError for a name that is none."""
        for name, value in params.items():
            if name not in self.parameters():
                raise InputError(f"{name!r} is no parameter of GBA; they are {', '.join(self.parameters())}")
            setattr(self, name, value)
        return self

    def _request(self) -> Request:
        """What the parameters ask for."""
        given = self.get_params()
        if given["method"] not in CHOICES:
            raise InputError(f"method should be one of {', '.join(CHOICES)}, not {given['method']!r}")
        settings = {name: value for name, value in given.items() if name not in OF_TRAINING}
        return Request(settings, given["method"], given["recipe"], backend=given["backend"])

    # ---- training ----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: None = None, run: str | Path | None = None) -> Self:
        """Train on rows X: an array (N, d), the path of a file or a store, or an opened store.

        Nothing is written, unless `run` names a new folder: then the run is kept there, with checkpoints, and `refgba
        train --resume` goes on with it if it is stopped.  y is ignored.  InputError for rows or settings that cannot be
        trained with; `refgba.runs.trainer.TrainingError` where training diverges.
        """
        data, request = rows.rows(X), self._request()
        drop: bool = self.get_params()["drop_zero_rows"]
        if len(data) < 2:
            raise InputError(f"{data.store.path}: has 1 sample (row); there is nothing to learn from one")
        with rows.in_python(), np.errstate(all="ignore"):  # training notices what is not finite, and says so
            if run is None:
                self._train_in_memory(data, launch.choose(request, data.d, _warn), drop)
            else:
                self._train_in_folder(data, launch.plan(Path(run), request, data.d, _warn), drop)
        return self

    def fit_transform(self, X: Any, y: None = None) -> Array:
        """`fit`, and the codes of the same rows, (N, M)."""
        return self.fit(X).transform(X)

    def _train_in_memory(self, data: Activations, choices: launch.Choices, drop: bool) -> None:
        run = MemoryRun(data, choices, drop, centring=self.get_params()["centre"])
        backend, config = choices.backend, choices.config
        history = self._follow(run.steps(), config.steps)
        params, counters, record = backend.params(run.state), backend.counters(run.state), run.record()
        state = {"step": config.steps, "refgba": __version__} | record.origin
        coder = Network(choices.names["backend"], config, params, run.state, record.data.centre)
        self._adopt(folder.Network(Path(), config, params, state, record.data.centre), coder, history)
        self._record, self._fired = record, counters.counts / counters.rows

    def _train_in_folder(self, data: Activations, plan: launch.Plan, drop: bool) -> None:
        ready = plan.launch(data, drop, centring=self.get_params()["centre"])
        history = self._follow(ready.steps(int), plan.config.steps)
        network = folder.open_network(plan.path)
        coder = Network(plan.names["backend"], network.config, network.params, centre=network.centre)
        self._adopt(network, coder, history)

    def _follow(self, progress: Iterator[Progress], steps: int) -> list[dict[str, Any]]:
        """The log of a training that is followed to its end."""
        return [asdict(line) for line in show.with_bar(progress, steps, self.get_params()["verbose"])]

    def _adopt(self, network: folder.Network, coder: Network, history: list[dict[str, Any]]) -> None:
        """Be fitted: with a network as a run's folder has it, what codes, and the log of its training."""
        self._network, self._codes = network, coder
        self._record, self._fired = None, None
        self.config_ = network.config
        self.n_features_in_ = network.params.b_pre.size
        self.history_ = [{name: value for name, value in line.items() if value is not None} for line in history]

    @classmethod
    def of_network(cls, network: folder.Network, backend: str | None, history: list[dict[str, Any]]) -> GBA:
        """The fitted estimator of a network that was read; `refgba.load` calls it."""
        given = asdict(network.config) | {"method": network.config.method, "backend": backend}
        model = cls(**given)
        coder = Network(backend or "numpy", network.config, network.params, centre=network.centre)
        model._adopt(network, coder, history)
        return model

    # ---- what `Autoencoder` asks for ---------------------------------------------------------------------------------

    def _fitted(self) -> folder.Network:
        if "_network" not in vars(self):
            raise NotFitted("this GBA is not fitted yet: call fit with rows, or refgba.load with a run")
        return self._network

    def _coder(self) -> Network:
        self._fitted()
        return self._codes

    def _dictionary(self) -> tuple[Dictionary, dict[str, Any]]:
        network = self._fitted()
        return from_params(network.params, network.config, network.centre), network.provenance()

    def _evaluation(self, chunks: Iterator[Array], top: int) -> Evaluation:
        network = self._fitted()
        return judging.evaluate(
            network.params, network.config, self._codes.backend, chunks, top=top, centre=network.centre
        )

    def _copies(self, evaluation: Evaluation, chunks: Iterator[Array]) -> Copies | None:
        network = self._fitted()
        params, config = network.params, network.config
        forward = passing(params, config, self._codes.backend, network.centre)
        return judging.find_copies(forward, params.V, added(params), evaluation.frequency, config, chunks)

    def _result(self, evaluation: Evaluation) -> dict[str, Any]:
        return judging.result(evaluation, self._fitted().config)

    def _frequency(self) -> Float64 | None:
        self._fitted()
        return self._fired

    def _formed(self) -> int:
        config = self._fitted().config
        return METHODS[config.method].description(config, None).formed

    def _target(self) -> Float64 | None:
        config = self._fitted().config
        groups = METHODS[config.method].groups(config)
        return None if groups is None else groups.target[groups.group]

    @property
    def components_(self) -> Array:
        """The features found: the decoder rows at unit norm, (M, d)."""
        V: Array = self._fitted().params.V
        return V

    # ---- on disk, and to look at -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write what was trained to the new folder `path`, for `refgba.load` and the commands; returns the path.

        After `fit` without `run` this is a run: `refgba evaluate`, `report`, `export` and `train --resume` take it.  Of
        an estimator that was loaded, or fitted with `run`, it is the network alone, which the first three take.
        InputError when the folder holds a run already, or cannot be written.
        """
        network, out = self._fitted(), Path(path)
        folder.refuse_existing(out)
        if self._record is not None:
            self._record.write(out, self._codes.host())
            return out
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose another folder or remove it")
        kept = {name: value for name, value in network.state.items() if name not in WRITTEN}
        try:
            folder.write_network(out, network.params, network.config, kept, centre=network.centre)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
        return out

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name]]
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str:
        if "_network" not in vars(self):
            return show.card("GBA", "not fitted yet", {k: v for k, v in self.get_params().items() if v is not None})
        network = self._network
        config, last = network.config, self.history_[-1] if self.history_ else {}
        facts: dict[str, object] = {
            "method": METHODS[config.method].description(config, None).method,
            "neurons": config.width, "dimensions": self.n_features_in_, "steps": network.state["step"],
            "backend": f"{self._codes.name}, {config.dtype}",
        }  # fmt: skip
        shown = {"fvu": "FVU", "l0": "neurons active per row", "dead": "share of dead neurons", "seconds": "seconds"}
        facts |= {f"{label}, last batch" if name != "seconds" else label: f"{last[name]:.4g}"
                  for name, label in shown.items() if name in last}  # fmt: skip
        return show.card("GBA", "fitted: transform, components_, score, recovery, plot, save, export", facts)

    # ---- scikit-learn ------------------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks about an estimator; only it calls this."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer", target_tags=TargetTags(required=False), input_tags=InputTags(),
            transformer_tags=TransformerTags(preserves_dtype=[]),
        )  # fmt: skip


GBA.__doc__ = f"{GBA.__doc__}\n" + "\n".join(f"        {flag.name}: {flag.help}" for flag in flags())


def _warn(remark: str) -> None:
    warnings.warn(remark, stacklevel=4)
