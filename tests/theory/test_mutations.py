"""Wrong constants must not pass: each mutant of a bound or a solver turns a property test red."""

import dataclasses

import numpy as np
import pytest

from vashista_gen.theory import candidate_bounds, entropic_bounds

from . import assertions, test_candidate_bounds, test_entropic_bounds


def _smaller_constant(original):
    return lambda face_keys, face_weights: 0.98 * original(face_keys, face_weights)


def _scaled_exponent(original):
    return lambda *arguments: 1.02 * original(*arguments)


def _full_exponent(original):
    return lambda epsilon, gap, count, size: original(epsilon, gap, count, size) - (1.1 - 0.5) * gap / epsilon


def _no_count(original):
    return lambda epsilon, gap, count, size: original(epsilon, gap, count, size) - np.log((count - size) / size)


def _no_half(original):
    return lambda point, hard_point, *rest: original(point, hard_point, *rest) + 0.5 * np.sum((point - hard_point) ** 2)


def _warm(original):
    return lambda keys, query, epsilon: dataclasses.replace(original(keys, query, 1.01 * epsilon), epsilon=epsilon)


def _no_ratio(original):
    return lambda gap, n, k: original(gap, 2, 1)


def _one_token_each(original):
    return lambda sizes, bounds: original(np.minimum(sizes, 1), bounds)


MUTANTS = {
    "E: C_lin 2 % smaller": (entropic_bounds, "linear_constant", _smaller_constant, "test_face_error"),
    "C: exponent times 1.02": (entropic_bounds, "log_weight_ratio_bound", _scaled_exponent, "test_log_weight_ratio"),
    "D: 1.1 / eps for 1 / (2 eps)": (entropic_bounds, "log_leakage_bound", _full_exponent, "test_leakage_exponential"),
    "D: no (M - |I|) / |I|": (entropic_bounds, "log_leakage_bound", _no_count, "test_leakage_exponential"),
    "A: no 1/2": (entropic_bounds, "hard_suboptimality", _no_half, "test_suboptimality"),
    "solver: eps 1 % too large": (assertions, "entropic_projection", _warm, "test_face_error"),
    "J: no k / (n - k)": (candidate_bounds, "log_dropped_mass_bound", _no_ratio, "test_dropped_mass_bound"),
    "K: no n_p": (candidate_bounds, "log_omitted_bound", _one_token_each, "test_certificate"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    module, attribute, mutate, property_test = MUTANTS[name]
    tests = test_candidate_bounds if module is candidate_bounds else test_entropic_bounds
    monkeypatch.setattr(module, attribute, mutate(getattr(module, attribute)))
    with pytest.raises(AssertionError):
        getattr(tests, property_test)()
