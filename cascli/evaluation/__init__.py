"""Tasks of lm-evaluation-harness, run in this process with strategies as its model.

Only `harness` and `model` import the package `lm_eval`, and only when they are used.
"""
