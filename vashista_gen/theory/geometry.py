"""Lengths of a key set: diameter, radius, and how well conditioned a face is."""

from typing import NamedTuple

import numpy as np

from .rounding import UNIT_ROUNDOFF, finite_array, gamma

_ROWS = 512  # rows of the distance matrix held at once


class FaceConditioning(NamedTuple):
    """kappa = 1 / sigma_min(P K_I) and whether the face's keys are affinely independent."""

    kappa: float  # 1 / length; 0 for one key, inf when affinely dependent
    relative_error: float  # of kappa, from the SVD's backward error
    affinely_independent: bool


def check_problem(keys, query) -> tuple[np.ndarray, np.ndarray]:
    """keys [M, d] and query [d] as float64; ValueError on NaN, an empty axis or shapes that do not match."""
    keys, query = finite_array("keys", keys, 2), finite_array("query", query, 1)
    if keys.shape[1] != query.shape[0]:
        raise ValueError(f"keys {keys.shape} and query {query.shape} differ in their last axis")
    return keys, query


def diameter(points) -> float:
    """D = max_ij ||x_i - x_j|| of points [M, d], rounded up: never below the true diameter.

    Points are centred first, so every norm is at most D; the Gram form then errs by at most
    4 gamma(d + 6) D^2 in D^2, and the result is scaled up by that much. ValueError on NaN or a wrong shape.
    """
    points = finite_array("points", points, 2)
    centred = points - points.mean(axis=0)
    squares = (centred * centred).sum(axis=1)
    largest = 0.0
    for start in range(0, len(points), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = squares[rows, None] + squares[None, :] - 2.0 * (centred[rows] @ centred.T)  # [rows, M]
        largest = max(largest, float(distances.max()))
    radius = np.sqrt(squares.max())
    return float(np.sqrt(largest + 4.0 * gamma(points.shape[1] + 6) * radius**2))


def radius(points, centre) -> float:
    """max_j ||x_j - c|| of points [M, d] about a centre c [d]. ValueError on NaN or shapes that do not match."""
    points, centre = check_problem(points, centre)
    return float(np.linalg.norm(points - centre, axis=1).max())


def face_conditioning(face_keys) -> FaceConditioning:
    """kappa = 1 / smallest non-zero singular value of P K_I, P = Id - 11'/|I|, for K_I [|I|, d].

    A singular value below (|I| + d) u sigma_max is not told from 0: the keys count as affinely dependent.
    ValueError on NaN or a wrong shape.
    """
    face_keys = finite_array("face_keys", face_keys, 2)
    size, dim = face_keys.shape
    if size == 1:
        return FaceConditioning(0.0, 0.0, True)
    centred = face_keys - face_keys[0]  # differences first: a common offset is gone before the mean
    centred -= centred.mean(axis=0)
    if size > dim + 1:
        return FaceConditioning(np.inf, np.inf, False)
    singular = np.linalg.svd(centred, compute_uv=False)
    smallest, error = singular[size - 2], (size + dim) * UNIT_ROUNDOFF * singular[0]
    if smallest <= 2.0 * error:
        return FaceConditioning(np.inf, np.inf, False)
    return FaceConditioning(float(1.0 / smallest), float(error / (smallest - error)), True)
