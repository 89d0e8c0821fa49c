"""Hypothesis: no deadlines, which would test the machine; and in CI the same examples every time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("refgba", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("refgba")
