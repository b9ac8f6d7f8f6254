"""A sketch of the keys in plain torch, 4 bits for each channel of a token: what an op's certificate estimates from."""

from __future__ import annotations

import torch

from vashista_gen.calibrate.omission import Omission
from vashista_gen.diagnose.layer import Layer


def hadamard(width: int) -> torch.Tensor:
    """Orthonormal [width, width], width a power of 2."""
    found = torch.ones(1, 1)
    while len(found) < width:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / width**0.5


def quantised(keys: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """keys [..., tokens, d] as their codes say: centred, rotated, one scale for each token."""
    center = keys.mean(-2, keepdim=True)
    rotated = (keys - center) @ hadamard(keys.shape[-1])
    most = 2 ** (bits - 1) - 1
    scale = rotated.abs().amax(-1, keepdim=True) / most
    return (rotated / scale).round().clamp(-most, most) * scale @ hadamard(keys.shape[-1]).T + center


def estimator(keep: int, bits: int = 4):
    """Omission where the best `keep` tokens of a group's softmax-sum are kept; estimated from the others' codes."""

    def estimate(layer: Layer) -> Omission:
        rows = []
        for head in range(layer.k.shape[0]):
            logits = layer.log_weights(head).double()
            kept = torch.softmax(logits, -1).sum(0).topk(keep, dim=-1).indices.expand(logits.shape[0], -1, -1)
            queries = layer.q[head * layer.group_size : (head + 1) * layer.group_size]
            coded = (queries @ quantised(layer.k[head], bits).T).double() * layer.sm_scale
            coded = coded.masked_fill(logits == float("-inf"), float("-inf"))
            lses = [x.scatter(-1, kept, float("-inf")).logsumexp(-1) for x in (logits, coded)]
            rows.append(torch.stack([logits.logsumexp(-1), *lses]))
        return Omission(*torch.cat(rows, dim=1))

    return estimate
