"""Triton kernels of fast ops; each has a twin in `ops/reference` that computes the same."""
