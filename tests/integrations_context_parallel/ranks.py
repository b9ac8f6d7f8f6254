"""A sequence as one process holds it, and the share of it that a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Share:
    """Caches, block table and lengths of one holder; pages in random order, NaN where no token lies."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor


def tokens(package, lengths, seed=0, family="normal"):
    """[(keys, values)] float32 [n, kv heads, d] for each length, and q."""
    model = package.SPEC["model"]
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw)
    kv = [normal(2, n, model["num_kv_heads"], model["head_dim"]) for n in lengths]
    if family == "duplicates":  # pages of three kinds, so that many weights are equal
        page_size = package.SPEC["cache"]["page_size"]
        kinds = normal(3, model["num_kv_heads"], model["head_dim"])
        for x in kv:
            x[0] = kinds[(torch.arange(x.shape[1]) // page_size * 7 % 5) % 3]
    return normal(len(lengths), model["num_q_heads"], model["head_dim"]), kv


def share(package, kv, rank=0, ranks=1, seed=0):
    """The pages p of each sequence with p mod ranks == rank, as a Share."""
    spec = package.SPEC
    page_size, hnd = spec["cache"]["page_size"], spec["cache"]["layout"] == "HND"
    mine = [range(rank, -(-x.shape[1] // page_size), ranks) for x in kv]
    order = torch.randperm(sum(map(len, mine)) + 2, generator=torch.Generator().manual_seed(seed + rank))
    inner = (page_size, *kv[0].shape[2:])
    caches = [torch.full((len(order), *inner), float("nan")) for _ in "kv"]
    table = torch.full((len(kv), max([1, *map(len, mine)])), 2**30, dtype=torch.int32)
    lens, taken = [], 0
    for b, pages in enumerate(mine):
        lens.append(0)
        for i, page in enumerate(pages):
            content = kv[b][:, page * page_size : (page + 1) * page_size]
            table[b, i] = order[taken]
            for cache, x in zip(caches, content, strict=True):
                cache[order[taken], : x.shape[0]] = x
            lens[-1] += content.shape[1]
            taken += 1
    if hnd:
        caches = [x.transpose(1, 2).contiguous() for x in caches]
    return Share(*caches, table, torch.tensor(lens, dtype=torch.int32))


def logical(selected, ranks_of):
    """Sets of logical pages [batch][kv head] of lists [rank] int32 [batch, kv heads, P] of local pages."""
    batch, heads = selected[0].shape[:2]
    number = lambda r, p: p * ranks_of + r
    return [
        [{number(r, p) for r, x in enumerate(selected) for p in x[b, h].tolist() if p >= 0} for h in range(heads)]
        for b in range(batch)
    ]
