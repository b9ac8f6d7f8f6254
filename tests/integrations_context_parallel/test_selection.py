"""Shares and the agreed selection, in one process: threads play the ranks, and a barrier the exchange."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen.generated import tiny
from vashista_gen.integrations.context_parallel import local_lengths, owner
from vashista_gen.integrations.context_parallel.selection import (
    in_whole_sequence,
    local_pages,
    local_tokens,
    select_pages,
)

from .ranks import logical, share, tokens

PAGE = 16


@given(st.integers(0, 500), st.integers(1, 7))
def test_local_lengths(length, ranks):
    """Token by token: each lies on the rank that owns its page."""
    counted = [0] * ranks
    for position in range(length):
        counted[owner(position, PAGE, ranks)] += 1
    lens = torch.tensor([length], dtype=torch.int32)
    found = [local_lengths(lens, PAGE, rank, ranks) for rank in range(ranks)]
    assert [int(x) for x in found] == counted and all(x.dtype == torch.int32 for x in found)


class Exchange:
    """all_gather among threads."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks)
        self.slots = [None] * ranks

    def of(self, rank):
        def gather(x):
            self.slots[rank] = x
            self.barrier.wait(60)
            everyone = torch.stack(self.slots)
            self.barrier.wait(60)
            return everyone

        return gather


def select(package, q, kv, ranks):
    """[rank] local pages selected, and the shares."""
    lens = torch.tensor([x.shape[1] for x in kv], dtype=torch.int32)
    shares = [share(package, kv, rank, ranks) for rank in range(ranks)]
    exchange = Exchange(ranks)

    whole = share(package, kv)
    # centre and spread of the summaries must be the same on all ranks
    constants = package.summarize_pages(whole.k_cache, whole.block_table, whole.seq_lens)

    def one(rank):
        s = shares[rank]
        summaries = package.summarize_pages(s.k_cache, s.block_table, s.seq_lens, calibration=constants)
        scores = package.score_pages(q, summaries, s.block_table, s.seq_lens)
        return local_pages(select_pages(package, scores, lens, rank, ranks, exchange.of(rank)), rank, ranks)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks))), shares


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 99),
    st.sampled_from(["normal", "duplicates"]),
)  # fmt: skip
@example([65], 3, 0, "normal")
@example([0, 1, 64], 4, 0, "normal")
@example([300, 299], 2, 0, "duplicates")
def test_the_selection_is_that_of_one_process(lengths, ranks, seed, family):
    q, kv = tokens(tiny, lengths, seed, family)
    whole = share(tiny, kv)
    summaries = tiny.summarize_pages(whole.k_cache, whole.block_table, whole.seq_lens)
    wanted = tiny.select_pages(q, summaries, whole.block_table, whole.seq_lens)
    selected, _ = select(tiny, q, kv, ranks)
    assert logical(selected, ranks) == logical([wanted], 1)


@pytest.mark.parametrize("width", [1, 4, 5, 12])
def test_score_pages(width):
    """Every page of every row, short rows too, is scored as the reference scores it; -inf behind the end."""
    lengths = [min(n, width * PAGE) for n in (0, 5, 60, 64, 70, 190)]
    q, kv = tokens(tiny, lengths)
    s = share(tiny, kv)
    table = torch.nn.functional.pad(s.block_table, (0, 12))[:, :width].contiguous()
    summaries = tiny.summarize_pages(s.k_cache, table, s.seq_lens)
    found = tiny.score_pages(q, summaries, table, s.seq_lens)
    wanted = tiny.reference.score_pages(q.double(), summaries, table, s.seq_lens)
    assert found.shape == wanted.shape == (6, 2, 2, width)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert found.isinf().sum() == 4 * sum(width - -(-n // PAGE) for n in lengths)


@given(st.lists(st.integers(0, 40), max_size=6, unique=True), st.integers(1, 4))
@example([], 3)
@example([0, 3, 6, 9], 3)
def test_scores_come_back_in_the_order_of_the_pages(pages, ranks):
    """Each score names its page and place; what a rank writes behind its own pages is never looked at."""
    page_size, width = 4, 6
    pages = sorted(pages)
    listed = torch.tensor([*pages, *[-1] * (width - len(pages))], dtype=torch.int32)[None, None]
    name = lambda page: 10.0 * page + torch.arange(page_size)
    scores = torch.full((ranks, 1, 1, 2, width * page_size), float("nan"))
    for rank in range(ranks):
        mine = [page for page in pages if page % ranks == rank]
        assert local_pages(listed, rank, ranks).flatten().tolist()[: len(mine)] == [page // ranks for page in mine]
        for i, page in enumerate(mine):
            scores[rank, 0, 0, :, i * page_size : (i + 1) * page_size] = name(page)
    whole = in_whole_sequence(scores, listed, page_size)
    wanted = [x for page in pages for x in name(page).tolist()] + [float("-inf")] * (width - len(pages)) * page_size
    assert whole[0, 0].tolist() == [wanted, wanted]


@given(st.lists(st.integers(0, 200), max_size=20, unique=True), st.integers(1, 4), st.integers(0, 9))
@example([], 2, 0)
@example([15, 16, 32, 48], 2, 1)
def test_every_listed_token_goes_to_its_owner(positions, ranks, seed):
    positions = sorted(positions)
    draw = torch.Generator().manual_seed(seed)
    heads = torch.randint(1, 8, (len(positions),), generator=draw, dtype=torch.int32).tolist()
    pad = 21 - len(positions)
    tokens = torch.tensor([*positions, *[-1] * pad], dtype=torch.int32)[None, None]
    bits = torch.tensor([*heads, *[0] * pad], dtype=torch.int32)[None, None]
    counts = torch.tensor([[len(positions)]], dtype=torch.int32)
    back = {}
    for rank in range(ranks):
        found, kept, count = (x[0, 0] for x in local_tokens(tokens, bits, counts, PAGE, rank, ranks))
        n = int(count)
        assert (found[n:] == -1).all() and (kept[n:] == 0).all() and (found[:n].diff() > 0).all()
        for at, head in zip(found[:n].tolist(), kept[:n].tolist(), strict=True):
            back[(at // PAGE * ranks + rank) * PAGE + at % PAGE] = head
    assert back == dict(zip(positions, heads, strict=True))
