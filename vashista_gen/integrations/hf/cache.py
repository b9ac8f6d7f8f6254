"""A transformers cache whose full-attention layers lie in pages, beside what a generated package keeps of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from vashista_gen.errors import UsageError
from vashista_gen.runtime import PagedCache, PageTable

ROOM = 256  # tokens of room beyond the first ones, where no max_tokens is given; a full pool grows by half


@dataclass(frozen=True)
class Settings:
    """How a model decodes: the package, the layers kept dense, tokens to make room for, and the calibration.

    calibration: an object whose `layer(i)` is handed to the package with the summaries of layer i; where that has
    `budgets` (int [kv heads], tokens), they are its budgets.
    """

    package: ModuleType
    config: Any
    dense_layers: frozenset[int] = frozenset()
    max_tokens: int | None = None
    calibration: Any = None
    certified: bool = field(init=False)

    def __post_init__(self) -> None:
        kind = self.package.SPEC.get("certificate", {}).get("kind", "none")
        object.__setattr__(self, "certified", kind != "none")
        takes = inspect.signature(self.package.update_summaries).parameters
        if self.calibration is not None and "calibration" not in takes:
            raise UsageError(
                f"the package {self.package.SPEC['name']} takes no calibration",
                "leave out calibration, or change the spec",
            )

    def budgets(self, layer: int) -> Any:
        """The calibrated budgets of a layer, where there are any and the package takes them."""
        if self.calibration is None or "budgets" not in inspect.signature(self.package.decode).parameters:
            return None
        return getattr(self.calibration.layer(layer), "budgets", None)

    def __deepcopy__(self, memo: dict) -> Settings:
        return self  # frozen, and a module cannot be copied


class PagedLayer(CacheLayerMixin):
    """One layer's K and V in pages. `keys` and `values` stay None: there is no contiguous copy."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, owner: SparseCache, index: int) -> None:
        super().__init__()
        self._owner, self.index = owner, index
        self.seen = 0  # columns, padding among them, as transformers counts tokens
        self.pages: PagedCache | None = None

    @property
    def spec(self) -> dict:
        """The spec of the package that attends."""
        return self._owner.settings.package.SPEC

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the pool; the page table is there already."""
        settings, device = self._owner.settings, key_states.device
        spec = self.spec
        shape = (spec["model"]["num_kv_heads"], spec["model"]["head_dim"])
        if (key_states.shape[1], key_states.shape[3]) != shape or key_states.shape != value_states.shape:
            raise UsageError(
                f"layer {self.index} has keys {list(key_states.shape)} and values {list(value_states.shape)}; "
                f"the package {spec['name']} is for {shape[0]} KV heads of {shape[1]}",
                "hf.detach(model): all layers that attend to the whole context must have the package's shape",
            )
        if device.type == "cuda" and key_states.dtype != getattr(torch, spec["cache"]["kv_dtype"]):
            raise UsageError(
                f"the model computes in {key_states.dtype}, the package {spec['name']} in {spec['cache']['kv_dtype']}",
                f"model.to(torch.{spec['cache']['kv_dtype']}), or change model.dtype of the spec",
            )
        calibration = settings.calibration
        self.pages = PagedCache(
            settings.package,
            table=self._owner.table,
            calibration=None if calibration is None else calibration.layer(self.index),
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends to the pages; returns what the attention function needs of [batch, kv heads, tokens, d].

        The new states themselves in a prefill and for a single token; everything seen, with zeros for padding, when
        several tokens follow others.
        """
        tokens, before = key_states.shape[2], self.seen
        slots = self._owner.slots(self, key_states)
        if self.pages is None:
            self.lazy_initialization(key_states, value_states)
        self.pages.write(key_states.transpose(1, 2), value_states.transpose(1, 2), slots)
        self.seen += tokens
        if tokens == 1 or not before:
            return key_states, value_states
        columns = self._owner.real_columns()
        whole = [key_states.new_zeros(len(columns), columns.shape[1], *key_states.shape[1::2]) for _ in "kv"]
        for row in range(len(columns)):
            real = columns[row].nonzero().flatten().to(key_states.device)
            for target, kept in zip(whole, self.pages.gather(row), strict=True):
                target[row, real] = kept.to(target.dtype)
        return tuple(x.transpose(1, 2) for x in whole)

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [batch, query heads, d] of the newest token; the attention's output, like q."""
        owner, pages = self._owner, self.pages
        settings = owner.settings
        query = q.to(pages.k_cache.dtype)
        tensors = (query, pages.k_cache, pages.v_cache, pages.block_table, pages.seq_lens)
        if self.index in settings.dense_layers:
            return settings.package.decode_dense(*tensors)[0].to(q.dtype)
        more = {}
        budgets = settings.budgets(self.index)
        if budgets is not None:
            budgets = torch.as_tensor(budgets, dtype=torch.int32, device=q.device)
            more["budgets"] = budgets.expand(len(q), -1).contiguous()
        if not settings.certified:
            return settings.package.decode(*tensors, pages.summaries, **more)[0].to(q.dtype)
        out, _, owner.certificates[self.index] = settings.package.decode(
            *tensors, pages.summaries, return_certificate=True, **more
        )
        return out.to(q.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns of the mask, the first one's position)."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Columns seen, padding among them."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: pages are added as they are needed."""
        return -1

    def _whole_cache_only(self, *args: Any, **kwargs: Any) -> None:
        raise UsageError(
            "the layers of a SparseCache share one page table", "call crop, reorder_cache, reset and so on of the cache"
        )

    crop = reorder_cache = reset = batch_repeat_interleave = batch_select_indices = _whole_cache_only

    def _not_offloaded(self, *args: Any, **kwargs: Any) -> None:
        raise UsageError("pages are not offloaded", "leave out cache_implementation='offloaded'")

    offload = prefetch = _not_offloaded


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
            if layer.pages is not None:
                layer.pages.renew(self.table.last_pages())

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

    def _each_other(self, name, *args):
        for layer in self.layers:
            if not isinstance(layer, PagedLayer):
                getattr(layer, name)(*args)

    def _take(self, rows):
        if self.table is not None:
            self.table.take(rows.tolist())
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
