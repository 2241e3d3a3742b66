"""The slow, readable NumPy float64 reference that cascli's tensors are compared with.

It was written from the equations of Narasimhan et al. (ICLR 2025, arXiv 2405.19261) and imports nothing from
cascli.
"""
