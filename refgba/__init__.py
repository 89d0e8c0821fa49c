"""refgba: Group Bias Adaptation for sparse autoencoders, a readable NumPy reference of the paper."""
