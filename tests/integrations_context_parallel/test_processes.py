"""Two and three processes that hold one cache together decode as one that holds it all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from rendered import import_package, write_package
from vashista_gen.generated import tiny

from vashista_gen.errors import UsageError
from vashista_gen.integrations.context_parallel import ContextParallelDecoder

from .worker import work

BOX = """name: cp_box
model: {num_q_heads: 3, num_kv_heads: 3, head_dim: 16, dtype: float32}
cache: {page_size: 32, layout: HND}
routing: {summary: box, box_weight: 0.5, pages: 5, sink_pages: 2, recent_pages: 2, group_reduce: max}
targets: [c]
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    names = ["vashista_gen.generated.tiny"]
    if ranks == 2:
        names.append(write_package(folder, BOX))
    for name in names:  # compiled once, before the ranks ask for it
        subject = import_package(folder, BOX) if name == "cp_box" else tiny
        subject.library.load("cpu")
    mp.spawn(work, (ranks, str(folder), names), ranks)


def test_without_a_process_group():
    with pytest.raises(UsageError, match="torch.distributed is not initialised"):
        ContextParallelDecoder(tiny)


def test_a_token_budget_is_refused(tmp_path):
    """No rank knows by itself which tokens are the K_c largest of all."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        budget = SimpleNamespace(SPEC={**tiny.SPEC, "candidates": {"tokens": 17}})
        retries = SimpleNamespace(SPEC={**tiny.SPEC, "certificate": {"kind": "rigorous"}, "fallback": "dense"})
        with pytest.raises(UsageError, match="tiny computes again rows.*\n.*fallback: capped"):
            ContextParallelDecoder(retries).decode(*[None] * 6)
        with pytest.raises(UsageError, match="tiny keeps 17 tokens of those it routes.*\n.*tokens: all"):
            ContextParallelDecoder(budget).decode(*[None] * 6)
        pages = SimpleNamespace(SPEC={**tiny.SPEC, "candidates": {"tokens": "all", "pages": 3}})
        with pytest.raises(UsageError, match="tiny keeps 3 pages of those it routes"):
            ContextParallelDecoder(pages).decode(*[None] * 6)
    finally:
        dist.destroy_process_group()
