"""Packages under test: rendered from their specs into a folder of this run and imported from there, on their own.

The compiled libraries go to $VASHISTA_GEN_CACHE where it is set, else to a folder of this run that all workers share.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

from vashista_gen import emit, spec
from vashista_gen.plan import make_plan

from .subject import Subject

ROOT = Path(__file__).resolve().parents[2]
SPECS = {p.stem: p for p in (ROOT / "specs" / f"{name}.yaml" for name in ("tiny", "smollm2_135m", "paper_mha"))}
SPECS |= {
    p.stem: p
    for p in sorted((ROOT / "tests" / "shapes").glob("*.yaml"))
    if spec.load(p).attention.solver == "softmax"  # the others: test_solvers.py
}
HAS_GPU = torch.cuda.is_available()


def write_package(folder: Path, loaded: spec.Spec) -> None:
    """Renders a spec's package into `folder`/<its name>."""
    for path, text in emit.render(make_plan(loaded)).items():
        target = folder / loaded.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread a worker: xdist's workers have the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """(name or Spec) -> the imported package: a top-level module of this worker's own folder."""
    folder = tmp_path_factory.mktemp("packages")
    if not os.environ.get("VASHISTA_GEN_CACHE"):
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
        os.environ["VASHISTA_GEN_CACHE"] = str(shared / "libraries")
    sys.path.insert(0, str(folder))

    @functools.cache
    def load(wanted):
        loaded = spec.load(SPECS[wanted]) if isinstance(wanted, str) else wanted
        write_package(folder, loaded.always_routed())
        importlib.invalidate_caches()
        return importlib.import_module(loaded.name)

    yield load
    sys.path.remove(str(folder))


def on_device(package, device: str) -> Subject:
    """The package on `cpu` or `cuda`."""
    dtype = getattr(torch, package.SPEC["model"]["dtype"]) if device == "cuda" else torch.float32
    return Subject(package, torch.device(device, 0) if device == "cuda" else torch.device(device), dtype)


def _parameters(wanted=lambda loaded: True):
    """(name, device) of the specs that are wanted, on each device."""
    for device in ("cpu", "cuda"):
        gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]
        for name, path in SPECS.items():
            if (device == "cpu" or "cuda" in path.read_text(encoding="utf-8")) and wanted(spec.load(path)):
                marks = [pytest.mark.xdist_group(name), *(gpu if device == "cuda" else [])]
                yield pytest.param((name, device), marks=marks, id=f"{name}-{device}")


def _subjects(wanted=lambda loaded: True):
    """A fixture of the packages whose specs are wanted, on each device."""

    def subject(request, packages) -> Subject:
        name, device = request.param
        return on_device(packages(name), device)

    return pytest.fixture(scope="session", params=_parameters(wanted))(subject)


subject = _subjects()
sketched = _subjects(lambda loaded: loaded.sketch.bits is not None)
listing = _subjects(lambda loaded: make_plan(loaded).token_list)
certified = _subjects(lambda loaded: loaded.certificate.kind != "none")
two_levels = _subjects(lambda loaded: loaded.routing.levels == 2)
refreshing = _subjects(lambda loaded: loaded.routing.refresh > 1)
retrying = _subjects(lambda loaded: loaded.fallback != "capped")


@pytest.fixture(scope="session")
def tiny(packages) -> Subject:
    """The tiny package on the CPU."""
    return on_device(packages("tiny"), "cpu")
