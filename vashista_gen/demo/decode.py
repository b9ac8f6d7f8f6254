"""One token at a time through a transformers model whose attention is exchanged: contiguous SDPA, dense op, sparse op.

The model keeps its own projections, rotary embedding, norms and MLP; only the attention function is another one,
registered in transformers' attention interface. K and V of the new token come to it directly (the model is called
without a transformers cache), so the paged cache needs nothing of transformers' cache protocol.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from vashista_gen.errors import UsageError
from vashista_gen.runtime import PagedCache

ATTENTION = "vashista_gen_decode"


class Clock:
    """A generated package whose ops note how long they take: `seconds[op]`, one entry a call."""

    OPS = ("decode", "decode_dense", "select_pages", "update_summaries")

    def __init__(self, package: Any) -> None:
        self._package = package
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._package, name)
        return functools.partial(self.timed, name, found) if name in self.OPS else found

    def timed(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Calls a function and notes its time under a name."""
        started = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name].append(time.perf_counter() - started)
        return result


class Contiguous:
    """Attention of one layer by torch's SDPA over K and V [1, kv heads, tokens, d] with room for `room` more."""

    def __init__(self, clock: Clock, k: torch.Tensor, v: torch.Tensor, room: int) -> None:
        self._clock, self._length = clock, k.shape[2]
        self._k, self._v = (torch.cat([x, x.new_zeros(*x.shape[:2], room, x.shape[3])], dim=2) for x in (k, v))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [1, heads, d], k and v [1, 1, kv heads, d] of the new token; [1, heads, d]."""
        self._k[:, :, self._length], self._v[:, :, self._length] = k[:, 0], v[:, 0]
        self._length += 1
        keys, values = self._k[:, :, : self._length], self._v[:, :, : self._length]
        call = functools.partial(scaled_dot_product_attention, enable_gqa=q.shape[1] != k.shape[2])
        return self._clock.timed("sdpa", call, q[:, :, None], keys, values)[:, :, 0]


class Paged:
    """Attention of one layer by a generated package over a paged cache.

    `watch(layer, q, cache, out, lse)` sees each call.
    """

    def __init__(
        self, package: Any, k: torch.Tensor, v: torch.Tensor, room: int, *, sparse: bool, watch: Callable | None = None
    ) -> None:
        self._package, self._sparse, self._watch = package, sparse, watch
        pages = -(-(k.shape[2] + room) // package.SPEC["cache"]["page_size"])
        self.cache = PagedCache(package, pages, device=k.device)
        self.cache.append(k.transpose(1, 2), v.transpose(1, 2))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [1, heads, d], k and v [1, 1, kv heads, d] of the new token; [1, heads, d]."""
        cache = self.cache
        cache.append(k, v)
        tensors = (q, cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens)
        if self._sparse:
            out, lse = self._package.decode(*tensors, cache.summaries)
        else:
            out, lse = self._package.decode_dense(*tensors)
        if self._watch is not None:
            self._watch(layer, q, cache, out, lse)
        return out


class Decoder:
    """A model, and for each of its layers who computes the attention of the next token."""

    def __init__(self, model: Any, layers: list[Contiguous | Paged], length: int) -> None:
        self.model, self.layers, self.length = model, layers, length

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] after one more token, int64 [1, 1]."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            positions = torch.tensor([[self.length]], device=token.device)
            logits = self.model(token, position_ids=positions, use_cache=False, decoder=self).logits
        finally:
            self.model.set_attn_implementation(before)
        self.length += 1
        return logits[:, -1]

    def greedy(self, token: torch.Tensor, count: int, each: Callable[[], None] = lambda: None) -> list[int]:
        """The next `count` tokens after `token`, each the most likely one; `each` is called after each."""
        tokens = []
        for _ in range(count):
            token = self.step(token).argmax(-1, keepdim=True)
            tokens.append(int(token))
            each()
        return tokens


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, decoder=None, **kwargs):
    """transformers' attention function: query [1, heads, 1, d], key and value [1, kv heads, 1, d] of the new token."""
    if decoder is None or query.shape[2] != 1 or attention_mask is not None:
        raise UsageError(
            f"{ATTENTION} attends for one new token, without a mask, under a Decoder",
            "prefill, padding and training stay with sdpa: model.set_attn_implementation('sdpa')",
        )
    layer = module.layer_idx
    out = decoder.layers[layer].attend(layer, query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2))
    return out[:, None], None


AttentionInterface.register(ATTENTION, attention)
# without an entry here transformers would drop a padding mask silently; with it, `attention` sees the mask and refuses
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])


def prefill(model: Any, ids: torch.Tensor, each_layer: Callable[[], None] = lambda: None) -> list[tuple]:
    """(K, V), each [1, kv heads, tokens, d], of every layer: the plain model over ids [1, tokens]."""
    cache = DynamicCache(config=model.config)
    hooks = [layer.register_forward_hook(lambda *_: each_layer()) for layer in model.model.layers]
    try:
        model(ids, past_key_values=cache, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return [(layer.keys, layer.values) for layer in cache.layers]


class Plain:
    """The model as transformers runs it, with its own cache: what the dense op is held against."""

    def __init__(self, model: Any, prefix: list[tuple]) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        for layer, (k, v) in enumerate(prefix):
            self.cache.update(k, v, layer)

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] after one more token, int64 [1, 1]."""
        return self.model(token, past_key_values=self.cache).logits[:, -1]
