"""Every summary's bound is at or above the largest logit it stands for, so (K) may use it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vashista_gen.theory import logit_bounds
from vashista_gen.theory.rounding import gamma


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from((1, 2, 16, 64)),
    st.sampled_from((1, 4, 33)),
    st.sampled_from((1e-6, 1.0, 1e6)),
    st.sampled_from(("gaussian", "constant", "aligned", "one_axis")),
)
def test_bounds_cover_every_key(seed, dim, count, scale, family):
    rng = np.random.default_rng(seed)
    query, keys = rng.normal(size=dim), scale * rng.normal(size=(count, dim))
    if family == "constant":
        keys[:] = keys[0]
    elif family == "aligned":
        keys = keys[:, :1] * query  # Cauchy-Schwarz is an equality
    elif family == "one_axis":
        keys *= np.arange(dim) == rng.integers(dim)
    largest = float((keys @ query).max())
    # every quantity below is a sum of at most 3 d products, none of its terms above ||q|| (||k|| + ||k - summary||)
    rounding = gamma(4 * dim + 16) * np.linalg.norm(query) * 4 * np.linalg.norm(keys, axis=1).max()

    box = logit_bounds.box_logit_bound(query, keys.min(axis=0), keys.max(axis=0))
    centre = keys.mean(axis=0)
    ball = logit_bounds.ball_logit_bound(query, centre, np.linalg.norm(keys - centre, axis=1).max())
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0][: max(1, dim // 2)]
    low_rank = keys @ basis.T  # [n, r]
    residual = np.linalg.norm(keys - low_rank @ basis, axis=1)
    low = logit_bounds.low_rank_logit_bound(query, basis, float((low_rank @ (basis @ query)).max()), residual.max())
    step = max(np.abs(keys).max(), 1e-300) / 7
    quantised = np.round(keys / step) * step
    sketch = logit_bounds.quantised_logit_bound(query, quantised, np.linalg.norm(keys - quantised, axis=1))
    assert min(box, ball, low) >= largest - rounding
    assert (sketch >= keys @ query - rounding).all()
    if count == 1:
        assert max(box, ball) <= largest + rounding  # one key: both summaries are the key itself


@pytest.mark.parametrize(
    "call",
    [
        lambda: logit_bounds.box_logit_bound([1.0], [2.0], [1.0]),
        lambda: logit_bounds.box_logit_bound([1.0], [0.0, 1.0], [1.0, 2.0]),
        lambda: logit_bounds.ball_logit_bound([1.0], [0.0], -1.0),
        lambda: logit_bounds.ball_logit_bound([1.0], [0.0, 1.0], 1.0),
        lambda: logit_bounds.low_rank_logit_bound([1.0], [[1.0]], 0.0, -1.0),
        lambda: logit_bounds.quantised_logit_bound([np.nan], [[1.0]], [0.0]),
        lambda: logit_bounds.quantised_logit_bound([1.0], [[1.0]], [-1.0]),
    ],
)
def test_refuses(call):
    with pytest.raises(ValueError):
        call()
