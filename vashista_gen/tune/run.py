"""The order of a tuning: kernels and launches, each knob in turn on a few cases; each batch's break-even; the file."""

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
    kernels: bool = True,
) -> Path:  # fmt: skip
    """Tunes the spec's generated package to this machine's device; returns the file written beside the spec.

    kernels: whether constants of kernels are tried, for which a package of each value is compiled; without it the
    launches of the kernels as they are. budget: seconds of timing for one group of values. Raises as `bench` does, and
    DriftError for a wrong result.
    """
    loaded = load(spec)
    from vashista_gen.bench.comparable import require_softmax

    require_softmax(loaded)
    import torch

    from vashista_gen.bench import gate, machine, report, timing
    from vashista_gen.plan import make_plan
    from vashista_gen.tune import candidates, file, search

    console = output()
    where = machine.device(loaded, device)
    dtype = DTYPES.get(where.type, loaded.model.dtype)
    package = machine.package(loaded, spec)
    say(console, f"{loaded.name}: loading the kernels, compiled the first time ...")
    machine.kernels(package, where)
    report.show_environment(console, machine.environment(where, dtype, 1))
    budget = (0.3 if where.type == "cuda" else 1.5) if budget is None else budget
    measure = lambda contestants, case: timing.measure(contestants, case, budget)
    plan = make_plan(loaded)
    maker = _Maker(package, plan, where, dtype)
    shapes, batches = shapes or SHAPES[where.type], batches or BATCHES[where.type]
    contexts = contexts or CONTEXTS
    knobs = search.KNOBS[where.type]
    tuning = package.op.tuning
    taken = {k: v for k, v in tuning.DEFAULTS[where.type]._asdict().items() if k != "dense_up_to"}
    target = package.op.library.target_of(where)
    compiled = candidates.knobs(plan, target) if kernels and _may_compile(console, loaded, target) else []
    tried, swept, of_kernels = [], [], {}
    steps = len(compiled) + len(knobs) + len(shapes) + len(batches) * len(contexts)
    with candidates.scratch() as folder, torch.inference_mode(), progress(steps) as step:
        made = []
        for batch, context in shapes:
            step(f"making {batch} x {context}")
            case = maker(batch, context)
            if case is None:
                say(console, f"left out: {batch} x {context} does not fit into the free memory", "yellow")
            else:
                made.append(case)
        if compiled:
            packages = candidates.Candidates(loaded, target, where.type, dtype, folder)
            present = candidates.present(plan, target)
            values, of_step = _tune_kernels(console, packages, compiled, present, made, measure, step)
            if values != present:
                (package,) = packages.make([values])
            of_kernels[target] = file.kernels_entry(package, where, values, of_step)
        for knob in knobs:
            step(knob.name)
            found = search.try_values(made, knob, search.of_launches(package, knob, taken), measure)
            tried += [{"knob": knob.name, **one} for one in found]
            _take(console, knob, found, taken)
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
        entry = file.entry(package, where, knobs_taken, tried, swept)
        path = file.write(spec, loaded.name, tuning.name_of(where), entry, of_kernels)
    stale = file.stale(path, tuning.name_of(where))
    if stale:
        say(console, f"tuned for other kernels than these: {'; '.join(stale)}; next: vashista-gen tune there", "yellow")
    say(console, f"wrote {path} for {tuning.name_of(where)}; next: vashista-gen generate {spec}")
    return path


def _tune_kernels(
    console: Any, packages: Any, knobs: Sequence[Any], present: dict[str, int], made: Sequence[Any], measure: Any,
    step: Callable[[str], None],
) -> tuple[dict[str, int], list[dict[str, Any]]]:  # fmt: skip
    """(the constants taken, what was found of each value tried), one constant after the other."""
    from vashista_gen.tune import search

    taken, tried = dict(present), []
    for knob in knobs:
        step(f"{knob.name}, compiling {len(knob.values)}")
        compiled = packages.make([{**taken, knob.name: value} for value in knob.values])
        variants = search.of_kernels(dict(zip(knob.values, compiled, strict=True)), knob)
        found = search.try_values(made, knob, variants, measure)
        tried += [{"knob": knob.name, **one} for one in found]
        _take(console, knob, found, taken)
    return taken, tried


def _take(console: Any, knob: Any, found: Sequence[dict[str, Any]], taken: dict[str, int]) -> None:
    """Puts the best value of a knob in its place in `taken` and says so, and which values are wrong."""
    from vashista_gen.tune import search

    present = taken[knob.name]
    value, gain = search.best(knob, found, present)
    taken[knob.name] = value
    say(console, f"{knob.name:<20} {present:>5} -> {value:>5}  {gain:.1%} faster" if gain else
        f"{knob.name:<20} {present:>5} stays")  # fmt: skip
    wrong = {(value, why) for one in found for value, why in one["wrong"].items()}
    for value, why in sorted(wrong):
        say(console, f"  {knob.name} {value} is not taken: {why}", "yellow")


def _may_compile(console: Any, spec: Any, target: str) -> bool:
    """Whether constants found for this target would be its package's; says why not."""
    first = spec.kernels_target(target.split("-")[0])
    if target not in spec.targets:
        say(console, f"kernels stay as they are: {target} is not a target of {spec.name}", "yellow")
        return False
    if first not in (None, target):
        say(console, f"kernels stay as they are: all GPUs of {spec.name} have the constants of {first}", "yellow")
        return False
    return True


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
