"""The formulas of plan/cost.py against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vashista_gen import spec
from vashista_gen.plan import Plan, cost, make_plan

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 2**10, 2**20
TEXT = """\
name: drawn
model: {{num_q_heads: {q_heads}, num_kv_heads: {kv_heads}, head_dim: 32, dtype: {dtype}}}
cache: {{page_size: {page_size}}}
routing: {{summary: {summary}, summary_bits: {bits}, pages: {pages}, sink_pages: 0, recent_pages: 1}}
candidates: {{tokens: {tokens}, share: {share}, dense_below: {dense_below}}}
targets: [c]
"""


def plan_of(path: str) -> Plan:
    return make_plan(spec.load(ROOT / path))


def test_llama3_by_hand() -> None:
    # H 8, d 128, b 2: K or V of a token 2048 bytes; a page: 4 rows of 64 bytes and 128 scales of 2 bytes, 8 times
    plan = plan_of("specs/llama3_8b.yaml")
    assert cost.token_bytes(plan) == 4096
    assert cost.summary_bytes_per_page(plan) == 8 * (4 * 64 + 128 * 2) == 4096
    assert cost.summary_bytes_per_token(plan) == 256
    assert cost.summary_share(plan) == 1 / 16
    # 4096 tokens are 256 pages; 64 of them are kept, 1024 tokens, and V of 512; tables 4 * (256 + 8 * 64)
    assert cost.sparse_bytes(plan, 4096) == cost.StepBytes(MIB, 0, 2 * MIB, MIB, 3072)
    assert cost.sparse_bytes(plan, 4096).total == 4 * MIB + 3072
    assert cost.dense_bytes(plan, 4096) == cost.StepBytes(0, 0, 8 * MIB, 8 * MIB, 1024)
    # a million tokens are 65536 pages of 4096 bytes
    assert cost.sparse_bytes(plan, 2**20) == cost.StepBytes(256 * MIB, 0, 2 * MIB, MIB, 4 * (65536 + 512))
    # up to dense_below, which is what is routed, everything is read, and the list of pages
    assert cost.sparse_bytes(plan, 1024) == cost.StepBytes(0, 0, 2 * MIB, 2 * MIB, 4 * (64 + 512))
    assert cost.scratch_bytes(plan, 4096) == 4 * 40 * (256 + 1024)
    assert cost.scratch_bytes(plan, 1024) == 4 * 40 * 1024


def test_the_last_page_is_not_full() -> None:
    # 1025 tokens: 65 pages, the last with one token; 63 full pages and that one are kept
    plan = plan_of("specs/llama3_8b.yaml")
    assert not cost.is_routed(plan, 1024)
    assert cost.is_routed(plan, 1025)
    assert cost.routed_tokens(plan, 1025) == 63 * 16 + 1
    assert cost.kept_tokens(plan, 1025) == 512
    assert cost.crossover(plan) == 1025


def test_mean_in_the_caches_type_by_hand() -> None:
    # one row of 128 items of 2 bytes, 32 heads, no scales
    plan = plan_of("specs/paper_mha.yaml")
    assert cost.summary_bytes_per_page(plan) == 32 * 128 * 2 == 8192
    assert cost.summary_share(plan) == 1 / 32
    assert cost.sparse_bytes(plan, 8192) == cost.StepBytes(512 * 8192, 0, 8 * MIB, MIB, 4 * (512 + 32 * 64))


def test_all_tokens_in_float32_by_hand() -> None:
    # H 2, d 32, b 4; a page: 4 rows of 16 bytes and 32 scales of 4 bytes, twice
    plan = plan_of("specs/tiny.yaml")
    assert cost.summary_bytes_per_page(plan) == 2 * (4 * 16 + 32 * 4) == 384
    assert cost.sparse_bytes(plan, 1024) == cost.StepBytes(64 * 384, 0, 16 * KIB, 16 * KIB, 4 * (64 + 8))
    assert cost.scratch_bytes(plan, 1024) == 4 * 6 * 64
    assert cost.scratch_bytes(plan, 64) == 0
    assert cost.crossover(plan) == 65  # four pages are read whole; the fifth is the first that is left out


def test_box_with_tokens_for_each_head_by_hand() -> None:
    # H 2, d 48, b 2; a page: 2 rows of 48 bytes and one scale of 2 bytes, twice; 3 heads of 24 tokens each
    plan = plan_of("tests/golden/hnd_box8.yaml")
    assert cost.summary_bytes_per_page(plan) == 2 * (2 * 48 + 2) == 196
    assert [cost.kept_tokens(plan, n) for n in (24, 48, 49, 72, 73, 128, 129)] == [24, 48, 49, 72, 72, 72, 72]
    assert cost.routed_tokens(plan, 129) == 97
    assert cost.sparse_bytes(plan, 4096) == cost.StepBytes(128 * 196, 0, 128 * 192, 72 * 192, 4 * (128 + 8))


def test_time_bound() -> None:
    assert cost.time_bound(3_350_000_000, 3350e9) == pytest.approx(1e-3)


def test_a_context_of_nothing_reads_the_list_of_pages_alone() -> None:
    plan = plan_of("specs/tiny.yaml")
    assert cost.dense_bytes(plan, 0).total == 0
    assert cost.sparse_bytes(plan, 0).total == 4 * 2 * 4


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    page_size = draw(st.sampled_from([16, 32]))
    pages = draw(st.integers(1, 6))
    tokens = draw(st.one_of(st.just("all"), st.integers(1, pages * page_size)))
    kv_heads = draw(st.integers(1, 3))
    text = TEXT.format(
        q_heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        page_size=page_size,
        summary=draw(st.sampled_from(["mean", "subpage_mean, subpage: 2", "subpage_mean, subpage: 16", "box"])),
        bits=draw(st.sampled_from([4, 8, 16])),
        pages=pages,
        tokens=tokens,
        share=draw(st.sampled_from(["group", "head"])),
        dense_below=0 if tokens == "all" else draw(st.integers(0, pages * page_size)),
    )
    return make_plan(spec.loads(text))


@given(plans())
def test_crossover_is_where_sparse_wins_for_good(plan: Plan) -> None:
    saves = [cost.sparse_bytes(plan, n).total < cost.dense_bytes(plan, n).total for n in range(1, 2500)]
    last = max((n for n, saved in enumerate(saves, 1) if not saved), default=0)
    found = cost.crossover(plan)
    assert found == last + 1 if last < 2300 else found is None or found > 2300


@given(plans(), st.integers(0, 5000))
def test_counts_stay_in_their_bounds(plan: Plan, context: int) -> None:
    assert 0 <= cost.kept_tokens(plan, context) <= cost.routed_tokens(plan, context) <= context
    assert cost.sparse_bytes(plan, context).keys <= cost.dense_bytes(plan, context).keys
