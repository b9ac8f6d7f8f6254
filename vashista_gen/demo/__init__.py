"""`vashista-gen demo`: a real model decodes a real document, dense and sparse, through one generated package.

Contains: loading (model), the forward steps (decode), the figures (measure), what is printed and drawn (show, picture),
the kernels for a GPU (gpu), and the order of it all (run).
Must not contain: kernels, or anything that another part of the package imports.
"""

import os

# before the first import of transformers, which reads them then: the demo never asks a hub for anything
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # the demo shows its own progress
