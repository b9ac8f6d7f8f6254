"""What a plan decides, in words: the summary, the routing, the candidates, and what each kernel reads and gives."""

from __future__ import annotations

from dataclasses import dataclass

from vashista_gen.plan import Plan, cost


@dataclass(frozen=True)
class Kernel:
    """One kernel: when it runs (a key of WHEN), what it reads and what it gives."""

    when: str
    reads: str
    gives: str


KERNELS = {
    "summarize": Kernel("append", "K of the pages appended to", "their summaries, in place"),
    "score_pages": Kernel("step", "q, summaries of every page, block_table", "a score for each query head and page"),
    "select_pages": Kernel("step", "page scores", "selected_pages: P for each KV head"),
    "order_pages": Kernel("instead", "pages given by the caller", "selected_pages, ascending, each once"),
    "token_logits": Kernel("step", "q, K of the selected pages, block_table", "logits of their tokens"),
    "prune_tokens": Kernel("step", "logits", "-inf for all but the K_c largest"),
    "attend_logits": Kernel("step", "logits, V of the tokens kept, block_table", "out and lse of each split"),
    "attend_pages": Kernel("step", "q, K and V of the selected pages, block_table", "out and lse of each split"),
    "attend_dense": Kernel("dense", "q, K and V of every token, block_table", "out and lse of each split"),
    "merge_splits": Kernel("step", "out and lse of the splits", "out and lse"),
    "merge_states": Kernel("caller", "out and lse over disjoint sets of tokens", "out and lse over all of them"),
}
WHEN = {
    "step": "each step",
    "append": "after an append",
    "instead": "for given pages",
    "dense": "decode_dense",
    "caller": "merge_states",
}
_SUMMARIES = {
    "mean": "the mean of its keys",
    "subpage_mean": "the means of its groups of {subpage} tokens",
    "box": "the least and the greatest value of its keys in each channel (box weight {box_weight:g})",
}
_SCALES = {
    "page_channel": "{bits}-bit codes with a scale for each page and channel",
    "page": "{bits}-bit codes with a scale for each page",
    None: "{dtype}",
}
_REDUCES = {
    "softmax_sum": "add up their softmaxes over the pages",
    "max": "take the greatest of their scores",
}


def kernels(plan: Plan) -> list[tuple[str, Kernel]]:
    """The plan's kernels, those of a decode step first and in its order."""
    named = [(name, KERNELS.get(name, Kernel("step", "", ""))) for name in plan.kernels]
    return sorted(named, key=lambda item: list(WHEN).index(item[1].when))


def shape(plan: Plan) -> str:
    """The attention layer and its cache."""
    model, cache = plan.spec.model, plan.spec.cache
    cap = "" if model.logits_soft_cap is None else f", logits capped at {model.logits_soft_cap:g}"
    return (
        f"{model.num_q_heads} query heads on {model.num_kv_heads} KV heads of {model.head_dim} (group of "
        f"{plan.spec.group_size}), {model.dtype}{cap}; caches {plan.cache_shape} in {cache.kv_dtype} ({cache.layout})."
    )


def summary(plan: Plan) -> str:
    """What is kept of a page, and what that costs."""
    routing = plan.spec.routing
    what = _SUMMARIES[routing.summary].format(subpage=routing.subpage, box_weight=routing.box_weight or 0)
    stored = _SCALES[plan.summary_scale].format(bits=routing.summary_bits, dtype=plan.spec.cache.kv_dtype)
    return (
        f"A page is summarised by {what}, stored as {stored}: {cost.summary_bytes_per_page(plan):,} bytes a page and "
        f"layer, {cost.summary_bytes_per_token(plan):,.4g} a token, {cost.summary_share(plan):.1%} of the KV cache."
    )


def routing(plan: Plan) -> str:
    """How pages are chosen."""
    routing, page_size = plan.spec.routing, plan.spec.cache.page_size
    group = f"The query heads of a KV head {_REDUCES[routing.group_reduce]} and keep"
    if plan.spec.group_size == 1:
        group = "Each head keeps"
    first, last = (f"{n} pages" if n > 1 else "page" for n in (routing.sink_pages, routing.recent_pages))
    kept = f"always the first {first} and" if routing.sink_pages else "always"
    return (
        f"{group} {routing.pages} pages, {kept} the last {last}: {routing.pages * page_size:,} tokens. "
        f"Up to that context every page is kept and none is scored."
    )


def candidates(plan: Plan) -> str:
    """Which tokens are attended to, and with what weights."""
    spec = plan.spec
    weights = f"Weights: softmax(s / {spec.attention.epsilon:g}), s = {spec.model.sm_scale:.6g} <q, k>."
    if spec.candidates.tokens is None:
        return f"All their tokens are attended to. {weights}"
    lists = "for each query head" if spec.candidates.share == "head" else "for the group together"
    if spec.group_size == 1:
        lists = "for each head"
    below = max(plan.dense_below, spec.candidates.tokens)
    return (
        f"Of their tokens the {spec.candidates.tokens:,} with the largest logits are attended to, chosen {lists}; "
        f"contexts up to {below:,} keep every token. {weights}"
    )
