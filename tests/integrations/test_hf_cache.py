"""SparseCache against DynamicCache: the same crops, orders, repetitions and selections, then the same logits."""

import pytest
import torch
from transformers import DynamicCache

from vashista_gen.generated import tiny
from vashista_gen.integrations import hf

from .conftest import VOCABULARY, random_model

# float32 through 6 layers, sums in another order, logits below 10: 1e-5 is seen
TOLERANCE = {"atol": 2e-4, "rtol": 0.0}
ROWS = torch.tensor([2, 0, 0])
CHANGES = {
    "nothing": (lambda cache: None, lambda mask: mask),
    "crop": (lambda cache: cache.crop(-11), lambda mask: mask[:, :-11]),
    "crop to a page's end": (lambda cache: cache.crop(-14), lambda mask: mask[:, :-14]),
    "crop over padding": (lambda cache: cache.crop(-20), lambda mask: mask[:, :-20]),
    "reorder": (lambda cache: cache.reorder_cache(ROWS), lambda mask: mask[ROWS]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), lambda mask: mask[[2, 1]]),
    "select by a mask": (
        lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])),
        lambda m: m[[0, 2]],
    ),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), lambda mask: mask.repeat_interleave(2, dim=0)),
}


@pytest.fixture(scope="module", params=["Llama", "Gemma3Text"])
def models(request):
    """A model as transformers runs it, and the same attached; Gemma's layers but one see 24 tokens."""
    more = {"sliding_window": 24, "query_pre_attn_scalar": 32} if request.param == "Gemma3Text" else {}
    plain, sparse = (random_model(request.param, num_hidden_layers=6, **more) for _ in "ab")
    return plain, sparse, hf.attach(sparse, tiny)


@pytest.fixture(scope="module")
def mask():
    """46 columns; row 0 begins after 7 of padding, and row 1 has one in the middle, as a second prompt brings it."""
    mask = torch.ones(3, 46, dtype=torch.long)
    mask[0, :7] = mask[1, 30] = 0
    return mask


def feed(model, cache, ids, mask):
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_the_same_logits_as_over_a_dynamic_cache(models, mask, change):
    plain, sparse, attached = models
    draw = torch.Generator().manual_seed(2)
    prompt = torch.randint(3, VOCABULARY, mask.shape, generator=draw)
    caches = DynamicCache(config=plain.config), attached.new_cache()
    for cache in caches:
        cache.activate_past_recording()
    change_cache, change_mask = CHANGES[change]
    now = None
    for first, last in ((0, 31), (31, 46)):
        for model, cache in zip((plain, sparse), caches, strict=True):
            feed(model, cache, prompt[:, first:last], mask[:, :last])
    now = change_mask(mask)
    for cache in caches:
        change_cache(cache)
    assert caches[1].get_seq_length() == caches[0].get_seq_length() == now.shape[1]
    assert caches[1].lengths == tuple(now.sum(1).tolist())
    for tokens in (1, 1, 4, 1):  # by the op, then several at once over all of the past, then by the op again
        ids = torch.randint(3, VOCABULARY, (len(now), tokens), generator=draw)
        now = torch.nn.functional.pad(now, (0, tokens), value=1)
        wanted, ours = (feed(model, cache, ids, now) for model, cache in zip((plain, sparse), caches, strict=True))
        torch.testing.assert_close(ours, wanted, **TOLERANCE)


@torch.no_grad()
def test_rows_of_one_history_part_ways(models):
    plain, sparse, attached = models
    prompt = torch.randint(3, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(3))
    cache = attached.new_cache()
    sparse(prompt, past_key_values=cache)
    cache.batch_repeat_interleave(3)
    assert cache.table.num_pages - cache.table.free_pages == 2  # shared, not copied
    tokens = torch.tensor([[5, 6], [7, 8], [9, 10]])
    for i in range(2):
        logits = sparse(tokens[:, i : i + 1], past_key_values=cache).logits
    wanted = plain(torch.cat([prompt.repeat(3, 1), tokens], dim=1)).logits[:, -1:]
    torch.testing.assert_close(logits, wanted, **TOLERANCE)


@torch.no_grad()
def test_reset_and_again(models, mask):
    _, sparse, attached = models
    prompt = torch.randint(3, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(4))
    cache = attached.new_cache()
    first = [sparse(x, past_key_values=cache).logits for x in (prompt, prompt[:, :1])]
    cache.reset()
    assert (cache.get_seq_length(), cache.lengths) == (0, ())
    again = [sparse(x, past_key_values=cache).logits for x in (prompt, prompt[:, :1])]
    assert all(map(torch.equal, first, again))
