"""Read GGUF files and convert them to model folders: header, config, tokenizer, tensors.

Nothing in such a file is trusted. Imports `weights.{disk,manifest,untrusted}`.
"""
