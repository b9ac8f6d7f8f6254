"""Tiny specs, each with every file of its package in tests/golden/<case>/.

Refresh with `python tests/emit/test_golden.py`, then read what changed with `git diff tests/golden`.
"""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest

from vashista_gen import emit, spec
from vashista_gen.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SPECS = {"tiny": ROOT / "specs" / "tiny.yaml"} | {name: GOLDEN / f"{name}.yaml" for name in ("hnd_box8", "certified")}
REFRESH = "refresh with: python tests/emit/test_golden.py"
SHOWN_LINES = 60


def rendered(case: str) -> dict[str, str]:
    """The files the case's spec gives now."""
    return emit.render(make_plan(spec.load(SPECS[case])))


def recorded(case: str) -> dict[str, str]:
    """The files in the case's folder."""
    files = sorted(p for p in (GOLDEN / case).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(GOLDEN / case).as_posix(): p.read_text(encoding="utf-8") for p in files}


@pytest.mark.parametrize("case", SPECS)
def test_golden(case: str) -> None:
    want, got = recorded(case), rendered(case)
    lines: list[str] = []
    for path in sorted(want.keys() | got.keys()):
        old, new = (text.get(path, "").splitlines() for text in (want, got))
        lines += difflib.unified_diff(old, new, f"golden/{case}/{path}", f"rendered/{path}", lineterm="", n=1)
    if lines:
        cut = [] if len(lines) <= SHOWN_LINES else [f"... {len(lines) - SHOWN_LINES} more lines"]
        pytest.fail("\n".join([f"{case}: {REFRESH}", *lines[:SHOWN_LINES], *cut]), pytrace=False)


def test_every_folder_has_its_case() -> None:
    assert {p.name for p in GOLDEN.iterdir() if p.is_dir()} == SPECS.keys(), REFRESH


def test_the_cases_take_different_branches() -> None:
    one, other, certified = (spec.load(path) for path in SPECS.values())
    assert one.routing.summary != other.routing.summary
    assert one.routing.summary_bits != other.routing.summary_bits
    assert one.cache.layout != other.cache.layout
    assert (one.candidates.tokens is None) != (other.candidates.tokens is None)
    assert (one.model.logits_soft_cap is None) != (other.model.logits_soft_cap is None)
    assert one.sketch.bits is other.sketch.bits is None and certified.sketch.bits and certified.calibration
    assert one.certificate.kind == other.certificate.kind == "none" != certified.certificate.kind
    assert certified.candidates.mass is not None and certified.fallback == "expand"


def refresh() -> None:
    """Write every folder anew from its spec; a folder without a case is removed."""
    for folder in [p for p in GOLDEN.iterdir() if p.is_dir()]:
        shutil.rmtree(folder)
    for case in SPECS:
        for path, text in rendered(case).items():
            target = GOLDEN / case / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        print(f"wrote tests/golden/{case}")


if __name__ == "__main__":
    refresh()
