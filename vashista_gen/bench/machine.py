"""The machine and the package to measure: device, kernels, what the hardware files know of the card."""

from __future__ import annotations

import importlib
import os
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vashista_gen.errors import DriftError, MissingEnvironmentError, UsageError
from vashista_gen.spec import Spec, hardware_of

DEVICES = ("cpu", "cuda")


def device(spec: Spec, wanted: str | None) -> torch.device:
    """The torch device: what was asked for, or a GPU if there is one and the spec has a target for it."""
    kinds = {"cpu" if target == "c" else "cuda" for target in spec.targets}
    there = torch.cuda.is_available()
    kind = wanted or ("cuda" if there and "cuda" in kinds else "cpu")
    if kind not in DEVICES:
        raise UsageError(f"--device {kind}: no such device", f"give one of {', '.join(DEVICES)}")
    if kind not in kinds:
        raise UsageError(f"{spec.name} has no target for {kind}", f"add one to targets in {spec.source.file}")
    if kind == "cuda" and not there:
        raise MissingEnvironmentError("torch finds no CUDA device", "leave out --device cuda, or run on a GPU machine")
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", torch.cuda.current_device())


def package(spec: Spec, path: Path) -> ModuleType:
    """The generated package. Raises UsageError where there is none, DriftError for one of another spec."""
    name, generate = f"vashista_gen.generated.{spec.name}", f"vashista-gen generate {path}"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "-"):
            raise
        raise UsageError(f"the package {spec.name} is not generated", generate) from error
    if spec.to_dict() != found.SPEC:
        raise DriftError(f"the package {spec.name} was generated from another spec than {path}", generate)
    return found


def kernels(package: ModuleType, device: torch.device) -> ModuleType:
    """The package's module `library`, its kernels compiled and loaded. Raises MissingEnvironmentError."""
    library = importlib.import_module(f"{package.__name__}.library")
    try:
        library.load(device.type, device.index)
    except library.LibraryError as error:
        message, _, step = str(error).partition("; next: ")
        raise MissingEnvironmentError(message, step or "vashista-gen doctor") from error
    return library


def bandwidth(device: torch.device, library: ModuleType) -> float | None:
    """bytes/s by the data sheet, if specs/hardware knows this very card and not only its architecture."""
    if device.type != "cuda":
        return None
    target = library.target_of(device)
    name = torch.cuda.get_device_name(device)
    for one in (target, target.rstrip("a")):
        try:
            card = hardware_of(one).card
        except UsageError:
            continue
        words = [word for word in card.name.split() if word != "SXM"]
        if all(word in name for word in words):
            return card.bandwidth
    return None


def environment(device: torch.device, dtype: str, batch: int) -> dict[str, Any]:
    """What the times depend on besides the code."""
    cuda = device.type == "cuda"
    return {
        "device": device.type, "processor": torch.cuda.get_device_name(device) if cuda else _processor(),
        "dtype": dtype, "batch": batch, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(), "load_before": load_average(), "load_after": None,
    }  # fmt: skip


def _processor() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0].strip() if names else platform.machine()


def load_average() -> float | None:
    """Load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
