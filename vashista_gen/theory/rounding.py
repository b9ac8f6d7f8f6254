"""Rounding of float64: what a computed number may differ from the number meant, and sums in log space."""

import numpy as np

UNIT_ROUNDOFF = 2.0**-53


def gamma(operations: int) -> float:
    """gamma_n = n u / (1 - n u): relative error of n rounded operations (Higham 2002, lemma 3.1), in any order."""
    product = operations * UNIT_ROUNDOFF
    if not 0 <= product < 0.5:
        raise ValueError(f"gamma is defined for 0 <= operations < 2^52, got {operations}")
    return product / (1.0 - product)


def finite_array(name: str, values, ndim: int) -> np.ndarray:
    """`values` as a float64 array with `ndim` axes; ValueError on a wrong shape, an empty axis, NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and > 0."""
    value = float(value)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive, got {value}")
    return value


def non_negative(name: str, value: float) -> float:
    """`value` as a float; ValueError on NaN or a negative number (infinity is allowed)."""
    value = float(value)
    if not value >= 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return value


def log_sum_exp(logs: np.ndarray) -> float:
    """log sum_j exp(x_j) of x [n]; -inf for an empty x. Never exponentiates a raw logit."""
    logs = np.asarray(logs, dtype=np.float64)
    if logs.size == 0:
        return -np.inf
    largest = logs.max()
    if not np.isfinite(largest):
        return float(largest)
    return float(largest + np.log(np.exp(logs - largest).sum()))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """x_j - log sum_i exp(x_i), x [n] -> [n]; the maximum goes first, so huge logits keep their differences."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def entropy(log_weights: np.ndarray) -> float:
    """H(a) = -sum_j a_j log a_j (nats) from log weights [n]; -inf stands for a zero weight and adds nothing."""
    kept = log_weights[np.isfinite(log_weights)]
    return float(-(np.exp(kept) * kept).sum())
