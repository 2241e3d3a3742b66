"""How models run on a GPU: captured CUDA graphs, a static cache, and layers in fewer kernels.

Imports `kernels` and `sampling`. What a model does not fit runs eagerly, and says so.
"""
