"""`vashista-gen diagnose`: what the attention of a real model looks like, head by head, and what a spec keeps of it.

Contains: texts and models (texts, models), queries, keys and values out of them or out of a file (capture, tensors),
the figures of one layer (support, hull, kept) and of all of them (findings), the spec they suggest (recommend), and
what is printed and drawn (report, picture); run has the order of it all.
Must not contain: kernels, or any choice of how a generated package computes.
"""

import vashista_gen.demo  # noqa: F401  (sets transformers offline, before anything imports it)
