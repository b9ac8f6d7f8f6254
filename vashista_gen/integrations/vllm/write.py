"""New tokens into a paged cache by vLLM's slot mapping."""

from __future__ import annotations

import torch

from vashista_gen.errors import UsageError


def write_tokens(
    key: torch.Tensor,
    value: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    layout: str,
) -> None:
    """Writes token i to page slot // page_size, offset slot % page_size, slot = slot_mapping[i]; negative is padding.

    key, value [tokens or more, kv heads, d], cast to the caches' dtype; k_cache, v_cache as the package takes them,
    `layout` "NHD" or "HND", any distance between pages, written in place; slot_mapping int64 [tokens], no slot of a
    token twice. Reads nothing back from the device and can stand in a CUDA graph. Raises UsageError for shapes that
    do not fit; a slot behind the cache is an IndexError on the CPU and a device assertion on a GPU, as everywhere in
    torch.
    """
    count = slot_mapping.shape[0]
    by_token = [x if layout == "NHD" else x.transpose(1, 2) for x in (k_cache, v_cache)]
    inner = tuple(by_token[0].shape[2:])
    if slot_mapping.dtype != torch.int64 or slot_mapping.dim() != 1:
        raise UsageError(f"slot_mapping is {slot_mapping.dtype} {list(slot_mapping.shape)}", "give int64 [tokens]")
    for name, x in (("key", key), ("value", value)):
        if x.dim() != 3 or tuple(x.shape[1:]) != inner or x.shape[0] < count:
            raise UsageError(
                f"{name} is {list(x.shape)} for {count} slots", f"give [{count} or more, {', '.join(map(str, inner))}]"
            )
    if not count:
        return
    page_size = by_token[0].shape[1]
    real = slot_mapping >= 0
    # padding repeats the first real token, so that it writes what is written anyway; without one, what is there already
    first = real.to(torch.int8).argmax()
    source = torch.where(real, torch.arange(count, device=real.device), first)
    slots = slot_mapping[source].clamp(min=0)
    pages, offsets = slots // page_size, slots % page_size
    for cache, new in zip(by_token, (key, value), strict=True):
        new = torch.where(real.any(), new[source].to(cache.dtype), cache[pages, offsets])
        cache[pages, offsets] = new
