"""Twins of operations for arrays on a GPU: they check shapes, make room and start the kernels in `kernels/`."""
