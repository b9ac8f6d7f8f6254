"""From the words of a command line to specs and folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import vashista_gen
from vashista_gen import spec
from vashista_gen.cli.failure import report
from vashista_gen.errors import MissingEnvironmentError, UsageError, VashistaError
from vashista_gen.spec import Spec


def shipped() -> list[Path]:
    """Every spec of the folder of shipped specs, or of ./specs where none is installed, by name."""
    try:
        root = Path(str(spec.specs_root()))
    except MissingEnvironmentError:
        root = Path("specs")
    found = sorted(root.glob("*.yaml"))
    if not found:
        raise UsageError(f"no specs in {root}", "name a spec: vashista-gen check my_model.yaml")
    return found


def load_each(paths: Iterable[Path]) -> tuple[list[Spec], list[VashistaError]]:
    """The specs that are right, and an error for each of the others; a path given twice is read once."""
    specs: list[Spec] = []
    wrong: list[VashistaError] = []
    for path in dict.fromkeys(paths):
        try:
            specs.append(spec.load(path))
        except VashistaError as error:
            wrong.append(error)
    return specs, wrong


def load_all(paths: Iterable[Path]) -> list[Spec]:
    """All the specs. Reports every problem of every file and raises the last; UsageError for a name used twice."""
    specs, wrong = load_each(paths)
    raise_all(wrong)
    by_name: dict[str, Spec] = {}
    for one in specs:
        other = by_name.setdefault(one.name, one)
        if other is not one:
            files = f"{other.source.file} and {one.source.file}"
            raise UsageError(f"{files} both give the package {one.name}", "rename one of them, file and name")
    return specs


def raise_all(wrong: list[VashistaError]) -> None:
    """Report all errors but the last, and raise that one; nothing when there is none."""
    for error in wrong[:-1]:
        report(error)
    if wrong:
        raise wrong[-1]


def checkout_output() -> Path:
    """The folder `generated` of the checkout this package runs from; UsageError when it is installed elsewhere."""
    root = Path(vashista_gen.__file__).parent.parent
    if not (root / "specs" / "hardware").is_dir():
        raise UsageError(
            "vashista_gen does not run from a checkout: there is no folder generated/", "give one with --out DIR"
        )
    return root / "generated"


def shown(path: Path) -> str:
    """The path as short as it can be typed: relative when it lies below the working directory."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()).as_posix() if absolute.is_relative_to(Path.cwd()) else path.as_posix()
