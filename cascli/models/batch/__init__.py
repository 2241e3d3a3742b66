"""Several concurrent answers on one set of weights: each has its own lane, and the reads of all lanes share one pass.

A strategy is written as if it ran alone. Its lane is suspended when it calls a model, and resumes when a pass has read
what all lanes were waiting for.
"""
