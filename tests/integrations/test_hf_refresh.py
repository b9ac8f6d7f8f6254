"""A package that chooses pages in one of four steps: when a layer of the cache chooses, and what it reads between."""

import pytest
import torch
from rendered import import_package

from vashista_gen.integrations import hf

from .conftest import GREEDY, VOCABULARY, random_model

SPEC = """name: hf_refresh
model: {num_q_heads: 4, num_kv_heads: 2, head_dim: 32}
cache: {page_size: 16}
routing: {pages: 4, refresh: 4}
targets: [c]
"""
ROWS = torch.tensor([1, 1])


@pytest.fixture(scope="module")
def attached(tmp_path_factory):
    """(a model, its attachment to the package)."""
    model = random_model("Llama", num_hidden_layers=2)
    return model, hf.attach(model, import_package(tmp_path_factory.mktemp("packages"), SPEC))


def tokens(count: int, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_one_of_four_steps_chooses(attached):
    model, attachment = attached
    cache = attachment.new_cache()
    model(tokens(90), past_key_values=cache)
    routed = []
    for i in range(9):
        model(tokens(1, seed=i), past_key_values=cache)
        routed.append([layer.routing.seq_lens.tolist() for layer in cache.paged])
    assert routed == [[[n, n]] * 2 for n in [91] * 4 + [95] * 4 + [99]]


CHANGES = {
    "crop": (lambda cache: cache.crop(-2), 2),
    "reorder": (lambda cache: cache.reorder_cache(ROWS), 2),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1])), 1),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), 4),
    "reset": (lambda cache: cache.reset(), 2),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_other_rows_choose_at_once(attached, change):
    model, attachment = attached
    cache, (apply, rows) = attachment.new_cache(), CHANGES[change]
    model(tokens(90), past_key_values=cache)
    for i in range(2):
        model(tokens(1, seed=i), past_key_values=cache)
    apply(cache)
    if change == "reset":
        model(tokens(90), past_key_values=cache)
    model(tokens(1, rows, seed=5), past_key_values=cache)
    for layer in cache.paged:
        assert layer.routing.seq_lens.tolist() == list(cache.lengths) and len(cache.lengths) == rows


@torch.no_grad()
def test_several_tokens_at_once_choose_anew(attached):
    model, attachment = attached
    cache = attachment.new_cache()
    for count in (90, 1, 40, 1):
        model(tokens(count), past_key_values=cache)
    assert [layer.routing.seq_lens.tolist() for layer in cache.paged] == [[132, 132]] * 2


@torch.no_grad()
def test_what_a_step_reads_is_the_renewed_list(attached, monkeypatch):
    """Of steps that keep their pages too: `decode` of the list that `renew_pages` gives."""
    model, attachment = attached
    package, cache = attachment.settings.package, attachment.new_cache()
    decode, kept = package.decode, []

    def watched(*args, routing, step, **more):
        if step % 4 == 0:
            return decode(*args, routing=routing, step=step, **more)
        renewed = package.renew_pages(routing, *args[3:5])
        found, wanted = decode(*args, routing=routing, step=step, **more), decode(*args, selected_pages=renewed, **more)
        kept.append(all(map(torch.equal, found, wanted)) and not torch.equal(renewed, routing.pages))
        return found

    monkeypatch.setattr(package, "decode", watched)
    model(tokens(94), past_key_values=cache)
    for i in range(4):  # the third begins a page
        model(tokens(1, seed=i), past_key_values=cache)
    assert kept == [False] * 2 + [True] * 4


@torch.no_grad()
def test_within_the_budget_every_token_is_sdpas(attached):
    model, attachment = attached
    plain = random_model("Llama", num_hidden_layers=2)
    ids = tokens(20)
    wanted, ours = (m.generate(ids, max_new_tokens=24, **GREEDY) for m in (plain, model))
    assert torch.equal(ours, wanted)
