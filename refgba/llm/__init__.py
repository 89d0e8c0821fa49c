"""Language models, by torch and transformers (`make llm`); imported by the command line alone.

text.py          documents, streamed from files, folders, tables and data sets
contexts.py      documents as contexts of tokens, in batches
models.py        a model that is open, from a folder, a .gguf file or a hub
hub.py           whether the hub can be reached
sites.py         submodules by name: their activations read or changed while the model runs
keeping.py       which positions count
harvesting.py    `refgba harvest`: activations on a text, as stores that `refgba train` takes
shards.py        written shard by shard, so that a kill costs no more than a shard
records.py       read back without torch: tokens, contexts and text of every row
matching.py      of which site a run is, so that it meets no other
quantities.py    numbers that people give, and numbers for JSON
networks.py      a run or anyone's dictionary, computed by torch
splice.py        put into the model
evaluation.py    `refgba llm evaluate`: what the model loses by it
effects.py       `refgba llm effects`: what its neurons do
unembedding.py   what they do directly, through the residual stream alone
steering.py      `refgba llm steer`: text written while neurons are held
explore.py       `refgba llm explore`: harvest, training and dashboard, one after another
dashboard/       `refgba llm dashboard`, `features`: what neurons fire on, from a harvest alone, without torch
api.py           the same from Python
commands.py      the commands
console.py       how far they are
draws.py         random numbers
"""

from refgba.llm.api import effects_of as effects_of
from refgba.llm.api import evaluate as evaluate
from refgba.llm.api import harvest as harvest
from refgba.llm.api import rank as rank
from refgba.llm.api import steer as steer
from refgba.llm.models import open_model as open_model
from refgba.llm.networks import open_network as open_network
from refgba.llm.records import open_harvest as open_harvest
from refgba.llm.splice import place as place
