"""What commands do for one or a few prompts: generate, compare, bench, profile. Also used directly from Python.

Imports `engine` and the layers below it; prints nothing.
"""
