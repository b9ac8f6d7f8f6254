"""What cannot be served is refused with the next step, and what a package does not take is not handed to it."""

import copy
from types import SimpleNamespace

import pytest
import torch

from vashista_gen.errors import UsageError
from vashista_gen.generated import smollm2_135m, tiny
from vashista_gen.integrations import hf

from .conftest import GREEDY, random_model


def refused(message, step):
    return pytest.raises(UsageError, match=f"(?s){message}.*next: .*{step}")


@pytest.fixture
def attached(llama):
    hf.attach(llama, tiny)
    return llama


def test_the_package_of_the_models_shape_is_found(llama, monkeypatch):
    others = [smollm2_135m, tiny]
    monkeypatch.setattr("vashista_gen.integrations.hf.choose.generated", lambda: others)
    assert hf.attach(llama).settings.package is tiny
    hf.detach(llama)
    others.append(SimpleNamespace(SPEC={**tiny.SPEC, "name": "tiny_too"}))
    with refused("2 generated packages fit LlamaForCausalLM: tiny, tiny_too", r"hf\.attach\(model, package\)"):
        hf.attach(llama)


def test_without_one_it_says_how_to_write_its_spec(tmp_path):
    model = random_model("Llama", num_hidden_layers=1, head_dim=48)
    step = "vashista-gen new --from-config {}, compile it with vashista-gen generate"
    with refused("fits LlamaForCausalLM: 4 query and 2 KV heads of 48", step.format("config.json")):
        hf.attach(model)
    model.config._name_or_path = str(tmp_path)
    with refused("and the package tiny differ: head_dim 48 against 32; sm_scale", step.format(tmp_path)):
        hf.attach(model, tiny)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 4}, "num_kv_heads 4 against 2"),
        ({"num_attention_heads": 8}, "num_q_heads 8 against 4"),
    ],
)
def test_heads_that_differ(change, message):
    with refused(message, "vashista-gen new"):
        hf.attach(random_model("Llama", num_hidden_layers=1, **change), tiny)


def test_scales_and_caps_that_differ():
    with refused("sm_scale 0.125 against 0.1767", "vashista-gen new"):
        hf.attach(random_model("Gemma3Text", num_hidden_layers=6, query_pre_attn_scalar=64), tiny)
    with refused("logits_soft_cap 50.0 against None", "vashista-gen new"):
        hf.attach(random_model("Gemma2", num_hidden_layers=2, query_pre_attn_scalar=32), tiny)


def test_models_with_nothing_to_route():
    with refused("no layer of MistralForCausalLM attends to its whole context", "leave it"):
        hf.attach(random_model("Mistral", num_hidden_layers=1, sliding_window=16), tiny)
    with refused("encoder-decoder", "only decoders"):
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(vocab_size=97, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        hf.attach(T5ForConditionalGeneration(config), tiny)


def test_twice_and_never(llama):
    with refused("no package is attached", r"hf\.attach\(model\)"):
        hf.detach(llama)
    hf.attach(llama, tiny)
    with refused("attached to this LlamaForCausalLM already", r"hf\.detach\(model\)"):
        hf.attach(llama, tiny)


def test_layers_that_are_not_there(llama):
    with refused(r"dense_layers \[3\] of a model of 3 layers", "from 0"):
        hf.attach(llama, tiny, dense_layers=[0, 3])


def test_the_name_alone_is_not_enough(llama, ids):
    llama.set_attn_implementation(hf.ATTENTION)
    with refused("to which no package is attached", r"hf\.attach\(model\)"):
        llama(ids)


def test_caches_of_transformers(attached, ids):
    from transformers import DynamicCache

    with refused("a DynamicCache cannot hold pages", r"attached\.new_cache\(\)"):
        attached.generate(ids, past_key_values=DynamicCache(), max_new_tokens=2, **GREEDY)
    for kind in ("static", "offloaded"):
        with refused("a (Static|Dynamic)Cache cannot hold pages", "leave out past_key_values and cache_implementation"):
            attached.generate(ids, cache_implementation=kind, max_new_tokens=2, **GREEDY)


def test_a_cache_of_another_attachment(attached, ids):
    other = hf.attach(copy.deepcopy(random_model("Llama", num_hidden_layers=3)), tiny)
    with refused("made for another attachment", "new_cache"):
        attached(ids, past_key_values=other.new_cache())


@torch.no_grad()
def test_masks(attached, ids):
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    cache = attached(ids, attention_mask=mask, use_cache=True).past_key_values
    token, longer = ids[:, :1], torch.nn.functional.pad(mask, (0, 1), value=1)
    before = cache.lengths
    with refused("no attention_mask for a cache that holds padded rows", "give the mask"):
        attached(token, past_key_values=cache)
    with refused(r"mask \[3, 30\] for 3 rows of 30 tokens seen and 1 new", r"\[3, 31\]"):
        attached(token, past_key_values=cache, attention_mask=mask)
    with refused("hides tokens that are in the pages, or shows padding", "prefill anew"):
        attached(token, past_key_values=cache, attention_mask=torch.ones_like(longer))
    with refused(r"mask \[3, 1, 1, 31\]", r"hf\.detach"):
        attached(token, past_key_values=cache, attention_mask=longer[:, None, None].bool())
    with refused("2 rows on cpu for a cache of 3", "select rows"):
        attached(token[:2], past_key_values=cache, attention_mask=longer[:2])
    assert cache.lengths == before
    attached(token, past_key_values=cache, attention_mask=longer)  # and after all that it goes on
    assert cache.lengths == tuple(n + 1 for n in before)


def test_gradients_and_weights(attached, ids):
    cache = attached(ids, use_cache=True).past_key_values  # a prefill keeps its gradient
    with refused("no gradient", r"torch\.no_grad\(\)"):
        attached(ids[:, :1], past_key_values=cache)
    cache.reset()
    attached(ids, past_key_values=cache)
    with torch.no_grad(), refused("gives no attention weights", "output_attentions"):
        attached(ids[:, :1], past_key_values=cache, output_attentions=True)


def test_training_and_calls_without_a_cache_are_as_ever(llama, ids):
    wanted = llama(ids, labels=ids, use_cache=False).loss
    hf.attach(llama, tiny)
    loss = llama(ids, labels=ids, use_cache=False).loss
    assert torch.equal(loss, wanted)
    llama.train()
    assert torch.equal(llama(ids, labels=ids).loss, wanted)
    loss.backward()
    assert llama.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_pass_that_broke_off(attached, ids):
    cache = attached(ids, use_cache=True).past_key_values
    broken = attached.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attached(ids[:, :1], past_key_values=cache)
    broken.remove()
    with refused("layer 1 has seen 30 tokens, others 32", "prefill again"):
        attached(ids[:, :1], past_key_values=cache)
    cache.reset()
    assert attached(ids, past_key_values=cache).past_key_values.lengths == (30, 30, 30)


@torch.no_grad()
def test_crops_that_do_not_fit(attached, ids):
    cache = attached(ids, use_cache=True).past_key_values
    for count in (1, -31):
        with refused(rf"crop\({count}\) of a cache of 30", "0 or less"):
            cache.crop(count)
    with refused("share one page table", "of the cache"):
        cache.layers[0].crop(-1)


def certifying():
    """tiny as a package whose spec has a certificate, and whose functions take budgets and a calibration."""
    calls = []

    def decode(q, k, v, table, lens, summaries, *, return_certificate=False, budgets=None, **kwargs):
        out, lse = tiny.decode(q, k, v, table, lens, summaries, **kwargs)
        calls.append(("decode", budgets))
        assert kwargs["max_seq_len"] == int(lens.max())
        return (out, lse, SimpleNamespace(leakage=lse)) if return_certificate else (out, lse)

    def summarize_pages(k, table, lens, *, v_cache=None, calibration=None):
        calls.append(("summarize", calibration))
        return tiny.summarize_pages(k, table, lens)

    package = SimpleNamespace(
        SPEC={**tiny.SPEC, "certificate": {"kind": "estimate"}}, decode=decode, decode_dense=tiny.decode_dense,
        update_summaries=tiny.update_summaries, summarize_pages=summarize_pages,
    )  # fmt: skip
    return package, calls


@pytest.mark.parametrize("whose", ["the caller's", "the package's"])
@torch.no_grad()
def test_certificates_budgets_and_calibration_reach_the_package(llama, ids, whose):
    package, calls = certifying()
    per_layer = [SimpleNamespace(budgets=[10 + i, 20 + i]) for i in range(3)]
    calibration = None
    if whose == "the caller's":
        calibration = SimpleNamespace(layer=per_layer.__getitem__)
    else:
        package.calibration = lambda layer, device: per_layer[layer]
    hf.attach(llama, package, calibration=calibration, dense_layers=[1])
    cache = llama(ids, use_cache=True).past_key_values
    assert not cache.certificates
    llama(ids[:, :1], past_key_values=cache)
    assert set(cache.certificates) == {0, 2}
    assert cache.certificates[2].leakage.shape == (3, 4)
    budgets = [call[1] for call in calls if call[0] == "decode"]
    assert [b.tolist() for b in budgets] == [[[10, 20]] * 3, [[12, 22]] * 3]
    assert budgets[0].dtype == torch.int32
    # of each layer an empty cache, and again with the first tokens
    assert [call[1] for call in calls if call[0] == "summarize"] == [one for one in per_layer for _ in "ab"]


def test_a_calibration_that_does_not_fit(llama):
    with refused("the package tiny has no use for a calibration", "leave it out"):
        routing = {**tiny.SPEC["routing"], "summary": "mean"}  # without centres
        plain = SimpleNamespace(**{**vars(tiny), "SPEC": {**tiny.SPEC, "routing": routing}})
        hf.attach(llama, plain, calibration=SimpleNamespace(layer=lambda i: object()))
    package, _ = certifying()
    with refused("no layer 2: list index out of range", "vashista-gen calibrate"):
        hf.attach(llama, package, calibration=SimpleNamespace(layer=[1, 2].__getitem__))
    assert llama.config._attn_implementation == "sdpa"
