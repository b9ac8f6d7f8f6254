"""Generated packages inside other programs: each takes a package and speaks that program's layouts and calls.

Contains: adapters, which import torch and nothing of the program they adapt to unless it is installed.
Must not contain: kernels, selection rules, or a copy of a cache.
"""
