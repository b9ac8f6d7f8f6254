"""The paged KV cache of one layer, in the layout of a generated package, with its page summaries kept current."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from vashista_gen.errors import UsageError
from vashista_gen.runtime.pages import PageTable, Slots


class PagedCache:
    """K and V of `batch` rows in pages of a shared pool: token t of row b lies in page block_table[b, t // page_size].

    package: a generated package. k_cache and v_cache: [num_pages, page_size, num_kv_heads, head_dim] (NHD) or
    [num_pages, num_kv_heads, page_size, head_dim] (HND), float32 on a CPU and the spec's kv_dtype on a GPU unless
    `dtype` says otherwise; block_table int32 [batch, max_pages]; seq_lens int32 [batch], tokens; summaries as
    `package.summarize_pages` makes them. These tensors stay the same objects, written in place, until `fit` or the
    table's `take` or `grow`. Lengths and tables are also kept on the host, so that growing reads nothing back.
    table: the page table of another layer, when the layers of a model share one; `num_pages`, `batch`, `max_pages` and
    `device` are then the table's. calibration: of this layer, handed to the package when it makes the summaries.
    Raises UsageError for shapes that do not fit and when pages run out; a refused append changes nothing.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        package: ModuleType,
        num_pages: int = 0,
        *,
        batch: int = 1,
        max_pages: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        table: PageTable | None = None,
        calibration: Any = None,
    ) -> None:
        model, cache = package.SPEC["model"], package.SPEC["cache"]
        self.page_size: int = cache["page_size"]
        if table is None:
            table = PageTable(num_pages, self.page_size, batch=batch, max_pages=max_pages, device=device)
        elif table.page_size != self.page_size:
            raise UsageError(
                f"a table of pages of {table.page_size} tokens for {package.SPEC['name']}, whose pages hold "
                f"{self.page_size}",
                "share a table only among packages of one page size",
            )
        device = table.seq_lens.device
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else getattr(torch, cache["kv_dtype"])
        self.package, self.table = package, table
        self._token_shape = (model["num_kv_heads"], model["head_dim"])
        heads, head_dim = self._token_shape
        self._by_token = cache["layout"] == "NHD"
        page = (self.page_size, heads, head_dim) if self._by_token else (heads, self.page_size, head_dim)
        self.k_cache = torch.zeros(table.num_pages, *page, dtype=dtype, device=device)
        self.v_cache = torch.zeros_like(self.k_cache)
        self._calibration = calibration
        self.summaries = self._summarize()

    @property
    def block_table(self) -> torch.Tensor:
        """int32 [batch, max_pages]."""
        return self.table.block_table

    @property
    def seq_lens(self) -> torch.Tensor:
        """int32 [batch], tokens."""
        return self.table.seq_lens

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, known without asking the device."""
        return self.table.lengths

    @property
    def free_pages(self) -> int:
        """How many pages no row holds."""
        return self.table.free_pages

    def append(self, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int] | None = None) -> None:
        """Adds tokens to every row and renews the summaries of the pages they fall in.

        k, v: [batch, tokens, num_kv_heads, head_dim], of any floating dtype; row b adds its first lengths[b] tokens,
        all of them without `lengths`. For a table that no other layer shares: those `write`.
        """
        self._check_tokens(k, v)
        counts = [k.shape[1]] * len(k) if lengths is None else list(lengths)
        if len(counts) != len(k) or not all(0 <= n <= k.shape[1] for n in counts):
            raise UsageError(
                f"lengths {counts} for {len(k)} rows of {k.shape[1]} tokens",
                f"give one length for each row, 0 to {k.shape[1]}",
            )
        if any(counts):
            self.write(k, v, self.table.extend(counts))

    @torch.no_grad()
    def write(self, k: torch.Tensor, v: torch.Tensor, slots: Slots) -> None:
        """Writes tokens k[rows, places], v[rows, places] where table.extend said, and renews the summaries."""
        self._check_tokens(k, v)
        for cache, new in ((self.k_cache, k), (self.v_cache, v)):
            if slots.copied is not None:
                cache[slots.copied[1]] = cache[slots.copied[0]]
            tokens = new.detach()[slots.rows.to(new.device), slots.places.to(new.device)]
            self._tokens_of(cache)[slots.pages, slots.offsets] = tokens.to(cache)
        if slots.first:
            # the first tokens of an empty cache: what is centred on means is made from them
            for kept, made in zip(self.summaries, self._summarize(), strict=True):
                kept.copy_(made)
        else:
            self.renew(*slots.renewal)

    def renew(self, old_lens: torch.Tensor, lens: torch.Tensor) -> None:
        """Renews the summaries of the pages that hold tokens [old_lens, lens); both int32 [batch]."""
        tensors = (self.k_cache, self.block_table, old_lens, lens)
        self.package.update_summaries(self.summaries, *tensors, v_cache=self.v_cache)

    def free(self, row: int) -> None:
        """Empties a row and gives its pages back. Their contents stay until another row overwrites them."""
        self.table.free(row)

    def gather(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a row's K and V in order, each [tokens, num_kv_heads, head_dim]."""
        place = self.table.place(row)
        return self._tokens_of(self.k_cache)[place], self._tokens_of(self.v_cache)[place]

    @torch.inference_mode(False)
    def fit(self) -> None:
        """Makes the pool as large as its table has become: new k_cache, v_cache and summaries of the same contents."""
        more = self.table.num_pages - len(self.k_cache)
        if more > 0:
            self.k_cache, self.v_cache = (
                torch.cat([x, x.new_zeros(more, *x.shape[1:])]) for x in (self.k_cache, self.v_cache)
            )
            self.summaries = self._summarize()
            renewal = self.table.whole_views()
            if renewal is not None:  # again, so that what sees all of a page has the last word on it
                self.renew(*renewal)

    def __deepcopy__(self, memo: dict) -> PagedCache:
        """Another cache with the same contents, over the same package."""
        memo[id(self.package)] = self.package
        other = object.__new__(type(self))
        memo[id(self)] = other
        for name, value in vars(self).items():
            setattr(other, name, copy.deepcopy(value, memo))
        return other

    def _summarize(self):
        tensors = (self.k_cache, self.block_table, self.seq_lens)
        return self.package.summarize_pages(*tensors, v_cache=self.v_cache, calibration=self._calibration)

    def _tokens_of(self, cache):
        """A view [num_pages, page_size, num_kv_heads, head_dim] whatever the layout."""
        return cache if self._by_token else cache.transpose(1, 2)

    def _check_tokens(self, k, v):
        batch = self.table.batch
        if k.dim() != 4 or k.shape != v.shape or k.shape[0] != batch or tuple(k.shape[2:]) != self._token_shape:
            raise UsageError(
                f"k {list(k.shape)} and v {list(v.shape)} for a cache of {batch} rows",
                f"give both as [{batch}, tokens, {', '.join(map(str, self._token_shape))}]",
            )
