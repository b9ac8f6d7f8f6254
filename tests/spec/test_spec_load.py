"""Loading: defaults, resolved values, lines, both YAML styles, round trip, and files that cannot be read."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path

import pytest
import yaml

import vashista_gen.spec.hardware as hardware_module
from vashista_gen import spec
from vashista_gen.errors import DriftError, MissingEnvironmentError, SpecError, UsageError, VashistaError

SPECS = Path(__file__).resolve().parents[2] / "specs"
SHIPPED = sorted(SPECS.glob("*.yaml"))
MEASURED = sorted((SPECS / "bench").glob("*.yaml"))
MINIMAL = """name: small
model: {num_q_heads: 9, num_kv_heads: 3, head_dim: 64}
cache: {page_size: 16}
routing: {pages: 64}
"""
BLOCK = """# the same in block style
name: small
model:
  num_q_heads: 9
  num_kv_heads: 3
  head_dim: 64
cache:
  page_size: 16
routing:
  pages:
    64
"""


def test_defaults() -> None:
    assert spec.loads(MINIMAL, "small.yaml").to_dict() == {
        "name": "small",
        "model": {
            "num_q_heads": 9,
            "num_kv_heads": 3,
            "head_dim": 64,
            "dtype": "bfloat16",
            "sm_scale": 0.125,
            "logits_soft_cap": None,
        },
        "cache": {"page_size": 16, "layout": "NHD", "kv_dtype": "bfloat16"},
        "routing": {
            "pages": 64,
            "summary": "subpage_mean",
            "subpage": 4,
            "summary_bits": 4,
            "sink_pages": 1,
            "recent_pages": 2,
            "group_reduce": "softmax_sum",
            "dense_up_to": None,
            "refresh": 1,
            "levels": 1,
        },
        "sketch": {"bits": None},
        "candidates": {"tokens": "all", "share": "group", "dense_below": 0, "mass": None, "pages": None},
        "attention": {"solver": "softmax", "epsilon": 1.0},
        "certificate": {"kind": "none", "expand_pages": None},
        "fallback": "capped",
        "targets": ["cuda-sm_90a", "c"],
    }


def test_resolved_values() -> None:
    small = spec.loads(MINIMAL, "small.yaml")
    assert small.group_size == 3
    assert small.candidates.tokens is None
    assert small.routing.box_weight is None
    assert small.targets == ("cuda-sm_90a", "c")
    box = spec.loads(MINIMAL.replace("pages: 64", "pages: 64, summary: box"), "small.yaml")
    assert (box.routing.box_weight, box.routing.subpage) == (1.0, None)
    half = spec.loads(MINIMAL.replace("head_dim: 64", "head_dim: 80, dtype: float16"), "small.yaml")
    assert half.cache.kv_dtype == "float16"
    assert half.model.sm_scale == 1 / math.sqrt(80)


def test_keys_that_mean_nothing_are_left_out() -> None:
    text = MINIMAL.replace("pages: 64", "pages: 64, summary: sketch")
    text += "sketch: {bits: 8}\ncandidates: {tokens: 512, mass: 1}\ncertificate: {kind: rigorous}\nfallback: expand\n"
    plain = spec.loads(text, "small.yaml").to_dict()
    assert plain["routing"].keys() & {"subpage", "summary_bits", "box_weight"} == set()
    assert plain["sketch"] == {"bits": 8, "transform": "page_channel", "balance": None}
    assert plain["candidates"] == {
        **{"tokens": 512, "share": "group", "dense_below": 0},
        **{"mass": 1.0, "min_tokens": None, "pages": None},
    }
    assert plain["certificate"] == {"kind": "rigorous", "tolerance": 0.1, "every": 1, "heads": 1, "expand_pages": None}


def test_null_is_no_key_that_means_something() -> None:
    text = (
        MINIMAL + "sketch: {bits: null, balance: null}\ncandidates: {min_tokens: null}\ncertificate: {margin: null}\n"
    )
    assert spec.loads(text, "small.yaml") == spec.loads(MINIMAL, "small.yaml")


LAYER = {
    "center": [[0.5] * 64] * 3,
    "balance": [[2.0] * 32] * 3,
    "value_center": [[0] * 64] * 3,
    "budgets": [64, 128, 256],
    "margin": 0.25,
    "note": "not read",
}
CALIBRATED = """sketch: {bits: 4, balance: keys.json}
certificate: {kind: calibrated, margin: margins.json}
"""


def test_what_is_read_of_calibration_files(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"layers": [LAYER, {**LAYER, "center": None}]}), encoding="utf-8")
    (tmp_path / "margins.json").write_text(json.dumps({"layers": [{"margin": 1}, LAYER]}), encoding="utf-8")
    loaded = spec.loads(MINIMAL + CALIBRATED, "small.yaml", tmp_path)
    first, second = loaded.calibration["layers"]
    assert first == {key: LAYER[key] for key in ("center", "balance", "value_center")} | {"margin": 1, "layer": 0}
    assert second == {key: LAYER[key] for key in ("balance", "value_center", "margin", "budgets")} | {"layer": 1}
    assert loaded.sketch.balance == "keys.json"
    assert loaded == spec.loads(yaml.safe_dump(loaded.to_dict()), "small.yaml", tmp_path)


def test_a_margin_alone_and_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "margins.json").write_text(json.dumps({"layers": [LAYER]}), encoding="utf-8")
    loaded = spec.loads(MINIMAL + CALIBRATED.replace(", balance: keys.json", ""), "small.yaml", tmp_path)
    assert loaded.calibration == {"layers": [{"layer": 0, "margin": 0.25, "budgets": [64, 128, 256]}]}
    assert spec.loads(MINIMAL + "sketch: {bits: 4}\n", "small.yaml").calibration == {}


def test_a_calibration_file_is_read_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(MINIMAL + CALIBRATED, encoding="utf-8")
    for name in ("keys.json", "margins.json"):
        (tmp_path / name).write_text(json.dumps({"layers": [LAYER]}), encoding="utf-8")
    assert len(spec.load(tmp_path / "small.yaml").calibration["layers"]) == 1
    with pytest.raises(SpecError, match="R37.*no folder") as caught:
        spec.loads(MINIMAL + CALIBRATED, "small.yaml")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"", b"1"], ids=["deep", "not UTF-8", "empty", "number"])
def test_calibration_files_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys.json").write_bytes(content)
    (tmp_path / "margins.json").mkdir()
    with pytest.raises(SpecError) as caught:
        spec.loads(MINIMAL + CALIBRATED, "small.yaml", tmp_path)
    assert [problem.rule for problem in caught.value.problems] == ["R37", "R37"]


def test_block_style_gives_an_equal_spec_with_its_own_lines() -> None:
    flow, block = spec.loads(MINIMAL, "small.yaml"), spec.loads(BLOCK, "small.yaml")
    assert flow == block and hash(flow) == hash(block)
    assert (flow.source.line("model.head_dim"), block.source.line("model.head_dim")) == (2, 6)
    assert block.source.line("routing.pages") == 10
    assert block.source.line("model.dtype") == 3, "the line of its section"
    assert block.source.line("fallback") == 1
    assert flow.source.text_sha256 == hashlib.sha256(MINIMAL.encode()).hexdigest()


def test_line_ends_and_byte_order_mark_do_not_matter() -> None:
    windows = b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()
    assert spec.loads(windows, "small.yaml").source == spec.loads(MINIMAL, "small.yaml").source


@pytest.mark.parametrize("numeral", ["1e-3", "1.0e-3", "0.001", ".001", "1E-03", "+0.001"])
def test_floats_in_any_notation(numeral: str) -> None:
    text = MINIMAL + f"attention: {{epsilon: {numeral}}}\n"
    assert spec.loads(text, "small.yaml").attention.epsilon == 0.001


@pytest.mark.parametrize(
    "value", [".inf", "-.inf", ".nan", "1e999", "1e-400", "1_0.0", "'1.0'", "yes", "1:30", "0x1", ""]
)
def test_what_is_no_float(value: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.loads(MINIMAL + f"attention: {{epsilon: {value}}}\n", "small.yaml")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("path", [*SHIPPED, *MEASURED], ids=lambda path: path.stem)
def test_shipped_specs_load_and_round_trip(path: Path) -> None:
    loaded = spec.load(path)
    again = spec.loads(yaml.safe_dump(loaded.to_dict()), path.name)
    assert again == loaded
    assert again.to_dict() == loaded.to_dict()
    schema, about = ("schema.json", "Shape: ") if path in SHIPPED else ("../schema.json", "To measure with: ")
    assert path.read_text(encoding="utf-8").startswith(f"# yaml-language-server: $schema={schema}\n# {about}")


def test_shipped_shapes() -> None:
    shapes = {s.name: (s.model.num_q_heads, s.model.num_kv_heads, s.model.head_dim) for s in map(spec.load, SHIPPED)}
    shipped = {
        "smollm2_135m": (9, 3, 64),
        "llama3_8b": (32, 8, 128),
        "qwen2_5_7b": (28, 4, 128),
        "gemma3_270m": (4, 1, 256),
        "paper_mha": (32, 32, 128),
        "tiny": (4, 2, 32),
    }
    # a checkout may hold specs of its user as well
    assert {name: shapes.get(name) for name in shipped} == shipped


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, "\0"):
        with pytest.raises(UsageError, match="cannot read"):
            spec.load(path)


def test_errors_carry_exit_code_and_hint() -> None:
    codes = {e: e.exit_code for e in (DriftError, SpecError, UsageError, MissingEnvironmentError)}
    assert codes == {DriftError: 1, SpecError: 2, UsageError: 2, MissingEnvironmentError: 3}
    assert str(DriftError("stale", "vashista-gen generate")) == "stale\n    next: vashista-gen generate"
    with pytest.raises(VashistaError) as caught:
        spec.loads("", "small.yaml")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_folder_of_specs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware_module.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(MissingEnvironmentError, match="not installed"):
        hardware_module.specs_root()
