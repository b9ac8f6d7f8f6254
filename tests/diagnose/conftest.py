"""A random Llama of the tiny spec's shape, and layers of random keys: no test here needs a real model or a network."""

from importlib.util import find_spec

import pytest
import torch

from vashista_gen.diagnose.layer import Layer

if find_spec("transformers") is None:  # an extra
    collect_ignore_glob = ["test_*.py"]

VOCABULARY = 97


@pytest.fixture(scope="session")
def model():
    """4 query and 2 KV heads of 32 in 3 layers; weights large enough for attention that is far from uniform."""
    import vashista_gen.diagnose  # noqa: F401  (sets transformers offline)
    from transformers import LlamaConfig, LlamaForCausalLM  # isort: skip

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def layer():
    """4 query and 2 KV heads of 32 over 512 tokens, queries at page ends; peaked attention."""
    return make_layer(0)


def make_layer(seed: int, tokens: int = 512, number: int = 0, sharpness: float = 3.0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(heads, n, 32, generator=generator) for heads, n in ((4, 6), (2, tokens), (2, tokens)))
    positions = torch.tensor([127, 143, 255, 287, tokens - 65, tokens - 1])
    return Layer(number, q * sharpness, k, v, positions, 32**-0.5)
