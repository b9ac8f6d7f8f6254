"""The command from its words to its files."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from vashista_gen import spec as specs
from vashista_gen.cli.main import app
from vashista_gen.diagnose import models, recommend, texts
from vashista_gen.errors import SpecError

from .test_texts import Letters

ROOT = Path(__file__).resolve().parents[2]


def invoke(*words):
    return CliRunner().invoke(app, ["diagnose", *map(str, words)])


@pytest.fixture
def file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 4, 3, 32), "k": (2, 2, 256, 32), "v": (2, 2, 256, 32)}
    tensors = {name: 2 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors | {"positions": torch.tensor([127, 191, 255])}, tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


@pytest.mark.parametrize("with_spec", [False, True])
def test_tensors_give_tables_files_and_a_right_spec(file, tmp_path, with_spec):
    words = ["--spec", ROOT / "specs" / "tiny.yaml"] if with_spec else ["--budget", 100]
    found = invoke("--tensors", file, "--output", tmp_path / "out", *words)
    assert found.exit_code == 0, found.output
    assert "Safe heads" in found.stdout
    result = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    assert result["spec"] == ("tiny" if with_spec else None)
    assert result["budget_tokens"] == (64 if with_spec else 100)
    assert ("support_gap" in result) == with_spec
    assert result["per_layer_and_head"]["growth_exponent"] is None
    assert (tmp_path / "out" / "diagnose.png").read_bytes().startswith(b"\x89PNG")
    suggested = specs.load(tmp_path / "out" / "made_sparse.yaml")
    assert suggested.name == "made_sparse"
    assert suggested.routing.pages * suggested.cache.page_size >= suggested.candidates.tokens
    assert (tmp_path / "out" / "made_sparse.yaml").read_text() in found.stdout


def test_a_model_over_contexts(model, monkeypatch, tmp_path):
    loaded = models.describe("random", model, Letters(True))
    monkeypatch.setattr(models, "load", lambda name: loaded)
    prose = "".join(chr(33 + i * i % 60) for i in range(600))
    monkeypatch.setattr(texts, "find", lambda name: texts.Text(name, "here", "none", prose))
    words = ("--text", "one", "--context", "256,512", "--queries", 2, "--no-hull", "--output", tmp_path)
    found = invoke("--model", "random", "--spec", ROOT / "specs" / "tiny.yaml", *words)
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "diagnose.json").read_text())
    assert result["contexts"] == [256, 512]
    assert result["documents"][0]["tokens"] == 512
    assert result["queries_per_head"] == 2
    assert len(result["per_layer_and_head"]["growth_exponent"]) == 3
    assert "hull_face" not in result
    assert "Constant size" in found.stdout


def test_a_certificate_over_documents_goes_on_where_it_was_stopped(model, monkeypatch, tmp_path):
    loaded = models.describe("random", model, Letters(True))
    monkeypatch.setattr(models, "load", lambda name: loaded)
    prose = "".join(chr(33 + i * i % 60) for i in range(1100))
    monkeypatch.setattr(texts, "find", lambda name: texts.Text(name, "here", "none", prose))
    spec = tmp_path / "told.yaml"
    spec.write_text("name: told\n" + CERTIFIED)
    words = ("--model", "random", "--spec", spec, "--text", "one", "--context", 512, "--queries", 40, "--certificate")
    one = invoke(*words, "--windows", 1, "--output", tmp_path)
    both = invoke(*words, "--windows", 2, "--output", tmp_path)
    assert (one.exit_code, both.exit_code) == (0, 0), one.output + both.output
    assert "one[0]: compared before" in both.stdout and "one[1]: compared before" not in both.stdout
    found = json.loads((tmp_path / "certificate.json").read_text())["certificate"]
    assert found["steps"] == found["steps_compared"] == 2 * 40 * 3 * 4  # documents, queries, layers, heads
    assert found["steps_too_low"] == 0


CERTIFIED = """\
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {pages: 8, sink_pages: 1, recent_pages: 2}
sketch: {bits: 8}
candidates: {tokens: 64}
certificate: {kind: rigorous, tolerance: 0.2}
targets: [c]
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--model or --tensors"),
        (("--tensors", "a", "--model", "b"), "--model or --tensors"),
        (("--tensors", "a", "--text", "b"), "go with --model"),
        (("--model", "no/such"), "no model at"),
        (("--tensors", "no/such"), "cannot read"),
    ],
)
def test_mistakes_end_with_2_and_a_next_step(words, message):
    found = invoke(*words)
    assert found.exit_code == 2
    assert message in found.stderr
    assert "next: " in found.stderr


def test_a_recommendation_follows_the_needs():
    def text(needs, **shape):
        summary = {
            "contexts": [8192], "per_layer_and_kv_head": {"mean_group_tokens_to_98": needs}, "budget_tokens": 512,
            "heads_safe": 1, "heads": 4,
        }  # fmt: skip
        model = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64, "sm_scale": 0.125} | shape
        return recommend.recommend(summary, name="made", **model)

    few, many = (specs.loads(text([[n, 3 * n]]), "made.yaml") for n in (100, 1000))
    assert (few.candidates.tokens, few.routing.pages) == (512, 64)
    assert (many.candidates.tokens, many.routing.pages) == (4096, 512)
    assert specs.loads(text([[9, 9]], sm_scale=0.1), "made.yaml").model.sm_scale == 0.1
    with pytest.raises(SpecError, match="R13"):
        text([[9, 9]], head_dim=72)


@pytest.mark.parametrize(
    ("model", "name"),
    [("SmolLM2-135M", "smollm2_135m_sparse"), ("7B!", "model_7b_sparse"), ("x" * 99, 48 * "x" + "_sparse")],
)
def test_a_spec_has_a_right_name(model, name):
    assert recommend.spec_name(model) == name


def test_the_command_line_imports_nothing_heavy_for_it():
    import subprocess

    heavy = "{'torch', 'numpy', 'transformers', 'matplotlib'}"
    code = f"import sys, vashista_gen.cli.main; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
