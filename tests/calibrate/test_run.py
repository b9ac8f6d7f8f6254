"""The command over a random model: its file, its figures, its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose.conftest import model  # noqa: F401  (a fixture)
from diagnose.test_texts import Letters
from typer.testing import CliRunner

from vashista_gen.calibrate import load, omission
from vashista_gen.cli.main import app
from vashista_gen.diagnose import models, texts
from vashista_gen.diagnose.capture import Capture

from .sketch import estimator

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "specs" / "tiny.yaml"


@pytest.fixture
def calibrate(model, monkeypatch, tmp_path):  # noqa: F811
    loaded = models.describe("random", model, Letters(True))
    monkeypatch.setattr(models, "load", lambda name: loaded)
    prose = "".join(chr(33 + i * i * i % 61) for i in range(2000))
    monkeypatch.setattr(texts, "find", lambda name: texts.Text(name, "here", "none", prose))

    def run(*words):
        output = tmp_path / "a.json"
        fixed = ("--model", "random", "--text", "one", "--context", "256", "--queries", 4, "--output", output)
        return CliRunner().invoke(app, ["calibrate", str(SPEC), *map(str, (*fixed, *words))]), output

    return run


def test_the_file_says_what_was_measured(calibrate, model):  # noqa: F811
    result, output = calibrate("--windows", 3, "--average", 128)
    assert result.exit_code == 0, result.output
    found = load(output)
    assert [text["role"] for text in found.texts] == ["calibration", "calibration", "held_out"]
    assert [text["name"] for text in found.texts] == ["one[0]", "one[1]", "one[2]"]
    tokens = np.array([layer.budgets for layer in found.layers])
    assert tokens.shape == (3, 2)
    assert abs(tokens.mean() - 128) <= 8
    assert found.budgets["average_tokens"] == tokens.mean()
    assert 0 < found.budgets["held_out_share_p10"] <= found.budgets["held_out_share_mean"] <= 1
    assert found.margin is None
    seen = []
    for window in texts.windows(Letters(True), texts.find("one"), 256, 2):
        Capture(model, seen.append).run(window.ids, [255])
    keys = torch.cat([one.k for one in seen if one.number == 2], dim=1).double().mean(1)
    # six digits are written
    np.testing.assert_allclose(found.layer(2).center, keys, rtol=1e-5, atol=1e-9)


def test_a_margin_is_measured_and_written(calibrate, monkeypatch):
    monkeypatch.setattr(omission, "check", lambda package: None)
    monkeypatch.setattr(omission, "of_package", lambda package, calibration: estimator(32))
    result, output = calibrate("--windows", 3, "--margin", "--level", "0.9")
    assert result.exit_code == 0, result.output
    margin = load(output).margin
    assert margin.scores == 2 * 3 * 16  # documents, layers, heads and queries
    assert margin.held_out_scores == 3 * 16
    assert list(margin.held_out_by_text) == ["one[2]"]
    assert "held out: " in result.stdout


def test_a_margin_that_does_not_hold_is_not_written(calibrate, monkeypatch):
    seen = []

    def worse_on_later_documents(layer):
        seen.append(layer)
        found = estimator(32)(layer)
        return found._replace(log_estimated=found.log_estimated - 3 * (len(seen) > 6))

    monkeypatch.setattr(omission, "check", lambda package: None)
    monkeypatch.setattr(omission, "of_package", lambda package, calibration: worse_on_later_documents)
    result, output = calibrate("--windows", 3, "--margin", "--level", "0.9")
    assert result.exit_code == 1
    assert "nothing written" in result.stdout
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--windows", 2), "2 documents leave none to check on"),
        (("--windows", 3, "--margin"), "certificate of kind none"),
        (("--share", 1.5), "--share 1.5"),
        (("--over", "most"), "neither mean nor a percentile"),
        (("--average", 9), "--average 9"),
        (("--level", 1), "--level 1"),
        (("--context", "64,128"), "one length"),
        (("--windows", 99), "99 windows of 256"),
    ],
)
def test_mistakes_end_with_2_and_a_next_step(calibrate, words, message):
    result, output = calibrate(*words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "next: " in result.stderr
    assert not output.exists()
