"""`vashista-gen tune`: measures, on this device, how a package's attention is best split and when dense is faster.

Contains: which values are tried and which is taken (search), the order of a run (run), the file it writes (file).
Must not contain: a way to take a value whose result was not checked, or anything that a package runs at import.
"""
