"""The oracle: what every step must give, recorded from the reference, and where another implementation first departs.

`record` keeps every quantity of the reference's steps in float64.  `compare` holds the quantities of another
implementation against them in the order of the algorithm and stops at the first that deviates.  The cause is not
guessed from its name: the step is worked through with each known mistake, and those are named that give the numbers of
the other implementation.

A port is best checked one step at a time: before each step it takes over the trace's state, so that rounding does not
pile up.  It may also run on by itself; then each step is expected from the port's own state before it, where the port
gives that state.  format.md tells those who write ports what to write.

The files, in the order in which to read them:

    stepwise      one step of Algorithms 1 and 2, quantity by quantity
    recording     `Trace` and `record`
    rounding      how far rounding may move each quantity
    mistakes      what is known to go wrong, one table per line of the algorithm
    place         one step of a candidate held against what was expected
    causes        which mistakes give a candidate's numbers
    notes         what the numbers say where no mistake does
    comparison    `compare`
    report        `Report` and `Deviation`, for a person or for JSON
    validation    which arrays may be a trace, or compared with one
    traces        traces and candidates as files, and our backends as candidates
    window        a window of a run of `refgba train` as a trace
    derived       the settings that follow from the data, for those who derive them again
    commands      `refgba oracle`
"""

from __future__ import annotations

from refgba.oracle.comparison import TOLERANCE, compare
from refgba.oracle.place import Starts
from refgba.oracle.recording import Trace, record
from refgba.oracle.report import Deviation, Report

__all__ = ["TOLERANCE", "Deviation", "Report", "Starts", "Trace", "compare", "record"]
