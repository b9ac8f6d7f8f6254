"""Which values of a knob are tried, which of them is taken, and the context from which on the sparse step is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vashista_gen.bench import cases, gate, results
from vashista_gen.bench.contestants import Contestant, of_package

LEAST_GAIN = 0.01  # of the time: less is not told from noise, and the value that was there stays
CLEAR = 1.25  # a sweep of contexts ends where the sparse step is that many times faster twice in a row


@dataclass(frozen=True)
class Knob:
    """One knob: the values to try, and what is timed with them, "dense" or "sparse" (bench's contestants)."""

    name: str
    values: tuple[int, ...]
    times: tuple[str, ...]


KNOBS = {
    "cuda": (
        Knob("dense_blocks_per_sm", (1, 2, 3, 4, 6, 8), ("dense",)),
        Knob("waves", (1, 2, 4, 8), ("dense",)),
        Knob("split_tokens", (1024, 2048, 4096, 8192), ("dense",)),
        Knob("blocks_per_sm", (1, 2, 3, 4, 6, 8), ("sparse",)),
        Knob("max_splits", (8, 16, 32, 64), ("sparse",)),
    ),
    # max_splits stays on a CPU: splits serve other numbers of threads than those of one run
    "cpu": (Knob("split_tokens", (128, 256, 512, 1024, 2048), ("dense", "sparse")),),
}
Measure = Callable[[Sequence[Contestant], cases.Case], Mapping[str, Any]]
Variants = Callable[[cases.Case, str], Mapping[int, tuple[ModuleType, Contestant] | str]]


def of_launches(package: ModuleType, knob: Knob, taken: dict) -> Variants:
    """The package with each value of a knob of its launches, beside the values taken so far."""
    changed = lambda value: package.op.tuning.changed(**{**taken, knob.name: value, "dense_up_to": ()})
    return lambda case, name: {
        v: (package, _routed(package, case, name, f"{knob.name} {v}", changed(v))) for v in knob.values
    }


def of_kernels(packages: Mapping[int, ModuleType | str], knob: Knob) -> Variants:
    """The packages whose kernels have each value; one that there is not is a text that says why."""
    changed = lambda package: package.op.tuning.changed(dense_up_to=())
    return lambda case, name: {
        v: one if isinstance(one, str) else (one, _routed(one, case, name, f"{knob.name} {v}", changed(one)))
        for v, one in packages.items()
    }


def _routed(package: ModuleType, case: cases.Case, name: str, label: str, settings: Any) -> Contestant:
    """The package's contestant of that name within `settings`; routed, whatever the context."""
    (inner,) = (one for one in of_package(package, case) if one.name == name)

    def run(i, x):
        with settings:
            return inner.run(i, x)

    return Contestant(name, label, inner.kind, run)


def try_values(tried: Sequence[cases.Case], knob: Knob, variants: Variants, measure: Measure) -> list[dict[str, Any]]:
    """[{"batch", "context", "of", "seconds": {value: median}, "wrong": {value: why}}] for each case and what is timed.

    A value that has no package, or whose result the gate refuses, has no time.
    """
    found = []
    for case in tried:
        for name in knob.times:
            right, wrong = [], {}
            for value, made in variants(case, name).items():
                if isinstance(made, str):
                    wrong[value] = made
                    continue
                package, one = made
                try:
                    gate.check(one, package, first_of(case))
                except gate.WrongResult as why:
                    wrong[value] = str(why)
                else:
                    right.append(Contestant(str(value), one.label, one.kind, one.run))
            times = measure(right, case) if right else {}
            seconds = {int(value): timing.median for value, timing in times.items()}
            found.append(
                {"batch": case.batch, "context": case.context, "of": name, "seconds": seconds, "wrong": wrong}
            )
    return found


def first_of(case: cases.Case) -> cases.Case:
    """The case with one set of inputs: enough to see a wrong result."""
    return cases.Case(case.context, case.batch, case.inputs[:1])


def best(knob: Knob, found: Sequence[Mapping[str, Any]], present: int) -> tuple[int, float]:
    """(the value with the least geometric mean of times over the cases, its gain over `present`, a share).

    `present`, or the nearest value that was tried and right, stays where nothing is clearly faster. A value that was
    wrong in one case is not taken.
    """
    right = [v for v in knob.values if found and all(v in one["seconds"] for one in found)]
    if not right:
        return present, 0.0
    mean = {v: math.exp(sum(math.log(one["seconds"][v]) for one in found) / len(found)) for v in right}
    start = min(right, key=lambda v: (abs(v - present), v))
    fastest = min(right, key=lambda v: (mean[v], abs(v - start)))
    gain = 1 - mean[fastest] / mean[start]
    return (fastest, gain) if gain > LEAST_GAIN else (present if present in right else start, 0.0)


def sweep(
    package: ModuleType,
    contexts: Sequence[int],
    make: Callable[[int], cases.Case | None],
    taken: dict,
    measure: Measure,
) -> list[dict[str, Any]]:
    """[{"batch", "context", "dense", "sparse"}] in seconds, by growing context, until sparse is clearly the faster one.

    make: the case of a context, None where it does not fit into memory. Raises gate.WrongResult.
    """
    found: list[dict[str, Any]] = []
    for context in contexts:
        case = make(context)
        if case is None:
            break
        pair = [one for one in of_package(package, case) if one.name in ("dense", "sparse")]
        with package.op.tuning.changed(**taken, dense_up_to=()):
            for one in pair:
                gate.check(one, package, first_of(case))
            times = measure(pair, case)
        row = {"batch": case.batch, "context": context, **{name: times[name].median for name in ("dense", "sparse")}}
        found.append(row)
        if len(found) > 1 and all(one["dense"] > CLEAR * one["sparse"] for one in found[-2:]):
            break
    return found


def dense_up_to(found: Sequence[Mapping[str, Any]]) -> int:
    """Tokens up to which dense is faster: where the ratio crosses 1, 0 if it nowhere does, the last context if it does
    not within the sweep.
    """
    crossed = results.crossing([(one["context"], one["dense"] / one["sparse"]) for one in found])
    if crossed is None:
        return 0
    context, low, _ = crossed
    if context == math.inf:
        return int(low)
    return round(context) if low else 0
