"""Tokens beside a shard, read back without torch: as they were written, or refused by file and field."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_one_line, last_json
from llm_stores import random_store

from refgba.errors import InputError
from refgba.llm.contexts import Context
from refgba.llm.records import DTYPES, Tokens, open_harvest, read_tokens
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
        ("norm", lambda a: a * np.nan, "norm should be finite and not negative"),
        ("norm", lambda a: -a, "norm should be finite and not negative"),
        ("document", lambda a: a - 1, "document should not be negative"),
        ("offset", lambda a: a - 9, "offset should not be negative"),
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


# ---- meta.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("settings", "context"), "x", "harvest.settings.context is not as it was written"),
        (("settings", "drop_first"), -1, "harvest.settings.drop_first is not"),
        (("settings", "keep_special"), 1, "harvest.settings.keep_special is not"),
        (("settings", "of"), "inside", "harvest.settings.of is not"),
        (("settings", "text"), {"paths": [1]}, "harvest.settings.text is not"),
        (("settings", "site"), "../../elsewhere", "harvest.settings.site is not"),  # files of others are named by it
        (("settings", "site"), "/elsewhere", "harvest.settings.site is not"),
        (("settings", "site"), "..", "harvest.settings.site is not"),
        (("settings", "site"), 3, "site should be a string"),
        (("largest_norm",), "x", "harvest.largest_norm is not"),
        (("tokenizer", "prefix"), "zz", "harvest.tokenizer.prefix is not"),
        (("tokenizer", "special"), {"x": "<s>"}, "special should name special tokens by their ids"),
    ],
)
def test_what_cannot_be_right_of_a_harvest_is_named(tmp_path, place, value, complaint):
    store = random_store(tmp_path / "store")
    meta = json.loads((store / "meta.json").read_text())
    inside = meta["harvest"]
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    (store / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=complaint):
        open_harvest(store)


# ---- `refgba data verify` of a harvest -------------------------------------------------------------------------------


def rewritten(store, **changes):
    """The store with other tokens beside its second shard, and their checksum in meta.json."""
    meta = json.loads((store / "meta.json").read_text())
    entry = meta["shards"][1]["tokens"]
    tokens = read_tokens(store / entry["file"], meta["shards"][1]["rows"])
    data = replace(tokens, **{name: change(getattr(tokens, name)) for name, change in changes.items()}).to_bytes()
    (store / entry["file"]).write_bytes(data)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    (store / "meta.json").write_text(json.dumps(meta))


def test_verify_reads_the_tokens_of_a_harvest_too(cli, tmp_path):
    random_store(tmp_path / "store")
    assert last_json(cli("data", "verify", "store", "--json"))["contexts"] == 40
    assert "tokens of these rows, of 40 contexts, are sound" in cli("data", "verify", "store").stdout
    plain = tmp_path / "plain.npy"
    np.save(plain, np.eye(3, dtype=np.float32))
    assert "contexts" not in last_json(cli("data", "verify", plain, "--json"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"token": lambda a: a + 1}, "rows do not fit the contexts"),
        ({"position": lambda a: a[:-1]}, "position has"),
        ({"norm": lambda a: a.astype(np.float64)}, "norm should be there, of one dimension and float32"),
        ({"context": lambda a: a + 99}, "context should be from 0 to 19"),
        (
            {name: lambda a: np.append(a, a[-1]) for name in ("starts", "text_starts", "first_document", "offset")},
            "holds 21 contexts, meta.json lists 20",
        ),
    ],
    ids=["token", "length", "dtype", "range", "contexts"],
)
def test_verify_names_tokens_that_do_not_fit_the_rows(cli, tmp_path, changes, complaint):
    rewritten(random_store(tmp_path / "store"), **changes)
    result = cli("data", "verify", "store")
    assert_one_line(result, complaint)
    assert "00001.tokens.safetensors" in result.stderr


def test_verify_names_tokens_that_are_damaged_or_gone(cli, tmp_path):
    file = random_store(tmp_path / "store") / "00000.tokens.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert_one_line(cli("data", "verify", "store"), f"{file.name}: does not match its checksum")
    file.unlink()
    assert_one_line(cli("data", "verify", "store"), file.name)
