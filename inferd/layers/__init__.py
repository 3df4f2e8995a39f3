"""Parts of a decoder: weights as frozen values, the computation as functions over the kernel door."""
