"""The engines of languages, a ``.wasm`` file each: made by ``make engines``, read by ``prepare``.

This package has no code and is never imported: what finds modules finds these files.
"""
