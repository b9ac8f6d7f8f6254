"""The torch side of the contestants, against attention written out plainly in float64."""

import pytest
import torch

from vashista_gen.eval.attend import ORACLE_RECENT, Formula, Oracle, Window
from vashista_gen.eval.pages import SharedPages
from vashista_gen.spec import loads

TEXT = """
model: {{num_q_heads: 6, num_kv_heads: 2, head_dim: 16, dtype: float32}}
name: small
cache: {{page_size: 16, layout: {layout}}}
routing: {{pages: 4}}
targets: [c]
"""
ROWS, PREFIX, TAIL, HEADS, KV_HEADS, D = 3, 96, 21, 6, 2, 16
FORMULA = Formula(0.4, cap=5.0, epsilon=0.7)
# float32 sums of 117 terms of size 1 in another order
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def tokens():
    """k, v of the prefix [96, 2, 16], of each row's own tokens [3, 21, 2, 16], and q [3, 6, 16]."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((PREFIX, KV_HEADS, D),) * 2 + ((ROWS, TAIL, KV_HEADS, D),) * 2 + ((ROWS, HEADS, D),)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def plain(q, k, v, kept=None):
    """softmax(cap tanh(scale <q, k> / cap) / epsilon) v of one row in float64; kept: bool [kv heads, tokens]."""
    q, k, v = (x.double() for x in (q, k, v))
    out = torch.zeros(HEADS, D, dtype=torch.float64)
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        logits = FORMULA.cap * torch.tanh(FORMULA.scale * (k[:, kv] @ q[head]) / FORMULA.cap) / FORMULA.epsilon
        if kept is not None:
            logits = logits.masked_fill(~kept[kv], -torch.inf)
        out[head] = logits.softmax(0) @ v[:, kv]
    return out


def rows_of(tokens):
    """(k, v) of each row in order, [tokens, kv heads, d]."""
    k, v, k_own, v_own, _ = tokens
    return [(torch.cat([k, k_own[r]]), torch.cat([v, v_own[r]])) for r in range(ROWS)]


def filled(layout, tokens):
    k, v, k_own, v_own, _ = tokens
    pages = SharedPages(loads(TEXT.format(layout=layout)), k, v, ROWS, TAIL)
    for i in range(TAIL):
        pages.append(k_own[:, i], v_own[:, i])
    return pages


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages_hold_what_the_rows_hold(layout, tokens):
    pages = filled(layout, tokens)
    assert pages.seq_lens.tolist() == [PREFIX + TAIL] * ROWS
    for row, held in enumerate(rows_of(tokens)):
        for cache, given in zip((pages.k_cache, pages.v_cache), held, strict=True):
            in_order = cache[pages.block_table[row].long()]
            in_order = in_order if layout == "NHD" else in_order.transpose(1, 2)
            assert torch.equal(in_order.flatten(0, 1)[: PREFIX + TAIL], given)


def test_pages_say_when_they_are_full(tokens):
    pages = filled("NHD", tokens)
    with pytest.raises(ValueError, match="no room"):
        for _ in range(2 * 16):
            pages.append(*(torch.zeros(ROWS, KV_HEADS, D) for _ in range(2)))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_an_oracle_that_may_keep_all_is_dense(layout, tokens):
    oracle = Oracle(PREFIX + TAIL, FORMULA, filled(layout, tokens), slice(1, 3))
    out = oracle.attend(tokens[4][1:3])
    for got, row in zip(out, (1, 2), strict=True):
        torch.testing.assert_close(got.double(), plain(tokens[4][row], *rows_of(tokens)[row]), **NEAR)


def test_the_oracle_keeps_the_tokens_of_the_largest_weight(tokens):
    budget, q = 60, tokens[4]
    out = Oracle(budget, FORMULA, filled("NHD", tokens), slice(0, ROWS)).attend(q)
    for row, (k, v) in enumerate(rows_of(tokens)):
        kept = torch.zeros(KV_HEADS, len(k), dtype=torch.bool)
        for kv in range(KV_HEADS):
            heads = q[row].double().view(KV_HEADS, -1, D)[kv]
            logits = FORMULA.cap * torch.tanh(FORMULA.scale * heads @ k[:, kv].double().T / FORMULA.cap)
            weight = (logits / FORMULA.epsilon).softmax(-1).sum(0)
            always = [*range(16), *range(len(k) - ORACLE_RECENT, len(k))]
            others = sorted(set(range(len(k))) - set(always), key=lambda j, w=weight: -float(w[j]))
            kept[kv, always + others[: budget - len(always)]] = True
        torch.testing.assert_close(out[row].double(), plain(q[row], k, v, kept), **NEAR)


@pytest.mark.parametrize("window", [5, 30, PREFIX, 200])
def test_a_window_is_dense_attention_of_its_last_tokens(window, tokens):
    k, v, k_own, v_own, q = tokens
    layer = Window(window, k[-(window - 1) :], v[-(window - 1) :], ROWS, TAIL)  # as transformers keeps them
    for i in range(TAIL):
        out = layer.attend(q, k_own[:, i], v_own[:, i], FORMULA)
        for row, (keys, values) in enumerate(rows_of(tokens)):
            end = PREFIX + i + 1
            last = slice(max(0, end - window), end)
            torch.testing.assert_close(out[row].double(), plain(q[row], keys[last], values[last]), **NEAR)
