"""Memory, FLOPs, bytes and traffic of a step of GBA, for one rank that has m = M / P neurons.

Notation as everywhere: L rows in a batch, d dimensions.  `decoders` is 2 where the decoder is untied, else 1.
"""

from __future__ import annotations

from typing import NamedTuple

from refgba.planning.devices import PRODUCTS, STREAMS, Device, Network, all_reduce_seconds

CODE = {"bfloat16": 2, "tf32": 4, "float32": 4, "float64": 8}  # bytes of what products read, by dtype
PIECES = 2**28  # bytes of pre-activations that the GPU backend holds at a time


def master(dtype: str) -> int:
    """Bytes of a parameter."""
    return 8 if dtype == "float64" else 4


class Work(NamedTuple):
    """A step of one rank: FLOPs of its products, bytes that its passes read and write, bytes that it shares."""

    flops: float
    bytes: float
    shared: float


def work(d: int, m: int, L: int, decoders: int, dtype: str) -> Work:
    """What a step of the GPU backend does.

    Five products of 2 m d L.  Passes: AdamW on each weight, 30 bytes in bfloat16 (θ, m, v read and written, g, the copy
    of θ); the copy of a V; gates and their gradient over (L, m), 9 bytes in bfloat16: z, codes, the gradient, and of
    v · r what open gates pass.  Shared: L d + d numbers.
    """
    real, code = master(dtype), CODE[dtype]
    adam = decoders * m * d * (7 * real + (code if code != real else 0))
    passes = m * d * code + m * L * (real + 2 * code + 1)
    return Work(10.0 * m * d * L, float(adam + passes), float((L * d + d) * real))


def gpu_bytes(d: int, m: int, L: int, decoders: int, dtype: str) -> float:
    """Memory of one rank of the GPU backend: parameters, moments and copies, a batch and its codes, room for pieces."""
    real, code = master(dtype), CODE[dtype]
    most = max(256, PIECES // (L * real) // 256 * 256)
    piece = min(m, -(-m // -(-m // most) // 256) * 256)
    weights = decoders * m * d * (3 * real + (code if code != real else 0)) + m * d * code
    batch = L * d * (6 * real + 2 * code) + L * m * (code + 1 / 8) + min(piece, 1024) * d * real
    room = L * piece * (real + code) + piece * d * decoders * real
    return float(weights + batch + room + m * (6 * real + 13) + 2**25)


class Step(NamedTuple):
    """Seconds of a step of one rank, by what they are spent on."""

    products: float
    passes: float
    network: float

    @property
    def seconds(self) -> float:
        """All of them: nothing is taken to overlap."""
        return sum(self)

    @property
    def limit(self) -> str:
        """What takes longest."""
        names = {"products": "matrix products", "passes": "memory bandwidth", "network": "the network"}
        return names[max(self._fields, key=lambda name: float(getattr(self, name)))]


def gpu_step(d: int, M: int, L: int, decoders: int, dtype: str, ranks: int, device: Device, network: Network) -> Step:
    """A step on so many GPUs, by their peak numbers and the shares that are reached of them."""
    own = work(d, -(-M // ranks), L, decoders, dtype)
    return Step(
        own.flops / (PRODUCTS * device.flops[dtype]),
        own.bytes / (STREAMS * device.bandwidth),
        all_reduce_seconds(own.shared, ranks, device.link, device.per_machine, network),
    )


def hold_seconds(d: int, M: int, dtype: str, ranks: int, device: Device) -> float:
    """All pairs of neurons compared, once per run, in the arithmetic of the parameters."""
    exact = "float64" if dtype == "float64" else "float32"
    return 2.0 * M * M * d / ranks / (PRODUCTS * device.flops[exact])


# ---- the numba backend -----------------------------------------------------------------------------------------------

KEPT = 2**25  # bytes up to which glibc keeps a freed array for the next
TERMS = ("step", "products", "entries", "weights", "gates", "codes", "neurons")


def numba_work(d: int, m: int, L: int, decoders: int, density: float) -> tuple[float, ...]:
    """What the time of a step is linear in, by TERMS: nothing, and how often each kind of work is done.

    products: the encoder's.  entries: dimensions of all active entries, each decoded and its gradients added.  weights:
    numbers that AdamW moves.  gates: pre-activations looked at.  codes: active entries.  neurons: once per tile of f.
    """
    tiles = -(-L // 256) * -(-d // 384)
    return 1.0, m * d * L, density * m * d * L, decoders * m * d, m * L, density * m * L, m * tiles


def numba_bytes(d: int, m: int, L: int, decoders: int, dtype: str, density: float, alone: bool) -> float:
    """What a process of the numba backend holds at most, beside what it holds when it has trained something tiny.

    alone: one process draws its first weights at once, in float64; a rank draws its own a block at a time.  What was
    drawn is freed, but the allocator keeps up to `KEPT` bytes of it.
    """
    real = master(dtype)
    weights = m * d * real
    codes = density * m * L * (real + 2) + m * (8 * (-(-L // 256) + 1) + 8) + (m / 256) * d * real
    state = 3 * decoders * weights + 60 * m
    batch = 5 * L * d * real + 256 * L * (real + 1)
    drawn, kept = 8 * m * d, min(8 * m * d, KEPT) if alone else 0
    copies = decoders * weights
    beginning = max(2 * drawn, decoders * drawn + copies) if alone else 2 * copies
    return float(max(beginning, state + codes + batch + kept))
