"""`vashista-gen tune`: measures, on this device, which constants a package's kernels are best compiled with, how
attention is best split and when dense is faster.

Contains: which values are tried and which is taken (search), packages with other constants and the process that
compiles and checks one (candidates, candidate), the order of a run (run), the file it writes (file).
Must not contain: a way to take a value whose result was not checked, or anything that a package runs at import.
"""
