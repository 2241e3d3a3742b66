"""A sweep, whole: its file and grid, tasks and judges, the work and who does it, records on disk, and the table.

Imports `jobs`, `engine` and what lies below; knows neither terminal nor plots. torch is imported where work is done.
"""
