"""Compile a declarative spec of sparse attention decoding into a package of TileLang kernels."""

__version__ = "0.1.0"
