"""Analysis of runs: metrics, costs, statistics, theory, and the explanation of a speed. Plain data in, plain data out.

Imports `trace` and the layers below it, but neither torch nor models, so saved results can be analysed on any machine.
"""
