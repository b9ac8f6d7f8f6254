"""Tokens in the middle of a text that many later queries attend to, as they do to the first: sinks that no spec pins.

A single token of great weight is what a mean over its neighbours hides from a router.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vashista_gen.diagnose.layer import Layer

LEAST_WEIGHT = 0.01  # mean softmax weight over the late queries of a group that makes a token an anchor
FIRST, RECENT = 64, 64  # tokens at either end that are no anchors: every spec keeps most of them


class Anchors(NamedTuple):
    """Of one layer and document."""

    tokens: torch.Tensor  # bool [kv heads, tokens]
    mass: torch.Tensor  # float64 [heads, queries], softmax mass on the anchors
    mass_omitted: torch.Tensor | None  # the part of it that routing left out, where a package routes
    omitted: torch.Tensor | None  # float64 [heads, queries], all that routing left out


def anchors(layer: Layer, routed: list[torch.Tensor] | None = None) -> Anchors:
    """Late queries: in the last quarter of the longest context. routed: of each KV head, bool [queries, tokens]."""
    late = layer.positions >= layer.positions[-1] * 3 // 4
    end = int(layer.positions[late][0]) - RECENT
    masks, mass, mass_omitted, omitted = [], [], [], []
    for head in range(layer.k.shape[0]):
        weights = torch.softmax(layer.log_weights(head), dim=-1)
        anchor = weights[:, late].mean((0, 1)) >= LEAST_WEIGHT
        anchor[:FIRST] = False
        anchor[max(FIRST, end) :] = False
        masks.append(anchor)
        mass.append(weights[..., anchor].double().sum(-1))
        if routed is not None:
            left_out = weights.masked_fill(routed[head], 0)
            omitted.append(left_out.double().sum(-1))
            mass_omitted.append(left_out[..., anchor].double().sum(-1))
    by_routing = (torch.cat(mass_omitted), torch.cat(omitted)) if routed is not None else (None, None)
    return Anchors(torch.stack(masks), torch.cat(mass), *by_routing)
