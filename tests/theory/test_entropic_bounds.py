"""(A) to (F) over adversarial families, and that the draws reach where the statements say something."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from vashista_gen.theory import entropic_bounds, project_onto_hull

from . import assertions
from .families import INDEPENDENT, LAYOUTS, Instance, instances

# no shrinking: an instance is a handful of numbers already, and the mutation check runs these tests to failure
PROFILE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@PROFILE
@given(instances())
def test_suboptimality(instance):
    assertions.check_suboptimality(assertions.solve(instance))


@PROFILE
@given(instances())
def test_leakage_linear(instance):
    assertions.check_leakage_linear(assertions.solve(instance))


@PROFILE
@given(instances())
def test_log_weight_ratio(instance):
    assertions.check_log_weight_ratio(assertions.solve(instance))


@PROFILE
@given(instances())
def test_leakage_exponential(instance):
    assertions.check_leakage_exponential(assertions.solve(instance))


@PROFILE
@given(instances())
def test_face_error(instance):
    assertions.check_face_error(assertions.solve(instance))


@PROFILE
@given(instances())
def test_point_error(instance):
    assertions.check_point_error(assertions.solve(instance))


@PROFILE
@given(instances())
def test_value_error(instance):
    values = np.random.default_rng(len(instance.keys)).normal(size=(len(instance.keys), 5))
    assertions.check_value_error(assertions.solve(instance), values)


@PROFILE
@given(instances())
def test_threshold_implies_regime(instance):
    solved = assertions.solve(instance)
    gap, slack = solved.hard.support_gap, solved.face_slack
    if gap == np.inf or gap <= slack:
        return
    threshold = entropic_bounds.epsilon_threshold(gap - slack, solved.diameter, len(instance.keys))
    if instance.epsilon <= threshold:
        distance = solved.distance - solved.distance_error
        assert entropic_bounds.exponential_regime(gap + slack, solved.diameter, distance)


def test_linear_error_is_attained_on_two_keys():
    keys, weights = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0.9, 0.1])
    instance = Instance("two_keys", keys, np.array([0.1, -1.0]), 1e-5, weights)
    margin = assertions.check_face_error(assertions.solve(instance))
    assert margin.value >= 0.999 * margin.bound and margin.tolerance <= 1e-6 * margin.bound
    assert margin.bound == pytest.approx(1e-5 * np.log(9), rel=1e-9)  # C_lin = |log(a_1 / a_2)| / ||k_1 - k_2||


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: entropic_bounds.leakage_bound_linear(0.0, 1.0, 0.0, 1.0), "epsilon"),
        (lambda: entropic_bounds.leakage_bound_linear(1.0, 1.0, 0.0, 0.0), "support_gap"),
        (lambda: entropic_bounds.log_weight_ratio_bound(1.0, np.nan, 1.0, 1.0), "support_gap"),
        (lambda: entropic_bounds.log_leakage_bound(1.0, 1.0, 3, 4), "face_size 4 is above num_keys 3"),
        (lambda: entropic_bounds.log_leakage_bound(1.0, 1.0, 3, 0), "face_size must be a positive integer"),
        (lambda: entropic_bounds.linear_constant([[0.0], [1.0]], [1.0, 0.0]), "face_weights"),
        (lambda: entropic_bounds.face_error_bound(-1.0, 1.0, 1.0, 0.0, 2), "constant"),
        (lambda: entropic_bounds.hard_suboptimality([np.nan], [0.0], [0.0], [0.0]), "point must be finite"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_draws_span_leakage():
    """Drawn leakages cover 1e-12 to 1, decade by decade, in the regime of (D), with tolerances far below the bounds."""
    leakages, regime, nats, relative = [], [], [], []

    @settings(PROFILE, max_examples=800)  # which are drawn depends on the modules loaded before: enough of them
    @given(instances(INDEPENDENT))
    def record(instance):
        solved = assertions.solve(instance)
        leakages.append(solved.log_leakage / np.log(10))
        if (margin := assertions.check_leakage_exponential(solved)) is not None:
            regime.append(leakages[-1])
            nats.append(margin.tolerance)
        margin = assertions.check_face_error(solved)
        # a thin face has kappa D near 1e6: float64 leaves its y* itself uncertain, so it is not counted
        if instance.layout != "thin_face" and margin is not None and margin.bound > 1e-8 * solved.diameter:
            relative.append(margin.tolerance / margin.bound)

    record()
    edges = [-12, -10, -8, -6, -4, -2, 0]
    assert min(leakages) <= -12 and max(leakages) >= np.log10(0.5)
    assert (np.histogram(leakages, edges)[0] >= 5).all()
    assert (np.histogram(regime, edges)[0] >= 3).all()
    assert np.quantile(nats, 0.9) < 0.05 and np.quantile(relative, 0.9) < 1e-3


def test_draws_span_shapes():
    """Every layout, M to 2000, faces of 1 to d + 1 keys, gaps from 1e-6 to 10; copied faces are called degenerate."""
    layouts, shapes, gaps = set(), [], []

    @PROFILE
    @given(instances())
    def record(instance):
        hard = project_onto_hull(instance.keys, instance.query)
        layouts.add(instance.layout)
        shapes.append((len(hard.active_face), *instance.keys.shape))
        if instance.support_gap is not None:
            gaps.append(instance.support_gap)
        if instance.layout in ("copied_face", "near_copies", "crowd"):
            assert hard.degenerate

    record()
    sizes, counts, dims = (np.array(column) for column in zip(*shapes, strict=True))
    assert layouts == set(LAYOUTS)
    assert counts.max() == 2000 and dims.max() == 64
    assert min(gaps) < 1e-5 and max(gaps) > 5
    for size in (1, 2, 3, 4):
        assert (sizes == size).any()
    assert ((sizes == dims + 1) & (counts == sizes)).any() and ((sizes >= 10) & (sizes <= dims)).any()
