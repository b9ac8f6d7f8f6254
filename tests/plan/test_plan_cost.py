"""The formulas of plan/cost.py against numbers computed by hand."""

from __future__ import annotations

import re
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
routing: {{summary: {summary}, pages: {pages}, sink_pages: 0, recent_pages: 1}}
sketch: {sketch}
candidates: {candidates}
certificate: {certificate}
fallback: {fallback}
targets: [c]
"""
SMALL = """\
name: small
model: {{num_q_heads: 9, num_kv_heads: 3, head_dim: 64}}
cache: {{page_size: 16}}
routing: {{pages: 128{routing}}}
{rest}
"""


LLAMA3 = """\
name: llama3
model: {num_q_heads: 32, num_kv_heads: 8, head_dim: 128}
cache: {page_size: 16}
routing: {pages: 64}
candidates: {tokens: 512, dense_below: 1024}
"""


def plan_of(path: str) -> Plan:
    return make_plan(spec.load(ROOT / path))


def small(*lines: str, routing: str = "") -> Plan:
    """H 3, d 64, b 2, 9 query heads, 128 pages of 16 tokens, and the lines."""
    return make_plan(spec.loads(SMALL.format(routing=routing, rest="\n".join(lines)), "small.yaml"))


def test_llama3_by_hand() -> None:
    # H 8, d 128, b 2: K or V of a token 2048 bytes; a page: 4 rows of 64 bytes and a scale of 2 bytes, 8 times
    plan = make_plan(spec.loads(LLAMA3, "llama3.yaml"))
    assert cost.token_bytes(plan) == 4096
    assert cost.summary_bytes_per_page(plan) == 8 * (4 * 64 + 2) == 2064
    assert cost.summary_bytes_per_token(plan) == 129
    assert cost.summary_share(plan) == 129 / 4096
    # 4096 tokens are 256 pages; 64 of them are kept, 1024 tokens, and V of 512; tables 4 * (256 + 8 * 64)
    assert cost.sparse_bytes(plan, 4096) == cost.StepBytes(256 * 2064, 0, 2 * MIB, MIB, 3072)
    assert cost.sparse_bytes(plan, 4096).total == 3 * MIB + 256 * 2064 + 3072
    assert cost.dense_bytes(plan, 4096) == cost.StepBytes(0, 0, 8 * MIB, 8 * MIB, 1024)
    # a million tokens are 65536 pages of 2064 bytes
    assert cost.sparse_bytes(plan, 2**20) == cost.StepBytes(65536 * 2064, 0, 2 * MIB, MIB, 4 * (65536 + 512))
    # up to dense_below, which is what is routed, everything is read, and the list of pages
    assert cost.sparse_bytes(plan, 1024) == cost.StepBytes(0, 0, 2 * MIB, 2 * MIB, 4 * (64 + 512))
    assert cost.scratch_bytes(plan, 4096) == 4 * 40 * (256 + 1024)
    assert cost.scratch_bytes(plan, 1024) == 4 * 40 * 1024


def test_the_last_page_is_not_full() -> None:
    # 1025 tokens: 65 pages, the last with one token; 63 full pages and that one are kept
    plan = make_plan(spec.loads(LLAMA3, "llama3.yaml"))
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
    # H 2, d 32, b 4; a page: 4 rows of 16 bytes and a scale of 4 bytes, twice
    plan = plan_of("specs/tiny.yaml")
    assert cost.summary_bytes_per_page(plan) == 2 * (4 * 16 + 4) == 136
    assert cost.sparse_bytes(plan, 1024) == cost.StepBytes(64 * 136, 0, 16 * KIB, 16 * KIB, 4 * (64 + 8))
    assert cost.scratch_bytes(plan, 1024) == 4 * 6 * 64
    assert cost.scratch_bytes(plan, 64) == 0
    assert cost.crossover(plan) == 65  # four pages are read whole; the fifth is the first that is left out


def test_box_with_tokens_for_each_head_by_hand() -> None:
    # H 2, d 48, b 2; a page: 2 rows of 48 bytes and one scale of 2 bytes, twice; 3 heads of 40 tokens each
    # two levels: room for as much again; of 32 super-pages of 4 pages 3 are in the beam
    plan = plan_of("tests/golden/hnd_box8.yaml")
    assert cost.summary_bytes(plan) == 2 * (2 * 48 + 2) == 196
    assert cost.summary_bytes_per_page(plan) == 2 * 196
    assert [cost.summaries_scored(plan, n) for n in (128, 129, 384, 385, 4096)] == [(0, 0), (0, 5), (0, 12), (4, 9), (32, 12)]
    assert [cost.kept_tokens(plan, n) for n in (24, 48, 49, 120, 121, 128, 129)] == [24, 48, 49, 120, 120, 120, 97]
    assert cost.routed_tokens(plan, 129) == 97
    assert cost.sparse_bytes(plan, 4096) == cost.StepBytes((32 + 12) * 196, 0, 128 * 192, 120 * 192, 4 * (128 + 8))


@pytest.mark.parametrize(
    ("bits", "transform", "a_token"),
    [
        # codes of 64 channels, a scale of 2 bytes for each of 64 channels of 16 tokens (8), a residual of 2
        (2, "page_channel", 16 + 8 + 2),
        (4, "page_channel", 32 + 8 + 2),
        (8, "page_channel", 64 + 8 + 2),
        # a scale of 2 bytes for each token
        (2, "hadamard", 16 + 2 + 2),
        (4, "hadamard", 32 + 2 + 2),
        (8, "hadamard", 64 + 2 + 2),
    ],
)
def test_sketches_by_hand(bits: int, transform: str, a_token: int) -> None:
    plan = small(f"sketch: {{bits: {bits}, transform: {transform}}}")
    assert cost.sketch_bytes_per_page(plan) == 3 * 16 * a_token
    assert cost.sketch_bytes_per_page(plan, residuals=False) == 3 * 16 * (a_token - 2)
    assert cost.sketch_bytes_per_token(plan) == 3 * a_token
    assert cost.kept_bytes_per_token(plan) == 3 * a_token + 390 / 16  # and of a page 3 times 4 means of 32 bytes and a scale
    assert cost.certificate_bytes(plan, 8192) == 0
    # without a list of tokens to choose, sketches are not read
    assert cost.sparse_bytes(plan, 8192).sketches == 0


def test_the_table_of_the_readme() -> None:
    readme = (ROOT / "specs" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(page_channel|hadamard)` \| (\d) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    assert len(rows) == 6
    for transform, bits, *shown in rows:
        for head_dim, a_token in zip((64, 128), shown, strict=True):
            text = SMALL.format(routing="", rest=f"sketch: {{bits: {bits}, transform: {transform}}}")
            plan = make_plan(spec.loads(text.replace("head_dim: 64", f"head_dim: {head_dim}"), "small.yaml"))
            assert cost.sketch_bytes_per_token(plan) == 3 * int(a_token)
            assert cost.token_bytes(plan) == 3 * {64: 256, 128: 512}[head_dim]


def test_a_certified_step_by_hand() -> None:
    lines = "sketch: {bits: 4}", "candidates: {tokens: 1024}"
    plan = small(*lines, "certificate: {kind: rigorous}")
    # 512 pages: means 3 (4 * 32 + 64 * 2); 128 routed pages of sketches less residuals 3 (512 + 128); K and V of 1024
    read = cost.StepBytes(512 * 390, 128 * 1920, 3 * 128 * 1024, 3 * 128 * 1024, 4 * (512 + 3 * 128))
    assert cost.sparse_bytes(plan, 8192) == read
    # every page's sketches and residuals 3 * 16 * 42, and two radii of 4 bytes a head
    assert cost.certificate_bytes(plan, 8192) == 512 * (2016 + 24) == 1_044_480
    assert cost.certificate_bytes(plan, 8191) == 512 * 2040 and cost.certificate_bytes(plan, 8193) == 513 * 2040
    assert cost.kept_bytes_per_token(plan) == 390 / 16 + 126 + 1.5
    assert cost.scratch_bytes(plan, 8192) == 4 * 12 * (512 + 2048)
    # what acts on its certificate computes it in each step
    for fallback in ("dense", "expand"):
        acting = small(*lines, "certificate: {kind: rigorous}", f"fallback: {fallback}")
        step = cost.sparse_bytes(acting, 8192)
        assert (step.certificate, step.total) == (1_044_480, read.total + 1_044_480)
        assert cost.crossover(acting) > cost.crossover(plan)


def test_kinds_of_certificates_by_hand() -> None:
    sketch = "sketch: {bits: 8, transform: hadamard}"
    assert cost.certificate_bytes(small(sketch), 4096) == 0
    assert cost.certificate_bytes(small("certificate: {kind: estimate}"), 4096) == 256 * 24
    assert cost.certificate_bytes(small(sketch, "certificate: {kind: estimate}"), 4096) == 256 * 24
    assert cost.certificate_bytes(small(sketch, "certificate: {kind: rigorous}"), 4096) == 256 * (3 * 16 * 68 + 24)
    # an estimate scores the routed tokens by their keys
    plan = small("certificate: {kind: estimate}")
    assert cost.sparse_bytes(plan, 4096) == cost.StepBytes(256 * 390, 0, 384 * 2048, 384 * 2048, 4 * (256 + 384))


def test_shares_of_audits() -> None:
    share = lambda audit: cost.audited_share(small(f"certificate: {{kind: estimate{audit}}}"))
    assert [share(""), share(", every: 16"), share(", heads: 3"), share(", every: 8, heads: 2")] == [
        1,
        1 / 16,
        1 / 3,
        1 / 16,
    ]
    assert cost.audited_share(small()) == 0


def test_whole_pages_by_hand() -> None:
    # 32 pages of 16 tokens of the 128 routed ones, chosen by the keys of all of these
    plan = small("candidates: {pages: 32}")
    assert plan.token_budget and plan.kept_tokens == 512
    assert [cost.kept_tokens(plan, n) for n in (1, 512, 513, 2048, 8192)] == [1, 512, 512, 512, 512]
    assert cost.sparse_bytes(plan, 8192) == cost.StepBytes(512 * 390, 0, 384 * 2048, 384 * 512, 4 * (512 + 384))
    by_sketch = small("candidates: {pages: 32}", "sketch: {bits: 4}")
    assert cost.sparse_bytes(by_sketch, 8192) == cost.StepBytes(
        512 * 390, 128 * 1920, 384 * 512, 384 * 512, 4 * (512 + 384)
    )


def test_a_mass_is_counted_as_its_most() -> None:
    fixed, mass = small("candidates: {tokens: 512}"), small("candidates: {tokens: 512, mass: 0.9, min_tokens: 16}")
    assert (mass.least_tokens, mass.kept_tokens) == (16, 512)
    assert small("candidates: {tokens: 512, mass: 0.9}").least_tokens == 48  # three pages are always kept
    assert cost.sparse_bytes(mass, 8192) == cost.sparse_bytes(fixed, 8192)


def test_pages_scored_by_sketches_by_hand() -> None:
    plan = small("sketch: {bits: 4, transform: hadamard}", routing=", summary: sketch")
    assert cost.summary_bytes_per_page(plan) == 0
    assert cost.sparse_bytes(plan, 2048).sketches == 0
    # 3 (512 + 32) a page of codes and scales
    assert cost.sparse_bytes(plan, 8192) == cost.StepBytes(0, 512 * 1632, 384 * 2048, 384 * 2048, 4 * (512 + 384))
    assert plan.kept_of_pages == ("sketches",)
    assert plan.kernel_modules == ("attend", "merge", "select", "summarize", "sketch")
    chosen = small("sketch: {bits: 4, transform: hadamard}", "candidates: {tokens: 64}", routing=", summary: sketch")
    assert cost.sparse_bytes(chosen, 8192).sketches == (512 + 128) * 1632


def test_rounds_of_expansion() -> None:
    def rounds(most: str) -> int:
        return small(f"certificate: {{kind: estimate{most}}}", "fallback: expand").expand_rounds

    assert [
        rounds(""),
        rounds(", expand_pages: 256"),
        rounds(", expand_pages: 511"),
        rounds(", expand_pages: 512"),
    ] == [2, 1, 1, 2]
    assert small("certificate: {kind: estimate}", "fallback: dense").expand_rounds == 0


def test_shared_memory_by_hand() -> None:
    # a tile of 64 tokens of 64 channels; 16 queries and 64 rows of means, float32 logits and sizes of the rows, 64 ids
    attention = (2 * 64 * 64 + 16 * 64 + 16 * 64) * 2 + 12 * 64 + 3 * 512
    pages = (16 + 64) * 64 * 2 + 4 * 17 * 64 + 16 * 16
    assert cost.shared_bytes(small(), "cuda-sm_90a") == (attention, pages)


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
    tokens = draw(st.one_of(st.just("all"), st.integers(page_size, pages * page_size)))
    kv_heads = draw(st.integers(1, 3))
    share = draw(st.sampled_from(["group", "head"]))
    chosen = {"tokens": tokens, "share": share}
    if tokens != "all":
        chosen["dense_below"] = draw(st.integers(0, pages * page_size))
        if share == "group" and draw(st.booleans()):
            chosen["mass"] = 0.9
    elif share == "group" and draw(st.booleans()):
        chosen["pages"] = draw(st.integers(1, pages))
    bits = draw(st.sampled_from([None, 2, 4, 8]))
    summary = draw(st.sampled_from(["mean", "subpage_mean, subpage: 2", "subpage_mean, subpage: 16", "box", "sketch"]))
    if summary == "sketch":
        bits = bits or 4
    else:
        summary += f", summary_bits: {draw(st.sampled_from([4, 8, 16]))}"
    kinds = ["none", *(["rigorous"] if bits else []), *([] if summary == "sketch" else ["estimate"])]
    kind = draw(st.sampled_from(kinds))
    text = TEXT.format(
        q_heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        page_size=page_size,
        summary=summary,
        pages=pages,
        sketch={"bits": bits, "transform": draw(st.sampled_from(["hadamard", "page_channel"]))} if bits else {},
        candidates=chosen,
        certificate={"kind": kind},
        fallback="capped" if kind == "none" else draw(st.sampled_from(["capped", "dense", "expand"])),
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
    assert cost.sparse_bytes(plan, context).certificate == plan.retries * cost.certificate_bytes(plan, context)
