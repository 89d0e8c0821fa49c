"""refgba: Group Bias Adaptation for sparse autoencoders, a NumPy reference to read with the paper open.

In reading order:

    model            section 2   x = hV: data with known features
    sae              section 2   the network, its loss, every gradient written out
    groups           section 3   neurons in groups, each with a target frequency
    bias             section 3   Algorithm 2: adapting the biases
    gba              section 3   Algorithm 1: the whole method, with adam, config and, for what is ours, recipe
    identifiability  section 5   is the data such that its features can be found?
    theory           section 6   Modified BA, the resonance band
    metrics                      what was recovered, how well it reconstructs
    baselines                    L1, TopK, BatchTopK and JumpReLU, to compare with
    oracle                       is another implementation right, and if not, where does it first go wrong?

All of it at work: 32 features in 24 dimensions, two of them in each row, are found by 256 neurons.

    >>> from refgba import gba, metrics, model, recipe
    >>> data = model.SyntheticModel(model.Uniform(32, (2,)), d=24)
    >>> X = data.draw(0, 8192).X
    >>> config = recipe.default(d=24, width=256, steps=400, batch=256)
    >>> state = gba.init(gba.random_params(config, d=24), config)
    >>> for _ in gba.train(state, gba.minibatches(X, config)):
    ...     pass
    >>> metrics.frr(state.params.V, data.V, tau=0.8)
    1.0

`refgba.runs` trains on files with any of the `backends`; the command line is `cli`.
"""

__version__ = "0.1.0"
