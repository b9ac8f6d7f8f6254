"""The page summaries of an engine's caches, one entry a layer, found again by where the layer's keys lie."""

from __future__ import annotations

from typing import Any

import torch

from vashista_gen.errors import UsageError


class SummaryStore:
    """Summaries of the caches of one generated package, kept by the address, shape and strides of `k_cache`.

    An engine passes each layer's cache to every call; the store finds the summaries that belong to it without reading
    anything from the device. It holds a reference to each K cache, so that an address is never that of another tensor;
    `forget` lets go. Caches and tables: as for `package.decode`. Several wrappers may share one store.
    """

    def __init__(self, package: Any) -> None:
        self.package = package
        self._held: dict[tuple, tuple[torch.Tensor, Any]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, k_cache: torch.Tensor) -> bool:
        return _key(k_cache) in self._held

    def of(self, k_cache: torch.Tensor) -> Any:
        """The summaries of a cache. Raises UsageError where none were made."""
        held = self._held.get(_key(k_cache))
        if held is None:
            raise UsageError(
                f"no page summaries for the cache {list(k_cache.shape)} at {k_cache.data_ptr():#x}; {len(self)} others",
                "call summarize once after the prefill, and update after each append, on this same cache",
            )
        return held[1]

    def summarize(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        *,
        calibration: Any = None,
    ) -> Any:
        """Makes, or renews in place, the summaries of every page that the sequences use; other pages keep theirs.

        calibration: this layer's, as for `package.summarize_pages`; it counts when they are made, not when renewed.
        """
        if k_cache not in self:
            made = self.package.summarize_pages(
                k_cache, block_table, seq_lens, v_cache=v_cache, calibration=calibration
            )
            self._held[_key(k_cache)] = (k_cache, made)
            return made
        return self.update(k_cache, v_cache, block_table, torch.zeros_like(seq_lens), seq_lens)

    def update(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        old_seq_lens: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> Any:
        """Renews, in place, the summaries of the pages that hold tokens [old_seq_lens, seq_lens)."""
        summaries = self.of(k_cache)
        self.package.update_summaries(summaries, k_cache, block_table, old_seq_lens, seq_lens, v_cache=v_cache)
        return summaries

    def forget(self, k_cache: torch.Tensor | None = None) -> None:
        """Drops the summaries of a cache, or of all."""
        if k_cache is None:
            self._held.clear()
        else:
            self._held.pop(_key(k_cache), None)


def _key(k_cache):
    return k_cache.data_ptr(), tuple(k_cache.shape), k_cache.stride(), k_cache.device
