"""The tiny package, made-up times, and runs that time nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vashista_gen.bench import cases, run, timing
from vashista_gen.bench.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "specs" / "tiny.yaml"
SECONDS = {"sdpa": 3 / 8192, "dense": 2 / 8192, "sparse": 1 / 8192}  # ratios are exact


@pytest.fixture
def tiny():
    from vashista_gen.generated import tiny

    return tiny


@pytest.fixture
def case(tiny) -> cases.Case:
    with torch.inference_mode():
        return cases.make(tiny, 200, 2, torch.device("cpu"), torch.float32, 2, True)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """(what run.main takes) -> (exit code, what it printed): every contestant runs once and gets a made-up time."""

    def measure(contestants, case):
        for one in contestants:
            one.run(0, case.inputs[0])
        return {c.name: Timing(SECONDS.get(c.name, 50e-6), SECONDS.get(c.name, 50e-6) * 0.9, 20) for c in contestants}

    monkeypatch.setattr(timing, "measure", measure)

    def start(**options):
        printed = io.StringIO()
        console = Console(file=printed, width=300)
        code = run.main(TINY, tmp_path, console, **{"contexts": (48, 200), "device": "cpu", **options})
        return code, printed.getvalue()

    return start
