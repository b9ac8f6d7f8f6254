"""The same package's kernels for a GPU, made on this machine: source always, machine code where nvcc is found."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

TARGET = "cuda-sm_90a"


def lower(package: Any, target: str = TARGET) -> str:
    """One line: how many of the package's kernels TileLang lowered to CUDA, and whether nvcc made machine code.

    Never raises for a kernel that fails: the decoding is done by then, so the line says what went wrong instead.
    """
    library = importlib.import_module(f"{package.__name__}.library")
    try:
        importlib.import_module("tilelang")
        with _quiet():
            machine_code = library.cuda_compiler() is not None
            kernels = importlib.import_module(f"{package.__name__}.kernels.lower")
            names = kernels.kernels_of(target, library.KERNELS)
            failed = _build(library, names, target) if machine_code else _sources(kernels, names, target)
    except ImportError as error:
        return f"kernels not lowered to CUDA, TileLang is missing ({error}); next: pip install tilelang==0.1.15"
    total = len(names)
    how = "machine code compiled by nvcc" if machine_code else "no nvcc found: source only"
    line = f"kernels lowered to CUDA: {total - len(failed)} of {total} for {target} ({how})"
    return "; ".join([line, *dict.fromkeys(failed.values())])  # each reason once


def _sources(kernels, names, target):
    """{kernel: reason} of the kernels that have no CUDA source."""
    failed = {}
    for kernel in names:
        try:
            kernels.cuda_source(kernel, target)
        except Exception as error:  # whatever TileLang raises
            failed[kernel] = f"{kernel}: {_first_line(error)}"
    return failed


def _build(library, names, target):
    """{kernel: reason} of the kernels that nvcc made no library of; a build makes all or none."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            built = library.build(target, Path(scratch) / "library")
        except Exception as error:  # whatever TileLang or nvcc raises
            return dict.fromkeys(names, _first_line(error))
        made = json.loads((built / "library.json").read_text())["kernels"]
    return {kernel: f"{kernel}: not in the library" for kernel in names if kernel not in made}


def _first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


@contextlib.contextmanager
def _quiet():
    """TileLang logs two lines a kernel; they would drown the demo's own."""
    logger = logging.getLogger("tilelang")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            yield
        finally:
            logger.setLevel(level)
