"""Spec -> Plan: every structural and numeric choice a template needs, made in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vashista_gen.spec import Spec
from vashista_gen.spec.footprint import attention_tile, pages_scored, recent_super_pages, summary_rows
from vashista_gen.spec.hardware import architectures, hardware_of
from vashista_gen.spec.kernels import LEAST_ROWS

TILE_TOKENS_C = 16  # one zmm register of float32 logits; the smallest page
SCORE_ROWS_C = 64  # summary rows of one tile: 16 KiB at head_dim 64, and whole vectors of page scores
MIN_TILE_TOKENS = 32
PART_STEPS = 4  # of a warp that scores, each of at least LEAST_ROWS summary rows
WARPS = 4
CONSTANT_FIELDS = ("center", "balance", "spread", "value_center", "margin")  # of summaries: no page's
ROUTED_KEYS = 4096  # entries of a level among which a block of 512 threads chooses in one launch
ORDERED_PAGES = 256  # of a caller's list at most, which the blocks of attention order themselves
SELECTION_BYTES = 24 * 1024  # most of shared memory that choosing takes itself; ptxas says 6 to 20 KiB
MOST_SUMS = 256  # channels times tiles of 8 query heads whose sums one warp holds: half a lane's registers


def _capability(text: str) -> tuple[int, int]:
    """(9, 0) of "9.0"."""
    major, minor = text.split(".")
    return int(major), int(minor)


@dataclass(frozen=True)
class Plan:
    """What the templates see beside the spec.

    summary_rows   rows a page's summary has (groups of `subpage` tokens; lower and upper corner of a box)
    summary_width  stored elements of one row: head_dim, or half of it when two 4-bit codes share a byte
    summary_scale  what one scale of the integer codes covers: "page", None for 16 bits
    tile_tokens_*  tokens (or summary rows) of one tile on a GPU and on the C target
    score_pages_*  pages of one tile of the score kernel
    part_pages     pages one warp scores on a GPU
    *_warps        warps of a block on a GPU: attend_ to pages or to all tokens, token_ of kernels of listed tokens
    may_fuse       whether a kernel may route both levels
    dense_below    contexts up to this many tokens keep every token of the routed pages
    """

    spec: Spec
    summary_rows: int
    summary_width: int
    summary_scale: str | None
    tile_tokens_cuda: int
    tile_tokens_c: int
    score_pages_cuda: int
    score_pages_c: int
    part_pages: int
    attend_warps: int
    token_warps: int
    may_fuse: bool
    dense_below: int

    @property
    def warps_on_cuda(self) -> bool:
        """Whether GPU kernels keep rows in registers: 16-bit types, and the sums of a warp's query heads fit there."""
        model = self.spec.model
        routing = self.spec.routing
        if routing.summary_bits == 16 and (routing.summary == "box" or model.head_dim % 32):
            return False  # such rows are scored wrongly by warps
        return model.dtype != "float32" and model.head_dim * -(-self.spec.group_size // 8) <= MOST_SUMS

    @property
    def token_budget(self) -> bool:
        """Whether tokens are chosen among those of the routed pages (False: all of them are attended to)."""
        return self.spec.candidates.tokens is not None or self.spec.candidates.pages is not None

    @property
    def sketch(self) -> bool:
        """Whether every token has a key sketch."""
        return self.spec.sketch.bits is not None

    @property
    def searches_scales(self) -> bool:
        """Whether a full page's scales are searched for: finer codes and tighter proofs, for some time at a page's end."""
        sketch = self.spec.sketch
        return sketch.bits == 4 and sketch.transform == "page_channel" and self.spec.certificate.kind == "rigorous"

    @property
    def scores_by_sketch(self) -> bool:
        """Whether pages are scored by their tokens' sketches: there are no page summaries then."""
        return self.spec.routing.summary == "sketch"

    @property
    def centred(self) -> bool:
        """Whether a summary's codes are of (mean - c) / s, with a centre c and a spread s for each KV head and channel."""
        return self.spec.routing.summary == "subpage_mean" and self.spec.routing.summary_bits in (8, 4)

    @property
    def two_levels(self) -> bool:
        """Whether super-pages are scored first, and then the pages of the best of them alone."""
        return self.spec.routing.levels == 2

    @property
    def refreshes(self) -> bool:
        """Whether steps may keep the pages that an earlier one chose."""
        return self.spec.routing.refresh > 1

    @property
    def fused_routing(self) -> bool:
        """Whether both levels are routed by one kernel where blocks form clusters; its scores serve no second choice."""
        beam = self.spec.routing.beam or 0
        fits = self.routed_supers > beam and beam * (self.spec.routing.super_pages or 0) <= ROUTED_KEYS
        return self.may_fuse and self.two_levels and self.warps_on_cuda and fits and not self.retries

    @property
    def routed_supers(self) -> int:
        """Super-pages of a row whose scores fit a block's shared memory beside those of the pages in the beam, in that kernel."""
        routing = self.spec.routing
        room = min(180 * 1024, hardware_of("cuda-sm_90a").shared_bytes_per_block - self._routed_beside)
        rows = room // self._row_of_scores - (routing.beam or 0) * (routing.super_pages or 0)
        return max(0, min(ROUTED_KEYS, rows // 512 * 512))

    @property
    def routed_on(self) -> tuple[tuple[int, int], ...]:
        """Compute capabilities of the GPUs whose blocks have the shared memory that kernel takes, and form clusters."""
        routing = self.spec.routing
        rows = self.routed_supers + (routing.beam or 0) * (routing.super_pages or 0)
        needed = rows * self._row_of_scores + self._routed_beside
        found = ((_capability(one.compute_capability), one.shared_bytes_per_block) for one in architectures())
        return tuple(sorted(capability for capability, held in found if capability >= (9, 0) and held >= needed))

    @property
    def _row_of_scores(self) -> int:
        """Bytes of the scores of one entry: of one or two heads, or of a multiple of four."""
        group = self.spec.group_size
        return 4 * (group if group <= 2 else -(-group // 4) * 4)

    @property
    def _routed_beside(self) -> int:
        """Most bytes of shared memory of that kernel beside the scores of all entries, its 16 warps and 16 blocks a row."""
        routing, model = self.spec.routing, self.spec.model
        entries_of_step = 32 // self.summary_rows if routing.summary == "subpage_mean" else 32
        staged = self._row_of_scores * (2 * 16 * 16 + 16 * max(1, entries_of_step) + 16)
        queries = 2 * self.spec.group_size * (2 * model.head_dim + 8)
        lists = 4 * (routing.pages + (routing.beam or 0))
        return SELECTION_BYTES + staged + queries + lists

    @property
    def routed_entries(self) -> int:
        """Pages or super-pages of a row whose scores one block keeps, of which a multiprocessor has two."""
        return 2048 if self.spec.group_size <= 8 else 1024

    @property
    def summary_parts(self) -> int:
        """Tensors that hold the summaries of one level: numbers, or codes and scales."""
        return 1 if self.spec.routing.summary_bits == 16 else 2

    @property
    def certified(self) -> bool:
        """Whether a step can say what it left out."""
        return self.spec.certificate.kind != "none"

    @property
    def retries(self) -> bool:
        """Whether rows whose certificate fails are computed again."""
        return self.certified and self.spec.fallback != "capped"

    @property
    def token_list(self) -> bool:
        """Whether candidates are a list of tokens; else attention goes over the selected pages as they are."""
        return self.token_budget or self.certified

    @property
    def kept_tokens(self) -> int:
        """K_c: tokens kept for each list, all those of the routed pages when nothing is dropped."""
        candidates, routing, page_size = self.spec.candidates, self.spec.routing, self.spec.cache.page_size
        if candidates.pages is not None:
            return candidates.pages * page_size
        return routing.pages * page_size if candidates.tokens is None else candidates.tokens

    @property
    def least_tokens(self) -> int:
        """The fewest tokens that a mass budget keeps: those always kept, unless the spec says."""
        routing, candidates = self.spec.routing, self.spec.candidates
        always = (routing.sink_pages + routing.recent_pages) * self.spec.cache.page_size
        return min(self.kept_tokens, always if candidates.min_tokens is None else candidates.min_tokens)

    @property
    def sketch_blocks(self) -> tuple[int, ...]:
        """Sizes, descending powers of two, of the Hadamard blocks that make up a head's channels."""
        head_dim = self.spec.model.head_dim
        return tuple(1 << bit for bit in range(head_dim.bit_length() - 1, -1, -1) if head_dim >> bit & 1)

    @property
    def expand_rounds(self) -> int:
        """How often fallback expand doubles the pages before it attends to all."""
        if self.spec.fallback != "expand":
            return 0
        most = self.spec.certificate.expand_pages or 4 * self.spec.routing.pages
        return (most // self.spec.routing.pages).bit_length() - 1

    @property
    def decode_in_steps(self) -> bool:
        """Whether score_tokens, choose_tokens and attend_tokens are functions of the package: what decode does is these."""
        return self.token_list and not self.projects and not self.retries

    @property
    def projects(self) -> bool:
        """Whether the candidates' weights come from a projection and not from softmax."""
        return self.spec.attention.solver != "softmax"

    @property
    def second_result(self) -> str:
        """What a step returns beside its output: the log-sum-exp of the kept logits, or a projection's duality gap."""
        return "gap" if self.projects else "lse"

    @property
    def objective(self) -> str:
        """What a projection's weights a make least, for docstrings."""
        entropy = f" + {self.spec.attention.epsilon:g} sum_j a_j log a_j"
        fit = "1/2 ||sum_j a_j k_j - q'||^2"
        return fit + entropy if self.spec.attention.solver == "entropic_projection" else fit

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the package's kernels, in the order a decode step runs them."""
        attend = "solve_tokens" if self.projects else "attend_tokens"
        bound = "estimate_omitted" if self.spec.certificate.kind == "estimate" else "bound_tokens"
        return (
            "summarize",
            *(("prepare_queries",) if self.sketch else ()),
            *(("route_pages", "route_rows") if self.fused_routing else ()),
            *(("score_super_pages", "select_super_pages") if self.two_levels else ()),
            *("score_pages", "select_pages", "order_pages"),
            *(("renew_pages",) if self.refreshes else ()),
            *(("score_tokens", "choose_tokens", attend) if self.token_list else ("attend_pages",)),
            *(("attend_given_pages",) if self.orders_given_itself else ()),
            *((bound, "certify") if self.certified else ()),
            *(("attend_failed", "merge_failed") if self.retries else ()),
            *("attend_dense", "merge_splits", "merge_states"),
        )

    @property
    def prepares_in_place(self) -> bool:
        """Whether on a GPU the scoring of tokens prepares the queries itself: nothing else reads them prepared."""
        sketch, others = self.spec.sketch, self.certified or self.scores_by_sketch
        by_warps = sketch.transform == "page_channel" and sketch.bits in (4, 8) and self.spec.model.head_dim % 32 == 0
        return self.sketch and self.token_list and self.warps_on_cuda and by_warps and not others

    @property
    def merges_in_cluster(self) -> bool:
        """Whether on a GPU attention to what is kept merges its splits itself, in a cluster of blocks where there are such."""
        return self.warps_on_cuda and not self.projects and not self.retries

    @property
    def orders_given_itself(self) -> bool:
        """Whether on a GPU attention goes over the pages that a caller gives in any order, some of them twice.

        Each of its blocks orders the list, by comparing all with all: of longer ones a launch of its own does, once.
        """
        return self.warps_on_cuda and not self.token_list and self.spec.routing.pages <= ORDERED_PAGES

    @property
    def pages_summarized(self) -> bool:
        """Whether pages have summaries beside the sketches of their tokens."""
        return not self.scores_by_sketch

    @property
    def kept_of_pages(self) -> tuple[str, ...]:
        """What `summarize` makes of pages, each by blocks of its own, those that take longest first."""
        return (
            *(("super_pages",) if self.two_levels else ()),
            *(("sketches",) if self.sketch else ()),
            *(("pages",) if self.pages_summarized else ()),
            *(("radii",) if self.certified else ()),
        )

    @property
    def summary_fields(self) -> tuple[str, ...]:
        """Tensors of a package's Summaries, in order; the first `renewed_fields` of them are renewed after an append."""
        pages = () if self.scores_by_sketch else ("values",) if self.spec.routing.summary_bits == 16 else ("codes", "scales")
        return (
            *pages,
            *(f"super_{name}" for name in pages if self.two_levels),
            *(("sketch_codes", "sketch_scales", "sketch_residuals") if self.sketch else ()),
            *(("radii",) if self.certified else ()),
            *(("center",) if self.sketch or self.centred else ()),
            *(("balance",) if self.sketch else ()),
            *(("spread",) if self.centred else ()),
            *(("value_center", "margin") if self.certified else ()),
        )

    @property
    def renewed_fields(self) -> int:
        """How many of `summary_fields` hold something of every page."""
        return len([name for name in self.summary_fields if name not in CONSTANT_FIELDS])

    @property
    def summary_schema(self) -> str:
        """The fields as arguments of a torch op; renewed ones are written to."""
        alias = lambda i: f"({chr(ord('a') + i)}!)" if i < self.renewed_fields else ""
        return ", ".join(f"Tensor{alias(i)} {name}" for i, name in enumerate(self.summary_fields))

    @property
    def kernel_modules(self) -> tuple[str, ...]:
        """Modules of the package that hold kernels."""
        return (
            *("attend", "merge", "select", "summarize"),
            *(("sketch",) if self.scores_by_sketch else ("score",)),
            *(("sketch",) if self.sketch and not self.scores_by_sketch else ()),
            *(("route",) if self.fused_routing else ()),
            *(("renew",) if self.refreshes else ()),
            *(("tokens",) if self.token_list else ()),
            *(("certify",) if self.certified else ()),
            *(("solve",) if self.projects else ()),
        )

    @property
    def choice_in_words(self) -> str:
        """How choose_tokens chooses, for its docstring."""
        candidates = self.spec.candidates
        if candidates.pages is not None:
            return f"Kept: the {candidates.pages} pages with the largest share of the group's softmax mass."
        whose = "the group's softmax mass" if candidates.share == "group" else "each head's own logits"
        if candidates.mass is not None:
            return f"Kept: the fewest tokens that reach {candidates.mass:g} of {whose}, {self.least_tokens} to {self.kept_tokens}."
        return f"Kept: the {self.kept_tokens} largest by {whose}; those of sink, recent and pinned pages always."

    @property
    def certificate_in_words(self) -> str:
        """What a package's certificate is: proof, statistics or estimate."""
        return {
            "none": "",
            "estimate": "Here U is an ESTIMATE from page scores, no bound: it can be too small.",
            "calibrated": "Here log U is the sketches' log-sum-exp plus a CALIBRATED margin: it covers as often as it was measured to.",
            "rigorous": "Here u_j >= s_j is proved by the sketches' residuals, every rounding outward: a RIGOROUS bound.",
        }[self.spec.certificate.kind]

    @property
    def cache_shape(self) -> str:
        """Shape of a cache, in words."""
        heads, page = self.spec.model.num_kv_heads, self.spec.cache.page_size
        inner = f"{page}, {heads}" if self.spec.cache.layout == "NHD" else f"{heads}, {page}"
        return f"[num_pages, {inner}, {self.spec.model.head_dim}]"

    def constants(self) -> dict[str, Any]:
        """Named constants at the top of the generated package."""
        spec = self.spec
        model, routing = spec.model, spec.routing
        values: dict[str, Any] = {
            "NUM_Q_HEADS": model.num_q_heads,
            "NUM_KV_HEADS": model.num_kv_heads,
            "GROUP_SIZE": spec.group_size,
            "HEAD_DIM": model.head_dim,
            "DTYPE": model.dtype,
            "PAGE_SIZE": spec.cache.page_size,
            "TOP_PAGES": routing.pages,
            "SINK_PAGES": routing.sink_pages,
            "RECENT_PAGES": routing.recent_pages,
            "SUMMARY_ROWS": self.summary_rows,
            "SUMMARY_WIDTH": self.summary_width,
            "SUMMARY_BITS": routing.summary_bits or 16,
            "SM_SCALE": model.sm_scale,
            "EPSILON": spec.attention.epsilon,
            "LOGIT_SCALE": model.sm_scale / spec.attention.epsilon,
            "TILE_TOKENS_CUDA": self.tile_tokens_cuda,
            "TILE_TOKENS_C": self.tile_tokens_c,
            "SCORE_PAGES_CUDA": self.score_pages_cuda,
            "SCORE_PAGES_C": self.score_pages_c,
            "PART_PAGES": self.part_pages,
            "ATTEND_WARPS": self.attend_warps,
            "WARPS_ON_CUDA": self.warps_on_cuda,
        }
        if model.logits_soft_cap is not None:
            values["LOGIT_CAP"] = model.logits_soft_cap / spec.attention.epsilon
        if routing.summary == "subpage_mean":
            values["SUBPAGE"] = routing.subpage
        if routing.summary == "box":
            values["BOX_WEIGHT"] = routing.box_weight
        if routing.summary_bits in (8, 4):
            values["CODE_MAX"] = 2 ** (routing.summary_bits - 1) - 1
        if routing.super_pages is not None and routing.beam is not None:
            values |= {"SUPER_PAGES": routing.super_pages, "BEAM": routing.beam}
            values["SINK_SUPER_PAGES"] = -(-routing.sink_pages // routing.super_pages)
            values["RECENT_SUPER_PAGES"] = recent_super_pages(routing.recent_pages, routing.super_pages)
        if self.refreshes:
            values["REFRESH"] = routing.refresh
        if self.token_list:
            values["TOKEN_WARPS"] = self.token_warps
            values["TOP_TOKENS"] = self.kept_tokens
            values["DENSE_BELOW"] = self.dense_below
        if spec.candidates.mass is not None:
            values |= {"MASS": spec.candidates.mass, "MIN_TOKENS": self.least_tokens}
        if spec.sketch.bits is not None:
            values["SKETCH_BITS"] = spec.sketch.bits
            values["SKETCH_WIDTH"] = model.head_dim * spec.sketch.bits // 8
            if spec.sketch.transform == "hadamard":
                values["HADAMARD_BLOCKS"] = self.sketch_blocks
        if self.certified:
            values["TOLERANCE"] = spec.certificate.tolerance
            values["AUDIT_EVERY"] = spec.certificate.every
            values["AUDIT_HEADS"] = spec.certificate.heads
        if self.retries:
            values["EXPAND_ROUNDS"] = self.expand_rounds
        if self.projects:
            values["ITERATIONS"] = spec.attention.iterations
        return values


def make_plan(spec: Spec) -> Plan:
    """Chooses tiles and storage for a checked spec."""
    routing, page_size = spec.routing, spec.cache.page_size
    rows = summary_rows(routing.summary, routing.subpage, page_size)
    scored = lambda most: pages_scored(routing.summary, routing.subpage, page_size, most)
    fitting = min(
        (
            attention_tile(page_size, spec.model.head_dim, spec.model.dtype, target).tokens
            for target in spec.targets
            if target.startswith("cuda")
        ),
        default=MIN_TILE_TOKENS,
    )
    cuda, c = (spec.tuned_kernels(kind) for kind in ("cuda", "c"))
    rows_of_step = rows if routing.summary == "subpage_mean" else 1
    return Plan(
        spec=spec,
        summary_rows=rows,
        summary_width=spec.model.head_dim // (2 if routing.summary_bits == 4 else 1),
        summary_scale="page" if routing.summary_bits in (8, 4) else None,
        tile_tokens_cuda=cuda.get("tile_tokens", fitting),
        tile_tokens_c=c.get("tile_tokens", TILE_TOKENS_C),
        score_pages_cuda=cuda.get("score_pages", scored(fitting)),
        score_pages_c=c.get("score_pages", scored(SCORE_ROWS_C)),
        part_pages=cuda.get("part_pages", PART_STEPS * max(LEAST_ROWS, rows_of_step) // rows_of_step),
        attend_warps=cuda.get("attend_warps", WARPS),
        token_warps=cuda.get("token_warps", WARPS),
        may_fuse=bool(cuda.get("fused_routing", True)),
        dense_below=spec.candidates.dense_below,
    )
