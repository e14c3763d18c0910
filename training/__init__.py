"""The trainer: images on disk → pair index → quadruplets → a basis file that the nodes load.

The commands `prepare`, `train`, `sample`, `evaluate` and `demo`, also as `lorweb COMMAND`; everything they call can be
imported. Needs the `train` extra and Python 3.11; the nodes never import this package. Formats, routing, grids and the
image encoder are `lorweb_core`'s.
"""
