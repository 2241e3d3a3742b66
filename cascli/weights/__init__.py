"""Where weights come from: fetched, checked, converted once into the cache, then found there.

What strangers wrote is read here (`untrusted`), and nowhere else. Imports `config`, `files` and `errors`.
"""
