"""Hard attention: the exact projection of a query on the convex hull of the keys (Wolfe 1976, active set)."""

from dataclasses import dataclass

import numpy as np

from .geometry import check_problem, diameter, face_conditioning
from .rounding import UNIT_ROUNDOFF, gamma


@dataclass(frozen=True)
class Projection:
    """argmin over the simplex of 1/2 ||sum_j a_j k_j - q||^2, with what is certified about it."""

    weights: np.ndarray  # [M] a*, zero outside the solver's corral
    point: np.ndarray  # [d] y*
    active_face: np.ndarray  # int64 [|I|], sorted: a_j > 0 or mu_j within multiplier_error of 0
    multipliers: np.ndarray  # [M] mu_j >= 0
    level: float  # lam = min_j <k_j, y* - q>
    support_gap: float  # Delta = min of mu outside the face; inf when the face is all keys
    duality_gap: float  # max_j <y - q, y - k_j>, rounded up
    suboptimality: float  # certified bound on f(a) - f(a*), at most duality_gap
    point_error: float  # certified bound on ||point - y*||
    multiplier_error: float  # certified bound on |multipliers_j - mu_j|, every j
    weights_error: float  # certified bound on ||weights - a*||_2; inf when degenerate
    kappa: float  # of the face, see (E); inf when affinely dependent
    affinely_independent: bool  # the face's keys
    strictly_complementary: bool  # every face weight is positive beyond its error, a* is unique

    @property
    def degenerate(self) -> bool:
        """True when a* is not unique or not resolved in float64: statements on a* must not be asserted."""
        return not (self.affinely_independent and self.strictly_complementary)


def project_onto_hull(keys, query) -> Projection:
    """a* = argmin_{a in S} f(a), f(a) = 1/2 ||sum_j a_j k_j - q||^2, y* the projection of q on conv{k_j}.

    keys [M, d], query [d], float64 in any one unit of length (f, mu, gaps in its square). Wolfe's minimum norm
    point on k_j - q. ValueError on NaN, empty input or shapes that do not match. Source: README.md section 1.
    """
    keys, query = check_problem(keys, query)
    centre = keys.mean(axis=0)
    centred, target = keys - centre, query - centre
    corral, corral_weights = _wolfe(centred, target)
    weights = np.zeros(len(keys))
    weights[corral] = corral_weights
    return certify(keys, query, weights)


def certify(keys, query, weights) -> Projection:
    """The Projection record of feasible weights [M]: face, multipliers, and error bounds that hold in exact arithmetic.

    Bounds used, x = y - q, S = {a_j > 0}: f(a) - f* <= gap and <= 1/2 ||x||^2; strong convexity in y gives
    ||y - y*||^2 <= 2 (f(a) - f*); and, when a > 0 on S and mu > 0 off S beyond their errors, y* is the projection
    on aff(S), so ||y - y*|| <= kappa_S ||P g_S||. ValueError on NaN, wrong shapes or weights off the simplex.
    """
    keys, query = check_problem(keys, query)
    weights = np.asarray(weights, dtype=np.float64)
    count, dim = keys.shape
    if weights.shape != (count,) or not (weights >= 0).all() or abs(weights.sum() - 1.0) > gamma(count + 4):
        raise ValueError(f"weights must be [M={count}], non-negative and sum to 1")
    centre = keys.mean(axis=0)
    centred, target = keys - centre, query - centre
    corral = np.flatnonzero(weights)
    size = len(corral)
    y = weights[corral] @ centred[corral]  # relative to the centre
    x = y - target
    spread = diameter(keys)
    reach, length = float(np.linalg.norm(centred, axis=1).max()), float(np.linalg.norm(x))
    # |computed x - (y(a) - q)|: the products of the sum, sum a != 1, and the two subtractions
    x_rounding = gamma(size + 6) * reach + 2 * UNIT_ROUNDOFF * (np.linalg.norm(target) + length)
    g_rounding = gamma(dim + 4) * reach * length + reach * x_rounding  # of one <k_j - c, x>
    g = centred @ x
    gap = max(0.0, float(y @ x - g.min())) + 2 * g_rounding

    multipliers = g - g.min()
    subopt = min(gap, 0.5 * (length + x_rounding) ** 2)
    error = np.sqrt(2 * subopt)
    on_corral = face_conditioning(keys[corral])
    if on_corral.affinely_independent:
        kappa = on_corral.kappa * (1 + on_corral.relative_error)
        residual = g[corral] - g[corral].mean()
        on_plane = kappa * (np.linalg.norm(residual) + 2 * np.sqrt(size) * g_rounding)  # ||y - y_aff(S)||
        if size == 1:
            on_plane = x_rounding
        inside = size == 1 or weights[corral].min() > kappa * (on_plane + x_rounding) + gamma(size)
        off = np.ones(count, dtype=bool)
        off[corral] = False
        near = np.flatnonzero(off & (multipliers <= spread * on_plane + 2 * g_rounding))
        copies = all((keys[corral] == keys[j]).all(axis=1).any() for j in near)
        if inside and (size == dim + 1 or copies) and on_plane < error:
            error, subopt = on_plane, min(subopt, 0.5 * on_plane**2)
    error = error + x_rounding
    mult_error = spread * error + 2 * g_rounding

    face = np.flatnonzero((multipliers <= mult_error) | (weights > 0))
    outside = np.ones(count, dtype=bool)
    outside[face] = False
    support_gap = float(multipliers[outside].min()) if outside.any() else np.inf
    on_face = face_conditioning(keys[face])
    kappa = on_face.kappa * (1 + on_face.relative_error)
    weights_error = kappa * error + gamma(size) if on_face.affinely_independent else np.inf
    strict = bool(len(face) == size and weights[face].min() > weights_error)
    point = y + centre
    return Projection(
        weights=weights,
        point=point,
        active_face=face,
        multipliers=multipliers,
        level=float(g.min() + centre @ x),
        support_gap=support_gap,
        duality_gap=gap,
        suboptimality=float(subopt),
        point_error=float(error + 2 * UNIT_ROUNDOFF * np.linalg.norm(point)),
        multiplier_error=float(mult_error),
        weights_error=float(weights_error) if strict else np.inf,
        kappa=on_face.kappa,
        affinely_independent=on_face.affinely_independent,
        strictly_complementary=strict,
    )


def _wolfe(keys: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corral (int64 [s]) and its positive weights [s]; major cycles add the worst violator, minor ones drop keys."""
    distances = np.linalg.norm(keys - query, axis=1)
    corral, weights = np.array([int(distances.argmin())]), np.ones(1)
    x = keys[corral[0]] - query
    noise = 4 * UNIT_ROUNDOFF * np.linalg.norm(keys, axis=1).max()
    for _ in range(10 * (len(keys) + keys.shape[1])):
        g = keys @ x
        entering = int(g.argmin())
        if weights @ g[corral] - g[entering] <= noise * np.linalg.norm(x) or entering in corral:
            break
        trial = _minor_cycles(keys, query, np.append(corral, entering), np.append(weights, 0.0))
        if trial is None or not np.linalg.norm(trial[2]) < np.linalg.norm(x):
            break  # no strict decrease: rounding has been reached
        corral, weights, x = trial
    order = np.argsort(corral)
    return corral[order], weights[order] / weights.sum()


def _minor_cycles(keys, query, corral, weights):
    """(corral, weights, y - q) with y the projection of q on aff(corral) and weights > 0; None if dependent."""
    while True:
        affine = _affine_minimiser(keys[corral], query)
        if affine is None:
            return None
        if affine.min() > 0:
            return corral, affine, affine @ keys[corral] - query
        blocked = np.flatnonzero(affine <= 0)
        steps = weights[blocked] / np.maximum(weights[blocked] - affine[blocked], np.finfo(float).tiny)
        weights = weights + steps.min() * (affine - weights)
        weights[blocked[steps.argmin()]] = 0.0
        kept = weights > 0
        corral, weights = corral[kept], weights[kept] / weights[kept].sum()


def _affine_minimiser(points: np.ndarray, query: np.ndarray) -> np.ndarray | None:
    """Weights [s], sum 1, of the projection of query on aff(points [s, d]), by QR, refined; None if dependent."""
    if len(points) == 1:
        return np.ones(1)
    if len(points) > points.shape[1] + 1:
        return None
    q_factor, r_factor = np.linalg.qr((points[1:] - points[0]).T)
    diagonal = np.abs(np.diag(r_factor))
    if diagonal.min() <= gamma(len(points)) * diagonal.max():
        return None
    weights = np.zeros(len(points))
    weights[0] = 1.0
    for _ in range(3):  # the first solves, the others refine the residual
        change = np.linalg.solve(r_factor, -(q_factor.T @ (weights @ points - query)))
        weights[1:] += change
        weights[0] = 1.0 - weights[1:].sum()
    return weights
