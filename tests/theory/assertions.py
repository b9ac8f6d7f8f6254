"""One checker per statement (A) to (F), each with a tolerance derived from certified errors and rounding alone.

Written: a^ and a~ are the solvers' weights for a_eps and a*; G = F(a^) - F(a_eps) and g = f(a~) - f* at most;
e = error of ||y_eps - y*||, the sum of both point errors; w = error of any log weight or ratio of a^;
m = multiplier error. What each rests on:
  * F is 1-strongly convex in y:  1/2 ||y^ - y_eps||^2 + eps KL(a^ || a_eps) <= G; so y, and total variation by
    Pinsker, TV <= sqrt(G / (2 eps)).
  * mu_j - mu_i = <k_j - k_i, y* - q>, so m bounds the error of any difference too, and a face key's true
    multiplier may differ from 0 by m plus its computed value: `face_slack`.
A checker calls the bound through its module, returns Margin, and raises AssertionError when the bound fails.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vashista_gen.theory import (
    EntropicSolution,
    Projection,
    diameter,
    entropic_bounds,
    entropic_projection,
    project_onto_hull,
)
from vashista_gen.theory.geometry import face_conditioning
from vashista_gen.theory.rounding import UNIT_ROUNDOFF, entropy, gamma, log_sum_exp

from .families import Instance


class Margin(NamedTuple):
    """value <= bound + tolerance was asserted; all in the units of the statement (nats for C and D)."""

    value: float
    bound: float
    tolerance: float


@dataclass(frozen=True)
class Solved:
    """An instance with both solutions and the numbers the statements are about."""

    keys: np.ndarray
    query: np.ndarray
    epsilon: float
    hard: Projection
    soft: EntropicSolution
    diameter: float
    distance: float  # ||y_eps - y*||
    distance_error: float  # e
    log_leakage: float

    @property
    def face_size(self) -> int:
        return len(self.hard.active_face)

    @property
    def outside(self) -> np.ndarray:
        mask = np.ones(len(self.keys), dtype=bool)
        mask[self.hard.active_face] = False
        return mask

    @property
    def face_slack(self) -> float:
        return self.hard.multiplier_error + float(self.hard.multipliers[self.hard.active_face].max())

    @property
    def leakage(self) -> float:
        return float(np.exp(self.log_leakage))

    @property
    def leakage_error(self) -> float:
        """|L^ - L|: relative by the log weights, or absolute by Pinsker, whichever is smaller."""
        relative = self.leakage * np.expm1(min(self.soft.log_weight_error, 50.0))
        pinsker = np.sqrt(self.soft.duality_gap / (2 * self.epsilon))
        return float(min(relative, pinsker)) + gamma(len(self.keys) + 8) * self.leakage

    @property
    def entropies(self) -> tuple[float, float, float]:
        """H(a^), H(a~) and the rounding of their difference: M products, exp, and sum a != 1 by a few u."""
        with np.errstate(divide="ignore"):
            soft, hard = entropy(self.soft.log_weights), entropy(np.log(self.hard.weights))
        return soft, hard, gamma(len(self.keys) + 16) * (soft + hard + 1)

    @property
    def regime(self) -> bool:
        """The condition of (D) holds even if every error conspires against it."""
        gap = self.hard.support_gap - self.face_slack
        farthest = self.distance + self.distance_error
        return bool(self.outside.any()) and entropic_bounds.exponential_regime(gap, self.diameter, farthest)


def solve(instance: Instance) -> Solved:
    hard = project_onto_hull(instance.keys, instance.query)
    soft = entropic_projection(instance.keys, instance.query, instance.epsilon)
    distance = float(np.linalg.norm(soft.point - hard.point))
    error = soft.point_error + hard.point_error + gamma(len(instance.query) + 4) * distance
    mask = np.ones(len(instance.keys), dtype=bool)
    mask[hard.active_face] = False
    log_leakage = log_sum_exp(soft.log_weights[mask])
    spread = diameter(instance.keys)
    return Solved(instance.keys, instance.query, instance.epsilon, hard, soft, spread, distance, error, log_leakage)


def check_suboptimality(s: Solved) -> Margin:
    """(A): the equality, both inequalities and the bound on y they imply; degenerate faces included."""
    value = entropic_bounds.hard_suboptimality(s.soft.point, s.hard.point, s.soft.log_weights, s.hard.multipliers)
    error = s.distance_error * (s.distance + s.distance_error) + s.hard.multiplier_error
    error += gamma(len(s.keys) + 8) * value
    # f(a^) - f(a~) straight from the definition; moving a point by e changes f by ||x|| e + e^2 / 2
    direct, direct_error = 0.0, s.hard.suboptimality
    for sign, point, point_error in ((1, s.soft.point, s.soft.point_error), (-1, s.hard.point, s.hard.point_error)):
        length = np.linalg.norm(point - s.query)
        direct += sign * 0.5 * length**2
        direct_error += length * point_error + 0.5 * point_error**2 + gamma(len(s.query) + 6) * length**2
    assert abs(value - direct) <= error + direct_error, f"(A) equality: {value} against {direct}"

    # F(a^) <= F(a_eps) + G <= F(a~) + G and f(a~) <= f* + g give f(a^) - f* <= eps (H(a^) - H(a~)) + G + g
    soft, hard, rounding = s.entropies
    bound = entropic_bounds.suboptimality_bound(s.epsilon, soft, hard)
    tolerance = error + s.soft.duality_gap + s.hard.suboptimality + s.epsilon * rounding
    assert value <= bound + tolerance, f"(A): f(a_eps) - f* = {value} > eps (H - H*) = {bound} + {tolerance}"
    prior = entropic_bounds.suboptimality_bound_apriori(s.epsilon, len(s.keys))
    assert bound <= prior + s.epsilon * rounding, f"(A): eps (H - H*) = {bound} > eps log M = {prior}"
    reach = entropic_bounds.point_error_bound_apriori(s.epsilon, len(s.keys)) * (1 + gamma(8))
    assert s.distance <= reach + s.distance_error, f"(A): ||y_eps - y*|| = {s.distance} > {reach}"
    return Margin(value, bound, tolerance)


def check_leakage_linear(s: Solved) -> Margin:
    """(B). L^ (Delta - m) <= sum a^ mu <= eps (H(a^) - H(a~)) + G + g, as in (A); the rest goes to the right."""
    soft, hard, rounding = s.entropies
    bound = entropic_bounds.leakage_bound_linear(s.epsilon, soft, hard, s.hard.support_gap)
    spare = s.soft.duality_gap + s.hard.suboptimality + s.leakage * s.face_slack + s.epsilon * rounding
    tolerance = spare / s.hard.support_gap + gamma(len(s.keys) + 8) * s.leakage
    assert s.leakage <= bound + tolerance, f"(B): L = {s.leakage} > {bound} + {tolerance}"
    return Margin(s.leakage, bound, tolerance)


def check_log_weight_ratio(s: Solved) -> Margin | None:
    """(C) for the largest weight outside and the smallest on the face, in nats; None when nothing is outside."""
    if not s.outside.any():
        return None
    logs = s.soft.log_weights
    value = float(logs[s.outside].max() - logs[s.hard.active_face].min())
    bound = entropic_bounds.log_weight_ratio_bound(s.epsilon, s.hard.support_gap, s.diameter, s.distance)
    rounding = 8 * UNIT_ROUNDOFF * (abs(value) + (s.hard.support_gap + s.diameter * s.distance) / s.epsilon)
    tolerance = (s.face_slack + s.diameter * s.distance_error) / s.epsilon + s.soft.log_weight_error + rounding
    assert value <= bound + tolerance, f"(C): log ratio {value} > {bound} + {tolerance}"
    return Margin(value, bound, tolerance)


def check_leakage_exponential(s: Solved) -> Margin | None:
    """(D) in nats: (C) with Delta - face_slack, whose half covers D (||y_eps - y*|| + e); None out of its regime."""
    if not s.regime:
        return None
    bound = entropic_bounds.log_leakage_bound(s.epsilon, s.hard.support_gap, len(s.keys), s.face_size)
    rounding = gamma(len(s.keys) + 8) + 8 * UNIT_ROUNDOFF * (abs(bound) + s.hard.support_gap / s.epsilon)
    tolerance = s.face_slack / (2 * s.epsilon) + s.soft.log_weight_error + rounding
    assert s.log_leakage <= bound + tolerance, f"(D): log L = {s.log_leakage} > {bound} + {tolerance}"
    return Margin(s.log_leakage, bound, tolerance)


def linear_part(s: Solved) -> tuple[float, float]:
    """C_lin eps of (E) and its error: |P (log a* - log a~)| <= ||da|| / (min a - ||da||), and kappa's own error."""
    face = s.hard.active_face
    weights, moved = s.hard.weights[face], s.hard.weights_error
    constant = entropic_bounds.linear_constant(s.keys[face], weights)
    conditioning = face_conditioning(s.keys[face])
    relative = conditioning.relative_error + gamma(len(face) + 8)
    change = conditioning.kappa * (1 + relative) * moved / (weights.min() - moved)
    return s.epsilon * constant, s.epsilon * (change + relative * constant)


def check_face_error(s: Solved) -> Margin | None:
    """(E); None on a degenerate face, where a* is not unique or not resolved."""
    if s.hard.degenerate:
        return None
    linear, linear_error = linear_part(s)
    bound = entropic_bounds.face_error_bound(linear / s.epsilon, s.epsilon, s.diameter, s.leakage, s.face_size)
    tolerance = s.distance_error + linear_error + 2 * s.diameter * s.leakage_error + gamma(8) * bound
    assert s.distance <= bound + tolerance, f"(E): ||y_eps - y*|| = {s.distance} > {bound} + {tolerance}"
    return Margin(s.distance, bound, tolerance)


def check_point_error(s: Solved) -> Margin | None:
    """(F): (E) with (D) put in, so Delta may be off by face_slack in the exponent."""
    if s.hard.degenerate or not s.regime:
        return None
    linear, linear_error = linear_part(s)
    size, count = s.face_size, len(s.keys)
    bound = entropic_bounds.point_error_bound(
        linear / s.epsilon, s.epsilon, s.diameter, s.hard.support_gap, count, size
    )
    grown = np.expm1(min(s.face_slack / (2 * s.epsilon) + gamma(8) * (1 + s.hard.support_gap / s.epsilon), 50.0))
    tolerance = s.distance_error + linear_error + (bound - linear) * grown + gamma(8) * bound
    assert s.distance <= bound + tolerance, f"(F): ||y_eps - y*|| = {s.distance} > {bound} + {tolerance}"
    return Margin(s.distance, bound, tolerance)


def check_value_error(s: Solved, values: np.ndarray) -> Margin | None:
    """Values: the left side errs by (||a^ - a_eps||_1 + sqrt|I| ||a~ - a*||_2) max ||v||, the right by e and L's."""
    if s.hard.degenerate:
        return None
    face, conditioning = s.hard.active_face, face_conditioning(s.keys[s.hard.active_face])
    kappa, spread = conditioning.kappa * (1 + conditioning.relative_error), diameter(values)
    value = float(np.linalg.norm((s.soft.weights - s.hard.weights) @ values))
    bound = entropic_bounds.value_error_bound(values[face], kappa, s.distance, s.diameter, s.leakage, spread)
    one_norm = min(np.expm1(min(s.soft.log_weight_error, 50.0)), np.sqrt(2 * s.soft.duality_gap / s.epsilon))
    left = one_norm + np.sqrt(s.face_size) * s.hard.weights_error + gamma(len(s.keys) + 8) * 2
    zero = entropic_bounds.value_error_bound(
        values[face], kappa, s.distance_error, s.diameter, s.leakage_error, spread
    )  # linear in its last arguments, so this is the right side's error
    tolerance = left * np.linalg.norm(values, axis=1).max() + zero + gamma(len(s.keys) + 8) * bound
    assert value <= bound + tolerance, f"(values): {value} > {bound} + {tolerance}"
    return Margin(value, bound, tolerance)
