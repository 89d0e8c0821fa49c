"""What a run would take, on machines that are not at hand: `refgba plan`.

    devices.py       GPUs and the networks between them, with stated peak numbers and their sources
    costs.py         memory, FLOPs, bytes and traffic of a step, as functions of d, M, L and the number of ranks
    calibration.py   what the numba backend takes on a machine: measured, fitted, and compared with what was predicted
    plans.py         all of it put together: which machine, how long, how much
    commands.py      the command line

A run that is about to begin here needs none of this: `refgba.runs.forecast` times its own first steps.
"""
