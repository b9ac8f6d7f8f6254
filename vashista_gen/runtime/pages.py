"""Which page of a pool holds which token: the one account that all layers of a model's cache can share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vashista_gen.errors import UsageError


class Slots(NamedTuple):
    """Where new tokens go: entry i is token places[i] of row rows[i]'s new ones, written to pages[i] at offsets[i].

    int64 on the table's device. renewal: (old lengths, lengths), int32 [batch], of the summaries to renew.
    copied: (from, to) pages, int64, whose contents a pool copies before it writes: pages that were shared and now get a
    token of one row alone; None for none. first: whether no row held a token before.
    """

    rows: torch.Tensor
    places: torch.Tensor
    pages: torch.Tensor
    offsets: torch.Tensor
    renewal: tuple[torch.Tensor, torch.Tensor]
    copied: tuple[torch.Tensor, torch.Tensor] | None
    first: bool


class PageTable:
    """Token t of row b lies in page block_table[b, t // page_size]; pages come from a pool of num_pages.

    block_table int32 [batch, max_pages] and seq_lens int32 [batch] lie on `device` and stay the same objects, written
    in place, until `take` or `grow` makes new ones. Lengths and tables are also kept on the host: nothing is read back.
    They are ordinary tensors even when made inside torch.inference_mode(), and can be written outside it.
    A page may be held by several rows after `take`; a row that writes to a shared page gets its own copy first.
    Raises UsageError for what does not fit and when pages run out; a refused call changes nothing.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        batch: int = 1,
        max_pages: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_pages < 1 or batch < 1 or (max_pages is not None and max_pages < 1):
            raise UsageError(
                f"a paged cache of {num_pages} pages, {batch} rows and {max_pages} pages a row",
                "give at least 1 of each",
            )
        self.page_size = page_size
        self._table = torch.zeros(batch, max_pages or num_pages, dtype=torch.int32)  # [batch, max_pages], on the host
        self._lens = torch.zeros(batch, dtype=torch.int32)
        self._holders = [0] * num_pages  # rows that hold a page
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the page freed last is taken first
        self.block_table = self._table.to(device, copy=True)
        self.seq_lens = self._lens.to(device, copy=True)

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self._lens)

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
        return len(self._holders)

    @property
    def max_pages(self) -> int:
        """Pages that a row can hold."""
        return self._table.shape[1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, known without asking the device."""
        return tuple(self._lens.tolist())

    @property
    def longest(self) -> int:
        """Tokens of the longest row, known without asking the device."""
        return int(self._lens.max())

    @property
    def free_pages(self) -> int:
        """How many pages no row holds."""
        return len(self._free)

    def missing(self, counts: Sequence[int]) -> tuple[int, int]:
        """(pages of the pool, pages of a row) that adding counts[b] tokens to each row b needs beyond what there is."""
        new_lens = self._lens + torch.as_tensor(counts, dtype=torch.int32)
        taken = int((self._pages(new_lens) - self._pages(self._lens)).sum()) + len(self._shared(new_lens))
        return max(0, taken - len(self._free)), max(0, int(self._pages(new_lens).max()) - self.max_pages)

    @torch.inference_mode(False)
    def extend(self, counts: Sequence[int]) -> Slots:
        """Adds counts[b] tokens to each row b, with the pages that they need."""
        counts = torch.as_tensor(counts, dtype=torch.int32)
        new_lens = self._lens + counts
        copied = self._take_pages(new_lens)
        # one entry for each new token: its row, its place among the row's new ones, its position in the sequence
        rows = torch.repeat_interleave(torch.arange(self.batch), counts)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        positions = self._lens[rows] + places
        pages = self._table[rows, positions // self.page_size].long()
        first, old_lens = not bool(self._lens.any()), self._lens
        self._lens = new_lens
        self.seq_lens.copy_(new_lens)
        idle = counts == 0
        renewal = self._renewal(old_lens, idle & self._part_shared() if bool(idle.any()) else idle)
        return Slots(*self._there(rows, places, pages, positions % self.page_size), renewal, copied, first)

    def free(self, row: int) -> None:
        """Empties a row and gives its pages back."""
        self.check_row(row)
        self._release(row, 0)
        self._lens[row] = 0
        self._publish()

    @torch.inference_mode(False)
    def crop(self, counts: Sequence[int]) -> None:
        """Takes the last counts[b] tokens of each row b away, and gives back the pages left empty."""
        counts = torch.as_tensor(counts, dtype=torch.int32)
        if counts.shape != self._lens.shape or bool((counts < 0).any()) or bool((counts > self._lens).any()):
            raise UsageError(
                f"{counts.tolist()} tokens to be taken from rows of {list(self.lengths)}",
                "give a count for each row, 0 to its length",
            )
        kept = self._lens - counts
        for row, pages in enumerate(self._pages(kept).tolist()):
            self._release(row, pages)
        self._lens = kept
        self._publish()

    @torch.inference_mode(False)
    def take(self, rows: Sequence[int]) -> None:
        """Makes new row i the old row rows[i]: reorders, repeats or drops rows. Pages are shared, nothing is copied."""
        rows = [int(row) for row in rows]
        if not rows:
            raise UsageError("a cache without rows", "keep at least one row")
        for row in rows:
            self.check_row(row)
        index = torch.tensor(rows)
        lens, table = self._lens[index], self._table[index]  # copies
        for row, pages in zip(rows, self._pages(lens).tolist(), strict=True):
            for page in self._table[row, :pages].tolist():  # first hold, then let go: no page is free in between
                self._holders[page] += 1
        for row in range(self.batch):
            self._release(row, 0)
        self._lens, self._table = lens, table
        self._publish()

    @torch.inference_mode(False)
    def grow(self, num_pages: int, max_pages: int) -> None:
        """Makes the pool and the rows at least so large; block_table becomes another tensor when rows get longer."""
        more = num_pages - self.num_pages
        if more > 0:
            self._free = list(range(num_pages - 1, self.num_pages - 1, -1)) + self._free
            self._holders += [0] * more
        if max_pages > self.max_pages:
            self._table = torch.nn.functional.pad(self._table, (0, max_pages - self.max_pages))
            self._publish()

    def place(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(pages, offsets) of a row's tokens in order, int64 on the device."""
        self.check_row(row)
        positions = torch.arange(int(self._lens[row]))
        pages = self._table[row, positions // self.page_size].long()
        return self._there(pages, positions % self.page_size)

    def last_pages(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(old lengths, lengths) with which to renew the summaries of last pages after a crop, int32 [batch].

        Without those of shared pages that are partly filled: other holders may see more of them.
        """
        return self._renewal(self._lens - self._lens % self.page_size, self._part_shared())

    def whole_views(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same for all pages of rows that see all of what their pages hold; None where every row does.

        A row cropped to within a shared page sees a part of it.
        """
        shared = self._part_shared()
        return self._renewal(torch.zeros_like(self._lens), shared) if bool(shared.any()) else None

    def check_row(self, row: int) -> None:
        """UsageError for a row that the table has not."""
        if not 0 <= row < self.batch:
            raise UsageError(f"row {row} of a cache of {self.batch} rows", f"give 0 to {self.batch - 1}")

    def _pages(self, lens):
        return torch.div(lens + self.page_size - 1, self.page_size, rounding_mode="floor")

    def _there(self, *tensors):
        return tuple(x.to(self.seq_lens.device) for x in tensors)

    def _renewal(self, old_lens, skipped):
        """(old lengths, lengths) for update_summaries; of skipped rows such that no page lies between them."""
        if not bool(skipped.any()):
            return *self._there(old_lens), self.seq_lens
        begin = self._lens - self._lens % self.page_size
        return self._there(torch.where(skipped, begin, old_lens), torch.where(skipped, begin, self._lens))

    def _part_shared(self):
        """bool [batch] on the host: rows whose last page is partly filled and held by others."""
        part = self._lens % self.page_size > 0
        for row in part.nonzero().flatten().tolist():
            part[row] = self._holders[int(self._table[row, int(self._lens[row]) // self.page_size])] > 1
        return part

    def _shared(self, new_lens):
        """Rows whose last page is partly filled, gets a token, and is held by other rows that keep it."""
        rows, holders = [], {}
        for row in torch.nonzero((new_lens > self._lens) & (self._lens % self.page_size > 0)).flatten().tolist():
            page = int(self._table[row, int(self._lens[row]) // self.page_size])
            holders.setdefault(page, self._holders[page])
            if holders[page] > 1:
                holders[page] -= 1
                rows.append(row)
        return rows

    def _take_pages(self, new_lens):
        """Gives every row the pages its new length needs, or refuses before anything is changed; pages to copy."""
        held, needed = self._pages(self._lens), self._pages(new_lens)
        if int(needed.max()) > self.max_pages:
            raise UsageError(
                f"row {int(needed.argmax())} would need {int(needed.max())} pages of {self.page_size} tokens, "
                f"and a row of this cache holds {self.max_pages}",
                f"make the cache with max_pages={int(needed.max())} or more, or free the row",
            )
        shared = self._shared(new_lens)
        missing = int((needed - held).sum()) + len(shared)
        if missing > len(self._free):
            raise UsageError(
                f"the paged cache is full: {missing} more pages needed, {len(self._free)} of {self.num_pages} free",
                "free a row, or make the cache with more num_pages",
            )
        if not missing:
            return None
        copied = []
        for row in shared:
            place = int(self._lens[row]) // self.page_size
            page = int(self._table[row, place])
            self._holders[page] -= 1
            copied.append((page, self._take(row, place)))
        for row, (first, last) in enumerate(zip(held.tolist(), needed.tolist(), strict=True)):
            for place in range(first, last):
                self._take(row, place)
        self._publish()
        return self._there(*torch.tensor(copied).unbind(1)) if copied else None

    def _take(self, row, place):
        page = self._free.pop()
        self._holders[page] = 1
        self._table[row, place] = page
        return page

    def _release(self, row, kept):
        """Lets go of a row's pages from place `kept` on."""
        held = int(self._pages(self._lens[row]))
        for page in reversed(self._table[row, kept:held].tolist()):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
        self._table[row, kept:] = 0

    def _publish(self):
        """Brings the device's table and lengths up to date, in place where their shapes allow."""
        device = self.seq_lens.device
        if self.block_table.shape == self._table.shape:
            self.block_table.copy_(self._table)
        else:
            self.block_table = self._table.to(device, copy=True)
        if self.seq_lens.shape == self._lens.shape:
            self.seq_lens.copy_(self._lens)
        else:
            self.seq_lens = self._lens.to(device, copy=True)
