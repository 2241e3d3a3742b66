"""The work of commands on one or a few prompts: generate, compare, bench, profile. Also used directly from Python.

Imports `engine` and the layers below it; prints nothing.
"""
