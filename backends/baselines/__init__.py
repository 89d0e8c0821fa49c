"""The baselines on each backend: one module per backend, found by the same file name as GBA's."""
