"""vLLM's caches, slot mappings and metadata, made as vLLM makes them: views, writes, summaries, a decode step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rendered import import_package

from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny
from vashista_gen.integrations.vllm import DecodeStep, SparseAttentionImpl, kv_halves, write_tokens

TINY = (Path(__file__).resolve().parents[2] / "specs" / "tiny.yaml").read_text(encoding="utf-8")
HEADS, DIM, BLOCKS = 2, 32, 24
# order of the axes, layout in memory, block size: each value of each at least once
KINDS = [("kv_first", "NHD", 16), ("blocks_first", "NHD", 32), ("blocks_first", "HND", 64), ("kv_first", "HND", 16)]


@pytest.fixture(scope="module")
def package_of(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("packages"), {("NHD", 16): tiny}

    def get(layout, page):
        if (layout, page) not in made:
            name = f"vllm_{layout.lower()}_{page}"
            text = TINY.replace("name: tiny", f"name: {name}")
            made[layout, page] = import_package(
                folder, text.replace("page_size: 16", f"page_size: {page}, layout: {layout}")
            )
        return made[layout, page]

    return get


def allocate(order, layout, page, heads=HEADS):
    """vLLM's tensor: shape [2, blocks, page, heads, d] or [blocks, 2, ...], memory in the layout; NaN everywhere."""
    shape = [2, BLOCKS] if order == "kv_first" else [BLOCKS, 2]
    inner = [page, heads, DIM]
    if layout == "NHD":
        return torch.full((*shape, *inner), float("nan"))
    return torch.full((*shape, heads, page, DIM), float("nan")).transpose(2, 3)


@pytest.mark.parametrize(("order", "layout", "page"), KINDS)
def test_halves_are_views(package_of, order, layout, page):
    kv = allocate(order, layout, page)
    k, v = kv_halves(kv, package_of(layout, page), order)
    for i, half in enumerate((k, v)):
        theirs = kv[i] if order == "kv_first" else kv[:, i]
        theirs[3, 5, 1, 7] = i + 1
        assert half[(3, 5, 1, 7) if layout == "NHD" else (3, 1, 5, 7)] == i + 1
    assert k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() == kv.untyped_storage().data_ptr()


def test_one_kv_head_may_have_any_stride(tmp_path):
    """With one KV head NHD and HND are the same memory, whatever the strides say."""
    spec = {
        **tiny.SPEC,
        "cache": {"page_size": 16, "layout": "HND"},
        "model": {**tiny.SPEC["model"], "num_kv_heads": 1},
    }
    k, v = kv_halves(allocate("kv_first", "NHD", 16, heads=1), SimpleNamespace(SPEC=spec))
    assert k.shape == v.shape == (BLOCKS, 1, 16, DIM) and k.stride() == v.stride() == (16 * DIM, 16 * DIM, DIM, 1)


@pytest.mark.parametrize(
    ("kv", "order", "message"),
    [
        (allocate("kv_first", "NHD", 32), "kv_first", r"needs \[2, blocks, 16, 2, 32\]\n.*--block-size 16"),
        (allocate("kv_first", "NHD", 16), "blocks_first", r"needs \[blocks, 2, 16, 2, 32\]"),
        (
            allocate("kv_first", "NHD", 16, heads=4),
            "kv_first",
            r"tiny needs \[2, blocks, 16, 2, 32\]\n.*this model's heads",
        ),
        (allocate("kv_first", "NHD", 16)[0], "kv_first", "a KV cache of "),
        (allocate("kv_first", "HND", 16), "kv_first", "is not NHD within a block\n.*VLLM_KV_CACHE_LAYOUT=NHD"),
        (allocate("kv_first", "NHD", 16), "layers_first", "order 'layers_first'"),
    ],
)
def test_halves_that_do_not_fit(kv, order, message):
    with pytest.raises(UsageError, match=message):
        kv_halves(kv, tiny, order)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-100, BLOCKS * 16 - 1), max_size=30, unique=True), st.integers(0, 9))
@example([-1, -1, -1], 0)
@example([-1, 5, -1, 0], 0)
@example([0], 3)
def test_write_tokens(layout, slots, padding):
    """Each real slot holds its token, bit for bit, and nothing else has changed; keys may outnumber the slots."""
    slots = slots + [-1] * padding
    kv = torch.randn_like(allocate("blocks_first", layout, 16))
    by_token = kv.clone()
    key, value = torch.randn(2, len(slots) + 2, HEADS, DIM)
    for i, slot in enumerate(slots):
        if slot >= 0:
            by_token[slot // 16, 0, slot % 16], by_token[slot // 16, 1, slot % 16] = key[i], value[i]
    k, v = kv.unbind(1) if layout == "NHD" else kv.transpose(2, 3).unbind(1)
    write_tokens(key, value, k, v, torch.tensor(slots, dtype=torch.int64), layout)
    assert torch.equal(kv, by_token)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot_mapping": torch.zeros(3, dtype=torch.int32)}, r"slot_mapping is torch.int32 \[3\]\n.*give int64"),
        ({"key": torch.zeros(2, HEADS, DIM)}, r"key is \[2, 2, 32\] for 3 slots\n.*\[3 or more, 2, 32\]"),
        ({"value": torch.zeros(3, HEADS, DIM + 1)}, "value is .* for 3 slots"),
    ],
)
def test_writes_that_do_not_fit(change, message):
    k, v = kv_halves(allocate("kv_first", "NHD", 16).zero_(), tiny)
    new = torch.ones(3, HEADS, DIM)
    given = {"key": new, "value": new, "slot_mapping": torch.arange(3)} | change
    with pytest.raises(UsageError, match=message):
        write_tokens(given["key"], given["value"], k, v, given["slot_mapping"], "NHD")
    assert not k.any() and not v.any()


class Engine:
    """What vLLM's scheduler gives a layer: requests with blocks of a pool, tokens packed, padding behind them."""

    def __init__(self, package, order, layout, page):
        self.package, self.order, self.page = package, order, page
        self.kv = allocate(order, layout, page)
        self.draw = torch.Generator().manual_seed(0)
        self.free = torch.randperm(BLOCKS, generator=self.draw).tolist()
        self.rows, self.held = [], []

    def join(self):
        self.rows.append([])
        self.held.append(torch.zeros(2, 0, HEADS, DIM))

    def leave(self, row):
        self.free += self.rows.pop(row)
        self.held.pop(row)

    def step(self, counts, pad_tokens=0, pad_rows=0, common=False):
        """(query, key, value, metadata) of a step that adds counts[i] tokens to request i."""
        slots = []
        for i, count in enumerate(counts):
            for at in range(self.held[i].shape[1], self.held[i].shape[1] + count):
                if at % self.page == 0:
                    self.rows[i].append(self.free.pop())
                slots.append(self.rows[i][-1] * self.page + at % self.page)
        total = sum(counts)
        new = torch.randn(2, total + pad_tokens, HEADS, DIM, generator=self.draw)
        for i, part in enumerate(new[:, :total].split(counts, 1)):
            self.held[i] = torch.cat([self.held[i], part], 1)
        batch = len(counts) + pad_rows
        table = torch.zeros(batch, BLOCKS, dtype=torch.int32)
        for i, row in enumerate(self.rows):
            table[i, : len(row)] = torch.tensor(row)
        lens = torch.tensor([x.shape[1] for x in self.held] + [0] * pad_rows, dtype=torch.int32)
        starts = torch.tensor([0, *counts, *[0] * pad_rows], dtype=torch.int32).cumsum(0).int()
        metadata = {
            "query_start_loc": starts, "seq_lens": lens, "slot_mapping": torch.tensor(slots + [-1] * pad_tokens),
            "num_actual_tokens": total + pad_tokens if pad_rows else total, "max_query_len": max(counts),
            "block_table_tensor" if common else "block_table": table,
        }  # fmt: skip
        query = torch.randn(total + pad_tokens, 2 * HEADS, DIM, generator=self.draw)
        return query, *new, SimpleNamespace(**metadata)

    def expected(self, query, kept):
        """Sparse decode over caches and summaries made afresh from what the requests hold, about the centres `kept`."""
        pages = [-(-x.shape[1] // self.page) for x in self.held]
        order = iter(range(sum(pages)))
        table = torch.zeros(len(pages), BLOCKS, dtype=torch.int32)
        caches = torch.zeros(2, max(1, sum(pages)), self.page, HEADS, DIM)
        for b, n in enumerate(pages):
            for p in range(n):
                table[b, p] = at = next(order)
                content = self.held[b][:, p * self.page : (p + 1) * self.page]
                caches[:, at, : content.shape[1]] = content
        if self.package.SPEC["cache"]["layout"] == "HND":
            caches = caches.transpose(2, 3).contiguous()
        lens = torch.tensor([x.shape[1] for x in self.held], dtype=torch.int32)
        summaries = self.package.summarize_pages(caches[0], table, lens, calibration=kept)
        return self.package.decode(query, *caches, table, lens, summaries)[0]


@pytest.mark.parametrize(("order", "layout", "page"), KINDS[:3])
def test_an_engine_of_requests_that_come_and_go(package_of, order, layout, page):
    """Prefills, decode steps with padding, a request that ends and one that takes its blocks: as if made afresh."""
    package = package_of(layout, page)
    engine, prefilled = Engine(package, order, layout, page), []

    def prefill(layer, query, key, value, kv_cache, attn_metadata, output):
        prefilled.append(attn_metadata.max_query_len)
        return output.fill_(7)

    impl = SparseAttentionImpl(package, order=order, prefill=prefill)
    engine.join()
    engine.join()
    run = lambda q, k, v, m, out=None: impl.forward(None, q, k, v, engine.kv, m, out)
    kept = lambda: impl.summaries.of(kv_halves(engine.kv, package, order=order)[0])
    first = engine.step([5 * page + 3, page - 1])
    assert run(*first).eq(7).all()
    for step in range(6):
        if step == 3:
            engine.leave(0)
            engine.join()
            mixed = engine.step([1, 6 * page], common=True)  # one decodes while the new one is read in
            assert run(*mixed).eq(7).all()
        padded = step % 2
        query, key, value, metadata = engine.step([1, 1], pad_tokens=2 * padded, pad_rows=2 * padded, common=step > 3)
        out = torch.full((len(query), 2 * HEADS * DIM), float("nan"))
        assert run(query, key, value, metadata, out) is out
        assert torch.equal(out[:2].view(2, -1, DIM), engine.expected(query[:2], kept()))
        if padded:
            assert out[2:].view(2, -1, DIM).eq(0).all()  # a padding request is an empty sequence
    assert prefilled == [5 * page + 3, 6 * page]


def test_metadata_without_copies():
    engine = Engine(tiny, "kv_first", "NHD", 16)
    engine.join()
    engine.join()
    metadata = engine.step([20, 3], pad_rows=1)[-1]
    step = DecodeStep.of(metadata)
    assert step.old_seq_lens.tolist() == [0, 0, 0] and step.seq_lens.tolist() == [20, 3, 0]
    assert step.block_table.data_ptr() == metadata.block_table.data_ptr()
    assert step.seq_lens.data_ptr() == metadata.seq_lens.data_ptr()
    step = DecodeStep.of(engine.step([1, 0])[-1])
    assert step.old_seq_lens.tolist() == [20, 3] and step.seq_lens.tolist() == [21, 3]
    assert (step.num_tokens, step.longest_query) == (1, 1)


def test_the_longest_request_reaches_the_package():
    """A step that the metadata keeps within the break-even is read whole, whatever the table's width."""
    engine = Engine(tiny, "kv_first", "NHD", 16)
    engine.join()
    impl = SparseAttentionImpl(tiny, prefill=lambda layer, query, *_: query)
    query, key, value, metadata = engine.step([180])
    impl.forward(None, query, key, value, engine.kv, metadata)
    query, key, value, metadata = engine.step([1])
    step = lambda: impl.forward(None, query, key, value, engine.kv, metadata).view(1, -1, DIM)
    assert DecodeStep.of(metadata).max_seq_len is None
    sparse = step()
    k, v = kv_halves(engine.kv, tiny)
    dense = tiny.decode_dense(query, k, v, metadata.block_table, metadata.seq_lens)[0]
    with tiny.op.tuning.changed(dense_up_to=((1, 200),)):
        assert torch.equal(step(), sparse)
        metadata.max_seq_len = 201
        assert torch.equal(step(), sparse)
        metadata.max_seq_len = 200
        torch.testing.assert_close(step(), dense)
    assert not torch.allclose(sparse, dense)


def test_steps_that_are_not_for_a_decode_kernel():
    engine = Engine(tiny, "kv_first", "NHD", 16)
    engine.join()
    impl = SparseAttentionImpl(tiny)
    query, key, value, metadata = engine.step([2])
    with pytest.raises(UsageError, match="a batch with 2 new tokens in a request.*\n.*a prefill"):
        impl.forward(None, query, key, value, engine.kv, metadata)
    with pytest.raises(UsageError, match="a quantised output is not supported"):
        impl.forward(None, query, key, value, engine.kv, metadata, output_scale=torch.ones(1))
    assert impl.forward(None, query, key, value, engine.kv, None, torch.full_like(query, 3)).eq(0).all()
