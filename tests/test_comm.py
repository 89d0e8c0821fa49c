"""Which neurons a rank has and what they begin with: the same for a neuron, whatever the number of ranks."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgba import gba
from refgba.backends import comm, shards
from refgba.backends.comm import Ranks
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.runs import parts


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_every_neuron_has_one_rank_and_ranks_have_equally_many(M, P, Q):
    owned = [np.arange(M)[Ranks(r, P).own(M)] for r in range(P)]
    assert sorted(np.concatenate(owned)) == list(range(M))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert [len(own) for own in owned] == [Ranks(r, P).count(M) for r in range(P)]
    for q in range(Q):  # which shards a reader looks into
        having = [r for r in range(P) if set(range(r, 10**3, P)) & set(range(q, 10**3, Q))]
        assert parts.needed(P, Ranks(q, Q)) == having


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("drawn", [1, 40, 2**20])
def test_a_neuron_begins_with_the_same_numbers_on_any_number_of_ranks(dtype, drawn, monkeypatch):
    monkeypatch.setattr(shards, "DRAWN", drawn)
    config = GBAConfig(width=23, groups=2, dtype=dtype, seed=3, untied=True, a_init=0.3, b_init=-0.1)
    whole = gba.random_params(config, 7).arrays()
    for P in (1, 2, 3, 5):
        for r in range(P):
            own = shards.random_params(config, 7, Ranks(r, P)).arrays()
            for name, array in whole.items():
                np.testing.assert_array_equal(own[name], array if name == "b_pre" else array[r::P])
                assert own[name].dtype == array.dtype


def test_more_ranks_than_a_group_has_neurons_are_refused():
    config = GBAConfig(width=20, groups=6)
    shards.refuse_too_many(config, Ranks(0, 3))
    with pytest.raises(InputError, match="4 ranks are more than the 3 neurons of a group"):
        shards.refuse_too_many(config, Ranks(0, 4))


@pytest.mark.parametrize("name", comm.LAUNCHED)
def test_a_launcher_without_mpi4py_is_refused(name, monkeypatch):
    for other in comm.LAUNCHED:
        monkeypatch.delenv(other, raising=False)
    assert comm.world().size == 1
    monkeypatch.setenv(name, "1")
    assert comm.world().size == 1  # mpiexec -n 1 needs no MPI
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(InputError, match=r"mpi4py cannot be imported .*: pip install '\.\[mpi\]'"):
        comm.world()
