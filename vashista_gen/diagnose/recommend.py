"""From findings to a spec: how many tokens to keep, and how many pages to route them from."""

from __future__ import annotations

import math
import re
from typing import Any

from vashista_gen import spec as specs

PAGE_SIZE = 16
WIDER = 4  # routed tokens for each kept one: cheap summaries route wide, sketches choose among the tokens
TOKENS_STEP, PAGES_STEP, LEAST_TOKENS = 64, 16, 128


def recommend(
    summary: dict[str, Any], *, name: str, num_q_heads: int, num_kv_heads: int, head_dim: int, sm_scale: float
) -> str:
    """The text of a spec that `vashista-gen check` accepts, with the reasons as comments.

    K: the mean over layers and KV heads of the tokens that hold 98 % of a group's softmax-sum at the longest context.
    Kept are the fewest tokens that reach 98 % of the routed mass by their 4-bit sketches, up to twice K; routed are
    WIDER times K.
    SpecError where the model's shape is beyond what is compiled: the rule says why.
    """
    context = summary["contexts"][-1]
    needs = [tokens for layer in summary["per_layer_and_kv_head"]["mean_group_tokens_to_98"] for tokens in layer]
    tokens = max(LEAST_TOKENS, _up(sum(needs) / len(needs), TOKENS_STEP))
    pages = min(_up(WIDER * tokens / PAGE_SIZE, PAGES_STEP), 4096)
    most = min(2 * tokens, pages * PAGE_SIZE)
    scale = "default" if math.isclose(sm_scale, head_dim**-0.5, rel_tol=1e-6) else repr(sm_scale)
    lines = [
        f"# Suggested by vashista-gen diagnose for contexts up to {context} tokens; measure before you serve.",
        f"# 98 % of a KV head's softmax: {sum(needs) / len(needs):.0f} tokens on average, {max(needs):.0f} in the most",
        f"# diffuse head; {summary['heads_safe']} of {summary['heads']} query heads kept 95 % at"
        f" {summary['budget_tokens']} tokens in nine queries of ten.",
        f"name: {name}",
        f"model: {{num_q_heads: {num_q_heads}, num_kv_heads: {num_kv_heads}, head_dim: {head_dim}, sm_scale: {scale}}}",
        f"cache: {{page_size: {PAGE_SIZE}}}",
        f"routing: {{summary: subpage_mean, subpage: 4, summary_bits: 4, pages: {pages}}}",
        "sketch: {bits: 4, transform: page_channel}",
        f"candidates: {{tokens: {most}, mass: 0.98}}",
    ]
    text = "\n".join(lines) + "\n"
    specs.loads(text, f"{name}.yaml")
    return text


def spec_name(model: str) -> str:
    """A package name out of a model's name: lower-case words joined by underscores, starting with a letter."""
    words = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
    return (words if words[:1].isalpha() else f"model_{words}")[:48].rstrip("_") + "_sparse"


def _up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
