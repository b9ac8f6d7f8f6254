"""Static budgets: how many tokens each KV head of each layer may keep, for a mean that the user pays."""

from __future__ import annotations

import numpy as np

LEAST, STEP = 64, 16  # tokens: sinks and the last pages fit; whole pages


def budgets(needs: np.ndarray, over: str, average: float | None, most: int) -> np.ndarray:
    """int64 [layers, kv heads], tokens, multiples of STEP from LEAST to `most`.

    needs [layers, kv heads, queries]: tokens that hold the wanted share of a group's softmax-sum; over: `mean`, or a
    percentile such as `p90`, over the queries; average: what the mean over layers and heads shall be, by one common
    factor (None: as they are). ValueError for an average that LEAST and `most` do not allow.
    """
    wanted = needs.mean(-1) if over == "mean" else np.quantile(needs, percentile(over), axis=-1)
    if average is None:
        return _rounded(wanted, most)
    if not LEAST <= average <= most:
        raise ValueError(f"an average of {average:g} tokens with budgets from {LEAST} to {most}")
    # the mean of clipped budgets rises with the factor: halve the interval until rounding decides
    low, high = 0.0, float(most / max(wanted.min(), 1e-9))
    for _ in range(100):
        factor = (low + high) / 2
        low, high = (factor, high) if np.clip(factor * wanted, LEAST, most).mean() < average else (low, factor)
    return _rounded(high * wanted, most)


def percentile(over: str) -> float:
    """0.9 for `p90`; ValueError for anything that is not p1 to p100."""
    number = over[1:] if over.startswith("p") else ""
    if not (number.isdecimal() and 1 <= int(number) <= 100):
        raise ValueError(f"{over!r} is neither mean nor a percentile such as p90")
    return int(number) / 100


def _rounded(tokens: np.ndarray, most: int) -> np.ndarray:
    steps = np.rint(np.clip(tokens, LEAST, most) / STEP) * STEP
    return np.clip(steps, LEAST, max(LEAST, most // STEP * STEP)).astype(np.int64)
