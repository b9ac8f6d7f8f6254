"""PagedCache: what was appended is what is there, and the summaries are a bulk pass's, whatever came before."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny
from vashista_gen.runtime import PagedCache

BATCH, NUM_PAGES, MAX_PAGES = 3, 7, 4
HEADS, HEAD_DIM, PAGE = 2, 32, 16


def by_head():
    """A package of the same shape in the layout HND: tiny's reference on transposed pages."""
    turn = lambda t: t.transpose(1, 2) if getattr(t, "ndim", 0) == 4 else t
    swapped = lambda f: lambda *x, v_cache=None, **given: f(*map(turn, x), v_cache=turn(v_cache), **given)
    spec = {**tiny.SPEC, "cache": {**tiny.SPEC["cache"], "layout": "HND"}}
    reference = tiny.reference
    return SimpleNamespace(
        SPEC=spec,
        summarize_pages=swapped(reference.summarize_pages),
        update_summaries=swapped(reference.update_summaries),
    )


PACKAGES = {"NHD": tiny, "HND": by_head()}
APPEND = st.tuples(st.just("append"), st.lists(st.integers(0, 40), min_size=BATCH, max_size=BATCH))
STEP = st.just(("append", [1] * BATCH))
FREE = st.tuples(st.just("free"), st.integers(0, BATCH - 1))


def tokens(seed, count):
    """K and V of `count` tokens for each row; one tensor an append, so that a misplaced token is seen."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(BATCH, count, HEADS, HEAD_DIM, generator=draw) for _ in "kv")


def poisoned(package, **kwargs):
    """A cache whose pages hold NaN until something is written to them."""
    cache = PagedCache(package, NUM_PAGES, batch=BATCH, max_pages=MAX_PAGES, **kwargs)
    for x in (cache.k_cache, cache.v_cache):
        x.fill_(float("nan"))
    return cache


def check(cache, held, package):
    """Lengths, tables, K and V against the list of what was appended, and the summaries against a bulk pass."""
    assert cache.lengths == tuple(cache.seq_lens.tolist()) == tuple(len(k) for k, _ in held)
    needed = [-(-len(k) // PAGE) for k, _ in held]
    used = [int(p) for b in range(BATCH) for p in cache.block_table[b, : needed[b]]]
    assert len(set(used)) == len(used) == NUM_PAGES - cache.free_pages
    bulk = package.summarize_pages(cache.k_cache, cache.block_table, cache.seq_lens, calibration=cache.summaries)
    for b, (k, v) in enumerate(held):
        kept_k, kept_v = cache.gather(b)
        assert torch.equal(kept_k, k)
        assert torch.equal(kept_v, v)
    for name, kept, wanted in zip(bulk._fields, cache.summaries, bulk, strict=True):
        where = slice(None) if name in ("center", "balance", "spread") else used  # those are no page's
        assert torch.equal(kept[where], wanted[where])


@pytest.mark.parametrize("layout", PACKAGES)
@settings(max_examples=40, deadline=None)
@given(actions=st.lists(st.one_of(APPEND, STEP, FREE), max_size=10))
@example(actions=[("append", [33, 0, 16]), ("free", 0), ("append", [1, 17, 1]), ("free", 2), ("append", [40, 40, 0])])
def test_any_sequence_of_appends_and_frees(layout, actions):
    package = PACKAGES[layout]
    cache = poisoned(package)
    nothing = torch.empty(0, HEADS, HEAD_DIM)
    held = [(nothing, nothing)] * BATCH
    for seed, (what, how) in enumerate(actions):
        if what == "free":
            cache.free(how)
            held[how] = (nothing, nothing)
        else:
            k, v = tokens(seed, max(how))
            needed = [-(-(len(old) + n) // PAGE) for (old, _), n in zip(held, how, strict=True)]
            if max(needed) > MAX_PAGES or sum(needed) > NUM_PAGES:
                with pytest.raises(UsageError):
                    cache.append(k, v, how)
            else:
                cache.append(k, v, how)
                held = [
                    (torch.cat([a, k[b, : how[b]]]), torch.cat([c, v[b, : how[b]]])) for b, (a, c) in enumerate(held)
                ]
        check(cache, held, package)


def test_decoding_over_it_is_attention_over_what_was_appended():
    cache = poisoned(tiny)
    lengths = [50, 1, 17]
    k, v = tokens(0, 50)
    cache.append(k, v, lengths)
    q = torch.randn(BATCH, 4, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    out, _ = tiny.decode(q, cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens, cache.summaries)
    for b, n in enumerate(lengths):
        keys, values = (x[b, :n].transpose(0, 1)[None] for x in (k, v))
        wanted = torch.nn.functional.scaled_dot_product_attention(q[b, None, :, None], keys, values, enable_gqa=True)
        # float32 sums of at most 50 products of normal numbers in another order
        torch.testing.assert_close(out[b], wanted[0, :, 0], atol=1e-5, rtol=1e-5)


def test_a_full_cache_says_what_to_do():
    cache = PagedCache(tiny, 2, batch=1)
    k = torch.zeros(1, 33, HEADS, HEAD_DIM)
    with pytest.raises(UsageError, match=r"row 0 would need 3 pages of 16 tokens.*holds 2\n +next: .*max_pages=3"):
        cache.append(k, k)
    cache = PagedCache(tiny, 3, batch=2, max_pages=3)
    both = torch.zeros(2, 30, HEADS, HEAD_DIM)
    with pytest.raises(UsageError, match=r"full: 4 more pages needed, 3 of 3 free\n +next: free a row"):
        cache.append(both, both)
    assert cache.lengths == (0, 0)
    assert cache.free_pages == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache, k: cache.append(k[:, :, :1], k), "k .* and v"),
        (lambda cache, k: cache.append(k[:1], k[:1]), "cache of 3 rows"),
        (lambda cache, k: cache.append(k, k, [1, 2]), "lengths .* for 3 rows"),
        (lambda cache, k: cache.append(k, k, [1, 2, 6]), "0 to 5"),
        (lambda cache, k: cache.free(3), "row 3 of a cache of 3 rows"),
        (lambda cache, k: cache.gather(-1), "row -1"),
        (lambda cache, k: PagedCache(tiny, 0), "0 pages"),
    ],
)
def test_a_wrong_call_changes_nothing(call, message):
    cache = PagedCache(tiny, NUM_PAGES, batch=BATCH)
    with pytest.raises(UsageError, match=message):
        call(cache, torch.zeros(BATCH, 5, HEADS, HEAD_DIM))
    assert cache.lengths == (0, 0, 0)


def test_its_tensors_stay_the_same_objects():
    cache = PagedCache(tiny, NUM_PAGES, batch=BATCH)
    places = [x.data_ptr() for x in (cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens, *cache.summaries)]
    cache.append(*tokens(0, 20))
    cache.free(1)
    now = (cache.k_cache, cache.v_cache, cache.block_table, cache.seq_lens, *cache.summaries)
    assert [x.data_ptr() for x in now] == places


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    from vashista_gen.generated import smollm2_135m as package

    draw = torch.Generator().manual_seed(0)
    cache, held = PagedCache(package, 8, batch=2, device="cuda"), [[], []]
    for lengths in ([40, 3], [1, 1], [0, 20], [1, 1]):
        k, v = (torch.randn(2, max(lengths), 3, 64, generator=draw).bfloat16() for _ in "kv")
        cache.append(k.cuda(), v.cuda(), lengths)
        for b, n in enumerate(lengths):
            held[b].append(k[b, :n])
    for b in range(2):
        assert torch.equal(cache.gather(b)[0].cpu(), torch.cat(held[b]))
    bulk = package.summarize_pages(cache.k_cache, cache.block_table, cache.seq_lens, calibration=cache.summaries)
    used = [int(p) for b, n in enumerate(cache.lengths) for p in cache.block_table[b, : -(-n // PAGE)]]
    for name, kept, wanted in zip(bulk._fields, cache.summaries, bulk, strict=True):
        where = slice(None) if name in ("center", "balance", "spread") else used  # those are no page's
        assert torch.equal(kept[where], wanted[where])
