"""Split conformal prediction: a margin that covers a stated share of new scores, and how it does on others."""

from __future__ import annotations

import math

import numpy as np


def upper_quantile(scores: np.ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n scores: a new, exchangeable score is at most that with P >= level.

    Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005), 2.2; the + 1 is the correction for a
    finite sample. ValueError where n is too small for the level: n >= level / (1 - level).
    """
    scores = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0 < level < 1 or np.isnan(scores).any():
        raise ValueError(f"a level of {level} of {len(scores)} scores, {int(np.isnan(scores).sum())} of them NaN")
    # the product may end in .0000001 where it should be whole
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    if rank > len(scores):
        raise ValueError(f"{len(scores)} scores cannot give a quantile of {level:g}; {least_scores(level)} can")
    return float(scores[rank - 1])


def least_scores(level: float) -> int:
    """How many scores the level asks for: 999 for 99.9 %."""
    return math.ceil(level / (1 - level) - 1e-9)


def coverage(scores: np.ndarray, margin: float) -> float:
    """The share of scores that are at most the margin."""
    return float((np.asarray(scores) <= margin).mean())
