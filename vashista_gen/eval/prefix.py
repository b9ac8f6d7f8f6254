"""What every contestant starts from: K and V of a document's first tokens, by the plain model, kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vashista_gen.eval.model import Loaded, attention_layers


@dataclass(frozen=True)
class Prefix:
    """Of each layer K and V [tokens, kv heads, d] (those still within the window, where a layer has one).

    next_logits: [vocabulary] of the plain model after one token more, which dense decoding must give as well.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    next_logits: torch.Tensor


def key_of(loaded: Loaded, ids: list[int]) -> str:
    """Name of a prefix on disk: the model's weights and the tokens."""
    return hashlib.sha256(f"{loaded.fingerprint} {ids}".encode()).hexdigest()[:24]


def get(loaded: Loaded, ids: list[int], cache: Path, each_layer: Callable[[], None] = lambda: None) -> Prefix:
    """The prefix of ids[:-1], from disk or computed now; ids[-1] is the token behind it.

    each_layer is called after each layer, so that a bar can move.
    """
    path = cache / f"prefix-{key_of(loaded, ids)}.pt"
    if not path.is_file():
        keys, values, logits = _compute(loaded.model, torch.tensor([ids]), each_layer)
        cache.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        torch.save({"keys": keys, "values": values, "next_logits": logits}, scratch)
        os.replace(scratch, path)
    held = torch.load(path, mmap=True, weights_only=True)
    return Prefix(held["keys"], held["values"], held["next_logits"])


def _compute(model: Any, ids: torch.Tensor, each_layer: Callable[[], None]) -> tuple:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    hooks = [module.register_forward_hook(lambda *_: each_layer()) for module in attention_layers(model)]
    try:
        model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    # one token of a sequence of its own: [1, kv heads, tokens, d] -> [tokens, kv heads, d]
    keys, values = ([x[0].transpose(0, 1).contiguous() for x in part] for part in _states(cache))
    logits = model(ids[:, -1:], past_key_values=cache).logits[0, -1]
    return keys, values, logits.clone()


def _states(cache):
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
