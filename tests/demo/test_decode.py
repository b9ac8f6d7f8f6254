"""Decoding through the exchanged attention: the same model, token by token."""

import pytest
import torch

from vashista_gen.demo.decode import ATTENTION, Clock, Contiguous, Decoder, Paged, Plain, prefill
from vashista_gen.errors import UsageError
from vashista_gen.generated import tiny

from .conftest import PREFIX, STEPS

# float32 through 3 layers, sums in another order, logits below 10: 1e-5 is seen
TOLERANCE = {"atol": 2e-4, "rtol": 0.0}


def decoder(model, prefix, how):
    length = prefix[0][0].shape[2]
    if how == "contiguous":
        return Decoder(model, [Contiguous(Clock(tiny), k, v, STEPS) for k, v in prefix], length)
    return Decoder(model, [Paged(tiny, k, v, STEPS, sparse=how == "sparse") for k, v in prefix], length)


@torch.inference_mode()
def forced(way, ids, start):
    return torch.cat([way.step(ids[:, i : i + 1]) for i in range(start, start + STEPS)])


@pytest.mark.parametrize("how", ["contiguous", "dense"])
@torch.inference_mode()
def test_dense_steps_give_the_models_own_logits(model, ids, how):
    prefix = prefill(model, ids[:, :PREFIX])
    plain = forced(Plain(model, prefix), ids, PREFIX)
    torch.testing.assert_close(forced(decoder(model, prefix, how), ids, PREFIX), plain, **TOLERANCE)
    # and both give what one pass over everything gives
    whole = model(ids[:, : PREFIX + STEPS]).logits[0, PREFIX:]
    torch.testing.assert_close(plain, whole, **TOLERANCE)


@torch.inference_mode()
def test_within_the_budget_sparse_is_dense(model, ids):
    prefix = prefill(model, ids[:, :40])  # tiny keeps 4 pages of 16
    wanted = decoder(model, prefix, "dense").greedy(ids[:, 40:41], STEPS)
    assert decoder(model, prefix, "sparse").greedy(ids[:, 40:41], STEPS) == wanted
    torch.testing.assert_close(
        forced(decoder(model, prefix, "sparse"), ids, 40), forced(Plain(model, prefix), ids, 40), **TOLERANCE
    )


@torch.inference_mode()
def test_beyond_the_budget_sparse_is_something_else(model, ids):
    prefix = prefill(model, ids[:, :PREFIX])
    dense, sparse = (forced(decoder(model, prefix, how), ids, PREFIX) for how in ("dense", "sparse"))
    assert (dense - sparse).abs().max() > 100 * TOLERANCE["atol"]


@torch.inference_mode()
def test_greedy_goes_on_as_the_model_does(model, ids):
    prefix = prefill(model, ids[:, :PREFIX])
    wanted = model.generate(
        ids[:, : PREFIX + 1], max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert (
        decoder(model, prefix, "dense").greedy(ids[:, PREFIX : PREFIX + 1], STEPS) == wanted[0, PREFIX + 1 :].tolist()
    )


@torch.inference_mode()
def test_a_mask_or_a_prefill_is_refused_and_the_model_is_as_before(model, ids):
    with_decoder = decoder(model, prefill(model, ids[:, :PREFIX]), "dense")
    before = model.config._attn_implementation
    with pytest.raises(UsageError, match="next: prefill, padding and training stay with sdpa"):
        with_decoder.step(ids[:, :2])
    assert model.config._attn_implementation == before
    model.set_attn_implementation(ATTENTION)
    try:
        padding = torch.tensor([[0]])
        with pytest.raises(UsageError, match="without a mask"):
            model(ids[:, :1], attention_mask=padding, use_cache=False, decoder=with_decoder)
        with pytest.raises(UsageError, match="under a Decoder"):
            model(ids[:, :1], use_cache=False)
    finally:
        model.set_attn_implementation(before)


def test_a_clock_notes_the_ops_and_nothing_else():
    clock = Clock(tiny)
    assert clock.SPEC is tiny.SPEC
    cache = torch.zeros(2, 16, 2, 32)
    table, lens = torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    clock.decode_dense(torch.zeros(1, 4, 32), cache, cache, table, lens)
    clock.summarize_pages(cache, table, lens)
    assert {name: len(given) for name, given in clock.seconds.items()} == {"decode_dense": 1}
