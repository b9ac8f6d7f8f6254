"""Packages whose kernels are compiled with other constants: each rendered, compiled and checked in its own process."""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from vashista_gen import emit
from vashista_gen.plan import Plan, make_plan
from vashista_gen.spec import Spec
from vashista_gen.spec.kernels import kernel_choices
from vashista_gen.tune.search import Knob

TIMEOUT_S = 900  # of one candidate: a kernel that never ends is given up


def present(plan: Plan, target: str) -> dict[str, int]:
    """The constants that a plan's kernels have for a target."""
    if target == "c":
        return {"tile_tokens": plan.tile_tokens_c, "score_pages": plan.score_pages_c}
    return {
        "tile_tokens": plan.tile_tokens_cuda, "score_pages": plan.score_pages_cuda, "part_pages": plan.part_pages,
        "attend_warps": plan.attend_warps, "token_warps": plan.token_warps, "fused_routing": int(plan.may_fuse),
    }  # fmt: skip


def knobs(plan: Plan, target: str) -> list[Knob]:
    """The constants that the kernels of a step have there, in the order they are tried."""
    cuda, warps = target != "c", target != "c" and plan.warps_on_cuda
    timed = {
        "fused_routing": ("sparse",) if replace(plan, may_fuse=True).fused_routing else (),
        "attend_warps": ("dense",) if plan.token_list else ("dense", "sparse"),
        "token_warps": ("sparse",) if plan.token_list else (),
        "part_pages": () if plan.scores_by_sketch else ("sparse",),
    }
    timed = timed if warps else {}
    staged_tokens = ("sparse",) if warps else ("dense", "sparse")
    timed["tile_tokens"] = staged_tokens if not warps or plan.token_list else ()
    timed["score_pages"] = ("sparse",) if not cuda or not warps or plan.scores_by_sketch else ()
    choices = kernel_choices(plan.spec, target)
    return [Knob(name, choices[name], times) for name, times in timed.items() if times and len(choices[name]) > 1]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that packages are made in and imported from."""
    with tempfile.TemporaryDirectory(prefix="vashista_gen_tune_") as folder:
        sys.path.insert(0, folder)
        try:
            yield Path(folder)
        finally:
            sys.path.remove(folder)


class Candidates:
    """The packages of one spec and target, made and kept in the folder of a `scratch`."""

    def __init__(self, spec: Spec, target: str, device: str, dtype: str, folder: Path) -> None:
        self.spec, self.target, self.device, self.dtype, self.folder = spec, target, device, dtype, folder
        self._made: dict[tuple, ModuleType | str] = {}

    def make(self, wanted: Sequence[Mapping[str, int]]) -> list[ModuleType | str]:
        """For each set of constants its package, or why there is none: not compiled, crashed, or a wrong result."""
        new = [one for one in wanted if _key(one) not in self._made]
        # written and imported one after the other: Python's compiler does not bear several threads
        names = [self._write(one) for one in new]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(self._try, names))
        importlib.invalidate_caches()
        for one, name, problem in zip(new, names, problems, strict=True):
            self._made[_key(one)] = problem or importlib.import_module(name)
        return [self._made[_key(one)] for one in wanted]

    def _write(self, constants: Mapping[str, int]) -> str:
        """Renders the package with these constants; its name."""
        name = "_".join([self.spec.name, *(f"{key}{value}" for key, value in constants.items())])
        changed = replace(self.spec, kernels={self.target: constants}, tuning={})
        for path, text in emit.render(make_plan(changed)).items():
            place = self.folder / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return name

    def _try(self, name: str) -> str:
        """What is wrong with a rendered package, or an empty string; its library lies beside it then."""
        command = [sys.executable, "-m", "vashista_gen.tune.candidate", str(self.folder), name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                [*command, self.target, self.device, self.dtype],
                capture_output=True, text=True, timeout=TIMEOUT_S, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT_S} s"
        if done.returncode < 0:
            return f"ended by {signal.Signals(-done.returncode).name}"
        said = (done.stdout if done.returncode == 1 else done.stderr).strip().splitlines()
        return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else ""


def _key(constants: Mapping[str, int]) -> tuple:
    return tuple(sorted(constants.items()))
