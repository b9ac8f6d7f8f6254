"""transformers' attention and mask functions: one new token by the op, everything else as transformers would do it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vashista_gen.errors import UsageError

ATTENTION = "vashista_gen"  # the name in transformers' tables
ATTACHED = "vashista_gen_attached"  # the attribute by which an attention module finds its model's attachment


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [batch, heads, tokens, d], key and value as the cache's `update` gave them; [batch, tokens, heads, d]."""
    attached = getattr(module, ATTACHED, None)
    if attached is None:
        raise UsageError(
            f"attention {ATTENTION!r} on a {type(module).__name__} to which no package is attached", "hf.attach(model)"
        )
    layer = attached.paged_layer(module.layer_idx)
    if layer is None or query.shape[2] > 1:
        return _whole(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    _check(layer, query, scaling, dropout, kwargs)
    return layer.attend(query[:, :, 0])[:, None], None


def mask(*args: Any, config: Any = None, **kwargs: Any) -> torch.Tensor | None:
    """The mask that `_whole` needs; without an entry in transformers' table a padding mask would be dropped."""
    return AttentionMaskInterface()[_whole_by(config)](*args, config=config, **kwargs)


def _whole_by(config):
    # sdpa has no soft cap
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def _whole(module, *args, **kwargs):
    """Prefill, training, windows: sdpa, or where the logits are capped the model's own eager attention."""
    if _whole_by(module.config) == "sdpa":
        return AttentionInterface()["sdpa"](module, *args, **kwargs)
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def _check(layer, query, scaling, dropout, kwargs):
    """UsageError for what the op would compute otherwise than the model means."""
    name, spec = layer.spec["name"], layer.spec["model"]
    if scaling is not None and abs(scaling - spec["sm_scale"]) > 1e-6 * abs(scaling):
        raise UsageError(
            f"layer {layer.index} scales its logits by {scaling}, the package {name} by {spec['sm_scale']}",
            "set model.sm_scale in the spec and generate it anew",
        )
    for given in ("position_bias", "s_aux"):
        if kwargs.get(given) is not None:
            raise UsageError(
                f"layer {layer.index} attends with {given}, which {name} does not know", "hf.detach(model)"
            )
    if kwargs.get("output_attentions"):
        raise UsageError("the op gives no attention weights", "leave out output_attentions, or hf.detach(model)")
    if dropout or (query.requires_grad and torch.is_grad_enabled()):
        raise UsageError(
            "decoding through the op has no gradient",
            "model.eval(), and decode under torch.no_grad() or inference_mode()",
        )


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, mask)
