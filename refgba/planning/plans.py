"""A plan: what a run of GBA takes on machines of a kind, which of them are enough, and how large it could be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from refgba.baselines import METHODS
from refgba.config import LARGEST
from refgba.errors import InputError
from refgba.planning import costs
from refgba.planning.calibration import BUSY, Calibration
from refgba.planning.devices import DEVICES, NETWORKS, PRODUCTS, Device, device
from refgba.runs.forecast import busy_share

HARVEST = 0.4  # share of a device's peak that a language model's forward passes are taken to reach
STORED = 2  # bytes of a stored activation, in float16
HERE = "here"  # the value of --device that means this machine's processor, with numba
MOST_RANKS = 2**16
ROWS = 2 * 2**28  # bytes of rows that a rank of the numba backend holds: the window in use and the next


@dataclass(frozen=True)
class Wish:
    """What is to be trained: d dimensions, M neurons, tokens (rows) seen once, L per batch.

    model: parameters of the language model whose activations they are, for the time of a harvest.
    """

    d: int
    M: int
    tokens: int
    L: int
    dtype: str
    untied: bool = True
    model: int = 8 * 10**9

    @property
    def steps(self) -> int:
        """T."""
        return max(1, self.tokens // self.L)

    @property
    def decoders(self) -> int:
        """How many arrays of weights there are, once features have formed."""
        return 2 if self.untied else 1


@dataclass(frozen=True)
class Plan:
    """What a wish takes on so many ranks of a device.

    bytes: of memory per rank.  flops, passes: FLOPs of products and bytes of passes per step and rank; None for `here`.
    shared: bytes that a rank hands over per step.  step: seconds of one.  limit: what takes most of it.  hours: of all.
    hold_hours: of these, to compare all pairs of neurons once.  disk: bytes of stored activations.
    harvest_hours: to compute the activations on the same devices; None for `here`.
    """

    device: str
    ranks: int
    fits: bool
    bytes: float
    flops: float | None
    passes: float | None
    shared: float
    step: float
    limit: str
    steps: int
    hours: float
    hold_hours: float
    disk: float
    harvest_hours: float | None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def planned(wish: Wish, name: str, ranks: int, network: str, here: Calibration, memory: float) -> Plan:
    """What a wish takes on so many ranks; memory: bytes of this machine.  InputError for what cannot be spread."""
    if network not in NETWORKS:
        raise InputError(f"there is no network {network!r}; the networks are {', '.join(NETWORKS)}")
    if name not in (HERE, *DEVICES):
        raise InputError(f"there is no device {name!r}; the devices are {', '.join((HERE, *DEVICES))}")
    if ranks > wish.M:
        raise InputError(f"{ranks} ranks are more than {wish.M} neurons: choose at most so many")
    return _here(wish, ranks, here, memory) if name == HERE else _gpus(wish, name, ranks, network)


def _gpus(wish: Wish, name: str, ranks: int, network: str) -> Plan:
    gpu, m = device(name), -(-wish.M // ranks)
    if wish.dtype not in gpu.flops:
        raise InputError(f"device {name} has no dtype {wish.dtype}; it has {', '.join(gpu.flops)}")
    size = wish.d, wish.M, wish.L, wish.decoders, wish.dtype
    own = costs.work(wish.d, m, wish.L, wish.decoders, wish.dtype)
    step = costs.gpu_step(*size, ranks, gpu, NETWORKS[network])
    held = costs.gpu_bytes(wish.d, m, wish.L, wish.decoders, wish.dtype)
    hold = costs.hold_seconds(wish.d, wish.M, wish.dtype, ranks, gpu)
    harvest = 2.0 * wish.model * wish.tokens / (HARVEST * gpu.flops["bfloat16"] * ranks)
    return Plan(
        device=name, ranks=ranks, fits=held <= gpu.bytes, bytes=held, flops=own.flops, passes=own.bytes,
        shared=own.shared if ranks > 1 else 0.0, step=step.seconds, limit=step.limit, steps=wish.steps,
        hours=(wish.steps * step.seconds + hold) / 3600, hold_hours=hold / 3600,
        disk=float(wish.tokens * wish.d * STORED), harvest_hours=harvest / 3600,
    )  # fmt: skip


def _here(wish: Wish, ranks: int, here: Calibration, memory: float) -> Plan:
    """On the processor of a calibration, all ranks on one machine, which share its cores; no network is in between."""
    if wish.dtype != "float32":
        raise InputError(f"the calibration of device {HERE} is of float32, not {wish.dtype}")
    method, m = METHODS["gba"], -(-wish.M // ranks)
    config = method.configure(wish.d, "default", width=wish.M, batch=wish.L, steps=min(wish.steps, LARGEST))
    groups = method.groups(config)
    assert groups is not None
    density = float(groups.target[groups.group].mean())
    busy = busy_share(config)
    rates = here.rates
    seconds, spent = 0.0, [0.0] * len(costs.TERMS)
    for share, active in ((busy, BUSY), (1 - busy, density)):
        terms = costs.numba_work(wish.d, m, wish.L, wish.decoders, active)
        spent = [s + share * rate * term for s, rate, term in zip(spent, rates, terms, strict=True)]
        seconds += share * here.seconds(wish.d, m, wish.L, wish.decoders, active)
    names = {
        "step": "what every step costs", "products": "the encoder's product", "entries": "active entries",
        "weights": "AdamW on the weights", "gates": "gates", "codes": "active entries", "neurons": "gates",
    }  # fmt: skip
    limit = names[costs.TERMS[max(range(len(spent)), key=lambda i: spent[i])]]
    held = here.bytes(wish.d, m, wish.L, wish.decoders, wish.dtype, ranks) + min(ROWS, wish.tokens * wish.d * 4)
    hold = rates[1] * wish.M * wish.M * wish.d / ranks  # a product like the encoder's
    return Plan(
        device=HERE, ranks=ranks, fits=ranks * held <= memory, bytes=held, flops=None, passes=None,
        shared=float((wish.L * wish.d + wish.d) * 4) if ranks > 1 else 0.0, step=seconds, limit=limit,
        steps=wish.steps, hours=(wish.steps * seconds + hold) / 3600, hold_hours=hold / 3600,
        disk=float(wish.tokens * wish.d * STORED), harvest_hours=None,
    )  # fmt: skip


def largest(fits: Callable[[int], bool]) -> int:
    """The largest M that fits, to within 1%; 0 if none does.  fits: whether so many neurons do."""
    low, high = 0, 1024
    while high < 2**50 and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def smallest(wish: Wish, network: str, here: Calibration, memory: float, hours: float | None) -> Plan | None:
    """The plan with the fewest devices of the table, in powers of two, that fits and takes at most so many hours.

    Of two with as many, the one of less compute.  None where not even MOST_RANKS are enough.
    """
    names = sorted(DEVICES, key=lambda name: _power(DEVICES[name]))
    for exponent in range(int(math.log2(MOST_RANKS)) + 1):
        for name in names:
            if 2**exponent <= wish.M and wish.dtype in DEVICES[name].flops:
                plan = planned(wish, name, 2**exponent, network, here, memory)
                if plan.fits and (hours is None or plan.hours <= hours):
                    return plan
    return None


def _power(gpu: Device) -> float:
    return PRODUCTS * gpu.flops["bfloat16"]
