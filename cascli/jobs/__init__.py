"""What the commands do, for Python too: generate and compare."""
