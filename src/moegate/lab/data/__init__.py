"""Real data that needs no network at run time: handwritten digits and a byte-level text corpus.

`images` holds the digits, `text` the corpus and its reader for folders of the user's own, `batches` turns
both into training batches that depend on nothing but the seed and the step number.
"""
