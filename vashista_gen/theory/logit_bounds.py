"""Upper bounds u on a logit <q, k> from a summary of k: the u_p that (K) accepts, and their minimum.

Each is exact real arithmetic evaluated in float64; a summary stored in fewer bits must be rounded outward first.
"""

import numpy as np

from .geometry import check_problem
from .rounding import finite_array, non_negative


def box_logit_bound(query, low, high) -> float:
    """max_{lo <= k <= hi} <q, k> = sum_d max(q_d lo_d, q_d hi_d); query, low, high [d]. (K).

    ValueError on NaN, shapes that do not match or low > high.
    """
    query, low, high = (finite_array(n, v, 1) for n, v in (("query", query), ("low", low), ("high", high)))
    if not query.shape == low.shape == high.shape or (low > high).any():
        raise ValueError("query, low and high must share their shape, with low <= high")
    return float(np.maximum(query * low, query * high).sum())


def ball_logit_bound(query, centre, radius: float) -> float:
    """max_{||k - c|| <= r} <q, k> = <q, c> + ||q|| r; query, centre [d]. (K). ValueError on NaN or a negative r."""
    query, centre = _pair(query, centre)
    return float(query @ centre + np.linalg.norm(query) * non_negative("radius", radius))


def low_rank_logit_bound(query, basis, low_rank_logit: float, residual_norm: float) -> float:
    """<q, k> <= <q_r, k_r> + ||q_perp|| ||k_perp||,  q_r = the part of q in the rows of basis [r, d] (orthonormal).

    low_rank_logit >= <q_r, k_r>, residual_norm >= ||k_perp||, both over the group. (K). ValueError on NaN or shapes.
    """
    basis, query = check_problem(basis, query)
    rest = query - (query @ basis.T) @ basis
    return float(low_rank_logit + np.linalg.norm(rest) * non_negative("residual_norm", residual_norm))


def quantised_logit_bound(query, quantised_keys, residual_norms) -> np.ndarray:
    """<q, k_j> <= <q, k^_j> + ||q|| ||k_j - k^_j||; quantised_keys [n, d], residual_norms [n] -> [n]. (K).

    ValueError on NaN, shapes that do not match or a negative norm.
    """
    quantised_keys, query = check_problem(quantised_keys, query)
    residual_norms = finite_array("residual_norms", residual_norms, 1)
    if residual_norms.shape != quantised_keys.shape[:1] or (residual_norms < 0).any():
        raise ValueError("residual_norms must be [n] and >= 0")
    return quantised_keys @ query + np.linalg.norm(query) * residual_norms


def _pair(query, centre) -> tuple[np.ndarray, np.ndarray]:
    query, centre = finite_array("query", query, 1), finite_array("centre", centre, 1)
    if query.shape != centre.shape:
        raise ValueError(f"query {query.shape} and centre {centre.shape} differ")
    return query, centre
