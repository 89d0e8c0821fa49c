"""Small random models of the real classes, with tokenizers made on the spot: saved as anyone's models are.

`make(folder, kind)` writes one, and `TEXT` is what its tokenizer was made of.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import library, real

from refgba.formats.dictionary import Dictionary
from refgba.llm.models import NEEDED

KINDS = ("qwen2", "gpt2", "gemma2", "bert")
CAUSAL = KINDS[:3]
D = 16
SITES = {
    "qwen2": "model.layers.1.mlp",
    "gpt2": "transformer.h.1.mlp",
    "gemma2": "model.layers.1.post_feedforward_layernorm",
    "bert": "bert.encoder.layer.1.output",
}
BLOCKS = {
    "qwen2": "model.layers.0",
    "gpt2": "transformer.h.0",
    "gemma2": "model.layers.0",
    "bert": "bert.encoder.layer.0",
}
NONSENSE = "the cat sat on a mat and dogs ran far away under blue skies while naïve ideas 😀 slept furiously"
WORDS = NONSENSE.split()

llm = real  # needs torch, transformers and the rest: run by `make test-all`, skipped with the reason elsewhere


def text(seed: int, words: int) -> str:
    """Nonsense."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + ".\n"


TEXT = [text(seed, 12 + 7 * seed) for seed in range(12)]


def needs() -> tuple[Any, Any]:
    """torch and transformers, or a skipped test."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install '.[llm]'")
    return library("torch"), library("transformers")


def tokenizer(kind: str) -> Any:
    """Byte-level BPE, or for BERT word pieces between [CLS] and [SEP]."""
    _, transformers = needs()
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    if kind == "bert":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **names)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>", "<bos>"], initial_alphabet=alphabet)
    made.train_from_iterator(TEXT, trainer)
    if kind == "gemma2":  # begins each context with <bos>, as the real one does
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", bos_token="<bos>")


def config(kind: str, vocabulary: int) -> Any:
    """Two layers of d = 16."""
    _, transformers = needs()
    rope = {
        "vocab_size": vocabulary, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    heads = {"num_key_value_heads": 1}
    special = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "qwen2":
        return transformers.Qwen2Config(**rope, **heads, **special, tie_word_embeddings=True)
    if kind == "gemma2":
        return transformers.Gemma2Config(**rope, **heads, **special, head_dim=8, sliding_window=32)
    if kind == "bert":
        return transformers.BertConfig(**rope)
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=D, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


def make(folder: Path, kind: str, head: bool = True, seed: int = 0) -> Path:
    """Write a model and its tokenizer to a folder; head: whether it has one."""
    torch, transformers = needs()
    made = tokenizer(kind)
    settings = config(kind, max(len(made), 8))
    torch.manual_seed(seed)
    if not head:
        model = transformers.AutoModel.from_config(settings)
    elif kind == "bert":
        model = transformers.AutoModelForMaskedLM.from_config(settings)
    else:
        model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for weight in model.parameters():  # far enough from 0 that logits say something
            weight.add_(torch.randn(weight.shape) * (0.15 if weight.ndim > 1 else 0.02))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folder of a model of each kind, made once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return of


@pytest.fixture
def corpus(tmp_path):
    """A folder of a few files of text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for k, part in enumerate(TEXT):
        (folder / f"{k:02d}.txt").write_text(part, encoding="utf-8")
    return folder


def dictionary(seed: int = 0, M: int = 32, d: int = D, dead: int | None = None) -> Dictionary:
    """A random network of unit rows; dead: a neuron that never fires."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((M, d)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    threshold = np.full(M, 0.2, np.float32)
    if dead is not None:
        threshold[dead] = 1e6
    b_dec = (0.1 * rng.standard_normal(d)).astype(np.float32)
    return Dictionary(W, np.zeros(M, np.float32), threshold, 0.5 * W, b_dec, True, "unit")
