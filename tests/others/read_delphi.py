"""What delphi reads in a folder of latents, as one line of JSON; run in delphi's own environment.

read_delphi.py FOLDER SITE WORDS    WORDS: a JSON list, the text of each id
"""

from __future__ import annotations

import asyncio
import json
import sys

from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

folder, site, words = sys.argv[1:]
vocabulary = {word: id for id, word in enumerate(json.loads(words))}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>")))
dataset = LatentDataset(
    folder,
    SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
    ConstructorConfig(example_ctx_len=8, min_examples=8, n_non_activating=4, non_activating_source="random"),
    tokenizer,
    modules=[site],
)
latents = {}
for buffer in dataset.buffers:
    for data in buffer:
        where, values = data.activation_data.locations.tolist(), data.activation_data.activations.tolist()
        latents[data.latent.latent_index] = [
            [row, at, value] for (row, at, _), value in zip(where, values, strict=True)
        ]


async def records() -> dict[int, list]:
    """What delphi would have explained: the examples of each latent, their tokens and activations."""
    return {
        record.latent.latent_index: [
            [example.tokens.tolist(), example.activations.tolist(), example.str_tokens] for example in record.train
        ]
        async for record in dataset
    }


print(json.dumps({"tokens": dataset.tokens.tolist(), "latents": latents, "records": asyncio.run(records())}))
