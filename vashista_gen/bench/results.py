"""What one run found: a result for each case, the ratios and the break-even that follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vashista_gen.bench.timing import Timing
from vashista_gen.plan import Plan, cost
from vashista_gen.spec import Spec


@dataclass
class CaseResult:
    """One case. `failed` says why it has no times; `skipped` why a peer has none. Bytes are those of one step."""

    context: int
    batch: int
    dense_bytes: int
    sparse_bytes: int
    sets: int = 0
    failed: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    times: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, slow: str, fast: str, of: str = "median") -> float | None:
        """Median (or fastest tenth) of `slow` / that of `fast`, how many times faster `fast` is; None without times."""
        if slow not in self.times or fast not in self.times:
            return None
        return getattr(self.times[slow], of) / getattr(self.times[fast], of)

    @property
    def ratios(self) -> dict[str, float | None]:
        """Every ratio that the report shows; the names of require.RATIOS are among them."""
        return {
            "speedup": self.ratio("sdpa", "sparse"),
            "speedup_of_fastest_tenths": self.ratio("sdpa", "sparse", "fastest_tenth"),
            "over_dense": self.ratio("dense", "sparse"),
            "dense_speedup": self.ratio("sdpa", "dense"),
            "sparse_vs_flashinfer": self.ratio("flashinfer", "sparse"),
            "attend_vs_flashinfer_pages": self.ratio("flashinfer_pages", "attend"),
        }

    def bytes_of(self, name: str) -> int | None:
        """Bytes a contestant reads, where they are known."""
        whole = {"sdpa": self.dense_bytes, "dense": self.dense_bytes, "flashinfer": self.dense_bytes}
        return (whole | {"sparse": self.sparse_bytes}).get(name)

    def rate(self, name: str) -> float | None:
        """Bytes per second."""
        read = self.bytes_of(name)
        return None if read is None or name not in self.times else read / self.times[name].median


@dataclass
class Result:
    """A whole run. `bandwidth` is the card's by its data sheet, bytes/s, None where specs/hardware does not know it."""

    name: str
    environment: dict[str, Any]
    bandwidth: float | None
    cases: list[CaseResult]
    cold_import: dict[str, float] | None = None

    def floor(self, read: int) -> float | None:
        """Seconds below which no step that reads `read` bytes can be on this device."""
        return None if self.bandwidth is None else cost.time_bound(read, self.bandwidth)

    @property
    def timed(self) -> list[CaseResult]:
        """The cases that have times."""
        return [case for case in self.cases if case.times]


def as_stored(plan: Plan, dtype: str) -> Plan:
    """The plan with a cache of another type, which is what the C kernels have: for its byte counts alone."""
    spec: Spec = plan.spec
    stored = dataclasses.replace(spec, cache=dataclasses.replace(spec.cache, kv_dtype=dtype))
    return dataclasses.replace(plan, spec=stored)


def break_even(cases: Sequence[CaseResult]) -> tuple[str, float | None]:
    """(a sentence, the context) from which on the sparse step is faster than SDPA; None if no such context was seen.

    Between two contexts measured, log(ratio) is taken as linear in log(context).
    """
    points = [(case.context, case.ratios["speedup"]) for case in cases if case.ratios["speedup"] is not None]
    if not points:
        return "Break-even: SDPA was not measured.", None
    first = len(points)
    while first and points[first - 1][1] > 1:
        first -= 1
    if first == len(points):
        return f"Break-even: beyond {points[-1][0]:,} tokens, the longest context measured.", None
    if first == 0:
        return f"Break-even: the sparse step is faster at every context measured, from {points[0][0]:,} tokens on.", (
            float(points[0][0])
        )
    (low, below), (high, above) = points[first - 1], points[first]
    part = math.log(1 / below) / math.log(above / below)
    context = math.exp(math.log(low) + part * math.log(high / low))
    return (
        f"Break-even: the sparse step is faster than SDPA from about {context:,.0f} tokens on "
        f"(interpolated between {low:,} and {high:,})."
    ), context
