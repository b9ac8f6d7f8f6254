"""Entropic attention, solved by damped Newton on its dual in R^d, with a certified duality gap."""

from dataclasses import dataclass

import numpy as np

from .geometry import check_problem
from .rounding import UNIT_ROUNDOFF, gamma, log_softmax, positive

_SHRINK = 0.2  # epsilon falls by this factor along the path
_PATH_STEP = 0.1  # a stage ends when the log weights would move by less than this
_MAX_NEWTON = 60  # per stage; the damped steps need about five
_MAX_POLISH = 12  # full steps at the end; quadratic convergence needs two or three


@dataclass(frozen=True)
class EntropicSolution:
    """argmin over the simplex of 1/2 ||y(a) - q||^2 + eps sum_j a_j log a_j, with what is certified about it."""

    log_weights: np.ndarray  # [M] log a_j, meaningful far below log of the smallest float64
    point: np.ndarray  # [d] y(a)
    epsilon: float  # squared units of the keys
    duality_gap: float  # certified bound on F(a) - min F, rounding included
    point_error: float  # certified bound on ||point - y_eps||
    log_weight_error: float  # certified bound on |log a_j - log a_eps,j|, every j
    newton_steps: int

    @property
    def weights(self) -> np.ndarray:
        """a [M]; entries below e^-745 are 0 here and kept in log_weights."""
        return np.exp(self.log_weights)


def entropic_projection(keys, query, epsilon: float, tolerance: float | None = None) -> EntropicSolution:
    """a_eps = argmin_{a in S} F(a), F(a) = 1/2 ||sum_j a_j k_j - q||^2 + eps sum_j a_j log a_j.

    keys [M, d], query [d]; epsilon and tolerance in squared units of the keys. Dual: max over z in R^d of
    -<z, q> - 1/2 ||z||^2 - eps log sum_j exp(-<k_j, z> / eps), attained at z = y_eps - q. The certified gap of
    a = softmax(-(<k_j, z> + c_j) / eps), |c_j| <= c the rounding of <k_j, z>, is
        F(a) - F(a_eps) <= 1/2 ||y(a) - q - z||^2 + c^2 / (2 eps)      (README.md section 3).
    Without a tolerance the gap is as small as float64 allows. ValueError on NaN, empty input, shapes that do not
    match or epsilon <= 0; RuntimeError if a given tolerance is not reached. Source: README.md section 2.
    """
    keys, query = check_problem(keys, query)
    epsilon = positive("epsilon", epsilon)
    wanted = None if tolerance is None else positive("tolerance", tolerance)
    centre = keys.mean(axis=0)
    centred, target = keys - centre, query - centre
    reach = float(np.linalg.norm(centred, axis=1).max())
    dual = _Dual(centred, target, reach)

    stage = max(epsilon, reach**2)
    while stage > epsilon:
        dual.descend(stage, until=_PATH_STEP)
        stage = max(epsilon, _SHRINK * stage)
    dual.descend(epsilon, until=1e-3)
    log_weights, residual = dual.polish(epsilon)

    count, dim = keys.shape
    size = float(np.linalg.norm(dual.anchor) + dual.travel)
    # c: k_j - centre, d products, the steps since the freeze, a division, shifts by maximum and log sum
    cost_rounding = gamma(dim + 8 + _MAX_POLISH) * reach * size
    cost_rounding += 4 * UNIT_ROUNDOFF * epsilon * np.abs(log_weights).max()
    # of the computed y(a) - q - z: M products, exp and normalisation, then three subtractions
    point_rounding = gamma(count + 8) * reach + 3 * UNIT_ROUNDOFF * (np.linalg.norm(target) + size)
    gap = 0.5 * (np.linalg.norm(residual) + point_rounding) ** 2 + cost_rounding**2 / (2 * epsilon)
    if wanted is not None and gap > wanted:
        raise RuntimeError(
            f"certified gap {gap:.3g} is above the tolerance {wanted:.3g}, the least float64 gives here; "
            "raise the tolerance or epsilon"
        )
    distance = np.sqrt(2 * gap)  # bounds ||y - y_eps|| and ||z - z_eps|| at once
    point = np.exp(log_weights) @ centred + centre
    return EntropicSolution(
        log_weights=log_weights,
        point=point,
        epsilon=epsilon,
        duality_gap=float(gap),
        point_error=float(distance + point_rounding + 2 * UNIT_ROUNDOFF * np.linalg.norm(point)),
        log_weight_error=float((2 * reach * distance + 2 * cost_rounding) / epsilon),
        newton_steps=dual.steps,
    )


class _Dual:
    """The dual variable z = anchor + shift; <k_j, anchor> is frozen, so shift resolves far below one ulp of z."""

    def __init__(self, keys: np.ndarray, query: np.ndarray, reach: float):
        self.keys, self.query, self.reach, self.steps = keys, query, reach, 0
        self.anchor = -query  # y = 0, the mean of the keys: the solution for epsilon -> inf
        self.shift = np.zeros_like(query)
        self.freeze()

    def freeze(self) -> None:
        """z becomes the anchor, rounded once; later steps are held apart from it."""
        self.anchor = self.anchor + self.shift
        self.shift = np.zeros_like(self.anchor)
        self.base = self.keys @ self.anchor  # [M]
        self.moved = np.zeros(len(self.keys))  # [M] <k_j, shift>
        self.travel = 0.0  # sum of the lengths of the steps since

    def state(self, epsilon: float, moved: np.ndarray, shift: np.ndarray):
        """(log weights [M], y(a) - q - z [d]) at a shift; the second is the dual's gradient."""
        log_weights = log_softmax(-(self.base + moved) / epsilon)
        weights = np.exp(log_weights)
        return log_weights, (weights @ self.keys / weights.sum() - self.query - self.anchor) - shift

    def newton(self, epsilon: float, log_weights: np.ndarray, residual: np.ndarray):
        """(step [d], <k_j, step> [M]) of (Id + Cov_a(k) / eps) step = y(a) - q - z."""
        weights = np.exp(log_weights)
        centred = self.keys - weights @ self.keys
        covariance = (centred * weights[:, None]).T @ centred
        step = np.linalg.solve(np.eye(len(residual)) + covariance / epsilon, residual)
        self.steps += 1
        return step, self.keys @ step

    def descend(self, epsilon: float, until: float) -> None:
        """Damped Newton at one epsilon until a full step moves no log weight by more than `until`."""
        for _ in range(_MAX_NEWTON):
            log_weights, residual = self.state(epsilon, self.moved, self.shift)
            step, along = self.newton(epsilon, log_weights, residual)
            fraction = self._line_search(epsilon, log_weights, residual, step, along)
            self.shift, self.moved = self.shift + fraction * step, self.moved + fraction * along
            if 2 * self.reach * np.linalg.norm(step) <= until * epsilon:
                break
        self.freeze()

    def _line_search(self, epsilon, log_weights, residual, step, along) -> float:
        """Largest fraction 2^-n of the step, roughly, where the dual's slope has fallen by half or kept its sign."""
        weights, start, square = np.exp(log_weights), residual @ step, step @ step
        low, high, fraction = 0.0, 1.0, 1.0
        for _ in range(60):
            trial = np.exp(log_softmax(-(self.base + self.moved + fraction * along) / epsilon))
            slope = start - fraction * square + (trial - weights) @ along
            if abs(slope) <= 0.5 * start or (fraction == 1.0 and slope > 0):
                return fraction
            low, high = (fraction, high) if slope > 0 else (low, fraction)
            fraction = 0.5 * (low + high)
        return fraction

    def polish(self, epsilon: float):
        """Full Newton steps while the residual falls; returns the best (log weights, residual)."""
        best = self.state(epsilon, self.moved, self.shift)
        for _ in range(_MAX_POLISH):
            step, along = self.newton(epsilon, *best)
            shift, moved = self.shift + step, self.moved + along
            trial = self.state(epsilon, moved, shift)
            if not np.linalg.norm(trial[1]) < np.linalg.norm(best[1]):
                break
            self.shift, self.moved, best = shift, moved, trial
            self.travel += float(np.linalg.norm(step))
        return best
