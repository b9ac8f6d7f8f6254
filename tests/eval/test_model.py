"""Models that are there, are not, or have another shape than the spec."""

import shutil

import pytest

from vashista_gen.errors import UsageError
from vashista_gen.eval import model
from vashista_gen.spec import load, loads, specs_root

TINY = str(specs_root().joinpath("tiny.yaml"))
SPEC = "name: other\nmodel: {num_q_heads: 4, num_kv_heads: 4, head_dim: 32, sm_scale: 0.5}\n"
SPEC += "cache: {page_size: 16}\nrouting: {pages: 4}\n"


@pytest.mark.parametrize("name", ["no_such_package", "no/such/folder", "absent.gguf", ""])
def test_a_model_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        model.find(name, tmp_path)
    assert "no model" in error.value.message or "no config.json" in error.value.message
    assert "model" in error.value.hint


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UsageError, match="no config.json"):
        model.find(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model.find(str(tmp_path), tmp_path) == tmp_path
    with pytest.raises(UsageError, match="transformers cannot load"):
        model.load(tmp_path)


def test_a_model_without_a_tokenizer(llama, tmp_path):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(llama / name, tmp_path)
    with pytest.raises(UsageError, match="transformers cannot load the tokenizer of") as error:
        model.load(tmp_path)
    assert "tokenizer.save_pretrained" in error.value.hint


def test_an_installed_package_gives_its_gguf_file(tmp_path, monkeypatch):
    (tmp_path / "some_weights" / "data").mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (tmp_path / "some_weights" / "data" / "w.gguf").write_bytes(b"")
    (tmp_path / "parts_gguf").mkdir()
    (tmp_path / "parts_gguf" / "__init__.py").write_text("MODEL_NAME = 'whole.gguf'\nassemble = lambda path: path\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert model.find("some-weights", tmp_path).name == "w.gguf"
    assert model.find("parts-gguf", tmp_path / "cache") == tmp_path / "cache" / "whole.gguf"


def test_a_spec_of_another_shape_names_each_difference(llama):
    loaded = model.load(llama)
    model.check_fits(loaded, load(TINY), 4096)
    with pytest.raises(UsageError) as error:
        model.check_fits(loaded, loads(SPEC), 100)
    for text in ("num_kv_heads 2 against 4", "sm_scale 0.176777 against 0.5"):
        assert text in error.value.message
    assert f"vashista-gen new --from-config {llama}" in error.value.hint
    with pytest.raises(UsageError, match="4,097 tokens"):
        model.check_fits(loaded, load(TINY), 4097)


def test_windows_and_the_leading_token(llama, gemma):
    plain, sliding = model.load(llama), model.load(gemma)
    assert model.windows(plain.model) == [None, None]
    assert model.windows(sliding.model) == [40, None, 40]
    assert plain.tokenize("ab") == [2, 3] and plain.bos is None
    assert sliding.tokenize("ab") == [1, 2, 3] and sliding.bos == 1


def test_a_model_without_a_layer_to_make_sparse(gemma):
    loaded = model.load(gemma)
    loaded.model.config.layer_types = ["sliding_attention"] * 3
    with pytest.raises(UsageError, match="every layer attends within a sliding window"):
        model.windows(loaded.model)


def test_other_weights_have_another_fingerprint(llama):
    import torch

    loaded = model.load(llama)
    before = loaded.fingerprint
    assert model.load(llama).fingerprint == before
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight *= 1.001
    assert loaded.fingerprint != before
