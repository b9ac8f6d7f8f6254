"""Shared memory of the kernels whose tiles follow from the spec: what one block holds on a GPU.

The other kernels (selection, sketches of a page, certificates) hold less than 40 KiB whatever the spec, or less than
the attention kernel beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vashista_gen.errors import UsageError
from vashista_gen.spec.hardware import hardware_of

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
TILE_TOKENS = (64, 32)
ROWS = 16  # query rows of a tensor-core tile; a smaller group is padded to it
ROWS_OF_PARTS = 32  # most rows in which threads add up a super-page
TILES_OF_SCORES = 4  # tiles of page scores that a block goes through; it holds their page ids
REDUCTION_BYTES = 512  # scratch of one reduction across the warps of a block


@dataclass(frozen=True)
class Tile:
    """Tokens of one attention tile, the bytes it needs, the bytes a block of the target has (None for c: no limit)."""

    tokens: int
    shared_bytes: int
    available_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether the tile fits the shared memory of one block."""
        return self.available_bytes is None or self.shared_bytes <= self.available_bytes


def attention_tile(page_size: int, head_dim: int, dtype: str, target: str) -> Tile:
    """The largest tile of 64 or 32 tokens that fits `target`; the one of 32 when none does (then `Tile.fits` is False).

    bytes = (2 tokens d + 16 d + 16 tokens) * itemsize(dtype) + 12 tokens + reductions: K and V [tokens, d], Q [16, d],
    weights [16, tokens], three int32 of each token, three reductions of 512 bytes (none in float32, whose rows lie
    within a warp); d = head_dim rounded up to a multiple of 32. A tile is a number of whole pages or divides one.
    Raises UsageError for a target without hardware figures and for a page size that no tile goes with.
    """
    available = None if target == "c" else hardware_of(target).shared_bytes_per_block
    padded = _padded(head_dim, 32)
    reductions = 0 if dtype == "float32" else 3 * REDUCTION_BYTES
    tiles = [
        Tile(
            tokens,
            (2 * tokens * padded + ROWS * padded + ROWS * tokens) * ITEM_BYTES[dtype] + 12 * tokens + reductions,
            available,
        )
        for tokens in TILE_TOKENS
        if tokens % page_size == 0 or page_size % tokens == 0
    ]
    if not tiles:
        raise UsageError(
            f"no attention tile goes with pages of {page_size} tokens", "use a page size of 16, 32, 64 or 128"
        )
    return next((tile for tile in tiles if tile.fits), tiles[-1])


def recent_super_pages(recent_pages: int, super_pages: int) -> int:
    """Super-pages that hold the last `recent_pages` pages of a sequence, wherever it ends; the last may be incomplete."""
    return -(-(recent_pages - 1) // super_pages) + 1


def summary_rows(summary: str, subpage: int | None, page_size: int) -> int:
    """Rows that stand for a page: its mean, its box's corners, the means of its groups, or its tokens' sketches."""
    if summary == "subpage_mean":
        return page_size // (subpage or 1)
    return {"mean": 1, "box": 2, "sketch": page_size}[summary]


def pages_scored(summary: str, subpage: int | None, page_size: int, rows: int) -> int:
    """Pages of one tile of page scores of at most `rows` rows: whole ones, at least one; a box's corners take turns."""
    return max(1, rows // (1 if summary == "box" else summary_rows(summary, subpage, page_size)))


def page_kernels(
    summary: str, subpage: int | None, page_size: int, head_dim: int, dtype: str, tokens: int, levels: int = 1
) -> dict[str, int]:
    """Bytes of shared memory of the kernels that hold whole pages, beside attention tiles of `tokens`.

    score_pages: (16 d + rows d) * itemsize, 16 d more for a box, float32 logits [16, rows] where those of a page are
    summed and the sizes [rows] of its groups, 16 bytes of page ids a page; summarize: float32 rows [16 or more, c], with
    two levels 32 of parts of a super-page's, scales [c], of subpage means a centre and a spread [c], and a reduction;
    d = head_dim rounded up to a multiple of 32, c to one of 128.
    """
    pages, padded, channels = (
        pages_scored(summary, subpage, page_size, tokens),
        _padded(head_dim, 32),
        _padded(head_dim, 128),
    )
    page_rows = summary_rows(summary, subpage, page_size)
    rows = pages * (1 if summary == "box" else page_rows)
    queries = 2 * ROWS if summary == "box" else ROWS
    logits = 4 * {"subpage_mean": ROWS + 1, "sketch": ROWS}.get(summary, 0) * rows
    found = {"score_pages": (queries + rows) * padded * ITEM_BYTES[dtype] + logits + 4 * TILES_OF_SCORES * pages}
    held = ROWS if summary == "sketch" else max(ROWS, page_rows)
    if levels == 2:
        held = max(held, ROWS_OF_PARTS)
    scales = 3 if summary == "subpage_mean" else 1
    found["summarize"] = 4 * (held + scales) * channels + REDUCTION_BYTES
    return found


def solver_bytes(solver: str, iterations: int, tokens: int, group_size: int, head_dim: int, dtype: str) -> int:
    """Shared memory of a block of the solver's kernel, bytes, with a tile of `tokens` candidates.

    tile [tokens, d], query rows high and low [16, d] each, d = head_dim rounded up to a multiple of 32; float32 vectors
    [group_size, head_dim] and 16 numbers a row and candidate. entropic_projection: 6 vectors, and weights high and low
    [16, tokens]; frank_wolfe: 1 vector, and 4 numbers for each of iterations + 1 candidates in use.
    """
    padded = _padded(head_dim, 32)
    shared = (tokens * padded + 2 * ROWS * padded) * ITEM_BYTES[dtype] + 16 * 4 * (ROWS + tokens)
    if solver == "frank_wolfe":
        return shared + 4 * group_size * (head_dim + 4 * (iterations + 1))
    return shared + 2 * ROWS * tokens * ITEM_BYTES[dtype] + 4 * 6 * group_size * head_dim


def _padded(extent: int, step: int) -> int:
    return -(-extent // step) * step
