"""Packages rendered by a test into a folder of its own and imported from there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from vashista_gen import emit, spec
from vashista_gen.plan import make_plan


def write_package(folder: Path, text: str) -> str:
    """Renders a spec, given as YAML, into `folder`/<its name>; returns the name."""
    name = next(line for line in text.splitlines() if line.startswith("name: ")).split()[1]
    loaded = spec.loads(text, f"{name}.yaml")
    for path, content in emit.render(make_plan(loaded)).items():
        target = folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    return name


def import_package(folder: Path, text: str) -> ModuleType:
    """Renders and imports; the folder stays on the import path, so a name serves once a process."""
    name = write_package(folder, text)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(name)
