"""Every reader of cascli under fire: hostile and damaged files, the real command line, one process each.

`python -m tests.fuzz --seconds 60` tries what failed before (`corpus/`, `known.py`), then random changes of good files
until the time is over. What must hold: an exit code that the contract names, at most two lines on stderr, no
traceback, nothing "unexpected", no control character, no hang, and memory within a bound.
"""
