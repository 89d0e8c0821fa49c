"""Devices and networks by the peak numbers that their makers state.

What a step reaches of these peaks, `PRODUCTS` and `STREAMS`, was assumed before a GPU was at hand.  One has been
measured since, an H100 (benchmarks/results/gpu-2026-11-26.md): when they went on, it reached 72% in bfloat16 products,
80% in a burst, and in bursts 66% in tf32, 77% in float32 and 82% in AdamW's pass, the largest; four steps took 8% less
to 8% more than is told.  The other devices and the networks were not measured.
"""

from __future__ import annotations

from typing import NamedTuple

from refgba.errors import InputError

PRODUCTS = 0.7  # share of a device's peak that matrix products of the sizes of a step are taken to reach
STREAMS = 0.8  # share of its memory's bandwidth that passes over arrays are taken to reach
MEASURED = "four steps on one H100 took 8% less to 8% more; several GPUs, and other ones, were not measured"


class Device(NamedTuple):
    """A GPU.

    bytes: of memory.  flops: dense products per second, by dtype: tensor cores without sparsity.  bandwidth: of its
    memory, bytes per second.  link: to the other GPUs of its machine, bytes per second and direction.  per_machine: how
    many are in one.  source: where the numbers are stated.
    """

    bytes: float
    flops: dict[str, float]
    bandwidth: float
    link: float
    per_machine: int
    source: str


DEVICES: dict[str, Device] = {
    "rtx4090": Device(
        24e9, {"bfloat16": 165e12, "tf32": 83e12, "float32": 83e12, "float64": 1.3e12}, 1.008e12, 25e9, 4,
        "NVIDIA Ada GPU Architecture whitepaper; PCIe 4.0 x16 between GPUs",
    ),
    "a100": Device(
        80e9, {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12, "float64": 19.5e12}, 2.039e12, 300e9, 8,
        "NVIDIA A100 80GB SXM data sheet",
    ),
    "h100": Device(
        80e9, {"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12, "float64": 67e12}, 3.35e12, 450e9, 8,
        "NVIDIA H100 SXM data sheet",
    ),
    "h200": Device(
        141e9, {"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12, "float64": 67e12}, 4.8e12, 450e9, 8,
        "NVIDIA H200 SXM data sheet",
    ),
    "b200": Device(
        180e9, {"bfloat16": 2250e12, "tf32": 1125e12, "float32": 75e12, "float64": 37e12}, 7.7e12, 900e9, 8,
        "NVIDIA DGX B200 data sheet, an eighth of it",
    ),
}  # fmt: skip


class Network(NamedTuple):
    """What carries an all-reduce between machines.

    bytes: per second and GPU, in one direction.  latency: seconds per message.  source: where the numbers are stated.
    """

    bytes: float
    latency: float
    source: str


NETWORKS: dict[str, Network] = {
    "infiniband": Network(50e9, 5e-6, "NDR InfiniBand, 400 Gb/s per GPU; 5 us per message is assumed"),
    "ethernet": Network(12.5e9, 20e-6, "100 Gb/s per GPU; 20 us per message is assumed"),
}
LOCAL_LATENCY = 3e-6  # seconds per message within a machine; assumed


def device(name: str) -> Device:
    """A device of the table; InputError for another one."""
    if name not in DEVICES:
        raise InputError(f"there is no device {name!r}; the devices are {', '.join(DEVICES)}")
    return DEVICES[name]


def all_reduce_seconds(size: float, ranks: int, link: float, per_machine: int, network: Network) -> float:
    """How long it takes `ranks` devices to add up arrays of `size` bytes each, with nothing else to do meanwhile.

    Within a machine a ring: each device sends and receives 2 (n - 1) / n of the array, in 2 (n - 1) messages.  Between
    machines each device has an nth of it, which goes round a ring of the devices of its number in the other machines.

    >>> from refgba.planning.devices import NETWORKS, all_reduce_seconds
    >>> all_reduce_seconds(25e6, 1, 450e9, 8, NETWORKS["infiniband"])
    0.0
    """
    inside = min(ranks, per_machine)
    machines = -(-ranks // per_machine)
    within = 2 * (inside - 1) * (size / inside / link + LOCAL_LATENCY)
    between = 2 * (machines - 1) * (size / inside / machines / network.bytes + network.latency)
    return within + between
