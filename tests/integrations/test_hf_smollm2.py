"""A trained model, SmolLM2-135M-Instruct: 30 layers, 9 query and 3 KV heads, all decoding through the package."""

import pytest
import torch

from vashista_gen.demo.model import document, load_model, load_tokenizer, weights
from vashista_gen.errors import MissingEnvironmentError
from vashista_gen.examples import generate_text
from vashista_gen.generated import smollm2_135m
from vashista_gen.integrations import hf

pytestmark = pytest.mark.xdist_group("smollm2")  # loaded once


@pytest.fixture(scope="module")
def loaded():
    try:
        path = weights()
    except MissingEnvironmentError as error:
        pytest.skip(str(error))
    return load_model(path), load_tokenizer(path)


@pytest.fixture
def model(loaded):
    yield loaded[0]
    if loaded[0].config._attn_implementation == hf.ATTENTION:
        hf.detach(loaded[0])


def test_it_writes_what_it_wrote(loaded, model):
    """Greedy, two rows of which one is padded; 64 pages of 16 hold the whole context."""
    tokenizer = loaded[1]
    inputs = {"input_ids": document(tokenizer, 120).repeat(2, 1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][1, :101] = 0
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    wanted = model.generate(**inputs, **how)
    hf.attach(model, smollm2_135m)
    assert torch.equal(model.generate(**inputs, **how), wanted)


def test_the_example(loaded, model, capsys):
    answer = generate_text.main("What is the capital of France?", tokens=8, loaded=loaded)
    assert "Paris" in answer
    assert capsys.readouterr().out.strip() == answer.strip()
    assert model.config._attn_implementation == "sdpa"
    assert generate_text.write(*loaded, "What is the capital of France?", 8) == answer  # and sdpa says the same
