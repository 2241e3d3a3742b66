"""Models on a GPU: captured CUDA graphs, a static cache, and layers in fewer kernels.

Imports `kernels` and `sampling`. Models that these do not support run eagerly, and the reason is reported.
"""
