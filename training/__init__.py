"""The trainer: images on disk → pair index → quadruplets → a basis file that the nodes load.

Four thin commands (`prepare`, `train`, `sample`, `evaluate`); everything they call is importable. Needs the `train`
extra and Python 3.11; the nodes never import this package. Formats, routing, grids and the image encoder are
`lorweb_core`'s.
"""
