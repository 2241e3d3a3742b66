"""Everything about sweeps: file and grid, tasks and metrics, the work and its executors, records on disk, the table.

Imports `jobs`, `engine` and the layers below, and no terminal or plotting code. torch is imported where work is done.
"""
