"""SAEBench's core evaluation of an exported run on local text, as one line of JSON; run in its own environment.

run_sae_bench.py EXPORT TEXTS CONTEXT    TEXTS: a JSON list in a file, each at least CONTEXT tokens long
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import Dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE, ActivationsStore
from sae_lens.load_model import load_model

export, texts, context = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
_, sae, _ = load_and_format_sae("local", SAE.load_from_disk(export), "cpu")
about = sae.cfg.metadata
model = load_model(
    about.model_class_name, about.model_name, "cpu", about.model_from_pretrained_kwargs, [about.hook_name]
)
store = ActivationsStore.from_sae(
    model, sae, Dataset.from_dict({"text": texts}), context_size=context, disable_concat_sequences=True,
    sequence_separator_token=None,
)  # fmt: skip
size = len(texts) // 2
config = CoreEvalConfig(
    batch_size_prompts=size, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2, context_size=context,
    compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
    compute_variance_metrics=True,
)  # fmt: skip
metrics, _ = run_evals(sae, store, model, config)
print(json.dumps(metrics))
