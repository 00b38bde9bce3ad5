"""Ranks: how they are laid out, how they start, and the one place that knows there is no CUDA."""
