"""Which rank holds what: logical page p of a sequence is page p // ranks of rank p mod ranks.

Only a sequence's last page can be partial, and it is the last page of its rank too: so a rank's share is a sequence of
its own, with a block table and a length, and the ops of a generated package take it as it is.
"""

from __future__ import annotations

import torch


def owner(position: int, page_size: int, ranks: int) -> int:
    """The rank that holds the token at a position."""
    return position // page_size % ranks


def local_page(page: torch.Tensor, ranks: int) -> torch.Tensor:
    """A page's place among the pages of its rank."""
    return page // ranks


def local_lengths(seq_lens: torch.Tensor, page_size: int, rank: int, ranks: int) -> torch.Tensor:
    """Tokens of each sequence on a rank, of the dtype and shape of seq_lens (int32 [batch], tokens on all ranks).

    Reads nothing back from the device. The sum over the ranks is seq_lens.
    """
    full = seq_lens // page_size
    whole_pages = (full - rank + ranks - 1) // ranks  # how many p < full have p mod ranks == rank
    partial = torch.where(full % ranks == rank, seq_lens % page_size, 0)
    return (whole_pages.clamp(min=0) * page_size + partial).to(seq_lens.dtype)
