"""`vashista-gen eval`: what sparse decoding costs a real model in quality, against dense and against other routers.

Contains: texts and models on this machine (texts, model), the contestants and their compiled packages (contestants),
the prefix each document is read with (prefix), one cache for all contestants (pages), the attention of a step (attend,
decode), figures (metrics), needles (needle), results on disk (store), what is printed and drawn (report, picture), and
the order of it all (run).
Must not contain: kernels, or anything that another part of the package imports.
"""

import os

# before the first import of transformers, which reads them then: an evaluation never asks a hub for anything
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # it shows its own progress
