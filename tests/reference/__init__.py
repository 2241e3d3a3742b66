"""The slow, readable NumPy float64 reference that cascli's tensors are measured against.

It was written from the equations of Narasimhan et al. (ICLR 2025, arXiv 2405.19261) and imports nothing of
cascli.
"""
