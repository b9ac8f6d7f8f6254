"""Shared memory of the attention kernel: the tile of keys, values, queries and weights that one block holds."""

from __future__ import annotations

from dataclasses import dataclass

from vashista_gen.errors import UsageError
from vashista_gen.spec.hardware import hardware_of

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
TILE_TOKENS = (64, 32)
ROWS = 16  # query rows of a tensor-core tile; a smaller group is padded to it


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

    bytes = (2 tokens d + 16 d + 16 tokens) * itemsize(dtype): K and V [tokens, d], Q [16, d], weights [16, tokens],
    with d = head_dim rounded up to a multiple of 32. A tile is a number of whole pages or divides one.
    Raises UsageError for a target without hardware figures and for a page size that no tile goes with.
    """
    available = None if target == "c" else hardware_of(target).shared_bytes_per_block
    padded = -(-head_dim // 32) * 32
    tiles = [
        Tile(tokens, (2 * tokens * padded + ROWS * padded + ROWS * tokens) * ITEM_BYTES[dtype], available)
        for tokens in TILE_TOKENS
        if tokens % page_size == 0 or page_size % tokens == 0
    ]
    if not tiles:
        raise UsageError(
            f"no attention tile goes with pages of {page_size} tokens", "use a page size of 16, 32, 64 or 128"
        )
    return next((tile for tile in tiles if tile.fits), tiles[-1])


def solver_bytes(solver: str, iterations: int, tokens: int, group_size: int, head_dim: int, dtype: str) -> int:
    """Shared memory of a block of the solver's kernel, bytes, with a tile of `tokens` candidates.

    tile [tokens, d], query rows high and low [16, d] each, d = head_dim rounded up to a multiple of 32; float32 vectors
    [group_size, head_dim] and 16 numbers a row and candidate. entropic_projection: 6 vectors, and weights high and low
    [16, tokens]; frank_wolfe: 1 vector, and 4 numbers for each of iterations + 1 candidates in use.
    """
    padded = -(-head_dim // 32) * 32
    shared = (tokens * padded + 2 * ROWS * padded) * ITEM_BYTES[dtype] + 16 * 4 * (ROWS + tokens)
    if solver == "frank_wolfe":
        return shared + 4 * group_size * (head_dim + 4 * (iterations + 1))
    return shared + 2 * ROWS * tokens * ITEM_BYTES[dtype] + 4 * 6 * group_size * head_dim
