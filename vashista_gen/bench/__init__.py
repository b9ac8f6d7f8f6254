"""`vashista-gen bench`: times a generated package's decode step against dense attention, behind a correctness gate.

Contains: the device and the package (machine), the inputs of a case (cases), what is timed (contestants, peers),
whether it is right (gate), how long it takes (timing, cold), what follows (results), what was asked of the ratios
(require), what is printed, written and drawn (report, picture), and the order of it all (run).
Must not contain: kernels, but that of a peer (tilelang_pages), or a way to print the time of a result that was not
checked.
"""
