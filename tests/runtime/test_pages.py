"""PageTable under any sequence of appends, crops, takes, frees and growth: every row reads what was written to it."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny
from vashista_gen.runtime import PagedCache, PageTable

NUM_PAGES, MAX_PAGES, PAGE = 9, 4, 16
HEADS, HEAD_DIM = 2, 32
NUMBERS = st.lists(st.integers(0, 40), min_size=4, max_size=4)
ACTIONS = st.one_of(
    st.tuples(st.just("append"), NUMBERS),
    st.just(("append", [1, 1, 1, 1])),
    st.tuples(st.just("crop"), NUMBERS),
    st.tuples(st.just("take"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
    st.tuples(st.just("free"), st.integers(0, 3)),
    st.tuples(st.just("grow"), st.integers(0, 3)),
)


def pages_of(cache, row):
    return cache.block_table[row, : -(-cache.lengths[row] // PAGE)].tolist()


def check(cache, held, appended=()):
    """Lengths, K and V of each row; the account of free pages; summaries.

    Those of full pages, whoever shares them, and of the last pages of rows that were just appended to.
    """
    assert cache.lengths == tuple(cache.seq_lens.tolist()) == tuple(map(len, held))
    assert cache.table.longest == max(map(len, held))
    pages = [pages_of(cache, row) for row in range(len(held))]
    flat = sum(pages, [])
    assert len(set(flat)) == cache.table.num_pages - cache.free_pages
    assert all(len(set(one)) == len(one) for one in pages)
    for row, tokens in enumerate(held):
        k, v = cache.gather(row)
        assert torch.equal(k, tokens)
        assert torch.equal(v, -tokens)
    for row, tokens in enumerate(held):
        here = pages[row] if row in appended else pages[row][: len(tokens) // PAGE]
        table, lens = cache.block_table[row : row + 1], cache.seq_lens[row : row + 1]
        fresh = tiny.summarize_pages(cache.k_cache, table, lens, calibration=cache.summaries)
        for name, kept, wanted in zip(fresh._fields, cache.summaries, fresh, strict=True):
            where = slice(None) if name in ("center", "spread") else here  # those are no page's
            assert torch.equal(kept[where], wanted[where])


@settings(max_examples=80, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=10))
@example(actions=[("append", [20, 3, 0, 0]), ("take", [0, 0]), ("append", [1, 2, 0, 0]), ("append", [1, 1, 0, 0])])
@example(actions=[("append", [40, 0, 0, 0]), ("take", [0, 0]), ("crop", [0, 30, 0, 0]), ("append", [1, 1, 0, 0])])
@example(actions=[("append", [20, 0, 0, 0]), ("take", [0, 0, 0]), ("crop", [9, 2, 0, 0]), ("append", [9, 1, 30, 0])])
def test_any_sequence(actions):
    cache = PagedCache(tiny, NUM_PAGES, batch=2, max_pages=MAX_PAGES)
    for x in (cache.k_cache, cache.v_cache):
        x.fill_(float("nan"))
    held = [torch.empty(0, HEADS, HEAD_DIM)] * 2
    for seed, (what, how) in enumerate(actions):
        before, batch, appended = cache.lengths, len(held), ()
        try:
            if what == "append":
                k = torch.randn(batch, max(how), HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
                cache.append(k, -k, how[:batch])
                held = [torch.cat([old, k[row, : how[row]]]) for row, old in enumerate(held)]
                appended = [row for row in range(batch) if how[row]]
            elif what == "crop":
                counts = [min(n, len(old)) for n, old in zip(how, held, strict=False)]
                cache.table.crop(counts)
                cache.renew(*cache.table.last_pages())
                held = [old[: len(old) - n] for old, n in zip(held, counts, strict=True)]
            elif what == "take":
                rows = [row % batch for row in how]
                cache.table.take(rows)
                held = [held[row] for row in rows]
            elif what == "free":
                cache.free(how % batch)
                held[how % batch] = held[0][:0]
            elif cache.table.num_pages < 40:
                cache.table.grow(cache.table.num_pages + how, cache.table.max_pages + how)
                cache.fit()
        except UsageError:
            assert what == "append"
            assert cache.lengths == before
            assert max(cache.table.missing(how[:batch])) > 0
        check(cache, held, appended)


def test_rows_that_share_a_history_share_its_pages():
    cache = PagedCache(tiny, 8, batch=1, max_pages=4)
    k = torch.randn(1, 40, HEADS, HEAD_DIM)
    cache.append(k, k)
    cache.table.take([0, 0, 0])
    assert cache.free_pages == 5
    cache.append(*(torch.randn(3, 1, HEADS, HEAD_DIM) for _ in "kv"))
    assert cache.free_pages == 3  # two rows took a copy of the last page, the third kept it
    assert len({pages_of(cache, row)[2] for row in range(3)}) == 3
    assert len({pages_of(cache, row)[1] for row in range(3)}) == 1


def test_layers_share_a_table():
    table = PageTable(6, PAGE, batch=2, max_pages=3)
    layers = [PagedCache(tiny, table=table) for _ in range(2)]
    tokens = [torch.randn(2, 20, HEADS, HEAD_DIM) for _ in layers]
    slots = table.extend([20, 7])
    for cache, k in zip(layers, tokens, strict=True):
        cache.write(k, -k, slots)
    for cache, k in zip(layers, tokens, strict=True):
        check(cache, [k[0], k[1, :7]])


def test_a_copy_is_another_cache():
    cache = PagedCache(tiny, 4, batch=1)
    k = torch.randn(1, 20, HEADS, HEAD_DIM)
    cache.append(k, -k)
    other = copy.deepcopy(cache)
    other.append(k, -k)
    check(cache, [k[0]])
    check(other, [torch.cat([k[0], k[0]])])
    assert other.package is tiny


def test_made_in_inference_mode_it_can_be_written_outside():
    with torch.inference_mode():
        cache = PagedCache(tiny, 4, batch=1)
        k = torch.randn(1, 20, HEADS, HEAD_DIM)
        cache.append(k, -k)
        cache.table.take([0, 0])
    cache.append(torch.zeros(2, 1, HEADS, HEAD_DIM), torch.zeros(2, 1, HEADS, HEAD_DIM))
    assert cache.lengths == (21, 21)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: table.crop([1, 0]), r"\[1, 0\] tokens to be taken from rows of \[0, 0\]"),
        (lambda table: table.crop([-1, 0]), r"\[-1, 0\] tokens"),
        (lambda table: table.take([]), "without rows"),
        (lambda table: table.take([0, 2]), "row 2 of a cache of 2 rows"),
        (lambda table: PagedCache(tiny, table=PageTable(1, 32)), "pages of 32 tokens for tiny, whose pages hold 16"),
    ],
)
def test_a_wrong_call_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call(PageTable(4, PAGE, batch=2))
