"""Constants that kernels are compiled with, and the values of each that a spec's shape and targets allow.

They change how fast a kernel is, never what it computes. A package has one set for the C target and one for its GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vashista_gen.spec.footprint import TILE_TOKENS, attention_tile, page_kernels, pages_scored, summary_rows
from vashista_gen.spec.hardware import hardware_of

if TYPE_CHECKING:
    from vashista_gen.spec.model import Spec

SCORE_ROWS_C = (16, 32, 64, 128)  # summary rows of one tile of page scores
SCORE_ROWS_CUDA = (32, 64, 128)
PART_STEPS = (1, 2, 4, 8)
WARPS = (2, 4, 8)
LEAST_ROWS = 32  # of one step of a warp that scores


def kernel_choices(spec: Spec, target: str) -> dict[str, tuple[int, ...]]:
    """{constant: its values} of a target.

    tile_tokens    tokens of one tile of the attention kernels
    score_pages    pages of one tile of page scores
    part_pages     pages whose scores one warp computes
    attend_warps   warps of a block that attends to pages, or to all tokens
    token_warps    warps of a block that scores or attends to listed tokens
    fused_routing  1: one launch routes both levels where blocks form clusters; 0: four launches
    """
    model, routing, page_size = spec.model, spec.routing, spec.cache.page_size
    shape = (routing.summary, routing.subpage, page_size)
    if target == "c":
        return {"tile_tokens": (8, 16, 32, 64), "score_pages": _distinct(pages_scored(*shape, n) for n in SCORE_ROWS_C)}
    cuda = [one for one in spec.targets if one != "c"]
    shared = min(hardware_of(one).shared_bytes_per_block for one in cuda)
    most = min(attention_tile(page_size, model.head_dim, model.dtype, one).tokens for one in cuda)
    tiles = [n for n in TILE_TOKENS[::-1] if n <= most and (n % page_size == 0 or page_size % n == 0)]
    scores = lambda rows: page_kernels(*shape, model.head_dim, model.dtype, rows)["score_pages"]
    scored = [n for n in SCORE_ROWS_CUDA if scores(n) <= shared]
    rows = summary_rows(*shape) if routing.summary == "subpage_mean" else 1
    sums = 4 * spec.group_size * (model.head_dim + 2)
    warps = tuple(n for n in WARPS if n * sums <= shared)
    return {
        "tile_tokens": tuple(tiles),
        "score_pages": _distinct(pages_scored(*shape, n) for n in scored),
        "part_pages": tuple(n * max(LEAST_ROWS, rows) // rows for n in PART_STEPS),
        "attend_warps": warps,
        "token_warps": warps,
        "fused_routing": (0, 1),
    }


def _distinct(values) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))
