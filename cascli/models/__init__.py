"""Loads two models and runs them: forward over new tokens, rewind, reset. Device-specific code is in `cpu/` and `gpu/`.

Imports `weights`, `sampling` and `config`.
"""
