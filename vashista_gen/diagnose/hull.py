"""The paper's own quantities for a query: the face of the keys' hull that is nearest to it, and its gap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vashista_gen import theory
from vashista_gen.diagnose.layer import Layer


class Face(NamedTuple):
    """The projection of sm_scale q on the hull of the keys, for one head and query."""

    size: int  # keys of positive weight, |I|
    gap: float  # Delta, the smallest multiplier outside the face: the paper's support gap
    mass: float  # softmax mass on those keys


def faces(layer: Layer, query: int) -> list[Face]:
    """One Face for the first query head of each KV head, at one query (its index): theory.project_onto_hull in float64.

    sm_scale q, because f(a) = 1/2 ||y - sm_scale q||^2 weighs the keys by the logits' own <sm_scale q, k_j>.
    """
    found = []
    tokens = int(layer.positions[query]) + 1
    for head in range(0, layer.q.shape[0], layer.group_size):
        keys = layer.k[head // layer.group_size, :tokens].double().numpy()
        q = layer.q[head, query].double().numpy() * layer.sm_scale
        projection = theory.project_onto_hull(keys, q)
        active = projection.active_face
        logits = keys @ q
        mass = np.exp(logits - logits.max())
        found.append(Face(len(active), float(projection.support_gap), float(mass[active].sum() / mass.sum())))
    return found
