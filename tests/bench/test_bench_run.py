"""A whole run: the gate comes before the times, the files, the requirements, the exit codes. No time is asserted."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from vashista_gen.bench import cold
from vashista_gen.errors import DriftError, MissingEnvironmentError, UsageError

from .conftest import ROOT


def test_a_run_writes_its_files(bench, tmp_path):
    code, printed = bench(batch=2)
    assert code == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [case["context"] for case in found["cases"]] == [48, 200]
    assert found["cases"][1]["ratios"]["speedup"] == pytest.approx(3)
    assert found["environment"]["threads"] == torch.get_num_threads()
    rows = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert [row["contestant"] for row in rows[:6]] == ["sdpa", "dense", "sparse", "select", "attend", "update"]
    assert rows[0]["median_us"] == "366.21" and rows[2]["speedup_vs_sdpa"] == "3.000"
    assert (tmp_path / "bench.png").read_bytes()[1:4] == b"PNG"
    assert printed.index("How many times faster") < printed.index("Microseconds") < printed.index("Bytes read")
    assert f"torch {torch.__version__}, {torch.get_num_threads()} threads" in printed


def test_requirements_decide_the_exit_code(bench):
    code, printed = bench(require=["speedup@200>=3", "over_dense@48>=1.5"])
    assert code == 0 and "met     speedup@200>=3: 3.000" in printed
    code, printed = bench(require=["speedup@200>=3.5", "dense_speedup@48>=1.5"])
    assert code == 1 and "MISSED  speedup@200>=3.5: 3.000, missed by 0.500" in printed


def test_the_choice_is_timed_within_the_break_even(bench, tiny, tmp_path):
    code, printed = bench(require=["choice@48>=0.95"])
    assert code == 1 and "choice@48>=0.95: not measured" in printed
    assert "no break-even is known; next: vashista-gen tune" in printed
    assert "with the dense op: the sparse step is faster from 48 tokens, the shortest measured" in printed
    with tiny.op.tuning.changed(dense_up_to=((1, 100),)):
        code, printed = bench(require=["choice@48>=0.001"])
        assert code == 0 and "what has up to 100 tokens" in printed
    times = [case["times"] for case in json.loads((tmp_path / "bench.json").read_text())["cases"]]
    assert ["chosen" in one for one in times] == [True, False]
    assert tiny.op.tuning.of(torch.device("cpu")).dense_up_to == ()


def test_a_required_context_is_measured(bench, tmp_path):
    assert bench(contexts=(48,), require=["speedup@64>=1"])[0] == 0
    assert [case["context"] for case in json.loads((tmp_path / "bench.json").read_text())["cases"]] == [48, 64]


def _perturbed(op):
    def wrong(*args, **named):
        out, lse = op(*args, **named)
        out[-1, -1] *= 1.001
        return out, lse

    return wrong


def _lost_token(op):
    return lambda q, k, v, table, lens, *more, **named: op(q, k, v, table, lens - 1, *more, **named)


def _unwritten(op):
    return lambda *args, out, lse, **named: (out, lse)


def _wrong_lse(op):
    def wrong(*args, **named):
        out, lse = op(*args, **named)
        lse += 0.01
        return out, lse

    return wrong


def _other_pages(op):
    def wrong(q, *args):
        return op(-q, *args)

    return wrong


BROKEN = [
    *((name, way) for name in ("decode", "decode_dense") for way in (_perturbed, _lost_token, _unwritten, _wrong_lse)),
    ("select_pages", _other_pages),
    ("select_pages", lambda op: lambda *args: op(*args).flip(-1)),
    ("update_summaries", lambda op: lambda *args, **named: None),
]


@pytest.mark.parametrize(("name", "way"), BROKEN)
def test_a_wrong_result_has_no_time(bench, tiny, monkeypatch, tmp_path, name, way):
    summarize = tiny.summarize_pages
    monkeypatch.setattr(tiny, name, way(getattr(tiny, name)))
    monkeypatch.setattr(tiny, "summarize_pages", summarize)
    code, printed = bench(contexts=(200,), require=["speedup@200>=0.1"])
    assert code == 1
    assert "FAILED at 200" in printed and "speedup@200>=0.1: not measured" in printed
    (row,) = csv.DictReader((tmp_path / "bench.csv").open())
    assert row["state"] == "FAILED" and not row["median_us"]
    assert json.loads((tmp_path / "bench.json").read_text())["cases"][0]["times"] == {}
    assert not (tmp_path / "bench.png").exists()


def test_a_wrong_peer_is_left_out(bench, monkeypatch):
    name, sdpa = "scaled_dot_product_attention", torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, name, lambda *args, **named: sdpa(*args, **named) * 1.1)
    code, printed = bench()
    assert code == 0 and "left out: sdpa at 48, 200: wrong result" in printed
    assert "SDPA was not measured" in printed


def test_what_does_not_fit_is_said(bench, monkeypatch):
    monkeypatch.setattr("vashista_gen.bench.cases.free_memory", lambda device: 100_000)
    code, printed = bench(require=["speedup@200>=1"])
    assert code == 1 and "left out: all at 200" in printed and "not measured" in printed
    assert "left out: sdpa at 48" not in printed


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"require": ["speedup@8k>3"]}, UsageError),
        ({"device": "tpu"}, UsageError),
        ({"device": "cuda"}, UsageError),  # the tiny spec has no CUDA target
    ],
)
def test_bad_options(bench, options, error):
    with pytest.raises(error):
        bench(**options)


def test_a_package_of_another_spec(bench, tiny, monkeypatch):
    monkeypatch.setattr(tiny, "SPEC", {**tiny.SPEC, "fallback": "dense"})
    with pytest.raises(DriftError, match="another spec"):
        bench()


def test_cold_import(bench, monkeypatch):
    seconds = iter([2.0, 2.5] * cold.RUNS)
    monkeypatch.setattr(cold, "_run", lambda program: next(seconds))
    assert "compiled kernels 0.50 s beyond torch's 2.00 s" in bench(cold_import=True)[1]


def test_cold_import_says_what_fails():
    with pytest.raises(MissingEnvironmentError, match="no_such_module"):
        cold._run("import no_such_module")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(tmp_path):
    from rich.console import Console

    from vashista_gen.bench import run

    spec = ROOT / "specs" / "llama3_8b.yaml"
    assert run.main(spec, tmp_path, Console(), contexts=(2048, 8192), device="cuda", batch=2) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["cases"][1]["times"]["sparse"]
