"""Tokens beside a shard, read back without torch: as they were written, or refused by file and field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refgba.errors import InputError
from refgba.llm.contexts import Context
from refgba.llm.records import DTYPES, Tokens, read_tokens
from refgba.llm.shards import Pending


def written() -> Tokens:
    """Two batches: contexts of 3, 2 and 4 tokens, of which the first positions are left out."""
    pending = Pending()
    first = [context("aé b", [5, 6, 7], [1, 3, 5], 0), context("cd", [8, 9], [1, 2], 1)]
    pending.add(first, np.array([0, 0, 1]), np.array([1, 2, 1]), np.array([1.0, 2.0, 3.0]), {"first": 2})
    second = [context("wxyz", [1, 2, 3, 4], [1, 2, 3, 4], 1, 2)]
    pending.add(second, np.array([0, 0]), np.array([1, 3]), np.array([4.0, 5.0]), {"first": 1, "norm": 1})
    assert pending.dropped == {"first": 3, "norm": 1}
    return pending.tokens()


def context(text: str, ids: list[int], ends: list[int], document: int, before: int = 0) -> Context:
    """One context."""
    n = len(ids)
    numbers = before + np.arange(n)
    return Context(np.array(ids, np.int32), np.array(ends, np.int32), np.full(n, document), numbers, text.encode())


def test_rows_contexts_and_text_come_back(tmp_path):
    (tmp_path / "t").write_bytes(written().to_bytes())
    tokens = read_tokens(tmp_path / "t", 5)
    assert tokens.token.tolist() == [6, 7, 9, 2, 4]
    assert tokens.document.tolist() == [0, 0, 1, 1, 1]
    assert tokens.context.tolist() == [0, 0, 1, 2, 2]
    assert tokens.at.tolist() == [1, 2, 4, 6, 8]
    assert tokens.norm.tolist() == [1, 2, 3, 4, 5]
    assert [tokens.pieces(c) for c in range(tokens.contexts)] == [["a", "é", " b"], ["c", "d"], ["w", "x", "y", "z"]]
    assert tokens.first_document.tolist() == [0, 1, 1]
    assert tokens.offset.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("field", "change", "complaint"),
    [
        *((name, lambda a: a[:-1], name) for name in ("document", "position", "norm", "ends", "offset")),
        *((name, lambda a: a.astype(np.float64), f"{name} should be there") for name in DTYPES),
        ("context", lambda a: a + 1, "context should be from 0 to 2"),
        ("position", lambda a: a + 5, "rows do not fit the contexts"),
        ("position", lambda a: a - 9, "rows do not fit the contexts"),
        ("token", lambda a: a + 1, "rows do not fit the contexts"),
        ("starts", lambda a: a[::-1].copy(), "starts should rise from 0 to 9"),
        ("text_starts", lambda a: a + 1, "text_starts should rise from 0 to"),
        ("ends", lambda a: a + 100, "ends should lie in the text"),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path, field, change, complaint):
    tokens = written()
    (tmp_path / "t").write_bytes(replace(tokens, **{field: change(getattr(tokens, field))}).to_bytes())
    with pytest.raises(InputError, match=complaint):
        read_tokens(tmp_path / "t", 5)


def test_a_file_of_anything_else_is_refused(tmp_path):
    data = written().to_bytes()
    for k, damaged in enumerate([b"", b"text", data[: len(data) // 2], data[:-1], b"\xff" * 64]):
        (tmp_path / str(k)).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{tmp_path / str(k)}: damaged or cannot be read"):
            read_tokens(tmp_path / str(k), 5)
