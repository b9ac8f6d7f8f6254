"""A package that chooses pages in one of several steps: what is timed of it, verified of it, and said about its bytes."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from rendered import import_package

from vashista_gen import spec
from vashista_gen.bench import cases, contestants, gate, machine, results, run, timing, verify
from vashista_gen.plan import cost, make_plan

SPEC = """name: bench_refresh
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {pages: 4, refresh: 4}
candidates: {tokens: 56}
targets: [c]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return import_package(tmp_path_factory.mktemp("packages"), SPEC)


def test_both_kinds_of_step_are_timed_and_their_mean_said(package, monkeypatch, tmp_path):
    import io

    from rich.console import Console

    seconds = {"sdpa": 8e-3, "sparse": 4e-3, "kept": 2e-3}
    stamp = lambda one: timing.Timing(seconds.get(one.name, 1e-3), seconds.get(one.name, 1e-3) / 2, 20)
    monkeypatch.setattr(timing, "measure", lambda found, case: {one.name: stamp(one) for one in found})
    monkeypatch.setattr(machine, "package", lambda loaded, path: package)
    (tmp_path / "bench_refresh.yaml").write_text(SPEC, encoding="utf-8")
    printed = io.StringIO()
    code = run.main(
        tmp_path / "bench_refresh.yaml", tmp_path, Console(file=printed, width=300), contexts=(200,), device="cpu",
        require=["refreshed_speedup@200>=3.2"],
    )  # fmt: skip
    assert code == 0
    for words in ("the one of 4 steps that routes", "a step that keeps its pages", "mean of 4 steps: 1 routes, 3 keep"):
        assert words in printed.getvalue()
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert case["times"]["refreshed"] == {"median": 2.5e-3, "fastest_tenth": 1.25e-3, "rounds": 20}
    assert case["ratios"]["refreshed_speedup"] == pytest.approx(3.2) and case["ratios"]["speedup"] == pytest.approx(2)
    rows = {row["contestant"]: row for row in csv.DictReader((tmp_path / "bench.csv").open())}
    plan = results.as_stored(make_plan(spec.loads(SPEC, "bench_refresh.yaml")), "float32")
    routes, keeps = (cost.sparse_bytes(plan, 200, steps).total for steps in (1, 0))
    assert [int(rows[name]["bytes"]) for name in ("sparse", "kept")] == [routes, keeps] and keeps < routes
    assert int(rows["refreshed"]["bytes"]) == (routes + 3 * keeps) // 4


def test_no_mean_without_both_times():
    case = results.CaseResult(200, 1, 100, 50, refresh=4, times={"sparse": timing.Timing(1.0, 1.0, 20)})
    case.add_mean()
    assert "refreshed" not in case.times and case.ratios["refreshed_speedup"] is None


def test_verify_holds_the_lists_as_sequences_grow(package):
    found = verify.verify(package, torch.device("cpu"), torch.float32, lambda text: None)
    assert all({"sparse", "kept", "renewed"} <= one["errors"].keys() for one in found)
    wrong = SimpleNamespace(**vars(package))
    wrong.renew_pages = lambda routing, *rest, **given: package.renew_pages(routing, *rest, **given).flip(-1)
    with pytest.raises(gate.WrongResult, match="renewed: another list"):
        verify.verify(wrong, torch.device("cpu"), torch.float32, lambda text: None)


def test_a_step_that_reads_other_pages_fails(package):
    with torch.inference_mode(), contestants.routed(package):
        case = cases.make(package, 200, 3, torch.device("cpu"), torch.float32, 1, False)
        kept = {one.name: one for one in contestants.of_package(package, case)}["kept"]
        grown = contestants.renewed(package, case)
        assert gate.check(kept, package, case) < 1e-5 and gate.check(grown, package, case) == 0

        def stale(i, x):
            pages, held, lens, *_ = grown.run(i, x)
            return pages, held, lens, *package.decode(*x.paged, x.summaries, selected_pages=held)

        with pytest.raises(gate.WrongResult, match="another result than of the renewed list"):
            gate.check(contestants.Contestant("renewed", "", "renewal", stale), package, case)


def test_bytes_of_steps_that_share_a_routing():
    """By hand: 13 pages of 16 tokens, a summary of 2 heads of 4 rows of 16 bytes and a scale of 4."""
    plan = make_plan(spec.loads(SPEC, "bench_refresh.yaml"))
    read = [cost.sparse_bytes(plan, 200, steps) for steps in (1, 0, 4, None)]
    assert [one.summaries for one in read] == [13 * 136, 0, 13 * 34, 13 * 34]
    assert len({(one.keys, one.values, one.tables) for one in read}) == 1
    by_sketch = SPEC.replace("refresh: 4", "refresh: 4, summary: sketch") + "sketch: {bits: 8, transform: hadamard}\n"
    plan = make_plan(spec.loads(by_sketch, "bench_refresh.yaml"))
    page = 2 * (16 * 32 + 16 * 4)  # without residuals
    assert [cost.sparse_bytes(plan, 200, steps).sketches for steps in (1, 0, 4)] == [17 * page, 4 * page, 4 * page + 13 * page // 4]
