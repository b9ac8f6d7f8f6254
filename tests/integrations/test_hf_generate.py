"""model.generate through a generated package, against the same call before it was attached."""

import copy
from types import SimpleNamespace

import pytest
import torch

from vashista_gen.generated import tiny
from vashista_gen.integrations import hf

from .conftest import GREEDY, random_model

# float32 through 3 layers, sums in another order, logits below 10: 1e-5 is seen
TOLERANCE = {"atol": 2e-4, "rtol": 0.0}
# a context of 55 tokens lies in tiny's 4 pages of 16: the op leaves nothing out
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams with samples": {"num_beams": 2, "do_sample": True},
    "several samples": {"num_return_sequences": 2, "do_sample": True},
    "chunks": {"prefill_chunk_size": 7},
}


def generate(model, ids, mask=None, tokens=25, **how):
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, max_new_tokens=tokens, **{**GREEDY, **how})


@pytest.fixture(scope="session")
def padded(ids):
    """A mask that hides 7 tokens of row 0 and 29 of row 2: all but one."""
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[2, :29] = 0
    return mask


@pytest.mark.parametrize("how", WAYS)
def test_within_the_budget_every_token_is_sdpas(llama, ids, padded, how):
    wanted = generate(llama, ids, padded, **WAYS[how])
    hf.attach(llama, tiny)
    assert torch.equal(generate(llama, ids, padded, **WAYS[how]), wanted)


@pytest.mark.parametrize("how", ["lookup", "assistant", "attached assistant"])
def test_assisted_generation_crops_the_cache(llama, ids, how):
    more = {"prompt_lookup_num_tokens": 3}
    if how != "lookup":
        more = {"assistant_model": copy.deepcopy(llama)}
        torch.manual_seed(5)
        for weight in more["assistant_model"].parameters():
            weight.data += 0.02 * torch.randn_like(weight)  # like the model, but wrong now and then
    wanted = generate(llama, ids[:1])
    hf.attach(llama, tiny)
    if how == "attached assistant":
        hf.attach(more["assistant_model"], tiny)
    result = generate(llama, ids[:1], return_dict_in_generate=True, **more)
    assert torch.equal(result.sequences, wanted)
    assert result.past_key_values.lengths == (54,)


def test_a_padded_row_gives_the_logits_it_gives_alone(llama, ids, padded):
    # centres of its own would make a row's routing depend on the rows it was first read with
    given = SimpleNamespace(center=torch.zeros(2, 32), spread=torch.ones(2, 32))
    hf.attach(llama, tiny, calibration=SimpleNamespace(layer=lambda number: given))
    together = generate(llama, ids, padded, tokens=60, return_dict_in_generate=True, output_logits=True)
    for row, hidden in enumerate([7, 0, 29]):  # beyond the budget too: routing sees no padding
        alone = generate(
            llama, ids[row : row + 1, hidden:], tokens=60, return_dict_in_generate=True, output_logits=True
        )
        assert torch.equal(together.sequences[row, 30:], alone.sequences[0, 30 - hidden :])
        for ours, wanted in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(ours[row], wanted[0], **TOLERANCE)
    assert together.past_key_values.lengths == (82, 89, 60)


def test_beyond_the_budget_tokens_are_left_out(llama, ids):
    wanted = generate(llama, ids, tokens=100)
    hf.attach(llama, tiny)
    assert not torch.equal(generate(llama, ids, tokens=100), wanted)
    hf.detach(llama)
    hf.attach(llama, tiny, dense_layers=range(3))
    assert torch.equal(generate(llama, ids, tokens=100), wanted)


def test_detached_it_is_as_before(llama, ids):
    wanted, before = generate(llama, ids, tokens=100), llama.config._attn_implementation
    hf.attach(llama, tiny)
    hf.detach(llama)
    assert torch.equal(generate(llama, ids, tokens=100), wanted)
    assert llama.config._attn_implementation == before
    assert not llama._forward_pre_hooks and not llama.model._forward_hooks


def test_copies_of_a_model_and_of_a_cache_go_their_own_ways(llama, ids):
    hf.attach(llama, tiny)
    wanted = generate(llama, ids)
    other = copy.deepcopy(llama)
    assert torch.equal(generate(other, ids), wanted)
    # the prompt's cache is copied and used twice, as transformers' documentation does it
    cache = llama(ids[:, :-1], use_cache=True).past_key_values
    for _ in range(2):
        assert torch.equal(generate(llama, ids, past_key_values=copy.deepcopy(cache)), wanted)
    assert cache.lengths == (29, 29, 29)


def test_a_conversation_goes_on_in_the_same_cache(llama, ids):
    plain = generate(llama, ids, tokens=10)
    longer = torch.cat([plain, ids[:, :9]], dim=1)
    wanted = generate(llama, longer, tokens=10)
    attached = hf.attach(llama, tiny)
    cache = attached.new_cache()
    assert torch.equal(generate(llama, ids, tokens=10, past_key_values=cache), plain)
    assert torch.equal(generate(llama, longer, tokens=10, past_key_values=cache), wanted)
    assert cache.lengths == (58, 58, 58)


@pytest.mark.parametrize("max_tokens", [None, 16, 4000])
def test_pools_grow(llama, ids, max_tokens, monkeypatch):
    monkeypatch.setattr("vashista_gen.integrations.hf.cache.ROOM", 1)
    wanted = generate(llama, ids, tokens=150)
    hf.attach(llama, tiny, dense_layers=range(3), max_tokens=max_tokens)
    result = generate(llama, ids, tokens=150, return_dict_in_generate=True)
    assert torch.equal(result.sequences, wanted)
    cache = result.past_key_values
    assert cache.table.num_pages >= 3 * (4000 if max_tokens == 4000 else 176) // 16
    for layer in cache.paged:
        kept, where = layer.pages.summaries, (cache.table.block_table, cache.table.seq_lens)
        fresh = tiny.summarize_pages(layer.pages.k_cache, *where, calibration=kept)
        used = cache.table.block_table[:, :12].flatten().long()
        for name in ("codes", "scales"):
            assert torch.equal(getattr(kept, name)[used], getattr(fresh, name)[used])


def test_windows_stay_windows(ids):
    """Gemma 3: layers 0 to 4 see 24 tokens, layer 5 all; beyond the window, within the budget."""
    model = random_model("Gemma3Text", num_hidden_layers=6, sliding_window=24, query_pre_attn_scalar=32)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    wanted = generate(model, ids, mask)
    looked = generate(model, ids[:1], prompt_lookup_num_tokens=3)
    beams = generate(model, ids, mask, num_beams=2)
    hf.attach(model, tiny)
    result = generate(model, ids, mask, return_dict_in_generate=True)
    assert torch.equal(result.sequences, wanted)
    assert [layer.index for layer in result.past_key_values.paged] == [5]
    assert torch.equal(generate(model, ids, mask, num_beams=2), beams)
    assert torch.equal(generate(model, ids[:1], prompt_lookup_num_tokens=3), looked)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral"])
def test_other_decoders(ids, kind):
    more = {"sliding_window": None} if kind == "Mistral" else {}
    model = random_model(kind, num_hidden_layers=2, **more)
    wanted = generate(model, ids)
    hf.attach(model, tiny)
    assert torch.equal(generate(model, ids), wanted)


def test_bfloat16_on_the_cpu_attends_in_float32(llama, ids):
    llama = llama.bfloat16()
    attached = hf.attach(llama, tiny)
    out = llama(ids, use_cache=True)
    assert attached.paged_layer(0) is None  # outside a forward pass there is none
    assert {layer.pages.k_cache.dtype for layer in out.past_key_values.paged} == {torch.float32}
    with torch.no_grad():
        assert llama(ids[:, :1], past_key_values=out.past_key_values).logits.dtype == torch.bfloat16
