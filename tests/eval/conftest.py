"""A random Llama of the tiny spec's shape on disk, with a tokenizer of characters, so that no test here is slow."""

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None:  # the evaluation's packages are an extra
    collect_ignore_glob = ["test_*.py"]

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:'\"()-_\n"
TEXT = "\n".join(f"{i * i} squares of {i} lie in a row, (and {i * 7919 % 104729}) more. " for i in range(600))


def shape(**changes):
    """Keyword arguments of a configuration: 4 query and 2 KV heads of 32, attention far from uniform."""
    given = {
        "vocab_size": len(CHARACTERS) + 2, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    return given | changes


def write_tokenizer(folder, *, bos):
    """A tokenizer of characters; with `bos` it begins every text with its token 1."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, **{c: i + 2 for i, c in enumerate(CHARACTERS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)


def write_model(folder, config, *, bos=False):
    """Random weights of a configuration, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    write_tokenizer(folder, bos=bos)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A model folder."""
    from transformers import LlamaConfig

    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama", LlamaConfig(**shape()))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """A model folder with a sliding window of 40 tokens in every layer but one, and a BOS token."""
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        **shape(num_hidden_layers=3), layer_types=kinds, sliding_window=40, query_pre_attn_scalar=32
    )
    return write_model(tmp_path_factory.mktemp("models") / "tiny-gemma", config, bos=True)


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """A text file of some 25,000 characters."""
    path = tmp_path_factory.mktemp("texts") / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where prefixes, packages and results go: compiled once for all tests."""
    return tmp_path_factory.mktemp("cache")
