"""The inputs of one case: synthetic queries, keys and values in a paged cache, and a contiguous copy for peers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SEED = 20260
CONTEXTS = {
    "cpu": tuple(1024 * 2**i for i in range(7)),  # 1k to 64k
    "cuda": tuple(4096 * 2**i for i in range(6)),  # 4k to 128k
}
CPU_QUERIES = 4  # sets of queries in turn, so that the selected pages are not always the same ones
MAX_SETS = 32
MEMORY_SHARE = 0.6  # of what is free; the rest is for the reference and the kernels


@dataclass
class Inputs:
    """One set of arguments of a step. `k` and `v` [batch, kv heads, context, d], None where they did not fit.

    The caches are of the package's layout; its pages lie in random order, and what no token filled is NaN.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    old_seq_lens: torch.Tensor  # one token less
    summaries: tuple[torch.Tensor, ...]
    k: torch.Tensor | None
    v: torch.Tensor | None

    @property
    def paged(self) -> tuple[torch.Tensor, ...]:
        """The arguments of decode_dense."""
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seq_lens

    def head(self, cache: torch.Tensor, layout: str, b: int, h: int) -> torch.Tensor:
        """[context, d] of one sequence and KV head, out of a paged cache."""
        pages = self.block_table[b].long()
        rows = cache[pages, :, h] if layout == "NHD" else cache[pages, h]
        return rows.reshape(-1, rows.shape[-1])[: int(self.seq_lens[b])]


@dataclass
class Case:
    """One context and batch, with the sets of inputs that the timing goes through in turn."""

    context: int
    batch: int
    inputs: list[Inputs]


def make(
    package: ModuleType, context: int, batch: int, device: torch.device, dtype: torch.dtype, sets: int, contiguous: bool
) -> Case:
    """`sets` sets from a fixed seed. On a CPU they share one cache and differ in their queries."""
    generator = torch.Generator(device).manual_seed(SEED + context)
    model = package.SPEC["model"]
    inputs: list[Inputs] = []
    for i in range(sets):
        q = torch.randn(batch, model["num_q_heads"], model["head_dim"], generator=generator, device=device, dtype=dtype)
        if i and device.type == "cpu":
            first = inputs[0]
            inputs.append(Inputs(**{**vars(first), "q": q}))
        else:
            inputs.append(_fill(package, q, context, generator, contiguous))
    return Case(context, batch, inputs)


def _fill(package, q, context, generator, contiguous) -> Inputs:
    model, cache = package.SPEC["model"], package.SPEC["cache"]
    heads, dim, page_size = model["num_kv_heads"], model["head_dim"], cache["page_size"]
    batch, pages, nhd = len(q), -(-context // page_size), cache["layout"] == "NHD"
    order = torch.randperm(batch * pages, generator=generator, device=q.device)
    block_table = order.view(batch, pages).to(torch.int32)
    shape = (page_size, heads, dim) if nhd else (heads, page_size, dim)
    caches = [q.new_empty(batch * pages, *shape) for _ in range(2)]
    plain = [q.new_empty(batch, heads, context, dim) if contiguous else None for _ in range(2)]
    for paged, flat in zip(caches, plain, strict=True):
        for b in range(batch):
            rows = q.new_full((pages * page_size, heads, dim), float("nan"))
            rows[:context].normal_(generator=generator)
            if flat is not None:
                flat[b] = rows[:context].transpose(0, 1)
            rows = rows.view(pages, page_size, heads, dim)
            paged[block_table[b].long()] = rows if nhd else rows.transpose(1, 2)
    seq_lens = torch.full((batch,), context, dtype=torch.int32, device=q.device)
    calibration = calibration_of(package)
    summaries = package.summarize_pages(caches[0], block_table, seq_lens, v_cache=caches[1], calibration=calibration)
    return Inputs(q, *caches, block_table, seq_lens, seq_lens - 1, summaries, *plain)


def calibration_of(package: ModuleType) -> Any:
    """The first calibrated layer of a package that has some: keys here are no model's, the shapes are what counts."""
    return package.calibration(0) if hasattr(package, "calibration") else None


def plan_sets(device: torch.device, cache_bytes: int, step_bytes: int) -> tuple[int, bool]:
    """(sets of inputs, whether the contiguous copy fits) for a case whose cache takes `cache_bytes`; 0: no room.

    On a GPU enough sets that a step, which reads `step_bytes`, finds nothing of its last turn in the L2 cache: the
    sets between read at least twice the L2.
    """
    room = int(MEMORY_SHARE * free_memory(device))
    wanted = CPU_QUERIES
    if device.type == "cuda":
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        wanted = min(MAX_SETS, 1 + -(-2 * l2 // max(1, step_bytes)))
    for contiguous, copies in ((True, 2), (False, 1)):
        held = room // (copies * cache_bytes)
        if held >= 1:
            return (wanted if device.type == "cpu" else min(wanted, held)), contiguous
    return 0, False


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
