"""Spec -> Plan: every structural and numeric choice a template needs, made in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vashista_gen.spec import Spec
from vashista_gen.spec.footprint import attention_tile

TILE_TOKENS_C = 16  # one zmm register of float32 logits; the smallest page
SCORE_ROWS_C = 64  # summary rows of one tile: 16 KiB at head_dim 64, and whole vectors of page scores
MIN_TILE_TOKENS = 32


@dataclass(frozen=True)
class Plan:
    """What the templates see beside the spec.

    summary_rows   rows a page's summary has (groups of `subpage` tokens; lower and upper corner of a box)
    summary_width  stored elements of one row: head_dim, or half of it when two 4-bit codes share a byte
    summary_scale  what one scale of the integer codes covers: "page_channel", "page", None for 16 bits
    tile_tokens_*  tokens (or summary rows) of one tile on a GPU and on the C target
    score_pages_*  pages of one tile of the score kernel
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
    dense_below: int

    @property
    def token_budget(self) -> bool:
        """Whether K_c tokens are kept out of the routed pages (False: all of them)."""
        return self.spec.candidates.tokens is not None

    @property
    def projects(self) -> bool:
        """Whether the candidates' weights come from a projection and not from softmax."""
        return self.spec.attention.solver != "softmax"

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the package's kernels, in the order a decode step runs them."""
        attend = ("token_logits", "prune_tokens", "attend_logits") if self.token_budget else ("attend_pages",)
        if self.projects:
            attend = (*attend, "solve_tokens")
        return (
            *("summarize", "score_pages", "select_pages", "order_pages", *attend),
            *("attend_dense", "merge_splits", "merge_states"),
        )

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
            "SUMMARY_BITS": routing.summary_bits,
            "SM_SCALE": model.sm_scale,
            "EPSILON": spec.attention.epsilon,
            "LOGIT_SCALE": model.sm_scale / spec.attention.epsilon,
            "TILE_TOKENS_CUDA": self.tile_tokens_cuda,
            "TILE_TOKENS_C": self.tile_tokens_c,
            "SCORE_PAGES_CUDA": self.score_pages_cuda,
            "SCORE_PAGES_C": self.score_pages_c,
        }
        if model.logits_soft_cap is not None:
            values["LOGIT_CAP"] = model.logits_soft_cap / spec.attention.epsilon
        if routing.summary == "subpage_mean":
            values["SUBPAGE"] = routing.subpage
        if routing.summary == "box":
            values["BOX_WEIGHT"] = routing.box_weight
        if routing.summary_bits != 16:
            values["CODE_MAX"] = 2 ** (routing.summary_bits - 1) - 1
        if spec.candidates.tokens is not None:
            values["TOP_TOKENS"] = spec.candidates.tokens
            values["DENSE_BELOW"] = self.dense_below
        if self.projects:
            values["ITERATIONS"] = spec.attention.iterations
        return values


def make_plan(spec: Spec) -> Plan:
    """Chooses tiles and storage for a checked spec."""
    routing, page_size = spec.routing, spec.cache.page_size
    rows = {"mean": 1, "box": 2}.get(routing.summary) or page_size // routing.subpage
    scored_rows = rows if routing.summary == "subpage_mean" else 1
    tile_cuda = min(
        (
            attention_tile(page_size, spec.model.head_dim, spec.model.dtype, target).tokens
            for target in spec.targets
            if target.startswith("cuda")
        ),
        default=MIN_TILE_TOKENS,
    )
    scale = "page_channel" if routing.summary == "subpage_mean" else "page"
    return Plan(
        spec=spec,
        summary_rows=rows,
        summary_width=spec.model.head_dim // (2 if routing.summary_bits == 4 else 1),
        summary_scale=None if routing.summary_bits == 16 else scale,
        tile_tokens_cuda=tile_cuda,
        tile_tokens_c=TILE_TOKENS_C,
        score_pages_cuda=max(1, tile_cuda // scored_rows),
        score_pages_c=max(1, SCORE_ROWS_C // scored_rows),
        dense_below=spec.candidates.dense_below,
    )
