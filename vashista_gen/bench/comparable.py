"""Which specs can be held against softmax attention: those whose solver is softmax."""

from __future__ import annotations

from vashista_gen.errors import UsageError
from vashista_gen.spec import Spec


def require_softmax(spec: Spec) -> None:
    """Raises UsageError for a projection, another operator than the one that is compared with; its gap is no lse."""
    solver = spec.attention.solver
    if solver != "softmax":
        raise UsageError(
            f"{spec.source.file}: solver {solver} is another operator than the softmax attention compared here",
            "set attention.solver to softmax; tests/op/test_solvers.py holds solvers against the theory",
        )
