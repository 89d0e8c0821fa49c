"""The Python way in: what the command line does, on arrays, in a few lines.  `import refgba` has its names.

    estimator.py     `GBA`: trains with any method and backend, on an array, a file or a store
    loading.py       `load`: a run, a checkpoint, or the files of other libraries
    autoencoder.py   what both give: codes of rows as they come, the features, recovery, a score, plots, export
    network.py       a trained network on a backend
    rows.py          what is taken for rows
    plots.py         the figures
    show.py          the progress bar and the representations

scikit-learn's conventions hold where they fit (fit, transform, components_, get_params), without scikit-learn.
"""

from refgba.notebook.estimator import GBA
from refgba.notebook.loading import load

__all__ = ["GBA", "load"]
