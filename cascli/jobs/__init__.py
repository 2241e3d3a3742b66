"""What a command does for one prompt or a few: generate, compare, bench, profile. For Python too.

Imports `engine` and what lies below; prints nothing.
"""
