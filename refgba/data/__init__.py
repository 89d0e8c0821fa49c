"""Rows in: stores of activations, their survey, and the order in which they are fed to training."""
