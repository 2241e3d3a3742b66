"""How models run on a CPU: packed float32, bfloat16 and int8 layers, and attention by rows.

A token's logits are bit-identical in any block, with the exceptions in docs/cpu.md. Imports `models.size` and
`weights`.
"""
