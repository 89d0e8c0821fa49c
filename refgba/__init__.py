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

`refgba.runs` trains on files with any of the `backends`; the command line is `cli`.
"""

__version__ = "0.1.0"
