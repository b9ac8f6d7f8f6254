"""What FlashInfer is given, held against a stand-in that reads page lists as FlashInfer does; TileLang's algorithm."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from vashista_gen.bench import cases, gate, peers


class Wrapper:
    """Dense attention over the planned page lists, one row a sequence; HND or NHD pages."""

    def __init__(self, workspace, layout, *, use_tensor_cores, backend):
        assert use_tensor_cores and backend == "fa2"
        self.layout = layout

    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **more):
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert set(more) <= {"q_data_type", "kv_data_type", "logits_soft_cap", "sm_scale"}
        assert len(indptr) == len(last_page_len) + 1 and int(indptr[-1]) == len(indices)
        self.lists = [indices[a:b].long() for a, b in zip(indptr, indptr[1:], strict=False)]
        self.last, self.scale, self.page_size = last_page_len, more["sm_scale"], page_size
        self.heads = (num_qo_heads, num_kv_heads)

    def run(self, q, caches, *, out):
        per_page = [self.heads[1], self.page_size] if self.layout == "HND" else [self.page_size, self.heads[1]]
        assert q.shape == out.shape == (len(self.lists), self.heads[0], q.shape[2])
        for cache in caches:
            assert list(cache.shape[1:]) == [*per_page, q.shape[2]] and cache.dtype == q.dtype
        for row, pages in enumerate(self.lists):
            k, v = (c[pages].transpose(1, 2) if self.layout == "HND" else c[pages] for c in caches)
            length = (len(pages) - 1) * self.page_size + int(self.last[row])
            k, v = (x.flatten(0, 1)[:length].transpose(0, 1) for x in (k, v))  # [kv heads, tokens, d]
            k, v = (x.repeat_interleave(self.heads[0] // self.heads[1], 0) for x in (k, v))
            out[row] = (torch.softmax(self.scale * q[row, :, None] @ k.mT, -1) @ v)[:, 0]
        return out


@pytest.fixture
def flashinfer(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))


def _package(tiny, layout):
    """The tiny package over another layout: enough of it for a peer, which attends to given pages."""
    spec = {**tiny.SPEC, "cache": {**tiny.SPEC["cache"], "layout": layout}}
    last = lambda lens: int(lens[0] - 1) // 16

    def select(q, summaries, table, lens):
        pages = [[0, 2, 3, last(lens)], [0, 1, 4, last(lens)]] if last(lens) > 4 else [[0, 1, 2, -1]] * 2
        return torch.tensor([pages] * len(q), dtype=torch.int32)

    return SimpleNamespace(SPEC=spec, summarize_pages=lambda *args, **named: (), select_pages=select)


MAKERS = (peers._flashinfer, peers._flashinfer_pages, peers._tilelang_pages)


@pytest.mark.parametrize("context", [40, 100])
@pytest.mark.parametrize(("make", "layout"), [(make, layout) for make in MAKERS for layout in ("NHD", "HND")])
def test_page_lists(flashinfer, tiny, make, layout, context):
    package = _package(tiny, layout)
    case = cases.make(package, context, 3, torch.device("cpu"), torch.float32, 2, True)
    assert gate.check(make(package, case), package, case) < 1e-5


def test_left_out_with_a_reason(tiny, case, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(peers._Skip, match="not installed"):
        peers._flashinfer(tiny, case)
    monkeypatch.setitem(tiny.SPEC["model"], "logits_soft_cap", 30.0)
    found, skipped = peers.of_case(tiny, case)
    assert not found and "soft cap" in skipped["sdpa"]
    with pytest.raises(peers._Skip, match="soft cap"):
        peers._tilelang_pages(tiny, case)


def test_tilelang_is_left_out_where_it_is_not(tiny, case, monkeypatch):
    monkeypatch.delitem(sys.modules, "vashista_gen.bench.tilelang_pages", raising=False)
    monkeypatch.setitem(sys.modules, "tilelang", None)
    with pytest.raises(peers._Skip, match="TileLang is not installed"):
        peers._tilelang_pages(tiny, case)


def test_tilelang_takes_pages_in_any_order_and_few_of_them(tiny, case):
    """More splits than pages, none in a row's first ones, descending as in the example: the gate's own result."""
    from vashista_gen.bench import tilelang_pages

    x = case.inputs[0]
    pages = torch.tensor([[[-1, -1, 12, 3], [12, 5, 4, -1]], [[-1] * 4, [0, -1, -1, 12]]], dtype=torch.int32)
    out = tilelang_pages.SparseDecode(tiny.SPEC, x, pages)(x, torch.full_like(x.q, float("nan")))
    wanted, _ = gate.exact(x.q, x, tiny.SPEC, pages)
    held = torch.tensor([[True] * 4, [False] * 2 + [True] * 2])
    assert (out[held] - wanted[held]).norm(dim=-1).max() < 1e-5 * wanted[held].norm(dim=-1).min()
    assert (out[~held] == 0).all()


@pytest.mark.parametrize(
    ("blocks", "sms", "pages", "splits"),
    [(8, 132, 64, 15), (64, 132, 64, 2), (106, 132, 64, 1), (8, 132, 4, 1), (1, 132, 64, 55), (132, 132, 4096, 1)],
)
def test_the_number_of_splits_is_the_examples(blocks, sms, pages, splits):
    """By num_splits_heuristic of the example: the least that fills waves to 85 % of the best, 1 for few pages."""
    from vashista_gen.bench import tilelang_pages

    assert tilelang_pages.splits(blocks, sms, pages) == splits
