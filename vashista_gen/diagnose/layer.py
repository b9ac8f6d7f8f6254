"""The attention inputs of one layer over one document: what every figure here is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vashista_gen.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """q float32 [query heads, queries, d] after RoPE, of the tokens at `positions` int64 [queries], ascending;

    k, v float32 [kv heads, tokens, d], k after RoPE. The query at position t attends to tokens 0..t with logits
    s_j = sm_scale <q, k_j>. `number` is the layer's number in its model.
    """

    number: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor
    sm_scale: float

    @property
    def group_size(self) -> int:
        """Query heads of one KV head."""
        return self.q.shape[0] // self.k.shape[0]

    def log_weights(self, head: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Logits of a KV head's group over all tokens, float32 or `dtype` [group, queries, tokens]; -inf after the query."""
        import torch

        queries = self.q[head * self.group_size : (head + 1) * self.group_size]
        dtype = dtype or self.q.dtype
        logits = (queries.to(dtype) @ self.k[head].T.to(dtype)) * self.sm_scale
        later = torch.arange(self.k.shape[1])[None, :] > self.positions[:, None]
        return logits.masked_fill_(later, float("-inf"))


def query_positions(contexts: list[int], count: int, step: int) -> list[int]:
    """About `count` positions for each context length c, evenly over (3c/4, c], each the last token of `step` tokens.

    A query at the end of a page sees whole pages only, as their summaries do: later tokens of its page leak nothing.
    UsageError for a context of less than 4 * `step` tokens.
    """
    if min(contexts) < 4 * step:
        raise UsageError(
            f"a context of {min(contexts)} tokens, and queries stand at ends of pages of {step} in the last quarter",
            f"ask for a context of {4 * step} tokens or more",
        )
    chosen: set[int] = set()
    for context in contexts:
        for i in range(count):
            length = context - (context // 4) * (count - 1 - i) // count
            chosen.add(length // step * step - 1)
    return sorted(chosen)


def context_of(position: int, contexts: list[int]) -> int:
    """The context length that a query position was chosen for: the least that holds it."""
    return next(context for context in sorted(contexts) if position < context)
