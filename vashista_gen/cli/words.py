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
    "sketch_pages": Kernel("append", "K of the pages appended to", "their tokens' sketches, in place"),
    "measure_pages": Kernel("append", "K and V of the pages appended to", "their radii, in place"),
    "prepare_queries": Kernel("step", "q, centres, balances", "rotated queries and their norms"),
    "score_tokens": Kernel("step", "q, K or sketches of the selected pages", "a score for each query head and token"),
    "choose_tokens": Kernel("step", "token scores", "selected_tokens, and which heads keep each"),
    "attend_tokens": Kernel("step", "q, K and V of the selected tokens, block_table", "out and lse of each split"),
    "bound_tokens": Kernel("step", "sketches and residuals of every token", "the omitted tokens' mass, in parts"),
    "estimate_omitted": Kernel("step", "page and token scores", "the omitted tokens' mass, in parts"),
    "certify": Kernel("step", "the omitted mass, out, lse, radii", "the certificate"),
    "attend_failed": Kernel("failed", "q, K and V of every token of rows not certified", "out and lse of each split"),
    "merge_failed": Kernel("failed", "out and lse of the splits", "out and lse of rows not certified"),
    "settle": Kernel("failed", "", "their certificate: nothing is left out"),
    "attend_pages": Kernel("step", "q, K and V of the selected pages, block_table", "out and lse of each split"),
    "attend_dense": Kernel("dense", "q, K and V of every token, block_table", "out and lse of each split"),
    "merge_splits": Kernel("step", "out and lse of the splits", "out and lse"),
    "merge_states": Kernel("caller", "out and lse over disjoint sets of tokens", "out and lse over all of them"),
}
WHEN = {
    "step": "each step",
    "append": "after an append",
    "instead": "for given pages",
    "failed": "rows not certified",
    "dense": "decode_dense",
    "caller": "merge_states",
}
_SUMMARIES = {
    "mean": "the mean of its keys",
    "subpage_mean": "the means of its groups of {subpage} tokens",
    "sketch": "its tokens' sketches",
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
    """What is kept of a page and of a token beside the cache, and what that costs."""
    routing, texts = plan.spec.routing, []
    if not plan.scores_by_sketch:
        what = _SUMMARIES[routing.summary].format(subpage=routing.subpage, box_weight=routing.box_weight or 0)
        stored = _SCALES[plan.summary_scale].format(bits=routing.summary_bits, dtype=plan.spec.cache.kv_dtype)
        texts.append(
            f"A page is summarised by {what}, stored as {stored}: {cost.summary_bytes_per_page(plan):,} bytes a page and "
            f"layer, {cost.summary_bytes_per_token(plan):,.4g} a token, {cost.summary_share(plan):.1%} of the KV cache."
        )
    if plan.sketch:
        sketch = plan.spec.sketch
        how = "a scale for each page and channel" if sketch.transform == "page_channel" else "Hadamard-rotated, a scale each"
        a_token = cost.sketch_bytes_per_page(plan) / plan.spec.cache.page_size
        texts.append(
            f"A token is sketched by {sketch.bits}-bit codes of its key ({how}) and a residual norm: {a_token:,.4g} bytes a "
            f"token and layer, {a_token / cost.token_bytes(plan):.1%} of the KV cache."
        )
    return " ".join(texts)


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
    chosen = spec.candidates
    if not plan.token_budget:
        return f"All their tokens are attended to. {weights}"
    if chosen.pages is not None:
        by = "their sketches" if plan.sketch else "exact logits"
        return f"Of them the {chosen.pages} pages with most of the softmax mass by {by} are attended to. {weights}"
    lists = "for each query head" if chosen.share == "head" else "for the group together"
    if spec.group_size == 1:
        lists = "for each head"
    by = "logits by their sketches" if plan.sketch else "logits"
    count = f"{plan.kept_tokens:,}"
    if chosen.mass is not None:
        count = f"fewest that reach {chosen.mass:.1%} of their softmax mass, {plan.least_tokens:,} to {count},"
    below = max(plan.dense_below, plan.least_tokens if chosen.mass is not None else plan.kept_tokens)
    return (
        f"Of their tokens the {count} with the largest {by} are attended to, chosen {lists}; "
        f"contexts up to {below:,} keep every token. {weights}"
    )


def certificate(plan: Plan) -> str:
    """What a step says of the tokens left out, and what it does about it."""
    spec = plan.spec
    if not plan.certified:
        return "No certificate: what the tokens left out weigh is not stated."
    action = {
        "dense": "rows that fail are attended to in whole",
        "expand": f"rows that fail are tried with twice the pages, {plan.expand_rounds} times, then attended to in whole",
        "capped": "rows that fail keep their result, with the flag",
    }[spec.fallback]
    return f"{plan.certificate_in_words} A row is certified at leakage <= {spec.certificate.tolerance:g}; {action}."
