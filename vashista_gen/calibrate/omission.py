"""Scores of a certificate's estimate: log of the true omitted mass - log of the estimated one, for real queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from vashista_gen.diagnose.kept import FLOOR, Step, log_omitted, lse_of_all
from vashista_gen.diagnose.layer import Layer


class Omission(NamedTuple):
    """float64 [heads, queries]: logs of sums of exp(logit) over all tokens and the omitted ones; the estimate."""

    log_total: torch.Tensor
    log_true: torch.Tensor
    log_estimated: torch.Tensor


Estimator = Callable[[Layer], Omission]


def of_package(package: Any) -> Estimator:
    """The estimate of a package's own certificate of kind calibrated, with the margin 0; the true mass from its lse."""

    def estimate(layer: Layer) -> Omission:
        step = Step(package, layer)
        _, lse, certificate = step.decode(return_certificate=True)
        total = lse_of_all(layer)
        return Omission(total, log_omitted(lse.T.double(), total), certificate.log_omitted.T.double())

    return estimate


def scores(omission: Omission) -> torch.Tensor:
    """log_true - log_estimated of the queries whose omitted share is at least 1e-5, float64 [n].

    Below that a float32 lse does not tell the true share, and no tolerance is that small.
    """
    told = omission.log_true - omission.log_total > FLOOR
    return (omission.log_true - omission.log_estimated)[told]
