"""FlashInfer's page lists (indptr, indices, last_page_len) as a block table and lengths."""

from __future__ import annotations

import torch

from vashista_gen.errors import UsageError


def page_table(
    indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor, page_size: int, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(block_table int32 [batch, width], seq_lens int32 [batch]) on the device of `indices`, the longest's tokens.

    indptr int32 [batch + 1]; indices int32 [indptr[-1] or more], physical pages; last_page_len int32 [batch], tokens
    of a sequence's last page, 1 to page_size (any value where it has no page). width: the longest sequence's pages,
    at least 1, if not given. Reads indptr and last_page_len on the host, as FlashInfer's own `plan` does. Raises
    UsageError where they contradict each other or a sequence has more than `width` pages.
    """
    starts, last = indptr.cpu().long(), last_page_len.cpu().long()
    counts = _counts(starts, last, indices, page_size)
    longest = int(counts.max()) if len(counts) else 0
    if width is None:
        width = max(1, longest)
    if longest > width:
        raise UsageError(
            f"sequence {int(counts.argmax())} has {longest} pages, the table holds {width}",
            f"make the wrapper with max_pages={longest} or more",
        )
    place = torch.arange(width)
    source = torch.where(place < counts[:, None], starts[:-1, None] + place, -1).to(indices.device)
    table = torch.zeros(source.shape, dtype=torch.int32, device=indices.device)
    if len(indices):
        table = torch.where(source < 0, table, indices.int()[source.clamp(min=0)])
    lens = torch.where(counts > 0, (counts - 1) * page_size + last, 0)
    return table, lens.to(indices.device, torch.int32), int(lens.max()) if len(lens) else 0


def _counts(starts, last, indices, page_size):
    """Pages of each sequence, int64 on the host; UsageError where the three do not fit each other."""
    if starts.dim() != 1 or last.dim() != 1 or indices.dim() != 1 or len(starts) != len(last) + 1:
        raise UsageError(
            f"indptr {list(starts.shape)}, indices {list(indices.shape)} and last_page_len {list(last.shape)}",
            "give indptr [batch + 1], indices [pages of all sequences] and last_page_len [batch]",
        )
    counts = starts[1:] - starts[:-1]
    if int(starts[0]) != 0 or bool((counts < 0).any()) or int(starts[-1]) > len(indices):
        raise UsageError(
            f"indptr runs from {int(starts[0])} to {int(starts[-1])} over {len(indices)} indices",
            "let indptr start at 0, never fall, and end within indices",
        )
    wrong = (counts > 0) & ((last < 1) | (last > page_size))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UsageError(
            f"last_page_len[{row}] is {int(last[row])} of a page of {page_size} tokens",
            f"give 1 to {page_size} for every sequence that has a page",
        )
    return counts
