"""The order of a tuning: each knob in turn on a few cases, then the break-even of each batch, then the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vashista_gen.cli.console import output, progress, say
from vashista_gen.errors import DriftError
from vashista_gen.spec import load

DTYPES = {"cpu": "float32"}  # of the C kernels, whatever the spec says
SHAPES = {  # (batch, context) of the cases that knobs are tried on
    "cuda": ((1, 32768), (1, 131072), (8, 32768), (8, 131072)),
    "cpu": ((1, 4096), (1, 16384), (4, 8192)),
}
BATCHES = {"cuda": (1, 4, 16), "cpu": (1, 4)}  # of the break-even
CONTEXTS = tuple(1024 * 2**i for i in range(8))  # 1k to 128k


def main(
    spec: Path, *, device: str | None = None, shapes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] | None = None, contexts: Sequence[int] | None = None, budget: float | None = None,
) -> Path:  # fmt: skip
    """Tunes the spec's generated package to this machine's device; returns the file written beside the spec.

    budget: seconds of timing for one group of values. Raises as `bench` does, and DriftError for a wrong result.
    """
    loaded = load(spec)
    from vashista_gen.bench.comparable import require_softmax

    require_softmax(loaded)
    import torch

    from vashista_gen.bench import gate, machine, report, timing
    from vashista_gen.plan import make_plan
    from vashista_gen.tune import file, search

    console = output()
    where = machine.device(loaded, device)
    dtype = DTYPES.get(where.type, loaded.model.dtype)
    package = machine.package(loaded, spec)
    say(console, f"{loaded.name}: loading the kernels, compiled the first time ...")
    machine.kernels(package, where)
    report.show_environment(console, machine.environment(where, dtype, 1))
    budget = (0.3 if where.type == "cuda" else 1.5) if budget is None else budget
    measure = lambda contestants, case: timing.measure(contestants, case, budget)
    maker = _Maker(package, make_plan(loaded), where, dtype)
    shapes, batches = shapes or SHAPES[where.type], batches or BATCHES[where.type]
    contexts = contexts or CONTEXTS
    knobs = search.KNOBS[where.type]
    tuning = package.op.tuning
    taken = {k: v for k, v in tuning.DEFAULTS[where.type]._asdict().items() if k != "dense_up_to"}
    tried, swept = [], []
    with torch.inference_mode(), progress(len(knobs) + len(shapes) + len(batches) * len(contexts)) as step:
        made = []
        for batch, context in shapes:
            step(f"making {batch} x {context}")
            case = maker(batch, context)
            if case is None:
                say(console, f"left out: {batch} x {context} does not fit into the free memory", "yellow")
            else:
                made.append(case)
        for knob in knobs:
            step(knob.name)
            found = search.try_values(package, made, knob, taken, measure)
            present = taken[knob.name]
            taken[knob.name], gain = search.best(knob, found, present)
            value = taken[knob.name]
            tried += [{"knob": knob.name, **one} for one in found]
            say(console, f"{knob.name:<20} {present:>5} -> {value:>5}  {gain:.1%} faster" if gain else
                f"{knob.name:<20} {present:>5} stays")  # fmt: skip
            for one in found:
                for wrong, why in one["wrong"].items():
                    say(console, f"  {knob.name} {wrong} is wrong at {one['batch']} x {one['context']}: {why}", "red")
        made.clear()
        even = []
        for batch in batches:
            begun = maker.begins(contexts)
            try:
                found = search.sweep(package, begun, _stepping(step, maker, batch), taken, measure)
            except gate.WrongResult as wrong:
                step_back = f"vashista-gen bench {spec} --batch {batch}, and mend the kernel"
                raise DriftError(f"{loaded.name}, batch {batch}: {wrong}", step_back) from wrong
            swept += found
            even.append((batch, search.dense_up_to(found)))
            _say_even(console, *even[-1], found)
    knobs_taken = {**{knob.name: taken[knob.name] for knob in knobs}, "dense_up_to": [list(pair) for pair in even]}
    path = file.write(spec, loaded.name, tuning.name_of(where), file.entry(package, where, knobs_taken, tried, swept))
    say(console, f"wrote {path} for {tuning.name_of(where)}; next: vashista-gen generate {spec}")
    return path


class _Maker:
    """(batch, context) -> the case, None where it does not fit; one at a time is held for the break-even."""

    def __init__(self, package: Any, plan: Any, device: Any, dtype: str) -> None:
        from vashista_gen.bench import results

        self.package, self.plan, self.device = package, results.as_stored(plan, dtype), device
        self.dtype = dtype

    def __call__(self, batch: int, context: int) -> Any:
        """The inputs, in as many sets as a step needs to find none of its last turn in the cache."""
        import torch

        from vashista_gen.bench import cases
        from vashista_gen.plan import cost

        dense, sparse = (batch * f(self.plan, context).total for f in (cost.dense_bytes, cost.sparse_bytes))
        held = dense + batch * cost.pages_of(self.plan, context) * cost.summary_bytes_per_page(self.plan)
        # without the contiguous copy for peers, there is room for twice as many
        sets, _ = cases.plan_sets(self.device, held, sparse)
        if not sets:
            return None
        return cases.make(self.package, context, batch, self.device, getattr(torch, self.dtype), sets, False)

    def begins(self, contexts: Sequence[int]) -> list[int]:
        """The contexts at which a step can drop a token."""
        return [n for n in contexts if n > self.package.op.ALWAYS_DENSE] or list(contexts[-1:])


def _stepping(step: Callable[[str], None], make: Callable[[int, int], Any], batch: int) -> Callable[[int], Any]:
    def of(context: int) -> Any:
        step(f"break-even, {batch} x {context}")
        return make(batch, context)

    return of


def _say_even(console: Any, batch: int, tokens: int, found: Sequence[dict[str, Any]]) -> None:
    times = ", ".join(f"{one['context']}: {one['dense'] * 1e6:,.0f} / {one['sparse'] * 1e6:,.0f}" for one in found)
    say(console, f"batch {batch:>3}: dense up to {tokens:>6} tokens (us of dense / sparse: {times})")
