"""One token at a time through a transformers model, all contestants in one batch: a row each, or one for each needle.

The weights of the model are read once a step for all rows. Only the attention function is exchanged; projections,
rotary embedding, norms and MLP are the model's own. Layers with a sliding window stay dense within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vashista_gen.errors import UsageError
from vashista_gen.eval import contestants
from vashista_gen.eval.attend import Attender, Formula, Window
from vashista_gen.eval.contestants import Contestant, Packages
from vashista_gen.eval.model import windows
from vashista_gen.eval.pages import SharedPages
from vashista_gen.eval.prefix import Prefix
from vashista_gen.spec import Spec

ATTENTION = "vashista_gen_eval"


class Full:
    """A layer that attends to everything: shared pages, and for each contestant its rows and who attends for them."""

    def __init__(self, pages: SharedPages, attending: Sequence[tuple[slice, Attender]]) -> None:
        self._pages, self._attending = pages, attending

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, formula: Formula) -> torch.Tensor:
        """q [rows, heads, d], k and v [rows, kv heads, d] of the new token -> [rows, heads, d]."""
        self._pages.append(k, v)
        return torch.cat([attender.attend(q[rows]) for rows, attender in self._attending])

    def kept(self) -> list[float | None]:
        """Of each contestant the tokens a KV head keeps, None where that is its budget."""
        return [getattr(attender, "kept", None) for _, attender in self._attending]


class Decoder:
    """A model and the attention of each of its layers, for `each` rows of every contestant behind one prefix."""

    def __init__(
        self,
        model: Any,
        prefix: Prefix,
        length: int,
        field: Sequence[Contestant],
        packages: Packages,
        spec: Spec,
        *,
        each: int = 1,
        room: int,
    ) -> None:
        self.model, self.length, self.rows = model, length, each * len(field)
        self.layers: list[Full | Window] = []
        for layer, (window, k, v) in enumerate(zip(windows(model), prefix.keys, prefix.values, strict=True)):
            if window is not None:
                self.layers.append(Window(window, k, v, self.rows, room))
                continue
            pages = SharedPages(spec, k, v, self.rows, room)
            places = [slice(i * each, (i + 1) * each) for i in range(len(field))]
            started = [
                contestants.start(one, packages, spec, pages, place, layer)
                for one, place in zip(field, places, strict=True)
            ]
            self.layers.append(Full(pages, list(zip(places, started, strict=True))))

    def kept(self) -> list[float | None]:
        """Of each contestant the tokens a KV head keeps, mean over the sparse layers; None where that is its budget."""
        layers = [layer.kept() for layer in self.layers if isinstance(layer, Full)]
        return [None if one[0] is None else sum(one) / len(one) for one in zip(*layers, strict=True)]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more token of each row, int64 [rows]."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            positions = torch.full((self.rows, 1), self.length)
            logits = self.model(tokens[:, None], position_ids=positions, use_cache=False, decoder=self).logits
        finally:
            self.model.set_attn_implementation(before)
        self.length += 1
        return logits[:, -1]


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, decoder=None, softcap=None, **kwargs
):
    """transformers' attention function: query [rows, heads, 1, d], key and value [rows, kv heads, 1, d]."""
    if decoder is None or query.shape[2] != 1 or attention_mask is not None:
        raise UsageError(
            f"{ATTENTION} attends for one new token, without a mask, under a Decoder",
            "prefill, padding and training stay with sdpa: model.set_attn_implementation('sdpa')",
        )
    formula = Formula(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    out = decoder.layers[module.layer_idx].attend(query[:, :, 0], key[:, :, 0], value[:, :, 0], formula)
    return out[:, None], None


AttentionInterface.register(ATTENTION, attention)
# without an entry here transformers would drop a padding mask silently; with it, `attention` sees the mask and refuses
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
