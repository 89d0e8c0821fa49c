"""`refgba llm effects`: what neurons do to a model's predictions, by ablation and steering.

Everything is measured inside the model, in units of a neuron's own peak p: steering by s adds s p v_m, at the scale of
the row, to the activation of each token.  Either the activation is EDITED, x + edit, and the error of the
reconstruction is kept; or it is REPLACED by the reconstruction of the changed codes, and then the base of comparison is
the model with the unchanged reconstruction.  Beside each strength: random directions of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm.contexts import Context, batches, contexts, padded
from refgba.llm.draws import generator
from refgba.llm.harvesting import run
from refgba.llm.keeping import norms
from refgba.llm.quantities import finite, for_json, listed, whole
from refgba.llm.splice import Place, Rows, splicing
from refgba.llm.text import Fingerprint, TextOptions
from refgba.llm.unembedding import Unembedding
from refgba.types import Array, Float64

TOKENS = 8192  # Peaks and frequencies are measured on this many tokens.
SAMPLE = 8  # Effects are measured on this many contexts.
STRENGTHS = (-1.0, 0.5, 1.0, 2.0)
LOGITS = 2**26  # At most this many logits are held at a time.
RANDOM = 3  # Each strength is compared with this many random directions.
TOP = 10  # So many tokens are shown.

Tokens = list[tuple[str, float]]


@dataclass(frozen=True)
class Steered:
    """Steering at one strength, in units of the peak.

    kl: KL(base || steered) in nats per token, over the sample.  random_kl: of each random direction of the same norm.
    promoted, suppressed: tokens whose logits rise and fall most, by how much, in the mean over positions.
    """

    strength: float
    kl: float
    random_kl: list[float]
    promoted: Tokens
    suppressed: Tokens


@dataclass(frozen=True)
class Effect:
    """What a neuron, or several edited together, does.

    peaks, frequencies: of each on the text.  ablated_kl, ablated_loss: KL and change of the loss when it is set to 0,
    in nats per predicted token, on the contexts where it is highest; None where it never fired.  There is no loss of
    contexts of one token, nor of a model that is not causal, since it reads the tokens that it would predict.
    ablated_kl_where_on: the KL at the tokens where it was active alone.  direct: None where the site has no direct
    effect.
    """

    neurons: list[int]
    peaks: list[float]
    frequencies: list[float]
    activation: str
    ablated_kl: float | None
    ablated_kl_where_on: float | None
    ablated_loss: float | None
    steered: list[Steered]
    direct: dict[str, Tokens] | None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        record: dict[str, Any] = for_json(asdict(self))
        return record

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """In lines."""
        each = zip(self.neurons, self.peaks, self.frequencies, strict=True)
        facts = (f"{m} (peak {p:.3g}, active {f:.2%})" for m, p, f in each)
        lines = [f"neuron {', '.join(facts)}; the activation is {self.activation}"]
        if self.ablated_kl is not None:
            loss = "" if self.ablated_loss is None else f", loss {self.ablated_loss:+.4g}"
            kl = f"KL {self.ablated_kl:.4g}, where it is active {self.ablated_kl_where_on:.4g}"
            lines.append(f"  ablated: {kl}{loss} nats per token")
        for part in self.steered:
            beside = f"{np.mean(part.random_kl):.4g}" if part.random_kl else "none"
            lines.append(f"  by {part.strength:+g} peaks: KL {part.kl:.4g}, random directions {beside}")
            lines.append(f"    promoted   {_words(part.promoted)}")
            lines.append(f"    suppressed {_words(part.suppressed)}")
        if self.direct is not None:
            lines.append(f"  directly promoted   {_words(self.direct['promoted'])}")
            lines.append(f"  directly suppressed {_words(self.direct['suppressed'])}")
        return "\n".join(lines)


def _words(tokens: Tokens) -> str:
    return "  ".join(f"{text!r} {value:+.2f}" for text, value in tokens)


@dataclass(frozen=True, eq=False)
class Survey:
    """How neurons fire on a text.

    contexts: all that were read.  highest: (contexts, M) the highest code in each.  frequency: (M,) share of the rows
    that count.  rows: how many.  attribution: (M,) None, or the first-order estimate of how much the loss rises, in
    nats per token, if each neuron is ablated.
    """

    contexts: list[Context]
    highest: Array
    frequency: Float64
    rows: int
    attribution: Float64 | None

    @property
    def peak(self) -> Array:
        """(M,) the highest code of each neuron."""
        peak: Array = self.highest.max(axis=0) + np.float32(0)  # of one that never fires 0, rather than -0
        return peak


def survey(place: Place, text: TextOptions, tokens: int = TOKENS, batch: int = 8, rank: bool = False) -> Survey:
    """Run the text through the model up to the site, and its rows through the network.

    rank: whether to estimate what ablating each neuron would do, by one backward pass.  InputError for empty text.
    """
    import torch

    tokens, batch = whole("--tokens", tokens, 1), whole("--batch", batch, 1)
    M, highest, read = place.network.M, [], []
    on, rows, attribution, predicted = np.zeros(M), 0, np.zeros(M), 0
    source = contexts(text, place.model.tokenizer, place.context, False, Fingerprint())
    for part in batches(source, batch, tokens):
        if rank:
            activation, gradient, count = _gradient(place, part)
            predicted += count
        else:
            activation, gradient = run(place.model, [place.site], place.of, part)[place.site], None
        kept, _ = place.keeping(*padded(part, place.model.pad), norms(activation))
        for c in range(len(part)):
            chosen = torch.from_numpy(kept[c]).to(activation.device)
            x = activation[c, chosen].float()
            if not len(x):
                highest.append(np.zeros(M, np.float32))
                continue
            prepared, scale, _ = place.coder.prepare(x)
            codes = place.coder.encode(prepared)
            highest.append(np.asarray(codes.max(dim=0).values.float().cpu()))
            on += np.asarray((codes > 0).sum(dim=0).cpu())
            rows += len(x)
            if gradient is not None:
                along = (gradient[c, chosen].float() @ place.coder.W_dec.T) * scale
                attribution -= np.asarray((codes * along).double().sum(dim=0).cpu())
        read += part
    where = ", ".join(str(path) for path in text.paths)
    if not rows:
        raise InputError(f"{where}: the text holds no token that counts")
    if rank and not predicted:
        raise InputError(f"{where}: no context holds a token to predict, by whose loss neurons are ranked")
    estimate = attribution / predicted if rank else None
    return Survey(read, np.stack(highest), on / rows, rows, estimate)


def _gradient(place: Place, part: list[Context]) -> tuple[Any, Any, int]:
    """Activation and gradient of the summed loss at the site, and how many tokens are predicted."""
    import torch

    model, held = place.model, []
    if model.kind != "causal":
        raise InputError(f"{model.name}: neurons are ranked by the loss of a causal model, and this is none")
    ids, mask = (torch.from_numpy(a).to(model.device) for a in padded(part, model.pad))

    def edit(x: Any) -> Any:
        held.append(x.detach().clone().requires_grad_())
        return held[-1]

    from refgba.llm import sites

    with torch.enable_grad(), sites.editing(model.module, place.site, place.of, edit):
        logits = model.forward(ids, mask).logits[:, :-1].float()
        there = mask[:, 1:].bool()
        loss = torch.nn.functional.cross_entropy(logits[there], ids[:, 1:][there], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, held[0])
    return held[0].detach(), gradient, int(there.sum())


def random_direction(added: Any, seed: int) -> Any:
    """A random direction of the same norm as `added`, a tensor (d,)."""
    import torch

    drawn = generator(seed, "random").standard_normal(len(added))
    drawn *= float(added.norm()) / np.linalg.norm(drawn)
    return torch.from_numpy(drawn.astype(np.float32)).to(added.device)


class Effects:
    """Measures effects of neurons on a survey's text."""

    def __init__(
        self, place: Place, surveyed: Survey, sample: int = SAMPLE, replaced: bool = False, random: int = RANDOM,
        seed: int = 0, tick: Callable[[int], object] = id,
    ) -> None:  # fmt: skip
        """sample: contexts that are run.  replaced: whether the activation is replaced by the changed reconstruction;
        else it is edited, with the error kept.  random: directions beside each strength, drawn by the seed.  `tick` is
        called with the number of each neuron that is done.
        """
        place.model.head()
        self.place, self.surveyed, self.replaced, self.tick = place, surveyed, replaced, tick
        self.sample = whole("--sample", sample, 1)
        self.random, self.seed = whole("--random", random), whole("--seed", seed)
        self.unembedding = Unembedding(place.model, place.site, place.of, place.network.d)
        self._base: dict[tuple[int, ...], tuple[Any, Any]] = {}

    @property
    def activation(self) -> str:
        """How the activation is changed, in words."""
        return "replaced by the changed reconstruction" if self.replaced else "edited, with the error kept"

    def of(self, neurons: int | Sequence[int], strengths: float | Sequence[float] = STRENGTHS) -> Effect:
        """The effect of a neuron, or of several edited together: each by its own peak times a strength.

        InputError for neurons that are not there or named twice, and for strengths that are not finite, or so large
        that the model cannot compute.
        """
        import torch

        neurons = self.place.network.neurons(neurons)
        strengths = [finite("--strength", strength) for strength in listed(strengths)]
        peaks = self.surveyed.peak[neurons]
        chosen = torch.tensor(neurons, device=self.place.model.device)
        sizes = torch.from_numpy(np.asarray(peaks, np.float32)).to(self.place.model.device)
        first = tuple(range(min(self.sample, len(self.surveyed.contexts))))
        steered = []
        for strength in strengths if peaks.any() else ():
            added = (sizes * strength) @ self.place.coder.W_dec[chosen]  # (d,), of a row at the network's scale
            kl, change, _, _ = self._against(first, self._shift(chosen, sizes * strength))
            beside = [
                self._against(first, self._along(random_direction(added, self.seed + k)))[0] for k in range(self.random)
            ]
            high, low = self._extremes(change)
            steered.append(Steered(strength, kl, beside, high, low))
        self.tick(len(neurons))
        direct = None
        if self.unembedding.why_not is None:
            row = (np.asarray(peaks)[:, None] * self.place.network.dictionary.W_dec[neurons]).sum(axis=0)
            row = row if row.any() else self.place.network.dictionary.W_dec[neurons].sum(axis=0)
            high, low = self._extremes(self.unembedding.effects(row / np.linalg.norm(row)))
            direct = {"promoted": high, "suppressed": low}
        frequencies = [float(f) for f in self.surveyed.frequency[neurons]]
        return Effect(
            neurons, [float(p) for p in peaks], frequencies, self.activation, *self._ablated(neurons, chosen), steered,
            direct,
        )  # fmt: skip

    def _ablated(self, neurons: list[int], chosen: Any) -> tuple[float | None, float | None, float | None]:
        """KL, KL where active, and change of the loss, on the contexts where the neurons are highest."""
        highest = self.surveyed.highest[:, neurons].max(axis=1)
        order = np.argsort(-highest, kind="stable")[: self.sample]
        top = tuple(int(c) for c in order if highest[c] > 0)
        if not top:
            return None, None, None

        def silence(codes: Any) -> Any:
            changed = codes.clone()
            changed[:, chosen] = 0
            return changed

        kl, _, where_on, loss = self._against(top, self._changed(silence), chosen)
        return kl, where_on, loss if self.place.model.kind == "causal" else None

    def _changed(self, change: Callable[[Any], Any]) -> Rows:
        return lambda rows: self.place.coder.edited(rows.float(), change, self.replaced)

    def _shift(self, chosen: Any, by: Any) -> Rows:
        """Adds to the codes of neurons."""

        def shift(codes: Any) -> Any:
            changed = codes.clone()
            changed[:, chosen] += by
            return changed

        return self._changed(shift)

    def _along(self, added: Any) -> Rows:
        """Adds a direction (d,), at the scale of each row, to what `_changed` begins with."""

        def move(rows: Any) -> Any:
            x = rows.float()
            _, scale, _ = self.place.coder.prepare(x)
            base = self.place.coder.reconstruct(x) if self.replaced else x
            return base + added * scale

        return move

    def _logits(self, chosen: tuple[int, ...], change: Rows | None) -> tuple[Any, Any]:
        """Logits (tokens, vocabulary) of contexts, and labels of the next tokens, -100 where there is none."""
        import torch

        model = self.place.model
        part = [self.surveyed.contexts[c] for c in chosen]
        ids, mask = (torch.from_numpy(a).to(model.device) for a in padded(part, model.pad))
        manager = (
            splicing(model, self.place.site, self.place.of, ids, mask, change, self.place.keeping)
            if change is not None
            else nullcontext()
        )
        with torch.inference_mode(), manager:
            logits = model.forward(ids, mask).logits
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = torch.where(mask[:, 1:].bool(), ids[:, 1:], -100)
        return logits[mask.bool()], labels[mask.bool()]

    def _groups(self, chosen: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The contexts, as many at a time as logits may be."""
        vocabulary = int(self.place.model.head().weight.shape[0])
        size = max(1, LOGITS // (vocabulary * self.place.context))
        return [chosen[k : k + size] for k in range(0, len(chosen), size)]

    def _base_of(self, group: tuple[int, ...], keep: bool) -> tuple[Any, Any]:
        """Logits of the unchanged model, kept if all contexts' are few enough."""
        if group in self._base:
            return self._base[group]
        base = self._logits(group, self.place.coder.reconstruct if self.replaced else None)
        if keep:
            while len(self._base) > 1:  # that of the first contexts, which all neurons share, stays
                self._base.popitem()
            self._base[group] = base
        return base

    def _against(
        self, chosen: tuple[int, ...], change: Rows, where: Any = None
    ) -> tuple[float, Any, float, float | None]:
        """Mean KL from the base, mean change of the logits, mean KL at tokens where a neuron is on, change of the loss.

        where: the neurons, None for none: then the last two are 0.  Where no token is predicted, there is no loss.
        """
        import torch

        groups, kls, losses, predicted = self._groups(chosen), [], 0.0, 0
        moved: Any = 0
        for group in groups:
            base, labels = self._base_of(group, keep=len(groups) == 1)
            logits, _ = self._logits(group, change)
            predicted += int((labels >= 0).sum())
            for start in range(0, len(base), 128):
                part = slice(start, start + 128)
                x, y, right = base[part].float(), logits[part].float(), labels[part]
                p, q = x.log_softmax(1), y.log_softmax(1)
                kls.append((p.exp() * (p - q)).sum(1).clamp(min=0))
                moved = moved + (y - x).sum(0)
                for sign, scores in ((1, q), (-1, p)):
                    loss = torch.nn.functional.nll_loss(scores, right, reduction="sum", ignore_index=-100)
                    losses += sign * float(loss)
        kl = torch.cat(kls).double()
        change_of_logits = moved / len(kl)
        change_of_logits = change_of_logits - change_of_logits.mean()
        if where is None:
            return float(kl.mean()), change_of_logits, 0.0, 0.0
        on = torch.cat([self._on(group, where) for group in groups])
        return (
            float(kl.mean()),
            change_of_logits,
            float(kl[on].mean()) if bool(on.any()) else 0.0,
            losses / predicted if predicted else None,
        )

    def _on(self, chosen: tuple[int, ...], neurons: Any) -> Any:
        """At which tokens of the contexts any of the neurons is active."""
        import torch

        part = [self.surveyed.contexts[c] for c in chosen]
        ids, mask = padded(part, self.place.model.pad)
        activation = run(self.place.model, [self.place.site], self.place.of, part)[self.place.site]
        kept = torch.from_numpy(self.place.keeping(ids, mask, norms(activation))[0]).to(activation.device)
        there = torch.from_numpy(mask.astype(bool)).to(activation.device)
        active = torch.zeros_like(there)
        active[kept] = (self.place.coder.codes(activation[kept].float())[:, neurons] > 0).any(dim=1)
        return active[there]

    def _extremes(self, logits: Any) -> tuple[Tokens, Tokens]:
        """The tokens with the highest and the lowest numbers, (vocabulary,)."""
        tokenizer = self.place.model.tokenizer.tokenizer
        count = min(TOP, len(tokenizer), len(logits))
        known = logits[: len(tokenizer)]  # an unembedding may be padded beyond the vocabulary

        def shown(largest: bool) -> Tokens:
            ids = known.topk(count, largest=largest).indices.tolist()
            return [(tokenizer.decode([id]), float(known[id])) for id in ids]

        return shown(True), shown(False)
