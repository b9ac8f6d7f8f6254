"""The same package's kernels for a GPU, made on this machine: source always, machine code where nvcc is found."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

TARGET = "cuda-sm_90a"


def lower(package: Any, target: str = TARGET) -> str:
    """One line: how many of the package's kernels TileLang lowered to CUDA, and whether nvcc made machine code of them."""
    library = importlib.import_module(f"{package.__name__}.library")
    total = len(library.KERNELS)
    try:
        with _quiet():
            kernels = importlib.import_module(f"{package.__name__}.kernels.lower")
            lowered = sum(bool(kernels.cuda_source(kernel, target)) for kernel in library.KERNELS)
    except ImportError as error:
        return f"kernels not lowered to CUDA: {error}; next: pip install tilelang"
    line = f"kernels lowered to CUDA: {lowered} of {total} for {target}"
    if shutil.which("nvcc") is None:
        return f"{line} (no nvcc found: source only)"
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        made = list(library.build(target, Path(scratch) / "library").glob("*.so"))
        size = sum(path.stat().st_size for path in made)
    return f"{line} (machine code compiled by nvcc: {len(made)} libraries, {size / 1e6:.1f} MB)"


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
