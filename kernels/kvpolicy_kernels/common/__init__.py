"""Helpers that several rooms share: `pytorch` for references, `triton` for kernels."""
