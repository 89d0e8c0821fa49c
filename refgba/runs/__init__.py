"""A training run on disk: activations in, a run folder out, and its evaluation.  Any backend, one code path.

settings     what a user asks for, and the settings that follow; `options` has it as flags of a command
launch       a run made ready: settings, backend, folder and data, checked
trainer      the loop: begins a run, or goes on with one
folder       what is in the folder of a run, and in that of a network
schema       what the fields of a run's records may hold
log          metrics.jsonl, as training goes
checkpoints  everything that the next step depends on
signals      a signal that asks training to stop, and a terminal that goes away
judging      a network over activations, and the file of its evaluation
accumulate   the running sums of an evaluation
demo         a run on data with known features
memory       a run without a folder, for those who train in Python
capacity     whether the machine has the memory that a run needs
console      what commands show; `loading` and `interrupts` see to Ctrl-C, from the first import on
"""
