"""The FlashInfer-shaped wrapper against float64 formulas: page lists, layouts, base-2 lse, summaries, fixed buffers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rendered import import_package

from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny
from vashista_gen.integrations.flashinfer import SparseDecodeWithPagedKVCacheWrapper, SummaryStore, page_table

TINY = (Path(__file__).resolve().parents[2] / "specs" / "tiny.yaml").read_text(encoding="utf-8")
PAGE, HEADS, GROUP, DIM, POOL = 16, 2, 2, 32, 64
SIZES = (HEADS * GROUP, HEADS, DIM, PAGE)  # num_qo_heads, num_kv_heads, head_dim, page_size
LOG2 = math.log(2)
# float32 sums of up to 1000 terms on logits below 10: rounding of about 1e-6; an error in a formula is of order 1
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    hnd = TINY.replace("name: tiny", "name: tiny_hnd").replace("page_size: 16", "page_size: 16, layout: HND")
    return {"NHD": tiny, "HND": import_package(tmp_path_factory.mktemp("packages"), hnd)}


class Requests:
    """Sequences in a pool of pages: float64 K and V by token, the paged cache, and FlashInfer's page lists."""

    def __init__(self, lengths, layout="NHD", seed=0):
        self.draw = torch.Generator().manual_seed(seed)
        self.layout, self.lengths = layout, list(lengths)
        pool = torch.full((POOL, 2, PAGE, HEADS, DIM), float("nan"))
        self.cache = pool if layout == "NHD" else pool.transpose(2, 3).contiguous()
        self.free = torch.randperm(POOL, generator=self.draw).tolist()
        self.pages = [[] for _ in lengths]
        self.kv = [torch.zeros(2, 0, HEADS, DIM) for _ in lengths]
        self.lengths = [0] * len(self.pages)
        for row, count in enumerate(lengths):
            self.append(row, count)

    def append(self, row, count=1):
        new = torch.randn(2, count, HEADS, DIM, generator=self.draw)
        by_token = self.cache if self.layout == "NHD" else self.cache.transpose(2, 3)
        for i in range(count):
            at = self.lengths[row] + i
            if at % PAGE == 0:
                self.pages[row].append(self.free.pop())
            by_token[self.pages[row][at // PAGE], :, at % PAGE] = new[:, i]
        self.kv[row] = torch.cat([self.kv[row], new], 1)
        self.lengths[row] += count

    def lists(self):
        counts = [len(p) for p in self.pages]
        indptr = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)], dtype=torch.int32)
        indices = torch.tensor([p for pages in self.pages for p in pages], dtype=torch.int32)
        last = torch.tensor([(n - 1) % PAGE + 1 if n else 0 for n in self.lengths], dtype=torch.int32)
        return indptr, indices, last

    def query(self):
        return torch.randn(len(self.pages), HEADS * GROUP, DIM, generator=self.draw)

    def attention(self, q, selected=None):
        """(out, lse in base 2) in float64 over the selected logical pages [batch, kv heads, P], or all."""
        out = torch.zeros(q.shape, dtype=torch.float64)
        lse2 = torch.full(q.shape[:2], float("-inf"), dtype=torch.float64)
        for b, n in enumerate(self.lengths):
            for head in range(HEADS * GROUP if n else 0):
                h, kept = head // GROUP, torch.arange(n)
                if selected is not None:
                    kept = kept[torch.isin(kept // PAGE, selected[b, h].long())]
                k, v = self.kv[b][:, kept, h].double()
                s2 = k @ q[b, head].double() * DIM**-0.5 / LOG2
                top = s2.max()
                weight = 2 ** (s2 - top)
                lse2[b, head] = top + weight.sum().log2()
                out[b, head] = weight @ v / weight.sum()
        return out, lse2


def check(wrapper, requests, package):
    """One run against the formulas: over the pages that the package's reference selects for these summaries."""
    q = requests.query()
    table, lens, longest = page_table(*requests.lists(), PAGE)
    assert longest == int(lens.max())
    k = requests.cache[:, 0]
    # about the centres and spreads of the first fill, which the wrapper keeps
    summaries = package.summarize_pages(k, table, lens, calibration=wrapper.summaries.of(k))
    selected = package.reference.select_pages(q.double(), summaries, table, lens)
    out, lse = wrapper.run(q, requests.cache, return_lse=True)
    wanted, wanted_lse = requests.attention(q, selected)
    torch.testing.assert_close(out.double(), wanted, **CLOSE)
    torch.testing.assert_close(lse.double(), wanted_lse, **CLOSE)
    return q, out, lse


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(0, 140), min_size=1, max_size=3), st.integers(0, 99))
@example([0, 1, 130], 0)
@example([64, 65, 16], 1)
def test_attention_over_the_selected_pages(packages, layout, lengths, seed):
    requests = Requests(lengths, layout, seed)
    wrapper = SparseDecodeWithPagedKVCacheWrapper(packages[layout], kv_layout=layout)
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.summarize(requests.cache)
    q, out, lse = check(wrapper, requests, packages[layout])
    # the same through a tuple of halves, given outputs, and the other entries: bit for bit
    k, v = requests.cache.unbind(1)
    given_out, given_lse = torch.empty_like(q), torch.empty(q.shape[:2])
    assert wrapper.run(q, (k, v), out=given_out, lse=given_lse) is given_out
    assert torch.equal(given_out, out) and torch.equal(given_lse, lse)
    assert all(map(torch.equal, wrapper.forward_return_lse(q, requests.cache), (out, lse)))
    assert torch.equal(wrapper.run(q, requests.cache), out)


def test_lse_is_in_base_2_and_short_contexts_are_dense():
    requests = Requests([50, 64, 0])
    wrapper = SparseDecodeWithPagedKVCacheWrapper(tiny)
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.summarize(requests.cache)
    q = requests.query()
    out, lse = wrapper.run(q, requests.cache, return_lse=True)
    wanted, wanted_lse = requests.attention(q)
    torch.testing.assert_close(out.double(), wanted, **CLOSE)
    torch.testing.assert_close(lse.double(), wanted_lse, **CLOSE)
    assert lse[2].eq(float("-inf")).all() and out[2].eq(0).all()


def test_the_planned_lengths_decide_whether_a_step_is_read_whole():
    requests = Requests([130, 64])
    wrapper = SparseDecodeWithPagedKVCacheWrapper(tiny)
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.summarize(requests.cache)
    q = requests.query()
    sparse = wrapper.run(q, requests.cache)
    with tiny.op.tuning.changed(dense_up_to=((1, 129),)):
        assert torch.equal(wrapper.run(q, requests.cache), sparse)
    with tiny.op.tuning.changed(dense_up_to=((1, 130),)):  # fewer than the table's 9 pages hold
        whole = wrapper.run(q, requests.cache)
    torch.testing.assert_close(whole.double(), requests.attention(q)[0], **CLOSE)
    assert not torch.allclose(whole, sparse)


def test_decoding_with_requests_that_come_and_go():
    """Appends of one token, a new request among old ones, and a freed page taken by another request."""
    requests = Requests([100, 63])
    wrapper = SparseDecodeWithPagedKVCacheWrapper(tiny)
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.summarize(requests.cache)
    for step in range(40):
        appended = torch.ones(len(requests.pages), dtype=torch.int32)
        for row in range(len(requests.pages)):
            requests.append(row)
        if step == 10:  # the first request ends, its pages are the next to be taken; another one joins
            requests.free += requests.pages[0]
            requests.pages[0], requests.kv[0], requests.lengths[0] = [], torch.zeros(2, 0, HEADS, DIM), 0
            requests.append(0, 90)
            appended[0] = 90
        wrapper.plan(*requests.lists(), *SIZES)
        wrapper.update(requests.cache, 1 if (appended == 1).all() else appended)
        if step % 6 == 4:
            check(wrapper, requests, tiny)


def test_the_update_is_needed():
    """Pages appended without `update` are routed by what was there before: a test above could not pass without it."""
    requests, other = Requests([64], seed=3), SummaryStore(tiny)
    old = SparseDecodeWithPagedKVCacheWrapper(tiny, summaries=other)
    old.plan(*requests.lists(), *SIZES)
    old.summarize(requests.cache)
    before = [x.clone() for x in other.of(requests.cache[:, 0])]
    requests.append(0, 64)
    old.plan(*requests.lists(), *SIZES)
    old.update(requests.cache, 64)
    new = other.of(requests.cache[:, 0])
    fresh = tiny.summarize_pages(requests.cache[:, 0], *page_table(*requests.lists(), PAGE)[:2], calibration=new)
    used = torch.tensor(requests.pages[0])
    of_pages = slice(0, 2)  # codes and scales; the rest is no page's
    assert all(torch.equal(x[used], y[used]) for x, y in zip(new[of_pages], fresh[of_pages], strict=True))
    assert not all(torch.equal(x[used], y[used]) for x, y in zip(before[of_pages], fresh[of_pages], strict=True))


def test_fixed_buffers():
    """With use_cuda_graph the same tensors serve every plan, and FlashInfer's own buffers are kept."""
    buffers = [torch.zeros(n, dtype=torch.int32) for n in (3, POOL, 2)]
    names = ("paged_kv_indptr_buffer", "paged_kv_indices_buffer", "paged_kv_last_page_len_buffer")
    wrapper = SparseDecodeWithPagedKVCacheWrapper(
        tiny, use_cuda_graph=True, max_pages=12, **dict(zip(names, buffers, strict=True))
    )
    assert wrapper.is_cuda_graph_enabled
    requests = Requests([100, 20])
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.summarize(requests.cache)
    table, lens = wrapper._planned()
    assert table.shape == (2, 12)
    check(wrapper, requests, tiny)
    for row, count in ((0, 30), (1, 1)):
        requests.append(row, count)
    wrapper.plan(*requests.lists(), *SIZES)
    wrapper.update(requests.cache, torch.tensor([30, 1], dtype=torch.int32))
    assert wrapper._planned()[0] is table and wrapper._planned()[1] is lens and lens.tolist() == [130, 21]
    check(wrapper, requests, tiny)
    for buffer, x in zip(buffers, requests.lists(), strict=True):
        assert torch.equal(buffer[: len(x)], x)
    with pytest.raises(UsageError, match="batch of a wrapper for a CUDA graph is 3"):
        wrapper.plan(*Requests([1, 2, 3]).lists(), *SIZES)
    with pytest.raises(UsageError, match="sequence 1 has 13 pages, the table holds 12\n.*max_pages=13"):
        wrapper.plan(*Requests([1, 200]).lists(), *SIZES)
    assert lens.tolist() == [130, 21]


def test_wrappers_share_summaries():
    requests, store = Requests([100, 100]), SummaryStore(tiny)
    first, second = (SparseDecodeWithPagedKVCacheWrapper(tiny, summaries=store) for _ in "ab")
    first.plan(*requests.lists(), *SIZES)
    first.summarize(requests.cache)
    second.plan(*requests.lists(), *SIZES)
    q = requests.query()
    assert torch.equal(first.run(q, requests.cache), second.run(q, requests.cache.unbind(1)))
    assert len(store) == 1
    store.forget(requests.cache[:, 0])
    with pytest.raises(UsageError, match="no page summaries for the cache .*\n.*call summarize"):
        second.run(q, requests.cache)


WRONG = [
    ({"num_qo_heads": 8}, "num_qo_heads is 8, and tiny is made for 4\n.*model.num_q_heads: 8"),
    ({"num_kv_heads": 4}, "num_kv_heads is 4"),
    ({"head_dim": 64}, "head_dim is 64"),
    ({"page_size": 32}, "page_size is 32.*\n.*cache.page_size: 32"),
    ({"pos_encoding_mode": "ROPE_LLAMA"}, "pos_encoding_mode is 'ROPE_LLAMA'"),
    ({"window_left": 128}, "window_left is 128"),
    ({"logits_soft_cap": 30.0}, "logits_soft_cap is 30.0"),
    ({"sm_scale": 0.5}, "sm_scale is 0.5"),
    ({"q_data_type": torch.float16}, "q_data_type is 'float16', and tiny is made for 'float32'"),
    ({"kv_data_type": "bfloat16"}, "kv_data_type is 'bfloat16'"),
    ({"rope_theta": 1e4}, r"plan\(rope_theta=10000.0\) is not supported"),
    ({"indptr": torch.tensor([0, 2], dtype=torch.int32)}, "indptr .2., indices .10. and last_page_len .2."),
    ({"indptr": torch.tensor([1, 7, 10], dtype=torch.int32)}, "indptr runs from 1 to 10 over 10 indices"),
    ({"indptr": torch.tensor([0, 7, 5], dtype=torch.int32)}, "indptr runs from 0 to 5"),
    ({"indptr": torch.tensor([0, 7, 11], dtype=torch.int32)}, "indptr runs from 0 to 11 over 10 indices"),
    ({"last_page_len": torch.tensor([4, 17], dtype=torch.int32)}, r"last_page_len\[1\] is 17 of a page of 16 tokens"),
    ({"last_page_len": torch.tensor([0, 4], dtype=torch.int32)}, r"last_page_len\[0\] is 0"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_plans_that_do_not_fit(changed, message):
    names = ("indptr", "indices", "last_page_len", "num_qo_heads", "num_kv_heads", "head_dim", "page_size")
    right = dict(zip(names, (*Requests([100, 40]).lists(), *SIZES), strict=True))
    wrapper = SparseDecodeWithPagedKVCacheWrapper(tiny)
    wrapper.plan(**right, sm_scale=DIM**-0.5, data_type="float32", non_blocking=True, rope_scale=None)
    kept = [x.clone() for x in wrapper._planned()]
    with pytest.raises(UsageError, match=message):
        wrapper.plan(**right | changed)
    assert all(map(torch.equal, kept, wrapper._planned()))


def test_calls_that_do_not_fit():
    requests, q = Requests([20]), torch.zeros(1, 4, DIM)
    wrapper = SparseDecodeWithPagedKVCacheWrapper(tiny)
    with pytest.raises(UsageError, match="the wrapper has no plan"):
        wrapper.summarize(requests.cache)
    wrapper.plan(*requests.lists(), *SIZES)
    with pytest.raises(UsageError, match="no page summaries"):
        wrapper.run(q, requests.cache)
    with pytest.raises(UsageError, match="no page summaries"):
        wrapper.update(requests.cache)
    wrapper.summarize(requests.cache)
    with pytest.raises(UsageError, match=r"run\(k_scale=2.0\) is not supported"):
        wrapper.run(q, requests.cache, k_scale=2.0)
    with pytest.raises(UsageError, match="a paged_kv_cache of"):
        wrapper.run(q, requests.cache[0])
    with pytest.raises(TypeError, match="^tiny: q is torch.float16"):
        wrapper.run(q.half(), requests.cache)
    with pytest.raises(UsageError, match="kv_layout is 'HND', and tiny is made for 'NHD'"):
        SparseDecodeWithPagedKVCacheWrapper(tiny, kv_layout="HND")
    with pytest.raises(UsageError, match="use_cuda_graph without"):
        SparseDecodeWithPagedKVCacheWrapper(tiny, use_cuda_graph=True)
