"""What users would pick instead of a backend: the same GBA step in torch, and dictionary_learning's trainers.

Importing it needs torch; `available` says what else is there, and step.py measures it.  For all of it:

    pip install torch einops && pip install --no-deps dictionary-learning==0.1.0
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any, NamedTuple

from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array

torch: Any = import_module("torch")
Tensor = Any

LR = 1e-9  # so low that nothing moves, and as many neurons stay active
LIBRARY = "dictionary_learning"
TRAINERS = {"topk": "top_k.TopKTrainer", "jumprelu": "jumprelu.JumpReluTrainer", "standard": "standard.StandardTrainer"}
DTYPES = {"cpu": ("float64", "float32"), "cuda": ("float64", "float32", "tf32", "bfloat16")}


class Peer(NamedTuple):
    """`start(dtype, params, batches, density)` takes host arrays, and returns step(i), which does not wait."""

    device: str
    dtypes: tuple[str, ...]
    start: Callable[[str, Params, list[Array], float], Callable[[int], Any]]


def available(threads: int) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can run here, and the reasons why others cannot, both by name."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # what it compiled for another width counts towards its limit
    peers, unavailable = {}, {}
    for device, dtypes in DTYPES.items():
        if device == "cuda" and not torch.cuda.is_available():
            missing = f"torch {torch.__version__} finds no CUDA device"
            unavailable |= {"torch cuda": missing, f"{LIBRARY} cuda": missing}
            continue
        peers[f"torch {device}"] = Peer(device, dtypes, partial(GBA, device, False))
        if device == "cuda":
            peers[f"torch {device} compiled"] = Peer(device, dtypes, partial(GBA, device, True))
        for name in TRAINERS:
            try:
                trainer_class(TRAINERS[name])
                peers[f"{LIBRARY} {device} {name}"] = Peer(device, dtypes[1:], partial(Trainer, device, name))
            except ImportError as error:
                unavailable[LIBRARY] = "not installed" if error.name == LIBRARY else f"cannot be imported: {error}"
    return peers, unavailable


def wait(device: str, _: object) -> None:
    """Until the device is done, whatever the step returned."""
    if device == "cuda":
        torch.cuda.synchronize()


def set_precision(dtype: str) -> None:
    """Set how float32 products on a GPU are computed."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")


def forward(
    W: Tensor, V: Tensor, a: Tensor, b: Tensor, b_pre: Tensor, x: Tensor, dtype: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, counts and peaks.  y = z + b is not needed: y > 0 where z > -b, and max y = max z + b."""
    W = W.to(dtype)  # (M, d)   a copy in bfloat16 only
    V = W if V is None else V.to(dtype)
    z = (x - b_pre).to(dtype) @ W.T  # (L, M)
    on = z > -b  # (L, M)   without gradient
    f = (z * on * a.to(dtype)) @ V + b_pre  # (L, d)
    loss = 0.5 * (f - x).square().sum(1).mean()
    return loss, on.sum(0, dtype=torch.int32), z.detach().amax(0) + b


def finish(W: Tensor, V: Tensor, counts: Tensor, peaks: Tensor, fired: Tensor, peak: Tensor) -> None:
    """Renormalise the rows of W and V, and add this batch's to the buffers."""
    for A in [W] if V is None else [W, V]:
        A.div_(torch.linalg.vector_norm(A, dim=1, keepdim=True))
    counts.add_(fired)
    peaks.copy_(torch.maximum(peaks, peak))


class GBA:
    """`refgba.gba.step` as one writes it in torch: autograd and the fused AdamW.

    dtype bfloat16: products and all arrays (L, M) are in it, parameters stay in float32.
    """

    def __init__(self, device: str, compiled: bool, dtype: str, params: Params, batches: list[Array], *_: Any) -> None:
        store = torch.float64 if dtype == "float64" else torch.float32
        tensor = partial(torch.tensor, dtype=store, device=device)
        theta = {name: torch.nn.Parameter(tensor(A)) for name, A in params.arrays().items() if name != "b"}
        self.W, self.V, self.a, self.b_pre = (theta.get(name) for name in ("W", "W_dec", "a", "b_pre"))
        self.b, self.x = tensor(params.b), [tensor(x) for x in batches]
        self.optimiser = torch.optim.AdamW(list(theta.values()), lr=LR, weight_decay=0.0, fused=True)
        self.counts = torch.zeros(len(params.b), dtype=torch.int64, device=device)
        self.peaks = torch.full_like(self.b, -torch.inf)
        self.dtype, self.products = dtype, torch.bfloat16 if dtype == "bfloat16" else store
        self.forward, self.finish = forward, finish
        if compiled:
            self.forward, self.finish = (torch.compile(verb, dynamic=False) for verb in (forward, finish))

    def __call__(self, i: int) -> Metrics:
        set_precision(self.dtype)
        x = self.x[i % len(self.x)]
        self.optimiser.zero_grad()
        loss, fired, peak = self.forward(self.W, self.V, self.a, self.b, self.b_pre, x, self.products)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.finish(self.W, self.V, self.counts, self.peaks, fired, peak)
            return Metrics(loss.detach(), fired.sum() / len(x))


def trainer_class(path: str) -> Any:
    """A class of dictionary_learning, as top_k.TopKTrainer.

    The package's own __init__ is not run: it needs nnsight, trainers do not.  nnsight also replaces functions of
    Python's math, after which numba compiles nothing that calls abs.
    """
    if LIBRARY not in sys.modules:
        spec = find_spec(LIBRARY)
        if spec is None:
            raise ModuleNotFoundError(f"no {LIBRARY}", name=LIBRARY)
        sys.modules[LIBRARY] = module_from_spec(spec)
    module, kind = path.split(".")
    return getattr(import_module(f"{LIBRARY}.trainers.{module}"), kind)


class Trainer:
    """One of dictionary_learning's, with its defaults; in bfloat16 by autocast, as its training loop does it."""

    def __init__(
        self, device: str, name: str, dtype: str, params: Params, batches: list[Array], density: float
    ) -> None:
        M, d = params.W.shape
        k = {"k": max(1, round(density * M))} if name == "topk" else {}
        self.trainer = trainer_class(TRAINERS[name])(
            steps=10**9, activation_dim=d, dict_size=M, layer=0, lm_name="", device=device, **k
        )
        half = dtype == "bfloat16"
        self.x = [torch.tensor(x, dtype=torch.bfloat16 if half else torch.float32, device=device) for x in batches]
        self.context: Any = partial(torch.autocast, device, torch.bfloat16) if half else nullcontext
        self.dtype = dtype

    def __call__(self, i: int) -> None:
        set_precision(self.dtype)
        with self.context():
            self.trainer.update(i, self.x[i % len(self.x)])
