"""The solvers against each other, against what the instance was built to have, and against decimal arithmetic."""

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vashista_gen.theory import (
    certify,
    diameter,
    entropic_projection,
    face_conditioning,
    frank_wolfe,
    project_onto_hull,
)
from vashista_gen.theory.rounding import UNIT_ROUNDOFF, entropy, gamma

from .families import INDEPENDENT, instances

PROFILE = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck)
)


@PROFILE
@given(instances())
def test_wolfe_against_frank_wolfe(instance):
    wolfe = project_onto_hull(instance.keys, instance.query)
    pairwise = frank_wolfe(instance.keys, instance.query, max_steps=400)
    # both suboptimalities are certified from above, and both points lie within their errors of the same y*
    distance = np.linalg.norm(wolfe.point - pairwise.point)
    assert distance <= wolfe.point_error + pairwise.point_error
    values = [0.5 * np.linalg.norm(p.point - instance.query) ** 2 for p in (wolfe, pairwise)]
    rounding = sum(gamma(70) * v + np.sqrt(2 * v) * 4 * UNIT_ROUNDOFF * np.linalg.norm(instance.query) for v in values)
    assert values[0] <= values[1] + wolfe.suboptimality + rounding
    assert values[1] <= values[0] + pairwise.suboptimality + rounding
    if not wolfe.degenerate and not pairwise.degenerate:
        assert (wolfe.active_face == pairwise.active_face).all()
        error = wolfe.weights_error + pairwise.weights_error
        assert np.linalg.norm(wolfe.weights - pairwise.weights) <= error
        assert abs(wolfe.support_gap - pairwise.support_gap) <= wolfe.multiplier_error + pairwise.multiplier_error or (
            wolfe.support_gap == pairwise.support_gap == np.inf
        )


@PROFILE
@given(instances(INDEPENDENT + ("simplex",)))
def test_wolfe_finds_what_was_built(instance):
    hard = project_onto_hull(instance.keys, instance.query)
    built = certify(instance.keys, instance.query, instance.weights / instance.weights.sum())
    assert np.linalg.norm(hard.point - built.point) <= hard.point_error + built.point_error
    assert hard.suboptimality <= hard.duality_gap
    if hard.degenerate:
        return  # said, not asserted
    assert (hard.active_face == np.flatnonzero(instance.weights)).all()
    # both weight vectors lie on one independent face: kappa times the distance of their points
    kappa = hard.kappa * (1 + face_conditioning(instance.keys[hard.active_face]).relative_error)
    error = kappa * (hard.point_error + built.point_error) + hard.weights_error
    assert np.linalg.norm(hard.weights - instance.weights) <= error
    if instance.support_gap is not None:
        # building rounds each key and q by a few u of their size, and mu = <k_j - k_i, y* - q> with it
        size = np.linalg.norm(instance.keys, axis=1).max() + np.linalg.norm(instance.query)
        moved = gamma(4 * len(instance.query) + 16) * size
        reach = diameter(instance.keys) + np.linalg.norm(hard.point - instance.query)
        spare = hard.multiplier_error + built.multiplier_error + 4 * moved * reach
        assert abs(hard.support_gap - instance.support_gap) <= spare


def test_most_built_instances_are_resolved():
    """The degenerate flag is no way out: an independent face with a clear gap is nearly always told as such."""
    flags = []

    @PROFILE
    @given(instances(INDEPENDENT + ("simplex",)))
    def record(instance):
        flags.append(project_onto_hull(instance.keys, instance.query).degenerate)

    record()
    assert np.mean(flags) < 0.1


def _exact_on_a_line(places, direction, query, epsilon):
    """(t, log weights) for keys t_j v in 60-digit decimals: bisection on t = sum_j t_j a_j(t), y_eps = t v.

    <k_j, y - q> = t_j (||v||^2 t - <v, q>), so the problem has one unknown whatever the dimension.
    """
    getcontext().prec = 60
    places, direction, query = ([Decimal(float(v)) for v in values] for values in (places, direction, query))
    square = sum(v * v for v in direction)
    pull, epsilon = sum(v * q for v, q in zip(direction, query, strict=True)), Decimal(float(epsilon))

    def log_weights(t):
        logits = [-place * (square * t - pull) / epsilon for place in places]
        top = max(logits)
        total = sum((logit - top).exp() for logit in logits).ln()
        return [logit - top - total for logit in logits]

    low, high = min(places), max(places)
    for _ in range(170):
        middle = (low + high) / 2
        mean = sum(place * log.exp() for place, log in zip(places, log_weights(middle), strict=True))
        low, high = (middle, high) if mean > middle else (low, middle)
    return low, log_weights(low)


@pytest.mark.parametrize("log_epsilon, resolved", [(-8, 1.0), (-6, 1e-3), (-3, 1e-7), (-1, 1e-10), (1, 1e-12)])
@pytest.mark.parametrize("along, across", [(0.3, 0.0), (2.5, 0.0), (-40.0, 0.0), (0.3, 0.7), (0.5626, 1e3 / 7)])
def test_entropic_against_decimals(along, across, log_epsilon, resolved):
    """Queries on the line, beyond it and beside it, the last one far beside two keys sqrt(eps) apart."""
    places = np.array([-1.0, -0.1875, 0.5625, 0.5625 + 2.0**-13, 1.0])  # so short that t_j v is exact
    direction = np.array([3.0, 1.0])
    query = along * direction + across * np.array([-1.0, 3.0])
    solution = entropic_projection(places[:, None] * direction, query, 10.0 ** (log_epsilon + 1))
    exact, logs = _exact_on_a_line(places, direction, query, 10.0 ** (log_epsilon + 1))
    off = sum((Decimal(float(have)) - exact * int(v)) ** 2 for have, v in zip(solution.point, direction, strict=True)).sqrt()
    assert off <= Decimal(solution.point_error)
    errors = [abs(Decimal(float(have)) - want) for have, want in zip(solution.log_weights, logs, strict=True)]
    # the mass of the returned logs may be off 1 by a few roundings, which the certificate's exact a is not
    assert max(errors) <= Decimal(solution.log_weight_error + gamma(16))
    assert solution.log_weight_error < resolved * max(1.0, across) ** 2  # nats; falls as epsilon^(-3/2)


@PROFILE
@given(instances(), st.integers(0, 2**32 - 1))
def test_entropic_minimises(instance, seed):
    """F(a_eps) <= F(b) for any b: mixtures with the hard solution, the uniform weights and random ones."""
    solution = entropic_projection(instance.keys, instance.query, instance.epsilon)
    rng = np.random.default_rng(seed)
    count, hard = len(instance.keys), project_onto_hull(instance.keys, instance.query)

    def objective(weights):
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        centre = instance.keys.mean(axis=0)
        length = np.linalg.norm(weights @ (instance.keys - centre) - (instance.query - centre))
        # rounding: M products per entry of y, then the square; entropy as in theory.rounding
        reach = np.linalg.norm(instance.keys - centre, axis=1).max() + length
        rounding = gamma(count + 16) * (reach * length + length**2 + instance.epsilon * (np.log(count) + 1))
        return 0.5 * length**2 - instance.epsilon * entropy(logs), rounding

    value, error = objective(solution.weights)
    for other in (hard.weights, np.full(count, 1 / count), rng.dirichlet(np.full(count, 0.3))):
        for share in (1.0, 1e-3):
            there, rounding = objective((1 - share) * solution.weights + share * other)
            assert value <= there + solution.duality_gap + error + rounding


def test_entropic_is_hard_attention_at_small_and_uniform_at_large_epsilon():
    rng = np.random.default_rng(0)
    keys, query = rng.normal(size=(40, 6)), 3 * rng.normal(size=6)
    scale = diameter(keys) ** 2
    cold, warm = (entropic_projection(keys, query, factor * scale) for factor in (1e-8, 1e6))
    assert np.linalg.norm(cold.point - project_onto_hull(keys, query).point) < 1e-5
    assert np.abs(warm.log_weights + np.log(40)).max() < 1e-5
    assert cold.log_weights.min() < -700 and np.isfinite(cold.log_weights).all()


@PROFILE
@given(instances(), st.sampled_from((-60, -20, 30)))
def test_units_do_not_matter(instance, power):
    """Powers of two scale every length exactly, so the weights are the same bits."""
    unit = 2.0**power
    scaled = instance.keys * unit, instance.query * unit
    hard, moved = project_onto_hull(instance.keys, instance.query), project_onto_hull(*scaled)
    assert (hard.weights == moved.weights).all() and hard.degenerate == moved.degenerate
    assert moved.support_gap == hard.support_gap * unit**2 and moved.point_error == hard.point_error * unit


def test_frank_wolfe_converges():
    rng = np.random.default_rng(1)
    for query in (4 * rng.normal(size=6), np.zeros(6)):
        keys = rng.normal(size=(60, 6))
        assert frank_wolfe(keys, query, tolerance=1e-11).duality_gap < 1e-10


def test_stated_tolerance():
    keys, query = np.eye(3), np.array([2.0, 0.0, 0.0])
    assert entropic_projection(keys, query, 0.1, tolerance=1e-20).duality_gap <= 1e-20
    with pytest.raises(RuntimeError, match="above the tolerance"):
        entropic_projection(keys, query, 0.1, tolerance=1e-60)
    assert frank_wolfe(keys, query, tolerance=0.1).duality_gap <= 0.1 + 1e-12
    assert frank_wolfe(keys, query, max_steps=0).duality_gap >= 0


@pytest.mark.parametrize("keys", [[[1.5, 2.0]], [[1.5, 2.0]] * 4])
def test_one_key(keys):
    hard, soft = project_onto_hull(keys, [0.0, 1.0]), entropic_projection(keys, [0.0, 1.0], 0.01)
    assert (hard.point == keys[0]).all() and (soft.point == keys[0]).all()
    assert hard.support_gap == np.inf and hard.degenerate == (len(keys) > 1)
    assert np.abs(soft.log_weights + np.log(len(keys))).max() < 1e-15


@pytest.mark.parametrize("solve", [project_onto_hull, frank_wolfe, lambda k, q: entropic_projection(k, q, 1.0)])
@pytest.mark.parametrize(
    "keys, query, message",
    [
        ([[np.nan, 0.0]], [0.0, 0.0], "keys must be finite"),
        ([[1.0, 0.0]], [np.inf, 0.0], "query must be finite"),
        ([1.0, 0.0], [0.0, 0.0], "keys must have 2 axes"),
        ([[1.0, 0.0]], [0.0], "differ in their last axis"),
        (np.zeros((0, 2)), [0.0, 0.0], "must not be empty"),
    ],
)
def test_refuses(solve, keys, query, message):
    with pytest.raises(ValueError, match=message):
        solve(keys, query)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.nan, np.inf])
def test_refuses_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite and positive"):
        entropic_projection([[1.0], [2.0]], [0.0], epsilon)
