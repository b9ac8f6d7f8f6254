"""Two and three processes that hold one cache together decode as one that holds it all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rendered import import_package, write_package

from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny
from vashista_gen.integrations.context_parallel import ContextParallelDecoder

from .worker import work

BOX = """name: cp_box
model: {num_q_heads: 3, num_kv_heads: 3, head_dim: 16, dtype: float32}
cache: {page_size: 32, layout: HND}
routing: {summary: box, box_weight: 0.5, pages: 5, sink_pages: 2, recent_pages: 2, group_reduce: max}
targets: [c]
"""


# the fewest tokens of a mass, as the shipped specs keep them
MASS = """name: cp_mass
model: {num_q_heads: 6, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {summary: subpage_mean, subpage: 4, summary_bits: 4, pages: 12, sink_pages: 1, recent_pages: 2}
sketch: {bits: 4, transform: page_channel}
candidates: {tokens: 96, mass: 0.9, dense_below: 100}
targets: [c]
"""
# a list for each query head, ranked by exact logits
HEADS = """name: cp_heads
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 16, dtype: float32}
cache: {page_size: 16, layout: HND}
routing: {summary: mean, summary_bits: 16, pages: 6, sink_pages: 0, recent_pages: 1}
candidates: {tokens: 20, share: head}
targets: [c]
"""
# whole pages by their tokens' sketches
PAGES = """name: cp_pages
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {summary: subpage_mean, subpage: 4, summary_bits: 4, pages: 8}
sketch: {bits: 8, transform: hadamard}
candidates: {pages: 3}
targets: [c]
"""


@pytest.mark.parametrize("ranks, specs", [(2, (BOX, HEADS, PAGES)), (3, (MASS,))])
def test_ranks(ranks, specs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    names = ["vashista_gen.generated.tiny"]
    tiny.library.load("cpu")
    for text in specs:  # compiled once, before the ranks ask for it
        names.append(write_package(folder, text))
        import_package(folder, text).library.load("cpu")
    mp.spawn(work, (ranks, str(folder), names), ranks)


def test_without_a_process_group():
    with pytest.raises(UsageError, match="torch.distributed is not initialised"):
        ContextParallelDecoder(tiny)


def test_packages_whose_parts_do_not_merge_are_refused(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        lens = torch.ones(1, dtype=torch.int32)
        step = [None] * 4 + [lens, None]
        retries = SimpleNamespace(SPEC={**tiny.SPEC, "certificate": {"kind": "rigorous"}, "fallback": "dense"})
        with pytest.raises(UsageError, match="tiny computes again rows.*\n.*fallback: capped"):
            ContextParallelDecoder(retries).decode(*step)
        projects = SimpleNamespace(SPEC={**tiny.SPEC, "attention": {"solver": "frank_wolfe"}})
        with pytest.raises(UsageError, match="tiny projects on its candidates.*\n.*solver: softmax"):
            ContextParallelDecoder(projects).decode(*step)
        with pytest.raises(UsageError, match="tiny keeps every token it routes.*\n.*leave budgets out"):
            ContextParallelDecoder(tiny).decode(*step, budgets=lens)
    finally:
        dist.destroy_process_group()
