"""One measured case: a paged cache of synthetic keys and values, its contestants, and the gate they must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F


@dataclass
class Case:
    """A decode step over `context` tokens: q [batch, heads, d] normal, keys and values normal, pages in random order."""

    package: ModuleType
    context: int
    batch: int
    device: torch.device

    def __post_init__(self) -> None:
        model, cache = self.package.SPEC["model"], self.package.SPEC["cache"]
        generator = torch.Generator().manual_seed(self.context)
        dtype = torch.float32 if self.device.type == "cpu" else getattr(torch, model["dtype"])
        page_size, heads, head_dim = cache["page_size"], model["num_kv_heads"], model["head_dim"]
        pages = -(-self.context // page_size)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.device, dtype)

        tokens = (self.batch, pages * page_size, heads, head_dim)
        keys, values = normal(*tokens), normal(*tokens)
        self.q = normal(self.batch, model["num_q_heads"], head_dim)
        # [batch, heads, tokens, d], contiguous: what SDPA likes best
        self.keys = keys[:, : self.context].transpose(1, 2).contiguous()
        self.values = values[:, : self.context].transpose(1, 2).contiguous()
        order = torch.randperm(self.batch * pages, generator=generator).to(self.device)
        self.k_cache, self.v_cache = (self._paged(x, order, page_size) for x in (keys, values))
        table = torch.empty_like(order)
        table[order] = torch.arange(len(order), device=self.device)
        self.block_table = table.view(self.batch, pages).to(torch.int32).contiguous()
        self.seq_lens = torch.full((self.batch,), self.context, dtype=torch.int32, device=self.device)
        self.summaries = self.package.summarize_pages(self.k_cache, self.block_table, self.seq_lens)
        self.selected = self.package.select_pages(self.q, self.summaries, self.block_table, self.seq_lens)

    def _paged(self, tokens: torch.Tensor, order: torch.Tensor, page_size: int) -> torch.Tensor:
        """Tokens [batch, n, heads, d] as pages in the cache's layout, page i of the pool holding page order[i]."""
        pages = tokens.reshape(-1, page_size, *tokens.shape[2:])[order]
        return pages if self.package.SPEC["cache"]["layout"] == "NHD" else pages.transpose(1, 2).contiguous()

    @property
    def _cache(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seq_lens

    def contestants(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name; `sparse` is the whole step (route, select, attend), `route` and `attend` its parts."""
        package = self.package
        before = self.seq_lens - 1
        scale = package.SPEC["model"]["sm_scale"]
        calls: dict[str, Callable[[], object]] = {
            "dense": lambda: package.decode_dense(*self._cache),
            "sparse": lambda: package.decode(*self._cache, self.summaries),
            "route": lambda: package.select_pages(self.q, self.summaries, self.block_table, self.seq_lens),
            "attend": lambda: package.decode(*self._cache, None, selected_pages=self.selected),
            "update": lambda: package.update_summaries(
                self.summaries, self.k_cache, self.block_table, before, self.seq_lens
            ),
        }
        if package.SPEC["model"]["logits_soft_cap"] is None:  # SDPA has no soft cap
            q = self.q[:, :, None]
            calls["sdpa"] = lambda: F.scaled_dot_product_attention(
                q, self.keys, self.values, scale=scale / package.SPEC["attention"]["epsilon"], enable_gqa=True
            )
        return calls

    def errors(self) -> dict[str, float]:
        """Largest error of the dense and the sparse op against the float64 reference, relative to the largest |v|."""
        wide = [x.double() for x in (self.q, self.k_cache, self.v_cache)]
        tables = (self.block_table, self.seq_lens)
        size = self.v_cache.abs().max().item()
        poisoned = {"out": torch.full_like(self.q, float("nan"))}
        poisoned["lse"] = torch.full(self.q.shape[:2], float("nan"), dtype=torch.float32, device=self.device)
        reference = self.package.reference
        errors = {}
        out, _ = self.package.decode_dense(*self._cache, **poisoned)
        errors["dense"] = _largest(out, reference.decode_dense(*wide, *tables)[0]) / size
        # routing is part of the op: the reference attends to the pages that the op itself selected
        poisoned = {name: torch.full_like(x, float("nan")) for name, x in poisoned.items()}
        out, _ = self.package.decode(*self._cache, self.summaries, **poisoned)
        expected, _ = reference.decode(*wide, *tables, None, selected_pages=self.selected)
        errors["sparse"] = _largest(out, expected) / size
        return errors

    def tolerance(self) -> float:
        """Error allowed relative to max |v|.

        float32: logits of N(0, d) sums err by a few d u, u = 2^-24, and so do weights; 2e-5 is 30 times what that gives at
        d = 256. 16-bit types: weights are rounded before the product with V and the output once more, 2^-8 for bfloat16 and
        2^-11 for float16 each.
        """
        unit = {torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}[self.q.dtype]
        return 2 * unit


def _largest(out: torch.Tensor, expected: torch.Tensor) -> float:
    """max |out - expected|; NaN if any element is."""
    return (out.double() - expected.double()).abs().max().item()
