"""A random Llama of the tiny spec's shape, so that no test here but one needs the 135M model."""

from importlib.util import find_spec

import pytest
import torch

import vashista_gen.demo  # noqa: F401  (sets transformers offline, before anything imports it)

if find_spec("transformers") is None:  # the demo's packages are an extra
    collect_ignore_glob = ["test_*.py"]

VOCABULARY, PREFIX, STEPS = 97, 100, 12


@pytest.fixture(scope="session")
def model():
    """4 query and 2 KV heads of 32 in 3 layers; weights large enough for attention that is far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    with torch.inference_mode():
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def ids():
    """int64 [1, 200]."""
    return torch.randint(0, VOCABULARY, (1, 200), generator=torch.Generator().manual_seed(1))
