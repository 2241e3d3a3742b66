"""One answer in progress: a session and its two models' positions, speculation, verification, text, clock and memory.

Everything a strategy is made of. Imports `rules`, `models` and `sampling`; knows no strategy by name.
"""
