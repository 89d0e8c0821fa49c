"""Sums of device arrays over ranks, with a stand-in for CuPy and for MPI: which way is taken, and that it adds up.

NCCL itself has never been run; what is tested of it is that it is asked for the right thing.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest


class Group:
    """NCCL's communicator: remembers what it was asked for."""

    def __init__(self, size, name, rank):
        self.about, self.calls = (size, name, rank), []

    def allReduce(self, *arguments):
        self.calls.append(arguments)


class Ranks:
    """mpi4py's communicator as rank 0 of two sees it, with another rank that has the same array."""

    rank, size = 0, 2

    def __init__(self, other_gpu):
        self.other_gpu = other_gpu

    def Allgather(self, own, every):
        every[0], every[1] = own, np.frombuffer(self.other_gpu.hex().encode().ljust(64, b"\0"), np.uint8)

    def Allreduce(self, given, total):
        assert given.dtype.itemsize >= 4
        total[...] = 2 * given

    def Bcast(self, array):
        assert array.shape == (128,)


@pytest.fixture
def module(monkeypatch):
    """backends/comm_device.py over a stand-in for CuPy whose arrays are NumPy's."""
    nccl = SimpleNamespace(
        available=True, NCCL_FLOAT32=7, NCCL_SUM=0, NcclCommunicator=Group, get_unique_id=lambda: tuple(range(128))
    )
    cuda = SimpleNamespace(
        nccl=nccl,
        get_current_stream=lambda: SimpleNamespace(ptr=99),
        runtime=SimpleNamespace(getDeviceProperties=lambda _id: {"uuid": b"one"}),
        Device=lambda: SimpleNamespace(id=0),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, asnumpy=np.array, asarray=np.asarray))
    monkeypatch.delitem(sys.modules, "refgba.backends.comm_device", raising=False)
    loaded = importlib.import_module("refgba.backends.comm_device")
    monkeypatch.setitem(sys.modules, "refgba.backends.comm_device", loaded)
    yield loaded
    sys.modules.pop("refgba.backends.comm_device")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_ranks_that_share_a_gpu_add_up_through_the_host(module, dtype):
    sums = module.device_sums(Ranks(b"one"))
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    assert sums.sum(array) is array
    np.testing.assert_array_equal(array, 2 * np.arange(6).reshape(2, 3))
    assert array.dtype == dtype


def test_ranks_with_a_gpu_each_ask_nccl(module):
    sums = module.device_sums(Ranks(b"two"))
    array = SimpleNamespace(dtype=np.dtype(np.float32), size=6, data=SimpleNamespace(ptr=5))
    assert sums.sum(array) is array
    group = sums._group
    assert group.about == (2, tuple(range(128)), 0)
    assert group.calls == [(5, 5, 6, 7, 0, 99)]


def test_without_nccl_ranks_add_up_through_the_host(module):
    module.cp.cuda.nccl.available = False
    assert isinstance(module.device_sums(Ranks(b"two")), module.ThroughHost)
