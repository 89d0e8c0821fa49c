"""What a run needs of the machine's memory at least, and its refusal before anything is allocated."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refgba.backends.base import AnyConfig
from refgba.baselines import METHODS
from refgba.errors import InputError

CGROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and version 1


def refuse_too_large(backend: str, config: AnyConfig, d: int, ranks: int = 1, here: int = 1) -> None:
    """InputError where a run on rows of d dimensions needs more than the machine has; it says what would fit.

    ranks: how many share its neurons.  here: how many of them share this machine.
    """
    M, L, limit = config.width, config.batch, machine_bytes()

    def bytes_here(M: int, L: int) -> int:
        return here * least_bytes(backend, config, d, -(-M // ranks), L)

    needed = bytes_here(M, L)
    if needed <= limit:
        return
    width = _largest(M, lambda M: bytes_here(M, L) <= limit)
    batch = _largest(L, lambda L: bytes_here(M, L) <= limit)
    fits = [f"width {width} at batch {L}"] * (width > 0) + [f"batch {batch} at width {M}"] * (batch > 0)
    raise InputError(
        f"width {M}, batch {L} and d {d} in {config.dtype} need at least {_gib(needed)} of memory with backend "
        f"{backend}, this machine has {_gib(limit)}; at most {' or '.join(fits) or 'nothing of that'} would fit"
    )


def least_bytes(backend: str, config: AnyConfig, d: int, M: int, L: int) -> int:
    """Bytes of host memory that a run has to hold at once, with M neurons and L rows of d dimensions per batch.

    Never more than it takes, so that nothing is refused that could be trained.

    The weights (M, d) with two moments each, and a batch (L, d) in use beside the next one.  The reference also holds
    the gradients of the weights, and pre-activations and codes (L, M); other backends hold them in part, or elsewhere.
    """
    weights = len({"W", "W_dec"} & set(METHODS[config.method].parameters(config, config.steps)))
    reference = backend == "numpy"
    numbers = weights * M * d * (4 if reference else 3) + 2 * L * d + (2 * L * M if reference else 0)
    return numbers * np.dtype(config.master).itemsize


def machine_bytes() -> int:
    """Bytes of memory that this process can have: the machine's and its swap, less where a limit is set."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    own = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in own if limit != resource.RLIM_INFINITY]
    return min([min([memory, *_cgroup_limits()]) + _swap_bytes(), *limits])


def _cgroup_limits() -> list[int]:
    """The limits of the control groups that this process is in."""
    limits = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            inner = root / name.strip("/")
            for folder in (inner, *inner.parents):
                limits += [int(text) for file in CGROUP_LIMITS if (text := _text(folder / file).strip()).isdigit()]
                if folder == root:
                    break
    return limits


def _swap_bytes() -> int:
    fields = [line.split() for line in _text(Path("/proc/meminfo")).splitlines()]
    return sum(int(field[1]) * 1024 for field in fields if field[0] == "SwapTotal:")


def _text(path: Path) -> str:
    """What the system says in a file of its own; nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _largest(upto: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `upto`, which does not fit, that does; 0 if none does."""
    low, high = 0, upto
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
