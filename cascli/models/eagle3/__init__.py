"""EAGLE-3 heads: a layer or so that drafts from what its target has made of the text.

`layout` knows the files, `head` the layers, `reading` puts the two together, and `runners` let a head draft in the
place of a draft model.
"""
