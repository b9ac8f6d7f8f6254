"""A file of tensors: what is read, and how each mistake is refused."""

import pytest
import torch
from safetensors.torch import save_file

from vashista_gen.diagnose.tensors import read
from vashista_gen.errors import UsageError


def good(layers=2):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (4, 3, 32), "k": (2, 40, 32), "v": (2, 40, 32)}
    return {name: torch.randn(layers, *shape, generator=generator) for name, shape in shapes.items()}


def test_layers_positions_and_scale(tmp_path):
    given = good() | {"positions": torch.tensor([3, 3, 39], dtype=torch.int32)}
    save_file(given, tmp_path / "a.safetensors", metadata={"sm_scale": "0.25"})
    layers = read(tmp_path / "a.safetensors")
    assert [one.number for one in layers] == [0, 1]
    torch.testing.assert_close(layers[1].k, given["k"][1], rtol=0, atol=0)
    assert layers[0].positions.tolist() == [3, 3, 39]
    assert layers[0].sm_scale == 0.25


def test_one_layer_without_its_axis_and_defaults(tmp_path):
    save_file({name: x[0].half() for name, x in good().items()}, tmp_path / "a.safetensors")
    (layer,) = read(tmp_path / "a.safetensors")
    assert layer.q.dtype == torch.float32
    assert layer.positions.tolist() == [37, 38, 39]
    assert layer.sm_scale == 32**-0.5


def nan(x):
    x = x.clone()
    x[1, 0, 7, 2] = float("nan")
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": None}, "no tensor q; it holds .'k', 'v'."),
        ({"q": torch.zeros(3, 32)}, "not 3 or 4 axes"),
        ({"q": torch.zeros(2, 4, 3, 64)}, "do not fit together"),
        ({"v": torch.zeros(2, 2, 39, 32)}, "do not fit together"),
        ({"q": torch.zeros(2, 5, 3, 32)}, "5 query heads are no multiple of 2"),
        ({"k": torch.zeros(2, 2, 40, 32, dtype=torch.int32)}, "k is torch.int32"),
        ({"k": nan(good()["k"])}, r"k\[1, 0, 7, 2\] is not finite"),
        ({"q": torch.zeros(2, 4, 41, 32)}, "41 queries and 40 tokens"),
        ({"positions": torch.tensor([0, 1])}, "positions"),
        ({"positions": torch.tensor([0, 2, 1])}, "ascending"),
        ({"positions": torch.tensor([0, 1, 40])}, "from 0 to 39"),
        ({"positions": torch.tensor([0.0, 1.0, 2.0])}, "torch.float32"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    tensors = {name: x for name, x in (good() | change).items() if x is not None}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("scale", ["wide", "0", "-1", "nan", "inf"])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    save_file(good(), tmp_path / "a.safetensors", metadata={"sm_scale": scale})
    with pytest.raises(UsageError, match="sm_scale"):
        read(tmp_path / "a.safetensors")


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_text("no")
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        with pytest.raises(UsageError, match="cannot read"):
            read(path)
