"""What each process of test_processes.py runs; it imports no more than that, since every process pays for it."""

from __future__ import annotations

import datetime
import importlib
import sys

import torch
import torch.distributed as dist

from vashista_gen.integrations.context_parallel import ContextParallelDecoder, owner

from .ranks import logical, share, tokens

LENGTHS = ([0, 1, 64, 300], [16, 17, 129], [900])
# float32 sums of a few hundred terms of order 1, in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def compare(decoder, package, lengths, seed):
    """One step on this rank against one process; then a token is appended where it belongs, and a second step."""
    q, kv = tokens(package, lengths, seed)
    mine = share(package, [torch.cat([x, x[:, :1] if x.shape[1] else x], 1) for x in kv], decoder.rank, decoder.ranks)
    lens = torch.tensor(lengths, dtype=torch.int32)
    whole = share(package, kv)
    # centre and spread of the summaries must be the same on all ranks
    constants = package.summarize_pages(whole.k_cache, whole.block_table, whole.seq_lens)
    summaries = package.summarize_pages(
        mine.k_cache, mine.block_table, decoder.local_lengths(lens), calibration=constants
    )
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
    all_summaries = package.summarize_pages(
        whole.k_cache, whole.block_table, whole.seq_lens, calibration=summaries
    )
    step = (q, whole.k_cache, whole.v_cache, whole.block_table, whole.seq_lens)
    selected = decoder.select_pages(q, summaries, mine.block_table, lens)
    everyone = [torch.empty_like(selected) for _ in range(decoder.ranks)]
    dist.all_gather(everyone, selected)
    wanted = package.select_pages(q, all_summaries, whole.block_table, whole.seq_lens)
    assert logical(everyone, decoder.ranks) == logical([wanted], 1)
    here = (q, mine.k_cache, mine.v_cache, mine.block_table, lens)
    pairs = [
        (decoder.decode(*here, summaries), package.decode(*step, all_summaries)),
        (decoder.decode_dense(*here), package.decode_dense(*step)),
    ]
    if hasattr(package, "select_tokens"):
        budgets = torch.arange(1, 1 + selected[..., 0].numel(), dtype=torch.int32).view(selected.shape[:2]) * 9
        for given in (None, budgets):
            check_tokens(decoder, package, (here, summaries), (step, all_summaries), given)
        chosen = {"budgets": budgets}
        pairs.append((decoder.decode(*here, summaries, **chosen), package.decode(*step, all_summaries, **chosen)))
    for found, expected in pairs:
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **CLOSE)


def check_tokens(decoder, package, here, whole, budgets):
    """The ranks' tokens, and the heads that keep each, are exactly those of one process."""
    (q, k_cache, _, table, lens), summaries = here
    listed = decoder.select_tokens(q, k_cache, table, lens, summaries, budgets=budgets)
    everyone = [[torch.empty_like(x) for _ in range(decoder.ranks)] for x in listed]
    for out, x in zip(everyone, listed, strict=True):
        dist.all_gather(out, x)
    (q, k_cache, _, table, lens), summaries = whole
    wanted = package.select_tokens(q, k_cache, table, lens, summaries, budgets=budgets)
    page_size = package.SPEC["cache"]["page_size"]
    for b, h in [(b, h) for b in range(q.shape[0]) for h in range(wanted[2].shape[1])]:
        found = {}
        for rank, (listed, heads, counts) in enumerate(zip(*everyone, strict=True)):
            n = int(counts[b, h])
            positions = listed[b, h, :n]
            logical_positions = (positions // page_size * decoder.ranks + rank) * page_size + positions % page_size
            found |= dict(zip(logical_positions.tolist(), heads[b, h, :n].tolist(), strict=True))
        n = int(wanted[2][b, h])
        assert found == dict(zip(wanted[0][b, h, :n].tolist(), wanted[1][b, h, :n].tolist(), strict=True))
        assert n < int(lens[b]) or int(lens[b]) <= 100, "nothing was left out: the selection is not tested"


def work(rank, ranks, folder, names):
    """One rank: every package of `names`, found in `folder` or installed, on every batch of LENGTHS."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting{ranks}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=90)
    )
    sys.path.insert(0, folder)
    for name in names:
        package = importlib.import_module(name)
        decoder = ContextParallelDecoder(package)
        for seed, lengths in enumerate(LENGTHS):
            compare(decoder, package, lengths, seed)
    dist.destroy_process_group()
