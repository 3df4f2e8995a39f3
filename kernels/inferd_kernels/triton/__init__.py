"""Triton kernels, one file per family. `backend` is the only module the door imports; importing this package loads
nothing."""
