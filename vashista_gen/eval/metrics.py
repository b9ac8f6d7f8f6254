"""Figures of next-token distributions against dense ones, for each token, and their means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

PER_TOKEN = ("nll", "dense_nll", "kl", "same")


def compare(dense: torch.Tensor, sparse: torch.Tensor, target: int) -> dict[str, torch.Tensor]:
    """Each of PER_TOKEN, float64 [rows]: logits [vocabulary] of dense and [rows, vocabulary] of the others.

    nll = -log p(target), nats; kl = KL(dense || sparse), nats; same = 1 where the most likely token is dense's.
    """
    p, q = torch.log_softmax(dense.double(), dim=-1), torch.log_softmax(sparse.double(), dim=-1)
    return {
        "nll": -q[:, target],
        "dense_nll": (-p[target]).expand(len(q)),
        "kl": (p.exp() * (p - q)).sum(-1).clamp(min=0),
        "same": (q.argmax(-1) == p.argmax()).double(),
    }


def summary(documents: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Means over the tokens of all documents; documents: PER_TOKEN lists of each.

    tokens_kept: what a KV head keeps, where records have it. *_error: the standard error of a mean, tokens taken as
    independent. kl is also what nll_difference would be if the dense model had written the text, with far less noise.
    """
    joined = {key: torch.tensor([x for one in documents for x in one[key]], dtype=torch.float64) for key in PER_TOKEN}
    kept = [x for one in documents for x in one.get("kept", ())]
    difference = joined["nll"] - joined["dense_nll"]
    count = len(difference)
    nll, dense = float(joined["nll"].mean()), float(joined["dense_nll"].mean())
    return {
        "tokens": count,
        "tokens_kept": sum(kept) / len(kept) if kept else None,
        "documents": len(documents),
        "nll": nll,
        "nll_difference": nll - dense,
        "nll_difference_error": _error(difference),
        "perplexity": math.exp(nll),
        "dense_perplexity": math.exp(dense),
        "perplexity_change": math.expm1(nll - dense),
        "kl": float(joined["kl"].mean()),
        "kl_error": _error(joined["kl"]),
        "agreement": float(joined["same"].mean()),
    }


def _error(x):
    return float(x.std() / math.sqrt(len(x))) if len(x) > 1 else None
