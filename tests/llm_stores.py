"""Stores as `refgba harvest` writes them, made on the spot without a model."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from refgba.backends.base import AnyConfig
from refgba.config import GBAConfig
from refgba.llm.records import SUFFIX, VERSION, Tokens
from refgba.runs import folder
from refgba.sae import Params

SPECIAL = "<bos>"
SITE, MODEL = "model.layers.3.mlp", "tiny/model"


def write_store(path: Path, shards: list[list[tuple[list[str], np.ndarray]]], keep_first: bool = False) -> Path:
    """A store of shards of contexts, each its tokens' text and their activations (tokens, d).

    SPECIAL is a token without text.  keep_first: whether the first token of each context has a row too.
    """
    path.mkdir()
    words = [SPECIAL, *dict.fromkeys(t for shard in shards for texts, _ in shard for t in texts if t != SPECIAL)]
    listed = []
    for k, shard in enumerate(shards):
        first = 0 if keep_first else 1
        texts = [["" if t == SPECIAL else t for t in context] for context, _ in shard]
        data = ["".join(context).encode() for context in texts]
        starts = np.cumsum([0, *(len(context) for context in texts)])
        kept = [np.arange(first, len(context)) for context in texts]
        rows = np.concatenate([x[p] for (_, x), p in zip(shard, kept, strict=True)]).astype(np.float32)
        ids = np.array([words.index(t) for context, _ in shard for t in context], np.int32)
        context = np.repeat(np.arange(len(shard)), [len(p) for p in kept])
        position = np.concatenate(kept)
        tokens = Tokens(
            token=ids[starts[context] + position].astype(np.int32),
            document=(10 * k + context).astype(np.int64),
            position=position.astype(np.int32),
            context=context.astype(np.int64),
            norm=np.linalg.norm(rows, axis=1).astype(np.float32),
            ids=ids,
            starts=starts.astype(np.int64),
            text=np.frombuffer(b"".join(data), np.uint8),
            text_starts=np.cumsum([0, *map(len, data)]).astype(np.int64),
            ends=np.concatenate([np.cumsum([len(t.encode()) for t in c]) for c in texts]).astype(np.int32),
            first_document=10 * k + np.arange(len(shard)),
            offset=np.zeros(len(shard), np.int64),
        ).to_bytes()
        np.save(path / f"{k:05d}.npy", rows)
        (path / f"{k:05d}{SUFFIX}").write_bytes(tokens)
        sums = [hashlib.sha256(b).hexdigest() for b in ((path / f"{k:05d}.npy").read_bytes(), tokens)]
        listed.append(
            {
                "file": f"{k:05d}.npy", "rows": len(rows), "sha256": sums[0],
                "tokens": {"file": f"{k:05d}{SUFFIX}", "sha256": sums[1]}, "contexts": len(shard), "read": len(ids),
                "dropped": {"first": 0, "special": 0, "norm": 0}, "text_sha256": "",
            }
        )  # fmt: skip
    settings = {"model": MODEL, "site": SITE, "of": "output", "context": 8, "batch": 2, "text": {"paths": ["a.txt"]}}
    harvest = {"version": VERSION, "settings": settings, "tokenizer": {"special": {"0": SPECIAL}}}
    d = shards[0][0][1].shape[1]
    meta = {"format": "refgba-activations", "d": d, "dtype": "float32", "complete": True, "shards": listed}
    meta |= {"model": MODEL, "site": SITE, "layer": 3, "harvest": harvest}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def random_store(path: Path, seed: int = 0, d: int = 6, contexts: int = 40, shards: int = 2) -> Path:
    """Contexts of 2 to 12 tokens, with rows of any norm; every third context repeats the one before."""
    rng = np.random.default_rng(seed)
    words = [" the", " cat", "sat", "\n", " naïve", "😀", "<script>", "</script>", "&amp;", "\t", " on", "!"]
    made: list[tuple[list[str], np.ndarray]] = []
    for c in range(contexts):
        if c % 3 == 2:
            made.append(made[-1])
            continue
        n = int(rng.integers(2, 13))
        texts = [SPECIAL, *rng.choice(words, n - 1).tolist()]
        made.append((texts, rng.standard_normal((n, d)) * np.exp(rng.normal(1, 1, (n, 1)))))
    cut = np.linspace(0, contexts, shards + 1).astype(int)
    return write_store(path, [made[a:b] for a, b in pairwise(cut)])


def write_run(path: Path, params: Params, config: AnyConfig | None = None, centre: np.ndarray | None = None) -> Path:
    """The folder of a network without its training; centre: what its rows lose before they are scaled."""
    config = config or GBAConfig(width=len(params.W), groups=2, htf=0.5, ltf=0.25)
    folder.write_network(path, params.astype(config.master), config, {"step": 0}, centre=centre)
    return path
