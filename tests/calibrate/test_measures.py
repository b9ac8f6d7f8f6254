"""Centres, balances, budgets and margins against what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vashista_gen.calibrate import conformal
from vashista_gen.calibrate.budgets import LEAST, STEP, budgets, percentile
from vashista_gen.calibrate.keys import KeyStatistics
from vashista_gen.calibrate.margin import with_margin
from vashista_gen.calibrate.omission import Omission, scores
from vashista_gen.diagnose.layer import Layer
from vashista_gen.errors import UsageError

from .sketch import estimator, quantised
from .test_file import made


def layer(seed: int, tokens: int = 256, spread: torch.Tensor | None = None) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, m, 32, generator=generator) for n, m in ((4, 8), (2, tokens), (2, tokens)))
    spread = torch.ones(32) if spread is None else spread
    return Layer(0, q, k * spread + 3 * spread, v, torch.arange(tokens - 8, tokens), 32**-0.5)


def test_center_is_the_mean_over_all_documents():
    found, parts = KeyStatistics(), [layer(0), layer(1, tokens=64)]
    for part in parts:
        found.add(part)
    expected = torch.cat([part.k for part in parts], dim=1).double().mean(1)
    torch.testing.assert_close(found.center(), expected, rtol=1e-12, atol=1e-12)
    expected = torch.cat([part.v for part in parts], dim=1).double().mean(1)
    torch.testing.assert_close(found.value_center(), expected, rtol=1e-12, atol=1e-12)


def test_balance_makes_queries_and_keys_alike_and_moves_no_logit():
    spread = torch.logspace(-2, 2, 16).repeat(2)  # both channels of a pair alike
    one, found = layer(2, tokens=4096, spread=spread), KeyStatistics()
    found.add(one)
    b = found.balance()
    assert b.shape == (2, 16)
    torch.testing.assert_close(b.log().mean(-1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    both = b.repeat(1, 2)[:, None]
    k = (one.k.double() - found.center()[:, None]) * both
    q = one.q.double().view(2, -1, 32) / both
    for head in range(2):
        ratio = (k[head].square().mean(0) / q[head].square().mean(0)).view(2, 16).mean(0)
        # the same for each pair, up to the noise of 16 queries a channel
        assert float(ratio.max() / ratio.min()) < 4
        raw = (one.k[head].square().mean(0) / one.q.view(2, -1, 32)[head].square().mean(0)).view(2, 16).mean(0)
        assert float(raw.max() / raw.min()) > 1e6
    logits = torch.einsum("hqd,htd->hqt", q, (one.k * both))
    torch.testing.assert_close(logits, torch.einsum("hqd,htd->hqt", one.q.double().view(2, -1, 32), one.k.double()))


def test_balance_lowers_the_error_of_a_code():
    spread = torch.logspace(-1, 1, 16).repeat(2)
    one, found = layer(3, tokens=1024, spread=spread), KeyStatistics()
    one = Layer(0, one.q / spread, one.k, one.v, one.positions, one.sm_scale)
    found.add(one)
    both = found.balance().repeat(1, 2).float()[:, None]
    q = one.q.view(2, -1, 32)
    truth = torch.einsum("hqd,htd->hqt", q, one.k)
    plain, balanced = (
        (torch.einsum("hqd,htd->hqt", q / b, quantised(one.k * b)) - truth).square().mean() for b in (1, both)
    )
    assert balanced < plain / 2


def test_balance_of_channels_that_are_always_zero_is_finite():
    one, found = layer(4), KeyStatistics()
    k, q = one.k.clone(), one.q.clone()
    k[..., [3, 19]], q[..., [5, 21]] = 0, 0
    found.add(Layer(0, q, k, one.v, one.positions, 1.0))
    assert bool((found.balance() > 0).all() and found.balance().isfinite().all())


@given(
    seed=st.integers(0, 1000),
    average=st.integers(LEAST, 4096),
    heads=st.integers(1, 12),
    over=st.sampled_from(["mean", "p90"]),
)
def test_budgets_have_the_mean_that_was_asked_for(seed, average, heads, over):
    needs = np.random.default_rng(seed).lognormal(5, 2, (5, heads, 20)).clip(1, 8192)
    found = budgets(needs, over, average, 8192)
    assert found.shape == (5, heads)
    assert (found % STEP == 0).all()
    assert found.min() >= LEAST
    assert found.max() <= 8192
    assert abs(found.mean() - average) <= STEP / 2
    wanted = needs.mean(-1) if over == "mean" else np.quantile(needs, 0.9, axis=-1)
    # a head that needs more has no less
    assert (np.diff(found.ravel()[np.argsort(wanted, axis=None)]) >= 0).all()


def test_budgets_without_an_average_are_the_needs():
    found = budgets(np.array([[[100.0, 300.0], [5000.0, 9000.0], [1.0, 1.0]]]), "mean", None, 4100)
    assert found.tolist() == [[192, 4096, LEAST]]  # 200 lies halfway between 192 and 208: to the even step
    with pytest.raises(ValueError, match="an average of 9 tokens"):
        budgets(np.ones((1, 1, 1)), "mean", 9, 4096)
    for wrong in ("p0", "p101", "median", "p", "p9.5"):
        with pytest.raises(ValueError, match="neither mean nor a percentile"):
            percentile(wrong)


@given(n=st.integers(1, 3000), level=st.sampled_from([0.5, 0.9, 0.99, 0.999]), seed=st.integers(0, 99))
def test_the_quantile_is_the_least_that_covers(n, level, seed):
    values = np.random.default_rng(seed).normal(size=n)
    if n < conformal.least_scores(level):
        with pytest.raises(ValueError, match="cannot give"):
            conformal.upper_quantile(values, level)
        return
    found = conformal.upper_quantile(values, level)
    below = int((values <= found).sum())
    # among n + 1 exchangeable scores the new one is at most `found` with probability below / (n + 1)
    assert below >= level * (n + 1) - 1e-6
    assert below - 1 < level * (n + 1)


def test_least_scores():
    assert [conformal.least_scores(level) for level in (0.5, 0.9, 0.999)] == [1, 9, 999]


def test_scores_leave_out_what_float32_cannot_tell():
    total = torch.zeros(3, dtype=torch.float64)
    true = torch.tensor([1e-2, 1e-6, 0.0], dtype=torch.float64).log()
    assert scores(Omission(total, true, true - 0.5)).tolist() == [0.5]


def sketch_scores(seeds):
    return {(i, n): scores(estimator(64)(layer(100 * s + n))).numpy() for i, s in enumerate(seeds) for n in (0, 1)}


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_sketch_s_margin_holds_on_documents_it_has_not_seen(per_layer):
    own, other = sketch_scores(range(40)), sketch_scores(range(40, 80))
    found = with_margin(made(margin=False), own, other, [f"d{i}" for i in range(40)], 0.99, per_layer)
    assert found.margin.scores == sum(map(len, own.values())) == 40 * 2 * 32
    assert 0 < found.margin.nats < 0.5  # 4-bit codes of normal keys: an error of a few hundredths in the log of a sum
    # documents are independent here: 2560 scores that miss with probability .01 miss more than 52 times once in 1e5
    assert found.margin.held_out_coverage >= 1 - 52 / 2560
    assert set(found.margin.held_out_by_text) == {f"d{i}" for i in range(40)}
    assert (len({one.margin for one in found.layers}) > 1) == per_layer
    assert per_layer or found.margin_of(0) == found.margin.nats
    joined = np.concatenate([x - found.margin_of(n) for (_, n), x in other.items()])
    assert found.margin.held_out_coverage == (joined <= 0).mean()


def test_an_estimate_that_is_too_low_gets_the_margin_it_needs():
    own = {key: x + 2 for key, x in sketch_scores(range(10)).items()}
    found = with_margin(made(margin=False), own, own, [str(i) for i in range(10)], 0.99, False)
    assert 2 < found.margin.nats < 2.5


def test_too_few_scores_are_refused():
    own = sketch_scores(range(10))
    with pytest.raises(UsageError, match="640 scores cannot give a margin of 99.9%: 999 can"):
        with_margin(made(margin=False), own, own, [], 0.999, False)
    with pytest.raises(UsageError, match="320 scores in a layer"):
        with_margin(made(margin=False), own, own, [], 0.999, True)
