"""Benchmarks, also against other engines; run by `make bench`."""
