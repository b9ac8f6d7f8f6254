"""Others that do the same work: torch's SDPA over contiguous KV, FlashInfer where it is installed, and the algorithm of
TileLang's own example where TileLang is.

A peer that cannot run a case, or runs it wrongly, is left out of it with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import torch

from vashista_gen.bench.cases import Case, Inputs
from vashista_gen.bench.contestants import Contestant

WORKSPACE_BYTES = 256 * 2**20


def of_case(package: ModuleType, case: Case) -> tuple[list[Contestant], dict[str, str]]:
    """(peers, {name of a peer that is left out: why})."""
    makers = {"sdpa": _sdpa}
    if case.inputs[0].q.device.type == "cuda":
        makers |= {"flashinfer": _flashinfer, "flashinfer_pages": _flashinfer_pages, "tilelang_pages": _tilelang_pages}
    found, skipped = [], {}
    for name, make in makers.items():
        try:
            found.append(make(package, case))
        except _Skip as reason:
            skipped[name] = str(reason)
        except Exception as error:  # whatever a peer raises for a shape that it does not know
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return found, skipped


class _Skip(Exception):
    """Why a peer is left out."""


def _sdpa(package: ModuleType, case: Case) -> Contestant:
    if package.SPEC["model"]["logits_soft_cap"] is not None:
        raise _Skip("SDPA has no soft cap of logits")
    if case.inputs[0].k is None:
        raise _Skip("a contiguous copy of K and V does not fit beside the paged cache")
    sdpa, queries = torch.nn.functional.scaled_dot_product_attention, [x.q[:, :, None] for x in case.inputs]
    spec = package.SPEC
    scale = spec["model"]["sm_scale"] / spec["attention"]["epsilon"]

    def run(i: int, x: Inputs) -> torch.Tensor:
        return sdpa(queries[i], x.k, x.v, scale=scale, enable_gqa=True)

    return Contestant("sdpa", "torch SDPA, contiguous KV", "dense", run, peer=True)


def _flashinfer(package: ModuleType, case: Case) -> Contestant:
    """Paged dense decode: fa2 on tensor cores, planned once for each set."""
    model, page_size = package.SPEC["model"], package.SPEC["cache"]["page_size"]
    heads = (model["num_q_heads"], model["num_kv_heads"])
    wrappers = []
    for x in case.inputs:
        batch, pages = x.block_table.shape
        indptr = torch.arange(0, batch * pages + 1, pages, dtype=torch.int32)
        last = torch.full((batch,), (case.context - 1) % page_size + 1, dtype=torch.int32)
        layout = package.SPEC["cache"]["layout"]
        wrappers.append(_planned(package, x, layout, indptr, x.block_table.flatten(), last, heads))
    outs = [torch.full_like(x.q, float("nan")) for x in case.inputs]

    def run(i: int, x: Inputs) -> torch.Tensor:
        return wrappers[i].run(x.q, (x.k_cache, x.v_cache), out=outs[i])

    return Contestant("flashinfer", "FlashInfer fa2, paged KV", "dense", run, peer=True)


def _flashinfer_pages(package: ModuleType, case: Case) -> Contestant:
    """Attention to the pages selected for each KV head: an HND cache is seen as pages of one head each.

    Of an NHD cache the selected pages, and no others, are copied to one of that kind, in random order and untimed.
    """
    cache, model = package.SPEC["cache"], package.SPEC["model"]
    kv_heads, dim, page_size = model["num_kv_heads"], model["head_dim"], cache["page_size"]
    by_head = cache["layout"] == "HND"
    group, wrappers, views = model["num_q_heads"] // kv_heads, [], []
    for x in case.inputs:
        selected = package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens)
        selected = selected[..., : min(selected.shape[-1], x.block_table.shape[1])].long()
        batch, _, pages = selected.shape
        physical = torch.gather(x.block_table.long()[:, None].expand(-1, kv_heads, -1), 2, selected)
        heads = torch.arange(kv_heads, device=x.q.device)[:, None]
        if by_head:
            indices = (physical * kv_heads + heads).flatten().int()
            caches = (x.k_cache, x.v_cache)
        else:
            order = torch.randperm(physical.numel(), device=x.q.device)
            indices = torch.empty_like(order).index_put((order,), torch.arange(len(order), device=x.q.device)).int()
            # [pages, page_size, d]: place i of the copy holds the order[i]-th of the pages listed
            caches = tuple(c[physical, :, heads].flatten(0, 2)[order].contiguous() for c in (x.k_cache, x.v_cache))
        rows = batch * kv_heads
        indptr = torch.arange(0, rows * pages + 1, pages, dtype=torch.int32)
        last = torch.full((rows,), (case.context - 1) % page_size + 1, dtype=torch.int32)  # ascending: the last is last
        wrappers.append(_planned(package, x, "HND", indptr, indices, last, (group, 1)))
        views.append(tuple(c.view(-1, 1, page_size, dim) for c in caches))
    outs = [torch.full_like(x.q, float("nan")) for x in case.inputs]

    def run(i: int, x: Inputs) -> torch.Tensor:
        wrappers[i].run(x.q.view(-1, group, dim), views[i], out=outs[i].view(-1, group, dim))
        return outs[i]

    label = "FlashInfer, pages given for each head" + ("" if by_head else ", copied to HND")
    return Contestant("flashinfer_pages", label, "pages", run, peer=True)


def _tilelang_pages(package: ModuleType, case: Case) -> Contestant:
    """Attention to the pages selected for each KV head, by the algorithm of TileLang's example (tilelang_pages)."""
    if package.SPEC["model"]["logits_soft_cap"] is not None:
        raise _Skip("TileLang's example has no soft cap of logits")
    try:
        from vashista_gen.bench.tilelang_pages import SparseDecode
    except ImportError as error:
        raise _Skip("TileLang is not installed") from error
    on_gpu = case.inputs[0].q.device.type == "cuda"
    if on_gpu and case.context % package.SPEC["cache"]["page_size"]:
        raise _Skip("it loads whole pages, and here the last one holds NaN behind the sequence")
    selected = [package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens) for x in case.inputs]
    decoders = [SparseDecode(package.SPEC, x, pages) for x, pages in zip(case.inputs, selected, strict=True)]
    outs = [torch.full_like(x.q, float("nan")) for x in case.inputs]
    run = lambda i, x: decoders[i](x, outs[i])
    if on_gpu:
        _must_replay(run, case.inputs[0])
    return Contestant("tilelang_pages", "TileLang's example, rewritten; pages given", "pages", run, peer=True)


def _must_replay(run: Callable[[int, Inputs], torch.Tensor], x: Inputs) -> None:
    """Refuses what a CUDA graph does not hold: its replay would take no time."""
    run(0, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(0, x)
    out.fill_(float("nan"))
    graph.replay()
    if out.isnan().any():
        raise _Skip("a CUDA graph does not hold its launches")


def _planned(package, x, layout, indptr, indices, last_page_len, heads):
    try:
        import flashinfer
    except ImportError as error:
        raise _Skip("FlashInfer is not installed") from error
    model = package.SPEC["model"]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(x.q.device), layout, use_tensor_cores=True, backend="fa2"
    )
    wrapper.plan(
        indptr.to(x.q.device), indices, last_page_len.to(x.q.device), *heads, model["head_dim"],
        package.SPEC["cache"]["page_size"], q_data_type=x.q.dtype, kv_data_type=x.k_cache.dtype,
        logits_soft_cap=model["logits_soft_cap"], sm_scale=model["sm_scale"] / package.SPEC["attention"]["epsilon"],
    )  # fmt: skip
    return wrapper


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    """Scratch that all wrappers share: they run one after the other."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
