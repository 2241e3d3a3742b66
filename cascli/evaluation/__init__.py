"""Tasks of lm-evaluation-harness, run in this process with strategies as its model.

The package `lm_eval` is imported by `harness` and `model` alone, and these when they are used.
"""
