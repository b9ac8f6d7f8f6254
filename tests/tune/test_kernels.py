"""Constants of kernels: what is tried, that what does not compile or crashes or is wrong is not taken, the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from strategies import examples, specs

from vashista_gen import emit
from vashista_gen.bench import timing
from vashista_gen.generated import tiny
from vashista_gen.plan import make_plan
from vashista_gen.spec import load, loads
from vashista_gen.spec.kernels import kernel_choices
from vashista_gen.tune import candidates, file, run

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted([*(ROOT / "specs").glob("*.yaml"), *(ROOT / "tests" / "shapes").glob("*.yaml")])


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_defaults_are_among_the_choices(path):
    check_choices(make_plan(load(path)))


@settings(examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(drawn=specs())
def test_the_defaults_are_among_the_choices_of_any_spec(drawn):
    check_choices(make_plan(loads(yaml.safe_dump({"name": "drawn", **drawn}, sort_keys=False), "drawn.yaml")))


def check_choices(plan):
    """And what is tried is what the kernels have: nothing of warps where none run, or of lists where there are none."""
    for target in plan.spec.targets:
        choices, present = kernel_choices(plan.spec, target), candidates.present(plan, target)
        assert present.keys() == choices.keys() and all(value in choices[name] for name, value in present.items())
        tried = {knob.name for knob in candidates.knobs(plan, target)}
        assert tried <= choices.keys() and ("tile_tokens" in tried) >= (target == "c")
        assert ("attend_warps" in tried) == (target != "c" and plan.warps_on_cuda)
        assert ("token_warps" in tried) == (target != "c" and plan.warps_on_cuda and plan.token_list)
        assert ("fused_routing" in tried) == (target != "c" and plan.fused_routing)


def test_gpus_have_the_constants_of_the_first_target_that_has_some():
    spec = load(ROOT / "specs" / "qwen2_5_7b.yaml")
    of = lambda **kernels: make_plan(replace(spec, kernels={f"cuda-{key}": value for key, value in kernels.items()}))
    assert of(sm_80={"attend_warps": 8}).constants()["ATTEND_WARPS"] == 8
    both = of(sm_80={"attend_warps": 8, "part_pages": 8}, sm_90a={"token_warps": 2, "fused_routing": 0})
    assert both.constants() == {**make_plan(spec).constants(), "TOKEN_WARPS": 2} and not both.fused_routing
    assert "kernels/route.py" not in emit.render(both)
    assert make_plan(replace(spec, kernels={"c": {"tile_tokens": 32}})).constants()["TILE_TOKENS_C"] == 32


def test_kernels_that_would_not_be_used_are_not_tried(capsys):
    spec = load(ROOT / "specs" / "qwen2_5_7b.yaml")
    console = run.output()
    assert run._may_compile(console, spec, "c") and run._may_compile(console, spec, "cuda-sm_80")
    assert not run._may_compile(console, spec, "cuda-sm_100a")
    tuned = replace(spec, kernels={"cuda-sm_90a": {"attend_warps": 8}})
    assert run._may_compile(console, tuned, "c") and run._may_compile(console, tuned, "cuda-sm_90a")
    assert not run._may_compile(console, tuned, "cuda-sm_80")
    said = capsys.readouterr().out
    assert "cuda-sm_100a is not a target of qwen2_5_7b" in said and "have the constants of cuda-sm_90a" in said


@pytest.fixture
def here(tmp_path):
    return Path(shutil.copy(ROOT / "specs" / "tiny.yaml", tmp_path))


def test_what_crashes_ends_its_own_process(tmp_path):
    (tmp_path / "crashes").mkdir()
    text = "import os, signal\n\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "crashes" / "library.py").write_text(text)
    made = candidates.Candidates(load(ROOT / "specs" / "tiny.yaml"), "c", "cpu", "float32", tmp_path)
    assert made._try("crashes") == "ended by SIGSEGV"


def test_what_does_not_compile_or_is_wrong_is_not_taken(here, monkeypatch, capsys):
    """Tiles of 0 and of -16 tokens: the one does not compile, the other covers nothing; then one of 32 is the best."""
    choices = {"tile_tokens": (0, -16, 16, 32), "score_pages": (16,)}
    monkeypatch.setattr(candidates, "kernel_choices", lambda spec, target: choices)

    def measure(contestants, case, budget):
        for one in contestants:
            one.run(0, case.inputs[0])
        value = lambda one: abs(int(one.name) - 32) if one.label.startswith("tile_tokens") else 0
        return {one.name: timing.Timing(1 + value(one) / 1000, 0, 1) for one in contestants}

    monkeypatch.setattr(timing, "measure", measure)
    path = run.main(here, device="cpu", shapes=((2, 300),), batches=(1,), contexts=(350,))
    content = json.loads(path.read_text())
    made, name = content["kernels"]["c"], tiny.op.tuning.name_of(torch.device("cpu"))
    assert made["values"] == {"tile_tokens": 32, "score_pages": 16} and made["device"] == name
    dense, sparse = made["times"]
    assert set(dense["microseconds"]) == set(sparse["microseconds"]) == {"16", "32"}
    assert "Divide by zero" in dense["wrong"]["0"] and "WrongResult" in dense["wrong"]["-16"]
    assert dense["wrong"].keys() == {"0", "-16"} and sparse["wrong"] == dense["wrong"]
    said = capsys.readouterr().out
    assert "tile_tokens             16 ->    32  1.6% faster" in said and "tile_tokens -16 is not taken" in said

    spec = load(here)
    assert spec.kernels == {"c": made["values"]}
    out = here.parent / "packages"
    emit.apply(emit.compare([make_plan(spec)], out, whole=True), out)
    assert "TILE_TOKENS_C = 32" in (out / "tiny" / "constants.py").read_text()
    monkeypatch.setattr(tiny.op.library, "HERE", out / "tiny")
    # what was measured is what is generated: its launches are found, and are of its kernels
    assert made["source"] == content[name]["source"] == tiny.op.library.source_hash()
    assert not emit.compare([make_plan(load(here))], out, whole=True)
    (here.parent / "tuning" / "tiny.json").unlink()
    assert "tiny/constants.py" in {change.path for change in emit.compare([make_plan(load(here))], out, whole=True)}


def test_other_targets_keep_their_entries(here):
    kept = {"values": {"tile_tokens": 8}, "times": []}
    for target in ("c", "cuda-sm_90a", "c"):
        entry = {"values": {"tile_tokens": 32}, "times": [{"knob": "tile_tokens"}, {"knob": "score_pages"}]}
        path = file.write(here, "tiny", "c, a CPU", {"source": "0", "knobs": {}}, {target: entry})
        content = json.loads(path.read_text())
        content["kernels"]["c"] = kept
        path.write_text(file._text(content))
    found = json.loads(path.read_text())
    assert found == {
        "kernels": {"c": kept, "cuda-sm_90a": entry}, "c, a CPU": {"source": "0", "knobs": {}}
    }  # fmt: skip
    assert file.write(here, "tiny", "c, another", {}).read_text().count("\n   {") == 0
    assert json.loads(path.read_text())["kernels"] == found["kernels"]
