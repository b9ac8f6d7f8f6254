"""One paged cache for many readers of one prefix: the prefix is stored once, each row has pages of its own behind it.

runtime.PagedCache gives every row its own pages and one package; an evaluation decodes twenty contestants, of as many
packages, behind the same 8k tokens, and would hold them twenty times.
"""

from __future__ import annotations

import torch

from vashista_gen.spec import Spec


class SharedPages:
    """K and V of one layer: `rows` sequences that share a prefix of whole pages.

    k, v: [tokens, kv heads, head_dim] of the prefix, a multiple of page_size long. k_cache and v_cache in the spec's
    layout, float32; block_table int32 [rows, max_pages] and seq_lens int32 [rows]; `room` tokens more fit in each row.
    """

    def __init__(self, spec: Spec, k: torch.Tensor, v: torch.Tensor, rows: int, room: int) -> None:
        self.page_size = spec.cache.page_size
        self._nhd = spec.cache.layout == "NHD"
        self.prefix, rest = divmod(len(k), self.page_size)
        if rest:
            raise ValueError(f"a prefix of {len(k)} tokens is no whole number of pages of {self.page_size}")
        self._tail_pages = -(-room // self.page_size)
        self._rows, self._used = rows, 0
        count = self.prefix + rows * self._tail_pages
        heads, d = k.shape[1:]
        page = (self.page_size, heads, d) if self._nhd else (heads, self.page_size, d)
        self.k_cache, self.v_cache = (torch.zeros(count, *page) for _ in range(2))
        for cache, given in ((self.k_cache, k), (self.v_cache, v)):
            self._by_token(cache)[: self.prefix] = given.view(self.prefix, self.page_size, heads, d)
        own = torch.arange(self.prefix, count, dtype=torch.int32).view(rows, self._tail_pages)
        shared = torch.arange(self.prefix, dtype=torch.int32).expand(rows, -1)
        self.block_table = torch.cat([shared, own], dim=1).contiguous()
        self.seq_lens = torch.full((rows,), len(k), dtype=torch.int32)

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """One more token in every row: k and v [rows, kv heads, head_dim]."""
        if self._used == self._tail_pages * self.page_size:
            raise ValueError(f"no room for more than {self._used} tokens behind the prefix")
        pages = self.block_table[:, self.prefix + self._used // self.page_size].long()
        place = self._used % self.page_size
        self._by_token(self.k_cache)[pages, place] = k
        self._by_token(self.v_cache)[pages, place] = v
        self._used += 1
        self.seq_lens += 1

    def parts(self, rows: slice) -> tuple[torch.Tensor, ...]:
        """(k, v of the prefix [tokens, kv heads, d], k, v of the rows' own tokens [rows, t, kv heads, d])."""
        shared, own = [], []
        for cache in (self.k_cache, self.v_cache):
            tokens = self._by_token(cache)
            shared.append(tokens[: self.prefix].flatten(0, 1))
            behind = tokens[self.prefix :].unflatten(0, (self._rows, self._tail_pages))
            own.append(behind[rows].flatten(1, 2)[:, : self._used])
        return (*shared, *own)

    def _by_token(self, cache):
        """A view [pages, page_size, kv heads, d] whatever the layout."""
        return cache if self._nhd else cache.transpose(1, 2)
