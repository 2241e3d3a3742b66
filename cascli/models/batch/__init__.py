"""Several answers at once on one set of weights: each in a lane of its own, all of whose reads become one pass.

A strategy is written as if it were alone. Its lane is suspended when it asks a model, and goes on when a pass has read
what all lanes were waiting for.
"""
