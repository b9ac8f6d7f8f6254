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
    page_bytes: int | None = None  # K and V of the routed pages
    kept_bytes: int | None = None  # of a step that keeps the pages of another
    refresh: int = 1  # one of so many steps routes, whose bytes are sparse_bytes
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

    def add_mean(self) -> None:
        """Puts the mean over `refresh` steps among the times, where a step that routes and one that does not have some."""
        if self.refresh > 1 and {"sparse", "kept"} <= self.times.keys():
            routes, keeps = self.times["sparse"], self.times["kept"]
            mean = lambda of: (getattr(routes, of) + (self.refresh - 1) * getattr(keeps, of)) / self.refresh
            rounds = min(routes.rounds, keeps.rounds)
            self.times["refreshed"] = Timing(mean("median"), mean("fastest_tenth"), rounds)
            self.errors["refreshed"] = max(self.errors["sparse"], self.errors["kept"])
            self.labels["refreshed"] = f"  mean of {self.refresh} steps: 1 routes, {self.refresh - 1} keep their pages"

    @property
    def ratios(self) -> dict[str, float | None]:
        """Every ratio that the report shows; the names of require.RATIOS are among them."""
        return {
            "speedup": self.ratio("sdpa", "sparse"),
            "speedup_of_fastest_tenths": self.ratio("sdpa", "sparse", "fastest_tenth"),
            "refreshed_speedup": self.ratio("sdpa", "refreshed"),
            "over_dense": self.ratio("dense", "sparse"),
            "dense_speedup": self.ratio("sdpa", "dense"),
            "sparse_vs_flashinfer": self.ratio("flashinfer", "sparse"),
            "dense_vs_flashinfer": self.ratio("flashinfer", "dense"),
            "attend_vs_flashinfer_pages": self.ratio("flashinfer_pages", "attend"),
            "attend_vs_tilelang_pages": self.ratio("tilelang_pages", "attend"),
            "choice": self.ratio("dense", "chosen"),
        }

    def bytes_of(self, name: str) -> int | None:
        """Bytes a contestant reads, where they are known."""
        whole = dict.fromkeys(("sdpa", "dense", "flashinfer", "chosen"), self.dense_bytes)
        pages = dict.fromkeys(("flashinfer_pages", "tilelang_pages"), self.page_bytes)
        own = {**pages, "sparse": self.sparse_bytes, "kept": self.kept_bytes}
        if self.kept_bytes is not None:
            own["refreshed"] = (self.sparse_bytes + (self.refresh - 1) * self.kept_bytes) // self.refresh
        return (whole | own).get(name)

    def rate(self, name: str) -> float | None:
        """Bytes per second."""
        read = self.bytes_of(name)
        return None if read is None or name not in self.times else read / self.times[name].median


@dataclass
class Result:
    """A whole run. `bandwidth` is the card's by its data sheet, bytes/s, None where specs/hardware does not know it.

    dense_up_to: tokens up to which the package reads a step of this batch whole.
    """

    name: str
    environment: dict[str, Any]
    bandwidth: float | None
    cases: list[CaseResult]
    cold_import: dict[str, float] | None = None
    dense_up_to: int = 0

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


def crossing(points: Sequence[tuple[int, float]]) -> tuple[float, float, float] | None:
    """(context, the measured ones below and above it) from which on the ratios of (context, ratio) stay over 1.

    Between two contexts log(ratio) is linear in log(context). The first context if all are over 1, infinity if the last
    one is not; None without points.
    """
    if not points:
        return None
    first = len(points)
    while first and points[first - 1][1] > 1:
        first -= 1
    if first == len(points):
        return math.inf, points[-1][0], math.inf
    if first == 0:
        return float(points[0][0]), 0, points[0][0]
    (low, below), (high, above) = points[first - 1], points[first]
    part = math.log(1 / below) / math.log(above / below)
    return math.exp(math.log(low) + part * math.log(high / low)), low, high


def break_even(cases: Sequence[CaseResult], ratio: str = "speedup") -> tuple[str, float | None]:
    """(a sentence, the context) from which on the sparse step is faster than SDPA, or with ratio "over_dense" than the
    dense op; None if no such context was seen.
    """
    other = {"speedup": "SDPA", "over_dense": "the dense op"}[ratio]
    found = crossing([(case.context, case.ratios[ratio]) for case in cases if case.ratios[ratio] is not None])
    if found is None:
        return f"Break-even with {other}: {other} was not measured.", None
    context, low, high = found
    if context == math.inf:
        return f"Break-even with {other}: beyond {low:,} tokens, the longest context measured.", None
    if not low:
        text = f"Break-even with {other}: the sparse step is faster from {high:,} tokens, the shortest measured."
        return text, context
    return (
        f"Break-even with {other}: the sparse step is faster from about {context:,.0f} tokens on "
        f"(interpolated between {low:,} and {high:,})."
    ), context
