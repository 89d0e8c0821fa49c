"""What is known to go wrong when GBA is written again (ours): each mistake as formulas in the place of the right ones.

`causes` works a step through with each of them and names those that give the numbers of another implementation.  A
mistake replaces formulas of `stepwise`, by name; what follows from them follows by itself, so a port that shows only W
is told of a wrong gradient too.  Texts say what the other implementation does.

One file per line of the algorithm, each with a table of its own:

    rows          line 1, rows at unit norm
    recipe        what is ours: the phases, the neurons held, the decoder's beginning
    forward       line 2
    loss          line 3, the loss and its factor in the gradients
    backward      line 3, the gradients
    optimiser     line 3, AdamW
    settings      AdamW with values of settings that are not the run's
    renormalise   line 4
    buffers       line 5
    groups        the groups and their targets
    biases        line 6, Algorithm 2

`formulas` holds what they share.
"""

from __future__ import annotations

from refgba.oracle.mistakes import (
    backward,
    biases,
    buffers,
    forward,
    groups,
    loss,
    optimiser,
    recipe,
    renormalise,
    rows,
    settings,
)
from refgba.oracle.mistakes.formulas import Known

MISTAKES: Known = {
    **rows.MISTAKES,
    **recipe.MISTAKES,
    **forward.MISTAKES,
    **loss.MISTAKES,
    **backward.MISTAKES,
    **optimiser.MISTAKES,
    **settings.MISTAKES,
    **renormalise.MISTAKES,
    **buffers.MISTAKES,
    **groups.MISTAKES,
    **biases.MISTAKES,
}
