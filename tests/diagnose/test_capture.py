"""What a capture shows is what the model computes with."""

import pytest
import torch

from vashista_gen.diagnose.capture import ATTENTION, Capture
from vashista_gen.diagnose.layer import context_of, query_positions
from vashista_gen.errors import UsageError


@pytest.fixture
def ids():
    return torch.randint(0, 97, (1, 200), generator=torch.Generator().manual_seed(1))


def test_captured_attention_is_that_of_the_plain_model(model, ids):
    seen, outputs = [], []
    hooks = [
        one.self_attn.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0][0]))
        for one in model.model.layers
    ]
    try:
        with torch.inference_mode():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    plain = list(outputs)
    positions = [0, 5, 63, 199]
    Capture(model, seen.append).run(ids, positions)
    assert [one.number for one in seen] == [0, 1, 2]
    for one, expected in zip(seen, plain, strict=True):
        for head in range(2):
            out = torch.softmax(one.log_weights(head), dim=-1) @ one.v[head]  # [group, queries, d]
            heads = expected.view(200, 4, 32)[positions][:, 2 * head : 2 * head + 2].transpose(0, 1)
            # float32, sums of 200 terms of size 1 in another order
            torch.testing.assert_close(out, heads, rtol=1e-4, atol=1e-4)


def test_the_model_is_as_before_afterwards(model, ids):
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError):
        Capture(model, lambda _: 1 / 0).run(ids, [3])
    assert model.config._attn_implementation == before != ATTENTION


def test_a_document_longer_than_the_model_is_refused(model):
    with pytest.raises(UsageError, match="600 tokens for a model that reads 512"):
        Capture(model, lambda _: None).run(torch.zeros(1, 600, dtype=torch.long), [3])


def test_a_sliding_window_is_noted_and_not_visited(model):
    seen = []
    capture = Capture(model, seen.append)
    capture.positions = torch.tensor([1])
    q, k = torch.zeros(1, 4, 20, 32), torch.zeros(1, 2, 20, 32)
    capture.see(0, q, k, k, 1.0, 8)
    capture.see(1, q, k, k, 1.0, 20)  # as wide as the document: global
    assert capture.windowed == {0}
    assert [one.number for one in seen] == [1]


def test_soft_capped_attention_is_refused(model):
    from vashista_gen.diagnose.capture import attention

    q, k = torch.zeros(1, 4, 20, 32), torch.zeros(1, 2, 20, 32)
    with pytest.raises(UsageError, match="softcap"):
        attention(model.model.layers[0].self_attn, q, k, k, None, capture=Capture(model, print), softcap=30.0)


@pytest.mark.parametrize(
    ("contexts", "count", "step"), [([2048, 8192], 16, 16), ([100], 3, 16), ([64], 50, 16), ([1000], 8, 128)]
)
def test_queries_are_at_page_ends_in_the_last_quarter(contexts, count, step):
    positions = query_positions(contexts, count, step)
    assert positions == sorted(set(positions))
    assert all((p + 1) % step == 0 for p in positions)
    for p in positions:
        context = context_of(p, contexts)
        assert context * 3 // 4 - step <= p < context
    if count == 16:
        assert len(positions) == 32
        assert positions[15] == 2047
        assert positions[-1] == 8191


def test_a_context_of_few_pages_is_refused():
    with pytest.raises(UsageError, match="a context of 63 tokens"):
        query_positions([63, 200], 4, 16)
