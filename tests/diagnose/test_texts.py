"""Texts and models: where they come from, and what is refused."""

import hashlib
import types

import pytest

from vashista_gen.diagnose import models, texts
from vashista_gen.errors import MissingEnvironmentError, UsageError


class Letters:
    """A tokenizer: a token for each letter, and a beginning of text if asked."""

    def __init__(self, bos):
        self.bos_token_id, self._bos = 1, [1] if bos else []

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [ord(letter) for letter in text]
        return types.SimpleNamespace(input_ids=(self._bos if add_special_tokens else []) + ids)


@pytest.mark.parametrize("bos", [False, True])
def test_windows_follow_one_another_and_each_begins_as_a_text_does(bos):
    text = texts.Text("letters", "here", "none", "".join(chr(100 + i) for i in range(20)))
    found = texts.windows(Letters(bos), text, 5, 3)
    assert [one.name for one in found] == ["letters[0]", "letters[1]", "letters[2]"]
    assert all(one.ids.shape == (1, 5) for one in found)
    rows = [one.ids[0].tolist() for one in found]
    if bos:
        assert rows[1] == [1, 104, 105, 106, 107]
    else:
        assert rows[1] == [105, 106, 107, 108, 109]


def test_a_gguf_file_says_what_a_text_begins_with(tmp_path):
    """As of Gemma, whose tokenizer adds nothing by itself."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_bos_token_id(7)
    writer.add_add_bos_token(True)
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, write)()
    text = texts.Text("letters", "here", "none", "".join(chr(100 + i) for i in range(20)))
    found = texts.windows(Letters(False), text, 5, 2, tmp_path / "model.gguf")
    assert [one.ids[0].tolist() for one in found] == [[7, 100, 101, 102, 103], [7, 104, 105, 106, 107]]


def test_a_text_that_is_too_short_is_refused():
    text = texts.Text("letters", "here", "none", "abc")
    with pytest.raises(UsageError, match="letters has 3 tokens, and 2 windows of 2"):
        texts.windows(Letters(False), text, 2, 2)


def test_python_brings_two_long_texts_and_a_file_is_one(tmp_path):
    for name in ("pydoc:specialnames", "pydoc:compound"):
        found = texts.find(name)
        assert len(found.content) > 40_000
        assert "PSF" in found.licence
    path = tmp_path / "a.txt"
    path.write_text("prose")
    assert texts.find(str(path)).sha256 == hashlib.sha256(b"prose").hexdigest()


@pytest.mark.parametrize(("name", "message"), [("pydoc:none", "no topic"), ("no/such/file", "cannot read")])
def test_a_text_that_is_not_there_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        texts.find(name)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingEnvironmentError, match="apache-tvm-ffi"):
        texts.find("opticks")


def test_a_local_folder_loads(model, tmp_path):
    model.save_pretrained(tmp_path)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a"))).save_pretrained(tmp_path)
    found = models.load(str(tmp_path))
    assert (found.num_layers, found.num_q_heads, found.num_kv_heads, found.head_dim, found.longest) == (
        3,
        4,
        2,
        32,
        512,
    )
    assert found.sm_scale == pytest.approx(32**-0.5)


@pytest.mark.parametrize("name", ["no/such/model", "no/such/model.gguf"])
def test_a_model_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match="no model at"):
        models.load(name)


def test_a_model_without_attention_layers_is_refused():
    config = types.SimpleNamespace(get_text_config=lambda: None)
    with pytest.raises(UsageError, match="--tensors"):
        models.describe("odd", types.SimpleNamespace(config=config), None)
