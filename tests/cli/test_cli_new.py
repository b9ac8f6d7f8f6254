"""`vashista-gen new`: a spec that passes, says what was chosen, and is never half written or over another file."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from running import assert_error, invoke

from vashista_gen import spec
from vashista_gen.emit import compare
from vashista_gen.errors import VashistaError
from vashista_gen.integrations.shape import shape_of
from vashista_gen.plan import make_plan

LLAMA = {
    "model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
    "num_hidden_layers": 4, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 640,
    "head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 18, "max_position_embeddings": 32768,
    "sliding_window": 512, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(config, name="config.json"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_a_folder_gives_a_spec_of_its_name_that_generates(here):
    write(LLAMA, "Llama-3.1-8B/config.json")
    Path("specs").mkdir()
    result = invoke("new", "--from-config", "Llama-3.1-8B")
    assert result.exit_code == 0, result.output
    assert "wrote specs/llama_3_1_8b.yaml: llama, 32 query and 8 KV heads of 128, scale 0.0883883" in result.stdout
    assert "all 4 attend to the whole context" in result.stdout
    assert "the same shape: llama3_8b" in result.stdout
    assert "name        llama_3_1_8b, after the model's file or folder" in result.stdout
    assert "; vashista-gen generate specs/llama_3_1_8b.yaml" in result.stdout
    made = spec.load(Path("specs/llama_3_1_8b.yaml"))
    shipped = spec.load(Path(__file__).parents[2] / "specs" / "llama3_8b.yaml")
    assert (made.model, made.cache) == (shipped.model, shipped.cache)
    assert {change.kind for change in compare([make_plan(made)], here / "out", whole=False)} == {"missing"}
    assert files() == ["Llama-3.1-8B/config.json", "specs/llama_3_1_8b.yaml"]


def test_layers_with_windows_are_told_apart(here):
    write(GEMMA3)
    result = invoke("new", "--from-config", "config.json", "--output", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert "3 of 18 attend to the whole context (5, 11, 17); the others keep windows" in result.stdout
    made = spec.load(Path("mine.yaml"))
    assert (made.name, made.model.head_dim, made.model.sm_scale) == ("mine", 256, 0.0625)


@pytest.mark.parametrize(("context", "pages"), [(2048, 64), (131072, 128), (None, 128)])
def test_a_short_context_routes_less(here, context, pages):
    write({**LLAMA, "max_position_embeddings": context})
    result = invoke("new", "--from-config", "config.json", "--output", "mine.yaml")
    said = "its context is not stated" if context is None else f"the model reads {context} tokens"
    assert f"pages       {pages} of 16 tokens routed for each sequence and KV head: {said}" in result.stdout
    made = spec.load(Path("mine.yaml"))
    assert (made.routing.pages, made.sketch.bits, made.candidates.mass) == (pages, 4, 0.98)


@pytest.mark.parametrize(
    ("change", "field", "wanted"),
    [
        ({"attn_logit_softcapping": 50.0}, "logits_soft_cap", 50.0),
        ({"query_pre_attn_scalar": 144}, "sm_scale", 144**-0.5),
        ({"attention_multiplier": 0.0078125}, "sm_scale", 0.0078125),
        ({"model_type": "gemma4_text", "global_head_dim": 256}, "sm_scale", 1.0),
        ({"torch_dtype": None}, "dtype", "bfloat16"),
        ({"torch_dtype": None, "dtype": "float16"}, "dtype", "float16"),
        ({"num_key_value_heads": None}, "num_kv_heads", 32),
        ({"head_dim": 96}, "head_dim", 96),
        ({"sliding_window": 4096, "use_sliding_window": False}, "num_q_heads", 32),
        ({"num_attention_heads": [16] * 4}, "num_q_heads", 16),
    ],
)
def test_what_the_config_says_is_in_the_spec(here, change, field, wanted):
    write({**LLAMA, **change})
    result = invoke("new", "--from-config", "config.json", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert getattr(spec.load(Path("mine.yaml")).model, field) == wanted


def test_a_vision_models_text_part_counts(here):
    write({"model_type": "llava", "torch_dtype": "float16", "text_config": {**LLAMA, "torch_dtype": None}})
    assert invoke("new", "--from-config", "config.json", "--name", "mine").exit_code == 0
    assert spec.load(Path("mine.yaml")).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("config", "error", "step"),
    [
        ({**LLAMA, "num_attention_heads": None}, "has no num_attention_heads", "config.json of a decoder"),
        ({**LLAMA, "num_hidden_layers": "4"}, "num_hidden_layers is '4'", "mend the config"),
        ({**LLAMA, "num_attention_heads": [8, 16, 8, 8]}, "[8, 16, 8, 8]", "one for each shape"),
        ({**LLAMA, "num_attention_heads": True}, "True", "mend the config"),
        ({**LLAMA, "hidden_size": 32 * 72}, "R13", "multiple"),
        ({**LLAMA, "num_key_value_heads": 7}, "R11", "num_"),
        ({**LLAMA, "attn_logit_softcapping": "high"}, "attn_logit_softcapping is 'high'", "mend"),
        ({**LLAMA, "kv_lora_rank": 512}, "latent cache (kv_lora_rank 512)", "keys and values per head"),
        ({**LLAMA, "is_encoder_decoder": True}, "encoder-decoder", "only decoders"),
        ({**LLAMA, "sliding_window": 4096}, "each keeps a window", "nothing to route"),
        ([LLAMA], "holds a list", "config.json"),
    ],
)
def test_a_config_that_cannot_be_served(here, config, error, step):
    write(config)
    assert_error(invoke("new", "--from-config", "config.json", "--name", "mine"), 2, error, step)
    assert files() == ["config.json"]


@pytest.mark.parametrize(
    ("words", "error", "step"),
    [
        (["--name", "Mine"], "R9", "vashista-gen"),
        (["--name", "a", "--output", "b.yaml"], "--name a and --output b.yaml", "--output a.yaml"),
        (["--output", "b.json"], "does not end in .yaml", "--output"),
        (["--output", "no/b.yaml"], "no such folder: no", "mkdir -p no"),
    ],
)
def test_a_wrong_call(here, words, error, step):
    write(LLAMA)
    result = invoke("new", "--from-config", "config.json", *words)
    if step == "vashista-gen":
        assert result.exit_code == 2
        assert error in result.stderr
    else:
        assert_error(result, 2, error, step)
    assert files() == ["config.json"]


def test_a_source_that_is_none(here):
    assert_error(invoke("new", "--from-config", "gone"), 2, "no such file: gone", "config.json")
    assert_error(invoke("new", "--from-config", "."), 2, "no config.json and no .gguf file", "--from-config")
    Path("config.json").write_bytes(b"\xff{")
    assert_error(invoke("new", "--from-config", "config.json"), 2, "is not JSON", "config.json")
    assert invoke("new").exit_code == 2


def test_never_over_another_file(here):
    write(LLAMA)
    Path("mine.yaml").write_text("precious")
    assert_error(invoke("new", "--from-config", "config.json", "--name", "mine"), 2, "mine.yaml exists", "--name")
    os.symlink("nowhere", "other.yaml")
    assert_error(invoke("new", "--from-config", "config.json", "--name", "other"), 2, "other.yaml exists", "--name")
    assert Path("mine.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("hub/models--org--Qwen2.5-7B/snapshots/0a1b", "qwen2_5_7b"),
        ("7B", "model_7b"),
        ("class", "model_class"),
        ("Ünïcode", "n_code"),
    ],
)
def test_names(here, folder, name):
    write(LLAMA, f"{folder}/config.json")
    result = invoke("new", "--from-config", f"{folder}/config.json")
    assert result.exit_code == 0, result.output
    assert Path(f"{name}.yaml").is_file()


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.one_of(st.integers(0, 3), st.text(max_size=3)), max_size=4),
)  # fmt: skip
KEYS = [
    *LLAMA, "head_dim", "layer_types", "sliding_window", "sliding_window_pattern", "use_sliding_window",
    "query_pre_attn_scalar", "attention_multiplier", "attn_logit_softcapping", "text_config", "kv_lora_rank",
    "global_head_dim", "dtype", "is_encoder_decoder",
]  # fmt: skip


@given(changes=st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
@example(changes={"sliding_window": 5, "sliding_window_pattern": 0})
@example(changes={"num_attention_heads": 2**70})
@example(changes={"num_hidden_layers": 4_893_078_505})  # a list of as many words was made
def test_any_config_gives_a_shape_or_an_error_of_ours(changes):
    try:
        shape = shape_of({**LLAMA, **changes})
    except VashistaError:
        return
    assert min(shape.num_q_heads, shape.num_kv_heads, shape.num_layers) > 0
    assert shape.sm_scale > 0
    assert set(shape.full_layers) <= set(range(shape.num_layers))


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
class TestGguf:
    def write(self, path, **more):
        from gguf import GGUFWriter

        writer = GGUFWriter(path, more.pop("arch", "llama"))
        settings = {
            "block_count": 6, "context_length": 8192, "embedding_length": 576, "head_count": 9, "head_count_kv": 3,
            **more,
        }  # fmt: skip
        for key, value in settings.items():
            getattr(writer, f"add_{key}")(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    def test_its_metadata_is_read(self, here):
        self.write("m.gguf", arch="gemma2", sliding_window=4096, attn_logit_softcapping=50.0, key_length=64)
        result = invoke("new", "--from-config", ".", "--name", "mine")
        assert result.exit_code == 0, result.output
        assert "3 of 6 attend to the whole context (1, 3, 5)" in result.stdout
        model = spec.load(Path("mine.yaml")).model
        assert (model.num_q_heads, model.num_kv_heads, model.head_dim) == (9, 3, 64)
        assert (model.sm_scale, model.logits_soft_cap) == (0.125, 50.0)

    def test_a_file_that_is_none(self, here):
        Path("m.gguf").write_bytes(b"GGUF rubbish")
        assert_error(invoke("new", "--from-config", "m.gguf"), 2, "not a readable GGUF file", "again")

    def test_keys_and_values_of_two_lengths(self, here):
        self.write("m.gguf", key_length=64, value_length=128)
        assert_error(invoke("new", "--from-config", "m.gguf"), 2, "keys of 64 and values of 128", "one head_dim")
