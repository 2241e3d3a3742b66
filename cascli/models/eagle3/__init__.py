"""EAGLE-3 heads: usually a single layer, which drafts from the target's hidden states of the text.

`layout` describes the format of heads, `head` has the layers, `reading` loads weights into them, and `runners` let a
head draft in place of a draft model.
"""
