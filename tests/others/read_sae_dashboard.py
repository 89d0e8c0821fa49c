"""Batch files as SAEDashboard reads and writes them, one line of JSON each; run in its own environment.

read_sae_dashboard.py FILE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

for file in sys.argv[1:]:
    batch = NeuronpediaDashboardBatch(**json.loads(Path(file).read_text()))
    print(json.dumps(batch.to_dict()))
