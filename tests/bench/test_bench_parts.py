"""The parts of a benchmark on their own: words, break-even, inputs, rounds, the tie rule of the gate."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vashista_gen import emit
from vashista_gen.bench import cases, contestants, gate, require, results, timing
from vashista_gen.bench.contestants import Contestant
from vashista_gen.errors import UsageError
from vashista_gen.plan import make_plan
from vashista_gen.spec import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "name", "context", "least"),
    [
        ("speedup@8k>=3", "speedup", 8192, 3),
        (" dense_speedup @ 1000 >= 0.95 ", "dense_speedup", 1000, 0.95),
        ("over_dense@1M>=.5", "over_dense", 2**20, 0.5),
    ],
)
def test_a_requirement(text, name, context, least):
    found = require.requirement(text)
    assert (found.name, found.context, found.least) == (name, context, least)


@pytest.mark.parametrize(
    "text",
    ["", "speedup", "speed@8k>=3", "speedup@8k>3", "speedup@8k>=", "speedup@8k>=x", "speedup@>=3", "speedup@0>=3",
     "speedup@8g>=3", "speedup@8k>=-1", "speedup@8k>=nan", "speedup@9999999999>=1"],
)  # fmt: skip
def test_a_bad_requirement(text):
    with pytest.raises(UsageError) as caught:
        require.requirement(text)
    assert text in caught.value.message and "speedup@8k>=3" in caught.value.hint


@pytest.mark.parametrize(
    ("ratio", "missed"), [(3.0, False), (3.2, False), (2.999, True), (math.nan, True), (None, True)]
)
def test_a_miss(ratio, missed):
    assert (require.requirement("speedup@8k>=3").miss({8192: {"speedup": ratio}}) is not None) == missed
    assert "not measured" in require.requirement("speedup@8k>=3").miss({})


@pytest.mark.parametrize(("count", "text"), [(8192, "8k"), (2**20, "1M"), (1000, "1000"), (1025, "1025")])
def test_short(count, text):
    assert require.short(count) == text


def _case(context, speedup):
    times = {"sdpa": timing.Timing(speedup, speedup, 20), "sparse": timing.Timing(1.0, 1.0, 20)} if speedup else {}
    return results.CaseResult(context, 1, 1000, 100, times=times)


@pytest.mark.parametrize(
    ("ratios", "context", "words"),
    [
        ({}, None, "not measured"),
        ({1024: None}, None, "not measured"),
        ({1024: 0.5, 2048: 0.9}, None, "beyond 2,048"),
        ({1024: 1.1, 2048: 2.0}, 1024, "from 1,024 tokens, the shortest measured"),
        ({1024: 0.5, 4096: 2.0}, 2048, "about 2,048"),
        ({1024: 1.5, 2048: 0.5, 8192: 2.0}, 4096, "about 4,096"),  # from there on it stays faster
    ],
)
def test_break_even(ratios, context, words):
    text, found = results.break_even([_case(*one) for one in ratios.items()])
    assert words in text and "SDPA" in text
    assert found == (None if context is None else pytest.approx(context))


def test_break_even_with_the_dense_op():
    times = lambda dense: {"dense": timing.Timing(dense, dense, 20), "sparse": timing.Timing(1.0, 1.0, 20)}
    cases = [results.CaseResult(n, 1, 1000, 100, times=times(dense)) for n, dense in ((1024, 0.5), (4096, 2.0))]
    text, found = results.break_even(cases, "over_dense")
    assert "with the dense op" in text and "from about 2,048" in text and found == pytest.approx(2048)


def test_the_choice_is_the_dense_op_however_wide_the_table(tiny, case):
    """The contestant decodes whole what the context, not the table, keeps within the break-even; the rest is routed."""
    one = contestants.chosen(tiny, case, 200)
    with contestants.routed(tiny):
        assert gate.check(one, tiny, case) < 1e-5
        sparse = Contestant("sparse", "", "dense", lambda i, x: tiny.decode(*x.paged, x.summaries))
        with pytest.raises(gate.WrongResult):
            gate.check(sparse, tiny, case)
        with pytest.raises(gate.WrongResult):
            gate.check(contestants.chosen(tiny, case, 199), tiny, case)


def test_rounds_time_each_once_in_changing_order(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", (5, 7))
    seen = []
    turns = {name: (lambda i, name=name: seen.append((i, name)) or i + 1.0) for name in "abc"}
    found = timing._rounds(turns, 1e9)
    timed = seen[3 * timing.WARM_UPS :]
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert [{i for i, _ in one} for one in rounds] == [{i} for i in range(7)]
    assert all({name for _, name in one} == set("abc") for one in rounds)
    assert len({tuple(name for _, name in one) for one in rounds}) > 1
    assert found["a"] == timing.Timing(4.0, 1.0, 7)


def test_rounds_stop_at_the_budget(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", (5, 7))
    assert timing._rounds({"a": lambda i: 1.0}, 0.0)["a"].rounds == 5


@pytest.mark.parametrize(("sets", "seconds", "calls"), [(3, 1e-5, 201), (17, 3e-6, 680), (2, 1e-3, 4), (5, 0.1, 5)])
def test_a_graph_holds_whole_turns_of_calls_that_take_long_together(sets, seconds, calls):
    assert timing.calls_of_graph(sets, seconds) == calls


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("context", [1, 37, 48])
def test_pages_hold_what_the_contiguous_copy_holds(tiny, layout, context):
    spec = {**tiny.SPEC, "cache": {**tiny.SPEC["cache"], "layout": layout}}
    package = SimpleNamespace(SPEC=spec, summarize_pages=lambda *args, **named: ())
    (x,) = cases.make(package, context, 3, torch.device("cpu"), torch.float32, 1, True).inputs
    for cache, flat in ((x.k_cache, x.k), (x.v_cache, x.v)):
        assert flat.isfinite().all() and flat.shape == (3, 2, context, 32)
        assert int(cache.isnan().sum()) == (-context % 16) * 3 * 2 * 32
        assert all(torch.equal(x.head(cache, layout, b, h), flat[b, h]) for b in range(3) for h in range(2))


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A package with sketches, a mass budget, certificates and a fallback, that its own reference computes."""
    golden = ROOT / "tests" / "golden" / "certified.yaml"
    folder = tmp_path_factory.mktemp("packages")
    for path, text in emit.render(make_plan(load(golden))).items():
        (folder / "certified" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "certified" / path).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        package = importlib.import_module("certified")
        patch.setattr(package.op, "_library", lambda x: None)
        yield package
        sys.modules.pop("certified")


def test_contestants_of_a_certified_package(certified):
    with torch.inference_mode():
        case = cases.make(certified, 200, 2, torch.device("cpu"), torch.float32, 2, True)
        found = contestants.of_package(certified, case)
        assert [one.name for one in found] == ["dense", "sparse", "select", "attend", "update"]
        for one in found:
            assert gate.check(one, certified, case) < 1e-5
        wrong = Contestant("sparse", "", "candidates", lambda i, x: certified.decode_dense(*case.inputs[0].paged))
        with pytest.raises(gate.WrongResult):
            gate.check(wrong, certified, case)


def test_sets_share_the_cache_and_differ_in_queries(case):
    first, second = case.inputs
    assert first.k_cache is second.k_cache and not torch.equal(first.q, second.q)


def test_exact_is_sdpa(case, tiny):
    x = case.inputs[1]
    out, lse = gate.exact(x.q, x, tiny.SPEC)
    q, k, v = x.q.double()[:, :, None], x.k.double(), x.v.double()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)[:, :, 0]
    assert (out - wanted).abs().max() < 1e-12
    logits = torch.einsum("bhgd,bhtd->bhgt", q.view(2, 2, 2, 32), k) / math.sqrt(32)
    assert (lse - torch.logsumexp(logits, -1).view(2, 4)).abs().max() < 1e-12


def test_a_near_tie_may_fall_either_way_and_nothing_else():
    contestant = Contestant("sparse", "", "candidates", None)
    q, one, other = torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.full((1, 2, 4), 2.0)
    reference = lambda q: (torch.where((q.mean(-1, keepdim=True) > 1), one, other), None)
    error = gate.WrongResult("off")
    assert gate._near_tie(contestant, other, None, reference, q, error) == 0
    with pytest.raises(gate.WrongResult):
        gate._near_tie(contestant, other * 1.01, None, reference, q, error)
