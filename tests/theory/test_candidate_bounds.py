"""(G) to (L) over adversarial logits, with tolerances from rounding alone.

A computed log softmax errs by at most 2 u (range + log n) + gamma(n + 2): two shifts of numbers no larger than the
range, and a sum of n. That is `log_error`; a weight's relative error is the same to first order. A log-sum-exp
adds u times its own size, so differences of two of them err by `mass_error`.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vashista_gen.theory import candidate_bounds
from vashista_gen.theory.rounding import UNIT_ROUNDOFF, gamma, log_softmax, log_sum_exp

from .families import Candidates, candidate_sets

PROFILE = settings(
    derandomize=True, database=None, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck)
)


def log_error(drawn: Candidates) -> float:
    count = len(drawn.logits)
    return 4 * UNIT_ROUNDOFF * (np.ptp(drawn.logits) + np.log(count)) + gamma(count + 8)


def mass_error(drawn: Candidates) -> float:
    return 2 * log_error(drawn) + 4 * UNIT_ROUNDOFF * (np.abs(drawn.logits).max() + np.log(len(drawn.logits)) + 1)


def mean_error(drawn: Candidates) -> float:
    """Of a softmax mean of the values: each weight's relative error, then n products."""
    return (log_error(drawn) + gamma(len(drawn.logits) + 4)) * float(np.linalg.norm(drawn.values, axis=1).max())


def direct_error(drawn: Candidates) -> np.ndarray:
    """o - o_C as two softmax means."""
    full = np.exp(log_softmax(drawn.logits)) @ drawn.values
    return full - np.exp(log_softmax(drawn.logits[drawn.candidates])) @ drawn.values[drawn.candidates]


@PROFILE
@given(candidate_sets())
def test_total_variation(drawn):
    mass = np.exp(candidate_bounds.log_dropped_mass(drawn.logits, drawn.candidates))
    distance = candidate_bounds.total_variation(drawn.logits, drawn.candidates)
    # 1/2 sum |p - p_C|: two weight vectors of sum 1, each off by log_error, and a sum of n
    assert abs(distance - mass) <= log_error(drawn) + gamma(len(drawn.logits) + 4) + mass * mass_error(drawn)


@PROFILE
@given(candidate_sets())
def test_output_error_identity(drawn):
    identity = candidate_bounds.output_error(drawn.logits, drawn.candidates, drawn.values)
    tolerance = 4 * mean_error(drawn) + mass_error(drawn) * np.linalg.norm(identity)
    assert np.linalg.norm(direct_error(drawn) - identity) <= tolerance


@PROFILE
@given(candidate_sets())
def test_output_error_bounds(drawn):
    mass = float(np.exp(candidate_bounds.log_dropped_mass(drawn.logits, drawn.candidates)))
    error = np.linalg.norm(candidate_bounds.output_error(drawn.logits, drawn.candidates, drawn.values))
    by_diameter = candidate_bounds.output_error_bound(mass, drawn.values)
    tolerance = 2 * mass * mean_error(drawn) + gamma(12) * error
    assert error <= by_diameter + tolerance
    # the computed diameter is rounded up, D^2 by at most 8 gamma(d + 6) max ||v - mean||^2 <= 8 gamma(d + 6) D^2
    grown = 1 + 4 * gamma(drawn.values.shape[1] + 12)
    for centre in (drawn.values.mean(axis=0), drawn.values[0], np.zeros(drawn.values.shape[1])):
        by_radius = candidate_bounds.output_error_bound_radius(mass, drawn.values, centre)
        assert error <= by_radius + tolerance
        assert by_diameter <= by_radius * grown


@PROFILE
@given(candidate_sets())
def test_dropped_mass_bound(drawn):
    count, kept = len(drawn.logits), int(drawn.candidates.sum())
    mass = candidate_bounds.log_dropped_mass(drawn.logits, drawn.candidates)
    gap = candidate_bounds.candidate_support_gap(drawn.logits, drawn.candidates)
    bound = candidate_bounds.log_dropped_mass_bound(gap, count, kept)
    tolerance = mass_error(drawn) if kept < count else 0.0
    assert mass <= bound + tolerance
    if drawn.family in ("two_level", "constant") and kept < count:
        assert mass >= bound - tolerance  # (J) is attained


@PROFILE
@given(candidate_sets())
def test_certificate(drawn):
    rest = ~drawn.candidates
    groups = np.unique(drawn.groups[rest])
    sizes = np.array([(drawn.groups[rest] == group).sum() for group in groups], dtype=float)
    tops = np.array([drawn.logits[rest & (drawn.groups == group)].max() for group in groups])
    mass = candidate_bounds.log_dropped_mass(drawn.logits, drawn.candidates)
    log_kept = log_sum_exp(drawn.logits[drawn.candidates])
    certificate, looser = (
        candidate_bounds.log_dropped_mass_certificate(log_kept, candidate_bounds.log_omitted_bound(sizes, tops + slack))
        for slack in (0.0, drawn.slack[groups])
    )
    tolerance = mass_error(drawn) if len(groups) else 0.0
    assert mass <= certificate + tolerance
    assert certificate <= looser + tolerance
    if drawn.family in ("two_level", "constant") and len(groups):
        assert mass >= certificate - tolerance  # every omitted token at its group's bound: (K) is attained


@PROFILE
@given(candidate_sets(), st.integers(0, 3))
def test_merge_is_exact(drawn, empty):
    sets = [drawn.groups == group for group in np.unique(drawn.groups)]
    outputs = [np.exp(log_softmax(drawn.logits[part])) @ drawn.values[part] for part in sets]
    outputs += [np.full(4, np.nan)] * empty
    lses = [log_sum_exp(drawn.logits[part]) for part in sets] + [-np.inf] * empty
    merged, lse = candidate_bounds.merge_by_lse(outputs, lses)
    whole = np.exp(log_softmax(drawn.logits)) @ drawn.values
    assert abs(lse - log_sum_exp(drawn.logits)) <= mass_error(drawn)
    largest = np.linalg.norm(drawn.values, axis=1).max()
    assert np.linalg.norm(merged - whole) <= 2 * mean_error(drawn) + 2 * mass_error(drawn) * largest


def test_two_tokens_by_hand():
    logits, candidates = np.array([np.log(3.0), 0.0]), np.array([True, False])
    assert np.exp(candidate_bounds.log_dropped_mass(logits, candidates)) == pytest.approx(0.25, rel=1e-15)
    assert np.exp(candidate_bounds.log_dropped_mass_bound(np.log(3.0), 2, 1)) == pytest.approx(0.25, rel=1e-15)
    assert np.exp(candidate_bounds.log_dropped_mass_certificate(np.log(3.0), 0.0)) == pytest.approx(0.25, rel=1e-15)
    assert candidate_bounds.output_error(logits, candidates, [[0.0], [8.0]]) == pytest.approx([2.0], rel=1e-15)


def test_huge_logits_stay_finite():
    logits, candidates = np.array([1e5, 1e5 - 2000, -1e5]), np.array([True, False, False])
    assert candidate_bounds.log_dropped_mass(logits, candidates) == pytest.approx(-2000)
    assert candidate_bounds.log_dropped_mass_certificate(1e5, 1e5 - 2000) == pytest.approx(-2000)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: candidate_bounds.log_dropped_mass([0.0, np.nan], [True, False]), "finite"),
        (lambda: candidate_bounds.log_dropped_mass([0.0, 1.0], [False, False]), "candidates is empty"),
        (lambda: candidate_bounds.log_dropped_mass([0.0, 1.0], [0, 1]), "boolean mask"),
        (lambda: candidate_bounds.total_variation([0.0, 1.0], np.array([True])), "boolean mask"),
        (lambda: candidate_bounds.output_error([0.0, 1.0], np.array([True, False]), [[1.0]]), "differ in length"),
        (lambda: candidate_bounds.log_dropped_mass_bound(0.0, 3, 4), "num_candidates"),
        (lambda: candidate_bounds.log_dropped_mass_bound(np.nan, 3, 2), "NaN"),
        (lambda: candidate_bounds.log_omitted_bound([1.0], [np.nan]), "NaN"),
        (lambda: candidate_bounds.log_omitted_bound([1.0], [0.0, 1.0]), r"\[P\]"),
        (lambda: candidate_bounds.log_dropped_mass_certificate(-np.inf, 0.0), "log_kept"),
        (lambda: candidate_bounds.merge_by_lse([[1.0]], [-np.inf]), "nothing to merge"),
        (lambda: candidate_bounds.merge_by_lse([[1.0]], [np.nan]), "finite or -inf"),
        (lambda: candidate_bounds.output_error_bound(-0.1, [[1.0]]), ">= 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
