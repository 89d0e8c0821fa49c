"""Opening a language model: by a local folder, a .gguf file or a hub's name.  No code of a hub's is ever run.

A model is opened with the head that its configuration names.  A head, or anything else, whose weights are not there
would be started at random by transformers: that is refused, by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from refgba.errors import InputError, brief
from refgba.llm import hub
from refgba.llm.contexts import Tokenizer

if TYPE_CHECKING:
    import torch

Kind = Literal["causal", "masked", "encoder"]
DTYPES = ("float32", "bfloat16", "float16")
NEEDED = ("torch", "transformers", "gguf", "accelerate")
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
CACHES = ("cache", "past_key_values")  # what transformers calls it, the newer name first
POOLER = "pooler."  # An encoder's pooler comes after all sites that see tokens.


def require() -> None:
    """InputError unless what this room needs is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"language models need {' and '.join(missing)}: make llm, or pip install '.[llm]' in refgba's folder"
        )


@dataclass(frozen=True, eq=False)
class Model:
    """A model that is open, in evaluation mode.

    name: as it was given.  module: torch's.  kind: which head it has: of a causal model, of a masked one, or none.
    bos: whether contexts shall begin with BOS, None where nobody said so.
    """

    name: str
    module: Any
    tokenizer: Tokenizer
    kind: Kind
    dtype: str
    bos: bool | None = None

    def beginning_with(self, prefix: Sequence[int] | None) -> Model:
        """The model with contexts that begin as those of a harvest, by `prefix` of its tokenizer's record.

        The model as it is where a choice was made at opening, and where its tokenizer has no such beginning.
        """
        if self.bos is not None or prefix is None or list(prefix) == self.tokenizer.prefix:
            return self
        made = self.tokenizer.tokenizer
        for bos in (False, *([True] if made.bos_token_id is not None else [])):
            begun = Tokenizer(made, bos)
            if begun.prefix == list(prefix):
                return replace(self, tokenizer=begun)
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def longest(self) -> int | None:
        """The longest context that it was made for, None where its configuration does not say."""
        config = self.module.config.get_text_config()
        return next((n for name in LENGTHS if isinstance(n := getattr(config, name, None), int) and n > 0), None)

    @property
    def pad(self) -> int:
        """The id that batches are padded with; any would do, since it is masked."""
        id = self.tokenizer.tokenizer.pad_token_id
        return int(id) if id is not None and id < self.module.get_input_embeddings().weight.shape[0] else 0

    @property
    def takes_positions(self) -> bool:
        """Whether positions can be given, as padding on the left needs."""
        return "position_ids" in self._arguments

    @cached_property
    def _arguments(self) -> set[str]:
        import inspect

        return set(inspect.signature(self.module.forward).parameters)

    def forward(self, ids: Any, mask: Any, **named: Any) -> Any:
        """What the model makes of ids (batch, position), where mask, of the same shape, is 1 and not padding.

        Without a cache.  Positions count from the first token that is not padding, on whichever side padding is.
        """
        if self.kind == "causal" and self.takes_positions and not bool(mask[:, 0].all()):
            named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "use_cache" in self._arguments or self.kind == "causal":
            named["use_cache"] = False
        return self.module(input_ids=ids, attention_mask=mask, **named)

    def go_on(self, ids: Any, mask: Any, past: Any, cached: bool) -> tuple[Any, Any]:
        """Logits (batch, position, vocabulary) of the tokens `ids`, and what is kept for those that come after them.

        mask: of all tokens so far, (batch, all).  past: what was kept of the tokens before `ids`, None for none.
        cached: whether anything is kept; None is, too, where the model cannot.
        """
        name = next((name for name in CACHES if name in self._arguments), None)
        if name is None:
            return self.forward(ids, mask).logits, None
        out = self.module(input_ids=ids, attention_mask=mask, use_cache=cached, **{name: past})
        return out.logits, out[name] if cached else None

    def without_logits(self) -> dict[str, Any]:
        """Arguments of `forward` with which it computes hardly any logits, where the model has such."""
        return {"logits_to_keep": 1} if "logits_to_keep" in self._arguments else {}

    def head(self) -> Any:
        """The unembedding; InputError, naming the model, where it has none."""
        head = self.module.get_output_embeddings() if self.kind != "encoder" else None
        if head is None:
            raise InputError(
                f"{self.name}: {type(self.module).__name__} has no language-model head, and none is started at random"
            )
        return head

    def refuse_context(self, length: int) -> None:
        """InputError unless the model was made for contexts of so many tokens."""
        if self.longest is not None and length > self.longest:
            raise InputError(f"--context {length} is longer than the {self.longest} tokens that {self.name} can take")

    def weights(self, dtype: str | None = None) -> str:
        """A fingerprint: SHA-256 of the names, shapes and first numbers of all weights.

        dtype: what they are rounded to first, one of DTYPES.
        """
        import torch

        digest = hashlib.sha256()
        for name, weight in self.module.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            first = weight.detach().flatten()[:64]
            first = first if dtype is None else first.to(getattr(torch, dtype))
            digest.update(first.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def differs_from(self, harvest: Mapping[str, Any]) -> str | None:
        """None if this is the model that was harvested, by its weights; else what differs, in words.

        harvest: `harvest` of a store's meta.json.  Weights in 16 bits are not told from others that were harvested
        more precisely, unless they were made in 16 bits.
        """
        expected, computed_in = harvest.get("weights"), harvest["settings"].get("computed_in", self.dtype)
        if expected in (self.weights(), self.weights(computed_in)):
            return None
        if self.dtype not in ("float32", computed_in):
            return (
                f"{self.name} is opened in {self.dtype}, the harvest was made in {computed_in}: so it cannot be told "
                "whether it is the same model"
            )
        return f"{self.name} has other weights than the model that was harvested"


def open_model(name: str | Path, dtype: str = "float32", device: str = "auto", bos: bool | None = None) -> Model:
    """The model in a local folder, in a .gguf file, or of a hub's name, and its tokenizer.

    dtype: of its weights and its arithmetic, one of DTYPES.  device: "auto" is "cuda" where torch has one, else "cpu".
    bos: as `Tokenizer`.  InputError, on one line, for what cannot be opened, and where weights are missing.
    """
    require()
    import torch
    import transformers

    name = str(name)
    if dtype not in DTYPES:
        raise InputError(f"dtype should be one of {', '.join(DTYPES)}, not {brief(dtype)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    refuse_device(torch, device)
    where, extra = locate(name)
    options: dict[str, Any] = {"trust_remote_code": False, **(extra or hub.options(where))}
    part = "configuration"
    with quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(where, **options)
            kind, auto = _head(transformers, config, bool(extra))
            part = "tokenizer"
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            part = "weights"
            # Without use_safetensors, a checkpoint of pickles is read with weights_only, transformers' default.
            opened, loading = auto.from_pretrained(
                where, dtype=getattr(torch, dtype), output_loading_info=True, **options
            )
        except InputError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # of as many kinds as there are formats
            raise InputError(f"{name}: cannot be opened as a language model ({part}: {_first_line(error)})") from None
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith(POOLER) and f".{POOLER}" not in key)
    if missing or loading.get("mismatched_keys"):
        lacking = missing or sorted(str(key) for key in loading["mismatched_keys"])
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(
            f"{name}: holds no weights for {brief(lacking[0])}{more} of {type(opened).__name__}; they would be random"
        )
    opened.eval().to(device)
    opened.requires_grad_(False)
    return Model(name, opened, Tokenizer(tokenizer, bos), kind, dtype, bos)


def refuse_device(torch: Any, device: str) -> None:
    """InputError unless torch can compute on a device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of a build without it, or of no such name
        raise InputError(f"--device {brief(device)}: torch cannot compute there ({_first_line(error)})") from None


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """What transformers' `from_pretrained` is given for a name; InputError for a path that is no model."""
    path = Path(name)
    if name.lower().endswith(".gguf"):
        if not os.path.isfile(name):
            raise InputError(f"{name}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if os.path.isdir(name):
        if not os.path.isfile(path / "config.json"):
            inside = next(iter(sorted(path.glob("*.gguf"))), None)
            how = f"; do you mean {inside}?" if inside is not None else ""
            raise InputError(f"{name}: holds no config.json of a model{how}")
        return name, {"local_files_only": True}
    if os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: neither the folder of a model nor a .gguf file")
    return name, {}


def _head(transformers: Any, config: Any, plain: bool) -> tuple[Kind, Any]:
    """Which head a model has, by its configuration, and what opens it."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{type(config).__name__}: an encoder with a decoder; use a causal, masked or encoder model")
    named = (config.architectures or [""])[0]
    if named.endswith(("ForMaskedLM",)):
        return "masked", transformers.AutoModelForMaskedLM
    if named.endswith(("ForCausalLM", "LMHeadModel")) or (not named and plain):
        return "causal", transformers.AutoModelForCausalLM
    if named.endswith("ForConditionalGeneration") and hasattr(transformers, named):
        return "causal", getattr(transformers, named)
    return "encoder", transformers.AutoModel


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """While it lasts, transformers shows neither bars nor remarks: what is wrong is asked of it and said here."""
    log = transformers.utils.logging
    before = log.get_verbosity()
    bars = log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return brief(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__))
