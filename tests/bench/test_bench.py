"""The benchmark's gate, requirements and files; no time is asserted anywhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import vashista_gen.generated.tiny as tiny
from vashista_gen.bench import run
from vashista_gen.bench.case import Case
from vashista_gen.bench.report import Requirement, row_of
from vashista_gen.errors import UsageError

TIMES = {"sdpa": {"median": 300.0, "best": 290.0}, "dense": {"median": 200.0, "best": 190.0}}
TIMES["sparse"] = {"median": 100.0, "best": 95.0}


@pytest.fixture
def spec() -> Path:
    return Path(__file__).parents[2] / "specs" / "tiny.yaml"


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every contestant once instead of for a while."""

    def once(calls: dict, device: torch.device) -> dict:
        for call in calls.values():
            call()
        return {name: TIMES.get(name, TIMES["dense"]) for name in calls}

    monkeypatch.setattr(run, "microseconds", once)
    monkeypatch.setattr(run, "import_seconds", lambda module: (0.1, 1.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speedup@8k>=3", Requirement("speedup", 8192, 3.0)),
        ("dense_speedup@1000 >= 0.9", Requirement("dense_speedup", 1000, 0.9)),
        ("over_dense@1M>=2.5", Requirement("over_dense", 1024**2, 2.5)),
    ],
)
def test_requirements_parse(text: str, expected: Requirement) -> None:
    assert Requirement.parse(text) == expected


@pytest.mark.parametrize("text", ["", "speedup@8k", "speed@8k>=3", "speedup@8k>=", "speedup@8k<=3", "speedup@>=3"])
def test_a_bad_requirement_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="is not NAME@CONTEXT>=X") as caught:
        Requirement.parse(text)
    assert "speedup@8k>=3" in caught.value.hint


def test_requirements_compare_the_ratio_of_their_context() -> None:
    rows = [row_of(1024, TIMES, 1000, 100), row_of(8192, TIMES, 8000, 100)]
    assert rows[1]["speedup"] == 3.0 and rows[1]["dense_speedup"] == 1.5 and rows[1]["over_dense"] == 2.0
    assert Requirement("speedup", 8192, 3.0).miss(rows) is None
    assert "3.0, required is 3.1" in Requirement("speedup", 8192, 3.1).miss(rows)
    assert "was not measured" in Requirement("speedup", 4096, 1.0).miss(rows)


def test_a_run_writes_its_files_and_tells_a_miss(spec: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    assert run.main(spec, tmp_path, console, contexts=(48, 200), device="cpu", require=["speedup@200>=3"]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["context"] for row in rows] == [48, 200]
    assert [row["context"] for row in csv.DictReader((tmp_path / "bench.csv").open())] == ["48", "200"]
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert run.main(spec, tmp_path, console, contexts=(48,), device="cpu", require=["speedup@48>=3.5"]) == 1
    assert "FAILED speedup at 48 is 3.0, required is 3.5" in console.export_text()


@pytest.mark.parametrize("broken", ["decode", "decode_dense"])
def test_a_wrong_result_gets_no_time(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    right = getattr(tiny, broken)

    def wrong(*args: object, **named: object) -> tuple:
        out, lse = right(*args, **named)
        out[0, 0, 0] += 1e-3
        return out, lse

    monkeypatch.setattr(tiny, broken, wrong)
    console = Console(record=True, width=200)
    assert run.main(spec, tmp_path, console, contexts=(200,), device="cpu") == 1
    assert "FAILED context 200: error" in console.export_text()
    assert not (tmp_path / "bench.json").exists()


def test_an_unwritten_output_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tiny, 100, 2, torch.device("cpu"))
    assert all(error <= case.tolerance() for error in case.errors().values())
    monkeypatch.setattr(tiny, "decode", lambda *args, out, lse, **named: (out, lse))
    assert not case.errors()["sparse"] <= case.tolerance()


def test_the_pages_hold_what_the_contiguous_keys_hold() -> None:
    case = Case(tiny, 70, 2, torch.device("cpu"))
    pages = case.k_cache[case.block_table.long()].flatten(1, 2)[:, :70]
    assert torch.equal(pages.transpose(1, 2), case.keys)
