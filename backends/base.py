"""The contract of a backend, the verbs of Algorithm 1 on arrays of its own; and where each line of the paper is.

A backend is a module of this package; its file name, one of `refgba.backends.NAMES`, is the value of `--backend`.  A
backend's other files stand beside it under its name: numba_kernels.py, cupy_kernels.cu.  It owns device arrays and
nothing else: configuration, random numbers, minibatches, the loop (`refgba.gba.train`), files and metrics are shared.

tests/test_conformance.py judges every backend against backends/numpy.py, to the bit the reference: gradient by gradient
and step by step, in float64 to 1e-10 relative and in float32 to 1e-5 per step; in dtypes that round the factors of
products, to what that rounding can do.  `counters` are equal but for gates that rounding flips, which are reported.
`TWINS`, at the end, lays the reference and its fast versions side by side; tests/test_twins.py keeps it true.

Nothing falls back: `backends.load` refuses a backend that cannot run here, with the reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from refgba import adam, baselines, gba
from refgba.backends.comm import Ranks
from refgba.bias import Buffer
from refgba.config import BaselineConfig, GBAConfig, Settings
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array

DeviceArray: TypeAlias = Any
AnyConfig: TypeAlias = GBAConfig | BaselineConfig
AnyParams: TypeAlias = Params | baselines.Params
HostState: TypeAlias = gba.State | baselines.State


class Backend(Protocol):
    """What every backend module provides.  L rows in a batch, d dimensions, M neurons.

    `state` is the backend's own and opaque, but for the `config` and the `t` of `refgba.gba.AnyState`.
    """

    DTYPES: tuple[str, ...]  # the values of `GBAConfig.dtype` that it can compute in

    def unusable(self) -> str | None:
        """Why this backend cannot run here and what to install, in one line; None when it can."""

    def init(self, params: AnyParams, config: AnyConfig) -> Any:
        """The state before the first step, from host arrays, which are copied.

        InputError when the device has too little memory; it says what is needed and what would fit.
        """

    def params(self, state: Any) -> AnyParams:
        """A copy of the parameters, on the host."""

    def export(self, state: Any) -> HostState:
        """All of a state, on the host, as the reference's: what a checkpoint holds.

        May share memory with the state, and is good until its next step.
        """

    def restore(self, state: HostState) -> Any:
        """A state from what `export` returned: the run goes on as if it had not stopped, to the bit.

        May take over its arrays.  InputError as `init`.
        """

    def put(self, state: Any, x: Array) -> DeviceArray:
        """Host rows x (L, d) on the device, in `GBAConfig.master`; may return before the copy is done."""

    def get(self, array: DeviceArray) -> Array:
        """A device array on the host."""

    def step(self, state: Any, x: DeviceArray) -> Metrics:
        """Lines 2 to 5 on rows x (L, d) from `put`, as `refgba.gba.step` does them, in this order:

        count t up; after the last forming step, `refgba.recipe.begin_fit`; forward; gradients;
        AdamW at `recipe.learning_rate` on the parameters `recipe.trained` names, each counting its own updates for the
        bias correction; renormalise W and W_dec, held neurons staying as they were; add y of the forward pass to the
        counts and peaks.

        Returns loss and L0 as scalars of the backend.  Never waits for the device, except once to find the neurons to
        hold, and with AuxK for the counts of the step before; `float()` of a result does.  A weight row that becomes
        zero need not be noticed here.
        """

    def adapt(self, state: Any, x: DeviceArray | None = None) -> None:
        """Line 6: Algorithm 2 on the buffers, which are then empty; `counters` keeps what they held.

        x: the rows of the step before, from `put`; needed where targets are measured (`refgba.measured`).
        """

    def counters(self, state: Any) -> Buffer:
        """Counts and peaks that the last adaptation used (before the first: so far), on the host."""

    def gradients(self, state: Any, x: DeviceArray) -> AnyParams:
        """The gradients at rows x (L, d) from `put`, on the host, by which a backend is checked; nothing moves."""

    def encode(self, state: Any, x: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Pre-activations y and codes s of rows x (L, d) from `put`, each (L, M)."""

    def decode(self, state: Any, s: DeviceArray) -> DeviceArray:
        """Reconstructions f (L, d) of codes s (L, M)."""


class ParallelBackend(Backend, Protocol):
    """A backend whose neurons can lie on several ranks (`refgba.backends.comm`): numpy and numba.

    `params` of `init`, and the state of `restore`, then have the neurons `Ranks.own` of a network, M / P of its M, and
    so has all that comes back; `config` is the network's.  Four places add up over ranks: the reconstructions (L, d),
    before b_pre is subtracted or added, by `Ranks.sum`, in `step` and `decode`; the parts of the gradient of b_pre
    (d,), the open gates and what is broken by `Ranks.totals`, once per step; Algorithm 2 by
    `refgba.backends.shards.adapted`; and the neurons to hold by `refgba.backends.shards.agreeing_elsewhere`.  A state
    that never joined is one process's: `refgba.backends.comm.ALONE` adds up nothing.
    """

    def join(self, state: Any, ranks: Ranks) -> None:
        """From here on the neurons of the state are this rank's part of a network."""


# ---- line 3's optimiser, as kernels take it --------------------------------------------------------------------------


class AdamWFactors(NamedTuple):
    """The numbers of one AdamW update as kernels take them, in this order; one division per entry of θ is left.

        m <- m + toward1 (g - m),   v <- v + toward2 (g² - v),   θ <- keep θ - rate m / (√(root v) + eps)

    toward1 = 1 - β1, toward2 = 1 - β2, rate = lr / (1 - β1^t), root = 1 / (1 - β2^t), eps = ε, keep = 1 - lr λ.
    """

    toward1: float
    toward2: float
    rate: float
    root: float
    eps: float
    keep: float


def adamw_factors(t: int, lr: float, config: Settings) -> AdamWFactors:
    """The numbers of update t = 1, 2, .. at learning rate lr: those of `refgba.adam.factors`.

    >>> from refgba.backends.base import adamw_factors
    >>> from refgba.config import GBAConfig
    >>> adamw_factors(1, 0.1, GBAConfig(beta1=0.75, beta2=0.5, adam_eps=1e-6))
    AdamWFactors(toward1=0.25, toward2=0.5, rate=0.4, root=2.0, eps=1e-06, keep=1.0)
    """
    by = adam.factors(t, lr, config)
    return AdamWFactors(by.m, by.v, by.lr / by.m_hat, 1 / by.v_hat, by.eps, by.decay)


# ---- the paper's lines, the reference and its twins, side by side ----------------------------------------------------


class Twin(NamedTuple):
    """A line of the paper, or a part of one, and the code that does it: one row of `TWINS`.

    line: "1.3" is line 3 of Algorithm 1, "2" is in Algorithm 2, "ours" in neither.  formula: in the paper's symbols.
    reference: the function, as "sae.encode" for `refgba.sae.encode`.  numba, cupy: the functions of these backends, as
    "numba.step" for `refgba.backends.numba.step`; none where the backend calls the reference's own.  cuda: the kernels
    in cupy_kernels.cu that `cupy` launches; all matrix products there are `cupy_device.Device.product`.

    To follow a line, find it here and open the files side by side.  Line 4, the unit norm:

    >>> from refgba.backends.base import TWINS
    >>> for twin in TWINS:
    ...     if twin.line == "1.4":
    ...         print(twin.reference, "|", *twin.numba, "|", *twin.cupy, "|", *twin.cuda)
    sae.unit_rows | numba_kernels.sweep numba_kernels.unit | cupy.backward | adamw_rows

    And the other way round, what the CUDA kernel `gate` does:

    >>> for twin in TWINS:
    ...     if "gate" in twin.cuda:
    ...         print(twin.line, twin.formula)
    1.2 y_m = w_m · (x - b_pre) + b_m, s_m = φ(y_m)
    1.5 counts += Σ_l 1{y_m > 0}, peaks = max(peaks, y_m)
    """

    line: str
    formula: str
    reference: str
    numba: tuple[str, ...] = ()
    cupy: tuple[str, ...] = ()
    cuda: tuple[str, ...] = ()


TWINS: tuple[Twin, ...] = (
    Twin("1.1", "L rows x, each divided by its norm", "gba.minibatches"),
    Twin(
        "1.2", "y_m = w_m · (x - b_pre) + b_m, s_m = φ(y_m)", "sae.encode",
        ("numba.forward", "numba_kernels.encode", "numba_kernels.gate", "numba_kernels.spread",
         "numba_kernels.compress"),
        ("cupy.forward",), ("center", "gate"),
    ),
    Twin(
        "1.2", "f = Σ_m a_m v_m s_m + b_pre", "sae.decode",
        ("numba.forward", "numba.decoded", "numba_kernels.decode_dense", "numba_kernels.decode_sparse",
         "numba_kernels.decode_codes"),
        ("cupy.forward", "cupy_memory.allocated"), ("adamw_rows", "residual"),
    ),
    Twin("1.2", "1/2 ||f - x||², mean over the batch", "sae.loss", ("numba.step",), ("cupy.step",), ("residual",)),
    Twin(
        "1.3", "dL/dw_m = a_m (v_m · r) on_m (x - b_pre), dL/dv_m = a_m s_m r, tied their sum", "sae.gradients",
        ("numba_kernels.sweep", "numba_kernels.products", "numba_kernels.entries"),
        ("cupy.backward",), ("gate_gradient",),
    ),
    Twin(
        "1.3", "dL/da_m = s_m (v_m · r)", "sae.gradients",
        ("numba_kernels.sweep", "numba_kernels.products", "numba_kernels.entries"),
        ("cupy.backward",), ("gate_gradient", "adamw_rows"),
    ),
    Twin(
        "1.3", "dL/db_pre = r - Σ_m a_m (v_m · r) on_m w_m", "sae.gradients",
        ("numba_kernels.sweep", "numba.backward"), ("cupy.backward",),
        ("gate_gradient", "residual", "adamw_rows", "adamw_b_pre"),
    ),
    Twin(
        "1.3", "θ <- (1 - lr λ) θ - lr m̂ / (√v̂ + ε)", "adam.moved",
        ("numba_kernels.adamw",), ("cupy.backward",), ("adamw_b_pre", "adamw_rows"),
    ),
    Twin(
        "1.4", "w_m <- w_m / ||w_m||, v_m likewise", "sae.unit_rows",
        ("numba_kernels.sweep", "numba_kernels.unit"), ("cupy.backward",), ("adamw_rows",),
    ),
    Twin(
        "1.5", "counts += Σ_l 1{y_m > 0}, peaks = max(peaks, y_m)", "bias.Buffer.add",
        ("numba_kernels.encode", "numba_kernels.gate"), ("cupy.forward",), ("gate",),
    ),
    Twin("1.6", "b <- A(b, B), then empty the buffers", "gba.adapt", (), ("cupy.adapt",)),
    Twin("2", "p_m = counts / rows, r_m = max(peaks, 0)", "bias.adapt"),
    Twin("2", "T_k = Σ_{m in G_k} r_m / |{m in G_k : r_m > 0}|", "bias.adapt"),
    Twin("2", "p_m > p_k: b_m <- max(b_m - γ- r_m, -1)", "bias.adapt"),
    Twin("2", "p_m < ε: b_m <- min(b_m + γ+ T_k, 0)", "bias.adapt"),
    Twin("ours", "held: max over k ≠ m of w_m · w_k >= hold", "recipe.agreeing", (), ("cupy.hold",), ("agree",)),
    Twin("ours", "v_m begins at w_m, with its moments", "recipe.begin_fit", (), ("cupy_memory.untie",)),
    Twin(
        "ours", "W, W_dec and s rounded to what products read", "gba.init", (),
        ("cupy_memory.allocated", "cupy.decode"), ("narrow",),
    ),
)  # fmt: skip
