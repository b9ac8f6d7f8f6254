"""What one decode step reads, as formulas of the plan: bytes, memory and a lower bound of time.

Unless a function says otherwise: one layer, one sequence, all its KV heads, bytes; a context is a number of tokens.
An item of the cache has ITEM_BYTES[kv_dtype] bytes. Counted is what comes from the caches, the summaries and the
tables, each once; queries, output and the scratch inside a step are not.
Symbols: H KV heads, d head_dim, b item bytes, P pages, K_c tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from vashista_gen.plan.plan import Plan
from vashista_gen.spec.footprint import ITEM_BYTES, attention_tile, page_kernels, solver_bytes

INDEX_BYTES = 4  # int32 entries of block_table and selected_pages
SCRATCH_BYTES = 4  # float32 scores, logits and weights
RADII_BYTES = 8  # two float32 for each page and KV head
MAX_CONTEXT = 2**40


@dataclass(frozen=True)
class StepBytes:
    """Bytes one step reads for one sequence and layer, by what they are; certificate: 0 unless each step has one."""

    summaries: int
    sketches: int
    keys: int
    values: int
    tables: int
    certificate: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.summaries + self.sketches + self.keys + self.values + self.tables + self.certificate


def item_bytes(plan: Plan) -> int:
    """b: bytes of one element of the cache in the spec's kv_dtype."""
    return ITEM_BYTES[plan.spec.cache.kv_dtype]


def pages_of(plan: Plan, context: int) -> int:
    """ceil(context / page_size): pages that hold `context` tokens."""
    return -(-context // plan.spec.cache.page_size)


def token_bytes(plan: Plan) -> int:
    """2 H d b: bytes of one token's keys and values."""
    return 2 * plan.spec.model.num_kv_heads * plan.spec.model.head_dim * item_bytes(plan)


def summary_bytes_per_page(plan: Plan) -> int:
    """levels times `summary_bytes`: a page has room for its own and for that of the super-page it is the last of."""
    return plan.spec.routing.levels * summary_bytes(plan)


def summary_bytes(plan: Plan) -> int:
    """H (rows d bits/8 + scales b): bytes of the summary of one page or super-page; 0 where sketches are its summary.

    rows = plan.summary_rows; 16 bits are an item of the cache (b bytes); one scale a page, none for 16 bits.
    """
    if plan.scores_by_sketch:
        return 0
    head_dim, bits = plan.spec.model.head_dim, plan.spec.routing.summary_bits
    row = head_dim * item_bytes(plan) if bits == 16 else head_dim * bits // 8
    scales = {"page": 1, None: 0}[plan.summary_scale]
    return plan.spec.model.num_kv_heads * (plan.summary_rows * row + scales * item_bytes(plan))


def sketch_bytes_per_page(plan: Plan, residuals: bool = True) -> int:
    """H (page_size d bits/8 + scales b + page_size b): bytes of one page's sketches; the last term are residual norms.

    scales: d where each channel of a page has one, page_size where each token has one. 0 without sketches.
    """
    sketch, model, page_size = plan.spec.sketch, plan.spec.model, plan.spec.cache.page_size
    if sketch.bits is None:
        return 0
    scales = page_size if sketch.transform == "hadamard" else model.head_dim
    floats = scales + (page_size if residuals else 0)
    return model.num_kv_heads * (page_size * model.head_dim * sketch.bits // 8 + floats * item_bytes(plan))


def radii_bytes_per_page(plan: Plan) -> int:
    """8 H: bytes of a page's radii, of its values around their centre and of its keys; 0 without a certificate."""
    return RADII_BYTES * plan.spec.model.num_kv_heads if plan.certified else 0


def certificate_bytes(plan: Plan, context: int) -> int:
    """ceil(context / page_size) (sketches + 8 H): what a certificate of every KV head reads on top of a step.

    Sketches with their residual norms, of every page, for kinds calibrated and rigorous; kind estimate reads the radii
    alone: page and token scores are scratch.
    """
    sketches = 0 if plan.spec.certificate.kind == "estimate" else sketch_bytes_per_page(plan)
    return pages_of(plan, context) * (sketches + radii_bytes_per_page(plan)) if plan.certified else 0


def audited_share(plan: Plan) -> float:
    """1 / (every heads): share of the (step, KV head) pairs that have a certificate, over many steps; 0 without one."""
    certificate = plan.spec.certificate
    return 1 / (certificate.every * certificate.heads) if plan.certified else 0.0


def kept_bytes_per_token(plan: Plan) -> float:
    """(summaries + sketches + radii of a page) / page_size: memory beside the cache for each token of a full page."""
    page = summary_bytes_per_page(plan) + sketch_bytes_per_page(plan) + radii_bytes_per_page(plan)
    return page / plan.spec.cache.page_size


def sketch_bytes_per_token(plan: Plan) -> float:
    """sketch_bytes_per_page / page_size, residual norms included."""
    return sketch_bytes_per_page(plan) / plan.spec.cache.page_size


def summary_bytes_per_token(plan: Plan) -> float:
    """summary_bytes_per_page / page_size: memory the summaries add for each token of a full page."""
    return summary_bytes_per_page(plan) / plan.spec.cache.page_size


def summary_share(plan: Plan) -> float:
    """summary_bytes_per_token / (2 H d b): the same as a fraction of the KV cache."""
    return summary_bytes_per_token(plan) / token_bytes(plan)


def is_routed(plan: Plan, context: int) -> bool:
    """Whether pages are scored: ceil(context / page_size) > P. Otherwise every page is kept and no summary is read."""
    return pages_of(plan, context) > plan.spec.routing.pages


def summaries_scored(plan: Plan, context: int) -> tuple[int, int]:
    """(super-pages, pages) whose summaries a step reads: of two levels every super-page, then the pages of the beam."""
    pages, routing = pages_of(plan, context), plan.spec.routing
    if not is_routed(plan, context):
        return 0, 0
    supers = -(-pages // (routing.super_pages or 1))
    if routing.super_pages is None or routing.beam is None or supers <= routing.beam:
        return 0, pages
    return supers, pages - (supers - routing.beam) * routing.super_pages


def routed_tokens(plan: Plan, context: int) -> int:
    """Tokens of the pages kept for one KV head: `context` up to P pages; above, P page_size less the last page's gap.

    The last page, which may not be full, is always among the kept ones (rule R22).
    """
    if not is_routed(plan, context):
        return context
    page_size = plan.spec.cache.page_size
    return plan.spec.routing.pages * page_size - (pages_of(plan, context) * page_size - context)


def kept_tokens(plan: Plan, context: int) -> int:
    """Tokens whose K and V are read for one KV head, at most.

    All routed ones without a token budget and for contexts up to max(dense_below, K_c); above, K_c when a group shares
    its tokens (the tokens of candidates.pages when whole pages are kept; with a mass, K_c is the most), and at most
    group_size K_c (no two heads keep the same token) when each query head has its own.
    """
    routed, candidates = routed_tokens(plan, context), plan.spec.candidates
    if not plan.token_budget or context <= max(plan.dense_below, plan.kept_tokens):
        return routed
    lists = plan.spec.group_size if candidates.share == "head" else 1
    return min(routed, lists * plan.kept_tokens)


def weighted_tokens(plan: Plan, context: int) -> int:
    """Tokens whose V is read for one KV head, at most: all kept; by frank_wolfe iterations + 1 a query head."""
    attention, kept = plan.spec.attention, kept_tokens(plan, context)
    if attention.solver != "frank_wolfe":
        return kept
    return min(kept, plan.spec.group_size * ((attention.iterations or 0) + 1))


def key_passes(plan: Plan) -> int:
    """How often a step goes over the candidates' K: a projection once an iteration and three times around them."""
    return (plan.spec.attention.iterations or 0) + 3 if plan.projects else 1


def dense_bytes(plan: Plan, context: int) -> StepBytes:
    """K and V of every token, H d b context each, and a block table entry of 4 bytes a page."""
    half = token_bytes(plan) // 2 * context
    return StepBytes(0, 0, half, half, INDEX_BYTES * pages_of(plan, context))


def sparse_bytes(plan: Plan, context: int, steps: int | None = None) -> StepBytes:
    """What routing and scoring read, K and V of the candidates, and the tables.

    Of `steps` steps one routes: what it reads for that is shared out among them, rounded up; None for routing.refresh,
    0 for a step that keeps its pages.

    Summaries of every page (or every sketch, when pages are scored by sketches) if pages are scored, of two levels
    those of `summaries_scored`. With a token
    budget, or to certify what is left out, the routed tokens are scored by their sketches, or by their keys,
    H d b routed_tokens, which are then counted under keys. H d b kept_tokens for K, H d b weighted_tokens for V; 4
    bytes a page for block_table and 4 H P for selected_pages. A step that acts on its certificate reads
    certificate_bytes as well; what a row that fails reads again is not counted.
    """
    model, pages = plan.spec.model, pages_of(plan, context)
    half = token_bytes(plan) // 2
    routed_pages = min(pages, plan.spec.routing.pages)
    sketches = keys = 0
    steps = plan.spec.routing.refresh if steps is None else steps
    shared = lambda read: -(-read // steps) if steps else 0
    if is_routed(plan, context) and plan.scores_by_sketch:
        sketches += shared(pages * sketch_bytes_per_page(plan, residuals=False))
    if plan.token_list and plan.sketch:
        sketches += routed_pages * sketch_bytes_per_page(plan, residuals=False)
    elif plan.token_list:
        keys = half * routed_tokens(plan, context)
    return StepBytes(
        summaries=shared(sum(summaries_scored(plan, context)) * summary_bytes(plan)),
        sketches=sketches,
        # keys scored exactly are read again for the tokens kept, mostly out of the L2 cache: they count once
        keys=max(keys, half * kept_tokens(plan, context)),
        values=half * weighted_tokens(plan, context),
        tables=INDEX_BYTES * (pages + model.num_kv_heads * plan.spec.routing.pages),
        certificate=certificate_bytes(plan, context) if plan.retries else 0,
    )


def scratch_bytes(plan: Plan, context: int) -> int:
    """float32 written and read again inside a sparse step, out of the L2 cache as long as it fits there.

    4 (Hq + H) pages of page scores and weights if pages are scored, 4 (Hq + H) P page_size of token logits and weights
    with a list of tokens; Hq query heads. The float32 partial outputs of the splits come on top.
    """
    heads, routing = plan.spec.model.num_q_heads + plan.spec.model.num_kv_heads, plan.spec.routing
    scored = sum(summaries_scored(plan, context))
    slots = routing.pages * plan.spec.cache.page_size if plan.token_list else 0
    return SCRATCH_BYTES * heads * (scored + slots)


def shared_bytes(plan: Plan, target: str) -> tuple[int, int]:
    """(attention kernels and solver, kernels that hold whole pages): most bytes of shared memory a block, on cuda."""
    routing, cache, model = plan.spec.routing, plan.spec.cache, plan.spec.model
    rows = plan.score_pages_cuda * (1 if routing.summary == "box" else plan.summary_rows)
    page = routing.summary, routing.subpage, cache.page_size
    pages = page_kernels(*page, model.head_dim, model.dtype, rows, routing.levels)
    attention = attention_tile(cache.page_size, model.head_dim, model.dtype, target).shared_bytes
    if plan.projects:
        solver, iterations = plan.spec.attention.solver, plan.spec.attention.iterations or 0
        tokens, group = plan.tile_tokens_cuda, plan.spec.group_size
        attention = max(attention, solver_bytes(solver, iterations, tokens, group, model.head_dim, model.dtype))
    return attention, max(pages.values())


def time_bound(read: int, bandwidth: float) -> float:
    """read / bandwidth: no kernel reads `read` bytes in fewer seconds; bandwidth in bytes/s by the data sheet."""
    return read / bandwidth


def crossover(plan: Plan) -> int | None:
    """The least context from which on the sparse step reads fewer bytes than the dense one; None if there is none.

    The saving dense - sparse never falls within a page. Over the first tokens of pages it never falls up to P pages,
    jumps down where scoring starts and is linear above; so each part is searched by halves.
    """
    page_size, top = plan.spec.cache.page_size, plan.spec.routing.pages
    saves = lambda context: dense_bytes(plan, context).total > sparse_bytes(plan, context).total
    page_saves = lambda page: saves(page * page_size + 1)  # page counts from 0, so that page + 1 pages are held
    far = MAX_CONTEXT // page_size
    if not page_saves(far):
        return None
    first = top if not page_saves(top) else 0  # page `top` is the first one that is scored
    last = far if first else top
    page = first + bisect_left(range(first, last), True, key=page_saves)
    if page == 0:
        return 1
    start = (page - 1) * page_size + 1  # the page before may begin to save behind its first token
    return start + bisect_left(range(start, page * page_size + 1), True, key=saves)
