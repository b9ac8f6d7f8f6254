"""Hard attention by pairwise Frank-Wolfe: only inner products, and a duality gap at every step."""

import numpy as np

from .geometry import check_problem
from .projection import Projection, certify
from .rounding import non_negative


def frank_wolfe(keys, query, tolerance: float = 0.0, max_steps: int = 20_000) -> Projection:
    """a* = argmin_{a in S} 1/2 ||sum_j a_j k_j - q||^2 to gap(a) = max_j <y - q, y - k_j> <= tolerance or max_steps.

    keys [M, d], query [d]; tolerance in squared units of the keys. Each step moves weight from the worst key in
    use to the best key, with an exact line search: linear convergence on a polytope (Lacoste-Julien and Jaggi
    2015). The result says in duality_gap how far it came; it does not raise when the tolerance is missed.
    ValueError on NaN, empty input, shapes that do not match or a negative tolerance. Source: README.md section 1.
    """
    keys, query = check_problem(keys, query)
    tolerance = non_negative("tolerance", tolerance)
    if max_steps < 0:
        raise ValueError(f"max_steps must be >= 0, got {max_steps}")
    centre = keys.mean(axis=0)
    centred, target = keys - centre, query - centre
    weights = np.zeros(len(keys))
    weights[np.linalg.norm(centred - target, axis=1).argmin()] = 1.0
    for _ in range(max_steps):
        y = weights @ centred
        x = y - target
        g = centred @ x
        towards = int(g.argmin())
        used = np.flatnonzero(weights)
        away = int(used[g[used].argmax()])
        if y @ x - g[towards] <= tolerance or towards == away:
            break
        direction = centred[towards] - centred[away]
        square = direction @ direction
        if square == 0:
            break  # the two keys coincide: nothing to gain
        step = min(weights[away], -(x @ direction) / square)
        if not step > 0:
            break  # rounding has been reached
        weights[towards] += step
        weights[away] = 0.0 if step == weights[away] else weights[away] - step
    return certify(keys, query, weights / weights.sum())
