"""`vashista-gen bench`: a decode step against torch's attention over the same keys, on this machine."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from vashista_gen.bench.case import Case
from vashista_gen.bench.report import Requirement, row_of, table, write
from vashista_gen.bench.timing import import_seconds, microseconds
from vashista_gen.errors import MissingEnvironmentError, UsageError
from vashista_gen.plan import Plan, cost, make_plan
from vashista_gen.spec import hardware_of, load

CONTEXTS = {"cpu": (1024, 2048, 4096, 8192, 16384, 32768, 65536), "cuda": (4096, 8192, 16384, 32768, 65536, 131072)}


def main(
    spec: Path,
    output: Path,
    console: Console,
    *,
    contexts: tuple[int, ...] | None = None,
    batch: int = 1,
    device: str | None = None,
    require: Iterable[str] = (),
) -> int:
    """Prints a table, writes bench.json, .csv and .png; 1 if a result is wrong or a requirement is missed.

    Raises UsageError for a package that is not generated or a bad requirement, MissingEnvironmentError without the device.
    """
    requirements = [Requirement.parse(text) for text in require]
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise MissingEnvironmentError("torch sees no CUDA device", "vashista-gen bench SPEC --device cpu")
    plan = make_plan(load(spec))
    measured = _in_float32(plan) if place.type == "cpu" else plan
    module = f"vashista_gen.generated.{plan.spec.name}"
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{module} is not there ({error})", f"vashista-gen generate {spec}") from error
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for context in track(contexts or CONTEXTS[place.type], "measuring", console=console, transient=True):
        case = Case(package, context, batch, place)
        errors = {name: e for name, e in case.errors().items() if not e <= case.tolerance()}
        if errors:
            wrong.append(f"context {context}: error {errors} over {case.tolerance():.1e}: no times")
            continue
        with torch.inference_mode():
            times = microseconds(case.contestants(), place)
        sizes = (cost.dense_bytes(measured, context).total, cost.sparse_bytes(measured, context).total)
        rows.append(row_of(context, times, *(size * batch for size in sizes)))
    about = _about(plan, place, batch)
    if rows:
        console.print(table(f"{about['spec']}, batch {batch}, {about['device']}", rows))
        for path in write(output, about, rows):
            console.print(f"wrote {path}")
        faster = [row["context"] for row in rows if row.get("speedup", 0) > 1]
        if faster:
            console.print(f"faster than torch SDPA from {min(faster):,} tokens on, of those measured")
    if place.type == "cpu":
        beyond, alone = import_seconds(module)
        console.print(f"import with kernels loaded: {beyond:.2f} s beyond torch's {alone:.2f} s")
    missed = [text for text in (one.miss(rows) for one in requirements) if text]
    for text in [*wrong, *missed]:
        console.print(f"FAILED {text}")
    return 1 if wrong or missed else 0


def _in_float32(plan: Plan) -> Plan:
    """The plan as the C target runs it, for its byte counts."""
    model, cache = replace(plan.spec.model, dtype="float32"), replace(plan.spec.cache, kv_dtype="float32")
    return make_plan(replace(plan.spec, model=model, cache=cache))


def _about(plan: Plan, place: torch.device, batch: int) -> dict[str, Any]:
    about: dict[str, Any] = {"spec": plan.spec.name, "batch": batch, "torch": torch.__version__}
    if place.type == "cpu":
        threads = torch.get_num_threads()
        return about | {"device": f"{_processor()}, {threads} threads, float32, torch {torch.__version__}"}
    major, minor = torch.cuda.get_device_capability(place)
    try:
        card = hardware_of(f"cuda-sm_{major}{minor}").card
        about["bandwidth_gb_s"] = round((card.measured_bandwidth or card.bandwidth) / 1e9)
    except UsageError:
        pass  # a card the hardware files do not know: no floor is drawn
    return about | {
        "device": f"{torch.cuda.get_device_name(place)}, {plan.spec.model.dtype}, torch {torch.__version__}"
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
