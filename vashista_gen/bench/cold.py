"""How long a fresh interpreter takes to import a generated package and load its compiled kernels, beyond torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

from vashista_gen.errors import MissingEnvironmentError

RUNS = 5
_TORCH = "import time; begun = time.perf_counter(); import torch; {rest}; print(time.perf_counter() - begun)"
_PACKAGE = "import importlib; importlib.import_module({name!r} + '.library').load({device!r}, {index!r})"


def measure(
    package: ModuleType, device_type: str, index: int | None, step: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """torch_s, package_s (the medians' difference) and runs; the two kinds of run take turns. Kernels must be compiled.

    On CUDA the time of `load` includes the creation of the device's context.
    """
    load = _PACKAGE.format(name=package.__name__, device=device_type, index=index)
    series: dict[str, list[float]] = {"pass": [], load: []}
    for _ in range(RUNS):
        for rest, seconds in series.items():
            seconds.append(_run(_TORCH.format(rest=rest)))
            step()
    torch_s, whole = (statistics.median(seconds) for seconds in series.values())
    return {"torch_s": torch_s, "package_s": whole - torch_s, "runs": RUNS}


def _run(program: str) -> float:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MissingEnvironmentError(f"a fresh interpreter cannot import the package: {last}", "vashista-gen doctor")
    return float(done.stdout)
