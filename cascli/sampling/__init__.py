"""Random tokens: parameters, distributions, the uniforms that draw from them, rejection, and autoregressive writing.

Pure functions of tensors and random numbers. Imports `errors` and `kernels`; independent of models and strategies.
"""
