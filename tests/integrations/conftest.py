"""Small random models of the tiny spec's shape; each test attaches to its own copy."""

import copy
from importlib.util import find_spec

import pytest
import torch

import vashista_gen.demo  # noqa: F401  (sets transformers offline, before anything imports it)

if find_spec("transformers") is None:  # it comes with the extra of the demo
    collect_ignore_glob = ["test_hf_*.py"]

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def random_model(kind, seed=0, **more):
    """An eval model `kind`ForCausalLM; weights large enough for attention that is far from uniform."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **more})
    return getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()


@pytest.fixture(scope="session")
def llama_once():
    return random_model("Llama", num_hidden_layers=3)


@pytest.fixture
def llama(llama_once):
    """4 query and 2 KV heads of 32 in 3 layers, fresh."""
    return copy.deepcopy(llama_once)


@pytest.fixture(scope="session")
def ids():
    """int64 [3, 30], no 0 among them, which pads."""
    return torch.randint(3, VOCABULARY, (3, 30), generator=torch.Generator().manual_seed(1))
