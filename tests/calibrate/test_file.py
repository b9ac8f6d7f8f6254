"""The calibration file: what is written is read, and each mistake is named."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from vashista_gen.calibrate import Calibration, LayerCalibration, Margin, load, save
from vashista_gen.errors import UsageError


def made(margin=True) -> Calibration:
    layers = tuple(
        LayerCalibration(n, ((0.5, -1.0, 2.0, 0.0),), ((0.5, 2.0),), ((0.0, 0.0, 1.0, 3.0),), (64,), own)
        for n, own in enumerate((0.125, 0.25) if margin else (None, None))
    )
    model = {"name": "m", "num_layers": 2, "num_q_heads": 2, "num_kv_heads": 1, "head_dim": 4, "sm_scale": 0.5}
    about = {"share": 0.98, "over": "mean", "context": 8192, "average_tokens": 64.0}
    texts = ({"name": "t[0]", "sha256": "0" * 64, "tokens": 8192, "role": "calibration"},)
    found = Margin(0.125, 0.999, 5000, 0.9985, 2000, {"t[1]": 0.9985}, True) if margin else None
    return Calibration(model, "tiny", texts, {"date": "2026-01-01"}, about, layers, found)


@pytest.mark.parametrize("margin", [False, True])
def test_what_is_written_is_read(tmp_path, margin):
    save(made(margin), tmp_path / "a.json")
    found = load(tmp_path / "a.json")
    assert found == made(margin)
    assert "[0.5, -1.0, 2.0, 0.0]" in (tmp_path / "a.json").read_text()  # a row is a line's worth


def test_layers_margins_and_tensors():
    found = made()
    assert (found.margin_of(0), found.margin_of(1)) == (0.125, 0.25)
    tensors = found.layer(1).tensors()
    assert {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()} == {
        "center": (torch.float32, (1, 4)), "balance": (torch.float32, (1, 2)),
        "value_center": (torch.float32, (1, 4)), "budgets": (torch.int32, (1,)),
    }  # fmt: skip
    with pytest.raises(UsageError, match="no layer 2"):
        found.layer(2)
    with pytest.raises(UsageError, match="no margin"):
        made(margin=False).margin_of(0)


def change(path, value):
    def apply(content):
        for key in path[:-1]:
            content = content[key]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "format is not"),
        (["version"], 2, "version 2"),
        (["extra"], 1, "extra is not a key"),
        (["layers"], None, "layers is missing"),
        (["layers"], [], "layers is not a list, or is empty"),
        (["model", "head_dim"], None, "model.head_dim is missing"),
        (["model", "head_dim"], True, "model.head_dim True"),
        (["model", "head_dim"], 8, r"layers\[0\].center is not \[1, 8\]"),
        (["layers", 1, "center", 0, 2], float("nan"), r"layers\[1\].center\[0\]\[2\] nan"),
        (["layers", 0, "balance", 0, 1], 0, r"layers\[0\].balance\[0\]\[1\] 0 is not a positive"),
        (["layers", 0, "balance", 0], [1.0], r"layers\[0\].balance is not \[1, 2\]"),
        (["layers", 0, "budgets"], [0], "budgets is not 1 numbers"),
        (["layers", 0, "budgets"], [64.5], "budgets is not 1 numbers"),
        (["layers", 1, "layer"], 0, "not ascending"),
        (["layers", 1, "layer"], 2, "2 of 2"),
        (["layers", 1, "margin"], "much", "margin 'much'"),
        (["layers", 1, "margin"], None, "margin is in some places only"),
        (["margin"], None, "margin is in some places only"),
        (["layers", 0, "value_center"], [[1.0]], "value_center is not"),
        (["margin", "level"], 1.0, "margin.level"),
        (["margin", "more"], 1, "unknown keys"),
        (["margin", "nats"], float("inf"), "margin.nats inf"),
        (["texts", 0, "sha256"], None, r"texts\[0\].sha256 is missing"),
        (["made"], [], "made is not a mapping"),
        (["budgets", "over"], 3, "budgets.over 3"),
    ],
)
def test_mistakes_are_named(tmp_path, path, value, message):
    save(made(), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    change(path, value)(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as error:
        load(tmp_path / "a.json")
    assert "a.json" in error.value.message
    assert "vashista-gen calibrate" in error.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '"a"'])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="a.json"):
        load(tmp_path / "a.json")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "b.json")


def test_nothing_wrong_is_written(tmp_path):
    from dataclasses import replace

    wrong = replace(made(), layers=(replace(made().layers[0], budgets=(64, 64)),))
    with pytest.raises(UsageError, match="budgets"):
        save(wrong, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_the_reader_needs_no_torch():
    code = "import sys; from vashista_gen.calibrate import load; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_copy_is_equal():
    assert copy.deepcopy(made()) == made()
