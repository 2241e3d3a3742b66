"""Triton kernels for what decoding on a GPU does besides multiplying by weights; imported where they are used."""
