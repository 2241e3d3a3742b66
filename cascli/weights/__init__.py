"""Where weights come from: fetched, checked, converted once into the cache, then found there.

Third-party files are read here (`untrusted`) and nowhere else. Imports `config`, `files` and `errors`.
"""
