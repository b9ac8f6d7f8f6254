"""Every file of tests/invalid gives exactly the message beside it.

Refresh with `PYTHONPATH=. python tests/spec/test_spec_invalid.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vashista_gen import spec
from vashista_gen.errors import SpecError

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT / "tests" / "invalid").glob("*.yaml"))
CALIBRATION = ROOT / "tests" / "invalid" / "calibration"  # the folder that calibration files are read from
EXTRA_RULES = {"class": "R9"}


def message_of(case: Path) -> str:
    """The whole text of the error, with the path relative to the repository."""
    with pytest.raises(SpecError) as caught:
        spec.loads(case.read_bytes(), case.relative_to(ROOT).as_posix(), CALIBRATION)
    return f"{caught.value}\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_message(case: Path) -> None:
    expected = case.with_suffix(".txt")
    assert expected.exists() and message_of(case) == expected.read_text(encoding="utf-8"), (
        "the message changed: run `PYTHONPATH=. python tests/spec/test_spec_invalid.py` and read the difference"
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.stem != "many_at_once"], ids=lambda case: case.stem)
def test_a_case_breaks_only_its_own_rule(case: Path) -> None:
    rule = EXTRA_RULES.get(case.stem) or f"R{int(case.stem[1:3])}"
    with pytest.raises(SpecError) as caught:
        spec.loads(case.read_bytes(), case.name, CALIBRATION)
    rules = {p.rule for p in caught.value.problems}
    assert rules == {rule}


def test_every_rule_has_a_case() -> None:
    covered = {EXTRA_RULES.get(c.stem) or f"R{int(c.stem[1:3])}" for c in CASES if c.stem != "many_at_once"}
    assert covered == set(spec.RULES)


def test_no_message_without_its_case() -> None:
    texts = {t.stem for t in (ROOT / "tests" / "invalid").glob("*.txt")}
    assert texts == {c.stem for c in CASES}


def test_many_problems_are_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        spec.loads((ROOT / "tests" / "invalid" / "many_at_once.yaml").read_bytes(), "many_at_once.yaml")
    problems = caught.value.problems
    assert len(problems) >= 10
    assert [p.line for p in problems] == sorted(p.line for p in problems)


def test_load_shows_the_path_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    case = ROOT / "tests" / "invalid" / "r21_pages.yaml"
    with pytest.raises(SpecError, match=r"^tests/invalid/r21_pages\.yaml:4: R21: "):
        spec.load(case)


def refresh() -> None:
    """Write every message, only where it differs."""
    for case in CASES:
        path, text = case.with_suffix(".txt"), message_of(case)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    refresh()
