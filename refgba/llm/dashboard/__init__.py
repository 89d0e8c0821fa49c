"""What the neurons of a network fire on, from a harvest's store alone: neither torch nor a tokenizer is needed.

best        of each neuron the best of a stream, bounded
survey      one pass over a store: counts, histograms, and which contexts to show
examples    these contexts, with the activation at every token
features    all of it together: `survey_features`, what a notebook holds
folder      the offline page
commands    the command line
"""

from __future__ import annotations

from refgba.llm.dashboard.features import Features, survey_features
from refgba.llm.dashboard.folder import write_dashboard
from refgba.llm.dashboard.logits import direct_effects
from refgba.llm.dashboard.others import write_delphi, write_features

__all__ = ["Features", "direct_effects", "survey_features", "write_dashboard", "write_delphi", "write_features"]
