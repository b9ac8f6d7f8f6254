"""A forward pass that shows each layer's attention inputs as it goes: one layer is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vashista_gen.diagnose.layer import Layer
from vashista_gen.errors import UsageError

ATTENTION = "vashista_gen_capture"
UNLIKE_SOFTMAX = ("softcap", "s_aux")  # arguments of attention that is more than a softmax over the keys


class Capture:
    """Runs a model over ids [1, tokens], teacher-forced, and calls `visit(layer)` for each layer with global attention.

    `windowed` collects the numbers of the layers that see a sliding window shorter than the document: they are not
    visited, since their cost does not grow with the context.
    """

    def __init__(self, model: Any, visit: Callable[[Layer], None]) -> None:
        self.model, self.visit = model, visit
        self.windowed: set[int] = set()
        self.positions = torch.empty(0, dtype=torch.long)

    def run(self, ids: torch.Tensor, positions: list[int]) -> None:
        """positions: which tokens' queries are kept, ascending, each below ids.shape[1]."""
        longest = self.model.config.get_text_config().max_position_embeddings
        if ids.shape[1] > longest:
            raise UsageError(
                f"{ids.shape[1]} tokens for a model that reads {longest}", f"ask for contexts up to {longest}"
            )
        self.positions = torch.tensor(positions)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            with torch.inference_mode():
                self.model(ids, use_cache=False, logits_to_keep=1, capture=self)
        finally:
            self.model.set_attn_implementation(before)

    def see(
        self, number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None
    ) -> None:
        """q [1, heads, tokens, d], k and v [1, kv heads, tokens, d] of layer `number`."""
        if window is not None and window < k.shape[2]:
            self.windowed.add(number)
            return
        chosen = q[0, :, self.positions].float()
        self.visit(Layer(number, chosen, k[0].float(), v[0].float(), self.positions, scale))


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, capture=None, **kwargs):
    """transformers' attention function: SDPA, after the capture has seen its inputs."""
    beyond = [name for name in UNLIKE_SOFTMAX if kwargs.get(name) is not None]
    if capture is None or beyond:
        what = f"attention with {' and '.join(beyond)}" if beyond else f"{ATTENTION} without a Capture"
        raise UsageError(
            f"{what} is not supported here", "diagnose a model with plain softmax attention, or give --tensors"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    capture.see(module.layer_idx, query, key, value, scale, kwargs.get("sliding_window"))
    sdpa = AttentionInterface()["sdpa"]
    return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
