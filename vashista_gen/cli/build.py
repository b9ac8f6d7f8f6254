"""`vashista-gen build`: compile a generated package's kernels ahead of time."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vashista_gen import emit
from vashista_gen.cli.console import output, say, working
from vashista_gen.cli.sources import load_all, shown
from vashista_gen.errors import DriftError, MissingEnvironmentError, UsageError
from vashista_gen.plan import make_plan
from vashista_gen.spec import Spec


def run(path: Path, target: str, out: Path) -> None:
    """Compiles into DIR/<name>/<target> for each target and says how to use it.

    Raises UsageError for a target that is not the spec's or a package that is not generated, DriftError for one that is
    not current, MissingEnvironmentError when a compiler or TileLang is missing.
    """
    spec = load_all([path])[0]
    targets = _targets(target, spec)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{shown(out)} is not a folder", "choose another one with --out")
    library = _library(spec, path)
    if any(one.startswith("cuda") for one in targets):
        _need_nvcc()
    logging.getLogger("tilelang").setLevel(logging.WARNING)  # a line for each kernel would break the progress shown
    console = output()
    for one in targets:
        folder = out / spec.name / one
        with (
            working(f"compiling the kernels of {spec.name} for {one}"),
            _no_empty_folders(folder, out),
        ):
            try:
                library.build(one, folder)
            except RuntimeError as error:  # the package's LibraryError, or TileLang's when nvcc fails
                message, _, step = str(error).partition("; next: ")
                raise MissingEnvironmentError(message, step or "vashista-gen doctor") from error
        say(console, f"built {spec.name} for {one}: {shown(folder)}")
    say(console, f"use:  export VASHISTA_GEN_LIBRARIES={out.absolute()}")
    say(console, f"      then vashista_gen.generated.{spec.name} loads these libraries and compiles nothing")


@contextmanager
def _no_empty_folders(folder: Path, out: Path) -> Iterator[None]:
    """After an error or an interrupt, take away the folders down from `out` that were made and are empty."""
    try:
        yield
    except BaseException:
        for made in (folder, folder.parent, out):
            with contextlib.suppress(OSError):  # not there, or not empty
                made.rmdir()
        raise


def _targets(text: str, spec: Spec) -> list[str]:
    targets = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    strange = [target for target in targets if target not in spec.targets]
    if strange or not targets:
        message = f"{', '.join(strange) or 'nothing'} is not a target of {spec.name}"
        raise UsageError(message, f"give --target {','.join(spec.targets)}, or add it to targets in {spec.source.file}")
    return targets


def _library(spec: Spec, path: Path) -> ModuleType:
    """The module that builds the package's libraries, once the package is known to be current."""
    generate = f"vashista-gen generate {shown(path)}"
    packages = importlib.import_module("vashista_gen.generated")
    folder = next((Path(p) for p in packages.__path__ if Path(p, spec.name, "library.py").is_file()), None)
    if folder is None:
        raise UsageError(f"the package {spec.name} is not generated", generate)
    changes = [c for c in emit.compare([make_plan(spec)], folder, whole=False) if c.path.startswith(f"{spec.name}/")]
    if changes:
        raise DriftError(
            f"{len(changes)} files of the package {spec.name} are not as {shown(path)} gives them", generate
        )
    return importlib.import_module(f"vashista_gen.generated.{spec.name}.library")


def _need_nvcc() -> None:
    try:
        from tilelang.contrib.nvcc import find_cuda_path
    except ImportError:
        return  # the package itself says that TileLang is missing
    try:
        home = Path(find_cuda_path())
    except RuntimeError:
        home = None
    if home is None or not (home / "bin" / "nvcc").exists():
        step = "install the CUDA toolkit and set CUDA_HOME to it; no GPU is needed"
        raise MissingEnvironmentError("no nvcc: CUDA kernels cannot be compiled here", step)
