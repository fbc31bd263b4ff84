"""Plain torch twins of the Triton kernels: what they compute, written to be read."""
