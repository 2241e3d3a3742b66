"""What runs say: metrics, costs, statistics, theory, and the explanation of a speed. Plain data in, plain data out.

Imports `trace` and what lies below it; neither torch nor models, so that saved results can be looked at anywhere.
"""
