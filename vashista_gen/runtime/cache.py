"""The paged KV cache of one layer, in the layout of a generated package, with its page summaries kept current."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from vashista_gen.errors import UsageError


class PagedCache:
    """K and V of `batch` rows in pages of a shared pool: token t of row b lies in page block_table[b, t // page_size].

    package: a generated package. k_cache and v_cache: [num_pages, page_size, num_kv_heads, head_dim] (NHD) or
    [num_pages, num_kv_heads, page_size, head_dim] (HND), float32 on a CPU and the spec's kv_dtype on a GPU unless
    `dtype` says otherwise; block_table int32 [batch, max_pages]; seq_lens int32 [batch], tokens; summaries as
    `package.summarize_pages` makes them, with `calibration` (one layer's) if given. These tensors stay the same objects for the cache's life, written in place.
    Lengths and tables are also kept on the host, so that growing reads nothing back from the device.
    Raises UsageError for shapes that do not fit and when pages run out; a refused append changes nothing.
    """

    def __init__(
        self,
        package: ModuleType,
        num_pages: int,
        *,
        batch: int = 1,
        max_pages: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        calibration: Any = None,
    ) -> None:
        if num_pages < 1 or batch < 1 or (max_pages is not None and max_pages < 1):
            raise UsageError(
                f"a paged cache of {num_pages} pages, {batch} rows and {max_pages} pages a row",
                "give at least 1 of each",
            )
        model, cache = package.SPEC["model"], package.SPEC["cache"]
        device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else getattr(torch, cache["kv_dtype"])
        self.package = package
        self.page_size: int = cache["page_size"]
        self._token_shape = (model["num_kv_heads"], model["head_dim"])
        heads, head_dim = self._token_shape
        self._by_token = cache["layout"] == "NHD"
        page = (self.page_size, heads, head_dim) if self._by_token else (heads, self.page_size, head_dim)
        self.k_cache = torch.zeros(num_pages, *page, dtype=dtype, device=device)
        self.v_cache = torch.zeros_like(self.k_cache)
        self._table = torch.zeros(batch, max_pages or num_pages, dtype=torch.int32)  # [batch, max_pages], on the host
        self._lens = torch.zeros(batch, dtype=torch.int32)
        self.block_table = self._table.to(device, copy=True)
        self.seq_lens = self._lens.to(device, copy=True)
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the page freed last is taken first
        self._calibration = calibration
        self.summaries = self._summarize()

    def _summarize(self):
        tensors = (self.k_cache, self.block_table, self.seq_lens)
        return self.package.summarize_pages(*tensors, v_cache=self.v_cache, calibration=self._calibration)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, known without asking the device."""
        return tuple(self._lens.tolist())

    @property
    def free_pages(self) -> int:
        """How many pages no row holds."""
        return len(self._free)

    def append(self, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int] | None = None) -> None:
        """Adds tokens to every row and renews the summaries of the pages they fall in.

        k, v: [batch, tokens, num_kv_heads, head_dim], of any floating dtype; row b adds its first lengths[b] tokens,
        all of them without `lengths`.
        """
        counts = self._counts(k, v, lengths)
        if not int(counts.sum()):
            return
        new_lens = self._lens + counts
        self._take_pages(new_lens)
        # one entry for each new token: its row, its place among the row's new ones, its position in the sequence
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        positions = self._lens[rows] + places
        pages = self._table[rows, positions // self.page_size].long()
        target = tuple(x.to(self.k_cache.device) for x in (pages, positions % self.page_size))
        for cache, new in ((self.k_cache, k), (self.v_cache, v)):
            self._tokens_of(cache)[target] = new[rows.to(new.device), places.to(new.device)].to(cache)
        old_lens = self.seq_lens.clone()
        self._lens = new_lens
        self.seq_lens.copy_(new_lens)
        if not int((self._lens - counts).sum()):
            # the first tokens of an empty cache: what is centred on means is made from them
            for kept, new in zip(self.summaries, self._summarize(), strict=True):
                kept.copy_(new)
            return
        tensors = (self.k_cache, self.block_table, old_lens, self.seq_lens)
        self.package.update_summaries(self.summaries, *tensors, v_cache=self.v_cache)

    def free(self, row: int) -> None:
        """Empties a row and gives its pages back. Their contents stay until another row overwrites them."""
        self._check_row(row)
        held = -(-int(self._lens[row]) // self.page_size)
        self._free += self._table[row, :held].flip(0).tolist()
        self._table[row] = 0
        self._lens[row] = 0
        self.block_table.copy_(self._table)
        self.seq_lens.copy_(self._lens)

    def gather(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a row's K and V in order, each [tokens, num_kv_heads, head_dim]."""
        self._check_row(row)
        positions = torch.arange(int(self._lens[row]))
        pages = self._table[row, positions // self.page_size].long().to(self.k_cache.device)
        offsets = (positions % self.page_size).to(self.k_cache.device)
        return self._tokens_of(self.k_cache)[pages, offsets], self._tokens_of(self.v_cache)[pages, offsets]

    def _tokens_of(self, cache):
        """A view [num_pages, page_size, num_kv_heads, head_dim] whatever the layout."""
        return cache if self._by_token else cache.transpose(1, 2)

    def _counts(self, k, v, lengths):
        """int32 [batch] on the host: how many tokens each row adds; UsageError for what does not fit."""
        batch = len(self._lens)
        if k.dim() != 4 or k.shape != v.shape or k.shape[0] != batch or tuple(k.shape[2:]) != self._token_shape:
            raise UsageError(
                f"k {list(k.shape)} and v {list(v.shape)} for a cache of {batch} rows",
                f"give both as [{batch}, tokens, {', '.join(map(str, self._token_shape))}]",
            )
        given = [k.shape[1]] * batch if lengths is None else list(lengths)
        if len(given) != batch or not all(0 <= n <= k.shape[1] for n in given):
            raise UsageError(
                f"lengths {given} for {batch} rows of {k.shape[1]} tokens",
                f"give one length for each row, 0 to {k.shape[1]}",
            )
        return torch.tensor(given, dtype=torch.int32)

    def _take_pages(self, new_lens):
        """Gives every row the pages its new length needs, or refuses before anything is changed."""
        held, needed = (
            torch.div(x + self.page_size - 1, self.page_size, rounding_mode="floor") for x in (self._lens, new_lens)
        )
        width = self._table.shape[1]
        if int(needed.max()) > width:
            raise UsageError(
                f"row {int(needed.argmax())} would need {int(needed.max())} pages of {self.page_size} tokens, "
                f"and a row of this cache holds {width}",
                f"make the cache with max_pages={int(needed.max())} or more, or free the row",
            )
        missing = int((needed - held).sum())
        if missing > len(self._free):
            raise UsageError(
                f"the paged cache is full: {missing} more pages needed, {len(self._free)} of {len(self.k_cache)} free",
                "free a row, or make the cache with more num_pages",
            )
        if not missing:
            return
        for row, (first, last) in enumerate(zip(held.tolist(), needed.tolist(), strict=True)):
            for place in range(first, last):
                self._table[row, place] = self._free.pop()
        self.block_table.copy_(self._table)

    def _check_row(self, row):
        if not 0 <= row < len(self._lens):
            raise UsageError(f"row {row} of a cache of {len(self._lens)} rows", f"give 0 to {len(self._lens) - 1}")
