"""The JSON Schema: current, valid, and in agreement with the loader where it can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vashista_gen import spec

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*(ROOT / "specs").glob("*.yaml"), *(ROOT / "specs" / "bench").glob("*.yaml")])
CASES = sorted((ROOT / "tests" / "invalid").glob("*.yaml"))
# Rules of one key's value and of the keys of a section, which the schema has too (a keyword as a name excepted).
IN_SCHEMA = {3, 5, 7, 8, 9, 13, 14, 15, 16, 18, 20, 21, 22, 24, 26, 28, 31, 36}


@pytest.fixture(scope="module")
def validator() -> object:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(spec.json_schema())
    return jsonschema.Draft202012Validator(spec.json_schema())


def test_the_file_is_current() -> None:
    on_disk = (ROOT / "specs" / "schema.json").read_text(encoding="utf-8")
    assert on_disk == spec.schema_text(), "run `python -m vashista_gen.spec > specs/schema.json`"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_valid(validator, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    validator.validate(spec.load(path).to_dict())


@pytest.mark.parametrize("path", [c for c in CASES if c.stem[1:3].isdigit()], ids=lambda path: path.stem)
def test_cases_of_single_keys_are_invalid(validator, path: Path) -> None:
    if int(path.stem[1:3]) in IN_SCHEMA and path.stem != "r03_unknown_key":
        text = path.read_text(encoding="utf-8")
        assert not validator.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("case", "valid"),
    [
        ("r32_summary_bits_with_sketch", False),
        ("r33_mass_of_nothing", False),
        ("r33_min_tokens_without_mass", False),
        ("r37_margin_of_rigorous", False),
        ("r37_not_a_file_name", False),
        ("r39_iterations", False),
        ("r43_solver_with_certificate", True),
        ("r37_no_margin", True),  # what ties sections together is the loader's
        ("r33_mass_of_all_tokens", True),
    ],
)
def test_keys_that_need_another(validator, case: str, valid: bool) -> None:
    text = (ROOT / "tests" / "invalid" / f"{case}.yaml").read_text(encoding="utf-8")
    assert validator.is_valid(yaml.safe_load(text)) is valid


@pytest.mark.parametrize(
    "section", [None, "model", "cache", "routing", "sketch", "candidates", "attention", "certificate"]
)
def test_unknown_keys_are_invalid(validator, section: str | None) -> None:
    plain = spec.load(ROOT / "specs" / "tiny.yaml").to_dict()
    (plain if section is None else plain[section])["unknown"] = 1
    (error,) = validator.iter_errors(plain)
    assert "unknown" in error.message
