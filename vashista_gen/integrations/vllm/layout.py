"""vLLM's KV cache tensor as the two caches of a generated package: views, never copies."""

from __future__ import annotations

from typing import Any

import torch

from vashista_gen.errors import UsageError

ORDERS = {"kv_first": 0, "blocks_first": 1}  # the axis of K and V


def kv_halves(kv_cache: torch.Tensor, package: Any, order: str = "kv_first") -> tuple[torch.Tensor, torch.Tensor]:
    """(k_cache, v_cache) in the package's layout, over the same memory.

    kv_cache: [2, blocks, block_size, kv heads, d] ("kv_first", vLLM's FlashAttention) or [blocks, 2, block_size, kv
    heads, d] ("blocks_first", vLLM's FlashInfer and Triton). Its shape is that in vLLM's either memory layout; a
    package of layout HND needs the memory order of VLLM_KV_CACHE_LAYOUT=HND, one of NHD that of NHD. Block size: the
    package's page size. Raises UsageError for another shape, order or memory layout.
    """
    model, cache = package.SPEC["model"], package.SPEC["cache"]
    inner = (cache["page_size"], model["num_kv_heads"], model["head_dim"])
    if order not in ORDERS:
        raise UsageError(f"order {order!r}", f"give one of {', '.join(ORDERS)}")
    if kv_cache.dim() != 5 or kv_cache.shape[ORDERS[order]] != 2 or tuple(kv_cache.shape[2:]) != inner:
        shape = ["2", "blocks"] if order == "kv_first" else ["blocks", "2"]
        wanted = ", ".join([*shape, *map(str, inner)])
        raise UsageError(
            f"a KV cache of {list(kv_cache.shape)}, {package.SPEC['name']} needs [{wanted}]",
            f"start vLLM with --block-size {inner[0]}, and generate the package for this model's heads",
        )
    halves = kv_cache.unbind(ORDERS[order])
    if cache["layout"] == "HND":
        halves = [x.transpose(1, 2) for x in halves]
    if not all(x[:1].is_contiguous() for x in halves):
        raise UsageError(
            f"a KV cache of strides {kv_cache.stride()}: its memory is not {cache['layout']} within a block",
            f"set VLLM_KV_CACHE_LAYOUT={cache['layout']}, or generate the package with the other cache.layout",
        )
    # with one KV head: an axis of extent 1 may have any stride, and the package wants the usual one
    usual = torch.empty(halves[0].shape[1:], device="meta").stride()
    return tuple(x.as_strided(x.shape, (x.stride(0), *usual), x.storage_offset()) for x in halves)
