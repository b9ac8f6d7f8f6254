"""`vashista-gen demo`: a real model decodes a real document, dense and sparse, through one generated package.

Contains: loading (model), the forward steps (decode), the figures (measure), the picture (picture), the order of it all (run).
Must not contain: kernels, or anything that another part of the package imports.
"""

import os

# before the first import of transformers, which reads it then: the demo never asks a hub for anything
os.environ.setdefault("HF_HUB_OFFLINE", "1")
