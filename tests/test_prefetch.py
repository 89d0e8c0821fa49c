"""Prefetching changes when items are made, and nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from refgba.runs.prefetch import prefetched


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
