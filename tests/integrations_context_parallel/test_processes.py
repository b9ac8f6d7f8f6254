"""Two and three processes that hold one cache together decode as one that holds it all."""

from __future__ import annotations

import datetime
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rendered import import_package, write_package
from vashista_gen.generated import tiny

from vashista_gen.errors import UsageError
from vashista_gen.integrations.context_parallel import ContextParallelDecoder, owner

from .ranks import logical, share, tokens

BOX = """name: cp_box
model: {num_q_heads: 3, num_kv_heads: 3, head_dim: 16, dtype: float32}
cache: {page_size: 32, layout: HND}
routing: {summary: box, box_weight: 0.5, pages: 5, sink_pages: 2, recent_pages: 2, group_reduce: max}
targets: [c]
"""
LENGTHS = ([0, 1, 64, 300], [16, 17, 129], [900])
# float32 sums of a few hundred terms of order 1, in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def compare(decoder, package, lengths, seed):
    """One step on this rank against one process; then a token is appended where it belongs, and a second step."""
    q, kv = tokens(package, lengths, seed)
    mine = share(package, [torch.cat([x, x[:, :1] if x.shape[1] else x], 1) for x in kv], decoder.rank, decoder.ranks)
    lens = torch.tensor(lengths, dtype=torch.int32)
    summaries = package.summarize_pages(mine.k_cache, mine.block_table, decoder.local_lengths(lens))
    check(decoder, package, q, kv, mine, lens, summaries)
    grown = torch.tensor([n + (n > 0) for n in lengths], dtype=torch.int32)
    old, new = decoder.local_lengths(lens), decoder.local_lengths(grown)
    holders = [owner(n, package.SPEC["cache"]["page_size"], decoder.ranks) for n in lengths]
    assert (new - old).tolist() == [int(n > 0 and h == decoder.rank) for n, h in zip(lengths, holders, strict=True)]
    package.update_summaries(summaries, mine.k_cache, mine.block_table, old, new)
    kv = [torch.cat([x, x[:, :1] if x.shape[1] else x], 1) for x in kv]
    check(decoder, package, q, kv, mine, grown, summaries)


def check(decoder, package, q, kv, mine, lens, summaries):
    whole = share(package, kv)
    all_summaries = package.summarize_pages(whole.k_cache, whole.block_table, whole.seq_lens)
    step = (q, whole.k_cache, whole.v_cache, whole.block_table, whole.seq_lens)
    selected = decoder.select_pages(q, summaries, mine.block_table, lens)
    everyone = [torch.empty_like(selected) for _ in range(decoder.ranks)]
    dist.all_gather(everyone, selected)
    wanted = package.select_pages(q, all_summaries, whole.block_table, whole.seq_lens)
    assert logical(everyone, decoder.ranks) == logical([wanted], 1)
    here = (q, mine.k_cache, mine.v_cache, mine.block_table, lens)
    for found, expected in (
        (decoder.decode(*here, summaries), package.decode(*step, all_summaries)),
        (decoder.decode_dense(*here), package.decode_dense(*step)),
    ):
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **CLOSE)


def work(rank, ranks, folder):
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting{ranks}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=90)
    )
    sys.path.insert(0, folder)
    for package in (tiny, __import__("cp_box")):
        decoder = ContextParallelDecoder(package)
        for seed, lengths in enumerate(LENGTHS):
            compare(decoder, package, lengths, seed)
    budget = SimpleNamespace(SPEC={**tiny.SPEC, "candidates": {"tokens": 17}})
    with pytest.raises(UsageError, match="tiny keeps 17 tokens"):
        ContextParallelDecoder(budget).decode(*[None] * 6)
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    if ranks == 2:  # compiled once, before the ranks ask for it
        import_package(folder, BOX).library.load("cpu")
    write_package(folder, BOX)
    tiny.library.load("cpu")
    mp.spawn(work, (ranks, str(folder)), ranks)


def test_without_a_process_group():
    with pytest.raises(UsageError, match="torch.distributed is not initialised"):
        ContextParallelDecoder(tiny)
