"""From text to what a model sees: contexts of tokens, and batches of these.

A document becomes contexts of at most so many tokens, each with the special tokens that the tokenizer puts around a
text; no context holds two documents, unless they are packed, and then attention crosses their boundary.  Which context
comes when is a function of text, tokenizer and settings alone: so a harvest can go on at any context.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm.records import Int32
from refgba.llm.text import Fingerprint, TextOptions, pieces
from refgba.types import Int64

WITH = 16  # A token is joined with this many others, to see what it adds.


@dataclass(frozen=True, eq=False)
class Context:
    """What the model sees at once: n tokens.

    ids: (n,).  ends: (n,) where each token's text ends, in bytes of `text`.  document: (n,) which document each token
    is of.  index: (n,) how many tokens of this document came before it, special tokens not counted.
    """

    ids: Int32
    ends: Int32
    document: Int64
    index: Int64
    text: bytes

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Context:
        """The first tokens."""
        text = self.text[: int(self.ends[length - 1])] if length < len(self) else self.text
        return Context(self.ids[:length], self.ends[:length], self.document[:length], self.index[:length], text)


class Tokenizer:
    """A tokenizer of transformers: ids and the bytes of each, and the special tokens that belong around a text."""

    def __init__(self, tokenizer: Any, bos: bool | None = None) -> None:
        """bos: whether contexts begin with its beginning-of-sequence token; None for as it does by itself."""
        self.tokenizer = tokenizer
        self.special = {int(id): str(tokenizer.convert_ids_to_tokens(id)) for id in sorted(tokenizer.all_special_ids)}
        bare, whole = (self._ids("a", special) for special in (False, True))
        at = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
        self.prefix, self.suffix = whole[:at], whole[at + len(bare) :]
        if bos is False:
            self.prefix = []
        elif bos and not self.prefix:
            if tokenizer.bos_token_id is None:
                raise InputError("the tokenizer has no beginning-of-sequence token; leave --bos out")
            self.prefix = [int(tokenizer.bos_token_id)]

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def __call__(self, text: str) -> tuple[Int32, Int32]:
        """Ids (n,) of a text without special tokens around it, and where each ends in it, in bytes (n,)."""
        fast = bool(self.tokenizer.is_fast)
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        ids = np.array(coded["input_ids"], np.int32)
        if not fast:  # as near as one comes without knowing where tokens lie
            names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
            ends = np.minimum(grown(names, self.tokenizer.convert_tokens_to_string), len(text))
        else:
            ends = np.array([end for _, end in coded["offset_mapping"]], np.int64)
        if len(ends):
            ends = np.maximum.accumulate(ends)
            ends[-1] = len(text)
        if not text.isascii():
            character = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            width = 1 + (character > 0x7F).astype(np.int64) + (character > 0x7FF) + (character > 0xFFFF)
            ends = np.concatenate([[0], np.cumsum(width)])[ends]
        return ids, ends.astype(np.int32)

    def record(self) -> dict[str, Any]:
        """For meta.json: what it is, by its vocabulary, and what it puts around a text."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            "class": type(self.tokenizer).__name__,
            "vocabulary": len(self.tokenizer),
            "sha256": hashlib.sha256(vocabulary).hexdigest(),
            "prefix": self.prefix,
            "suffix": self.suffix,
            "special": {str(id): name for id, name in self.special.items()},
        }


def grown(names: list[str], joined: Callable[[list[str]], str]) -> Int64:
    """How long the text of tokens is with each of them, (n,), by what it makes together with some before it.

    A token alone may lose the space before it, or be a part of a character.  What is joined begins where a character
    began, WITH tokens before or more, so that a long text takes no longer than short ones.
    """
    lengths, start, base, ended = np.zeros(len(names), np.int64), 0, 0, [0]
    for k in range(len(names)):
        text = joined(names[start : k + 1])
        lengths[k] = base + len(text)
        if len(text) + base > (lengths[k - 1] if k else 0) and not text.endswith("\ufffd"):
            ended.append(k + 1)  # a character ends here, as far as is known
        if k - start >= 2 * WITH:
            kept = [place for place in ended if k + 1 - place >= WITH and place > start]
            if kept:
                start = kept[-1]
                base = int(lengths[k]) - len(joined(names[start : k + 1]))
                ended = [place for place in ended if place >= start]
    return lengths


def contexts(
    options: TextOptions, tokenizer: Tokenizer, length: int, pack: bool, fingerprint: Fingerprint
) -> Iterator[Context]:
    """All contexts of at most `length` tokens, special tokens counted; `fingerprint` takes in the text on the way.

    pack: whether documents follow one another in a context, separated by the tokenizer's end-of-sequence token.
    """
    if pack and options.per_document is not None:
        raise InputError("documents that are packed have no contexts of their own: leave --pack or --per-document out")
    room = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 1:
        raise InputError(f"a context of {length} tokens has no room beside the special tokens; --context wants more")
    spans = _spans(options, tokenizer, fingerprint)
    for span in _packed(spans, tokenizer, room) if pack else _split(spans, room, options.per_document):
        yield _around(span, tokenizer)


def _spans(options: TextOptions, tokenizer: Tokenizer, fingerprint: Fingerprint) -> Iterator[Context]:
    """Each piece of text as one long context, without special tokens."""
    before, offset = -1, 0
    for document, piece in pieces(options):
        fingerprint.add(document, piece)
        ids, ends = tokenizer(piece)
        offset = offset if document == before else 0
        if len(ids):
            where = np.full(len(ids), document, np.int64)
            yield Context(ids, ends, where, offset + np.arange(len(ids)), piece.encode())
        before, offset = document, offset + len(ids)


def _part(span: Context, start: int, stop: int) -> Context:
    """Tokens start..stop of a span."""
    begin = int(span.ends[start - 1]) if start else 0
    text = span.text[begin : int(span.ends[min(stop, len(span)) - 1])]
    part = slice(start, stop)
    return Context(span.ids[part], span.ends[part] - begin, span.document[part], span.index[part], text)


def _split(spans: Iterator[Context], room: int, most: int | None) -> Iterator[Context]:
    """Contexts of one document each, at most so many of each."""
    document, taken = -1, 0
    for span in spans:
        if span.document[0] != document:
            document, taken = int(span.document[0]), 0
        for start in range(0, len(span), room):
            if most is not None and taken >= most:
                break
            taken += 1
            yield _part(span, start, start + room)


def _packed(spans: Iterator[Context], tokenizer: Tokenizer, room: int) -> Iterator[Context]:
    """Documents one after another, an end-of-sequence token after each that has ended."""
    end = tokenizer.tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end-of-sequence token to pack documents with; leave --pack out")
    held: list[Context] = []
    last = None
    for span in spans:
        if last is not None and span.document[0] != last.document[0]:
            mark = np.array([end], np.int32)
            held.append(Context(mark, np.zeros_like(mark), last.document[-1:], last.index[-1:] + 1, b""))
        held.append(span)
        last = span
        joined = _joined(held)
        stop = len(joined) - len(joined) % room
        yield from (_part(joined, start, start + room) for start in range(0, stop, room))
        held = [_part(joined, stop, len(joined))] if stop < len(joined) else []
    if held:
        yield _joined(held)


def _joined(spans: list[Context]) -> Context:
    shifts = np.cumsum([0, *(len(span.text) for span in spans)])
    ends = [span.ends + int(shift) for span, shift in zip(spans, shifts, strict=False)]
    return Context(
        np.concatenate([span.ids for span in spans]),
        np.concatenate(ends).astype(np.int32),
        np.concatenate([span.document for span in spans]),
        np.concatenate([span.index for span in spans]),
        b"".join(span.text for span in spans),
    )


def _around(span: Context, tokenizer: Tokenizer) -> Context:
    """The span between the special tokens that belong around a text."""
    before, after = len(tokenizer.prefix), len(tokenizer.suffix)
    if not before + after:
        return span
    return Context(
        np.concatenate([tokenizer.prefix, span.ids, tokenizer.suffix]).astype(np.int32),
        np.concatenate([[0] * before, span.ends, [len(span.text)] * after]).astype(np.int32),
        np.pad(span.document, (before, after), "edge"),
        np.pad(span.index, (before, after), "edge"),
        span.text,
    )


def batches(source: Iterator[Context], size: int, tokens: int | None) -> Iterator[list[Context]]:
    """Contexts `size` at a time, `tokens` tokens altogether if there are so many: the last context is cut."""
    left = tokens
    while batch := list(islice(source, size)):
        if left is not None:
            kept = []
            for context in batch:
                if left > 0:
                    kept.append(context.cut(min(left, len(context))))
                    left -= len(kept[-1])
            batch = kept
        yield batch
        if left == 0:
            return


def padded(batch: list[Context], pad: int) -> tuple[Any, Any]:
    """Ids and mask of a batch, int64 arrays (contexts, longest), padded on the right."""
    longest = max(len(context) for context in batch)
    ids, mask = np.full((len(batch), longest), pad, np.int64), np.zeros((len(batch), longest), np.int64)
    for k, context in enumerate(batch):
        ids[k, : len(context)], mask[k, : len(context)] = context.ids, 1
    return ids, mask
