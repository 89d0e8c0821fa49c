"""A training run on disk: activations in, a run folder out, and its evaluation.  Any backend, one code path.

trainer      the loop: begins a run, or goes on with one
folder       what is in the folder of a run, and in that of a network
log          metrics.jsonl, as training goes
checkpoints  everything that the next step depends on
signals      a signal that asks training to stop
judging      a network over activations, and the file of its evaluation
accumulate   the running sums of an evaluation
"""
