"""Mistakes in a port to JAX: edits of the source of `jax_port`, and what the oracle is to say of each.

Those that someone who ports GBA would make: what optax and jax.nn do by themselves, what a mask or a cast leaves out,
and readings of the page that are near the right one.
"""

from __future__ import annotations

from mutations import Mutant

MUTANTS = [
    Mutant(
        "relu(y) - b", {"s = jnp.where(on, passed, 0)": "s = jax.nn.relu(y) - theta['b']"},
        "s", "codes are relu(y) - b, which is -b where a gate is closed",
    ),
    Mutant(
        "F = int(form T)", {"round(config.form * config.steps)": "int(config.form * config.steps)"},
        "lr", "forming takes int(form T) steps, not round(form T)",
    ),
    Mutant(
        "peaks of the last batch", {'jnp.maximum(state["left.peaks"], y.max(axis=0).astype(float))':
         "jnp.maximum(y.max(axis=0), 0).astype(float)"},
        "peaks", "the peaks are those of the last batch",
    ),
    Mutant(
        "masks on updates only", {"n = int(n) + 1\n            value, m, v = adamw(config, lr, "
         "value, grads[name], m, v, n)\n":
         "pass\n        n = int(n) + 1\n        moved, m, v = adamw(config, lr, value, grads[name], m, v, "
         "n)\n        value = moved if name in trained else value\n"},
        "updates.a", "a and b_pre collect moments while features form, and only their moves are masked",
    ),
    Mutant(
        "decay where ndim > 1", {"(1 - lr * config.weight_decay) * theta - lr":
         "(1 - lr * config.weight_decay * (theta.ndim > 1)) * theta - lr"},
        "a", "weight decay acts on matrices only, not on a and b_pre",
    ),
    Mutant(
        "held rows' gradients masked", {"    lr = learning_rate(config, t)\n":
         '    grads = {n: jnp.where(held[:, None], 0, g) if "W" in n else g for n, g in grads.items()}\n'
         '    got |= {f"d{n}": grads[n] for n in ("W", "W_dec") if n in grads}\n'
         "    lr = learning_rate(config, t)\n"},
        "dW", "the gradients of held neurons are masked, which is harmless where their rows are restored",
    ),
    Mutant(
        "held rows' gradients masked, after they are dumped", {"    lr = learning_rate(config, t)\n":
         '    grads = {n: jnp.where(held[:, None], 0, g) if "W" in n else g for n, g in grads.items()}\n'
         "    lr = learning_rate(config, t)\n"},
        "m.W", "the gradients of held neurons are masked before AdamW, which is harmless where "
        "their rows are restored",
    ),
    Mutant(
        "moments and count fresh", {"    if t == F + 1 and t > 1:\n"
         '        state = state | {"held": agreeing(config, '
         'state["W"])}\n':
         '    if t == F + 1 and t > 1:\n        state = state | {"held": agreeing(config, state["W"])}\n'
         '        state |= {f"{p}W": 0 * state[f"{p}W"] for p in ("m.", "v.", "updates.")}\n'},
        "updates.W", "the optimiser begins anew when fitting begins, moments and counts",
    ),
    Mutant(
        "moments fresh", {"    if t == F + 1 and t > 1:\n"
         '        state = state | {"held": agreeing(config, state["W"])}\n':
         '    if t == F + 1 and t > 1:\n        state = state | {"held": agreeing(config, state["W"])}\n'
         '        state |= {f"{p}W": 0 * state[f"{p}W"] for p in ("m.", "v.")}\n'},
        "m.W", "the optimiser's moments begin at 0 when fitting begins",
    ),
    Mutant(
        "sigmoid surrogate", {"s = jnp.where(on, passed, 0)":
         "soft = jax.nn.sigmoid(y / 0.1)\n    s = passed * (soft + jax.lax.stop_gradient(on - soft))"},
        "dW.detector", "a gradient goes through the jump (the derivative of a sigmoid of width 0.1)",
    ),
    Mutant(
        "hold within a group", {"cosine = W @ W.T\n":
         "cosine = W @ W.T\n    of = groups(config)\n    cosine = jnp.where(of[:, None] == of, cosine, -2)\n"},
        "held", "agreement is looked for within each group only",
    ),
    Mutant(
        "NAdam", {"m_hat = m / (1 - config.beta1**n)":
         "m_hat = config.beta1 * m / (1 - config.beta1 ** (n + 1)) + (1 - config.beta1) * g / (1 - "
         "config.beta1**n)"},
        "moved.W", "the step is NAdam's",
    ),
    Mutant(
        "clip by global norm", {"    lr = learning_rate(config, t)\n":
         '    norm = jnp.sqrt(sum((g**2).sum() for n, g in grads.items() if n != "V"))\n'
         "    grads = {n: g * jnp.minimum(1, 0.01 / norm) for n, g in grads.items()}\n"
         "    lr = learning_rate(config, t)\n"},
        "m.W",
        note="all entries are 0.0195805 times what they should be",
    ),
    Mutant(
        "clip by global norm, dumped", {'    got |= {f"d{name}"':
         '    norm = jnp.sqrt(sum((g**2).sum() for n, g in grads.items() if n != "V"))\n'
         '    grads = {n: g * jnp.minimum(1, 0.01 / norm) for n, g in grads.items()}\n    got |= {f"d{name}"'},
        "dW",
        note="so are all entries of da, db_pre, m.W",
    ),
    Mutant(
        "clip by value", {'    got |= {f"d{name}"':
         '    grads = {n: jnp.clip(g, -0.002, 0.002) for n, g in grads.items()}\n    got |= {f"d{name}"'},
        "dW",
        note="all entries are cut at 0.002 and -0.002",
    ),
    Mutant(
        "beta2 0.95", {"v = config.beta2 * v + (1 - config.beta2) * g**2\n": "v = 0.95 * v + 0.05 * g**2\n",
         "config.beta2**n": "0.95**n"},
        "v.W", "beta2 is 0.95, not the trace's",
    ),
    Mutant(
        "beta1 0.95", {"m = config.beta1 * m + (1 - config.beta1) * g\n": "m = 0.95 * m + 0.05 * g\n",
         "config.beta1**n": "0.95**n"},
        "m.W", "beta1 is 0.95, not the trace's",
    ),
    Mutant(
        "shared count", {"n = int(n) + 1": "n = t"},
        "updates.a", "the updates of every parameter are counted by the steps of the run",
    ),
    Mutant(
        "shared count seen by the correction only", {"value, m, v = adamw(config, lr, value, "
         "grads[name], m, v, n)":
         "value, m, v = adamw(config, lr, value, grads[name], m, v, t)"},
        "a", "the bias correction counts the steps of the run, not the updates of each parameter",
    ),
    Mutant(
        "rows by softmax", {'x = unit(jnp.asarray(rows, state["W"].dtype))':
         'x = jax.nn.softmax(jnp.asarray(rows, state["W"].dtype), axis=1)'},
        "x", "softmax is taken of the rows",
    ),
    Mutant(
        "rows standardised per row", {'x = unit(jnp.asarray(rows, state["W"].dtype))':
         'x = jax.nn.standardize(jnp.asarray(rows, state["W"].dtype), axis=1)'},
        "x", "rows are standardised each by its own mean and variance plus 1e-05, not scaled to "
        "unit norm",
    ),
    Mutant(
        "x - b_pre at unit norm", {'z = (x - theta["b_pre"]) @ theta["W"].T':
         'z = unit(x - theta["b_pre"]) @ theta["W"].T'},
        "db_pre", "x - b_pre is scaled to unit norm",
    ),
    Mutant(
        "b_pre not subtracted", {'(x - theta["b_pre"]) @': "x @"},
        "db_pre", "b_pre is not subtracted from the input, and its gradient lacks that path",
    ),
    Mutant(
        "top half of codes", {"s = jnp.where(on, passed, 0)":
         "s = jnp.where(on & (passed >= jnp.sort(jnp.where(on, passed, 0), axis=1)[:, -4:-3]), passed, 0)"},
        "s",
        note="all wrong entries are 0.0",
    ),
    Mutant(
        "b_pre not added", {'theta["V"]) + theta["b_pre"]': 'theta["V"])'},
        "db_pre", "b_pre is not added to the reconstruction, and its gradient lacks that path",
    ),
    Mutant(
        "exp of a", {'s @ (theta["a"][:, None] *': 's @ (jnp.exp(theta["a"])[:, None] *'},
        "f", "exp(a) scales the codes, not a",
    ),
    Mutant(
        "f at unit norm", {"    return y, on, s, f\n":
         "    return y, on, s, f * jax.lax.rsqrt((f**2).sum(axis=1, keepdims=True) + 1e-20)\n"},
        "f", "f is scaled to unit norm",
    ),
    Mutant(
        "Huber loss", {"jnp.sum((f - x) ** 2, axis=1)) / 2":
         "jnp.sum(jnp.where(abs(f - x) < 0.1, (f - x) ** 2 / 2, 0.1 * (abs(f - x) - 0.05)), axis=1))"},
        "loss",
    ),
    Mutant(
        "L1 penalty", {"axis=1)) / 2, (y": "axis=1)) / 2 + 0.01 * jnp.mean(jnp.sum(s, axis=1)), (y"},
        "loss",
        note="what is added is 0.01 times the mean sum of the codes of a row: is there a penalty?",
    ),
    Mutant(
        "L1 penalty in the gradients only", {"axis=1)) / 2, (y":
         "axis=1)) / 2 + (p := 0.01 * jnp.mean(jnp.sum(s, axis=1))) - jax.lax.stop_gradient(p), (y"},
        "dW.detector",
        note="what is added is 0.01 times the gradient of the mean sum of the codes of a row: is there a penalty?",
    ),
    Mutant(
        "fraction of variance", {"axis=1)) / 2, (y":
         "axis=1)) / jnp.mean(jnp.sum((x - x.mean(axis=0)) ** 2, axis=1)), (y"},
        "loss",
        note="so are all entries of dW.detector, dW.reconstructor, dW, da, db_pre, m.W",
    ),
    Mutant(
        "loss against the rows as they come", {"return jnp.mean(jnp.sum((f - x) **":
         "x = rows_of[0]\n    return jnp.mean(jnp.sum((f - x) **",
         "(loss, (y, on, s, f)), grads":
         "rows_of[0] = jnp.asarray(rows, x.dtype)\n    (loss, (y, on, s, f)), grads",
         "def loss_of": "rows_of = [0]\n\n\ndef loss_of"},
        "loss", "the reconstruction is compared with the rows as they come, not at unit norm",
    ),
    Mutant(
        "reconstructor stopped", {'        grads["W"] = grads["W"] + grads["V"]\n': "        pass\n"},
        "dW", "the reconstructor's path is missing from the gradient of the tied W",
    ),
    Mutant(
        "b learns", {'grads["b"] = 0 * grads["b"]\n': "pass\n",
         "passed = z if": "passed = y - jax.lax.stop_gradient(theta['b']) if"},
        "db", "b gets a gradient, as a bias of ReLU would",
    ),
    Mutant(
        "coupled decay", {"m = config.beta1 * m + (1 - config.beta1) * g\n":
         "g = g + config.weight_decay * theta\n    m = config.beta1 * m + (1 - config.beta1) * g\n",
         "(1 - lr * config.weight_decay) * theta - lr": "theta - lr"},
        "m.W", "weight decay is coupled: it goes into the gradient and its moments",
    ),
    Mutant(
        "no decay", {"(1 - lr * config.weight_decay) * theta - lr": "theta - lr"},
        "moved.W", "weight decay is missing",
    ),
    Mutant(
        "decay after the step", {"theta = (1 - lr * config.weight_decay) * theta - lr * m_hat "
         "/ (jnp.sqrt(v_hat) + config.adam_eps)":
         "theta = (1 - lr * config.weight_decay) * (theta - lr * m_hat / (jnp.sqrt(v_hat) + config.adam_eps))"},
        "moved.W", "weight decay acts after the step, on what the step has moved",
    ),
    Mutant(
        "decay of W only", {"value, m, v = adamw(config, lr, value, grads[name], m, v, n)":
         "value, m, v = adamw(config if 'W' == name else __import__('dataclasses').replace(config, "
         "weight_decay=0.0), lr, value, grads[name], m, v, n)"},
        "moved.W_dec", "weight decay acts on W alone",
    ),
    Mutant("eps 1e-6", {"+ config.adam_eps": "+ 1e-6"}, "moved.W", "adam_eps is 1e-06, not the trace's"),
    Mutant(
        "AMSGrad", {"v_hat = v / (1 - config.beta2**n)":
         "v_hat = jnp.maximum(v, (v - (1 - config.beta2) * g**2) / config.beta2) / (1 - config.beta2**n)"},
        "moved.W", "the step divides by the largest v so far (AMSGrad)",
    ),
    Mutant(
        "Lion", {"theta = (1 - lr * config.weight_decay) * theta - lr * m_hat / "
         "(jnp.sqrt(v_hat) + config.adam_eps)":
         "theta = (1 - lr * config.weight_decay) * theta - lr * jnp.sign(m)"},
        "moved.W", "the step is the sign of m (Lion)",
    ),
    Mutant(
        "SGD with momentum", {"theta = (1 - lr * config.weight_decay) * theta - lr * m_hat / "
         "(jnp.sqrt(v_hat) + config.adam_eps)":
         "theta = (1 - lr * config.weight_decay) * theta - lr * m"},
        "moved.W", "the step is m, not divided by the root of v (gradient descent with momentum)",
    ),
    Mutant(
        "update clipped to 1", {"theta = (1 - lr * config.weight_decay) * theta - lr * m_hat / "
         "(jnp.sqrt(v_hat) + config.adam_eps)":
         "theta = (1 - lr * config.weight_decay) * theta - lr * jnp.clip(m_hat / (jnp.sqrt(v_hat) + "
         "config.adam_eps), -1, 1)"},
        "moved.W",
    ),
    Mutant(
        "bfloat16 m", {"m = config.beta1 * m + (1 - config.beta1) * g\n":
         "m = config.beta1 * m + (1 - config.beta1) * g\n    m = m.astype(jnp.bfloat16).astype(g.dtype)\n"},
        "m.W",
        note="every entry is within 0.0039 of its value, as after rounding to bfloat16",
    ),
    Mutant(
        "m in float32", {"m = config.beta1 * m + (1 - config.beta1) * g\n":
         "m = config.beta1 * m + (1 - config.beta1) * g\n    m = m.astype(jnp.float32).astype(g.dtype)\n"},
        "m.W",
        note="every entry is within 6e-08 of its value, as after rounding to float32",
    ),
    Mutant(
        "lr warm-up", {"return config.lr * min(1.0,":
         "return config.lr * min(1.0, (t - first + 1) / 3) * min(1.0,"},
        "lr",
        note="given over expected at steps 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12: 0.3333, 0.6667, 1, 1, "
             "1, 0.3333, 0.6667, 1, 1, 1, 1, 1",
    ),
    Mutant(
        "lr in float32", {"    lr = learning_rate(config, t)\n":
         "    lr = float(jnp.float32(learning_rate(config, t)))\n"},
        "lr",
        note="every entry is within 6e-08 of its value, as after rounding to float32",
    ),
    Mutant(
        "lr stepped late, not dumped", {'got["lr"] = lr': "lr = learning_rate(config, max(t - 1, 1))"},
        "moved.W", "the learning rate is that of the step before",
    ),
    Mutant(
        "lr halved for a", {"value, m, v = adamw(config, lr, value, grads[name], m, v, n)":
         "value, m, v = adamw(config, lr / 2 if name == 'a' else lr, value, grads[name], m, v, n)"},
        "a",
        note="the change from before this step is 0.5 times what it should be",
    ),
    Mutant(
        "only the decoder trained", {'("W", "W_dec", "a", "b_pre") if name in state]\n\n':
         '("W", "W_dec", "a", "b_pre") if name in state and (name != "W" or "W_dec" not in state)]\n\n'},
        "updates.W", "W stays fixed after forming",
    ),
    Mutant(
        "b_pre never trained", {'("W", "W_dec", "a", "b_pre") if name in state]\n\n':
         '("W", "W_dec", "a") if name in state]\n\n'},
        "updates.b_pre", "b_pre is not trained",
    ),
    Mutant(
        "b_pre trained from the start", {'trained = ["W"]': 'trained = ["W", "b_pre"]'},
        "updates.b_pre", "b_pre is trained while features form",
    ),
    Mutant(
        "the later of a pair held", {"jnp.where(jnp.eye(len(W), dtype=bool), -2, cosine)":
         "jnp.where(jnp.tri(len(W), k=-1, dtype=bool), cosine, -2)"},
        "held", "of neurons that agree the first is not held",
    ),
    Mutant(
        "a of held fixed", {"value, m, v = adamw(config, lr, value, grads[name], m, v, n)":
         "value, m, v = adamw(config, lr, value, grads[name], m, v, n)\n"
         '            value = jnp.where(held, state["a"], value) if name == "a" else value'},
        "a", "a of held neurons is not trained",
    ),
    Mutant(
        "biases of held fixed", {"        got |= quantities\n":
         '        got |= quantities\n        b = jnp.where(held, state["b"], b)\n'},
        "b", "the biases of held neurons stay",
    ),
    Mutant(
        "the decoder a copy after the step", {"new[name] = jnp.where(held[:, None], "
         "state[name], unit(new[name]))":
         "new[name] = jnp.where(held[:, None], state[name], unit(new[name]))\n"
         '    if t == F + 1 and config.untied and "W_dec" in new:\n        new["W_dec"] = new["W"]'},
        "W_dec", "the new decoder is a copy of W after the step, not before it", of="ties",
    ),
    Mutant(
        "decoder from the first step", {"if config.untied and forming_steps(config) == 0": "if config.untied",
         "        if config.untied:\n            state = untied(state)\n": "",
         "    own_decoder, held =":
         "    if config.untied and t <= F:\n        state = untied(state)\n    own_decoder, held ="},
        "dW", "the decoder of its own begins before forming is over",
    ),
    Mutant(
        "decoder is a W", {"        if config.untied:\n            state = untied(state)\n":
         "        if config.untied:\n            state = untied(state)\n"
         "            state['W_dec'] = state['a'][:, None] * state['W']\n"},
        "f", "the new decoder begins as a_m w_m, not as w_m",
    ),
    Mutant(
        "moments divided by the norm too", {'        got[f"moved.{name}"] = new[name]\n':
         '        got[f"moved.{name}"] = new[name]\n'
         '        new[f"m.{name}"] = new[f"m.{name}"] / jnp.linalg.norm(new[name], axis=1, keepdims=True)\n'},
        "m.W",
    ),
    Mutant(
        "buffers after the step", {'    seen = state["left.seen"]':
         '    y = (x - new["b_pre"]) @ new["W"].T + state["b"]\n    on = y > 0\n    seen = state["left.seen"]'},
        "counts", "the buffers take y of the parameters after the step",
    ),
    Mutant(
        "peaks in float32", {"y.max(axis=0).astype(float)": "y.max(axis=0).astype('float32').astype(float)"},
        "peaks",
        note="every entry is within 6e-08 of its value, as after rounding to float32",
    ),
    Mutant(
        "frequency an average of averages", {"p = counts / seen": "p = 0.9 * counts / seen"},
        "p",
        note="all entries are 0.9 times what they should be",
    ),
    Mutant("p plus one", {"p = counts / seen": "p = (counts + 1) / (seen + 2)"}, "p"),
    Mutant(
        "groups counted from 1", {'"group": group,': '"group": group + 1,'},
        "group",
        note="all entries are 1 more than they should be",
    ),
    Mutant(
        "targets from low to high", {"config.htf * (config.ltf / config.htf) **":
         "config.ltf * (config.htf / config.ltf) **"},
        "target", "HTF and LTF are swapped",
    ),
    Mutant(
        "targets in float32", {"config.htf * (config.ltf / config.htf) ** (k / "
         "max(config.groups - 1, 1))":
         "(config.htf * (config.ltf / config.htf) ** (k / max(config.groups - 1, 1))).astype('float32')"},
        "target",
        note="every entry is within 6e-08 of its value, as after rounding to float32",
    ),
    Mutant(
        "T over the raised", {"T = jax.ops.segment_sum(peaks, group, K) / jnp.maximum(positive, 1)":
         "low = counts / seen <= target[group]\n"
         "    T = jax.ops.segment_sum(peaks * low, group, K) / jnp.maximum(jax.ops.segment_sum((low & "
         "(peaks > 0)).astype(int), group, K), 1)"},
        "T", "T_k leaves out the neurons over their target",
    ),
    Mutant(
        "floor of HTF", {"config.floor * p_k)": "config.floor * config.htf)"},
        "raised", "floor is a share of HTF, not of the group's target", of="ties",
    ),
    Mutant(
        "held never raised", {"        got |= quantities\n":
         "        quantities['raised'] = quantities['raised'] & ~held\n"
         "        b = jnp.where(held & (b > state['b']), state['b'], b)\n        got |= quantities\n"},
        "raised", "neurons that are held are not raised",
    ),
    Mutant(
        "gamma twice", {"config.gamma_minus * peaks": "2 * config.gamma_minus * peaks"},
        "b",
        note="the change of lowered neurons from before this step is 2 times what it should be",
    ),
    Mutant(
        "bias by the gap of frequencies", {"config.gamma_minus * peaks":
         "config.gamma_minus * peaks * (p - p_k)"},
        "b",
    ),
    Mutant(
        "bias multiplicative", {"b - config.gamma_minus * peaks": "b * (1 + config.gamma_minus * peaks)"},
        "b",
        note="the change of lowered neurons from before this step is 0.2 times what it should be",
    ),
    Mutant(
        "bias in float32", {"b = b.astype(float)": "b = b.astype('float32')",
         "jnp.maximum(b - config.gamma_minus * peaks, -1)":
         "jnp.maximum(b - (config.gamma_minus * peaks).astype('float32'), -1)"},
        "b",
        note="every entry is within 6e-08 of its value, as after rounding to float32",
    ),
    Mutant(
        "no adaptation while forming", {"if t % config.adapt_every == 0:":
         "if t % config.adapt_every == 0 and t > F:"},
        "b", "biases are not adapted at this step, which adapt_every divides",
    ),
    Mutant(
        "no adaptation while fitting", {"if t % config.adapt_every == 0:":
         "if t % config.adapt_every == 0 and t <= F:"},
        "b", "biases are not adapted at this step, which adapt_every divides",
    ),
    Mutant(
        "buffers emptied at the change of phase", {"    if t == F + 1 and t > 1:\n"
         '        state = state | {"held": '
         'agreeing(config, state["W"])}\n':
         '    if t == F + 1 and t > 1:\n        state = state | {"held": agreeing(config, state["W"])}\n'
         "        state |= emptied(config.width)\n"},
        "seen", "the buffers are emptied when fitting begins",
    ),
    Mutant(
        "decayed buffers", {"        left = emptied(config.width)\n":
         '        left = {"left.seen": seen // 2, "left.counts": counts // 2, "left.peaks": peaks / 2}\n'},
        "left.seen",
    ),
    Mutant(
        "groups by array_split", {"jnp.arange(config.width) * config.groups // config.width":
         "jnp.concatenate([jnp.full(len(g), k) for k, g in "
         "enumerate(jnp.array_split(jnp.arange(config.width), config.groups))])"},
        "group", "the first groups are the larger ones where K does not divide M", of="ties",
    ),
    Mutant(
        "groups of a rounded size", {"jnp.arange(config.width) * config.groups // config.width":
         "jnp.arange(config.width) // -(-config.width // config.groups)"},
        "group", "all groups but the last have M / K neurons, rounded up", of="ties",
    ),
    Mutant(
        "F rounded up", {"round(config.form * config.steps)": "int(config.form * config.steps + 0.5)"},
        "lr", "forming takes form T steps with a half rounded up, not to the even number", of="ties",
    ),
]  # fmt: skip
