"""Prefetching changes when items are made, and nothing else."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import count

import pytest

from refgba.data.prefetch import in_order, prefetched


def test_items_come_in_order_and_all():
    assert list(prefetched(iter(range(100)))) == list(range(100))
    assert list(prefetched(iter(()))) == []


def test_no_more_than_depth_are_taken_ahead():
    taken = []
    items = prefetched((taken.append(i) or i for i in range(100)), depth=3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) == 1 + 3
    items.close()


def test_an_error_comes_at_its_place():
    def failing():
        yield 1
        raise OSError("gone")

    items = prefetched(failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_closing_early_ends_the_thread():
    before = threading.active_count()
    items = prefetched(iter(range(10**9)))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_what_it_takes_from_is_closed_in_turn():
    closed = []

    def source():
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.active_count())

    before = threading.active_count()
    items = prefetched(prefetched(source()), depth=1)
    assert next(items) == 0
    items.close()
    assert closed
    assert threading.active_count() == before


def test_in_order_keeps_the_order_whatever_takes_longest():
    def slow(i):
        time.sleep(0.002 * (i % 5 == 0))
        return i * i

    assert list(in_order(slow, range(100))) == [i * i for i in range(100)]


def test_in_order_takes_no_more_ahead_than_asked():
    taken = []
    with closing(in_order(int, (taken.append(i) or i for i in count()), ahead=5)) as results:
        for i in range(20):
            assert next(results) == i
            assert len(taken) <= i + 6


def test_what_the_work_raises_comes_at_its_place_and_the_threads_end():
    def work(i):
        if i == 7:
            raise OSError("seven")
        return i

    before = threading.active_count()
    results = in_order(work, range(1000))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="seven"):
        next(results)
    assert threading.active_count() == before
