"""Mistakes made in a port, and what the oracle is to say of each.

A `Mutant` replaces text of the source of `second_port`, each piece of which occurs there exactly once.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import NamedTuple

import second_port


class Mutant(NamedTuple):
    """A mistake: pieces of the port's source and what they become, and what the oracle is to say of it.

    quantity: the first that deviates.  cause: what is said of it, None where the oracle does not know the mistake.
    note: then, what it says of the numbers.  of: the trace on which it shows.  starts: where steps start for that.
    """

    name: str
    replace: dict[str, str]
    quantity: str
    cause: str | None = None
    of: str = "default"
    starts: str = "trace"
    note: str | None = None


def compiled(mutant, port=second_port):
    """A port, which is a module, with a mistake in its source."""
    source = inspect.getsource(port)
    for right, wrong in mutant.replace.items():
        assert source.count(right) == 1, f"{source.count(right)} times in the port: {right}"
        source = source.replace(right, wrong)
    broken = ModuleType("broken_port")
    exec(compile(source, mutant.name, "exec"), vars(broken))
    return broken


MUTANTS = [
    # lines 1 and 2
    Mutant(
        "rows not normalised",
        {"x = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))": "x = rows"},
        "x", "rows are not scaled to unit norm",
    ),
    Mutant(
        "epsilon beside the rows' norm",
        {"x = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))":
         "x = rows / (np.sqrt((rows**2).sum(axis=1, keepdims=True)) + 1e-8)"},
        "x", "1e-08 is added to the norm of the rows",
    ),
    Mutant("b_pre not subtracted", {"xc = x - b_pre": "xc = x"}, "y", "b_pre is not subtracted from the input"),
    Mutant(
        "b subtracted", {"y = z + b\n": "y = z - b\n"}, "y", "b is subtracted from the pre-activations, not added"
    ),
    Mutant(
        "gate without the bias", {"on = y > 0\n": "on = z > 0\n"}, "on", "gates are 1{z > 0}, without the bias"
    ),
    Mutant(
        "y passed instead of z", {'passed = z if c.activation == "jumprelu" else y': "passed = y"},
        "s", "the other magnitude passes open gates: JumpReLU passes z and ReLU y",
    ),
    Mutant(
        "z passed instead of y", {'passed = z if c.activation == "jumprelu" else y': "passed = z"},
        "s", "the other magnitude passes open gates: JumpReLU passes z and ReLU y", of="relu",
    ),
    Mutant("codes not gated", {"s = np.where(on, passed, 0)": "s = passed"}, "s", "codes are not gated"),
    Mutant(
        "a missing from f", {'np.einsum("lm,m,md->ld", s, a, V)': 'np.einsum("lm,md->ld", s, V)'},
        "f", "a is missing from the reconstruction",
    ),
    Mutant(
        "b_pre not added back", {'np.einsum("lm,m,md->ld", s, a, V) + b_pre': 'np.einsum("lm,m,md->ld", s, a, V)'},
        "f", "b_pre is not added to the reconstruction",
    ),
    Mutant(
        "W reconstructs where untied", {'np.einsum("lm,m,md->ld", s, a, V)': 'np.einsum("lm,m,md->ld", s, a, W)'},
        "f", "W reconstructs, not the decoder W_dec",
    ),
    # line 3: the loss and the gradients
    Mutant("loss without 1/2", {"loss = 0.5 * (": "loss = ("}, "loss", "the loss lacks its 1/2"),
    Mutant(
        "loss summed over the batch", {"((f - x) ** 2).sum() / L": "((f - x) ** 2).sum()"},
        "loss", "the loss is summed over the batch, not its mean",
    ),
    Mutant(
        "loss over L - 1", {"((f - x) ** 2).sum() / L": "((f - x) ** 2).sum() / (L - 1)"},
        "loss", "the loss divides by L - 1, not L",
    ),
    Mutant(
        "all gradients of a loss without 1/2", {"    r = f - x\n": "    r = 2 * (f - x)\n"},
        "dW.detector", "the loss behind the gradients lacks its 1/2",
    ),
    Mutant(
        "gradient through closed gates", {"into = a * vr * on": "into = a * vr"},
        "dW.detector", "the gradient passes closed gates",
    ),
    Mutant(
        "gradient through the jump",
        {"into = a * vr * on": "into = a * vr * (on + z * (abs(y) < 0.05) / 0.1)",
         "db = 0 * b": "db = (into - a * vr * on).sum(axis=0) / L"},
        "dW.detector", "a gradient goes through the jump (a rectangle of width 0.1 as its derivative)",
    ),
    Mutant(
        "x not centred in the gradient", {'detector = np.einsum("lm,ld->md", into, xc) / L':
                                          'detector = np.einsum("lm,ld->md", into, x) / L'},
        "dW.detector", "b_pre is not subtracted from x in the gradient of W",
    ),
    Mutant(
        "a missing from the detector's gradient",
        {'detector = np.einsum("lm,ld->md", into, xc) / L': 'detector = np.einsum("lm,ld->md", vr * on, xc) / L'},
        "dW.detector", "a is missing from the gradient of the detector",
    ),
    Mutant(
        "a missing from the reconstructor's gradient",
        {'reconstructor = np.einsum("lm,m,ld->md", s, a, r) / L': 'reconstructor = np.einsum("lm,ld->md", s, r) / L'},
        "dW.reconstructor", "a is missing from the gradient of the reconstructor",
    ),
    Mutant(
        "reconstructor's gradient summed over the batch",
        {'reconstructor = np.einsum("lm,m,ld->md", s, a, r) / L': 'reconstructor = np.einsum("lm,m,ld->md", s, a, r)'},
        "dW.reconstructor", "the loss behind dW.reconstructor is summed over the batch, not its mean",
    ),
    Mutant(
        "reconstructor path missing", {"detector if own_decoder else detector + reconstructor": "detector"},
        "dW", "the reconstructor's path is missing from the gradient of the tied W", of="tied",
    ),
    Mutant(
        "detector path missing", {"detector if own_decoder else detector + reconstructor": "reconstructor"},
        "dW", "the detector's path is missing from the gradient of the tied W", of="tied",
    ),
    Mutant(
        "both paths where untied",
        {"detector if own_decoder else detector + reconstructor": "detector + reconstructor"},
        "dW", "both paths go to the detector although the decoder is its own",
    ),
    Mutant(
        "gradient projected on the sphere",
        {"detector if own_decoder else detector + reconstructor":
         "detector + reconstructor - ((detector + reconstructor) * W).sum(axis=1, keepdims=True) * W"},
        "dW", "the gradient of W is projected on the tangent of the sphere", of="tied",
    ),
    Mutant("a's gradient times a", {"(s * vr).sum": "(s * a * vr).sum"}, "da", "the gradient of a multiplies by a"),
    Mutant("b learns by the gradient", {"db = 0 * b": "db = into.sum(axis=0) / L"}, "db",
           "b gets a gradient, as a bias of ReLU would"),
    Mutant(
        "b_pre only as the decoder's", {'(r - np.einsum("lm,md->ld", into, W)).sum': "r.sum"},
        "db_pre", "the gradient of b_pre has only the decoder's path",
    ),
    Mutant(
        "b_pre through the decoder", {'np.einsum("lm,md->ld", into, W)': 'np.einsum("lm,md->ld", into, V)'},
        "db_pre", "the encoder's path to b_pre goes through the decoder's rows",
    ),
    # line 3: AdamW
    Mutant(
        "updates counted by the run", {"n = n + 1": "n = t"},
        "updates.a", "the updates of every parameter are counted by the steps of the run",
    ),
    Mutant(
        "betas swapped",
        {"m = c.beta1 * m + (1 - c.beta1) * g[name]\n": "m = c.beta2 * m + (1 - c.beta2) * g[name]\n",
         "v = c.beta2 * v + (1 - c.beta2) * g[name] ** 2\n": "v = c.beta1 * v + (1 - c.beta1) * g[name] ** 2\n"},
        "m.W", "beta1 and beta2 are swapped",
    ),
    Mutant(
        "weight decay coupled",
        {"            n = n + 1\n": "            n = n + 1\n            grad = g[name] + c.weight_decay * theta\n",
         "(1 - c.beta1) * g[name]\n": "(1 - c.beta1) * grad\n",
         "(1 - c.beta2) * g[name] ** 2": "(1 - c.beta2) * grad ** 2",
         " + c.weight_decay * theta)": ")"},
        "m.W", "weight decay is coupled: it goes into the gradient and its moments",
    ),
    Mutant(
        "second moment of |g|", {"* g[name] ** 2": "* abs(g[name])"},
        "v.W", "v averages the gradient's absolute value, not its square",
    ),
    Mutant(
        "epsilon inside the root", {"(np.sqrt(v_hat) + c.adam_eps)": "np.sqrt(v_hat + c.adam_eps)"},
        "moved.W", "epsilon is inside the root",
    ),
    Mutant(
        "bias correction missing",
        {"m_hat = m / (1 - c.beta1**n)": "m_hat = m", "v_hat = v / (1 - c.beta2**n)": "v_hat = v"},
        "moved.W", "the bias correction of both moments is missing",
    ),
    Mutant(
        "bias correction of v missing", {"v_hat = v / (1 - c.beta2**n)": "v_hat = v"},
        "moved.W", "the bias correction of v is missing",
    ),
    Mutant(
        "epsilon before the correction",
        {"(np.sqrt(v_hat) + c.adam_eps)": "((np.sqrt(v) + c.adam_eps) / np.sqrt(1 - c.beta2**n))"},
        "moved.W", "epsilon is added before v is corrected for its bias",
    ),
    Mutant("no weight decay", {" + c.weight_decay * theta)": ")"}, "moved.W", "weight decay is missing"),
    Mutant("a and b_pre trained while forming", {'("W",) if t <= formed else MOVED': "MOVED"},
           "updates.a", "a and b_pre are trained while features form"),
    Mutant("learning rate constant", {"if c.lr_decay > 0:": "if False:"}, "lr", "the learning rate does not decay"),
    # lines 4 and 5
    Mutant(
        "not renormalised", {"new[name] = theta / np.sqrt((theta**2).sum(axis=1, keepdims=True))": "pass"},
        "W", "W is not renormalised after the step",
    ),
    Mutant(
        "columns renormalised",
        {"theta / np.sqrt((theta**2).sum(axis=1, keepdims=True))": "theta / np.sqrt((theta**2).sum(axis=0))"},
        "W", "the columns of W are renormalised, not its rows",
    ),
    Mutant(
        "held neurons turn", {"new[name] = np.where(held[:, None], was[name], new[name])": "pass"},
        "W", "held neurons turn",
    ),
    Mutant(
        "the decoders of held neurons turn", {'in {"W", "W_dec"} & set(new)': 'in {"W"}'},
        "W_dec", "the decoders of held neurons turn",
    ),
    Mutant(
        "every neuron agrees with itself", {" - 2 * np.eye(M)": ""},
        "held", "every neuron agrees with itself, so all are held",
    ),
    Mutant(
        "the decoder's moments from zero", {'for n in ("", "m.", "v.", "updates.")}':
        'for n in ("", "updates.")} | {n + "W_dec": 0 * was[n + "W"] for n in ("m.", "v.")}'},
        "m.W_dec", "the moments of the new decoder begin at 0, not at W's",
    ),
    Mutant(
        "peaks not clipped at 0",
        {'peaks = np.maximum(was["left.peaks"], y.max(axis=0))':
         'peaks = np.maximum(was["left.peaks"] if was["left.seen"] else -np.inf, y.max(axis=0))',
         "    peaks = np.maximum(peaks, 0)\n": ""},
        "peaks", "the peaks are not clipped at 0",
    ),
    Mutant("peaks of z", {"y.max(axis=0)": "z.max(axis=0)"}, "peaks", "the peaks are of z, not y"),
    Mutant("counts without the bias", {"(y > 0).sum(axis=0)": "(z > 0).sum(axis=0)"},
           "counts", "the counts are of z > 0, not y > 0"),
    Mutant(
        "buffers after the optimiser",
        {"    seen = was": '    y = np.einsum("ld,md->lm", x - new["b_pre"], new["W"]) + b\n    seen = was',
         '"y": y, ': '"y": z + was["b"], '},
        "counts", "the buffers take y of the parameters after the step",
    ),
    Mutant(
        "buffers not emptied", {"        left = (0, np.zeros(M, int), np.zeros(M))\n": ""},
        "left.seen", "the buffers are not emptied after adapting", starts="own",
    ),
    Mutant(
        "peaks not emptied", {"left = (0, np.zeros(M, int), np.zeros(M))": "left = (0, np.zeros(M, int), peaks)"},
        "left.peaks", "peaks is not emptied after adapting",
    ),
    # Algorithm 2
    Mutant(
        "targets with K, not K - 1", {"(k / max(K - 1, 1))": "(k / K)"},
        "target", "targets fall with (k - 1) / K, not (k - 1) / (K - 1)",
    ),
    Mutant(
        "targets linear", {"c.htf * (c.ltf / c.htf) ** (k / max(K - 1, 1))": "c.htf + (c.ltf - c.htf) * k / (K - 1)"},
        "target", "targets are linear in k, not geometric",
    ),
    Mutant(
        "groups interleaved", {"[m * K // M for m in range(M)]": "[m % K for m in range(M)]"},
        "group", "groups are interleaved, m mod K, not consecutive",
    ),
    Mutant(
        "frequencies by the batch", {"p = counts / seen": "p = counts / L"},
        "p", "frequencies divide by the rows of a batch, not of the buffer",
    ),
    Mutant(
        "T_k by the group's size", {"max(len(positive), 1)": "(group == k).sum()"},
        "T", "T_k divides by the size of the group, not by its positive peaks",
    ),
    Mutant(
        "lowered at the target", {"p[m] > target[k]": "p[m] >= target[k]"},
        "lowered", "a neuron is lowered at p_m >= p_k, not above", of="paper",
    ),
    Mutant(
        "floor ignored", {"max(c.eps, c.floor * target[k])": "c.eps"},
        "raised", "a neuron is raised only below eps, not below floor of its target",
    ),
    Mutant(
        "gammas swapped",
        {"b[m] - c.gamma_minus * peaks[m]": "b[m] - c.gamma_plus * peaks[m]",
         "b[m] + c.gamma_plus * T[k]": "b[m] + c.gamma_minus * T[k]"},
        "b", "gamma_minus and gamma_plus are swapped",
    ),
    Mutant(
        "no clip at -1", {"max(b[m] - c.gamma_minus * peaks[m], -1)": "b[m] - c.gamma_minus * peaks[m]"},
        "b", "the bias is not clipped at -1",
    ),
    Mutant(
        "no clip at 0", {"min(b[m] + c.gamma_plus * T[k], 0)": "b[m] + c.gamma_plus * T[k]"},
        "b", "the bias is not clipped at 0",
    ),
    Mutant(
        "raised by the own peak", {"c.gamma_plus * T[k]": "c.gamma_plus * peaks[m]"},
        "b", "the bias is raised by the neuron's peak, not by T_k",
    ),
    Mutant(
        "adapted a step late", {"if t % c.adapt_every == 0:": "if t % c.adapt_every == 1 and t > 1:"},
        "b", "biases are not adapted at this step, which adapt_every divides",
    ),
    Mutant(
        "adapted a step early", {"if t % c.adapt_every == 0:": "if (t + 1) % c.adapt_every == 0:"},
        "p", "biases are adapted at this step, but only after steps that adapt_every = 3 divides",
    ),
    Mutant(
        "stale bias in the forward pass",
        {"    kept, dump = cast(trace.before(trace.first)), {}\n":
         "    kept, dump, old = cast(trace.before(trace.first)), {}, 0\n",
         "        got = step(": '        kept["stale"] = old if t > 1 else kept["b"]\n        got = step(',
         "        kept = {name: got[name]": '        old = kept["b"]\n        kept = {name: got[name]',
         "y = z + b\n": 'y = z + was["stale"]\n'},
        "y", "b is stale: that of before the last adaptation",
    ),
    Mutant(
        "biases before the step",
        {"    W, a, b, b_pre = was": """    if t % c.adapt_every == 0:
        was = was | {"b": early(c, was)}
    W, a, b, b_pre = was""",
         "def step(": '''def early(c, was):
    p, r = was["left.counts"] / was["left.seen"], was["left.peaks"]
    k = np.arange(c.width) * c.groups // c.width
    p_k = (c.htf * (c.ltf / c.htf) ** (np.arange(c.groups) / (c.groups - 1)))[k]
    T = np.array([r[(k == j) & (r > 0)].mean() if (r[k == j] > 0).any() else 0 for j in range(c.groups)])[k]
    up = np.where(p < np.maximum(c.eps, c.floor * p_k), np.minimum(was["b"] + c.gamma_plus * T, 0), was["b"])
    return np.where(p > p_k, np.maximum(was["b"] - c.gamma_minus * r, -1), up)


def step('''},
        "y", "biases are adapted before the step, not after the optimiser",
    ),
    # not in the oracle's list
    Mutant("tanh for a gate", {"on = y > 0\n": "on = np.tanh(y) > 0.1\n"}, "on"),
    Mutant("loss of the cosine", {"loss = 0.5 * ((f - x) ** 2).sum() / L": "loss = 1 - (f * x).sum() / L"}, "loss"),
    Mutant("a's gradient of the squares", {"(s * vr).sum": "(s**2 * vr).sum"}, "da"),
]  # fmt: skip

# Mistakes that misled or left alone those who wrote ports, and more of their kind.
MET = [
    Mutant(
        "one count for all", {'int(was["updates." + name])\n        if name in trained:\n            n = n + 1\n':
                              'int(was["updates.W"]) + 1\n        if name in trained:\n'},
        "updates.a", "one count of updates is shared by all parameters, trained or not",
    ),
    Mutant(
        "hold a step late",
        {"        held = np.max(cosine, axis=1) >= c.hold if c.hold < 1 else held\n": "",
         "    begin, end =": """    if t == formed + 2:
        held = np.max(np.einsum("md,nd->mn", was["W"], was["W"]) - 2 * np.eye(M), axis=1) >= c.hold
    begin, end ="""},
        "held", "agreement is looked for a step late",
    ),
    Mutant(
        "untied a step late",
        {"""        if c.untied:
            was = was | {n + "W_dec": was[n + "W"] for n in ("", "m.", "v.", "updates.")}
""": "",
         "    begin, end =": """    if t == formed + 2 and "W_dec" not in was:
        was = was | {n + "W_dec": was[n + "W"] for n in ("", "m.", "v.", "updates.")}
    begin, end ="""},
        "dW", "the decoder of its own begins a step late",
    ),
    Mutant("floor as a frequency", {"max(c.eps, c.floor * target[k])": "max(c.eps, c.floor)"},
           "raised", "floor is a frequency, not a share of the target", of="ties"),
    Mutant(
        "optimiser anew", {"        if c.untied:\n":
                           """        was = was | {n + "W": 0 * was[n + "W"] for n in ("m.", "v.", "updates.")}
        if c.untied:\n"""},
        "updates.W", "the optimiser begins anew when fitting begins, moments and counts", of="ties",
    ),
    Mutant("relu(y) - b", {"s = np.where(on, passed, 0)": "s = np.maximum(y, 0) - b"},
           "s", "codes are relu(y) - b, which is -b where a gate is closed"),
    Mutant("form T truncated", {"formed = round(c.form * c.steps)": "formed = int(c.form * c.steps)"},
           "lr", "forming takes int(form T) steps, not round(form T)"),
    Mutant("peaks of the last batch", {'np.maximum(was["left.peaks"], y.max(axis=0))': "y.max(axis=0)"},
           "peaks", "the peaks are those of the last batch"),
    Mutant("decay of matrices", {" + c.weight_decay * theta)": " + c.weight_decay * theta * (theta.ndim > 1))"},
           "a", "weight decay acts on matrices only, not on a and b_pre"),
    Mutant(
        "gradients of held rows masked", {'    g["a"] = ': """    g = {n: np.where(held[:, None], 0, g[n]) for n in g}
    g["a"] = """},
        "dW", "the gradients of held neurons are masked, which is harmless where their rows are restored",
    ),
    Mutant(
        "NAdam", {"m_hat = m / (1 - c.beta1**n)":
                  "m_hat = c.beta1 * m / (1 - c.beta1 ** (n + 1)) + (1 - c.beta1) * g[name] / (1 - c.beta1**n)"},
        "moved.W", "the step is NAdam's",
    ),
    Mutant(
        "hold within a group",
        {"        held = np.max(cosine": """        of = np.arange(M) * K // M
        cosine = np.where(of[:, None] == of, cosine, -1)
        held = np.max(cosine"""},
        "held", "agreement is looked for within each group only",
    ),
    Mutant(
        "moments before training",
        {"        if name in trained:\n": "        if True:\n",
         "            theta = theta - lr * (": "            theta = theta - (name in trained) * lr * ("},
        "updates.a", "a and b_pre collect moments while features form, and only their moves are masked",
    ),
    Mutant("lowered at the target", {"p[m] > target[k]": "p[m] >= target[k]"},
           "lowered", "a neuron is lowered at p_m >= p_k, not above", of="ties"),
    Mutant("raised at the floor", {"p[m] < max(c.eps": "p[m] <= max(c.eps"},
           "raised", "a neuron is raised at p_m <= the least frequency, not below", of="ties"),
    Mutant("held above hold", {"axis=1) >= c.hold": "axis=1) > c.hold"},
           "held", "neurons are held above the cosine `hold`, not from it on", of="ties"),
    Mutant(
        "gradients clipped", {"    db = 0 * b\n": """    g = {n: 0.3 * g[n] for n in g}
    db = 0 * b\n"""},
        "dW", note="all entries are 0.3 times what they should be",
    ),
    Mutant(
        "held rows change sides",
        {"new[name] = np.where(held[:, None], was[name], new[name])":
         "new[name] = np.where(held[:, None], was[name][:, ::-1], new[name])"},
        "W", note="the wrong entries are those of all neurons that are held",
    ),
]  # fmt: skip
