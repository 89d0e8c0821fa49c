"""A training run on disk: activations in, a run folder out, and its evaluation.  Any backend, one code path."""
