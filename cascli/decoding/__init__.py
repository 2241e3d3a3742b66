"""One answer in progress: a session and its two models' positions, speculation, verification, text, clock and memory.

Everything a strategy is built from. Imports `rules`, `models` and `sampling`; refers to no strategy by name.
"""
