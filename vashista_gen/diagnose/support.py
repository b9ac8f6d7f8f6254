"""How many tokens hold how much of the softmax: the oracle's figures, for one layer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vashista_gen.diagnose.layer import Layer

SHARES = (0.90, 0.95, 0.98, 0.99)  # of the softmax mass


def tokens_to(weights: torch.Tensor, shares: tuple[float, ...]) -> torch.Tensor:
    """Fewest tokens whose weights reach each share of their sum, int64 [shares, ...]; weights [..., tokens] >= 0."""
    reached = weights.sort(dim=-1, descending=True).values.double().cumsum(-1)
    # the last sum, not 1: a share of .99 is then reached whatever float32 made of the sum
    total = reached[..., -1:]
    counts = [(reached < share * total).sum(-1) + 1 for share in shares]
    return torch.stack(counts).clamp(max=weights.shape[-1])


class Support(NamedTuple):
    """Of every query: `each` [shares, heads, queries] tokens to each of SHARES, int64, chosen for a query head apart;

    `group` [shares, kv heads, queries] the same for one list that a KV head's query heads share, by the sum of their
    softmax weights; `kept` float64 [heads, queries] the mass on the best `budget` tokens of that list.
    """

    each: torch.Tensor
    group: torch.Tensor
    kept: torch.Tensor


def effective_support(layer: Layer, budget: int) -> Support:
    """The layer's Support; budget: tokens."""
    each, group, kept = [], [], []
    for head in range(layer.k.shape[0]):
        weights = torch.softmax(layer.log_weights(head), dim=-1)
        shared = weights.sum(0)
        each.append(tokens_to(weights, SHARES))
        group.append(tokens_to(shared, SHARES))
        best = shared.topk(min(budget, weights.shape[-1]), dim=-1).indices
        kept.append(weights.gather(-1, best.expand(weights.shape[0], -1, -1)).double().sum(-1))
    return Support(torch.cat(each, dim=1), torch.stack(group, dim=1), torch.cat(kept).clamp(max=1))


def group_support(layer: Layer, share: float) -> torch.Tensor:
    """Tokens to `share` of a group's softmax-sum, int64 [kv heads, queries]."""
    heads = range(layer.k.shape[0])
    return torch.stack([tokens_to(torch.softmax(layer.log_weights(h), dim=-1).sum(0), (share,))[0] for h in heads])


def growth(contexts: list[int], tokens: list[float]) -> float:
    """Exponent b of tokens ~ context^b, by least squares on logarithms; 0 is constant size, 1 a constant share.

    NaN for fewer than two contexts.
    """
    if len(contexts) < 2:
        return float("nan")
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (contexts, tokens))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
