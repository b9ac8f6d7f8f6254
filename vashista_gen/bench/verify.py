"""Whether a generated package computes what it should on a device, and the record of it that lies beside the package.

Each case holds the package's own contestants, its lists of tokens and its certificates against the reference through
the gate that guards timing, twice (a race shows as a difference), and on a GPU once more from a CUDA graph. The record
is keyed by target and names the hash of the kernels it is true of: `stale` says for which targets that has changed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vashista_gen.bench import cases, gate
from vashista_gen.bench.contestants import Contestant, of_package, promised, routed

RECORD = "verified.json"
BATCHES = (1, 3)


def contexts(spec: dict[str, Any]) -> tuple[int, ...]:
    """Lengths around what decides: one token, a page, what is routed, one more, and several times that.

    With two levels also one super-page more than the beam holds, full and not.
    """
    page_size = spec["cache"]["page_size"]
    routed = spec["routing"]["pages"] * page_size
    found = {1, page_size + 1, routed, routed + 1, 2 * routed + page_size - 1, 5 * routed + 3}
    if spec["routing"].get("levels", 1) == 2:
        super_page = spec["routing"]["super_pages"] * page_size
        beyond = (spec["routing"]["beam"] + 1) * super_page
        found |= {beyond, beyond + page_size + 1}
    return tuple(sorted(found))


def verify(
    package: ModuleType, device: torch.device, dtype: torch.dtype, step: Callable[[str], None],
    shapes: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The worst error of each contestant in each case. Raises gate.WrongResult for the first that is not allowed.

    shapes: (batch, context) of the cases, by default those of a record.
    """
    found = []
    shapes = shapes or [(batch, context) for context in contexts(package.SPEC) for batch in BATCHES]
    with torch.inference_mode(), routed(package):
        for batch, context in shapes:
            step(f"{batch} x {context} tokens")
            case = cases.make(package, context, batch, device, dtype, 1, False)
            checked = [*of_package(package, case), *promised(package, case)]
            errors = {one.name: _check(one, package, case) for one in checked}
            found.append({"batch": batch, "context": context, "errors": errors})
    return found


def _check(one: Contestant, package: ModuleType, case: cases.Case) -> float:
    """The contestant's error; its result must be the same to the bit a second time, and from a CUDA graph."""
    try:
        error = gate.check(one, package, case)
        if one.kind != "summaries":
            _check_again(one, case)
    except gate.WrongResult as wrong:
        raise gate.WrongResult(f"batch {case.batch}, {case.context} tokens: {wrong}") from wrong
    return error


def _check_again(one: Contestant, case: cases.Case) -> None:
    inputs = case.inputs[0]
    tensors = lambda result: [x.clone() for x in (result if isinstance(result, tuple) else (result,))]
    first = tensors(one.run(0, inputs))
    # NaN where nothing is audited; torch's nan_to_num knows no bool
    plain = lambda x: (x.isnan(), x.nan_to_num()) if x.is_floating_point() else (x,)
    equal = lambda a, b: all(map(torch.equal, plain(a), plain(b)))
    same = lambda again: all(equal(a, b) for a, b in zip(first, again, strict=True))
    if not same(tensors(one.run(0, inputs))):
        raise gate.WrongResult(f"{one.name}: another result the second time")
    if inputs.q.device.type != "cuda":
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = one.run(0, inputs)
    for x in result if isinstance(result, tuple) else (result,):
        x.fill_(-7)  # what the graph does not write shows
    graph.replay()
    if not same(tensors(result)):
        raise gate.WrongResult(f"{one.name}: another result from a CUDA graph")


def entry(
    package: ModuleType, library: ModuleType, device: torch.device, found: list[dict[str, Any]]
) -> dict[str, Any]:
    """The record of one target."""
    worst = {name: max(case["errors"][name] for case in found) for name in found[0]["errors"]}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the library was compiled elsewhere
        versions["tilelang"] = importlib.metadata.version("tilelang")
    return {
        "source": library.source_hash(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": versions,
        "worst": worst,
        "cases": found,
    }


def write(folder: Path, target: str, record: dict[str, Any]) -> Path:
    """Puts one target's record among those of the package in `folder`."""
    path = folder / RECORD
    records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    records[target] = record
    path.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
    return path


def stale(package: ModuleType, library: ModuleType) -> list[str]:
    """Targets whose record is of other kernels than the package has now; "none" where nothing is recorded."""
    path = Path(package.__file__).parent / RECORD
    if not path.is_file():
        return ["none"]
    records = json.loads(path.read_text(encoding="utf-8"))
    return [target for target, record in records.items() if record["source"] != library.source_hash()]
