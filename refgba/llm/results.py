"""The JSON files that commands write with -o, by the names that they hold in every version."""

from __future__ import annotations

from refgba.data.outputs import result

EVALUATION = result("what `refgba llm evaluate` writes", "network", "model", "site", "points", "interval", "left_alone")
EFFECTS = result("what `refgba llm effects` writes", "network", "model", "site", "ranking", "direct", "effects")
TEXTS = result("what `refgba llm steer` writes", "network", "model", "site", "neurons", "by", "peaks", "texts")
