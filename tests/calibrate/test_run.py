"""The command over a random model: its file, its figures, its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose.conftest import model  # noqa: F401  (a fixture)
from diagnose.test_texts import Letters
from typer.testing import CliRunner

from vashista_gen import spec as specs
from vashista_gen.calibrate import load, omission
from vashista_gen.cli.main import app
from vashista_gen.diagnose import models, texts
from vashista_gen.diagnose.capture import Capture
from vashista_gen.errors import SpecError

from .sketch import estimator

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "specs" / "tiny.yaml"
CALIBRATED = """
name: calibrated
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32, dtype: float32}
cache: {page_size: 16}
routing: {pages: 6}
sketch: {bits: 4, transform: hadamard, balance: a.json}
candidates: {tokens: 64}
certificate: {kind: calibrated, margin: a.json, tolerance: 0.2, every: 64}
fallback: dense
targets: [c]
"""


@pytest.fixture
def calibrate(model, monkeypatch, tmp_path):  # noqa: F811
    loaded = models.describe("random", model, Letters(True))
    monkeypatch.setattr(models, "load", lambda name: loaded)
    prose = "".join(chr(33 + i * i * i % 61) for i in range(2000))
    monkeypatch.setattr(texts, "find", lambda name: texts.Text(name, "here", "none", prose))

    def run(*words, spec=SPEC):
        output = tmp_path / "a.json"
        fixed = ("--model", "random", "--text", "one", "--context", "256", "--queries", 4, "--output", output)
        return CliRunner().invoke(app, ["calibrate", str(spec), *map(str, (*fixed, *words))]), output

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


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "calibrated.yaml").write_text(CALIBRATED)
    return tmp_path / "calibrated.yaml"


def test_a_margin_is_measured_by_the_op_and_the_spec_reads_the_file(calibrate, spec, tmp_path):
    with pytest.raises(SpecError, match="R37"):
        specs.load(spec)
    result, output = calibrate("--windows", 6, "--level", "0.9", "--queries", 8, spec=spec)
    assert result.exit_code == 0, result.output
    found = load(output)
    assert "held out: " in result.stdout
    assert list(found.margin.held_out_by_text) == ["one[2]", "one[5]"]
    # documents, layers, heads and queries, without those that omit less than 1e-5 of the mass
    assert 200 < found.margin.scores <= 4 * 3 * 4 * 5
    read = specs.load(spec).calibration["layers"]
    assert [layer["margin"] for layer in read] == [found.margin.nats] * 3
    assert tuple(map(tuple, read[2]["balance"])) == found.layer(2).balance
    diagnosed = CliRunner().invoke(
        app,
        [*f"diagnose --model random --text one --context 128,256 --queries 4 --no-hull --spec {spec}".split(),
         "--output", str(tmp_path)],
    )  # fmt: skip
    assert diagnosed.exit_code == 0, diagnosed.output
    certificate = json.loads((tmp_path / "diagnose.json").read_text())["certificate"]
    assert certificate["kind"] == "calibrated"
    # the margin covers nine of ten such steps; half is far below what chance leaves of 48
    assert certificate["share_of_estimates_too_low"] < 0.5
    assert certificate["slack_nats"]["p10"] < found.margin.nats * 2 + 0.1


def test_a_margin_that_does_not_hold_is_not_written(calibrate, spec, monkeypatch):
    seen = []

    def worse_on_later_documents(layer):
        seen.append(layer)
        found = estimator(32)(layer)
        return found._replace(log_estimated=found.log_estimated - 3 * (len(seen) > 6))

    monkeypatch.setattr(omission, "of_package", lambda package: worse_on_later_documents)
    result, output = calibrate("--windows", 3, "--level", "0.9", spec=spec)
    assert result.exit_code == 1
    assert "nothing written" in result.stdout
    assert not output.exists()


def test_a_spec_of_another_shape_is_refused(calibrate):
    result, _ = calibrate("--windows", 3, spec=ROOT / "specs" / "smollm2_135m.yaml")
    assert result.exit_code == 2
    assert "num_q_heads 4 against 9" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--windows", 2), "2 documents leave none to check on"),
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
