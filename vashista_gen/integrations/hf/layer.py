"""One layer of a transformers cache in pages, and the settings that all layers of a model share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from vashista_gen.errors import UsageError
from vashista_gen.runtime import PagedCache

if TYPE_CHECKING:
    from vashista_gen.integrations.hf.cache import SparseCache


@dataclass(frozen=True)
class Settings:
    """How a model decodes: the package, the layers kept dense, tokens to make room for, and the calibration.

    calibration: an object whose `layer(i)` is handed to the package with the summaries of layer i; without it, what the
    package's own spec names a file for. Where a layer's has `budgets` (int [kv heads], tokens), they are its budgets.
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

    def calibrated(self, layer: int, device: torch.device) -> Any:
        """The calibration of a layer: the one given, or the package's own; None where there is none."""
        if self.calibration is not None:
            return self.calibration.layer(layer)
        own = getattr(self.package, "calibration", None)
        return own(layer, device) if own is not None else None

    @property
    def refreshes(self) -> bool:
        """Whether the package chooses pages in some steps alone."""
        return self.package.SPEC["routing"].get("refresh", 1) > 1

    @property
    def takes_budgets(self) -> bool:
        """Whether the package keeps a list of tokens, whose length budgets change."""
        return "budgets" in inspect.signature(self.package.decode).parameters

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
        self.budgets: torch.Tensor | None = None  # int32 [kv heads], tokens
        self.routing: Any = None  # where the package refreshes, what its last choice of pages was
        self._steps = 0  # decoded since the last one that had to choose

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
        calibration = settings.calibrated(self.index, device)
        self.pages = PagedCache(settings.package, table=self._owner.table, calibration=calibration)
        budgets = getattr(calibration, "budgets", None)
        if budgets is not None and settings.takes_budgets:
            self.budgets = torch.as_tensor(budgets, dtype=torch.int32, device=device)
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
        if tokens > 1:
            self.route_anew()
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
            return settings.package.decode_dense(*tensors, max_seq_len=pages.table.longest)[0].to(q.dtype)
        more = {"max_seq_len": pages.table.longest}
        if settings.refreshes:
            if self.routing is None:
                self.routing, self._steps = settings.package.new_routing(len(q), q.device), 0
            more |= {"routing": self.routing, "step": self._steps}
            self._steps += 1
        if self.budgets is not None:
            more["budgets"] = self.budgets.expand(len(q), -1).contiguous()
        if not settings.certified:
            return settings.package.decode(*tensors, pages.summaries, **more)[0].to(q.dtype)
        out, _, owner.certificates[self.index] = settings.package.decode(
            *tensors, pages.summaries, return_certificate=True, **more
        )
        return out.to(q.dtype)

    def route_anew(self) -> None:
        """The next step chooses pages: its rows are not those of the last choice, or not as long."""
        self.routing = None

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
