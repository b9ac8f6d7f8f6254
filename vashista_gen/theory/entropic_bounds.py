"""Statements (A) to (F): entropic attention against hard attention. Pure formulas; every length in one unit."""

import numpy as np

from .geometry import face_conditioning
from .rounding import finite_array, non_negative, positive


def hard_suboptimality(point, hard_point, log_weights, multipliers) -> float:
    """f(a) - f(a*) = 1/2 ||y(a) - y*||^2 + sum_j a_j mu_j   for every a in S. (A), the equality.

    point, hard_point [d]; log_weights, multipliers [M]. ValueError on NaN in the points or wrong shapes.
    """
    step = finite_array("point", point, 1) - finite_array("hard_point", hard_point, 1)
    multipliers = finite_array("multipliers", multipliers, 1)
    return float(0.5 * (step @ step) + np.exp(log_weights) @ multipliers)


def suboptimality_bound(epsilon: float, entropy_eps: float, entropy_hard: float) -> float:
    """f(a_eps) - f(a*) <= eps (H(a_eps) - H(a*)). (A), entropies in nats. ValueError if epsilon <= 0."""
    return positive("epsilon", epsilon) * (entropy_eps - entropy_hard)


def suboptimality_bound_apriori(epsilon: float, num_keys: int) -> float:
    """f(a_eps) - f(a*) <= eps log M. (A), known before solving. ValueError if epsilon <= 0 or num_keys < 1."""
    return positive("epsilon", epsilon) * float(np.log(_count("num_keys", num_keys)))


def point_error_bound_apriori(epsilon: float, num_keys: int) -> float:
    """||y_eps - y*|| <= sqrt(2 eps log M). From (A), since mu >= 0. ValueError as above."""
    return float(np.sqrt(2.0 * suboptimality_bound_apriori(epsilon, num_keys)))


def leakage_bound_linear(epsilon: float, entropy_eps: float, entropy_hard: float, support_gap: float) -> float:
    """L <= eps (H(a_eps) - H(a*)) / Delta. (B), no condition on eps. ValueError if epsilon or Delta <= 0."""
    if support_gap == np.inf:
        return 0.0
    return suboptimality_bound(epsilon, entropy_eps, entropy_hard) / positive("support_gap", support_gap)


def log_weight_ratio_bound(epsilon: float, support_gap: float, diameter: float, point_distance: float) -> float:
    """log(a_eps,j / a_eps,i) <= -(Delta - D ||y_eps - y*||) / eps,  i in I, j not in I. (C), a posteriori.

    support_gap in squared units; diameter and point_distance in units. ValueError if epsilon <= 0.
    """
    slack = non_negative("diameter", diameter) * non_negative("point_distance", point_distance)
    return -(non_negative("support_gap", support_gap) - slack) / positive("epsilon", epsilon)


def exponential_regime(support_gap: float, diameter: float, point_distance: float) -> bool:
    """D ||y_eps - y*|| <= Delta / 2: the condition of (D) and (F), checkable after solving."""
    return bool(diameter * point_distance <= 0.5 * support_gap)


def epsilon_threshold(support_gap: float, diameter: float, num_keys: int) -> float:
    """eps <= Delta^2 / (8 D^2 log M) implies the condition of (D), by (A). inf when D = 0 or M = 1."""
    scale = 8.0 * diameter**2 * np.log(_count("num_keys", num_keys))
    return float(support_gap**2 / scale) if scale > 0 else np.inf


def log_leakage_bound(epsilon: float, support_gap: float, num_keys: int, face_size: int) -> float:
    """log L <= log((M - |I|) / |I|) - Delta / (2 eps),  if D ||y_eps - y*|| <= Delta / 2. (D), arXiv 2602.13804.

    -inf when the face is all keys. ValueError if epsilon <= 0 or not 1 <= face_size <= num_keys.
    """
    outside = _outside(num_keys, face_size)
    if outside == 0:
        return -np.inf
    return float(np.log(outside / face_size) - support_gap / (2.0 * positive("epsilon", epsilon)))


def linear_constant(face_keys, face_weights) -> float:
    """C_lin = kappa ||P log a*_I||_2, P = Id - 11'/|I|; 0 for one key. The constant of (E), unnamed in the paper.

    face_keys [|I|, d] affinely independent (else inf); face_weights [|I|] positive. Units: 1 / length.
    ValueError on NaN, wrong shapes or a weight <= 0.
    """
    face_keys, face_weights = finite_array("face_keys", face_keys, 2), finite_array("face_weights", face_weights, 1)
    if face_weights.shape[0] != face_keys.shape[0] or not (face_weights > 0).all():
        raise ValueError("face_weights must be positive, one for each face key")
    if len(face_weights) == 1:
        return 0.0
    logs = np.log(face_weights)
    return float(face_conditioning(face_keys).kappa * np.linalg.norm(logs - logs.mean()))


def face_error_bound(constant: float, epsilon: float, diameter: float, leakage: float, face_size: int) -> float:
    """||y_eps - y*|| <= C_lin eps + D L (1 if |I| = 1 else 2). (E), no condition on eps.

    ValueError if epsilon <= 0 or a negative constant, diameter or leakage.
    """
    times = 1.0 if _count("face_size", face_size) == 1 else 2.0
    spill = non_negative("diameter", diameter) * non_negative("leakage", leakage) * times
    return non_negative("constant", constant) * positive("epsilon", epsilon) + spill


def point_error_bound(
    constant: float, epsilon: float, diameter: float, support_gap: float, num_keys: int, face_size: int
) -> float:
    """||y_eps - y*|| <= C_lin eps + D (M - |I|) exp(-Delta / (2 eps)),  if D ||y_eps - y*|| <= Delta / 2.

    (F), the main theorem of arXiv 2602.13804 with its constant named. ValueError as in (D) and (E).
    """
    epsilon, outside = positive("epsilon", epsilon), _outside(num_keys, face_size)
    spill = diameter * outside * np.exp(-support_gap / (2.0 * epsilon)) if outside else 0.0
    return float(non_negative("constant", constant) * epsilon + spill)


def value_error_bound(
    face_values, kappa: float, point_distance: float, diameter: float, leakage: float, value_diameter: float
) -> float:
    """||V'a_eps - V'a*|| <= ||P V_I||_2 kappa (||y_eps - y*|| + D L) + L diam(V). Values, after (E).

    face_values [|I|, d_v]; kappa of the face's keys (0 for one key). ValueError on NaN or a wrong shape.
    """
    face_values = finite_array("face_values", face_values, 2)
    centred = face_values - face_values[0]
    norm = float(np.linalg.norm(centred - centred.mean(axis=0), 2))
    return norm * kappa * (point_distance + diameter * leakage) + leakage * value_diameter


def _count(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")
    return int(value)


def _outside(num_keys: int, face_size: int) -> int:
    if _count("face_size", face_size) > _count("num_keys", num_keys):
        raise ValueError(f"face_size {face_size} is above num_keys {num_keys}")
    return int(num_keys) - int(face_size)
