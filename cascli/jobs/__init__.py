"""What the commands do, for Python too: generate, compare, pull."""
