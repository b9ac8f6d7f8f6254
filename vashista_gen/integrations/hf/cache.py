"""A transformers cache whose full-attention layers lie in pages, beside what a generated package keeps of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vashista_gen.errors import UsageError
from vashista_gen.integrations.hf.layer import PagedLayer, Settings
from vashista_gen.runtime import PageTable

ROOM = 256  # tokens of room beyond the first ones, where no max_tokens is given; a full pool grows by half


class SparseCache(Cache):
    """The cache of a whole model: pages for layers that attend to everything, transformers' own layers for the others.

    All paged layers share one page table, so that a token's page is found once a step. The mask of a forward pass comes
    from `expect`; a masked column is padding and takes no place. certificates[layer]: the newest one, where the spec
    has certificates. Crop, reorder, repeat and select work; two rows that share a history share its pages.
    """

    def __init__(self, settings: Settings) -> None:
        layers = DynamicCache(config=settings.config).layers
        super().__init__(
            layers=[PagedLayer(self, i) if type(one) is DynamicLayer else one for i, one in enumerate(layers)]
        )
        self.settings = settings
        self.table: PageTable | None = None
        self.certificates: dict[int, Any] = {}
        self._clear()

    @property
    def paged(self) -> list[PagedLayer]:
        """The layers that lie in pages."""
        return [layer for layer in self.layers if isinstance(layer, PagedLayer)]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in the pages of each row, without padding."""
        return self.table.lengths if self.table is not None else ()

    def expect(self, attention_mask: torch.Tensor | None) -> None:
        """The mask of the forward pass to come: [batch, columns seen and new], 0 for padding; None for none."""
        if attention_mask is not None and (not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2):
            shown = list(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
            raise UsageError(
                f"an attention mask {shown}; pages can leave out padding, not single pairs of tokens",
                "give the mask as [batch, tokens], or hf.detach(model)",
            )
        self._mask = attention_mask

    def slots(self, layer: PagedLayer, states: torch.Tensor) -> Any:
        """Where the new tokens of a layer go: decided by the first layer of a step, the same for the others."""
        tokens = states.shape[2]
        if layer.seen == self._seen:
            self._slots = self._extend(states)
            self._seen += tokens
        elif layer.seen + tokens != self._seen:
            raise UsageError(
                f"layer {layer.index} has seen {layer.seen} tokens, others {self._seen}",
                "a forward pass broke off: cache.reset(), then prefill again",
            )
        return self._slots

    def real_columns(self) -> torch.Tensor:
        """bool [batch, columns] on the host: False for padding."""
        return (
            torch.ones(self.table.batch, self._seen, dtype=torch.bool) if self._columns is None else self._columns.cpu()
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last -tokens_to_remove columns away, a number of 0 or less as transformers gives it."""
        if tokens_to_remove > 0 or -tokens_to_remove > self._seen:
            raise UsageError(
                f"crop({tokens_to_remove}) of a cache of {self._seen} tokens",
                "give 0 or less: minus the tokens to take away",
            )
        self._each_other("crop", tokens_to_remove)
        if not tokens_to_remove or self.table is None:
            return
        counts = torch.full((self.table.batch,), -tokens_to_remove)
        if self._columns is not None:
            counts = self._columns[:, tokens_to_remove:].sum(1).cpu()
            self._columns = self._columns[:, :tokens_to_remove]
        self.table.crop(counts)
        self._seen += tokens_to_remove
        for layer in self.paged:
            layer.seen = self._seen
            layer.route_anew()
            if layer.pages is not None:
                layer.pages.renew(*self.table.last_pages())

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """New row i is the old row beam_idx[i]."""
        self._each_other("reorder_cache", beam_idx)
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._each_other("batch_repeat_interleave", repeats)
        if self.table is not None:
            self._take(torch.arange(self.table.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only the rows `indices`, numbers or a bool mask."""
        self._each_other("batch_select_indices", indices)
        if self.table is not None:
            self._take(torch.arange(self.table.batch)[indices.cpu()])

    def reset(self) -> None:
        """Forgets everything."""
        self._each_other("reset")
        self._clear()

    def _clear(self):
        self.table = self._mask = self._columns = self._slots = None
        self._seen = 0
        self.certificates.clear()
        for layer in self.paged:
            layer.seen, layer.pages, layer.is_initialized = 0, None, False
            layer.route_anew()

    def _each_other(self, name, *args):
        for layer in self.layers:
            if not isinstance(layer, PagedLayer):
                getattr(layer, name)(*args)

    def _take(self, rows):
        if self.table is not None:
            self.table.take(rows.tolist())
            for layer in self.paged:
                layer.route_anew()
            if self._columns is not None:
                self._columns = self._columns[rows.to(self._columns.device)]

    @torch.inference_mode(False)
    def _extend(self, states):
        """Pages for a step's tokens: (rows, columns) of the real ones among the new columns, in the table's order."""
        batch, _, tokens, _ = states.shape
        if self.table is not None and (batch != self.table.batch or states.device != self.table.seq_lens.device):
            raise UsageError(
                f"{batch} rows on {states.device} for a cache of {self.table.batch} on {self.table.seq_lens.device}",
                "one cache serves one batch on one device: make another, or select rows with batch_select_indices",
            )
        real = self._new_columns(batch, tokens)
        counts = [tokens] * batch if real is None else real.sum(1).tolist()
        if self.table is None:
            pages = -(-max(self.settings.max_tokens or 0, max(counts) + ROOM) // self._page_size)
            self.table = PageTable(batch * pages, self._page_size, batch=batch, max_pages=pages, device=states.device)
        pool, row = self.table.missing(counts)
        if pool or row:
            num_pages, max_pages = self.table.num_pages, self.table.max_pages
            self.table.grow(
                num_pages + max(pool, num_pages // 2) if pool else num_pages,
                max_pages + max(row, max_pages // 2) if row else max_pages,
            )
            for layer in self.paged:
                if layer.pages is not None:
                    layer.pages.fit()
        slots = self.table.extend(counts)
        return slots if real is None else slots._replace(places=real.nonzero()[:, 1].to(slots.places.device))

    @property
    def _page_size(self):
        return self.settings.package.SPEC["cache"]["page_size"]

    def _new_columns(self, batch, tokens):
        """bool [batch, tokens] on the host, False for padding; None where no column is padding."""
        mask, seen = self._mask, self._seen
        if mask is None:
            if self._columns is not None:
                raise UsageError(
                    "no attention_mask for a cache that holds padded rows", "give the mask of all columns so far"
                )
            return None
        if mask.shape != (batch, seen + tokens):
            raise UsageError(
                f"an attention mask {list(mask.shape)} for {batch} rows of {seen} tokens seen and {tokens} new",
                f"give it as [{batch}, {seen + tokens}]",
            )
        mask = mask.bool()
        old = mask[:, :seen]
        changed = (~old).any() if self._columns is None else (old != self._columns).any()
        # the one thing that a step reads back from the device
        *real, changed = torch.cat([mask[:, seen:].flatten(), changed[None]]).tolist()
        if changed:
            raise UsageError(
                "the attention mask now hides tokens that are in the pages, or shows padding",
                "keep the mask of tokens seen as it was; for another mask prefill anew",
            )
        if self._columns is None and all(real):
            return None
        self._columns = mask.clone()
        return torch.tensor(real).view(batch, tokens)
