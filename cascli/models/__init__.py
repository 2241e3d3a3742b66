"""Two models loaded, and run: forward over new tokens, rewind, reset. `cpu/` and `gpu/` hold what differs.

Imports `weights`, `sampling` and `config`.
"""
