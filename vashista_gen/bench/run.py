"""The order of a benchmark: the package, each case behind its gate, the report, and what was required of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vashista_gen.bench import require as asked
from vashista_gen.bench.comparable import require_softmax
from vashista_gen.plan import cost, make_plan
from vashista_gen.spec import load

DTYPES = {"cpu": "float32"}  # of the C kernels, whatever the spec says


def main(
    spec: Path, output: Path, console: Console, *, contexts: Sequence[int] | None = None, batch: int = 1,
    device: str | None = None, require: Sequence[str] = (), cold_import: bool = False,
) -> int:  # fmt: skip
    """Measures the spec's generated package on this machine; prints tables, writes bench.csv, .json and .png.

    Returns 0, or 1 where a result is wrong (it then has no time) or a required ratio is missed. Raises UsageError for
    a bad requirement or device, a solver other than softmax and a package that is not generated, DriftError for one
    made from another spec, MissingEnvironmentError where the device or a compiler is missing.
    """
    requirements = [asked.requirement(text) for text in require]
    loaded = load(spec)
    require_softmax(loaded)
    import torch

    from vashista_gen.bench import cases, cold, contestants, machine, report, results

    where = machine.device(loaded, device)
    dtype = DTYPES.get(where.type, loaded.model.dtype)
    package = machine.package(loaded, spec)
    report.line(console, f"{loaded.name}: loading the kernels, compiled the first time ...")
    library = machine.kernels(package, where)
    plan = results.as_stored(make_plan(loaded), dtype)
    environment = machine.environment(where, dtype, batch)
    report.show_environment(console, environment)
    # what is required is measured even where --context does not name it
    wanted = {*(contexts or cases.CONTEXTS[where.type]), *(one.context for one in requirements)}
    found = []
    whole = package.op.tuning.dense_up_to(where, batch)
    with torch.inference_mode(), contestants.routed(package), _progress(console, len(wanted)) as step:
        for context in sorted(wanted):
            step(f"{asked.short(context)} tokens")
            found.append(_case(package, plan, context, batch, where, getattr(torch, dtype), console, whole))
    environment["load_after"] = machine.load_average()
    result = results.Result(loaded.name, environment, machine.bandwidth(where, library), found, dense_up_to=whole)
    if cold_import:
        with _progress(console, 2 * cold.RUNS) as step:
            step("cold import")
            result.cold_import = cold.measure(package, where.type, where.index, lambda: step("cold import"))
    report.line(console)
    report.show(console, result)
    _save(result, output, console)
    misses = _required(console, requirements, result)
    return 1 if misses or any(case.failed for case in found) else 0


def _case(package, plan, context, batch, device, dtype, console, whole) -> Any:
    """One case: its inputs, the gate, and the times only if the package passed it."""
    from vashista_gen.bench import cases, contestants, gate, peers, report, results, timing

    dense, refresh = batch * cost.dense_bytes(plan, context).total, plan.spec.routing.refresh
    sparse, kept = (batch * cost.sparse_bytes(plan, context, steps).total for steps in (1, 0))
    pages = batch * cost.token_bytes(plan) * cost.routed_tokens(plan, context)
    more = {"refresh": refresh, "kept_bytes": kept} if plan.refreshes else {}
    result = results.CaseResult(context, batch, dense, sparse, pages, **more)
    held = dense + batch * cost.pages_of(plan, context) * cost.summary_bytes_per_page(plan)
    result.sets, contiguous = cases.plan_sets(device, held, sparse)
    if not result.sets:
        result.skipped["all"] = f"{held / 2**30:,.1f} GiB of cache do not fit into the free memory"
        return result
    case = cases.make(package, context, batch, device, dtype, result.sets, contiguous)
    others, result.skipped = peers.of_case(package, case)
    passed, own = [], contestants.of_package(package, case)
    if context <= whole:
        own.append(contestants.chosen(package, case, whole))
    for one in [*others, *own]:
        try:
            result.errors[one.name] = gate.check(one, package, case)
        except gate.WrongResult as wrong:
            if not one.peer:
                result.failed = str(wrong)
                break
            result.skipped[one.name] = f"wrong result: {wrong}"
        except Exception as error:
            if not one.peer:
                raise
            result.skipped[one.name] = f"{type(error).__name__}: {error}"
        else:
            passed.append(one)
            result.labels[one.name] = one.label
    if result.failed:
        report.line(console, f"gate {asked.short(context):>5}  FAILED  {result.failed}; no times", "red")
        return result
    errors = ", ".join(f"{name} {error:.0e}" if error else f"{name} 0" for name, error in result.errors.items())
    report.line(console, f"gate {asked.short(context):>5}  ok, error (allowed {gate.tolerance(dtype):.0e}): {errors}")
    result.times = timing.measure(passed, case)
    result.add_mean()
    return result


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; call what it gives at the start of each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, begun = bar.add_task("", total=total), iter(range(total + 1))
        yield lambda name: bar.update(task, description=name, completed=next(begun, total))


def _save(result: Any, output: Path, console: Console) -> None:
    from vashista_gen.bench import picture, report

    written = report.write(result, output)
    if result.timed:
        written.append(output / "bench.png")
        picture.draw(result, written[-1])
    report.line(console, f"wrote {', '.join(str(path) for path in written)}")


def _required(console: Console, requirements: Sequence[asked.Requirement], result: Any) -> bool:
    """Says of each requirement whether it is met; True when one is missed."""
    from vashista_gen.bench.report import line

    ratios = {case.context: case.ratios for case in result.cases}
    missed = False
    for one in requirements:
        miss = one.miss(ratios)
        missed |= miss is not None
        text = f"MISSED  {miss}" if miss else f"met     {one.text}: {ratios[one.context][one.name]:.3f}"
        line(console, text, "red" if miss else "green")
    return missed
