"""Statements (G) to (L): softmax over a candidate set against softmax over all tokens. Everything in log space.

Logits are s_j / eps, that is, already scaled (and soft-capped, if they are); candidates is a boolean mask [n].
"""

import numpy as np

from .geometry import diameter, radius
from .rounding import finite_array, log_softmax, log_sum_exp, non_negative


def log_dropped_mass(logits, candidates) -> float:
    """log delta = log sum_{j not in C} p_j,  p = softmax(logits [n]); -inf when nothing is dropped.

    ValueError on NaN, a mask of another shape, or no candidate.
    """
    logits, candidates = _check(logits, candidates)
    return log_sum_exp(logits[~candidates]) - log_sum_exp(logits)


def total_variation(logits, candidates) -> float:
    """TV(p, p_C) = 1/2 sum_j |p_j - p_C,j| = delta. (G), the left side, summed as written. ValueError as above."""
    logits, candidates = _check(logits, candidates)
    full, kept = np.exp(log_softmax(logits)), np.zeros(len(logits))
    kept[candidates] = np.exp(log_softmax(logits[candidates]))
    return float(0.5 * np.abs(full - kept).sum())


def output_error(logits, candidates, values) -> np.ndarray:
    """o - o_C = delta (mu_out - mu_C),  mu = the softmax means of the two parts. (H), exact; values [n, d_v] -> [d_v].

    ValueError as above or on values of another length.
    """
    logits, candidates = _check(logits, candidates)
    values = finite_array("values", values, 2)
    if len(values) != len(logits):
        raise ValueError(f"values {values.shape} and logits {logits.shape} differ in length")
    if candidates.all():
        return np.zeros(values.shape[1])
    inside, outside = (np.exp(log_softmax(logits[part])) @ values[part] for part in (candidates, ~candidates))
    return np.exp(log_dropped_mass(logits, candidates)) * (outside - inside)


def output_error_bound(dropped_mass: float, values) -> float:
    """||o - o_C|| <= delta diam(V), values [n, d_v]. (I). ValueError on NaN or a negative mass."""
    return non_negative("dropped_mass", dropped_mass) * diameter(values)


def output_error_bound_radius(dropped_mass: float, values, centre) -> float:
    """||o - o_C|| <= 2 delta max_j ||v_j - c||  for any centre c [d_v]. (I). ValueError as above."""
    return 2.0 * non_negative("dropped_mass", dropped_mass) * radius(values, centre)


def candidate_support_gap(logits, candidates) -> float:
    """Delta_C / eps = min_C logits - max_{not C} logits (nats; negative if C is not the top k); inf if C is all."""
    logits, candidates = _check(logits, candidates)
    return np.inf if candidates.all() else float(logits[candidates].min() - logits[~candidates].max())


def log_dropped_mass_bound(support_gap: float, num_tokens: int, num_candidates: int) -> float:
    """log delta <= -log(1 + k/(n-k) exp(Delta_C / eps)). (J); support_gap = Delta_C / eps in nats.

    Attained when the logits take one value on C and one outside. ValueError unless 1 <= k <= n; NaN gap.
    """
    if not 1 <= num_candidates <= num_tokens:
        raise ValueError(f"need 1 <= num_candidates <= num_tokens, got {num_candidates} and {num_tokens}")
    if np.isnan(support_gap):
        raise ValueError("support_gap is NaN")
    if num_candidates == num_tokens:
        return -np.inf
    return float(-np.logaddexp(0.0, np.log(num_candidates / (num_tokens - num_candidates)) + support_gap))


def log_omitted_bound(sizes, upper_bounds) -> float:
    """log U = log sum_p n_p exp(u_p), u_p >= max logit of omitted group p; sizes, upper_bounds [P]. (K), the sum.

    -inf for no group; a size of 0 adds nothing. ValueError on NaN, negative sizes or shapes that do not match.
    """
    sizes, upper_bounds = np.asarray(sizes, dtype=np.float64), np.asarray(upper_bounds, dtype=np.float64)
    if sizes.shape != upper_bounds.shape or sizes.ndim != 1:
        raise ValueError(f"sizes {sizes.shape} and upper_bounds {upper_bounds.shape} must be [P] both")
    if np.isnan(upper_bounds).any() or not (sizes >= 0).all():
        raise ValueError("upper_bounds must not be NaN and sizes must be >= 0")
    kept = sizes > 0
    return log_sum_exp(upper_bounds[kept] + np.log(sizes[kept]))


def log_dropped_mass_certificate(log_kept: float, log_omitted: float) -> float:
    """log delta <= log U - log(Z + U),  log_kept = log Z = log sum_C exp, log_omitted = log U. (K).

    Rises with U and falls with Z. ValueError on NaN or log Z = -inf.
    """
    if np.isnan(log_kept) or np.isnan(log_omitted) or log_kept == -np.inf:
        raise ValueError(f"log_kept must be finite and log_omitted not NaN, got {log_kept} and {log_omitted}")
    return float(-np.logaddexp(0.0, log_kept - log_omitted)) if log_omitted > -np.inf else -np.inf


def merge_by_lse(outputs, lses) -> tuple[np.ndarray, float]:
    """o = sum_r exp(lse_r - lse) o_r,  lse = log sum_r exp(lse_r). (L), exact for disjoint token sets.

    outputs [R, d_v], lses [R] natural log; lse_r = -inf marks an empty set, its o_r is ignored. Returns
    (o [d_v], lse). ValueError on NaN, shapes that do not match, or every set empty.
    """
    outputs, lses = np.asarray(outputs, dtype=np.float64), np.asarray(lses, dtype=np.float64)
    if outputs.ndim != 2 or lses.shape != outputs.shape[:1]:
        raise ValueError(f"outputs {outputs.shape} must be [R, d_v] and lses {lses.shape} [R]")
    if np.isnan(lses).any() or (lses == np.inf).any():
        raise ValueError("lses must be finite or -inf")
    used = lses > -np.inf
    if not used.any():
        raise ValueError("every set is empty: nothing to merge")
    if not np.isfinite(outputs[used]).all():
        raise ValueError("outputs must be finite where lse is")
    lse = log_sum_exp(lses[used])
    return np.exp(lses[used] - lse) @ outputs[used], lse


def _check(logits, candidates) -> tuple[np.ndarray, np.ndarray]:
    logits, candidates = finite_array("logits", logits, 1), np.asarray(candidates)
    if candidates.dtype != bool or candidates.shape != logits.shape:
        raise ValueError(f"candidates must be a boolean mask {logits.shape}, got {candidates.dtype} {candidates.shape}")
    if not candidates.any():
        raise ValueError("candidates is empty")
    return logits, candidates
