"""Gemma 2: logits capped, a window in every other layer; prefill by the model's own eager attention."""

from types import SimpleNamespace

import torch

from vashista_gen.generated import tiny
from vashista_gen.integrations import hf

from .conftest import GREEDY, random_model

CAP = 5.0


def capped():
    """tiny with a cap on its logits: attention over all pages, written out."""

    def decode(q, k_cache, v_cache, block_table, seq_lens, summaries, *, max_seq_len):
        out = torch.empty_like(q)
        for row, n in enumerate(seq_lens.tolist()):
            k, v = (
                x[block_table[row].long()].flatten(0, 1)[:n].repeat_interleave(2, dim=1) for x in (k_cache, v_cache)
            )
            logits = torch.einsum("hd,thd->ht", q[row], k) * tiny.SPEC["model"]["sm_scale"]
            out[row] = torch.einsum("ht,thd->hd", (CAP * torch.tanh(logits / CAP)).softmax(-1), v)
        return out, None

    spec = {**tiny.SPEC, "model": {**tiny.SPEC["model"], "logits_soft_cap": CAP}}
    return SimpleNamespace(
        SPEC=spec, decode=decode, update_summaries=tiny.update_summaries, summarize_pages=tiny.summarize_pages
    )


def gemma2(cap):
    model = random_model(
        "Gemma2", num_hidden_layers=4, sliding_window=24, query_pre_attn_scalar=32, attn_logit_softcapping=cap
    )
    model.set_attn_implementation("eager")
    return model


def test_every_token_is_eagers(ids):
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    how = {"attention_mask": mask, "max_new_tokens": 25, **GREEDY}
    model = gemma2(CAP)
    wanted = model.generate(ids, **how)
    hf.attach(model, capped())
    assert torch.equal(model.generate(ids, **how), wanted)
    hf.detach(model)
    assert model.config._attn_implementation == "eager"
    assert not torch.equal(gemma2(None).generate(ids, **how), wanted)  # the cap is felt
