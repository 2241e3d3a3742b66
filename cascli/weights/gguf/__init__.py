"""GGUF files read and made into model folders: header, config, tokenizer, tensors.

Nothing in such a file is believed. Imports `weights.{disk,manifest,untrusted}`.
"""
