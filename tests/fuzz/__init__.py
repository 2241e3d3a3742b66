"""Fuzz every reader of cascli: hostile and damaged files, the real command line, one process per input.

`python -m tests.fuzz --seconds 60` first tries inputs that failed before (`corpus/`, `known.py`), then random changes
of good files until the time is up. What must hold: an exit code that the contract names, at most two lines on stderr,
no traceback, nothing "unexpected", no control character, no hang, and bounded memory.
"""
