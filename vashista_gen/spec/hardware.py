"""Figures of the hardware, read from specs/hardware/*.yaml where each has its source."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

import vashista_gen
from vashista_gen.errors import MissingEnvironmentError, UsageError

_REINSTALL = "reinstall with `pip install -e .`, or run from a checkout that has the folder specs/"


@dataclass(frozen=True)
class Card:
    """An example card: number of SMs, memory bandwidth in bytes/s by its data sheet, and as a copy measured it."""

    name: str
    sms: int
    bandwidth: float
    measured_bandwidth: float | None


@dataclass(frozen=True)
class Hardware:
    """One architecture ("sm_90"): its targets, bytes of shared memory that a block and an SM can have."""

    name: str
    targets: tuple[str, ...]
    compute_capability: str
    shared_bytes_per_block: int
    shared_bytes_per_sm: int
    card: Card


def specs_root() -> Traversable:
    """The folder of the shipped specs: the installed package vashista_gen.specs, or specs/ beside it in a checkout.

    Raises MissingEnvironmentError when neither is there.
    """
    try:
        root: Traversable = importlib.resources.files("vashista_gen.specs")
    except ModuleNotFoundError:
        root = Path(vashista_gen.__file__).parent.parent / "specs"
    if not root.joinpath("hardware").is_dir():
        raise MissingEnvironmentError("the folder of shipped specs is not installed", _REINSTALL)
    return root


@functools.cache
def hardware_of(target: str) -> Hardware:
    """The architecture that `target` ("cuda-sm_90a") compiles for. Raises UsageError for one without, such as "c"."""
    for architecture in architectures():
        if target in architecture.targets:
            return architecture
    known = ", ".join(t for a in architectures() for t in a.targets)
    raise UsageError(
        f"no hardware figures for target {target}", f"use one of {known}, or add a file to specs/hardware/"
    )


@functools.cache
def architectures() -> tuple[Hardware, ...]:
    """All that have figures, in the order of their names."""
    files = [f for f in specs_root().joinpath("hardware").iterdir() if f.name.endswith(".yaml")]
    return tuple(_read(f) for f in sorted(files, key=lambda f: f.name))


def _read(file: Traversable) -> Hardware:
    figures = yaml.safe_load(file.read_text(encoding="utf-8"))
    card = figures["card"]
    measured = card.get("measured_copy")
    return Hardware(
        name=file.name.removesuffix(".yaml"),
        targets=tuple(figures["targets"]),
        compute_capability=figures["compute_capability"],
        shared_bytes_per_block=figures["shared_memory_per_block"]["kib"] * 1024,
        shared_bytes_per_sm=figures["shared_memory_per_sm"]["kib"] * 1024,
        card=Card(
            name=card["name"],
            sms=card["sms"]["count"],
            bandwidth=card["memory_bandwidth"]["gb_per_s"] * 1e9,
            measured_bandwidth=measured["gb_per_s"] * 1e9 if measured else None,
        ),
    )
