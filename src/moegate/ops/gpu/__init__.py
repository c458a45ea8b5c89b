"""What the Triton kernels of the operators share; loaded with Triton, when the first of them runs."""
